import json
import pickle
import random
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import stats
from transformers import LlamaConfig, LlamaForCausalLM

import prunekit as pk
from prunekit.analysis.census import census, distinct
from prunekit.choices import Target
from prunekit.metric.catalogue import Method
from prunekit.search import bench as benches
from prunekit.search import journal as journals
from prunekit.search.bench import fast_dtype, without_gradients
from prunekit.search.budgets import random_budget
from prunekit.search.random_trees import monomial
from prunekit.search.records import Race
from tests.pruning.families import FAMILIES, windows

WANDA = pk.Tree.parse("mul(W, sqrt(X))")
TREES = [pk.Tree.parse(text) for text in ("W", "mul(W, sqrt(X))", "mul(abs(mul(W, W)), mms(G))", "mul(W, G)",
                                          "X")]
SCALED = pk.Tree.parse("mul(W, add(10, X))")  # its masks depend on the scale of X


@pytest.fixture(scope="module")
def parts():
    model, tokenizer = pk.load_model("embedded/llama", dtype="float32")
    windows = {role: pk.token_windows("embedded", tokenizer, role=role, n=n, seqlen=32)
               for role, n in (("calibration", 8), ("gradient", 4), ("search", 24), ("select", 8))}
    return model, windows, pk.collect_gradients(model, windows["gradient"], progress=False)


def make(parts, tasks=("0.7", "2:4"), **kwargs):
    _, windows, gradients = parts
    bench = pk.Bench("embedded/llama", windows["calibration"], windows["search"], gradients=gradients,
                     dtype="float32")
    return pk.Evaluator(bench, tasks, rungs=(8, 16), **kwargs)


@pytest.fixture(scope="module")
def evaluator(parts):
    return make(parts)


@pytest.mark.parametrize("tree, update", [*product(TREES[1:3], (None, "obs", "obs-iter", "admm")),
                                          (SCALED, None)], ids=str)
def test_fitness_is_that_of_pruning_and_measuring(parts, tree, update):
    model, windows, gradients = parts
    evaluator = make(parts, update=update)
    order = evaluator.benches[0].search
    dense = pk.perplexity(model, order, 32, progress=False).nll
    wanted = []
    for setting in ({"sparsity": 0.7}, {"sparsity": 0.5, "pattern": "2:4"}):
        setting |= {"method": tree, "one_shot": True, "update": update}
        with without_gradients(threads=1):  # as the evaluator: the solver's masks turn on the last bits of H
            [one] = pk.prune_and_measure(model, windows["calibration"], order, [setting], gradients=gradients,
                                         progress=False)
        wanted.append(one.perplexity.nll - dense)
    outcome = evaluator(tree)
    assert outcome.complete and np.allclose(outcome.losses, np.mean(wanted, axis=0), atol=2e-3)
    assert np.allclose(evaluator.losses(tree)[0], wanted, atol=2e-3)
    assert bool(outcome.masks) == (update is None)
    assert list(outcome.by_task) == ["0.7", "2:4"] and list(outcome.by_task.values()) == pytest.approx(
        evaluator.losses(tree)[0].mean(1), abs=1e-6)


@pytest.mark.parametrize("update", [None, "obs", "obs-iter"])
@pytest.mark.parametrize("tree", ["mul(W, sqrt(X))", "mul(W, G)"])
def test_a_mixture_is_searched_as_it_is_pruned(tree, update):
    """Three tokens reach few of the experts; of the others magnitude decides, here as there."""
    model, tree = FAMILIES["Qwen3-MoE"].model(num_experts_per_tok=1), pk.Tree.parse(tree)
    gradients = pk.collect_gradients(model, windows(1, 3), progress=False)
    evaluator = pk.Evaluator(pk.Bench(model, windows(1, 3), windows(6, 12), gradients=gradients), ["0.5"],
                             update=update)
    bench, setting = evaluator.benches[0], {"method": tree, "sparsity": 0.5, "one_shot": True,
                                            "update": update}
    with without_gradients(threads=1):
        [pruned] = pk.prune_and_measure(model, windows(1, 3), bench.search, [setting], gradients=gradients,
                                        progress=False)
    assert {True, False} <= set(pruned.report.to_frame()["unseen"].dropna())
    assert np.allclose(evaluator.losses(tree), pruned.perplexity.nll - bench.nll, atol=1e-5)
    assert not evaluator(tree).defect and not bench.known(bench.smallest).unseen("GX")


