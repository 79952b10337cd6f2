import json
import math
from typing import Any

import numpy as np
import pytest

from broker.errors import SetupError
from broker.leaderboard import BoardRequest
from broker.messages import ModelCard
from broker.pairing import Odds
from broker.rules import Anchor, Ratings, Rules, Votes
from broker.votes import Vote
from helpers import vote_fields
from workers.ballots import Ballots
from workers.boards import DATES, Boards, read_table

DAY = 86_400_000
BLIND, NAMED = BoardRequest(), BoardRequest(named=True)


class League:
    """Votes, and boards of them."""

    def __init__(self, rules: Rules = Rules()) -> None:  # noqa: B008
        self.ballots, self.boards, self.cast = Ballots(), Boards(rules), 0

    def vote(self, a: str = "x", b: str = "y", winner: str = "a", count: int = 1, **fields: Any) -> None:
        votes = []
        for _ in range(count):
            self.cast += 1
            known = {"kind": "blind", "voter": f"voter {self.cast}", "at": 100 * DAY} | fields
            votes.append(vote_fields(Vote(str(self.cast), winner=winner, a=a, b=b, **known)))
        self.ballots.add([(b"1-0", {k.encode(): v.encode() for k, v in vote.items()}) for vote in votes])

    def board(self, request: BoardRequest = BLIND, cards: tuple[ModelCard, ...] = (), *, keep: bool = True) -> Any:
        """As JSON has it, which knows no NaN."""
        known = {card.name: card for card in cards}
        board = self.boards.board(self.ballots.view(), request, known, self.ballots.people, keep=keep)
        return json.loads(json.dumps(board, allow_nan=False))

    def rows(self, request: BoardRequest = BLIND, **more: Any) -> dict[str, Any]:
        return {row["name"]: row for row in self.board(request, **more)["models"]}

    def suspect(self, *trusted: str) -> None:
        for named in (False, True):
            self.boards.suspect(self.ballots.view(), named, self.ballots.numbers(trusted))


@pytest.fixture
def league() -> League:
    return League()


@pytest.mark.parametrize("style", [False, True])
def test_no_votes_and_one_model_make_a_board_without_a_nan(league, style):
    request = BoardRequest(style=style)
    board = league.board(request)
    assert (board["votes"], board["models"], board["heat"]["names"]) == (0, [], [])
    assert board["categories"] == [{"name": "all", "votes": 0}]
    league.vote("x", "x", "tie")
    board = league.board(request)
    assert (board["votes"], board["models"]) == (1, [])
    league.vote("x", "y")
    rows = league.rows(request)
    assert (rows["x"]["rank"], rows["y"]["rank"]) == (1, 1)
    assert rows["x"]["score"] > rows["y"]["score"]
    league.board(BLIND)
    assert not np.isnan(league.boards.pairs(league.ballots.view())["count"]).any()


def test_what_a_row_says(league):
    league.vote("x", "y", "a", 30)
    league.vote("y", "x", "a", 10)
    league.vote("x", "y", "tie", 4)
    league.vote("x", "z", "bad", 6)
    card = ModelCard("x", organisation="We", licence="MIT", link="https://x.example", context=4096)
    board = league.board(cards=(card,))
    row = next(row for row in board["models"] if row["name"] == "x")
    assert (row["votes"], row["wins"], row["losses"], row["ties"]) == (50, 30, 10, 10)
    assert (row["win_rate"], row["average_win_rate"]) == (0.7, round((32 / 44 + 0.5) / 2, 4))
    assert row["lower"] < row["score"] < row["upper"]
    assert row["boot_lower"] < row["score"] < row["boot_upper"]
    assert row["elo"] > 1000
    assert (row["organisation"], row["licence"], row["context"]) == ("We", "MIT", 4096)
    assert (row["mt_bench"], row["mmlu"], row["rank_plain"]) == (None, None, None)
    assert (row["preliminary"], row["deprecated"]) == (False, False)
    heat = board["heat"]
    x, y, z = (heat["names"].index(name) for name in "xyz")
    assert (heat["count"][x][y], heat["count"][y][z]) == (44, 0)
    assert heat["win"][x][y] == pytest.approx(32 / 44, abs=1e-4)
    assert heat["win"][x][y] + heat["win"][y][x] == pytest.approx(1, abs=2e-4)
    assert (heat["win"][y][z], heat["win"][x][x]) == (None, None)
    assert [row["name"] for row in board["models"] if row["preliminary"]] == ["z"]


