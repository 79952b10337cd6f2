"""The rows of a leaderboard: what each column holds, says and is sorted by, and the whole as CSV. Pure."""

import csv
import io
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from webapp.leaderboard_filters import Filters

Model = Mapping[str, Any]  # of a board's `models`
PLOT = 112  # width of the little plot of an interval; its height is in the template
DASH = "–"


@dataclass(frozen=True, slots=True)
class Column:
    """A column: its value, which it is sorted by, and its text. None is the lack of one."""

    name: str
    value: Callable[[Model], Any]
    text: Callable[[Any], str] = str
    falling: bool = True  # the largest first, where nobody has said otherwise
    missing: bool = False  # left out when no model has it


def _of(name: str) -> Callable[[Model], Any]:
    return lambda model: model.get(name)


def _named(name: str) -> Callable[[Model], Any]:
    return lambda model: model.get(name) or None


def change(model: Model) -> int | None:
    """Places that a model has won by controlling for style; None where that is not known."""
    return None if model["rank_plain"] is None else int(model["rank_plain"]) - int(model["rank"])


def whole(value: float) -> str:
    """1,234"""
    return f"{value:,.0f}"


def percent(value: float) -> str:
    """61.3 % of 0.613"""
    return f"{100 * value:.1f} %"


def tokens(value: int) -> str:
    """32768 as 32k, as the chat page writes it."""
    if value < 1000:
        return str(value)
    unit = 1024 if value % 1024 == 0 else 1000
    return f"{value / unit:.0f}k" if value < unit * 1000 else f"{value / unit**2:.1f}M"


def spread(model: Model, lower: str = "lower", upper: str = "upper") -> str:
    """An interval as its distances from the score: +5/−6."""
    if model.get(lower) is None or model.get(upper) is None:
        return ""
    return f"+{model[upper] - model['score']:.0f}/−{model['score'] - model[lower]:.0f}"


def _width(lower: str, upper: str) -> Callable[[Model], Any]:
    def width(model: Model) -> float | None:
        low, high = model.get(lower), model.get(upper)
        return None if low is None or high is None else float(high - low)

    return width


COLUMNS = (
    Column("rank", _of("rank"), falling=False),
    Column("change", change, missing=True),
    Column("name", _of("name"), falling=False),
    Column("score", _of("score"), whole),
    Column("interval", _width("lower", "upper"), falling=False),
    Column("votes", _of("votes"), whole),
    Column("win_rate", _of("win_rate"), percent),
    Column("organisation", _named("organisation"), falling=False),
    Column("licence", _named("licence"), falling=False),
    Column("context", _named("context"), tokens),
    Column("cutoff", _named("cutoff")),
    Column("mt_bench", _of("mt_bench"), lambda value: f"{value:.2f}", missing=True),
    Column("mmlu", _of("mmlu"), percent, missing=True),
    Column("average_win_rate", _of("average_win_rate"), percent),
    Column("elo", _of("elo"), whole),
    Column("bootstrap", _width("boot_lower", "boot_upper"), falling=False, missing=True),
)
BY_NAME = {column.name: column for column in COLUMNS}


@dataclass(frozen=True, slots=True)
class Row:
    """A model's row: its cells' texts by column, and what is special about it."""

    model: Model
    cells: Mapping[str, str]
    link: str  # "" without one
    hidden: bool  # the search does not ask for it
    change: int | None
    plot: tuple[float, float, float]  # where in a width of PLOT the interval begins, the score is, and it ends


def ranked(models: Iterable[Model], deprecated: bool, plain: Iterable[Model] = ()) -> list[Model]:
    """The models that are shown, each with its rank among these.

    Args:
        models: a board's.
        deprecated: whether deprecated ones are shown, too.
        plain: the models of the same board without style control; their ranks become `rank_plain`.
    """
    beside = {model["name"]: model["rank"] for model in ranked(plain, deprecated)} if plain else {}
    found = [model for model in models if deprecated or not model["deprecated"]]
    lowers = sorted(model["lower"] for model in found)
    return [
        {
            **model,
            "rank": 1 + len(lowers) - bisect_right(lowers, model["upper"]),
            "rank_plain": beside.get(model["name"]),
        }
        for model in found
    ]


def ordered(models: Iterable[Model], filters: Filters) -> list[Model]:
    """Models in the order of a view: what is missing comes last, and what is equal by rank."""
    found = sorted(models, key=lambda model: (model["rank"], -model["score"], model["name"]))
    column = BY_NAME.get(filters.sort, BY_NAME["rank"])
    present = [model for model in found if column.value(model) is not None]
    present.sort(key=lambda model: _order(column.value(model)), reverse=falls(filters))
    return present + [model for model in found if column.value(model) is None]