@pytest.mark.parametrize("family", ["LLaMA", "Mixtral"])
def test_small_layers_ranked_as_one_matrix_are_ranked_as_each(family, monkeypatch):
    """As on a GPU: the same masks, also of experts without a token, and defects; no group above its size."""
    model, targets = FAMILIES[family].model(), [Target.parse(text) for text in ("0.6", "2:4")]
    gradients = pk.collect_gradients(model, windows(3, 3), progress=False)
    evaluator = pk.Evaluator(pk.Bench(model, windows(1, 3), windows(6, 12), gradients=gradients), ["0.5"])
    bench = evaluator.benches[0]
    method = Method("", pk.Tree.parse("mul(W, sqrt(mul(X, mms(G))))"))
    alone = bench.decide_all(method, targets)
    monkeypatch.setattr(benches, "_ONE_BY_ONE", ())
    for most in (1, 3 * bench.dense[0].numel(), 2**24):
        monkeypatch.setattr(benches, "_STACKED", most)
        bench.__dict__.pop("stacks", None)
        sizes = [sum(bench.dense[i].numel() for i in stack) for stack in bench.stacks]
        assert sorted(i for stack in bench.stacks for i in stack) == list(range(len(bench.layers)))
        assert all(size <= most or len(stack) == 1 for size, stack in zip(sizes, bench.stacks, strict=True))
        together = bench.decide_all(method, targets)
        assert all(torch.equal(mine.keep, other.keep) for found, expected in zip(together, alone, strict=True)
                   for mine, other in zip(found, expected, strict=True))
    assert len(bench.stacks) < len(bench.layers) / 2
    broken = Method("", pk.Tree.parse("div(W, sub(G, G))"))
    said = []
    for kinds in (("cpu",), ()):
        monkeypatch.setattr(benches, "_ONE_BY_ONE", kinds)
        with pytest.raises(pk.UsageError, match="not finite in layer ") as refused:
            bench.decide_all(broken, targets)
        said.append(str(refused.value))
    assert len(set(said)) == 1


@pytest.mark.parametrize("target", [0.6, "2:4"])
@pytest.mark.parametrize("update", [None, "admm"])
def test_a_budgets_fitness_is_that_of_pruning_by_it_and_the_uniform_one_is_none(update, target):
    model = FAMILIES["LLaMA"].model()
    evaluator = pk.Evaluator(pk.Bench(model, windows(4, 16), windows(6, 12)), [target], update=update)
    uniform, rng = evaluator.places.uniform, random.Random(1)
    unequal = uniform
    while unequal == uniform:
        unequal = random_budget(rng, evaluator.places)
    assert np.array_equal(evaluator.losses(WANDA, uniform), evaluator.losses(WANDA))
    assert evaluator(WANDA, budget=uniform) == evaluator(WANDA)
    bench = evaluator.benches[0]
    for budget in (unequal, uniform):
        setting = {"method": WANDA, "sparsity": budget, "one_shot": True, "update": update}
        with without_gradients(threads=1):
            [one] = pk.prune_and_measure(model, windows(4, 16), bench.search, [setting], progress=False)
        assert np.allclose(evaluator.losses(WANDA, budget)[0, 0], one.perplexity.nll - bench.nll, atol=1e-5)
        frame = one.report.to_frame().set_index("layer")
        assert all(frame.loc[name, "target"] == Target.of(share).sparsity for name, share in budget.items())
        assert one.report.to_frame()["masked"].sum() == whole_zeros(evaluator.places)
    again = evaluator.losses(WANDA, unequal)
    assert not np.array_equal(again, evaluator.losses(WANDA))
    assert np.array_equal(evaluator.losses(WANDA, unequal), again)  # remembered


def whole_zeros(places):
    return sum(place.rows * int(place.inputs * places.target.sparsity) for place in places.places)


def test_budgets_are_evolved_for_one_model_and_target(parts, evaluator):
    with pytest.raises(pk.UsageError, match="for one model and one target, and here are 1 and 2"):
        next(pk.evolve(evaluator, evolve="budget", progress=False))
    with pytest.raises(pk.UsageError, match="names no places that a budget could be moved between"):
        next(pk.evolve(lambda tree: 0.0, evolve="both", progress=False))
    with pytest.raises(pk.UsageError, match="give budgets where it evolves budgets"):
        next(pk.evolve(lambda tree: 0.0, budgets=[None], progress=False))


