import math
import random
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from scipy import stats

import prunekit as pk
from prunekit.metric.primitives import symbols
from prunekit.metric.rank import rank_key
from prunekit.metric.tree import Tree
from prunekit.search import journal as journals
from prunekit.search.engine import DECIDING, _fitness
from prunekit.search.operators import factor, power
from prunekit.search.presets import PRESETS, Preset, preset
from prunekit.search.random_trees import Alphabet, grid, half_and_half, random_tree, smallest_first
from prunekit.search.records import Outcome, Race, behind, pareto
from prunekit.search.state import Search
from tests.search.toy import Racing, Sloped, distance

pytestmark = pytest.mark.usefixtures("no_fsync")


def run(evaluator, *args, **kwargs):
    return list(pk.evolve(evaluator, *args, progress=False, **kwargs))


# -- sampling ------------------------------------------------------------------------------------------------

def test_full_trees_reach_their_depth_in_every_branch_and_grown_ones_at_most():
    rng = random.Random(0)
    for depth in (1, 2, 4):
        for _ in range(50):
            full, grown = random_tree(rng, depth, full=True), random_tree(rng, depth)
            assert full.depth == depth and 1 <= grown.depth <= depth
            leaves = [at for at in range(len(full)) if full.span(at).stop - at == 1]
            assert all(_level(full, at) == depth for at in leaves)


def _level(tree, index):
    return sum(at < index < tree.span(at).stop for at in range(index))


def test_an_alphabet_leaves_out_what_it_is_told_to_and_mixes_arities_as_told():
    rng, alphabet = random.Random(0), Alphabet(without=("pow", "skp", "X"), binary=0.8)
    trees = [half_and_half(rng, (2, 3), alphabet) for _ in range(300)]
    drawn = [symbol for tree in trees for symbol in tree]
    assert not {"pow", "skp", "X"} & set(drawn)
    binary = sum(symbol in ("add", "sub", "mul", "div") for symbol in drawn)
    unary = sum(symbol not in ("add", "sub", "mul", "div", "W", "G") for symbol in drawn)
    assert abs(binary / (binary + unary) - 0.8) < 0.05


def only(*kept):
    return Alphabet(without=tuple(symbol for symbol in symbols() if symbol not in kept))


def test_all_trees_come_smallest_first():
    few = only("sqrt", "add", "mul", "W", "G")
    trees = list(smallest_first(few, 4))  # of 2 leaves, 1 unary, 2 binary
    of = {1: 2, 2: 2}
    of[3] = of[2] + 2 * of[1] ** 2
    of[4] = of[3] + 2 * 2 * of[1] * of[2]
    assert [tree.size for tree in trees] == [size for size, count in of.items() for _ in range(count)]
    assert len(set(trees)) == len(trees) and all(Tree.parse(str(tree)) == tree for tree in trees)


# -- presets -------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", PRESETS)
def test_presets_survive_the_journal(name):
    import json

    plain = json.loads(json.dumps(PRESETS[name].as_dict()))
    assert Preset.from_dict(plain).as_dict() == plain


