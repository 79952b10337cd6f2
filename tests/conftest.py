"""One Valkey for the run, emptied between tests; a broker, and a worker inside this process."""

import asyncio
import gc
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from broker import embedded, registry
from broker.config import Config
from broker.connection import Broker
from broker.messages import ModelCard
from helpers import eventually

pytest_plugins = ["webpage"]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="tests of faults and of the API's document in their long form")


def pytest_collection_finish() -> None:
    gc.freeze()  # what was imported stays, and need not be looked through whenever an engine is closed


def pytest_sessionfinish() -> None:
    gc.unfreeze()  # workers in this process froze more: what of it was never closed or awaited comes to light at the end


@pytest.fixture
def long(request: pytest.FixtureRequest) -> bool:
    """Whether this is the long form: `pytest tests/faults --long`."""
    return bool(request.config.getoption("--long"))


@pytest.fixture(scope="session")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of this run's own server; its process id has been asserted."""
    with embedded.running(tmp_path_factory.mktemp("valkey")) as (url, _):
        yield url


@pytest.fixture
def config(valkey: str, tmp_path: Path) -> Config:
    return Config.from_env({"REDIS_URL": valkey, "FLEETCHAT_DATA": str(tmp_path)})


@pytest.fixture
async def broker(config: Config) -> AsyncIterator[Broker]:
    """A broker on an empty server."""
    async with Broker.open(config) as opened:
        await opened.redis.flushall()
        yield opened


@pytest.fixture
async def card(broker: Broker) -> ModelCard:
    """A model `m` that a worker `w`, played by the test, serves."""
    card = ModelCard("m", state="ready", context=100)
    await registry.beat(broker, "w", "ready", {"models": "m", "slots": 4}, [card])
    return card


WorkerIn = Callable[..., AbstractAsyncContextManager[Any]]


@pytest.fixture
def worker_in(broker: Broker, config: Config) -> WorkerIn:
    """`async with worker_in(model="echo") as worker`: a worker in this process, ready, and drained at the end."""
    from dataclasses import replace
    from signal import SIGTERM

    import arq.worker

    from workers.settings import make_settings

    @asynccontextmanager
    async def start(**changes: Any) -> AsyncIterator[Any]:
        settings = make_settings(replace(config, **({"model": "echo", "drain_seconds": 0.2} | changes)))
        worker = arq.worker.create_worker(settings, handle_signals=False)
        worker.serving_ended = None  # the exception that ended it before its time
        task = asyncio.create_task(worker.main())
        task.add_done_callback(lambda t: setattr(worker, "serving_ended", t.exception()))
        try:
            await eventually(lambda: task.done() or worker.models, 20)
            if task.done():
                await task
            yield worker
        finally:
            worker.handle_sig(SIGTERM)
            await asyncio.wait({task})

    return start
