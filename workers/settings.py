"""What `arq workers.Settings` runs: arq's settings, flat, made from the environment.

arq reads a settings class's own attributes and drops every name that its `Worker` does not take. Its command builds
the `Worker` that its own module holds; there is no setting for another class. So `make_settings` puts ours there, under
arq's signature (without it arq would drop all settings). arq is pinned to 0.28 for that, and a test holds it.
"""

import inspect
import sys
from importlib import import_module
from typing import Any

import arq.worker
from arq.connections import RedisSettings

from broker import keys, logs, sources
from broker.config import Config
from broker.connection import SentinelAddress
from broker.errors import SetupError
from broker.messages import JOBS, pack, unpack
from broker.sources import WITHOUT_MODEL
from workers.chat import chat
from workers.embeddings import embed
from workers.fleet_worker import FleetWorker
from workers.tokens import tokens

MAX_TRIES = 1000  # starts, hand-overs included; crashes are counted apart, by the scripts


def make_settings(config: Config | None = None) -> type:
    """arq's settings class for a worker. A setting that cannot be read ends the process with exit code 2."""
    try:
        config = config or Config.from_env()
        models = (WITHOUT_MODEL,) if config.role == JOBS else sources.for_worker(config.model, config.models_file)
        functions = _jobs() if config.role == JOBS else [chat, embed, tokens]
    except SetupError as error:
        print(logs.hide(str(error)), file=sys.stderr)
        sys.exit(2)
    FleetWorker.__signature__ = STOCK_SIGNATURE  # type: ignore[attr-defined]
    arq.worker.Worker = FleetWorker  # type: ignore[misc]
    settings: dict[str, Any] = {
        "functions": functions,
        "queue_name": keys.queue(models[0].name),  # for `arq --check`; the worker claims from all its models' queues
        "redis_settings": _redis_settings(config.redis_url),  # for `arq --check`; the worker has its own connection
        "ctx": {"config": config, "models": models},
        "max_jobs": config.slots,
        "job_timeout": config.run_seconds + 5,  # the scripts end it at run_seconds; this is for a loop that hangs
        "keep_result": 0,
        "max_tries": MAX_TRIES,
        "health_check_interval": 5,
        "job_serializer": pack,
        "job_deserializer": unpack,
        "log_results": False,
    }
    return type("Settings", (), settings)


def _jobs() -> list[Any]:
    """The functions of the role `jobs`. What it needs beside the others is imported only here."""
    try:
        functions: list[Any] = import_module("workers.jobs").functions()
    except ModuleNotFoundError as error:
        if error.name not in ("numpy", "regex"):
            raise
        raise SetupError(
            f"The jobs worker needs {error.name}, which is not installed: pip install 'fleetchat[jobs]'."
        ) from None
    return functions


STOCK_SIGNATURE = inspect.signature(arq.worker.Worker)


def _redis_settings(url: str) -> RedisSettings:
    if not url.startswith("sentinel://"):
        return RedisSettings.from_dsn(url)
    at = SentinelAddress.parse(url)
    return RedisSettings(
        host=at.hosts, sentinel=True, sentinel_master=at.name, username=at.username, password=at.password
    )
