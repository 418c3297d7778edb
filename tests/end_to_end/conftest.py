"""One server over the demo checkpoint for all tests of this folder: the same process that users start."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
from tests.serve.process import ServerProcess, server_process


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def server() -> Iterator[ServerProcess]:
    with server_process("dsv4.serve", "demo", "--port", "0", OMP_NUM_THREADS="1") as one:  # the clients need a core
        yield one


@pytest.fixture
def http(server: ServerProcess) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=60, trust_env=False) as client:
        yield client