@pytest.mark.parametrize("asked, sentence", [
    (lambda: preset("modem"), "did you mean 'modern'"),
    (lambda: preset("modern", populaton=3), "did you mean 'population'"),
    (lambda: pk.evolve(distance, budget=0), "budget 0 is no number of evaluations"),
    (lambda: pk.evolve(distance, budget=True), "budget True is no number"),
    (lambda: pk.evolve(lambda a, b: 0), "a function of one tree"),
    (lambda: pk.evolve("W"), "a function of one tree"),
    (lambda: pk.evolve(distance, seeds=["mul(W, Y)"]), "'Y'"),
    (lambda: pk.evolve(distance, seeds=[3]), "a metric is text such as 'mul.W, sqrt.X..', not int"),
    (lambda: pk.evolve(distance, population=-3),
     r"preset 'modern': population = -3 must be greater than or equal to 2\.$"),
    (lambda: preset("modern", population=True), "population = True must be a valid integer"),
    (lambda: preset("modern", lag=0), "lag = 0 must be greater than or equal to 1"),
    (lambda: preset("modern", depths=()), r"depths = \(\) must have at least 1 item"),
    (lambda: preset("modern", depths=(2, 100)), r"depths\[1\] = 100 must be less than or equal to 7"),
    (lambda: preset("modern", sample=5), "sample = 5 must be less than or equal to 1"),
    (lambda: preset("modern", sample=math.nan), "sample = nan must be a finite number"),
    (lambda: preset("modern", crossover=7), "crossover = 7 must be"),
    (lambda: preset("modern", weights={}), "preset 'modern': top must be 2 or more where no weights"),
    (lambda: preset("modern", weights={"point": 0}), "weights must hold one above 0"),
    (lambda: preset("modern", weights={"pint": 1}), r"weights\['pint'\] = 'pint' must be 'crossover', "),
    (lambda: preset("modern", form="ranks"), "form = 'ranks' must be 'raw', 'naive', 'oos' or 'rank'"),
    (lambda: preset("modern", max_size=200), "max_size = 200 must be"),
    (lambda: Alphabet(without=("pwo",)), "no symbol 'pwo' to leave out .did you mean 'pow'"),
    (lambda: Alphabet(without=("W", "G", "X")), "an alphabet needs a terminal"),
    (lambda: Alphabet(without=("add", "sub", "mul", "div"), binary=0.5), "operations of each kind"),
    (lambda: Alphabet(binary=7), "binary = 7 must be None, or a share"),
])
def test_bad_requests_are_refused_at_once(asked, sentence):
    with pytest.raises(pk.UsageError, match=sentence):
        asked()


# -- the loop ------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", ["paper", "lpzero", "modern"])
def test_breeding_finds_what_random_trees_do_not(name):
    def best(preset):
        return [run(distance, preset, 300, seed=seed)[-1].best.fitness for seed in range(4)]
    assert statistics.mean(best(name)) < statistics.mean(best("random"))


def test_the_same_seed_gives_the_same_search_and_another_seed_another():
    first, again, other = (run(Racing(), "modern", 150, seed=seed) for seed in (1, 1, 2))
    keep = ("generation", "evaluated", "best", "tree", "median")
    rows = [[{key: g.row()[key] for key in keep} for g in found] for found in (first, again, other)]
    assert rows[0] == rows[1] != rows[2]


def test_the_order_in_which_weights_are_given_changes_no_draw():
    """A journal does not know it, so a search that is resumed must not depend on it either."""
    turned = dict(reversed(preset("modern").weights.items()))
    one, other = (run(distance, "modern", 60, 0, **changes)[-1] for changes in ({}, {"weights": turned}))
    assert [str(each.tree) for each in one.population] == [str(each.tree) for each in other.population]


def test_the_paper_counts_candidates_and_modern_distinct_evaluations():
    paper, modern = run(distance, "paper", 120)[-1], run(distance, "modern", 120)[-1]
    assert paper.evaluated + paper.saved["masks"] == 120 and paper.evaluated < 120
    assert modern.evaluated == 120


def test_no_two_candidates_of_modern_are_provably_the_same_metric():
    search = _settled("modern", 200)
    keys = [rank_key(one.tree) for one in search.candidates.values()]
    assert len(set(keys)) == len(keys)
    assert [key[1] for key in keys] == [tuple(one.tree) for one in search.candidates.values()]
    assert max(one.tree.size for one in search.candidates.values()) <= 15


def test_paper_keeps_the_best_fifty_and_simplifies_every_offspring():
    search = _settled("paper", 200)
    best = sorted(search.candidates.values(), key=lambda one: one.order)[:50]
    assert {one.index for one in search.population} <= {one.index for one in search.candidates.values()}
    assert max(one.fitness for one in search.population) <= best[-1].fitness + 1e-12
    assert all(one.tree == pk.simplify(one.raw) for one in search.candidates.values())


def _settled(name, budget, evaluator=distance, **changes):
    with tempfile.TemporaryDirectory() as folder:
        run(evaluator, name, budget, journal=Path(folder) / "j.jsonl", **changes)
        return pk.replay(Path(folder) / "j.jsonl")


def test_a_generation_is_the_first_population_and_then_every_lag_candidates():
    """While one is settled, two more are under way."""
    found = run(distance, "modern", 20, population=4, lag=3)
    assert [(g.evaluated, g.proposed) for g in found] == [(n, n + 2) for n in (4, 7, 10, 13, 16, 19, 20)]