def test_a_search_for_budgets_lowers_the_loss(parts):
    """And its OWL is the one that `prune` takes."""
    model, windows, _ = parts
    evaluator = make(parts, ["0.7"])
    owl = pk.owl_budget(model, windows["calibration"], 0.7, progress=False)
    given = evaluator.budget(owl)
    assert all(abs(given[place.name] - owl[place.block]) < 1 / place.inputs for place in given.places.places)
    *_, last = pk.evolve(evaluator, budget=16, evolve="budget", budgets=[given], population=8, progress=False)
    assert last.best.fitness < evaluator(WANDA).by_task["0.7"] and last.best.tree == pk.canonical(WANDA)
    best = pk.choose(evaluator, pk.finalists(last.population), [windows["select"]]).iloc[0]
    assert evaluator.budget(json.loads(best["budget"])) in [each.budget for each in last.population]


def test_on_other_windows_and_tasks(parts, evaluator):
    model, windows, gradients = parts
    before = evaluator.losses(WANDA)
    moved = evaluator.on([windows["select"]], targets=[0.5])
    anew = pk.Evaluator(pk.Bench(model, windows["calibration"], windows["select"], gradients=gradients),
                        [0.5])
    assert moved.parts == ["0.5"] and moved.rungs[-1] == len(windows["select"])
    # ours in another order
    assert moved.losses(WANDA)[0, 0].mean() == pytest.approx(anew.losses(WANDA)[0, 0].mean(), abs=1e-6)
    assert np.array_equal(evaluator.losses(WANDA), before) and evaluator.parts == ["0.7", "2:4"]


def test_finalists_are_chosen_by_windows_that_no_search_saw(parts, evaluator):
    """Against the order in which the search is said to have had them."""
    model, windows, gradients = parts
    anew = pk.Evaluator(pk.Bench(model, windows["calibration"], windows["select"], gradients=gradients),
                        ("0.7", "2:4"))
    wanted = sorted((anew.losses(tree).mean(), anew.losses(tree)[0].mean(1), tree) for tree in TREES[:4])
    finalists = [SimpleNamespace(index=place, tree=tree, budget=None, fitness=-float(place))
                 for place, (*_, tree) in enumerate(wanted)]
    chosen = pk.choose(evaluator, finalists[1:] + finalists[:1], [windows["select"]])
    assert chosen["i"].tolist() == [0, 1, 2, 3] and chosen["search"].tolist() == [0, -1, -2, -3]
    losses = chosen[["select", "select[0.7]", "select[2:4]"]].to_numpy()
    np.testing.assert_allclose(losses, [(mean, *parts) for mean, parts, _ in wanted], atol=1e-6)
    assert chosen["optimism"].tolist() == (chosen["select"] - chosen["search"]).tolist()


def test_the_model_is_the_dense_one_after_any_number_of_evaluations(parts, evaluator):
    model, windows, _ = parts
    for tree in TREES:
        evaluator(tree), evaluator.on([windows["select"]]).losses(tree)
    theirs = dict(evaluator.benches[0].model.named_parameters())
    assert all(torch.equal(parameter, theirs[name]) for name, parameter in model.named_parameters())


@pytest.mark.parametrize("text, why", [
    ("neg(W)", "inverted"), ("sub(W, W)", "constant"), ("mms(sub(G, G))", "not finite"), ("W", ""),
    ("mul(10, W)", ""), ("sqr(exp(exp(exp(exp(exp(W))))))", "not finite"), ("exp(sqr(sqr(sqr(W))))", "tied"),
])
def test_what_is_no_metric(evaluator, text, why):
    assert evaluator(pk.Tree.parse(text)).defect == why


def test_a_form_is_refused_when_the_tree_it_came_from_is_invalid(evaluator):
    raw = pk.Tree.parse("add(W, div(X, sub(X, X)))")
    assert evaluator(pk.Tree.parse("W"), raw=raw).defect == "not finite"


