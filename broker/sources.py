"""What `--model` and FLEETCHAT_MODEL take, and the TOML file that lists models with all that can be said of them.

Comes in: a folder, a hub id, a built-in, the address of a server that speaks OpenAI's protocol, or the name of a model
in FLEETCHAT_MODELS_FILE; several with commas between them share a worker. Goes out: the names under which the fleet
knows the models, and where they are. Nothing is loaded here, so the command can refuse a spelling mistake before it
starts anything.
"""

import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any
from urllib.parse import urlsplit

from broker.errors import SetupError
from broker.messages import JOBS, NUMBERS, RANGES

BUILT_IN = {
    "echo": "Repeats the prompt: for tests and development, no model behind it",
    "pocket": "A small demo model that comes with FleetChat",
}
DEFAULT = "pocket"
HUB_ID = re.compile(r"([\w-][\w.-]*/[\w-][\w.-]*)(?:@([\w./-]+))?")
NAME = re.compile(r"[A-Za-z0-9][\w.:/@+-]{0,127}", re.ASCII)
RESERVED = (JOBS, "training")
SCHEMES = ("http://", "https://")

# What may stand in the file, for a model of either kind, and for both.
REMOTE = {"url": str, "upstream": str, "key_env": str, "key_file": str, "context": int}
LOCAL = {"source": str, "revision": str, "trust_remote_code": bool, "chat_template": str}
ABOUT = {"description": str, "licence": str, "organisation": str, "link": str}
KEYS: Mapping[str, type[Any]] = REMOTE | LOCAL | ABOUT | {"defaults": dict}
FILES = ("key_file", "chat_template")
TYPES = {str: "a text in quotes", int: "a whole number", bool: "true or false", list: "a list", dict: "a table"}
DEFAULTS: Mapping[str, tuple[Any, float, float]] = {  # what the page's controls may begin with: type, from, to
    **{name: RANGES[name] for name in ("top_k", "min_p", "repetition_penalty", "min_tokens")},
    **{name: RANGES[name] for name in ("presence_penalty", "frequency_penalty")},
    "temperature": (int | float, 0, 2),
    "top_p": (int | float, 0.01, 1),
    "max_tokens": (int, 1, 1_000_000),
    **{
        name: (kind, 0, 0) for name, kind in (("ignore_eos", bool), ("thinking", bool), ("system", str), ("stop", list))
    },
}
SECRETS = ("key", "api_key", "apikey", "token", "password", "secret")


@dataclass(frozen=True, slots=True)
class ModelSource:
    """A model's name in the fleet, where to get it from, and what its operator says of it."""

    name: str
    source: str  # a folder, hub id or built-in; of a remote model the server's address, as http://host:8000/v1
    revision: str = ""  # of a hub id: branch, tag or commit
    trust_remote_code: bool = False  # run the Python code that comes with the model
    chat_template: str = ""  # a jinja file in place of the model's own template
    upstream: str = ""  # a remote model's name over there; "" is `name`
    key_env: str = ""  # the environment variable that holds a remote server's key
    key_file: str = ""  # or the file
    context: int = 0  # tokens; 0: the model or the server says it
    description: str = ""
    licence: str = ""
    organisation: str = ""  # who made it
    link: str = ""  # a page about it
    defaults: Mapping[str, Any] = field(default_factory=dict)  # what the page's controls begin with
    listed: bool = False  # it stands in the models file, where a worker finds it by its name

    @property
    def engine(self) -> str:
        """Which engine runs it: echo, remote or torch; none runs `jobs`."""
        if self.source in ("echo", JOBS):
            return self.source
        return "remote" if self.source.startswith(SCHEMES) else "torch"

    @property
    def needs_torch(self) -> bool:
        return self.engine == "torch"

    @property
    def is_adapter(self) -> bool:
        """Whether it is a folder with a LoRA adapter, to be served on its base."""
        return (Path(self.source) / "adapter_config.json").is_file()

    def __str__(self) -> str:
        """What `parse` takes."""
        place = f"{self.source}@{self.revision}" if self.revision else self.source
        return self.name if self.listed or self.name == place else f"{self.name}={place}"


NONE: Mapping[str, ModelSource] = MappingProxyType({})
WITHOUT_MODEL = ModelSource(JOBS, JOBS)
"""What a worker of the role `jobs` serves."""