def test_only_fair_blind_votes_count_and_the_others_are_told(league):
    league.vote(count=5)
    league.vote(kind="named", winner="b", count=3)
    league.vote(kind="late", count=2)
    league.vote(leak=True, count=4)
    board = league.board()
    assert (board["votes"], board["named"]) == (5, False)
    assert {k: board["aside"][k] for k in ("late", "leaks", "over_cap", "voters")} == {
        "late": 2, "leaks": 4, "over_cap": 0, "voters": [],
    }  # fmt: skip
    board = league.board(NAMED)
    assert (board["votes"], board["named"]) == (8, True)


def test_a_voter_counts_so_often_a_day():
    league = League(Rules(votes=Votes(counted=3)))
    league.vote(voter="eager", count=5)
    league.vote(voter="eager", winner="b", count=1)
    league.vote(voter="eager", at=101 * DAY, count=2)
    league.vote(voter="", count=10)  # nobody known
    for _ in range(2):
        board = league.board()
        assert (board["votes"], board["aside"]["over_cap"]) == (15, 3)
        assert league.rows()["x"]["losses"] == 0
    league.vote(voter="eager", count=1)
    league.vote(voter="eager", at=101 * DAY, count=2)
    board = league.board()
    assert (board["votes"], board["aside"]["over_cap"]) == (16, 5)


def fair_votes(league: League, seed: int = 0) -> None:
    rng = np.random.default_rng(seed)
    strength = dict(zip("vwxyz", (2.0, 1.0, 0.0, -1.0, -2.0), strict=True))
    for voter in range(40):
        for _ in range(25):
            a, b = rng.choice(list(strength), 2, replace=False)
            won = rng.random() < 1 / (1 + math.exp(strength[b] - strength[a]))
            league.vote(a, b, "a" if won else "b", voter=f"honest {voter}")


def test_voters_who_brush_are_set_aside_listed_and_come_back_when_trusted(league):
    fair_votes(league)
    league.suspect()
    before = league.board()
    assert before["aside"]["voters"] == []
    for i in range(90):
        league.vote("z", "vwxy"[i % 4], voter="brush")
    brushed = league.rows()["z"]
    league.suspect()
    after = league.board()
    assert [row["score"] for row in after["models"]] == [row["score"] for row in before["models"]]
    assert after["aside"]["votes_of_voters"] == 90
    (listed,) = after["aside"]["voters"]
    assert (listed["voter"], listed["votes"]) == ("brush", 90)
    assert listed["p_value"] < 0.01
    league.suspect("brush")
    again = league.board()
    assert again["aside"]["voters"] == []
    assert league.rows()["z"]["score"] == brushed["score"]
    assert again["votes"] == 1090


