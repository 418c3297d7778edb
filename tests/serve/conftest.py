"""Tests of the door run in an event loop of their own, on uvloop as the server does."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from tests.serve.harness import Served, serving


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, object]]:
    return ("asyncio", {"use_uvloop": True})


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    async with serving() as one:
        yield one
