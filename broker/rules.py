"""The rules of the arena: what its operator says in one TOML file, FLEETCHAT_ARENA_FILE. Without a file: the defaults.

Which pairs meet and how often, how a battle runs, how many votes are taken, how ratings are computed, and what checks the
texts. The web app and the `jobs` worker each read it when they start. Names may end in `*`.
"""

import tomllib
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from broker.errors import SetupError

Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0)]


class Table(BaseModel):
    """A part of the file: what is not known is refused by its name."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Sampling(Table):
    """Which two models meet."""

    active: bool = True  # pairs whose difference is least certain are drawn more often (arXiv 2403.04132)
    floor: Annotated[float, Field(ge=0, le=1)] = 0.1  # the share of draws that is spread evenly over all pairs
    default: Weight = 1.0  # of a model that has no weight
    weights: dict[str, Weight] = Field(default_factory=dict)
    boosts: dict[str, Weight] = Field(default_factory=dict)  # times its weight, for a while
    targets: dict[str, list[str]] = Field(default_factory=dict)  # a model's rivals in half of its battles
    strict: dict[str, list[str]] = Field(default_factory=dict)  # its only rivals; it is nobody else's
    outages: list[str] = Field(default_factory=list)  # not drawn at all
    never: list[tuple[str, str]] = Field(default_factory=list)  # not together


class Battle(Table):
    """How a round runs."""

    paced: bool = True  # both sides appear at one speed, so that speed gives nothing away
    turns: Annotated[int, Field(ge=1)] = 50
    characters: Annotated[int, Field(ge=1)] = 30_000  # of one message, and of a system prompt


class Votes(Table):
    """Votes that are taken in a day, 0: any number; and of a voter those that count."""

    session: Count = 200
    address: Count = 2000
    network: Count = 5000  # a /24 of IPv4, a /48 of IPv6
    counted: Count = 100
    proxies: Count = 0  # that stand before the web app and write X-Forwarded-For


class Anchor(Table):
    """A model whose score is given, and with it the scale's zero."""

    model: str
    score: float


class Ratings(Table):
    """How the leaderboard is computed and what it shows."""

    anchor: Anchor | None = None
    deprecated: list[str] = Field(default_factory=list)  # shown only when asked for
    table: Path | None = None  # FastChat's leaderboard table (CSV): MT-bench, MMLU, organisation, licence, cutoff
    trusted: list[str] = Field(default_factory=list)  # voters who are not set aside, as the leaderboard lists them
    reweight: bool = False  # a vote counts by 1/p, so that pairs that were drawn seldom say as much as others
    preliminary: Count = 30  # with fewer votes a model's rank is marked as such


class Categories(Table):
    """What sorts the prompts, beside the written rules."""

    judge: str = ""  # a model of the fleet


class Moderation(Table):
    """What checks prompts and answers: a list of words, a server with OpenAI's moderation endpoint, or a model of the fleet."""

    words: Path | None = None  # a word or a /regular expression/ a line, see `workers.wordlist`
    url: str = ""  # http://host:8000/v1
    upstream: str = ""  # the endpoint's model
    key_env: str = ""  # the environment variable that holds the endpoint's key
    model: str = ""
    fails: Literal["open", "closed"] = "closed"  # what happens when it cannot say
    before: bool = False  # whether answers are shown only when they are whole and checked

    @property
    def on(self) -> bool:
        """Whether anything is checked."""
        return bool(self.words or self.url or self.model)

    @model_validator(mode="after")
    def _one(self) -> Self:
        if sum(map(bool, (self.words, self.url, self.model))) > 1:
            raise ValueError("words, url and model are three ways to check; name one of them")
        if (self.upstream or self.key_env) and not self.url:
            raise ValueError("upstream and key_env go with url")
        return self


class Rules(Table):
    """All of it."""

    sampling: Sampling = Field(default_factory=Sampling)
    battle: Battle = Field(default_factory=Battle)
    votes: Votes = Field(default_factory=Votes)
    ratings: Ratings = Field(default_factory=Ratings)
    categories: Categories = Field(default_factory=Categories)
    moderation: Moderation = Field(default_factory=Moderation)


FILES = (("ratings", "table"), ("moderation", "words"))  # paths, relative to the file's folder


def read(file: Path | None) -> Rules:
    """The rules in a file; the defaults without one.

    Raises:
        SetupError: it cannot be read, or has a mistake; with the place and what is wrong.
    """
    if file is None:
        return Rules()
    try:
        raw = tomllib.loads(file.read_text(encoding="utf-8"))
        rules = Rules.model_validate(raw)
    except OSError as error:
        raise SetupError(f"The arena file {file} cannot be read: {error.strerror}.") from None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        known = "there is no such rule" if first["type"] == "extra_forbidden" else first["msg"]
        raise SetupError(f"{file}, {where}: {known}.") from None
    except ValueError as error:
        raise SetupError(f"The arena file {file} is not TOML: {error}.") from None
    return _with_paths(rules, file.parent)


def matches(name: str, patterns: list[str]) -> bool:
    """Whether a model's name is one of these, which may have a `*` in them."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _with_paths(rules: Rules, folder: Path) -> Rules:
    for table, name in FILES:
        part = getattr(rules, table)
        path = getattr(part, name)
        if path is None:
            continue
        path = (folder / path.expanduser()).resolve()
        if not path.is_file():
            raise SetupError(f"{table}.{name}: there is no file {path}.")
        rules = rules.model_copy(update={table: part.model_copy(update={name: path})})
    return rules