def test_a_form_is_refused_where_any_layer_refuses_the_tree_it_came_from(evaluator):
    bench, form = evaluator.benches[0], pk.Tree.parse("mul(W, X)")
    largest = [bench.scores(form, i).max().item() for i in range(len(bench.layers))]
    scaled = form
    while max(largest) < 17:  # 16^32 is beyond float32
        scaled, largest = pk.Tree.parse(f"mul(2, {scaled})"), [2 * value for value in largest]
    assert largest[bench.smallest] < 15
    raw = pk.Tree.parse(f"sqr(sqr(sqr(sqr(sqr({scaled})))))")
    assert evaluator(form, raw=pk.Tree.parse(f"sqr(sqr({scaled}))")).defect == ""
    assert evaluator(form, raw=raw).defect.startswith("not finite in layer model.layers.")


def test_of_two_reasons_the_bred_trees_is_the_one_that_is_written(evaluator, monkeypatch):
    """Whatever the hash seed: the journal must not depend on it."""
    monkeypatch.setattr(evaluator, "_probe", str)
    for tree, raw in (("W", "X"), ("X", "W")):
        assert evaluator(pk.Tree.parse(tree), raw=pk.Tree.parse(raw)).defect == raw


def test_the_race_stops_the_hopeless_only(evaluator):
    good = evaluator(TREES[2])
    race = Race(tuple(good.losses))
    bad = evaluator(pk.Tree.parse("X"), race)
    assert not bad.complete and bad.stopped == len(bad.losses) == 8
    assert list(bad.by_task.values()) == pytest.approx(evaluator.losses(pk.Tree.parse("X"))[0, :, :8].mean(1),
                                                       abs=1e-6)
    assert evaluator(TREES[2], race).complete
    audited = evaluator(pk.Tree.parse("X"), race._replace(audit=True))
    assert audited.complete and audited.stopped == 8 and np.allclose(audited.losses[:8], bad.losses)


@pytest.mark.parametrize("update, options", [("obs-iter", {"obs": pk.ObsOptions(block_size=16)}),
                                             ("admm", {"admm": pk.AdmmOptions(6, 4)})])
def test_the_options_of_an_update_are_saved_and_named(parts, tmp_path, update, options):
    own = make(parts, update=update, **options)
    again = pk.Evaluator.load(own.save(tmp_path / "evaluator.safetensors"))
    assert again.identity == own.identity == json.loads(json.dumps(own.identity))
    assert [again.options] == [own.options] == list(options.values())
    assert (again.losses(WANDA) == own.losses(WANDA)).all()


def test_activations_are_no_gradients():
    model, ids = FAMILIES["LLaMA"].model(), windows(2, 12)
    with pytest.raises(pk.UsageError, match=r"activation of layer .* has shape \(32,\) where the"):
        pk.Bench(model, ids, ids, gradients=pk.collect_activations(model, ids, progress=False))


def test_all_that_decides_a_loss_is_in_the_identity():
    """Of windows, gradients and weights the numbers, also where all shapes are the same."""
    family, ids = FAMILIES["LLaMA"], windows(4, 16)
    model, other = family.model(), family.model()
    other.model.layers[-1].mlp.down_proj.weight.data[0, 0] += 1  # which no X depends on
    G = pk.collect_gradients(model, ids, progress=False)
    given = {"model": model, "calibration": ids, "search": windows(6, 12), "gradients": G}
    twice = pk.Gradients({**G, max(G): 2 * G[max(G)]})
    benches = [{}, {"model": other}, {"calibration": windows(4, 16, seed=1)},
               {"search": windows(6, 12, seed=1)}, {"gradients": twice}, {"gradients": None}]
    how = [{"targets": ["2:4"]}, {"update": "obs"}, {"update": "obs", "obs": pk.ObsOptions(block_size=16)},
           {"rungs": (3,)}, {"threads": 2}, {"seed": 1}]
    found = [pk.Evaluator(pk.Bench(**given | changes), **options).identity
             for changes, options in (*product(benches, [{}]), *product([{}], how))]
    assert len({json.dumps(identity) for identity in found}) == len(benches) + len(how)
    assert pk.Evaluator(pk.Bench(**given)).identity == found[0]


def test_search_windows_come_in_a_random_order_of_the_seed():
    """Text comes in pieces, and a race looks at the first windows alone."""
    model, ids = FAMILIES["LLaMA"].model(), windows(24, 12)
    orders = []
    for seed in (0, 0, 1):
        [bench] = pk.Evaluator(pk.Bench(model, windows(1, 12), ids), rungs=(), seed=seed).benches
        assert torch.equal(bench.given, ids) and sorted(bench.search.tolist()) == sorted(ids.tolist())
        orders.append(bench.search.tolist())
    assert orders[0] == orders[1] != orders[2] and ids.tolist() not in orders


