"""Installs a wheel into a fresh environment, far from the checkout, and uses it the way a stranger would.

    python scripts/try_wheel.py dist/dsv4-*.whl

The parent makes the environment; a child, run by that environment's interpreter in an empty folder, looks at what was
installed, starts the server on the embedded demo model, asks it for one completion and stops it.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import venv
from pathlib import Path

START_S = 300.0
STOP_S = 60.0
CARRIED = {  # what the wheel must bring: pattern of paths under dsv4/ -> fewest of them
    r"_core\.abi3\.so": 1,
    r"_core\.pyi": 1,
    r"py\.typed": 1,
    r"kernels/.*\.py": 5,
    r"config/recipes/.*\.toml": 1,
    r"demo/config\.json": 1,
    r"demo/.*\.safetensors": 1,
    r"demo/tokenizer\.json": 1,
}


def check_contents() -> None:
    """Counts the files that the installed package brought, by kind."""
    files = importlib.metadata.files("dsv4") or []
    names = [path.as_posix().removeprefix("dsv4/") for path in files if path.parts[0] == "dsv4"]
    for pattern, fewest in CARRIED.items():
        found = sum(re.fullmatch(pattern, name) is not None for name in names)
        print(f"  {pattern:32} {found}")
        if found < fewest:
            sys.exit(f"the wheel carries {found} files like {pattern}, expected at least {fewest}")
    top_level = {path.parts[0] for path in files if not path.parts[0].startswith(("dsv4", ".."))}
    if top_level:
        sys.exit(f"the wheel installs beside dsv4: {sorted(top_level)}")


def check_import() -> None:
    """Imports the package without torch, from the environment and not from a checkout."""
    code = (
        "import dsv4, sys; assert 'torch' not in sys.modules, 'import dsv4 imported torch';"
        "import dsv4._core as core; print(' ', dsv4.__version__, core.build_info); print(dsv4.__file__)"
    )
    output = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    print(output, end="")
    if not Path(output.splitlines()[-1]).is_relative_to(sys.prefix):
        sys.exit("dsv4 was imported from outside the fresh environment")


def request(url: str, body: object = None) -> bytes:
    """The body of the reply to a GET, or to a POST of `body` as JSON."""
    data = None if body is None else json.dumps(body).encode()
    message = urllib.request.Request(url, data, {"Content-Type": "application/json"})  # noqa: S310  an address of ours
    with urllib.request.urlopen(message, timeout=120) as reply:  # noqa: S310  an address of ours
        content: bytes = reply.read()
    return content


def wait_until_ready(server: subprocess.Popen[bytes], base: str) -> None:
    """Asks /ready until it answers 200."""
    deadline = time.monotonic() + START_S
    while True:
        if server.poll() is not None:
            sys.exit(f"the server ended with status {server.returncode} before it was ready")
        try:
            request(f"{base}/ready")
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            if time.monotonic() > deadline:
                sys.exit(f"the server was not ready within {START_S:.0f} s")
            time.sleep(0.25)
        else:
            return


def serve_once() -> None:
    """Starts the server, asks for one completion, and ends it by SIGTERM."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    base = f"http://127.0.0.1:{port}"
    server = subprocess.Popen([sys.executable, "-m", "dsv4.serve", "demo", "--port", str(port)])
    try:
        wait_until_ready(server, base)
        model = json.loads(request(f"{base}/v1/models"))["data"][0]["id"]
        reply = json.loads(
            request(f"{base}/v1/completions", {"model": model, "prompt": "One two three", "max_tokens": 8, "seed": 1})
        )
        print(f"  {model} answered {reply['usage']}: {reply['choices'][0]['text']!r}")
        if reply["usage"]["completion_tokens"] < 1:
            sys.exit("the completion is empty")
        server.send_signal(signal.SIGTERM)
        status = server.wait(STOP_S)
    finally:
        server.kill()
    if status != 0:
        sys.exit(f"the server ended with status {status} after SIGTERM")


def inside() -> None:
    """The child's part."""
    subprocess.run([sys.executable, "-m", "dsv4.serve", "--help"], check=True, stdout=subprocess.DEVNULL)
    check_contents()
    check_import()
    serve_once()


def main() -> None:
    """The parent's part: a fresh environment, and the child in it."""
    if sys.argv[1:] == ["--inside"]:
        inside()
        return
    wheel = Path(sys.argv[1]).resolve()
    with tempfile.TemporaryDirectory(prefix="dsv4-wheel-") as folder:
        python = Path(folder, "venv", "bin", "python")
        venv.create(python.parents[1], with_pip=True)
        pip = [str(python), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
        index = os.environ.get("TORCH_INDEX")
        if index:
            subprocess.run([*pip, "torch>=2.11", "--index-url", index], check=True)
        subprocess.run([*pip, str(wheel)], check=True)
        script = Path(folder, "try_wheel.py")
        script.write_text(Path(__file__).read_text())
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL"))}
        subprocess.run([str(python), str(script), "--inside"], check=True, cwd=folder, env=environment)
    print(f"{wheel.name} works in a fresh environment")


if __name__ == "__main__":
    main()
