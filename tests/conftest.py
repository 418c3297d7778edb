"""What every test gets: a seed made of its own name, which is printed when it fails."""

from __future__ import annotations

import hashlib
import random
import sys
from collections.abc import Generator

import pytest


def seed_of(name: str) -> int:
    """The same name gives the same seed on every machine; 32 bits, as torch and numpy take it."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    return seed_of(request.node.nodeid)


@pytest.fixture
def rng(seed: int) -> random.Random:
    return random.Random(seed)


@pytest.fixture(autouse=True)
def _seeded(seed: int) -> None:
    """Generators that nobody passed around start from the test's seed as well; torch and numpy only where loaded."""
    random.seed(seed)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(seed)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(seed)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        report.sections.append(("seed", f"{seed_of(item.nodeid)} (from {item.nodeid})"))
    return report
