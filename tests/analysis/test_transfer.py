"""Masks, flips and transfer against direct computation on the golden model."""
from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import kendalltau

import prunekit as pk
from prunekit.analysis import transfer
from prunekit.errors import UsageError
from prunekit.evaluate.intervals import corrected, mean_of

TREES = {"magnitude": pk.Tree.parse("W"), "wanda": pk.Tree.parse("mul(W, sqrt(X))"),
         "w2x": pk.Tree.parse("mul(sqr(W), X)"), "g": pk.Tree.parse("mul(W, G)")}


@pytest.fixture(scope="module")
def evaluator():
    from pathlib import Path

    from safetensors.torch import load_file

    golden = Path(__file__).parents[1] / "golden"
    ids = load_file(golden / "calib.safetensors")["calib"]
    model = pk.load_model(golden / "llama")[0]
    gradients = pk.Gradients.load(golden / "llama-grad-l2.pth")
    return pk.Evaluator(pk.Bench(model, ids[:4], ids[4:], gradients=gradients), (0.5,))


def test_agreement_is_that_of_pruned_models(evaluator):
    bench = evaluator.benches[0]
    found = transfer.mask_agreement(bench, TREES)
    assert (found.query("first == 'wanda' and second == 'w2x'")["agreement"] == 1).all()
    kept = {}
    for name in ("magnitude", "wanda"):
        setting = {"method": TREES[name], "sparsity": 0.5, "one_shot": True}
        for _ in pk.prune_and_measure(bench.model, bench.calibration, bench.search, [setting],
                                      progress=False):
            kept[name] = pk.kept_weights(bench.model)
    part = found.query("first == 'magnitude' and second == 'wanda'")
    for row in part.itertuples():
        one, other = ({row.layer: masks[row.layer]} for masks in kept.values())
        assert row.agreement == pytest.approx(pk.pruned_in_common(one, other), abs=1e-6)
        disputed = (one[row.layer] != other[row.layer]).float().mean()
        assert row.disputed == pytest.approx(disputed.item(), abs=1e-6)


def test_flips_add_up_to_the_other_metric(evaluator):
    bench = evaluator.benches[0]
    before = [layer.weight.clone() for layer in bench.layers]
    found = transfer.flip_disputed(bench, TREES["magnitude"], TREES["wanda"], progress=False)
    assert all(torch.equal(layer.weight, weight) for layer, weight in zip(bench.layers, before, strict=True))
    whole = evaluator.losses(TREES["wanda"]).mean() - evaluator.losses(TREES["magnitude"]).mean()
    assert found.set_index("by").loc["all", "change"] == pytest.approx(whole, abs=1e-5)
    assert not torch.equal(bench.given, bench.search)
    in_text = evaluator.on([bench.given])  # neighbours must stand beside each other
    change = in_text.losses(TREES["wanda"])[0, 0] - in_text.losses(TREES["magnitude"])[0, 0]
    interval = mean_of(change, running=True).interval()
    assert tuple(found.set_index("by").loc["all", ["low", "high"]]) == pytest.approx(interval, abs=1e-5)
    assert set(found.query("by == 'kind'")["part"]) == {layer.kind for layer in bench.layers}
    other = bench.calibration  # windows that chose nothing
    there = transfer.flip_disputed(bench, TREES["magnitude"], TREES["wanda"], windows=other, progress=False)
    fresh = evaluator.on([other])
    change = (fresh.losses(TREES["wanda"]) - fresh.losses(TREES["magnitude"])).mean()
    assert there.set_index("by").loc["all", "change"] == pytest.approx(change, abs=1e-5)
    assert (there["n"] == len(other)).all() and change != pytest.approx(whole, abs=1e-3)
    nothing = transfer.flip_disputed(bench, TREES["wanda"], TREES["w2x"], progress=False)
    assert not nothing["disputed"].any() and not nothing["change"].any()


def test_transfer_is_the_evaluators_loss_and_invalid_metrics_have_none(evaluator):
    windows = evaluator.benches[0].search
    settings = {"home": (evaluator, windows), "2:4": lambda: (evaluator.on(targets=["2:4"]), windows)}
    trees = TREES | {"invalid": pk.Tree.parse("sub(W, W)")}
    found = transfer.transfer(trees, settings, progress=False)
    part = found.query("metric == 'g' and setting == 'home'")["loss"]
    assert part.to_numpy() == pytest.approx(evaluator.losses(TREES["g"])[0, 0])
    bench = evaluator.benches[0]
    other = pk.Evaluator(pk.Bench(bench.model, bench.calibration, windows), ("2:4",))
    assert found.query("metric == 'wanda' and setting == '2:4'")["loss"].mean() == pytest.approx(
        other.losses(TREES["wanda"]).mean(), abs=1e-6)
    means = transfer.atlas(found).set_index(["metric", "setting"])
    assert means.loc["invalid", "loss"].isna().all()
    mean = mean_of(part.to_numpy(), running=True)
    assert tuple(means.loc[("g", "home"), ["loss", "low", "high"]]) == (mean.value, *mean.interval())
    assert evaluator.targets == [(0.5, "unstructured")]