@pytest.mark.parametrize("lag", [1, 3, 8])
def test_parents_are_older_by_the_lag_or_more(lag):
    search = _settled("modern", 200, lag=lag)
    lags = [one.index - parent for one in search.candidates.values() for parent in one.parents]
    assert min(lags) == lag


def test_a_loss_that_is_not_finite_is_a_rejection():
    last = run(lambda tree: math.nan if "G" in tree else distance(tree), "modern", 60)[-1]
    assert last.saved["rejected"] > 0 and all("G" not in one.tree for one in last.population)


@pytest.mark.parametrize("loss", [None, "low", {}])
def test_a_loss_that_is_no_number_is_named(loss):
    with pytest.raises(pk.UsageError, match=f"the evaluator returned {loss!r} for .*: a loss is a number"):
        run(lambda tree: loss, "modern", 5)


@pytest.mark.parametrize("losses", [(), (1e300,), (0.5, math.nan), (math.inf, -math.inf)])
def test_evaluators_of_ones_own(losses):
    class Own:
        group, identity = "row", {}

        def __call__(self, tree, race, seen, raw):
            return None if "exp" in tree else Outcome((0.5,)) if "G" in tree else Outcome(losses)

    with pytest.raises(pk.UsageError, match="the evaluator returned None where an Outcome was asked for"):
        run(Own(), "modern", 200)
    found = run(Own(), "modern", 20, alphabet=Alphabet(without=("exp",)))[-1]
    assert found.saved["rejected"] and all("G" in one.tree for one in found.population)


@pytest.mark.parametrize("field, value", [("depths", (7,)), ("max_size", 127), ("max_depth", 32)])
def test_a_preset_at_its_bounds_never_breeds_what_is_no_tree(field, value):
    wide = {"max_size": 127, "max_depth": 32, "form": "raw", "population": 8}
    loss = (lambda tree: -tree.depth) if field == "max_depth" else lambda tree: -len(tree)
    assert run(loss, "modern", 150, **wide | {field: value})


def test_an_exhausted_space_is_said():
    with pytest.raises(pk.UsageError, match="no new tree was found .* the space is used up"):
        run(distance, "modern", 400, alphabet=only("add", "mul", "W", "G"), max_size=3)


def test_a_search_that_stalls_also_walks_through_the_smallest_metrics():
    """A loss that only one metric of five symbols lowers, which nothing leads to."""
    wanted = Tree(rank_key(Tree.parse("add(tanh(W), exp(G))"))[1])
    hidden = lambda tree: 0.0 if tree == wanted else 1.0
    assert wanted.size == 5
    *_, last = run(hidden, "modern", 3000, patience=20)
    assert last.best.fitness == 0 and last.best.operator == "smallest" and last.best.parents == ()
    found = Search(preset("modern", patience=20), seed=0)
    for index in range(120):
        found.apply(found.propose())
        found.apply({"event": "evaluate", "i": index, "fitness": 1.0, "complete": True, "stopped": 0,
                     "audit": False, "masks": "", "losses": journals.pack([1.0]), "by_task": {}})
    walked = [one for one in found.candidates.values() if one.operator == "smallest"]
    assert [one.index for one in walked] == list(range(walked[0].index, 120, 2)) and 20 < walked[0].index < 30
    sizes = [one.tree.size for one in walked]
    assert sizes == sorted(sizes) and all(Tree(rank_key(one.tree)[1]) == one.tree for one in walked)
    assert len({one.tree for one in found.candidates.values()}) == 120


def test_patience_changes_nothing_before_it_ends():
    without, later = (run(distance, "modern", 150, patience=patience)[-1] for patience in (0, 250))
    assert [one.tree for one in without.population] == [one.tree for one in later.population]