def tables(board: Mapping[str, Any], models: Iterable[Model]) -> dict[str, Any]:
    """What a board's figures show beside its models, without models that are not shown: `heat` and `history`."""
    names = {model["name"] for model in models}
    heat, history = board["heat"], board["history"]
    kept = [i for i, name in enumerate(heat["names"]) if name in names]
    return {
        "heat": {"names": [heat["names"][i] for i in kept]}
        | {each: [[heat[each][i][j] for j in kept] for i in kept] for each in ("win", "count")},
        "history": history | {"scores": {name: each for name, each in history["scores"].items() if name in names}},
    }


def matches(model: Model, filters: Filters) -> bool:
    """Whether a search asks for a model, by its name or its organisation."""
    return filters.q.casefold() in f"{model['name']} {model.get('organisation') or ''}".casefold()


def falls(filters: Filters) -> bool:
    """Whether the largest comes first."""
    return filters.order == "desc" if filters.order else BY_NAME.get(filters.sort, BY_NAME["rank"]).falling


def columns(models: Sequence[Model]) -> list[Column]:
    """The columns that these models have something for."""
    return [c for c in COLUMNS if not c.missing or any(c.value(model) is not None for model in models)]


def rows(models: Sequence[Model], among: Sequence[Column], filters: Filters) -> list[Row]:
    """A row for each."""
    place = _scale(models)
    made = []
    for model in models:
        cells = {column.name: _text(column, model) for column in among}
        cells |= {"interval": spread(model), "bootstrap": spread(model, "boot_lower", "boot_upper")}
        link = str(model.get("link") or "")
        link = link if link.startswith(("https://", "http://")) else ""
        made.append(Row(model, cells, link, not matches(model, filters), change(model), place(model)))
    return made


def _text(column: Column, model: Model) -> str:
    value = column.value(model)
    return DASH if value is None else column.text(value)


def _order(value: Any) -> Any:
    return value.casefold() if isinstance(value, str) else value


def _scale(models: Sequence[Model]) -> Callable[[Model], tuple[float, float, float]]:
    """Where a model's interval lies in the plot. Intervals of a few votes are wide and do not set its limits."""
    sure = [model for model in models if not model.get("preliminary")] or models
    low = min((model["lower"] for model in sure), default=0)
    high = max((model["upper"] for model in sure), default=1)
    size = (high - low) or 1

    def place(model: Model) -> tuple[float, float, float]:
        lower, score, upper = (
            round(4 + (PLOT - 8) * min(1.0, max(0.0, (model[name] - low) / size)), 1)
            for name in ("lower", "score", "upper")
        )
        return lower, score, upper

    return place


CSV = {
    "key": _of("name"),
    "Model": _of("name"),
    "Rank": _of("rank"),
    "Rank without style control": _of("rank_plain"),
    "Arena Elo rating": _of("score"),
    "95% lower": _of("lower"),
    "95% upper": _of("upper"),
    "Bootstrap 95% lower": _of("boot_lower"),
    "Bootstrap 95% upper": _of("boot_upper"),
    "Online Elo": _of("elo"),
    "Votes": _of("votes"),
    "Wins": _of("wins"),
    "Losses": _of("losses"),
    "Ties": _of("ties"),
    "Win rate": _of("win_rate"),
    "Average win rate": _of("average_win_rate"),
    "MT-bench (score)": _of("mt_bench"),
    "MMLU": _of("mmlu"),
    "License": _named("licence"),
    "Organization": _named("organisation"),
    "Link": _named("link"),
    "Context": _named("context"),
    "Knowledge cutoff date": _named("cutoff"),
    "Deprecated": _of("deprecated"),
    "Preliminary": _of("preliminary"),
}
"""What a line of the CSV holds. The names that FastChat's table has are its own, so that it can be read where that is."""


def to_csv(models: Iterable[Model]) -> str:
    """A line for each model; `-` is the lack of a value, as in FastChat's table."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CSV)
    for model in models:
        writer.writerow([_cell(value(model)) for value in CSV.values()])
    return text.getvalue()


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    formula = isinstance(value, str) and text.startswith(
        ("=", "+", "-", "@")
    )  # to a spreadsheet, which would compute it
    return f"'{text}" if formula else text