def test_evaluations_of_several_threads_take_turns(parts):
    model, windows, gradients = parts
    bench = pk.Bench(model, windows["calibration"], windows["search"][:8], gradients=gradients)
    evaluator = pk.Evaluator(bench, [0.5], rungs=())
    serial = [evaluator(tree).losses for tree in TREES[:4]]
    with ThreadPoolExecutor(4) as pool:
        assert [each.losses for each in pool.map(evaluator, TREES[:4] * 4)] == serial * 4
        found = pool.map(evaluator.losses, TREES[:4] * 2)
        assert all(np.allclose(each[0, 0], losses) for each, losses in zip(found, serial * 2, strict=True))


def test_magnitude_does_not_tie_where_wide_weights_are_stored_in_16_bits():
    """Of 2048 inputs, bfloat16 tells fewer than half apart."""
    config = LlamaConfig(hidden_size=2048, intermediate_size=2048, num_hidden_layers=1, num_attention_heads=8,
                         vocab_size=64)
    model, windows = LlamaForCausalLM(config).bfloat16(), torch.arange(16).view(2, 8)
    assert not pk.Evaluator(pk.Bench(model, windows, windows), [0.5])(TREES[0]).defect


def test_masks_seen_before_are_not_measured_again(evaluator):
    first = evaluator(WANDA)
    same = evaluator(pk.Tree.parse("mul(sqr(W), X)"), seen={first.masks: 7})
    assert same.same == 7 and not same.losses
    assert evaluator(TREES[0], seen={first.masks: 7}).same is None


def test_saved_evaluators_measure_the_same_here_and_in_other_processes(parts, evaluator, tmp_path):
    path = evaluator.save(tmp_path / "evaluator.safetensors")
    again = pk.Evaluator.load(path)
    assert again.identity == evaluator.identity and [again(t) for t in TREES] == [evaluator(t) for t in TREES]
    with pk.open_executor("processes", workers=2) as pool:
        for name, executor in (("serial", None), ("two", pool)):
            list(pk.evolve(evaluator, "modern", 12, population=6, lag=3, journal=tmp_path / f"{name}.jsonl",
                           executor=executor, progress=False))
    one, two = ([journals.stable(event) for event in journals.read(tmp_path / f"{name}.jsonl")]
                for name in ("serial", "two"))
    assert one == two


def test_a_worker_takes_no_other_evaluator_for_its_own(parts, tmp_path):
    """Sent is where it was saved; another may lie there by the time that a worker looks."""
    path = make(parts).save(tmp_path / "evaluator.safetensors")
    mine = pk.Evaluator.load(path)
    sent = pickle.dumps(mine)
    make(parts).save(path)  # the same again
    assert pickle.loads(sent)(WANDA) == mine(WANDA)
    make(parts, ["0.8"]).save(path)
    with pytest.raises(pk.UsageError, match="another evaluator was saved as .* since"):
        pickle.loads(sent)
    assert str(pk.Evaluator.load(path).targets[0]) == "0.8"


def test_several_models_and_updates_in_one_file(parts, tmp_path):
    _, windows, _ = parts
    benches = [pk.Bench("embedded/llama", windows["calibration"][:n], windows["search"][:6], dtype="float32")
               for n in (4, 8)]
    joint = pk.Evaluator(benches, [0.6], update="obs-iter", rungs=(2,))
    again = pk.Evaluator.load(joint.save(tmp_path / "joint.safetensors"))
    for bench, read in zip(joint.benches, again.benches, strict=True):  # in both orders
        assert torch.equal(read.search, bench.search) and torch.equal(read.given, windows["search"][:6])
    assert joint.losses(WANDA).shape == (2, 1, 6) and np.array_equal(joint.losses(WANDA), again.losses(WANDA))
    assert np.allclose(joint(WANDA).losses, joint.losses(WANDA).mean((0, 1)),
                       atol=1e-6) and joint.group == "solver"
    assert joint(WANDA).by_task == pytest.approx({f"embedded/llama #{n + 1} 0.6": loss for n, loss in
                                                  enumerate(joint.losses(WANDA).mean((1, 2)))}, abs=1e-6)