def test_given_trees_come_first_and_as_they_are_written():
    """Trees or text, also of an iterator; a form that was given in other words is measured once."""
    wanda, squared = Tree.parse("mul(W, sqrt(X))"), "mul(sqr(W), X)"
    found = run(distance, "modern", 3, seeds=iter([squared, Tree.parse("W"), wanda]))[-1].population
    assert [str(one.tree) for one in found[:2]] == [squared, "W"] and pk.canonical(found[0].tree) == wanda
    search = Search(preset("modern", start=0), seed=0, seeds=iter([wanda, squared]))
    for fitness in (1.0, 2.0):
        event = search.propose()
        search.apply(event)
        same = search.known(Tree.parse(event["tree"]))
        search.apply({"event": "evaluate", "i": event["i"], "fitness": fitness, "complete": True,
                      "stopped": 0, "audit": False, "masks": "", "losses": journals.pack([fitness]),
                      "by_task": {}, "same": same})
    assert same == 0 and event["tree"] == squared and len(search.candidates) == 2
    places = Sloped.places
    given = [iter([places.uniform]), [places.uniform]]
    one, two = (Search(preset("modern", evolve="both"), 0, places=places, budgets=each) for each in given)
    assert one.first == two.first


# -- what decides a search -----------------------------------------------------------------------------------

WHERE_NOT_WHAT = {"prunekit", "errors", "files", "parallel", "progress", "search.journal", "search.workers"}
NAMED_BY_THE_IDENTITY = {"choices", "data", "hub", "models", "evaluate.intervals"}  # targets, windows, model


@pytest.mark.parametrize("module, apart", [
    ("engine", WHERE_NOT_WHAT | {"choices"}), ("evaluator", WHERE_NOT_WHAT | NAMED_BY_THE_IDENTITY)])
def test_every_source_that_decides_a_result_is_in_the_journals_header(module, apart):
    code = f"import sys, prunekit.search.{module}; print(*(name for name in sys.modules if name[0] != '_'))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    names = shown.stdout.split()
    package = Path(pk.__file__).parent
    deciding = {file for pattern in DECIDING for file in package.glob(pattern)}
    assert all(list(package.glob(pattern)) for pattern in DECIDING)
    ours = {name.removeprefix("prunekit.") for name in names if name.split(".")[0] == "prunekit"} - apart
    files = {package / f"{name.replace('.', '/')}.py" for name in ours if not name.startswith("embedded")}
    assert not {file for file in files if file.is_file()} - deciding
    assert module == "evaluator" or not {"torch", "transformers", "numpy", "pandas"} & set(names)


# -- racing --------------------------------------------------------------------------------------------------

def test_behind_is_a_one_sided_paired_test():
    reference = [float(i % 7) for i in range(30)]
    noise = random.Random(0)
    worse = [value + 0.5 + noise.gauss(0, 0.1) for value in reference]
    better = [value - 0.5 + noise.gauss(0, 0.1) for value in reference]
    race = Race(tuple(reference))
    assert behind(worse, race) and not behind(better, race) and not behind(worse[:1], race)
    differences = [a - b for a, b in zip(worse, reference)]
    shifted = [d - statistics.mean(differences) + 0.06 for d in differences]  # p about 0.001, as at the bound
    close = [b + d for b, d in zip(reference, shifted)]
    bound = stats.norm.isf(stats.ttest_1samp(shifted, 0, alternative="greater").pvalue)  # as a t-test has it
    assert 2.5 < bound < 4
    assert behind(close, Race(tuple(reference), bound=bound * 0.98))
    assert not behind(close, Race(tuple(reference), bound=bound * 1.02))


def test_stopped_candidates_are_estimated_and_audited_ones_measured_to_the_end():
    search = _settled("modern", 600, Racing())
    own = [one for one in search.candidates.values() if one.same is None]
    stopped = [one for one in own if not one.complete]
    audited = [one for one in own if one.audited]
    assert len(stopped) > 50 and all(len(one.losses) < 40 for one in stopped)
    assert audited and all(one.complete and len(one.losses) == 40 for one in audited)
    assert 0.01 < len(audited) / len(own) < 0.12
    errors = [one.fitness - distance(one.tree) for one in stopped]
    assert abs(statistics.mean(errors)) < 0.02  # the estimate is unbiased: noise has standard deviation 0.02
    top = sorted((one for one in own if one.complete), key=lambda one: one.order)[:10]
    worst = max(distance(one.tree) for one in top)  # what is known here: the losses without their noise
    assert sum(distance(one.tree) < worst for one in own if one.stopped) <= 0.01 * len(own)