def for_worker(text: str, file: Path | None) -> tuple[ModelSource, ...]:
    """What a worker serves: the models of FLEETCHAT_MODEL; without it the file's remote ones; without both `pocket`.

    Raises:
        SetupError: see `group` and `read`; or the file has no remote model.
    """
    listed = read(file) if file else {}
    if text or not file:
        return group(text or DEFAULT, listed)
    if remote := _remote(listed):
        return remote
    raise SetupError(f"{file} lists no remote model. Name the one to serve in FLEETCHAT_MODEL: {', '.join(listed)}.")


def for_fleet(texts: Sequence[str], file: Path | None) -> list[tuple[ModelSource, ...]]:
    """What each worker of `fleetchat up` serves: a worker for each text, and without any the whole file.

    Raises:
        SetupError: see `group` and `read`; or two models have one name.
    """
    listed = read(file) if file else {}
    if texts or not file:
        groups = [group(text, listed) for text in texts or [DEFAULT]]
    else:
        local = [(model,) for model in listed.values() if model.engine != "remote"]
        groups = [models for models in [_remote(listed), *local] if models]
    _refuse_twins([model for models in groups for model in models])
    return groups


def parse(text: str, listed: Mapping[str, ModelSource] = NONE) -> ModelSource:
    """The model that `text` names; `listed` are those of the models file.

    Raises:
        SetupError: it is nothing that can be served, or its name cannot be used.
    """
    if text in listed:
        return listed[text]
    before, given, after = text.partition("=")
    name, place = (before.strip(), after.strip()) if given else ("", text)
    if given and not name:
        raise SetupError(f"{text}: there is no name before the =.")
    if place.startswith(SCHEMES):
        source, revision = _address(place), ""
        if not name:
            raise SetupError(f"{source} needs the model's name on that server before it: NAME={source}")
    else:
        source, revision = _find(place, Path())
        name = name or (Path(source).name if os.path.isabs(source) else place)
    _check_name(name)
    return ModelSource(name, source, revision)


def group(text: str, listed: Mapping[str, ModelSource] = NONE) -> tuple[ModelSource, ...]:
    """The models that `text` names, with commas between them, for one worker.

    Raises:
        SetupError: see `parse`; or they do not go together.
    """
    models = tuple(parse(part.strip(), listed) for part in text.split(",") if part.strip())
    if not models:
        raise SetupError(f"{text!r} names no model.")
    _refuse_twins(models)
    engines = {model.engine for model in models}
    bases = [model.name for model in models if model.needs_torch and not model.is_adapter]
    if len(engines) > 1 or len(bases) > 1:
        raise SetupError(
            f"{', '.join(m.name for m in models)} cannot share a worker. One worker serves a model and adapters of it, "
            "or any number of remote models; start another worker for the rest."
        )
    return models


def read(file: Path) -> dict[str, ModelSource]:
    """The models that a TOML file lists in tables [models.NAME], by name. Paths in it are relative to its folder.

    Raises:
        SetupError: it cannot be read, or has a mistake; with the file, the model and the key.
    """
    try:
        raw = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise SetupError(f"The models file {file} cannot be read: {error.strerror}.") from None
    except ValueError as error:
        raise SetupError(f"The models file {file} is not TOML: {error}.") from None
    entries = raw.pop("models", None)
    if raw:
        raise SetupError(f"{file} has {next(iter(raw))!r} beside its models. Each model is a table [models.NAME].")
    if not isinstance(entries, dict) or not entries:
        raise SetupError(f"{file} lists no model. Each model is a table [models.NAME].")
    return {name: _entry(file, name, entry) for name, entry in entries.items()}


def valid_name(name: str) -> bool:
    """Whether a model may be called so: it becomes part of keys, addresses and command lines."""
    return NAME.fullmatch(name) is not None and name not in RESERVED


def _remote(listed: Mapping[str, ModelSource]) -> tuple[ModelSource, ...]:
    return tuple(model for model in listed.values() if model.engine == "remote")


def _refuse_twins(models: Sequence[ModelSource]) -> None:
    names = [m.name for m in models]
    if twice := {name for name in names if names.count(name) > 1}:
        raise SetupError(f"Two models are called {twice.pop()}. Give one another name: NAME=...")


def _entry(file: Path, name: str, raw: Any) -> ModelSource:
    try:
        _check_keys(name, raw)
        _check_name(name)
        if "url" in raw:
            source, revision = _address(raw["url"]), ""
        else:
            source, revision = _find(raw["source"], file.parent)
        if "revision" in raw and (revision or not HUB_ID.fullmatch(source)):
            raise SetupError("revision goes with the id of a model on the hub, which has no other one behind an @.")
        files = {key: str((file.parent / os.path.expanduser(raw[key])).resolve()) for key in FILES if key in raw}
        if "chat_template" in files and not os.path.isfile(files["chat_template"]):
            raise SetupError(f"chat_template: there is no file {files['chat_template']}.")
    except SetupError as error:
        raise SetupError(f"{file}, [models.{name}]: {error}") from None
    plain = {key: value for key, value in raw.items() if key not in ("url", "source", "revision")}
    revision = raw.get("revision", revision)
    return ModelSource(name, source, revision, listed=True, **plain | files)