@pytest.mark.parametrize("change, sentence", [
    ({"targets": []}, "at least one model and one target"),
    ({"targets": [1.5]}, "target 1.5 is none"),
    ({"targets": ["0.6", "2:4", "0.60"]}, "targets 0.6 2:4 0.6 name one twice"),
    ({"targets": ["4:2"]}, "pattern '4:2' is not known"), ({"targets": ["half"]}, "target 'half' is none"),
    ({"update": "sparsegpt"}, "weight update 'sparsegpt' is not known"), ({"rungs": (8, 4)}, "must grow"),
    ({"rungs": (4.0,)}, r"rungs\[0\] = 4.0 must be a whole"), ({"rungs": (0, 4)}, "= 0 must be at least"),
    ({"threads": 0}, "threads = 0 must be at least 1"), ({"threads": 1.5}, "threads = 1.5 must be a whole"),
    ({"seed": "a"}, "seed = 'a' must be a whole number"), ({"seed": -1}, "seed = -1 must be at least 0"),
])
def test_bad_evaluators(parts, change, sentence):
    _, windows, _ = parts
    bench = pk.Bench(parts[0], windows["calibration"], windows["search"])
    with pytest.raises(pk.UsageError, match=sentence):
        pk.Evaluator(bench, **{"targets": [0.5], **change})


@pytest.mark.parametrize("task", ["0.7", "2:4", "1:3", str(2 / 3)])
def test_a_task_is_what_its_name_says(task):
    assert str(Target.parse(task)) == task


def test_files_that_are_no_evaluator(tmp_path):
    (tmp_path / "text").write_text("hello")
    with pytest.raises(pk.UsageError, match="holds no evaluator"):
        pk.Evaluator.load(tmp_path / "text")
    with pytest.raises(pk.UsageError, match="there is no saved evaluator"):
        pk.Evaluator.load(tmp_path / "none")


def test_a_model_given_as_an_object_stays_here(parts, tmp_path):
    evaluator = pk.Evaluator(pk.Bench(parts[0], parts[1]["calibration"], parts[1]["search"]))
    with pytest.raises(pk.UsageError, match="give the model's name"):
        evaluator.save(tmp_path / "x.safetensors")
    with pytest.raises(pk.UsageError, match="save it first"):
        evaluator.__reduce__()


# -- rivals --------------------------------------------------------------------------------------------------

def test_the_grid_is_91_different_metrics_and_holds_the_known_ones():
    grid = pk.grid()
    keys = {pk.rank_key(tree) for tree in grid.values()}
    assert len(grid) == len(keys) == 91
    for name in ("magnitude", "wanda", "grad-weight", "w2g"):
        assert pk.rank_key(pk.METHODS[name].tree) in keys


def test_what_is_given_is_measured_as_it_is_written(parts):
    """As forms, with whole powers, 8 of the grid's points would leave float32."""
    model, windows, gradients = parts
    bench = pk.Bench(model, windows["calibration"][:2], windows["search"][:1], gradients=gradients)
    evaluator, grid = pk.Evaluator(bench, [0.5], rungs=()), pk.grid(12).values()
    *_, last = pk.evolve(evaluator, "random-distinct", len(grid), seeds=grid, progress=False)
    assert (last.evaluated, last.saved["rejected"]) == (91, 0) and last.best.tree in grid


def test_a_monomial_is_what_it_says():
    W, G, X = torch.rand(4, 6), torch.rand(4, 6), torch.rand(1, 6)
    S = monomial({"W": 7, "G": 1, "X": 12}).score(W, G, X)
    assert torch.allclose(S, W**1.75 * G**0.25 * X**3, rtol=1e-5)


def test_a_planted_metric_is_found_and_a_shuffled_fitness_means_nothing():
    hidden = pk.Planted(pk.Tree.parse("mul(X, sub(W, G))"), seed=2)
    near, far = (hidden(pk.Tree.parse(text)) for text in ("W", "neg(mul(X, sub(W, G)))"))
    assert hidden(hidden.target) == 0 < near < far
    assert list(pk.evolve(hidden, "modern", 1500, seed=2, progress=False))[-1].best.fitness == 0
    shuffled = pk.Shuffled([1.0, 2.0, 3.0], seed=1)
    assert {shuffled(tree) for tree in pk.grid().values()} == {1.0, 2.0, 3.0}
    assert shuffled(WANDA) == shuffled(WANDA)


