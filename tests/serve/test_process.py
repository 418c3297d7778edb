"""The server as a process: what it prints, how it drains, how it ends, and with which status."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

import httpx
import pytest
from tests.serve.process import ServerProcess, finished, server_process, spawned

from dsv4.serve.args import SETTINGS

MODULE = "tests.serve.stand_in_main"


@pytest.fixture
def process() -> Iterator[ServerProcess]:
    with server_process(MODULE, "--port", "0", "--shutdown-timeout", "30") as one:
        yield one


@pytest.fixture
def client(process: ServerProcess) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=process.url, timeout=20, trust_env=False) as one:
        yield one


class Held:
    """A stream that does not end until the server is told."""

    def __init__(self, response: httpx.Response) -> None:
        self._lines = response.iter_lines()
        assert self.event()["choices"][0]["text"] == "held"

    def next(self) -> dict[str, Any] | None:
        """The next event, None for the end mark."""
        for line in self._lines:
            if line == "data: [DONE]":
                return None
            if line:
                found: dict[str, Any] = json.loads(line.removeprefix("data: "))
                return found
        raise AssertionError("the stream was cut")

    def event(self) -> dict[str, Any]:
        found = self.next()
        assert found is not None
        return found


def hold(client: httpx.Client) -> AbstractContextManager[httpx.Response]:
    return client.stream("POST", "/v1/completions", json={"prompt": "hold", "stream": True})


def test_the_report_comes_before_the_address(process: ServerProcess, client: httpx.Client) -> None:
    assert process.report == ["model   stand-in", "device  none"]
    assert process.url.startswith("http://127.0.0.1:")
    assert client.get("/health").status_code == 200
    metrics = client.get("/metrics").text
    assert "dsv4:http_requests_total" in metrics
    assert "_created" not in metrics


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains(process: ServerProcess, client: httpx.Client, number: signal.Signals) -> None:
    with hold(client) as response:
        held = Held(response)
        process.signal(number)
        ready = until_draining(client)
        assert ready.json() == {"status": "unavailable", "reason": "draining"}
        assert client.get("/health").status_code == 200
        refused = client.post("/v1/completions", json={"prompt": "late"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
        assert refused.headers["retry-after"]
        process.signal(signal.SIGUSR1)
        assert held.event()["choices"][0]["text"] == " and let go"
        assert held.next() is None
    assert process.exit_status() == 0
    assert process.popen.stdout is not None
    assert process.popen.stdout.read() == "engine stopped\n"


def until_draining(client: httpx.Client) -> httpx.Response:
    while (response := client.get("/ready")).status_code == 200:
        pass
    return response


def test_a_second_signal_exits_at_once(process: ServerProcess, client: httpx.Client) -> None:
    with hold(client) as response:
        held = Held(response)
        process.signal(signal.SIGTERM)
        until_draining(client)
        process.signal(signal.SIGTERM)
        assert process.exit_status() == 128 + signal.SIGTERM
        with pytest.raises((httpx.ReadError, httpx.RemoteProtocolError)):
            held.next()


def test_what_does_not_end_in_time_is_aborted_and_told_so() -> None:
    with (
        server_process(MODULE, "--port", "0", "--shutdown-timeout", "0.2") as process,
        httpx.Client(base_url=process.url, timeout=20, trust_env=False) as client,
        hold(client) as response,
    ):
        held = Held(response)
        process.signal(signal.SIGTERM)
        frame = held.event()
        assert frame["error"]["code"] == "aborted"
        assert held.next() is None
        assert process.exit_status() == 0


def test_an_idle_server_stops_at_once(process: ServerProcess, client: httpx.Client) -> None:
    assert client.get("/health").status_code == 200  # leaves an idle connection open
    process.signal(signal.SIGTERM)
    assert process.exit_status() == 0


@pytest.mark.parametrize(
    ("args", "status", "words"),
    [
        (["--frobnicate"], 2, "unknown flag --frobnicate"),
        (["--host", "0.0.0.0"], 2, "--insecure"),
        (["broken", "--port", "0"], 2, "config.json is missing"),
        (["failing", "--port", "0"], 1, "EngineClosed: the device went away"),
        (["--host", "300.1.1.1", "--insecure"], 2, "cannot be bound"),
    ],
)
def test_what_cannot_be_served_ends_with_a_status_and_a_sentence(args: list[str], status: int, words: str) -> None:
    found, stderr = finished(MODULE, *args)
    assert found == status, stderr
    assert words in stderr
    assert "Traceback" not in stderr


def test_a_taken_port_is_said_before_anything_is_loaded() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        status, stderr = finished(MODULE, "broken", "--port", str(taken.getsockname()[1]))
    assert status == 2
    assert "choose another --port" in stderr


def test_help_names_every_flag_and_its_variable() -> None:
    with spawned(MODULE, "--help", stderr=subprocess.DEVNULL) as popen:
        text, _ = popen.communicate(timeout=30)
    assert popen.returncode == 0
    for setting in SETTINGS:
        assert setting.flag in text
    assert "DSV4_MAX_NUM_SEQS" in text


def test_variables_and_notes() -> None:
    with server_process(MODULE, "--context-length", "512", DSV4_PORT="0") as process:
        assert "--context-length is --max-model-len here" in process.stderr()
