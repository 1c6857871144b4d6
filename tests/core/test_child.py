"""A script that answers questions: started once, ended when it is late, begun anew."""

import os

import pytest

from pangu_jax.core.child import Child

SCRIPT = """
import json, os, sys, time
print("{}", flush=True)
for line in sys.stdin:
    asked = json.loads(line)
    time.sleep(asked.get("sleep", 0))
    print(json.dumps({"pid": os.getpid(), "text": "x" * asked.get("size", 1)}), flush=True)
"""


def test_it_is_kept_until_it_is_late_or_says_too_much(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    child = Child(tmp_path / "script.py", (), (), longest=1000)
    first = child.ask({}, 30)["pid"]
    assert child.ask({}, 30)["pid"] == first != os.getpid()
    for bad, seconds in (({"sleep": 60}, 0.2), ({"size": 5000}, 30)):
        before = child.ask({}, 30)["pid"]
        with pytest.raises(TimeoutError):
            child.ask(bad, seconds)
        with pytest.raises(ProcessLookupError):
            os.kill(before, 0)
    child.end()
    (tmp_path / "script.py").write_text("")
    with pytest.raises(OSError, match="said nothing") as caught:
        child.ask({}, 30)
    assert not isinstance(caught.value, TimeoutError)
