"""Leaderboards from votes: which votes count, what they say of each model, and the table that a page shows.

In come votes as columns (workers/ballots.py), the arena's rules, and what is known of the models; out come boards as plain
maps (broker/leaderboard.py). What a board needed of the votes so far is kept, so one more vote costs no look at all the
others. It knows no Redis, and its methods may run in threads, each board in one at a time.
"""

import csv
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from broker.errors import SetupError
from broker.leaderboard import ALL, BESIDE, Board, BoardRequest
from broker.messages import ModelCard
from broker.rules import Rules, matches
from workers.ballots import BLIND, DAY_MS, LATE, NAMED, Mask, View
from workers.ratings import bradley_terry, style, voters
from workers.ratings.bradley_terry import A, B, Cells, Fit, Floats, Ints
from workers.ratings.elo import Elo
from workers.ratings.style import StyleFit

BEST = 25  # models in the heat map
DATES = 30  # at most, of the ratings over time
NEARLY = 1.01  # times as many votes, after which the width of a bootstrap's interval is all but the same
LISTED = 200  # voters that are set aside, by name
EPOCH = date(1970, 1, 1).toordinal()
FIRST = (BoardRequest(), BoardRequest(named=True))
"""What most people see, and what is as new as can be."""

People = Callable[[Sequence[int]], Mapping[int, str]]
Row = Mapping[str, str]
"""A model's row in FastChat's leaderboard table."""


@dataclass(frozen=True, slots=True, eq=False)
class Counted:
    """Which votes count, blind ones or all; and those that do not."""

    of: tuple[int, ...]  # as long as it is the same, votes that counted still do
    mask: Mask
    late: int
    leaks: int
    over_cap: int
    suspects: Sequence[voters.Suspect]
    of_suspects: int


@dataclass(slots=True, eq=False)
class Tally:
    """What a board has of its votes so far; worth nothing once other ones of them count."""

    of: tuple[int, ...]  # as of `Counted`, and how often votes have got other categories
    rows: int = 0  # that have been looked at
    cells: Cells = field(default_factory=lambda: Cells.of([], [], [], 0))
    elo: Elo = field(default_factory=lambda: Elo.of(0))
    strengths: Floats | None = None
    style: StyleFit | None = None
    votes: int = 0
    bootstrap: tuple[int, tuple[Floats, Floats]] = (
        0,
        (np.empty(0), np.empty(0)),
    )  # after how many votes; beside the scores
    days: Counter[int] = field(default_factory=Counter)  # day -> its votes
    history: dict[int, tuple[int, Floats]] = field(default_factory=dict)  # day -> votes until then, scores or NaN


