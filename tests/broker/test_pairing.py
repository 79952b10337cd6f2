import math
import time
from collections import Counter
from itertools import combinations
from random import Random

import pytest

from broker.errors import TooFewModels
from broker.pairing import UNSEEN, Odds
from broker.rules import Rules

MODELS = [f"m{i}" for i in range(6)]
DRAWS = 20_000


def rules(**sampling):
    return Rules.model_validate({"sampling": {"floor": 0.0} | sampling})


def odds(models=MODELS, table=None, **sampling) -> dict[frozenset[str], float]:
    found = Odds.of(models, rules(**sampling), table)
    assert math.isclose(math.fsum(found.probabilities), 1)
    return {frozenset(pair): p for pair, p in zip(found.pairs, found.probabilities, strict=True)}


def share(found, model: str) -> float:
    return sum(p for pair, p in found.items() if model in pair)


def flat(count: float, variance: float, n: int = 6):
    return {"names": MODELS[:n], "count": [[count] * n] * n, "variance": [[variance] * n] * n}


def test_what_is_drawn_is_what_was_said_and_left_and_right_are_a_coin():
    odd = Odds.of(MODELS, rules(weights={"m0": 5.0, "m1": 0.5}), None)
    rng = Random(7)
    drawn = [odd.draw(rng) for _ in range(DRAWS)]
    said = {frozenset(pair): p for pair, p in zip(odd.pairs, odd.probabilities, strict=True)}
    seen = Counter(frozenset((a, b)) for a, b, _ in drawn)
    assert all(said[frozenset((a, b))] == p for a, b, p in drawn)
    chi = sum((seen[pair] - DRAWS * p) ** 2 / (DRAWS * p) for pair, p in said.items())
    assert chi < 36.1, "0.999 of chi-square with 14 degrees of freedom"
    left = sum(a < b for a, b, _ in drawn)
    assert abs(left - DRAWS / 2) < 3.3 * math.sqrt(DRAWS) / 2


def test_pairs_are_drawn_by_what_a_vote_would_tell_and_those_without_votes_first():
    table = flat(10, 1.0)
    table["count"] = [[10.0] * 6 for _ in range(6)]
    table["count"][0][1] = table["count"][1][0] = 1000.0
    table["count"][2][3] = table["count"][3][2] = 0.0
    found = odds(table=table)
    usual, sure = (math.sqrt(1 / n) - math.sqrt(1 / (n + 1)) for n in (10, 1000))
    known = found[frozenset(("m0", "m2"))]
    assert found[frozenset(("m0", "m1"))] / known == pytest.approx(sure / usual)
    assert found[frozenset(("m2", "m3"))] / known == pytest.approx(UNSEEN)
    new = odds([*MODELS, "new"], table)
    assert new[frozenset(("new", "m0"))] == new[frozenset(("m2", "m3"))]
    assert len(set(odds(table=table, active=False).values())) == 1


@pytest.mark.parametrize("table", [flat(0, 0), flat(5, 0), {}, {"names": MODELS, "count": [], "variance": []}])
def test_a_table_that_says_nothing_makes_all_pairs_alike(table):
    assert {round(p, 12) for p in odds(table=table).values()} == {round(1 / 15, 12)}


def test_every_pair_that_may_meet_has_its_floor():
    found = odds(weights={"m0": 1e-9, "m1": 1e9}, floor=0.15)
    assert len(found) == 15
    assert min(found.values()) >= 0.15 / 15 * 0.999999
    assert found[frozenset(("m0", "m2"))] == pytest.approx(0.01)


def test_weights_boosts_and_what_has_none():
    found = odds(weights={"m1": 3.0}, boosts={"m[2]": 5.0, "m3*": 0.0}, default=1.0)
    assert not any("m3" in pair for pair in found)
    base = found[frozenset(("m0", "m4"))]
    assert found[frozenset(("m1", "m4"))] == pytest.approx(3 * base)
    assert found[frozenset(("m2", "m4"))] == pytest.approx(5 * base)
    assert found[frozenset(("m1", "m2"))] == pytest.approx(15 * base)


def test_targets_are_met_in_half_of_a_models_battles():
    found = odds(targets={"m0": ["m4", "m5"]})
    met = found[frozenset(("m0", "m4"))] + found[frozenset(("m0", "m5"))]
    assert met == pytest.approx(share(found, "m0") / 2)
    several = odds(targets={"m0": ["m1"], "m1": ["m2*"], "gone": ["m1"], "m3": ["m*"]})
    for model, rival in (("m0", "m1"), ("m1", "m2")):
        assert several[frozenset((model, rival))] == pytest.approx(share(several, model) / 2, rel=1e-3)


def test_strict_lists_count_both_ways_and_take_wildcards():
    found = odds(["a-1", "a-2", "b-1", "c"], strict={"a-*": ["b-*"]})
    assert set(found) == {frozenset(pair) for pair in (("a-1", "b-1"), ("a-2", "b-1"), ("b-1", "c"))}


def test_what_is_out_and_what_never_meets():
    found = odds(outages=["m0", "m1*"], never=[("m2", "m[34]")])
    assert set(found) == {frozenset(pair) for pair in combinations(MODELS[2:], 2)} - {
        frozenset(("m2", "m3")),
        frozenset(("m2", "m4")),
    }


@pytest.mark.parametrize(
    ("models", "sampling"),
    [
        ([], {}),
        (["m0"], {}),
        (["m0", "m0"], {}),
        (MODELS, {"outages": ["*"]}),
        (MODELS, {"default": 0.0}),
        (MODELS, {"weights": {"m*": 0.0}, "floor": 1.0}),
        (["m0", "m1"], {"never": [("m*", "m*")]}),
        (["m0", "m1"], {"strict": {"m0": []}}),
    ],
)
def test_where_no_two_may_meet_it_says_so(models, sampling):
    with pytest.raises(TooFewModels, match="two models"):
        odds(models, flat(3, 1), **sampling)


def test_models_come_and_go_between_two_draws():
    rng, table = Random(1), flat(10, 1.0)
    assert {*Odds.of(["m0", "m1"], Rules(), table).draw(rng)[:2]} == {"m0", "m1"}
    a, b, p = Odds.of(["m0", "new"], Rules(), table).draw(rng)
    assert {a, b, p} == {"m0", "new", 1.0}


def test_200_models_are_quick():
    names = [f"model-{i}" for i in range(200)]
    table = {"names": names, "count": [[5.0] * 200] * 200, "variance": [[1.0] * 200] * 200}
    said = rules(never=[("model-1", "model-2*")], targets={"model-7": ["model-8"]}, strict={"model-3*": ["model-4*"]})
    began = time.perf_counter()
    kept = Odds.of(names, said, table)
    made = time.perf_counter() - began
    rng = Random(3)
    began = time.perf_counter()
    for _ in range(1000):
        kept.draw(rng)
    drawn = (time.perf_counter() - began) / 1000
    print(f"200 models: {1000 * made:.0f} ms to weigh all pairs, {1e6 * drawn:.1f} us a draw")
    assert made < 1.0
    assert drawn < 0.001
