"""Serve a model over HTTP in OpenAI's form, and ask it as any client would.

python examples/serve.py [PATH]     # runs/example, of examples/train.py; needs pangu-jax[serve]
"""

import json
import subprocess
import sys
import urllib.request

path = sys.argv[1] if len(sys.argv) > 1 else "runs/example"
command = [sys.executable, "-m", "pangu_jax", "serve", path]  # pangu-jax serve PATH
options = ["--port=0", "--slots=2", "--length=64", "--name=fox"]
with subprocess.Popen([*command, *options], stdout=subprocess.PIPE, text=True) as server:
    try:
        url = server.stdout.readline().split()[-1]  # serving fox on http://127.0.0.1:PORT/v1
        body = {"model": "fox", "prompt": "the quick", "max_tokens": 20, "temperature": 0}
        request = urllib.request.Request(
            f"{url}/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as response:
            answer = json.load(response)
        print(f"{answer['choices'][0]['text']!r}, {answer['usage']['completion_tokens']} tokens")
    finally:
        server.terminate()  # it lets open requests end, and exits with 0
print(f"the server ended with {server.returncode}")
