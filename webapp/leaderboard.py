"""The leaderboard over HTTP: the page, and what it shows as JSON and CSV.

Boards are computed by the `jobs` worker and lie in Redis. This process keeps those that it has decoded and the answers
that it has made of them until the worker writes again, so an open page may look every second: that costs one small read
and an answer of 304. The page needs no script to be read, sorted and filtered.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from aiohttp import web

from broker import features
from broker.errors import FleetError
from broker.leaderboard import ALL
from webapp import leaderboard_answers as answers
from webapp import leaderboard_rows as table
from webapp.languages import PAGES, Language, preferred
from webapp.leaderboard_boards import BOARDS
from webapp.leaderboard_filters import CATEGORIES, Filters, Overview, known_category
from webapp.session import SESSIONS

FIRST = 60  # rows that are laid out at once; the page shows the others when it has been painted
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


async def page(request: web.Request) -> web.Response:
    """GET /leaderboard."""
    view, language = await _view(request), preferred(request)
    return await answers.page(request, view.tag, language, lambda tag: _html(request.app, view, language, tag))


async def as_json(request: web.Request) -> web.Response:
    """GET /leaderboard.json: the board with the models that the page shows, its numbers as they were computed."""
    view = await _view(request)
    if view.error:
        raise view.error
    return await answers.answer(request, answers.digest(view.tag, "json"), "application/json", lambda: _json(view))


async def as_csv(request: web.Request) -> web.Response:
    """GET /leaderboard.csv: a line for each model that the page shows."""
    view = await _view(request)
    if view.error:
        raise view.error
    response = await answers.answer(
        request, answers.digest(view.tag, "csv"), "text/csv", lambda: table.to_csv(_found(view))
    )
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
    known_category("category", filters.category, found["categories"])
    models = table.ranked(found["models"], filters.deprecated, plain.content["models"] if plain else ())
    tags = (one.tag if one else "" for one in (board, plain))
    tag = answers.digest(*tags, str(found["categories"]), str(running), str(error), filters.address())
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
        overview=Overview.beside(view.filters),
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