def test_a_board_that_grew_is_as_one_that_is_made_anew(league):
    rng = np.random.default_rng(1)
    requests = [BLIND, NAMED, BoardRequest(style=True), BoardRequest(category="math"), BoardRequest(category="math", style=True)]  # fmt: skip
    for step in range(12):
        for _ in range(40):
            a, b = rng.choice(list("abcdefgh")[: 3 + step // 2], 2, replace=False)
            league.vote(
                a, b, rng.choice(["a", "b", "tie", "bad"]), kind=rng.choice(["blind", "blind", "named", "late"]),
                voter=f"v{rng.integers(6)}", at=int(rng.integers(100, 103 + step)) * DAY, leak=bool(rng.random() < 0.1),
                categories=("math",) if rng.random() < 0.5 else (),
                style_a=tuple(rng.integers(0, 300, 4).tolist()), style_b=tuple(rng.integers(0, 300, 4).tolist()),
            )  # fmt: skip
        if step % 3 == 2:
            league.suspect()
        if step == 7:
            league.ballots.label(0, ["math"])
        for request in requests:
            grown, anew = league.board(request), league.board(request, keep=False)
            rows = [
                {
                    k: pytest.approx(v, abs=0.02) if isinstance(v, float) else v
                    for k, v in row.items()
                    if k[:4] != "boot"
                }
                for row in anew["models"]
            ]
            assert [{k: v for k, v in row.items() if k[:4] != "boot"} for row in grown["models"]] == rows
            for part in ("votes", "heat", "aside", "categories", "from", "to"):
                assert grown[part] == anew[part]
            assert grown["history"]["dates"] == anew["history"]["dates"]
            for name, scores in anew["history"]["scores"].items():
                assert grown["history"]["scores"][name] == pytest.approx(scores, abs=0.11, nan_ok=False)


def test_the_bootstrap_follows_its_score_between_two_draws(league):
    fair_votes(league)
    first = league.rows()["v"]
    league.vote("v", "w", "b")
    then = league.rows()["v"]
    assert then["score"] < first["score"]
    for bound in ("boot_lower", "boot_upper"):
        assert then[bound] - then["score"] == pytest.approx(first[bound] - first["score"], abs=0.03)
    league.vote("v", "w", "b", 200)
    last = league.rows()["v"]
    assert last["boot_upper"] - last["boot_lower"] < 0.99 * (first["boot_upper"] - first["boot_lower"])


def test_an_anchor_has_its_score_and_deprecated_models_are_marked():
    league = League(Rules(ratings=Ratings(anchor=Anchor(model="y", score=800), deprecated=["old*"])))
    league.vote("x", "old-1", count=3)
    assert league.board()["anchor"] is None  # nobody has voted on it
    league.vote("x", "y", count=20)
    for request in (BLIND, BoardRequest(style=True)):
        board = league.board(request)
        assert board["anchor"] == {"model": "y", "score": 800}
        rows = {row["name"]: row for row in board["models"]}
        assert rows["y"]["score"] == 800
        assert {name for name, row in rows.items() if row["deprecated"]} == {"old-1"}


def test_style_control_tells_what_the_style_was_worth(league):
    rng = np.random.default_rng(0)
    for _ in range(600):
        long, short = (400, 0, 5, 3), (100, 0, 0, 0)
        left = rng.random() < 0.5
        won = rng.random() < 0.8  # the longer answer wins; x is usually longer
        league.vote("x" if left else "y", "y" if left else "x", "a" if won == left else "b",
                    style_a=long if left else short, style_b=short if left else long)  # fmt: skip
    for _ in range(60):
        league.vote("x", "y", rng.choice(["a", "b"]), style_a=(100, 0, 0, 0), style_b=(100, 0, 0, 0))
    plain, controlled = league.rows(), league.board(BoardRequest(style=True))
    rows = {row["name"]: row for row in controlled["models"]}
    assert controlled["style_coefficients"]["length"] > 0
    assert rows["x"]["score"] - rows["y"]["score"] < (plain["x"]["score"] - plain["y"]["score"]) / 2
    assert (rows["x"]["rank_plain"], rows["y"]["rank_plain"]) == (plain["x"]["rank"], plain["y"]["rank"]) == (1, 2)
    assert league.board()["style_coefficients"] is None


def test_categories_and_dates_choose_votes(league):
    league.vote(count=4, categories=("math", "en"), at=100 * DAY)
    league.vote(count=3, winner="b", categories=("en",), at=101 * DAY - 1)
    league.vote(count=2, categories=("zh",), at=101 * DAY)
    board = league.board(BoardRequest(category="en"))
    assert (board["category"], board["votes"]) == ("en", 7)
    assert board["categories"] == [
        {"name": "all", "votes": 9}, {"name": "en", "votes": 7}, {"name": "math", "votes": 4}, {"name": "zh", "votes": 2},
    ]  # fmt: skip
    assert league.board(BoardRequest(category="none"))["models"] == []
    first, second = "1970-04-11", "1970-04-12"
    for since, until, votes in ((first, "", 9), (second, "", 2), ("", first, 7), (first, first, 7), (second, first, 0)):
        assert league.board(BoardRequest(since=since, until=until), keep=False)["votes"] == votes


def test_history_goes_from_the_first_vote_to_the_last(league):
    for day in range(100, 200):
        league.vote("x", "y", at=day * DAY)
    league.vote("z", "y", at=199 * DAY)
    history = league.board()["history"]
    assert len(history["dates"]) <= DATES
    assert history["dates"][-1] == "1970-07-19"
    assert history["dates"] == sorted(set(history["dates"]))
    x, z = history["scores"]["x"], history["scores"]["z"]
    assert x == sorted(x)
    assert z[:-1] == [None] * (len(z) - 1)
    rows = league.rows()
    assert (x[-1], z[-1]) == (pytest.approx(rows["x"]["score"], abs=0.06), pytest.approx(rows["z"]["score"], abs=0.06))


def test_boards_that_there_are_to_be(league):
    league.vote(categories=("math",))
    league.vote(kind="named", categories=("coding",))
    before = wanted(league)
    assert set(before) == {
        "all:style", "all:style:named", "math", "math:style", "math:named", "math:style:named", "coding:named", "coding:style:named",
    }  # fmt: skip
    league.vote(kind="named", categories=("math",))
    after = wanted(league)
    changed = {field for field in after if after[field] != before[field]}
    assert changed == {"all:style:named", "math:named", "math:style:named"}


def wanted(league: League) -> dict[str, Any]:
    return {request.field: votes for request, votes in league.boards.wanted(league.ballots.view()).items()}


def test_a_table_of_fastchat_fills_in_what_the_fleet_does_not_know(tmp_path):
    table = tmp_path / "table.csv"
    table.write_text(
        "key,Model,MT-bench (score),MMLU,Knowledge cutoff date,License,Organization,Link\n"
        "vicuna-13b,Vicuna-13B,6.57,0.558,2023/7,Llama 2 Community,LMSYS,https://lmsys.org\n"
        "x,X,-,0.7,-,-,-,-\n",
        encoding="utf-8-sig",
    )
    league = League(Rules(ratings=Ratings(table=table)))
    league.vote("vicuna-13b", "x")
    league.vote("Vicuna-13B", "x")
    rows = league.rows(cards=(ModelCard("x", organisation="Ours"),))
    for name in ("vicuna-13b", "Vicuna-13B"):
        assert (rows[name]["mt_bench"], rows[name]["mmlu"], rows[name]["cutoff"]) == (6.57, 0.558, "2023/7")
        assert (rows[name]["licence"], rows[name]["organisation"]) == ("Llama 2 Community", "LMSYS")
    assert (rows["x"]["mt_bench"], rows["x"]["mmlu"], rows["x"]["cutoff"]) == (None, 0.7, "")
    assert (rows["x"]["organisation"], rows["x"]["licence"]) == ("Ours", "")


@pytest.mark.parametrize("content", [b"a,b\n1,2\n", b"\xff\xfe\x00", b"key,Model\n\x00\n"])
def test_another_file_is_no_table(tmp_path, content):
    table = tmp_path / "table.csv"
    table.write_bytes(content)
    with pytest.raises(SetupError, match=r"ratings.table"):
        read_table(table)


def test_another_reading_of_the_votes_begins_anew(league):
    fair_votes(league)
    league.vote("z", "v", voter="brush", count=90)
    league.suspect()
    assert league.board()["aside"]["votes_of_voters"] == 90
    league.ballots = Ballots(reading=1)
    league.vote("x", "y")
    board = league.board()
    assert (board["votes"], board["aside"]["voters"]) == (1, [])


def test_pairs_say_where_a_vote_would_tell_most(league):
    league.vote("x", "y", "a", 50)
    league.vote("x", "y", "b", 50)
    league.vote("x", "z", "a", 2)
    league.board()
    pairs = league.boards.pairs(league.ballots.view())
    x, y, z = (pairs["names"].index(name) for name in "xyz")
    assert pairs["count"][x][y] == pytest.approx(pairs["count"][y][x])
    assert pairs["count"][x][y] > 90
    assert pairs["count"][x][z] < 10
    assert pairs["variance"][x][y] == pytest.approx(4, abs=0.01)
    odds = Odds.of(["x", "y", "z", "new"], Rules(), pairs)
    of = {frozenset(pair): p for pair, p in zip(odds.pairs, odds.probabilities, strict=True)}
    assert sum(of.values()) == pytest.approx(1)
    assert of[frozenset("xy")] < of[frozenset("xz")] < of[frozenset(("x", "new"))]


def test_votes_on_pairs_that_are_drawn_seldom_count_more_if_asked_for():
    """Three pairs whose votes say the same of each as in a league that had them all equally often."""
    anchor = Anchor(model="x", score=1000)
    uneven, even = (League(Rules(ratings=Ratings(anchor=anchor, reweight=yes))) for yes in (True, False))
    for a, b, votes, p in (("x", "y", 90, 0.9), ("x", "z", 6, 0.06), ("y", "z", 3, 0.03)):
        uneven.vote(a, b, "a" if b == "y" else "b", votes * 2 // 3, p=p)
        uneven.vote(a, b, "b" if b == "y" else "a", votes // 3, p=p)
        even.vote(a, b, "a" if b == "y" else "b", 22)
        even.vote(a, b, "b" if b == "y" else "a", 11)
    for request in (BLIND, BoardRequest(style=True)):
        scores = [{name: row["score"] for name, row in league.rows(request).items()} for league in (uneven, even)]
        assert scores[0] == pytest.approx(scores[1], abs=0.1)
    rows, others = uneven.rows(), even.rows()
    assert (rows["z"]["votes"], rows["z"]["win_rate"]) == (9, 0.6667)
    assert rows["z"]["upper"] - rows["z"]["lower"] > 1.2 * (others["z"]["upper"] - others["z"]["lower"]), "few votes"
    uneven.vote("x", "z", "b", 3, p=0.06)
    grown, anew = uneven.board(), uneven.board(keep=False)
    for volatile in ("updated", "seconds"):
        del grown[volatile], anew[volatile]
    assert grown["models"] == anew["models"]


def test_a_vote_with_no_probability_is_one_that_was_not_drawn(league):
    league.vote(p=0)
    league.ballots.add([(b"1-0", {b"p": b"nan"})])
    assert league.ballots.view().p.tolist() == [0]
