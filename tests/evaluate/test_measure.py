import numpy as np
import pytest
import torch

import prunekit as pk
from prunekit.evaluate import compare, measure
from prunekit.search.bench import without_gradients


@pytest.fixture(scope="module")
def parts():
    model, tokenizer = pk.load_model("embedded/llama", dtype="float32")
    windows = {role: pk.token_windows("embedded", tokenizer, role, n, 32)
               for role, n in (("calibration", 4), ("test", 6))}
    return model, windows["calibration"], windows["test"]


SETTINGS = [{"method": method, "sparsity": sparsity} for method in ("magnitude", "wanda")
            for sparsity in (0.5, 0.7)]


def state(model):
    return {name: weight.clone() for name, weight in model.state_dict().items()}


@pytest.mark.parametrize("workers", [1, 2, 9])
def test_each_setting_is_pruning_and_measuring_a_fresh_model(parts, workers):
    model, calibration, test = parts
    before = state(model)
    with without_gradients(threads=1):
        found = list(pk.prune_and_measure(model, calibration, test, SETTINGS, progress=False,
                                          workers=workers))
        wanted = []
        for setting in SETTINGS:
            fresh, _ = pk.load_model("embedded/llama", dtype="float32")
            pk.prune(fresh, calibration, progress=False, **setting)
            wanted.append(pk.perplexity(fresh, test, 32, progress=False))
    assert [(one.report.meta["method"], one.report.target)
            for one in found] == [(s["method"], s["sparsity"]) for s in SETTINGS]
    assert all(np.array_equal(one.perplexity.nll, ours.nll) for one, ours in zip(found, wanted, strict=True))
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


def test_the_model_is_pruned_while_one_looks_and_never_with_workers(parts):
    model, calibration, test = parts
    for workers, zeros in ((1, 0.5), (2, 0.0)):
        for _ in pk.prune_and_measure(model, calibration, test, SETTINGS[:1], progress=False,
                                      workers=workers):
            kept = pk.kept_weights(model)
            weights = sum(keep.numel() for keep in kept.values())
            pruned = sum(int((~keep).sum()) for keep in kept.values())
            assert pruned / weights == pytest.approx(zeros, abs=0.01)


@pytest.mark.parametrize("workers", [1, 2])
def test_what_cannot_be_is_said_and_leaves_the_model_dense(parts, workers):
    model, calibration, test = parts
    before = state(model)
    with pytest.raises(pk.UsageError, match="pass gradients="):
        list(pk.prune_and_measure(model, calibration, test,
                                  [*SETTINGS, {"method": "pruner-zero", "sparsity": 0.5}], progress=False,
                                  workers=workers))
    # and nobody waits for the rest
    next(pk.prune_and_measure(model, calibration, test, SETTINGS, progress=False, workers=workers))
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


def test_methods_at_targets_are_settings_and_two_names_of_one_metric_are_measured_once(parts, monkeypatch):
    model, calibration, test = parts
    methods = {"wanda": "wanda", "W": "magnitude", "mine": pk.Tree.parse("W"), "its twin": pk.Tree.parse("W")}
    plain, measured = measure.prune_and_measure, []

    def counted(model, calibration, test, settings, **more):
        measured.extend(settings)
        return plain(model, calibration, test, settings, **more)
    monkeypatch.setattr(measure, "prune_and_measure", counted)
    results = measure.measure_targets(model, calibration, test, methods, ["0.5", "2:4"], progress=False)
    assert list(results) == [(name, target) for name in methods for target in ("0.5", "2:4")]
    assert len(measured) == 6 and results["mine", "2:4"] is results["its twin", "2:4"]
    assert results["wanda", "2:4"].report.meta["pattern"] == "2:4"
    assert [results["W", target].row()["setting"] for target in ("0.5", "2:4")] == ["50 %", "2:4"]
    paired = compare.compare_targets(results, [("wanda", "W"), ("mine", "W")])
    assert list(zip(paired["first"], paired["second"], paired["target"], strict=True)) == [
        (first, "W", target) for first in ("wanda", "mine") for target in ("0.5", "2:4")]
    expected = results["wanda", "2:4"].perplexity.value / results["W", "2:4"].perplexity.value
    assert paired.loc[1, "ratio"] == pytest.approx(expected)
    draws = [results, measure.measure_targets(model, test[:4], test, methods, ["0.5"], progress=False)]
    redrawn = compare.compare_draws(draws, "W").set_index("rival")
    ratios = [draw["W", "0.5"].perplexity.value / draw["wanda", "0.5"].perplexity.value for draw in draws]
    assert redrawn.loc["wanda", "ratio"] == pytest.approx(np.sqrt(np.prod(ratios)))
    assert (redrawn["draws"] == 2).all() and set(redrawn["target"]) == {"0.5"}


def test_on_several_texts_every_row_says_which_and_comparisons_are_within_one(parts):
    model, calibration, test = parts
    texts, two = {"first": test, "other": test[:3].flip(1)}, {"wanda": "wanda", "W": "magnitude"}
    several = measure.measure_targets(model, calibration, texts, two, ["0.5"], progress=False)
    alone = measure.measure_targets(model, calibration, texts["other"], {"W": "magnitude"}, ["0.5"],
                                    progress=False)
    rows = several["W", "0.5"].rows()
    assert [(row["text"], row["n"]) for row in rows] == [("first", 6), ("other", 3)]
    for row, ppl in zip(rows, several["W", "0.5"].perplexities.values(), strict=True):
        report = several["W", "0.5"].report
        assert (row["low"], row["high"], row["reached"]) == (*ppl.interval, report.sparsity)
    assert several["W", "0.5"].row() == rows[0] and several["W", "0.5"].perplexity.value == rows[0]["ppl"]
    assert rows[1]["ppl"] == alone["W", "0.5"].perplexity.value and "text" not in alone["W", "0.5"].row()
    paired = compare.compare_targets(several, [("wanda", "W")])
    assert paired["text"].tolist() == list(texts) and paired["n"].tolist() == [6, 3]
    ppl = {name: several[name, "0.5"].perplexities["other"].value for name in ("wanda", "W")}
    assert paired["ratio"][1] == pytest.approx(ppl["wanda"] / ppl["W"])
    assert (paired["p_holm"] >= paired["p"]).all()
    assert "text" not in compare.compare_targets(alone, [("W", "W")])