def test_what_a_shuffled_fitness_chooses_is_no_better_than_what_it_left(tmp_path):
    hidden, losses, gains = pk.Planted(pk.Tree.parse("mul(W, sqrt(G))")), tuple(range(1000)), {}
    for name, fitness in (("shuffled", lambda seed: pk.Shuffled(losses, seed)),
                          ("true", lambda seed: hidden)):
        for seed in range(10):
            journal = tmp_path / f"{name}-{seed}.jsonl"
            list(pk.evolve(fitness(seed), "modern", 30, seed, journal, progress=False, start=0))
            found = [loss for one in pk.replay(journal).ranked if np.isfinite(loss := hidden(one.tree))]
            gains.setdefault(name, []).append(np.mean(found) - found[0])  # the winner comes first
    intervals = {name: stats.ttest_1samp(gain, 0).confidence_interval() for name, gain in gains.items()}
    assert intervals["shuffled"].low < 0 < intervals["shuffled"].high
    assert intervals["true"].low > 0.1


def test_the_census_tells_expressions_from_metrics(evaluator):
    texts = ["mul(W, sqrt(X))", "mul(sqrt(X), W)", "mul(sqr(W), X)", "sub(W, W)", "div(mul(W, X), X)",
             "mul(W, X)", "skp(W)", "W"]
    found = census([pk.Tree.parse(text) for text in texts], evaluator.benches[0])
    counts = dict(zip(distinct(found)["what counts as the same"], distinct(found)["distinct"]))
    assert counts["nothing (all drawn)"] == 8
    assert counts["nothing (valid ones)"] == 7 == counts["the same text"]
    assert counts["exact simplification"] == 5
    assert counts["proof of equal masks"] == 3 == counts["the masks themselves"]
    wrong = distinct(found).set_index("what counts as the same")["masks changed"]
    assert wrong["naive opposing pairs (wrong)"] == 1 and wrong["proof of equal masks"] == 0


@pytest.mark.parametrize("native, wanted",
                         [((False, False), "float32"), ((True, False), "bfloat16"),
                          ((False, True), "bfloat16")])
def test_the_fast_data_type_is_never_an_emulated_one(monkeypatch, native, wanted):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: native[0])
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: native[1])
    assert fast_dtype("cpu") == wanted


def test_what_no_candidate_could_reach_is_refused_before_anything_is_computed(parts, monkeypatch):
    model, windows, _ = parts
    bench = pk.Bench(model, windows["calibration"], windows["search"])
    monkeypatch.setattr(bench, "prepare", None)
    with pytest.raises(pk.UsageError, match="3:7 does not divide"):
        pk.Evaluator(bench, ["0.5", "3:7"], rungs=())
    with pytest.raises(pk.UsageError, match="block size 2 is smaller"):
        pk.Evaluator(bench, ["2:4"], update="obs-iter", obs=pk.ObsOptions(block_size=2), rungs=())


def test_a_second_evaluator_leaves_the_first_ones_bench_alone(parts):
    model, windows, _ = parts
    bench = pk.Bench(model, windows["calibration"], windows["search"])
    first = pk.Evaluator(bench, ["0.5"], update="admm", rungs=())
    before = first.losses(WANDA)
    again = pk.Evaluator(bench, ["0.5"], update="admm", rungs=())
    other = pk.Evaluator(bench, ["0.5"], update="admm", rungs=(), seed=1, admm=pk.AdmmOptions(1, 0))
    assert np.array_equal(again.losses(WANDA), before) and not np.array_equal(other.losses(WANDA), before)
    assert np.array_equal(first.losses(WANDA), before)
    method = Method("wanda", WANDA, update="admm")
    few, many = (bench.decide_again(method, 0, Target(0.5), pk.AdmmOptions(iterations=n, growth=0)).W
                 for n in (1, 20))
    assert not torch.equal(few, many)


def test_wanda_is_not_upside_down_where_nearly_all_weights_go(parts):
    model, windows, _ = parts
    for sparsity in (0.95, 0.98, 0.99):
        bench = pk.Bench(model, windows["calibration"], windows["search"])
        evaluator = pk.Evaluator(bench, [sparsity], rungs=())
        assert not evaluator(WANDA).defect