def _check_keys(name: str, raw: Any) -> None:
    if not isinstance(raw, dict):
        raise SetupError("It has to be a table.")
    for key, value in raw.items():
        if key.lower() in SECRETS:
            raise SetupError(
                f"{key} does not stand in this file. Name the variable that holds the key with key_env, "
                "or its file with key_file."
            )
        if isinstance(value, dict) and key != "defaults":
            raise SetupError(f'{key} is a table. A name with a dot needs quotes: [models."{name}.{key}"].')
        if key not in KEYS:
            raise SetupError(f"There is no {key}; there are {', '.join(KEYS)}.")
        if type(value) is not KEYS[key]:
            raise SetupError(f"{key} has to be {TYPES[KEYS[key]]}.")
        if value in ("", {}) or (key == "context" and value < 1):
            raise SetupError(f"{key} is {value!r}. Leave it out if there is nothing to say.")
    if "link" in raw and not raw["link"].startswith(SCHEMES):
        raise SetupError("link has to be the address of a page, like https://example.org/model.")
    _check_defaults(raw.get("defaults", {}))
    if ("url" in raw) == ("source" in raw):
        raise SetupError("It needs url (of a server) or source (a folder, a hub id or a built-in), and not both.")
    kind, other = ("url", LOCAL) if "url" in raw else ("source", REMOTE)
    if foreign := [key for key in raw if key in other]:
        raise SetupError(f"{foreign[0]} does not go with {kind}.")
    if "key_env" in raw and "key_file" in raw:
        raise SetupError("key_env and key_file are two places for one key. Leave one of them out.")
    if not re.fullmatch(r"[A-Za-z_]\w*", raw.get("key_env", "_"), re.ASCII):
        raise SetupError("key_env has to be the name of an environment variable, and not the key itself.")


def _check_defaults(given: Mapping[str, Any]) -> None:
    for key, value in given.items():
        if key not in DEFAULTS:
            raise SetupError(f"There is no defaults.{key}; there are {', '.join(DEFAULTS)}.")
        kind, least, most = DEFAULTS[key]
        if kind in NUMBERS:
            if not isinstance(value, kind) or isinstance(value, bool) or not least <= value <= most:
                raise SetupError(f"defaults.{key} has to be {NUMBERS[kind]} from {least:g} to {most:g}.")
        elif type(value) is not kind:
            raise SetupError(f"defaults.{key} has to be {TYPES[kind]}.")
    if any(type(text) is not str for text in given.get("stop", [])):
        raise SetupError("defaults.stop has to be a list of texts in quotes.")


def _check_name(name: str) -> None:
    if not valid_name(name):
        raise SetupError(
            f"{name!r} cannot be a model's name. It starts with a letter or digit, has at most "
            "128 of letters, digits and _ . : / @ + -, and is neither jobs nor training. Put NAME= before it."
        )


def _address(url: str) -> str:
    """The address of a server, without the slash at its end."""
    try:
        parts = urlsplit(url)
        usable = url.startswith(SCHEMES) and parts.hostname and parts.port != 0
    except ValueError:  # a port that is no number, or half an IPv6 address
        usable = False
    if not usable or re.search(r"[\s?#@]", url):  # a name and password before an @ would stand in logs
        raise SetupError("The address of a server is like http://host:8000/v1, without a name, a password or a query.")
    return url.rstrip("/")


def _find(place: str, base: Path) -> tuple[str, str]:
    """A built-in, the folder (absolute), or a hub id and the revision behind its @."""
    if not place:
        raise SetupError("A model is missing where one has to be.")
    if place in BUILT_IN:
        return place, ""
    folder = base / os.path.expanduser(place)
    if os.path.isdir(folder):
        return str(folder.resolve()), ""
    hub = HUB_ID.fullmatch(place)
    if place.startswith(("/", ".", "~")) or not hub:
        raise SetupError(
            f"There is no folder {place!r}. A model is a folder with a model, a hub id like Qwen/Qwen3-0.6B, one of "
            f"{', '.join(BUILT_IN)}, NAME=http://host:8000/v1, or a model of FLEETCHAT_MODELS_FILE."
        )
    return hub[1], hub[2] or ""
