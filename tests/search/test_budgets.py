from __future__ import annotations

import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

import prunekit as pk
from prunekit.choices import Target
from prunekit.models import layers
from prunekit.pruning.budgets import layer_targets
from prunekit.search.budgets import (
    Budget,
    Place,
    Places,
    downhill,
    exchange,
    join,
    probes,
    random_budget,
    tilt,
    varied,
    whole,
)
from prunekit.search.controls import Shuffled
from tests.pruning.families import FAMILIES
from tests.search.toy import Sloped


def two(target, rows=(4, 4)):
    """Two blocks of one layer each, with ten or eight inputs."""
    inputs = 8 if target.pattern != "unstructured" else 10
    return Places(tuple(Place(f"layers.{at}.q", at, "q", of, inputs) for at, of in enumerate(rows)), target)


def zeros(budget):
    return sum(place.rows * int(place.inputs * target.sparsity)
               for place, target in zip(budget.places.places, budget.targets, strict=True))


@st.composite
def models(draw):
    """Blocks alike, kinds of several shapes, one target."""
    blocks = draw(st.integers(1, 5))
    shapes = draw(st.lists(st.tuples(st.integers(1, 60), st.integers(1, 40)), min_size=1, max_size=4))
    target = Target.parse(draw(st.sampled_from(["0.3", "0.5", "0.6", "0.77", "1:4", "2:4", "3:4", "4:8"])))
    return Places(tuple(Place(f"layers.{block}.{kind}", block, str(kind), rows, 8 * inputs)
                        for block in range(blocks) for kind, (rows, inputs) in enumerate(shapes)), target)


@given(models(), st.integers(0, 2**32))
def test_every_budget_has_the_uniform_ones_zeros_to_the_last(places, seed):
    rng, budgets = random.Random(seed), [places.uniform]
    for _ in range(12):
        found, _ = varied(rng, rng.choice(budgets), rng.choice(budgets))
        budgets += [] if found is None else [found]
    budgets += [random_budget(rng, places), *probes(places)]
    found, _ = varied(rng, budgets[0], measured=[(budget, rng.random()) for budget in budgets])
    budgets += [] if found is None else [found]
    for budget in budgets:
        assert places.zeros(budget.moved) == 0 and zeros(budget) == zeros(places.uniform)
        assert all(0 <= target.sparsity < 1 for target in budget.targets)
        assert all(target.pattern.partition(":")[2] == places.target.pattern.partition(":")[2]
                   for target in budget.targets)
        assert Places.from_plain(json.loads(json.dumps(places.plain()))) == places


def test_a_move_by_hand():
    """A step of 2 % of ten weights is one: 5 of 10 in both blocks become 6 and 4, or 7 and 3, or 9 and 1."""
    places = two(Target(0.5))
    assert places.unit == (1, 1)
    seen = {exchange(random.Random(seed), places.uniform, "block").moved for seed in range(40)}
    assert seen == {(sign * steps, -sign * steps) for sign in (1, -1) for steps in (1, 2, 4)}
    assert [target.sparsity for target in Budget(places, (1, -1)).targets] == [0.6, 0.4]
    assert dict(Budget(places, (1, -1))) == {"layers.0.q": 0.6, "layers.1.q": 0.4}
    assert {tilt(random.Random(seed), places.uniform).moved for seed in range(40)} == {
        (sign * steps, -sign * steps) for sign in (1, -1) for steps in (1, 2)}
    assert join(Budget(places, (1, -1)), Budget(places, (2, -2))).moved == (3, -3)
    assert Budget(places, (4, -4)).possible and not Budget(places, (5, -5)).possible


def test_parts_of_zeros_are_made_whole():
    places = two(Target(0.5), (6, 4))
    seen = {whole(random.Random(seed), places, (1.2, -1.8)) for seed in range(20)}
    assert {budget.moved for budget in seen - {None}} == {(2, -3)}
    assert whole(random.Random(0), two(Target(0.5), (3, 2)), (1, -1)) is None  # 1 is left, and no row is


