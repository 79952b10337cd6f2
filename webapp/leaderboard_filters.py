"""What a reader of the leaderboard has chosen, as it stands in the address: read from it and written into links.

Page, JSON and CSV take the same names, and so does the overview of all categories where it has the same fields. A field
that is left empty, as forms send it, is as good as absent.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import date
from typing import Any, ClassVar, Self
from urllib.parse import urlencode

from broker import features
from broker.errors import BadRequest
from broker.leaderboard import ALL

CATEGORY = re.compile(r"[\w.+-]{1,64}")
NAMES = {"since": "from", "until": "to"}  # Python has a `from` of its own
ORDERS = ("", "asc", "desc")
SHOWN = ("rank", "score")
LONGEST = 100  # characters of what is searched for
CATEGORIES = {one.name: one for one in (*features.CATEGORIES, *features.JUDGED)}


@dataclass(frozen=True, slots=True)
class Choices:
    """What can be chosen on a page. The defaults are what stands in no address."""

    PATH: ClassVar[str]

    @classmethod
    def of(cls, query: Mapping[str, str]) -> Self:
        """From an address.

        Raises:
            BadRequest: a value is none that the field can have; names that are not known are ignored.
        """
        found: dict[str, Any] = {}
        for field, default in asdict(cls()).items():
            name = NAMES.get(field, field)
            if text := query.get(name, "").strip():
                found[field] = _flag(name, text) if isinstance(default, bool) else text
        made = cls(**found)
        made._check()
        return made

    def _check(self) -> None:
        """Raises BadRequest where a value is none that its field can have."""

    def address(self, path: str = "", **changes: Any) -> str:
        """A link to this view with these changes, as short as can be."""
        made = asdict(replace(self, **changes))
        plain = asdict(type(self)())
        query = {NAMES.get(k, k): "1" if v is True else v for k, v in made.items() if v != plain[k]}
        return f"{path or self.PATH}?{urlencode(query)}" if query else path or self.PATH


@dataclass(frozen=True, slots=True)
class Filters(Choices):
    """One view of the votes."""

    PATH = "/leaderboard"

    category: str = ALL
    style: bool = False  # the style of answers is controlled for
    named: bool = False  # votes on models whose names were known count, too
    since: str = ""  # ISO dates, both included; "" for no limit
    until: str = ""
    deprecated: bool = False  # shown, too
    sort: str = "rank"
    order: str = ""  # asc, desc, or as the column is read mostly
    q: str = ""  # only models and organisations with this in their names

    def _check(self) -> None:
        if not CATEGORY.fullmatch(self.category):
            raise BadRequest("category: letters, digits and _ . + - are expected.", param="category")
        for name, text in (("from", self.since), ("to", self.until)):
            if text and not _is_date(text):
                raise BadRequest(f"{name}: a date is expected, like 2026-01-31.", param=name)
        if self.since and self.until and self.since > self.until:
            raise BadRequest("from: a date before the one in to is expected.", param="from")
        if self.order not in ORDERS:
            raise BadRequest("order: asc or desc is expected.", param="order")
        if len(self.q) > LONGEST:
            raise BadRequest(f"q: {LONGEST} characters at most are expected.", param="q")

    @property
    def dated(self) -> bool:
        """Whether it is a board that nobody computes ahead."""
        return bool(self.since or self.until)


@dataclass(frozen=True, slots=True)
class Overview(Choices):
    """The overview of all categories."""

    PATH = "/leaderboard/categories"

    style: bool = False
    named: bool = False
    deprecated: bool = False
    show: str = "rank"
    sort: str = ALL  # the category whose best model comes first

    def _check(self) -> None:
        if self.show not in SHOWN:
            raise BadRequest("show: rank or score is expected.", param="show")

    @classmethod
    def beside(cls, filters: Filters) -> Self:
        """The overview that has a leaderboard's votes, with its category in order."""
        return cls(filters.style, filters.named, filters.deprecated, sort=filters.category)

    def board(self, category: str) -> Filters:
        """The leaderboard of a category."""
        return Filters(category, self.style, self.named, deprecated=self.deprecated)


def known_category(param: str, name: str, found: Iterable[Mapping[str, Any]]) -> None:
    """Raises BadRequest where a category has neither a rule nor a place among those found, as boards list them."""
    known = dict.fromkeys([ALL, *CATEGORIES, *(one["name"] for one in found)])
    if name not in known:
        raise BadRequest(f"{param}: one of {', '.join(known)} is expected.", param=param)


def _flag(name: str, text: str) -> bool:
    if text not in ("0", "1"):
        raise BadRequest(f"{name}: 1 or 0 is expected.", param=name)
    return text == "1"


def _is_date(text: str) -> bool:
    try:
        return date.fromisoformat(text).isoformat() == text
    except ValueError:
        return False
