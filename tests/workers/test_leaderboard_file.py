import json

import pytest

import battles
from broker.errors import SetupError
from broker.leaderboard import BoardRequest
from broker.rules import Rules
from workers.leaderboard_file import compute


def of(*files, **request):
    return compute(files, BoardRequest(**request), Rules())


def test_a_vote_that_is_in_several_files_counts_once(tmp_path):
    log = battles.log(tmp_path / "log", [battles.vote(n, models=["", ""]) for n in range(60)])
    more = battles.log(tmp_path / "more", [battles.vote(n, models=["", ""]) for n in range(40, 80)])
    assert of(log)["votes"] == of(log, log)["votes"] == 60
    assert of(log, more)["votes"] == 80


def test_one_voters_share_of_a_day_counts_and_the_rest_is_set_aside(tmp_path):
    day = [battles.vote(n, models=["", ""], ip="192.0.2.1", tstamp=1_680_000_000 + n) for n in range(130)]
    board = of(battles.log(tmp_path / "log", day))
    assert (board["votes"], board["aside"]["over_cap"]) == (100, 30)


def test_votes_that_brush_a_model_are_set_aside_with_their_voter(tmp_path):
    fair = [row(n, "model_a" if n % 2 else "model_b", f"voter-{n % 300}") for n in range(3000)]
    brushed = [row(n, "model_a", "brusher", a="x", b="y") for n in range(3000, 3080)]
    file = tmp_path / "rows"
    file.write_text("".join(json.dumps(one) + "\n" for one in fair + brushed))
    board = of(file)
    assert board["votes"] == 3000
    assert [one["votes"] for one in board["aside"]["voters"]] == [80]


def row(number, winner, voter, a=None, b=None):
    pair = (a, b) if a else (("x", "y") if number % 3 else ("y", "z"))
    return {
        "id": f"{number:020}",
        "model_a": pair[0],
        "model_b": pair[1],
        "winner": winner,
        "voter": voter,
        "tstamp": 1_680_000_000 + number * 600,
    }


def test_a_file_that_is_none_is_a_sentence(tmp_path):
    with pytest.raises(SetupError, match="cannot be read"):
        of(tmp_path / "none")
