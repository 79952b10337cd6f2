from urllib.parse import parse_qsl

import pytest

from broker.errors import BadRequest
from webapp.leaderboard_filters import Filters


def test_an_address_gives_the_filters_that_it_was_made_of():
    for filters in (
        Filters(),
        Filters(category="multi-turn", style=True, named=True),
        Filters(since="2026-01-01", until="2026-02-01", deprecated=True, sort="votes", order="asc", q="a & b"),
    ):
        path, _, query = filters.address("/leaderboard.csv").partition("?")
        assert path == "/leaderboard.csv"
        assert Filters.of(dict(parse_qsl(query))) == filters


def test_defaults_stand_in_no_address():
    assert Filters().address() == "/leaderboard"
    assert Filters(style=True).address(style=False) == "/leaderboard"
    assert Filters().address(since="2026-01-01") == "/leaderboard?from=2026-01-01"


def test_fields_that_a_form_leaves_empty_are_as_good_as_absent():
    assert Filters.of({"category": "", "from": " ", "q": "", "style": "0", "other": "x"}) == Filters()


def test_names_of_python_are_none_of_the_address():
    assert Filters.of({"since": "nonsense"}) == Filters()


def test_a_date_is_a_whole_one():
    for text in ("2026-02-30", "20260201", "2026-W05-1"):
        with pytest.raises(BadRequest):
            Filters.of({"from": text})