def test_probes_and_the_slope_that_they_show():
    """Of 100 inputs 8 fewer in a block, less the mean, are 4; zeros of the first cost more: it gets fewer."""
    places = Places(tuple(Place(f"layers.{at}.q", at, "q", 4, 100) for at in range(2)), Target(0.5))
    assert [budget.moved for budget in probes(places)] == [(-4, 4), (4, -4)]
    measured = [(Budget(places, (more, -more)), 0.5 + 0.1 * more) for more in (-4, 0, 4)]
    seen = {downhill(random.Random(seed), places.uniform, measured).moved for seed in range(40)}
    assert seen == {(-2, 2), (-4, 4), (-8, 8)}  # steps of 2
    alike = [(budget, 1.0) for budget, _ in measured]
    assert downhill(random.Random(0), places.uniform, alike) is None  # no slope
    assert not probes(two(Target.parse("2:4")))


def test_places_of_other_sizes_trade_whole_zeros():
    """Six rows against four: two zeros per row there are three here."""
    seen = {exchange(random.Random(seed), two(Target(0.5), (6, 4)).uniform, "place") for seed in range(40)}
    assert {budget.moved for budget in seen} == {(2, -3), (-2, 3), (4, -6)}


def test_patterns_trade_one_of_m():
    places = two(Target.parse("2:4"))
    seen = {exchange(random.Random(seed), places.uniform, "place") for seed in range(20)}
    assert {tuple(budget.values()) for budget in seen} == {("1:4", "3:4"), ("3:4", "1:4")}
    assert exchange(random.Random(0), two(Target.parse("2:4"), (6, 4)).uniform, "place") is None
    assert not Budget(places, (4, -4)).possible  # 4:4 would leave nothing


def test_sparsities_become_the_budget_next_to_them():
    model = FAMILIES["Qwen3-MoE"].model()
    places = Places.of(layers(model), Target(0.5))
    assert sum("experts" in place.kind for place in places.places) == 6  # of three blocks, all experts as one
    targets = layer_targets(layers(model), [0.4, 0.5, 0.6], blocks=3)
    budget = places.near(targets, layers(model))
    assert places.zeros(budget.moved) == 0
    assert all(abs(budget[place.name] - (0.4, 0.5, 0.6)[place.block]) < 1 / place.inputs
               for place in places.places)
    back = layer_targets(layers(model), budget)
    assert back == [budget.of(layer) for layer in layers(model)]
    assert places.near(back, layers(model)) == budget
    assert layer_targets(layers(model), places.uniform) == [Target(0.5)] * len(layers(model))
    with pytest.raises(pk.UsageError, match="must have its mean"):
        places.near(layer_targets(layers(model), 0.6), layers(model))
    assert json.loads(str(budget)) == dict(budget)
    assert budget.table().shape == (len({place.kind for place in places.places}), 3)


def run(seed=0, budget=120, **changes):
    return list(pk.evolve(Sloped(), "modern", budget, seed, progress=False, population=10, **changes))


def test_a_hidden_budget_is_approached_and_random_ones_are_further_away():
    evolved, drawn = ([run(seed, evolve="budget", random=random)[-1].best for seed in range(4)]
                      for random in (False, True))
    assert sum(each.fitness for each in evolved) < 0.6 * sum(each.fitness for each in drawn)
    assert {each.tree for each in evolved} == {pk.canonical(pk.Tree.parse("mul(W, sqrt(X))"))}
    assert evolved[0].budget == run(evolve="budget")[-1].best.budget
    shares = min(evolved, key=lambda best: best.fitness).budget.table().mean()
    assert max(shares[0], shares[2], shares[4]) < min(shares[1], shares[3])


def test_forty_evaluations_are_enough_to_be_told_from_random_ones():
    evolved, drawn = ([run(seed, 40, evolve="budget", random=random)[-1].best.fitness for seed in range(8)]
                      for random in (False, True))
    assert sum(evolved) < 0.5 * sum(drawn)


def test_both_are_evolved_each_child_differs_in_one():
    last = run(evolve="both")[-1]
    assert {"block", "kind", "place"} & {each.operator for each in last.population}
    assert {"factor", "regrow", "swap", "crossover", "insert", "power", "point", "hoist"} & {
        each.operator for each in last.population}
    assert last.best.fitness < 0.01 and "G" not in last.best.tree


def test_fitness_that_means_nothing_is_drawn_for_budgets_too():
    places = Sloped.places
    null = Shuffled(tuple(range(1000)), seed=1, places=places)
    tree = pk.Tree.parse("W")
    assert len({null(tree, Budget(places, (more,) * 15)) for more in range(4)} | {null(tree)}) == 5
    last = list(pk.evolve(null, "modern", 8, evolve="budget", progress=False))[-1]
    assert last.evaluated == 8