class Boards:
    """Leaderboards as votes come in."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._table = {} if rules.ratings.table is None else read_table(rules.ratings.table)
        self._tallies: dict[str, Tally] = {}
        # Both of blind votes and of all, with the reading of the votes that they are about.
        self._within: dict[bool, tuple[int, Mask]] = {}  # within their voter's share of a day
        self._suspects: dict[bool, tuple[int, int, Sequence[voters.Suspect]]] = {}  # with how often they were others

    def suspect(self, view: View, named: bool, trusted: Set[int]) -> bool:
        """Look for voters whose votes are no fair ones, and set them aside from now on, but for those who are trusted.

        Gives whether they are others than before.
        """
        mask = self._eligible(view, named) & self._share(view, named) & (view.voter > 0)
        voter, a, b, outcome = (column[mask] for column in (view.voter, view.a, view.b, view.outcome))
        suspects = voters.suspects(voter, a, b, outcome, len(view.names))
        found = [one for one in suspects if one.voter not in trusted]
        generation, known = self._known_suspects(view, named)
        others = {one.voter for one in found} != {one.voter for one in known}
        self._suspects[named] = view.reading, generation + others, found
        return others

    def wanted(self, view: View) -> dict[BoardRequest, tuple[int, ...]]:
        """All boards that there are to be but for the first ones; each with something that says which votes it is of."""
        found = {}
        for named in (False, True):
            counted = self.counted(view, named)
            counts = {ALL: int(np.count_nonzero(counted.mask))} | view.counts(counted.mask)
            for category, count in counts.items():
                if ":" in category or category in BESIDE:
                    continue  # its boards would lie where other things do
                for controlled in (False, True):
                    request = BoardRequest(category=category, style=controlled, named=named)
                    found[request] = (*_of(view, counted, category), count)
        return {request: votes for request, votes in found.items() if request.field not in {one.field for one in FIRST}}

    def counted(self, view: View, named: bool) -> Counted:
        """The votes that count for boards of blind votes, or of all."""
        generation, suspects = self._known_suspects(view, named)
        eligible = self._eligible(view, named)
        share = self._share(view, named)
        of_suspects = eligible & share & voters.aside(view.voter, suspects)
        return Counted(
            (view.reading, generation),
            eligible & share & ~of_suspects,
            late=int(np.count_nonzero(view.kind == LATE)),
            leaks=int(np.count_nonzero(view.leak & (view.kind == BLIND))),
            over_cap=int(np.count_nonzero(eligible & ~share)),
            suspects=suspects,
            of_suspects=int(np.count_nonzero(of_suspects)),
        )

    def board(
        self, view: View, request: BoardRequest, cards: Mapping[str, ModelCard], people: People, *, keep: bool
    ) -> Board:
        """A leaderboard.

        Args:
            cards: of the fleet's models, by name.
            people: gives voters' hashes by their numbers.
            keep: it is made again and again; only then what it needed is kept for the next time.
        """
        begun = time.monotonic()
        counted = self.counted(view, request.named)
        mask = counted.mask if request.category == ALL else counted.mask & view.within(request.category)
        mask = _between(view, mask, request.since, request.until)
        weights = bradley_terry.inverse(view.p[mask]) if self._rules.ratings.reweight else None
        tally = self._tally(view, request, _of(view, counted, request.category), mask, weights, keep)
        plain = self._plain(view, tally)
        fit = self._controlled(view, tally, mask, weights) if request.style else plain
        shown = np.flatnonzero(tally.cells.games().any(axis=1))
        boot = None if request.style or not len(shown) else self._bootstrap(view, tally, plain)
        rows = _rows(view.names, shown, fit, boot, tally)
        if request.style:
            ranks = dict(zip(shown.tolist(), _ranks(plain, shown), strict=True))
            rows = [row | {"rank_plain": ranks[i]} for i, row in zip(shown.tolist(), rows, strict=True)]
        rows = [row | self._about(row["name"], cards.get(row["name"]), row["votes"]) for row in rows]
        rows.sort(key=lambda row: (row["rank"], -row["score"], row["name"]))
        anchor = self._rules.ratings.anchor
        of = view.counts(counted.mask)
        return {
            "category": request.category,
            "style": request.style,
            "named": request.named,
            "from": request.since,
            "to": request.until,
            "votes": int(np.count_nonzero(mask)),
            "anchor": None if self._anchor(view) is None or anchor is None else anchor.model_dump(),
            "method": "style" if request.style else "bradley-terry",
            "models": rows,
            "heat": _heat(view.names, [view.names.index(row["name"]) for row in rows[:BEST]], tally.cells),
            "history": self._history(view, mask, weights, tally, plain, shown),
            "style_coefficients": _coefficients(fit),
            "aside": _aside(counted, people),
            "categories": [{"name": ALL, "votes": int(np.count_nonzero(counted.mask))}]
            + [{"name": k, "votes": of[k]} for k in sorted(of, key=lambda k: (-of[k], k))],
            "updated": int(time.time() * 1000),
            "seconds": round(time.monotonic() - begun, 4),
        }

    def pairs(self, view: View) -> dict[str, Any]:
        """What is known of each pair, see `broker.leaderboard.pairs`; from the blind votes that the first board has."""
        tally = self._tallies[FIRST[0].field]
        count, variance = bradley_terry.pairs(self._plain(view, tally), tally.cells)
        names = view.names[: len(count)]  # a newer one has no vote that this board has counted
        return {"names": list(names), "count": count.tolist(), "variance": variance.tolist()}

    def _known_suspects(self, view: View, named: bool) -> tuple[int, Sequence[voters.Suspect]]:
        reading, generation, found = self._suspects.get(named, (view.reading, 0, ()))
        return generation, found if reading == view.reading else ()  # voters had other numbers

    def _eligible(self, view: View, named: bool) -> Mask:
        """Votes of a kind that counts; of blind ones those whose answers do not say who they are."""
        blind: Mask = (view.kind == BLIND) & ~view.leak
        return blind | (view.kind == NAMED) if named else blind

    def _share(self, view: View, named: bool) -> Mask:
        """Votes within what counts of a voter in a day. Only first ones do, so a new vote changes nothing before it."""
        reading, known = self._within.get(named, (view.reading, np.empty(0, bool)))
        known = known if reading == view.reading else known[:0]
        done = len(known)
        if done < len(view):
            cap, within = self._rules.votes.counted, np.ones(len(view), bool)
            if cap:
                days = view.at // DAY_MS
                near = self._eligible(view, named) & (view.voter > 0)
                near &= (days >= days[done:].min()) & (days <= days[done:].max())
                within[near] = voters.within_cap(view.voter[near], days[near], cap)
            known = np.concatenate([known, within[done:]])
            self._within[named] = view.reading, known
        return known[: len(view)]

    def _tally(
        self,
        view: View,
        request: BoardRequest,
        of: tuple[int, ...],
        mask: Mask,
        weights: Floats | None,
        keep: bool,
    ) -> Tally:
        """A board's votes so far, with those that are new. Weights are beside the mean, so with them all are counted anew."""
        tally = self._tallies.get(request.field) if keep else None
        if tally is None or tally.of != of:
            tally = Tally(of)
        n = len(view.names)
        fresh = tally.rows + np.flatnonzero(mask[tally.rows :])
        a, b, outcome = view.a[fresh], view.b[fresh], view.outcome[fresh]
        if weights is None:
            tally.cells = tally.cells.widened(n) + Cells.of(a, b, outcome, n)
        else:
            tally.cells = Cells.of(view.a[mask], view.b[mask], view.outcome[mask], n, weights)
        tally.elo.widen(n)
        tally.elo.add(a, b, outcome)
        days, counts = np.unique(view.at[fresh] // DAY_MS, return_counts=True)
        tally.days.update(dict(zip(days.tolist(), counts.tolist(), strict=True)))
        tally.rows, tally.votes = len(view), tally.votes + len(fresh)
        if keep:
            self._tallies[request.field] = tally
        return tally

    def _anchor(self, view: View) -> tuple[int, float] | None:
        anchor = self._rules.ratings.anchor
        return (
            None if anchor is None or anchor.model not in view.names else (view.names.index(anchor.model), anchor.score)
        )

    def _plain(self, view: View, tally: Tally) -> Fit:
        fit = bradley_terry.fit(tally.cells, start=tally.strengths, anchor=self._anchor(view))
        tally.strengths = fit.strengths
        return fit

    def _controlled(self, view: View, tally: Tally, mask: Mask, weights: Floats | None) -> StyleFit:
        a, b, outcome = (column[mask] for column in (view.a, view.b, view.outcome))
        left, right = np.hsplit(view.styles[mask], 2)
        n, anchor = len(view.names), self._anchor(view)
        fit = style.fit(a, b, outcome, left, right, n, start=tally.style, anchor=anchor, weights=weights)
        tally.style = fit
        return fit

    def _bootstrap(self, view: View, tally: Tally, fit: Fit) -> tuple[Floats, Floats]:
        """The bounds of the bootstrap; how far they are from the scores is found anew after a hundredth more votes."""
        votes, (below, above) = tally.bootstrap
        if tally.votes > votes * NEARLY or len(below) < len(fit.scores):
            lower, upper = bradley_terry.bootstrap(tally.cells, start=tally.strengths, anchor=self._anchor(view))
            below, above = lower - fit.scores, upper - fit.scores
            tally.bootstrap = tally.votes, (below, above)
        return fit.scores + below, fit.scores + above

    def _history(
        self, view: View, mask: Mask, weights: Floats | None, tally: Tally, fit: Fit, shown: Ints
    ) -> Mapping[str, Any]:
        """Scores as they would have been, at the ends of some days up to that of the latest vote."""
        if not tally.days:
            return _NO_HISTORY
        days = sorted(tally.days)
        grid = _grid(days[0], days[-1])
        until = np.cumsum([tally.days[day] for day in days])[np.searchsorted(days, grid, "right") - 1]
        known = [tally.history.get(day) for day in grid[:-1]]
        if any(one is None or one[0] != votes for one, votes in zip(known, until, strict=False)):
            self._look_back(view, mask, weights, tally, grid, until)
        points = [*(tally.history[day][1] for day in grid[:-1]), fit.scores]
        return {
            "dates": [date.fromordinal(EPOCH + day).isoformat() for day in grid],
            "scores": {view.names[i]: [_point(point, i) for point in points] for i in shown},
        }

    def _look_back(
        self, view: View, mask: Mask, weights: Floats | None, tally: Tally, grid: list[int], until: Ints
    ) -> None:
        n, start, cells = len(view.names), None, Cells.of([], [], [], len(view.names))
        place = np.searchsorted(grid, view.at[mask] // DAY_MS).astype(np.uint8)  # which numpy sorts by counting
        order = np.argsort(place, kind="stable")
        columns = [column[mask][order] for column in (view.a, view.b, view.outcome)]
        tally.history.clear()
        for day, begin, end in zip(grid[:-1], [0, *until], until, strict=False):
            a, b, outcome = (column[begin:end] for column in columns)
            cells = cells + Cells.of(a, b, outcome, n, None if weights is None else weights[order][begin:end])
            then = bradley_terry.fit(cells, start=start, anchor=self._anchor(view))
            start = then.strengths
            tally.history[day] = int(end), np.where(cells.games().any(axis=1), then.scores, np.nan)

    def _about(self, name: str, card: ModelCard | None, votes: int) -> dict[str, Any]:
        """What is known of a model beside its votes: its card says it, or else the table."""
        row, ratings = self._table.get(name, {}), self._rules.ratings
        return {
            "organisation": (card.organisation if card else "") or row.get("Organization", ""),
            "licence": (card.licence if card else "") or row.get("License", ""),
            "link": (card.link if card else "") or row.get("Link", ""),
            "context": card.context if card else 0,
            "cutoff": row.get("Knowledge cutoff date", ""),
            "mt_bench": _number(row.get("MT-bench (score)", "")),
            "mmlu": _number(row.get("MMLU", "")),
            "deprecated": matches(name, ratings.deprecated),
            "preliminary": votes < ratings.preliminary,
        }


def read_table(file: Path) -> dict[str, Row]:
    """FastChat's leaderboard table, by its keys and by its models' names; "-" is not known.

    Raises:
        SetupError: it cannot be read, or is another table.
    """
    try:
        with open(file, newline="", encoding="utf-8-sig") as lines:
            rows = [{k: v.strip() for k, v in row.items() if k and v} for row in csv.DictReader(lines)]
    except (OSError, ValueError, csv.Error) as error:
        raise SetupError(f"ratings.table: {file} cannot be read: {error}.") from None
    if not all({"key", "Model"} <= row.keys() for row in rows):
        raise SetupError(f"ratings.table: {file} is no leaderboard table: every row needs a key and a Model.")
    rows = [{k: "" if v == "-" else v for k, v in row.items()} for row in rows]
    return {row["Model"]: row for row in rows} | {row["key"]: row for row in rows}


_NO_HISTORY: Mapping[str, Any] = {"dates": [], "scores": {}}


def _of(view: View, counted: Counted, category: str) -> tuple[int, ...]:
    """As long as it is the same, votes that counted in a category still do."""
    return (*counted.of, 0 if category == ALL else view.labelled)


def _ranks(fit: Fit, shown: Ints) -> list[int]:
    """Of the models that are shown, among them."""
    ranks: list[int] = bradley_terry.rank(fit.lower[shown], fit.upper[shown]).tolist()
    return ranks


def _rows(
    names: Sequence[str], shown: Ints, fit: Fit, boot: tuple[Floats, Floats] | None, tally: Tally
) -> list[dict[str, Any]]:
    """What the votes say of each model."""
    cells = tally.cells.unweighted()
    counts, wins, games = cells.counts, cells.wins(), cells.games()
    votes = games.sum(axis=1)
    won = counts[:, :, A].sum(axis=1) + counts[:, :, B].sum(axis=0)
    lost = counts[:, :, B].sum(axis=1) + counts[:, :, A].sum(axis=0)
    share = np.divide(wins, games, out=np.zeros_like(wins), where=games > 0).sum(axis=1)
    rivals = np.count_nonzero(games, axis=1)
    return [
        {
            "name": names[i],
            "rank": rank,
            "rank_plain": None,
            "score": _round(fit.scores[i]),
            "lower": _round(fit.lower[i]),
            "upper": _round(fit.upper[i]),
            "boot_lower": None if boot is None else _round(boot[0][i]),
            "boot_upper": None if boot is None else _round(boot[1][i]),
            "elo": _round(tally.elo.ratings[i]),
            "votes": int(votes[i]),
            "wins": int(won[i]),
            "losses": int(lost[i]),
            "ties": int(votes[i] - won[i] - lost[i]),
            "win_rate": _round(wins[i].sum() / votes[i], 4),
            "average_win_rate": _round(share[i] / rivals[i], 4),
        }
        for i, rank in zip(shown, _ranks(fit, shown), strict=True)
    ]


def _heat(names: Sequence[str], best: Sequence[int], cells: Cells) -> dict[str, Any]:
    wins, games = (matrix[np.ix_(best, best)] for matrix in (cells.unweighted().wins(), cells.games()))
    share = [
        [_round(won / met, 4) if met else None for won, met in zip(*rows, strict=True)]
        for rows in zip(wins, games, strict=True)
    ]
    return {"names": [names[i] for i in best], "win": share, "count": games.astype(int).tolist()}


def _coefficients(fit: Fit) -> dict[str, float] | None:
    if not isinstance(fit, StyleFit):
        return None
    return dict(zip(style.FEATURES, (_round(each, 4) for each in fit.coefficients), strict=True))


def _aside(counted: Counted, people: People) -> dict[str, Any]:
    listed = counted.suspects[:LISTED]
    names = people([int(one.voter) for one in listed])
    return {
        "late": counted.late,
        "leaks": counted.leaks,
        "over_cap": counted.over_cap,
        "voters": [{"voter": names[int(one.voter)], "votes": one.votes, "p_value": one.p_value} for one in listed],
        "votes_of_voters": counted.of_suspects,
    }


def _between(view: View, mask: Mask, since: str, until: str) -> Mask:
    for text, later in ((since, True), (until, False)):
        if text:
            at = (date.fromisoformat(text).toordinal() - EPOCH) * DAY_MS
            mask = mask & (view.at >= at if later else view.at < at + DAY_MS)
    return mask


def _grid(first: int, last: int) -> list[int]:
    """Days, at most DATES: the last one, and some before it that stay the same as long as it can be."""
    step = -(-(last - first + 1) // DATES)
    return [*range(first + step - 1, last, step), last]


def _point(scores: Floats, i: int) -> float | None:
    return None if i >= len(scores) or np.isnan(scores[i]) else _round(scores[i], 1)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _round(value: Any, digits: int = 2) -> float:
    return round(float(value), digits)
