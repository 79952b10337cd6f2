"""Every setting, read from the environment once into one frozen object.

`REDIS_URL` and the `FLEETCHAT_*` variables; the README has the same table (a test compares). A value that cannot be
read is a SetupError that names the variable, so a typing mistake never becomes a silent default.
"""

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Self

from broker.errors import SetupError

LOOPBACK = ("127.0.0.1", "localhost", "::1")


def data_folder() -> Path:
    """Where `fleetchat up` keeps its data unless told otherwise."""
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "fleetchat"


def _setting(
    variable: str,
    default: Any,
    about: str,
    *,
    at_least: float = 0,
    at_most: float = math.inf,
    one_of: tuple[str, ...] = (),
) -> Any:
    limits = {"at_least": at_least, "at_most": at_most, "one_of": one_of}
    return field(default=default, metadata={"variable": variable, "about": about} | limits)


@dataclass(frozen=True, slots=True)
class Config:
    """Seconds unless the name says otherwise."""

    redis_url: str = _setting(
        "REDIS_URL",
        "redis://127.0.0.1:6379/0",
        "the fleet's Redis or Valkey; `redis://`, `rediss://`, `unix://` or `sentinel://host:port,host:port/NAME`",
    )
    data: Path = _setting("FLEETCHAT_DATA", None, "folder of `fleetchat up`: conversations and logs")
    host: str = _setting("FLEETCHAT_HOST", "127.0.0.1", "address the web app listens on")
    port: int = _setting("FLEETCHAT_PORT", 8080, "port the web app listens on", at_least=1, at_most=65_535)
    origins: tuple[str, ...] = _setting(
        "FLEETCHAT_ORIGINS",
        (),
        "further origins whose pages may connect and call the API, comma-separated: `https://chat.example.org`",
    )
    model: str = _setting(
        "FLEETCHAT_MODEL",
        "",
        "what a worker serves, `--model` has the forms; without it all remote models of the models file, without one `pocket`",
    )
    models_file: Path | None = _setting("FLEETCHAT_MODELS_FILE", None, "TOML file that lists models")
    arena_file: Path | None = _setting(
        "FLEETCHAT_ARENA_FILE", None, "TOML file with the rules of the arena: pairs, limits, ratings, moderation"
    )
    role: str = _setting(
        "FLEETCHAT_ROLE",
        "auto",
        "what a worker does: `model` answers, `embed` gives vectors, `jobs` computes the leaderboard and has no model; `auto` looks at the model's files",
        one_of=("auto", "model", "embed", "jobs"),
    )
    slots: int = _setting("FLEETCHAT_SLOTS", 32, "answers that one worker writes at once", at_least=1)
    device: str = _setting("FLEETCHAT_DEVICE", "auto", "`cuda`, `mps`, `xpu`, `npu`, `cpu`, or `auto`")
    dtype: str = _setting(
        "FLEETCHAT_DTYPE", "auto", "`float32`, `bfloat16`, `float16`; `auto` is the checkpoint's, on a CPU float32"
    )
    quantization: str = _setting(
        "FLEETCHAT_QUANTIZATION",
        "none",
        "weights in 8 or 4 bits: `int8`, `int4` (GPUs only), or `none`; needs the extra `quantization`",
        one_of=("none", "int8", "int4"),
    )
    cache_mb: int = _setting(
        "FLEETCHAT_CACHE_MB",
        0,
        "memory for the key-value cache; 0 takes a part of what is free and says how much",
        at_least=0,
    )
    parallel: int = _setting(
        "FLEETCHAT_PARALLEL", 1, "GPUs that share one model, by its tensor-parallel plan", at_least=1
    )
    coalesce_ms: int = _setting(
        "FLEETCHAT_COALESCE_MS",
        25,
        "text is merged at most this long before it is sent; the first piece never; 0 sends every token by itself",
        at_least=0,
    )
    prompt_bytes: int = _setting(
        "FLEETCHAT_PROMPT_BYTES", 262_144, "largest prompt, history included, in bytes", at_least=1
    )
    queue_limit: int = _setting("FLEETCHAT_QUEUE_LIMIT", 256, "requests that may wait for one model", at_least=1)
    user_limit: int = _setting(
        "FLEETCHAT_USER_LIMIT",
        8,
        "requests that one browser may have waiting and running; a key has its own limit",
        at_least=1,
    )
    wait_seconds: float = _setting(
        "FLEETCHAT_WAIT_SECONDS", 120, "a request that no worker took by then ends with an error", at_least=0.1
    )
    run_seconds: float = _setting("FLEETCHAT_RUN_SECONDS", 600, "an answer that takes longer is ended", at_least=0.1)
    drain_seconds: float = _setting(
        "FLEETCHAT_DRAIN_SECONDS", 25, "a stopping worker finishes answers this long, then hands them over", at_least=0
    )
    lease_seconds: float = _setting(
        "FLEETCHAT_LEASE_SECONDS", 4, "a worker silent for this long loses its requests to the others", at_least=2
    )
    keep_days: float = _setting(
        "FLEETCHAT_KEEP_DAYS",
        0,
        "a conversation is forgotten so many days after its last change, with its links; 0 keeps all, and a pinned one stays",
        at_most=36_500,
    )
    stall_seconds: float = _setting(
        "FLEETCHAT_STALL_SECONDS",
        30,
        "an engine that has work and makes no step for this long counts as hung",
        at_least=1,
    )
    metrics: str = _setting(
        "FLEETCHAT_METRICS",
        "127.0.0.1:0",
        "address of a worker's `/metrics` and `/livez`; port 0 is any free one, `off` none",
    )
    log: str = _setting("FLEETCHAT_LOG", "text", "log lines: `text`, or `json` for programs", one_of=("text", "json"))

    @classmethod
    def from_env(cls, env: Mapping[str, str] | None = None) -> Self:
        """The settings in `env` (default: the process's environment).

        Raises:
            SetupError: a value is not of its type or below its minimum.
        """
        env = os.environ if env is None else env
        values = {f.name: _read(f, env[f.metadata["variable"]]) for f in fields(cls) if env.get(f.metadata["variable"])}
        return cls(**{"data": data_folder()} | values)

    def to_env(self) -> dict[str, str]:
        """The variables that give this object again: what a started process inherits."""
        return {f.metadata["variable"]: _write(getattr(self, f.name)) for f in fields(self)}

    @property
    def retain_ms(self) -> int:
        """How long a conversation is kept after its last change, in milliseconds; 0: for ever."""
        return int(self.keep_days * 86_400_000)

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach the web app."""
        return self.host in LOOPBACK


def _write(value: Any) -> str:
    if value is None:
        return ""
    return ",".join(value) if isinstance(value, tuple) else str(value)


def _read(f: Any, text: str) -> Any:
    variable, at_least, at_most, one_of = (f.metadata[key] for key in ("variable", "at_least", "at_most", "one_of"))
    readers: dict[Any, Callable[[str], Any]] = {
        int: int,
        float: float,
        Path: _read_path,
        Path | None: _read_path,
        tuple[str, ...]: _read_list,
    }
    try:
        value = readers.get(f.type, str)(text)
    except ValueError:
        raise SetupError(f"{variable} is {text!r}, which is not a number.") from None
    if isinstance(value, int | float) and not at_least <= value <= at_most:
        limits = f"at least {at_least:g}" + (f" and at most {at_most:g}" if at_most < math.inf else "")
        raise SetupError(f"{variable} is {text}, but must be {limits}.")
    if one_of and value not in one_of:
        raise SetupError(f"{variable} is {text!r}, but must be one of {', '.join(one_of)}.")
    return value


def _read_path(text: str) -> Path:
    return Path(text).expanduser()


def _read_list(text: str) -> tuple[str, ...]:
    return tuple(part.strip().rstrip("/") for part in text.split(",") if part.strip())
