"""A fleet of its own for each test."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from faults.harness import Fleet


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[Fleet]:
    """An empty fleet with short times: see `Fleet.open` for other ones."""
    async with Fleet.open(tmp_path) as opened:
        yield opened