def test_tau_is_kendalls_and_its_interval_holds_it():
    rng = np.random.default_rng(0)
    true = np.linspace(0, 1, 8)
    rows = [{"metric": f"m{m}", "setting": setting, "window": w, "loss": sign * true[m] + rng.normal(0, 0.1)}
            for setting, sign in (("home", 1), ("again", 1), ("reverse", -1))
            for m in range(8) for w in range(30)]
    frame = pd.DataFrame(rows)
    found = transfer.rank_agreement(frame, "home").set_index("setting")
    wide = transfer.atlas(frame).pivot(index="metric", columns="setting", values="loss")
    assert found.loc["again", "tau"] == kendalltau(wide["home"], wide["again"]).statistic
    assert found.loc["again", "low"] > 0.7 and found.loc["reverse", "high"] < -0.7
    with pytest.raises(UsageError, match="no setting 'hom'; it is one of home, again, reverse"):
        transfer.rank_agreement(frame, "hom")
    assert transfer.rank_agreement(frame[frame["metric"] == "m0"], "home").empty


def test_the_interval_of_tau_is_of_orders_without_noise(monkeypatch):
    """Resampling alone finds the orders further apart than the noise has taken them already."""
    monkeypatch.setattr("prunekit.evaluate.intervals.RESAMPLES", 200)
    rng, held = np.random.default_rng(0), 0
    for _ in range(20):
        true = rng.normal(size=10)
        rows = [{"metric": f"m{m}", "setting": setting, "window": w, "loss": true[m] + rng.normal(0, 4 / 3)}
                for setting in ("home", "again") for m in range(10) for w in range(16)]
        [found] = transfer.rank_agreement(pd.DataFrame(rows), "home").to_dict("records")
        assert -1 <= found["low"] <= found["tau"] <= found["high"] <= 1
        held += found["high"] == 1
    assert held >= 16


def test_the_winners_curse_is_what_choosing_by_noise_costs():
    """Two hundred equal metrics, the best ten by their first windows: on new windows they are no better than
    the others."""
    rng = np.random.default_rng(1)
    losses = {"home": rng.normal(1, 0.3, (200, 25)), "new": rng.normal(1.5, 0.3, (200, 25))}  # new: harder
    frame = pd.DataFrame([{"metric": f"m{m}", "setting": s, "window": w, "loss": values[m, w]}
                          for s, values in losses.items() for m in range(200) for w in range(25)])
    best = [f"m{m}" for m in losses["home"].mean(1).argsort()[:10]]
    def curse(frame, chosen):
        return transfer.winners_curse(frame, "home", "new", chosen).iloc[0]

    found, growth = curse(frame, best), np.log(losses["new"].mean(1) / losses["home"].mean(1))
    chosen = np.isin([f"m{m}" for m in range(200)], best)
    by_hand = np.exp(growth[chosen].mean() - growth[~chosen].mean()) - 1
    assert found["excess"] == pytest.approx(by_hand) and found["low"] > 0.03
    assert abs(curse(frame, [f"m{m}" for m in range(10)])["excess"]) < 0.06
    harder = frame.assign(loss=frame["loss"].where(frame["setting"] == "home", frame["loss"] * 3))
    assert curse(harder, best)["excess"] == pytest.approx(found["excess"])
    assert np.isnan(curse(frame, [])).all()
    again = pd.concat([frame, *(frame[frame["metric"] == name].assign(metric=f"{name} again")
                                for name in [*best[:3], "m0"])])  # a chosen one's twin was chosen, too
    assert {"m0"}.isdisjoint(best) and curse(again, best)["excess"] == pytest.approx(
        curse(again[~again["metric"].isin([f"{name} again" for name in best[:3]])], best)["excess"])


def test_a_corner_is_that_of_scores_and_mask(evaluator):
    bench = evaluator.benches[0]
    corner = transfer.corner(bench, TREES["wanda"], 1, "2:4", most=8)
    scores = bench.scores(TREES["wanda"], 1)[:8, :8]
    assert torch.equal(torch.tensor(corner["score"].to_numpy()).reshape(8, 8), scores.cpu())
    kept = corner.pivot(index="row", columns="column", values="kept").to_numpy()
    assert (kept.reshape(8, 2, 4).sum(-1) == 2).all()