@pytest.mark.parametrize("losses, complete, race, fitness", [
    ([3, 3], False, Race((2, 2, 8, 8)), 6),  # 1 behind a reference that has 5 in the mean
    ([3, 3, 9, 9], True, Race((2, 2, 8, 8), audit=True), 6), ([3, 4], True, None, 3.5)])
def test_the_estimate_of_a_stopped_candidate_by_hand(losses, complete, race, fitness):
    assert _fitness(losses, complete, race) == fitness


def test_equal_masks_share_their_losses():
    search = _settled("modern", 200, Racing())
    same = [one for one in search.candidates.values() if one.same is not None]
    shared = [(one, search.candidates[one.same]) for one in same]
    assert len(shared) == search.saved["masks"] > 0
    for one, source in shared:
        assert set(one.tree) == set(source.tree) and one.tree != source.tree and source.same is None
        assert (one.fitness, one.losses, one.complete) == (source.fitness, source.losses, source.complete)


def test_the_pareto_front_has_no_dominated_member():
    search = _settled("modern", 200, Racing())
    complete = [one for one in search.candidates.values() if one.complete]
    places = {(one.fitness, one.tree.size) for one in complete}
    wanted = {(loss, size) for loss, size in places if not any(
        (other, small) != (loss, size) and other <= loss and small <= size for other, small in places)}
    for front in (pareto(complete), search.front):
        assert [(one.fitness, one.tree.size) for one in front] == sorted(wanted)


# -- operators and the start of preset modern ----------------------------------------------------------------

def test_modern_begins_with_given_trees_and_then_with_the_monomials_that_read_w():
    search = Search(preset("modern"), seed=0, seeds=[Tree.parse("G")])
    proposals = []
    for _ in range(8):
        proposals.append(search.propose())
        search.apply(proposals[-1])
    assert [event["operator"] for event in proposals] == ["given"] + ["monomial"] * 6 + ["random"]
    wanted = ["W", "mul(sqr(W), G)", "mul(sqr(W), X)", "mul(W, sqr(G))", "mul(W, mul(G, X))",
              "mul(W, sqr(X))"]
    came = [event["tree"] for event in proposals[1:7]]
    assert {rank_key(Tree.parse(text)) for text in came} == {rank_key(Tree.parse(text)) for text in wanted}
    assert not any(tree == pk.canonical(pk.METHODS["pruner-zero"].tree) for tree, *_ in search.first)
    without = Search(preset("modern", alphabet=Alphabet(without=("G",))), seed=0).first
    assert len(without) == 3 and not any("G" in tree for tree, *_ in without)


def test_power_and_factor_step_one_exponent():
    import torch

    rng, base, W = random.Random(0), Tree.parse("mul(W, sqrt(G))"), torch.rand(4, 5) + 0.5
    G, X = torch.rand(4, 5) + 0.5, torch.rand(1, 5) + 0.5
    reached = set()
    for _ in range(300):
        operator = rng.choice((power, factor))
        child = operator(rng, Alphabet(), base)
        columns = [W.log(), G.log(), X.log().expand(4, 5), torch.ones(4, 5)]
        logs = torch.stack(columns, dim=-1).reshape(20, 4).double()
        score = child.score(W, G, X, check=False).expand(4, 5).log().reshape(20).double()
        exponents = torch.linalg.lstsq(logs, score[:, None]).solution[:3, 0]
        torch.testing.assert_close(logs[:, :3] @ exponents, score, rtol=1e-4, atol=1e-4)  # still a monomial
        reached.add(tuple((4 * exponents).round().int().tolist()))
    # in quarters; the base is (4, 2, 0)
    assert {(5, 2, 0), (4, 3, 0), (4, 2, 1), (8, 2, 0), (4, 4, 0), (8, 4, 0)} <= reached


def test_a_search_in_which_nothing_is_valid_ends():
    with pytest.raises(pk.UsageError, match="all of the first 1000 candidates were refused"):
        list(pk.evolve(lambda tree: math.nan, "paper", budget=3, progress=False))


def test_a_grid_has_the_exponents_that_its_keys_say():
    assert len(grid(15)) == 136 and str(grid(15)[15, 0, 0]).count("W") == 4  # 8 + 4 + 2 + 1 quarters
    for steps in (0, 16, 20):
        with pytest.raises(pk.UsageError, match="1 to 15"):
            grid(steps)
