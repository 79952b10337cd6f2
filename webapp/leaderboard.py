"""The leaderboard over HTTP: the page, and what it shows as JSON and CSV.

Boards are computed by the `jobs` worker and lie in Redis. This process keeps those that it has decoded and the answers
that it has made of them until the worker writes again, so an open page may look every second: that costs one small read
and an answer of 304. The page needs no script to be read, sorted and filtered.
"""

import asyncio
import gzip
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from aiohttp import ETag, web

from broker import features
from broker.errors import BadRequest, FleetError
from broker.leaderboard import ALL
from webapp import leaderboard_rows as table
from webapp.languages import PAGES, Language, preferred
from webapp.leaderboard_boards import BOARDS
from webapp.leaderboard_filters import Filters
from webapp.middleware import HEADERS
from webapp.session import SESSIONS
from webapp.statics import STATICS

KEPT = 64  # answers that are ready to be sent
LEVEL = 6  # of gzip
FIRST = 60  # rows that are laid out at once; the page shows the others when it has been painted
POLICY = HEADERS["Content-Security-Policy"].replace("form-action 'none'", "form-action 'self'")  # filters are a form
CATEGORIES = {one.name: one for one in (*features.CATEGORIES, *features.JUDGED)}
NOTHING: Mapping[str, Any] = {
    "votes": 0,
    "updated": 0,
    "anchor": None,
    "style_coefficients": None,
    "aside": {"late": 0, "leaks": 0, "over_cap": 0, "votes_of_voters": 0, "voters": []},
    "models": [],
    "heat": {"names": [], "win": [], "count": []},
    "history": {"dates": [], "scores": {}},
    "categories": [],
}
"""The board of no vote."""


@dataclass(frozen=True, slots=True)
class View:
    """What one reader is shown."""

    filters: Filters
    board: Mapping[str, Any]
    models: Sequence[table.Model]  # that are shown, with their ranks among these, in order
    tag: str  # another one whenever something in it is different
    running: bool  # the jobs worker is there
    error: FleetError | None = None  # why there is no board


@dataclass(frozen=True, slots=True)
class Ready:
    """An answer's body, and its gzip form."""

    body: bytes
    zipped: bytes


class Answers:
    """The latest answers of this process, by what they were made of."""

    def __init__(self) -> None:
        self._kept: dict[str, Ready] = {}
        self._making = asyncio.Lock()

    async def get(self, tag: str, make: Callable[[], str]) -> Ready:
        """The answer of that tag; of many who want a new one, one makes it, beside the event loop."""
        if tag not in self._kept:
            async with self._making:
                if tag not in self._kept:
                    self._kept[tag] = await asyncio.to_thread(_ready, make)
                    while len(self._kept) > KEPT:
                        del self._kept[next(iter(self._kept))]
        return self._kept[tag]


ANSWERS = web.AppKey("answers", Answers)


async def page(request: web.Request) -> web.Response:
    """GET /leaderboard."""
    view, language = await _view(request), preferred(request)
    tag = _digest(view.tag, language.tag, request.app[STATICS].version)
    response = await _answer(request, tag, "text/html", lambda: _html(request.app, view, language, tag))
    response.headers.update({"Content-Language": language.tag, "Content-Security-Policy": POLICY})
    return response


async def as_json(request: web.Request) -> web.Response:
    """GET /leaderboard.json: the board with the models that the page shows, its numbers as they were computed."""
    view = await _view(request)
    if view.error:
        raise view.error
    return await _answer(request, _digest(view.tag, "json"), "application/json", lambda: _json(view))


async def as_csv(request: web.Request) -> web.Response:
    """GET /leaderboard.csv: a line for each model that the page shows."""
    view = await _view(request)
    if view.error:
        raise view.error
    response = await _answer(request, _digest(view.tag, "csv"), "text/csv", lambda: table.to_csv(_found(view)))
    response.headers["Content-Disposition"] = f'attachment; filename="leaderboard-{view.filters.category}.csv"'
    return response


