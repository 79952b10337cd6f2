"""What the commands of `fleetchat` share: where they print, and how they find their fleet."""

import asyncio
import os
import sys
from collections.abc import Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from broker.config import Config, data_folder
from broker.connection import Broker
from broker.errors import SetupError
from broker.logs import hide

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)
REDIS_SECONDS = 3.0

DataOption = Annotated[
    Path | None, typer.Option("--data", help="Folder for conversations and logs.", show_default=False)
]


def new_table(*columns: str) -> Table:
    """A table without lines."""
    return Table(*columns, box=None, pad_edge=False, header_style="bold")


def find_fleet(data: Path | None) -> Config:
    """The fleet that REDIS_URL names, or else the one that `fleetchat up` runs, or has run last, on this machine."""
    config = Config.from_env()
    note = (data or config.data or data_folder()) / "redis.url"
    if "REDIS_URL" not in os.environ and note.exists():
        config = replace(config, redis_url=note.read_text().strip())
    return config


async def reach(broker: Broker) -> None:
    """Return if the fleet is there.

    Raises:
        SetupError: it is not.
    """
    try:
        async with asyncio.timeout(REDIS_SECONDS):
            await broker.redis.ping()
    except Exception:
        raise SetupError(
            f"There is no fleet at {hide(broker.config.redis_url)}. Start one with: fleetchat up. "
            "One elsewhere is found by --data or REDIS_URL."
        ) from None


def run(work: Coroutine[Any, Any, None]) -> None:
    """Do a command's work until it is done, or somebody does not want it any more."""
    try:
        asyncio.run(work)
    except (KeyboardInterrupt, asyncio.CancelledError):  # the latter: told to end by a signal
        sys.exit(130)