def test_a_setting_has_statistics_of_its_own(evaluator):
    bench = evaluator.benches[0]
    parts = bench.calibration, bench.calibration, bench.search
    home, windows = transfer.setting(bench.model, *parts, targets=("2:4",))
    assert windows is bench.search and [str(target) for target in home.targets] == ["2:4"]
    G = pk.collect_gradients(bench.model, bench.calibration, progress=False)
    assert torch.allclose(home.benches[0].G[0], G[bench.layers[0].name].float())


def test_the_catalogue_is_perplexity_and_provable_sameness(evaluator):
    bench = evaluator.benches[0]
    table = transfer.catalogue(TREES, evaluator, bench.search).set_index("metric")
    assert table["ppl"].is_monotonic_increasing
    assert table.loc["wanda", "canonical form"] == table.loc["w2x", "canonical form"]
    settings = [{"method": TREES["wanda"], "sparsity": 0.5, "one_shot": True}]
    [ours] = pk.prune_and_measure(bench.model, bench.calibration, bench.search, settings, progress=False)
    assert table.loc["wanda", ["ppl", "low", "high"]].tolist() == pytest.approx(
        [ours.perplexity.value, *ours.perplexity.interval], rel=1e-5)


def recorded_monomials(orders, groups=8, noise=0.02):
    """A table as `recipes.monomials` writes it: losses of monomials by model, with noise over groups."""
    rng, rows = np.random.default_rng(0), []
    for model, losses in orders.items():
        common = rng.normal(scale=0.5, size=groups)
        for exponents, loss in {(0, 0, 0): 0.0, **losses}.items():
            target = "0.6" if any(exponents) else "dense"
            nll = 100 * (3 + common + loss + rng.normal(scale=noise, size=groups) * any(exponents))
            rows += [(*exponents, target, group, value, 100, model) for group, value in enumerate(nll)]
    return pd.DataFrame(rows, columns=["W", "G", "X", "target", "group", "nll", "tokens", "model"])


GRID = [(12, 0, 0), (8, 0, 4), (6, 6, 0), (4, 4, 4), (0, 12, 0)]


def test_an_order_of_monomials_is_asked_whether_it_travels_to_other_models():
    up, down = dict(zip(GRID, (0.1, 0.3, 0.5, 0.7, 0.9))), dict(zip(GRID, (0.9, 0.7, 0.5, 0.3, 0.1)))
    losses = transfer.monomial_losses(recorded_monomials({"a": up, "b": up, "c": down}), "0.6")
    assert set(losses["metric"]) == {"W12", "W8 X4", "W6 G6", "W4 G4 X4", "G12"}
    found = transfer.model_agreement(losses).set_index(["first", "setting"])
    assert len(found) == 9 and (found["metrics"] == 5).all()
    assert found.loc[[("a", "b"), ("a", "a")], "tau"].tolist() == pytest.approx([1, 1])
    assert found.loc[("a", "c"), "tau"] == pytest.approx(-1) and found.loc[("c", "b"), "high"] < 0
    three = transfer.model_agreement(losses, top=3).set_index(["first", "setting"])
    assert (three["metrics"] == 3).all() and three.loc[("a", "c"), "tau"] == pytest.approx(-1)
    carried = transfer.carried(losses).set_index(["chosen on", "model"])
    assert carried["verdict"].to_dict() == {
        ("a", "b"): "lower", ("a", "c"): "higher", ("b", "a"): "lower", ("b", "c"): "higher",
        ("c", "a"): "higher", ("c", "b"): "higher"}
    assert carried.loc[("a", "c"), "ratio"] == pytest.approx(np.exp(0.2), rel=0.03)
    apart = (carried["holm_low"] > 1) | (carried["holm_high"] < 1)   # the interval squares with p and verdict
    assert (apart == (carried["p_holm"] < 0.05)).all() and apart.all()
    assert carried.loc[("a", "c"), "metric"] == "W12"
    of = losses.pivot(index="window", columns=["setting", "metric"], values="loss")
    changes = [(of[model, metric] - of[model, "W8 X4"]).to_numpy()
               for (_, model), metric in carried["metric"].items()]
    ends = [ends for _, *ends in corrected(mean_of(change, running=True) for change in changes)]
    np.testing.assert_allclose(np.log(carried[["holm_low", "holm_high"]]), ends)


def test_wanda_is_not_carried_against_itself():
    up = dict(zip(GRID, (0.1, 0.3, 0.5, 0.7, 0.9)))
    its = {**up, GRID[1]: 0.0}  # W8 X4
    carried = transfer.carried(transfer.monomial_losses(recorded_monomials({"a": up, "b": its}), "0.6"))
    assert carried[["chosen on", "metric", "model"]].values.tolist() == [["a", "W12", "b"]]
    none = transfer.carried(transfer.monomial_losses(recorded_monomials({"b": its, "c": its}), "0.6"))
    assert none.empty and list(none) == list(carried)


