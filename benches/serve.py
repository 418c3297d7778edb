"""SSE chunks per second, and server CPU per chunk, of our server and of a minimal FastAPI one under the same load.

    this process (client) ═══ loopback ═══▶ server process
                                              serve_null     door, engine, core and text over a null runner
                                              serve_steps    the door alone, fed by a loop that makes words
                                              serve_fastapi  FastAPI, fed by the same loop

The server's CPU time comes from /proc and covers nothing but the measured rounds. Runs alone: python benches/serve.py
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import uvloop

HERE = Path(__file__).parent
NUM_STREAMS = 64
NUM_WORDS = 200
QUIET = ("--port", "0", "--log-level", "warning")
MEASURED_S = 4.0
WARM_UP_S = 0.5
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Score:
    """What one server did.

    frames_per_s   server-sent events that reached the client, per second
    us_per_frame   user and system CPU time of the server process, in microseconds
    """

    frames_per_s: float
    us_per_frame: float


def measure() -> list[tuple[str, str]]:
    """Rows of (what, figure)."""
    whole = _score("serve_null.py", *QUIET)
    door = _score("serve_steps.py", *QUIET)
    rows = [*_rows("server over a null runner", whole), *_rows("its door alone", door)]
    if any(importlib.util.find_spec(name) is None for name in ("fastapi", "pydantic")):
        return [*rows, ("FastAPI + uvicorn + pydantic", "skipped: install the dependency group `bench`")]
    fastapi = _score("serve_fastapi.py")
    return [
        *rows,
        *_rows("minimal FastAPI + uvicorn + pydantic", fastapi),
        ("server over a null runner / FastAPI", _ratio(whole, fastapi)),
        ("its door alone / FastAPI", _ratio(door, fastapi)),
    ]


def _rows(name: str, score: Score) -> list[tuple[str, str]]:
    return [
        (f"{name}, {NUM_STREAMS} streams", f"{score.frames_per_s:,.0f} chunks/s"),
        (f"{name}, server CPU", f"{score.us_per_frame:.1f} us/chunk"),
    ]


def _ratio(one: Score, other: Score) -> str:
    times, share = one.frames_per_s / other.frames_per_s, one.us_per_frame / other.us_per_frame
    return f"{times:.2f} x the chunks/s, {share:.2f} x the CPU per chunk"


def _score(script: str, *args: str) -> Score:
    with _server(script, *args) as (pid, port), asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_load(port, WARM_UP_S))
        cpu, began = _cpu_s(pid), time.perf_counter()
        num_frames = runner.run(_load(port, MEASURED_S))
        wall, cpu = time.perf_counter() - began, _cpu_s(pid) - cpu
    return Score(num_frames / wall, 1e6 * cpu / num_frames)


@contextlib.contextmanager
def _server(script: str, *args: str) -> Iterator[tuple[int, int]]:
    """A server's process id and port."""
    command = [sys.executable, str(HERE / script), *args]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            for line in server.stdout:
                if line.startswith("serving "):
                    yield server.pid, int(line.rsplit(":", 1)[1].partition("/")[0])
                    return
            raise RuntimeError(f"{script} ended with {server.wait()} before it served")
        finally:
            server.kill()


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S


async def _load(port: int, seconds: float) -> int:
    """Rounds of streams until the time is up; returns how many frames came."""
    deadline = time.perf_counter() + seconds
    num_frames = 0
    while time.perf_counter() < deadline:
        num_frames += sum(await asyncio.gather(*(_stream(port) for _ in range(NUM_STREAMS))))
    return num_frames


async def _stream(port: int) -> int:
    body = json.dumps(
        {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": NUM_WORDS, "stream": True}
    ).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    writer.write(head.encode() + body)
    raw = await reader.read(-1)
    writer.close()
    num_frames = raw.count(b"data: {")
    if num_frames != NUM_WORDS + 1 or not raw.count(b"data: [DONE]"):
        raise RuntimeError(f"{num_frames} frames came, {NUM_WORDS + 1} were expected: {raw[:300]!r}")
    return num_frames


if __name__ == "__main__":
    for name, value in measure():
        print(f"{name:<60} {value}")
