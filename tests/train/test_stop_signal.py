"""Signals that ask a run to stop."""

import subprocess
import sys

# At each line that the answer to a signal runs through, another signal comes.
MORE = """
import os, signal, sys
from pangu_jax.train.stop_signal import stop_requests

seen = set()

def trace(frame, event, argument):
    place = frame.f_code, frame.f_lineno
    if event == "line" and place not in seen:
        seen.add(place)
        os.kill(os.getpid(), signal.SIGTERM)
    return trace

with stop_requests() as request:
    sys.settrace(trace)
    request.ask(signal.SIGTERM)
    sys.settrace(None)
    print(request.reached(1), len(seen) > 2)
"""


def test_a_signal_that_comes_while_one_is_answered():
    # `timeout` and schedulers pass a signal on to a process that has got it already.
    found = subprocess.run(
        [sys.executable, "-c", MORE], capture_output=True, text=True, timeout=60, check=True
    )
    assert found.stdout == "True True\n"
