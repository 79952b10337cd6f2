import pytest

from webapp import leaderboard_rows as table
from webapp.leaderboard_filters import Filters


def model(name, score, width=10.0, **fields):
    about = {
        "organisation": "",
        "licence": "",
        "link": "",
        "context": None,
        "cutoff": "",
        "mt_bench": None,
        "mmlu": None,
    }
    rates = {"win_rate": 0.5, "average_win_rate": 0.5, "elo": score, "votes": 100, "wins": 50, "losses": 50, "ties": 0}
    boot = {"boot_lower": None, "boot_upper": None}
    flags = {"deprecated": False, "preliminary": False, "rank": 1}
    return (
        {"name": name, "score": score, "lower": score - width, "upper": score + width}
        | about
        | rates
        | boot
        | flags
        | fields
    )


def test_a_rank_is_one_more_than_those_that_are_better_beyond_doubt():
    models = [model("a", 1100), model("b", 1085), model("c", 1079), model("d", 900)]
    assert [one["rank"] for one in table.ranked(models, False)] == [1, 1, 2, 4]


def test_who_is_not_shown_takes_nobodys_rank():
    models = [model("old", 1200, deprecated=True), model("a", 1100), model("b", 1000)]
    assert [(one["name"], one["rank"]) for one in table.ranked(models, False)] == [("a", 1), ("b", 2)]
    assert [(one["name"], one["rank"]) for one in table.ranked(models, True)] == [("old", 1), ("a", 2), ("b", 3)]


def test_a_change_is_beside_the_rank_without_style_control():
    plain = [model("a", 1100), model("b", 1000), model("old", 1300, deprecated=True)]
    styled = table.ranked([model("b", 1100), model("a", 1000), model("new", 900)], False, plain)
    assert {one["name"]: table.change(one) for one in styled} == {"b": 1, "a": -1, "new": None}


@pytest.mark.parametrize(
    ("sort", "order", "names"),
    [
        ("rank", "", ["a", "b", "c"]),
        ("votes", "", ["c", "a", "b"]),
        ("votes", "asc", ["a", "b", "c"]),
        ("mmlu", "", ["b", "a", "c"]),
        ("mmlu", "asc", ["a", "b", "c"]),
        ("organisation", "desc", ["b", "a", "c"]),
        ("no such column", "", ["a", "b", "c"]),
    ],
)
def test_models_are_in_order_and_what_is_missing_comes_last(sort, order, names):
    models = table.ranked(
        [
            model("c", 900, votes=300),
            model("b", 1000, mmlu=0.8, organisation="beta"),
            model("a", 1100, mmlu=0.7, organisation="Alpha"),
        ],
        False,
    )
    assert [one["name"] for one in table.ordered(models, Filters(sort=sort, order=order))] == names


def test_cells_say_what_people_read():
    row = table.rows(
        table.ranked([model("a", 1234.5, 10.4, context=131072, mmlu=0.705, mt_bench=8.0, link="javascript:1")], False),
        table.COLUMNS,
        Filters(),
    )[0]
    assert row.cells["score"] == "1,234"
    assert row.cells["interval"] == "+10/−10"
    assert (row.cells["context"], row.cells["mmlu"], row.cells["mt_bench"]) == ("128k", "70.5 %", "8.00")
    assert (row.cells["licence"], row.cells["bootstrap"]) == ("–", "")
    assert row.link == ""


def test_columns_that_nobody_has_are_left_out():
    names = {column.name for column in table.columns(table.ranked([model("a", 1000, mmlu=0.5)], False))}
    assert "mmlu" in names
    assert not {"mt_bench", "change", "bootstrap"} & names


@pytest.mark.parametrize(
    ("tokens", "said"), [(512, "512"), (8192, "8k"), (200_000, "200k"), (1_000_000, "1.0M"), (1_048_576, "1.0M")]
)
def test_a_context_is_short(tokens, said):
    assert table.tokens(tokens) == said


def test_intervals_of_few_votes_do_not_shrink_the_others():
    models = [model("a", 1100), model("b", 900), model("new", 1000, 900, preliminary=True)]
    places = {row.model["name"]: row.plot for row in table.rows(table.ranked(models, False), (), Filters())}
    assert places["b"][0] == places["new"][0] == 4
    assert places["a"][2] == places["new"][2] == table.PLOT - 4


def test_figures_are_without_those_who_are_not_shown():
    board = {
        "heat": {"names": ["a", "old", "b"], "win": [[None, 0.1, 0.2], [0.9, None, 0.3], [0.8, 0.7, None]], "count": [[0, 1, 2], [1, 0, 3], [2, 3, 0]]},
        "history": {"dates": ["2026-01-01"], "scores": {"a": [1], "old": [2], "b": [3]}},
    }  # fmt: skip
    found = table.tables(board, [{"name": "a"}, {"name": "b"}])
    assert found["heat"] == {"names": ["a", "b"], "win": [[None, 0.2], [0.8, None]], "count": [[0, 2], [2, 0]]}
    assert found["history"] == {"dates": ["2026-01-01"], "scores": {"a": [1], "b": [3]}}


def test_csv_has_a_line_for_each_model_and_fastchats_names():
    text = table.to_csv(table.ranked([model("a, b", 1000.123, mmlu=0.5, boot_lower=990.0)], False))
    head, line = text.splitlines()
    assert {
        "key",
        "Model",
        "MT-bench (score)",
        "MMLU",
        "License",
        "Organization",
        "Link",
        "Knowledge cutoff date",
    } <= set(head.split(","))
    assert line.startswith('"a, b","a, b",1,-,1000.12,990.123,1010.12,990,-,')


def test_no_cell_of_the_csv_is_a_formula():
    (_, line) = table.to_csv(table.ranked([model("=1+1", -3.5, licence="@sum(a1)")], False)).splitlines()
    assert line.startswith("'=1+1,'=1+1,1,-,-3.5,")
    assert ",'@sum(a1)," in line