def test_one_metric_for_all_and_stronger_to_weaker_are_held_against_what_a_model_chose_on_other_windows():
    up, down = dict(zip(GRID, (0.1, 0.3, 0.5, 0.7, 0.9))), dict(zip(GRID, (0.9, 0.7, 0.5, 0.3, 0.1)))
    small = {**up, GRID[0]: 0.3, GRID[1]: 0.1}
    losses = transfer.monomial_losses(recorded_monomials({"a": up, "b": small, "c": down}), "0.6")
    one = transfer.one_for_all(losses, published="W6 G6").set_index(["what", "model"])
    assert one.loc["published line", "ratio"].tolist() == pytest.approx(np.exp([0.4, 0.4, 0.4]), rel=0.03)
    assert one.loc[("chosen on the others", "c"), "ratio"] == pytest.approx(np.exp(0.8), rel=0.2)
    assert (one.loc["published line", "verdict"] == "higher").all()
    tables = losses.pivot(index="metric", columns=["setting", "window"], values="loss")
    for model, own in (("a", "W12"), ("b", "W8 X4"), ("c", "G12")):  # chosen on either half of the windows
        table = tables[model]
        by_hand = mean_of((table.loc["W6 G6"] - table.loc[own]).to_numpy(), running=True)
        assert transfer._cost(table, "W6 G6") == by_hand
    weights = {"a": 9, "b": 4, "c": 1, "d": 1}
    carried = transfer.stronger_to_weaker(losses, weights).set_index(["stronger", "weaker"])
    assert carried.index.tolist() == [("a", "b"), ("a", "c"), ("b", "c")]
    costs = {"down": {("a", "b"): 0.2, ("a", "c"): 0.8, ("b", "c"): 0.6},
             "up": {("a", "b"): 0.2, ("a", "c"): 0.8, ("b", "c"): 0.8}}
    for way, by_pair in costs.items():
        assert np.log(carried[way]).to_dict() == pytest.approx(by_pair, abs=0.04)
    assert carried["verdict"].tolist() == ["indistinguishable"] * 2 + ["lower"]
    assert np.log(carried.loc[("b", "c"), "ratio"]) == pytest.approx(-0.2, abs=0.05)


def test_what_a_model_chose_is_not_measured_on_the_windows_that_chose_it():
    """All metrics alike but for noise: on average none costs anything, though one is always the minimum."""
    models = {str(number): dict.fromkeys(GRID, 0.5) for number in range(60)}
    losses = transfer.monomial_losses(recorded_monomials(models, groups=16, noise=0.3), "0.6")
    costs, flattered = [], []
    for _, own in losses.groupby("setting"):
        table = own.pivot(index="metric", columns="window", values="loss")
        costs += [transfer._cost(table, metric).value for metric in table.index]
        flattered.append(table.mean(axis=1).mean() - table.mean(axis=1).min())
    assert abs(np.mean(costs)) < 0.03 and np.mean(flattered) > 0.06


def test_a_model_s_properties_stand_beside_its_best_monomial():
    orders = {"a": dict(zip(GRID, (0.5, 0.1, 0.9, 0.9, 0.9)))}
    losses = transfer.monomial_losses(recorded_monomials(orders), "0.6")
    layers = pd.DataFrame({"model": "a", "layer": list("uvw"), "block": [0, 0, 1], "kind": list("ppq"),
                           "size": [10, 20, 30], "kurtosis": [3.0, 5, 9], "top": [0.1, 0.2, 0.5],
                           "outliers": [2.0, 4, 8], "W~G": [0.0, 0.1, 0.2], "W~X": [-0.1, 0, 0.1]})
    [row] = transfer.model_properties(layers, losses).to_dict("records")
    assert (row["weights"], row["blocks"], row["kurtosis"], row["tails"]) == (60, 2, 5, "q")
    assert (row["monomial"], row["G"], row["X"]) == ("W8 X4", "0", "4")
    other = transfer.model_properties(layers.assign(model="b"), losses)
    assert other.loc[0, ["monomial", "G", "X"]].isna().all() and other.loc[0, "top"] == 0.2


def test_orders_that_are_noise_are_not_said_to_travel():
    same = dict.fromkeys(GRID, 0.5)
    losses = transfer.monomial_losses(recorded_monomials({"a": same, "b": same}, noise=0.3), "0.6")
    found = transfer.model_agreement(losses)
    between = found[found["first"] != found["setting"]]
    assert (between["low"] < 0).all() and (between["high"] > 0).all()
    assert (transfer.carried(losses)["verdict"] == "indistinguishable").all()
