"""The overview: every model's rank, or score, in every category that has votes.

It is the boards of all categories side by side: ranks are those that each one's own leaderboard shows. The page needs no
script to be read and sorted.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

from aiohttp import web

from broker.leaderboard import BoardRequest
from webapp import leaderboard_answers as answers
from webapp import leaderboard_rows as table
from webapp.languages import PAGES, Language, preferred
from webapp.leaderboard_boards import BOARDS, Board
from webapp.leaderboard_filters import CATEGORIES, Filters, Overview, known_category


@dataclass(frozen=True, slots=True)
class View:
    """What one reader is shown."""

    chosen: Overview
    boards: Mapping[str, Board]  # by their categories, in order
    tag: str
    running: bool  # the jobs worker is there


@dataclass(frozen=True, slots=True)
class Row:
    """A model, and what it is in each category; None where it has no votes."""

    model: table.Model
    cells: Sequence[table.Model | None]


async def page(request: web.Request) -> web.Response:
    """GET /leaderboard/categories."""
    view, language = await _view(request), preferred(request)
    return await answers.page(request, view.tag, language, lambda _: _html(request.app, view, language))


async def _view(request: web.Request) -> View:
    chosen, boards = Overview.of(request.query), request.app[BOARDS]
    running = await boards.running()
    whole = await boards.find(Filters(named=chosen.named), "")  # the one that is made first
    listed: Sequence[Mapping[str, Any]] = whole.content["categories"] if whole else ()
    known_category("sort", chosen.sort, listed)
    names = [one["name"] for one in listed]
    asked = [BoardRequest(category=name, style=chosen.style, named=chosen.named).field for name in names]
    found = zip(names, await boards.several(asked), strict=True)
    shown = {name: board for name, board in found if board and board.content["category"] == name}
    tags = (board.tag for board in shown.values())
    return View(chosen, shown, answers.digest(*tags, str(running), chosen.address()), running)


def rows(columns: Mapping[str, Sequence[table.Model]], chosen: Overview) -> list[Row]:
    """A row for each model, the best of the chosen category first; who has no votes in it follows as in the first one.

    Args:
        columns: models with their ranks, by category.
    """
    by_name = [{model["name"]: model for model in models} for models in columns.values()]
    models = {name: model for column in reversed(by_name) for name, model in column.items()}  # as the first one has it
    made = [Row(model, [column.get(name) for column in by_name]) for name, model in models.items()]
    place = list(columns).index(chosen.sort) if chosen.sort in columns else 0
    score = chosen.show == "score"
    made.sort(key=lambda row: (_order(row.cells[place], score), _order(row.cells[0], score), row.model["name"]))
    return made


def _order(cell: table.Model | None, score: bool) -> tuple[float, ...]:
    if cell is None:
        return (inf,)
    return 0 if score else cell["rank"], -cell["score"]


def _html(app: web.Application, view: View, language: Language) -> str:
    ranked = {
        name: table.ranked(board.content["models"], view.chosen.deprecated) for name, board in view.boards.items()
    }
    columns = {name: models for name, models in ranked.items() if models}
    template = app[PAGES].environments[language.tag].get_template("leaderboard_overview.html")
    return template.render(
        view=view,
        chosen=view.chosen,
        columns=[(name, view.boards[name].content["votes"]) for name in columns],
        rows=rows(columns, view.chosen),
        hidden=any(board.content["models"] for board in view.boards.values()),
        whole=table.whole,
        rules=CATEGORIES,
    )