async def _view(request: web.Request) -> View:
    filters, boards = Filters.of(request.query), request.app[BOARDS]
    running, error = await boards.running(), None
    board = plain = None
    try:
        owner = await request.app[SESSIONS].owner(request) if filters.dated else ""
        board = await boards.find(filters, owner)
    except FleetError as failed:
        if not filters.dated:
            raise
        error = failed  # the page says so, and is there for other filters
    if filters.style and not filters.dated:
        plain = await boards.find(replace(filters, style=False), "")
    found: Mapping[str, Any] = board.content if board else NOTHING
    if not found["categories"]:  # nothing lies in this category: what can be chosen are those of all votes
        whole = await boards.find(Filters(named=filters.named), "")
        found = {**NOTHING, "categories": whole.content["categories"] if whole else []}
    known = [ALL, *CATEGORIES, *(one["name"] for one in found["categories"])]
    if filters.category not in known:
        raise BadRequest(f"category: one of {', '.join(dict.fromkeys(known))} is expected.", param="category")
    models = table.ranked(found["models"], filters.deprecated, plain.content["models"] if plain else ())
    tags = (one.tag if one else "" for one in (board, plain))
    tag = _digest(*tags, str(found["categories"]), str(running), str(error), filters.address())
    return View(filters, found, table.ordered(models, filters), tag, running, error)


def _found(view: View) -> list[table.Model]:
    """The models of the view without those that a search leaves out."""
    return [model for model in view.models if table.matches(model, view.filters)]


def _json(view: View) -> str:
    models = _found(view)
    return json.dumps({**view.board, **table.tables(view.board, models), "models": models}, ensure_ascii=False)


def _html(app: web.Application, view: View, language: Language, tag: str) -> str:
    columns = table.columns(view.models)
    updated = view.board["updated"]
    template = app[PAGES].environments[language.tag].get_template("leaderboard.html")
    return template.render(
        view=view,
        tag=tag,
        filters=view.filters,
        board=view.board,
        rows=table.rows(view.models, columns, view.filters),
        first=FIRST,
        columns=columns,
        falls=table.falls(view.filters),
        whole=table.whole,
        percent=table.percent,
        width=table.PLOT,
        rules=CATEGORIES,
        leak=features.LEAK,
        offered=_offered(view),
        updated=datetime.fromtimestamp(updated / 1000, UTC) if updated else None,
    )


def _offered(view: View) -> list[tuple[str, int]]:
    """The categories that can be chosen, with their votes; also the one that is chosen, if nothing lies in it."""
    found = {one["name"]: one["votes"] for one in view.board["categories"]}
    return list(({ALL: 0, view.filters.category: 0} | found).items())


async def _answer(request: web.Request, tag: str, content_type: str, make: Callable[[], str]) -> web.Response:
    """This answer, or 304 to who has it already."""
    headers = {"Cache-Control": "no-cache", "Vary": "Accept-Language, Accept-Encoding, Cookie"}
    if any(one.value == tag for one in request.if_none_match or ()):
        response = web.Response(status=304, headers=headers)
    else:
        ready = await request.app[ANSWERS].get(tag, make)
        zipped = "gzip" in request.headers.get("Accept-Encoding", "")
        headers |= {"Content-Encoding": "gzip"} if zipped else {}
        body = ready.zipped if zipped else ready.body
        response = web.Response(body=body, content_type=content_type, charset="utf-8", headers=headers)
    response.etag = ETag(tag, is_weak=True)
    return response


def _ready(make: Callable[[], str]) -> Ready:
    body = make().encode()
    return Ready(body, gzip.compress(body, LEVEL, mtime=0))


def _digest(*parts: str) -> str:
    return hashlib.blake2b("\n".join(parts).encode(), digest_size=12).hexdigest()
