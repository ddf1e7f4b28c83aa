"""What a search learned: traits and statistics against hand calculation and scipy, planted effects, and the
null."""
from __future__ import annotations

import random
import sys
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

import prunekit as pk
from prunekit.analysis import findings, history, traits
from prunekit.analysis.history import _COLUMNS
from prunekit.errors import UsageError
from prunekit.evaluate import intervals
from prunekit.search.random_trees import Alphabet, half_and_half

pytestmark = pytest.mark.usefixtures("no_fsync")


def noise(tree):
    return random.Random(str(tree)).gauss(0, 1)


def searched(folder, loss, budget=150, preset="modern", name="journal", **more):
    list(pk.evolve(loss, preset, budget, journal=folder / f"{name}.jsonl", progress=False, **more))
    return pk.history(folder / f"{name}.jsonl")


def invented(n, seed=0, loss=noise, depths=(1, 2, 3)):
    """A history without a search: random trees, no parents."""
    rng = random.Random(seed)
    trees = [half_and_half(rng, depths, Alphabet(binary=0.5)) for _ in range(n)]
    same = {"journal": "j", "preset": "p", "seed": seed, "operator": "random", "parents": "",
            "complete": True, "group": "row", "grammar": "reference", "measured": "x"}
    rows = [{**same, "i": i, "tree": str(t), "raw": str(t), "size": t.size, "depth": t.depth,
             "fitness": loss(t), "evaluated": i + 1} for i, t in enumerate(trees)]
    return pd.DataFrame(rows, columns=_COLUMNS)


def significant(found):
    return found[found["verdict"] != "no signal"]


# Traits -----------------------------------------------------------------------------------------------------


def test_a_metric_counts_once_however_it_is_written(tmp_path):
    texts = ["mul(W, sqrt(X))", "mul(sqr(W), X)", "neg(neg(W))", "add(W, mms(G))", "exp(mul(W, sqrt(X)))"]
    history = searched(tmp_path, noise, 5, "random", seeds=[pk.Tree.parse(text) for text in texts])
    frame = pk.traits(history)
    assert list(frame["i"]) == [0, 2, 3]
    assert list(frame["fitness"]) == pytest.approx([noise(texts[i]) for i in (0, 2, 3)], rel=1e-6)
    assert frame.loc[0, ["a", "b", "c"]].tolist() == pytest.approx([2 / 3, 0, 1 / 3])
    assert frame.loc[1, ["key", "size", "depth", "a", "pairs"]].tolist() == ["W", 1, 0, 1.0, ""]
    assert frame.loc[2, ["key", "size", "depth", "W", "G", "X", "add", "mms", "sqrt"]].tolist() == \
        ["add(W, mms(G))", 4, 2, 1, 1, 0, 1, 1, 0]
    assert frame.loc[2, "pairs"] == "add>W add>mms mms>G" and frame.loc[2, "homogeneous"]
    assert np.isnan(frame.loc[2, "a"])


@pytest.mark.parametrize("text", ["mul(W, sqrt(X))", "sqr(mul(sqrt(sqrt(G)), mul(W, W)))",
                                  "abs(mul(X, sqr(W)))", "G"])
def test_exponents_are_the_slopes_of_the_score(text):
    torch.manual_seed(0)
    W, G, X = torch.rand(20, 9) + 0.1, torch.rand(20, 9) + 0.1, torch.rand(1, 9) + 0.1
    S = pk.Tree.parse(text).score(W, G, X).log().flatten().double()
    logs = torch.stack([m.expand(20, 9).log().flatten().double() for m in (W, G, X)], 1)
    slopes = torch.linalg.lstsq(logs, S[:, None]).solution.flatten()
    wanted = (slopes / slopes.abs().sum()).tolist()
    assert traits.exponents(pk.Tree.parse(text)) == pytest.approx(wanted, abs=1e-4)


def test_what_is_no_product_has_no_exponents():
    for text in ("add(W, G)", "mul(W, mms(G))", "neg(W)"):
        assert traits.exponents(pk.Tree.parse(text)) is None


def test_journals_of_two_grammars_or_evaluators_are_not_mixed():
    one, other = invented(5), invented(5).assign(journal="k", grammar="extended")
    sentence = r"different grammars \(k: extended, j: reference\).*history.groupby\('grammar'\)"
    with pytest.raises(UsageError, match=sentence):
        pk.traits(pd.concat([one, other]))
    with pytest.raises(UsageError, match="different evaluators"):
        pk.traits(pd.concat([one, one.assign(journal="k", measured="y")]))
    both = [invented(20), invented(20, seed=1).assign(journal="k")]  # their index repeats
    pd.testing.assert_frame_equal(pk.traits(pd.concat(both)), pk.traits(pd.concat(both, ignore_index=True)))
    apart = [pk.traits(part) for _, part in pd.concat([one, other], ignore_index=True).groupby("grammar")]
    assert "rrow" in apart[0] and "rrow" not in apart[1]


def test_journals_of_one_name_are_told_apart(tmp_path):
    for seed in (0, 1):
        (tmp_path / f"seed{seed}").mkdir()
        searched(tmp_path / f"seed{seed}", noise, 6, "random", seed=seed)
    paths = [tmp_path / f"seed{seed}" / "journal.jsonl" for seed in (0, 1)]
    both = pk.history([*paths, paths[0]])
    assert list(both["journal"].unique()) == ["seed0/journal", "seed1/journal"] and len(both) == 12
    assert pk.traits(both)["family"].str.startswith(("seed0/journal/", "seed1/journal/")).all()
    with pytest.raises(UsageError, match="two journals are called 'journal'"):
        pk.traits(pd.concat([pk.history(path) for path in paths], ignore_index=True))


@pytest.mark.parametrize("budget", [0, 1])
def test_journals_of_nothing_and_of_one_candidate(tmp_path, budget):
    history = searched(tmp_path, noise, 1, seeds=[pk.Tree.parse("mul(W, G)")]).iloc[:budget]
    frame = pk.traits(history)
    assert len(frame) == budget and set(traits._OWN) <= set(frame)
    assert [frame[name].dtype.kind for name in ("fitness", "complete", "size")] == ["f", "b", "i"]
    assert pk.findings(frame).empty
    assert np.isnan(intervals.wilson(0, 0)).all()
    assert list(pk.findings(frame)) == findings._COLUMNS


def test_ten_thousand_candidates():
    frame = pk.traits(invented(10_000, depths=(1, 2, 3)))
    assert 2000 < len(frame) == frame["key"].nunique() < 10_000
    assert significant(pk.findings(frame)).empty


def test_lineage_by_hand():
    history = invented(5).assign(i=[0, 1, 3, 4, 6], parents=["", "", "0 1", "3", "1"],
                                 fitness=[3.0, 1.0, 2.0, 2.5, 0.5])
    found = pk.lineage(history, 4)
    assert found["i"].tolist() == [0, 1, 3, 4] and found["main"].tolist() == [True, False, True, True]
    assert found["best"].tolist() == [True, False, True, False]
    assert found["gain"].tolist() == pytest.approx([np.nan, np.nan, 1.0, -0.5], nan_ok=True)
    for frame, i in ((history, 5), (pd.concat([history, history.assign(journal="k", i=9)]), 4)):
        with pytest.raises(UsageError, match=f"not one candidate {i} here"):
            pk.lineage(frame, i)


# Statistics against other ways to compute them --------------------------------------------------------------


def test_correlations_are_spearmans():
    frame = pk.traits(invented(300, seed=1))
    found = pk.findings(frame, model=False).query("kind == 'correlation'").set_index("name")
    assert len(found) > 20
    for name, row in found.iterrows():
        pairs = frame["pairs"].str.split()
        values = pairs.map(lambda held, name=name: name in held) if ">" in name else frame[name]
        by_scipy = stats.spearmanr(values.astype(float), frame["fitness"], nan_policy="omit")
        assert row["effect"] == pytest.approx(by_scipy.statistic, abs=1e-6)
        assert row["p"] > 0.8 * by_scipy.pvalue  # never much more certain than of independent metrics


def test_log_odds_are_those_of_the_table():
    frame = pk.traits(invented(900, seed=2))
    found = pk.findings(frame, model=False).query("kind == 'best tenth'").set_index("name")
    best = frame["fitness"].rank() <= len(frame) // 10
    for name in ("sqrt", "G", "mul>W"):
        has = frame["pairs"].str.contains(f"{name}(?: |$)") if ">" in name else frame[name] > 0
        table = np.array([[(rows & best).sum(), (rows & ~best).sum()] for rows in (has, ~has)]) + 0.5
        odds = table[0, 0] * table[1, 1] / table[0, 1] / table[1, 0]
        assert found.loc[name, "effect"] == pytest.approx(np.log(odds))
        assert found.loc[name, "high"] - found.loc[name, "effect"] >= 1.95 * np.sqrt((1 / table).sum())


def test_relatives_do_not_count_as_witnesses():
    """Fifty families of one metric each, and the same ten times over: ten times the rows are no more
    evidence."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 50))

    def error(times):
        family = pd.Series(np.tile(np.arange(50), times))
        found = findings._correlated(np.tile(x, times), np.tile(y, times), family, np.ones(50 * times, bool))
        return found["high"] - found["low"]

    assert error(10) == pytest.approx(error(1), rel=0.25)


@pytest.mark.parametrize("carriers", [1, 2])
def test_one_lucky_family_is_no_evidence(carriers):
    """Of thirty families of ten metrics, `carriers` alone have a trait, and the best tenth: a luck of a few
    draws."""
    family = pd.Series(np.repeat(np.arange(30), 10))
    lucky = (family < carriers).to_numpy()
    best = (family < 3).to_numpy()
    assert findings._correlated(lucky - lucky.mean(), best - best.mean(), family, lucky)["p"] > 0.005
    odds = findings._odds(lucky, best, family)
    assert odds["p"] > 0.005 and odds["high"] - odds["low"] > 5


def test_presets_that_improve_less_often_do_not_speak_against_their_operators():
    """Two operators of either preset improve equally often, in one preset on nine of ten parents, in the
    other on one."""
    n = 400
    frame = pd.DataFrame({"preset": np.repeat(["modern", "paper"], n // 2),
                          "operator": np.tile(["insert", "swap"], n // 2),
                          "family": [f"f{i}" for i in range(n)], "gain": 1.0, "journal": "j",
                          "parents": [f"{i // 20} 7" for i in range(n)]})
    rare = np.arange(n) // 2 % 10 == 0
    frame["gain"] = np.where(rare == (frame["preset"] == "paper"), 1.0, -1.0)
    frame.loc[frame["preset"] == "paper", "operator"] = np.tile(["insert", "point"], n // 4)
    found = pd.DataFrame(findings._operators(frame)).set_index("name")
    assert list(found.index) == ["insert (modern)", "swap (modern)", "insert (paper)", "point (paper)"]
    assert (found["effect"].abs() < 1e-9).all() and (found["p"] == 1).all()


def test_children_are_compared_with_children_of_the_same_parent():
    """Two of three parents: the bad one, which everything improves on, mostly breeds by swap. Within each,
    swap does no better."""
    children = (("0", "swap", 60, 48), ("0", "insert", 20, 16), ("1", "swap", 20, 4), ("1", "insert", 60, 12),
                ("2", "insert", 1, 0))
    rows = [(parent, operator, 1.0 if i < improved else -1.0)
            for parent, operator, n, improved in children for i in range(n)]
    frame = pd.DataFrame(rows, columns=["parents", "operator", "gain"]).assign(journal="j", preset="modern")
    found = pd.DataFrame(findings._operators(frame)).set_index("name")
    assert found["effect"].abs().max() < 1e-9
    assert found["families"].tolist() == [2, 2] and found["n"].tolist() == [160, 160]


def test_the_odds_among_siblings_by_hand():
    """One parent, 20 children: 8 of 10 by swap improve, 3 of 10 by insert. U = 8 - 10 * 11 / 20; V = 10 * 10
    * 11 * 9 / (400 * 19)."""
    has = pd.Series([True] * 10 + [False] * 10)
    hit = pd.Series([True] * 8 + [False] * 2 + [True] * 3 + [False] * 7)
    twice = pd.Series(["a"] * 20 + ["b"] * 20)
    found = findings._siblings(*(pd.concat([rows, rows], ignore_index=True) for rows in (has, hit)), twice)
    U, V = 2 * 2.5, 2 * 9900 / 7600
    assert found["effect"] == pytest.approx(U / V)
    assert found["high"] - found["effect"] == pytest.approx(1.959964 / V**0.5)
    assert found["p"] == pytest.approx(stats.chi2.sf(U * U / V, 1))
    assert findings._siblings(has, hit, twice[:20]) is None


def test_skill_is_what_folds_by_family_leave():
    from sklearn.model_selection import GroupKFold
    from sklearn.tree import DecisionTreeRegressor

    frame = pk.traits(invented(400, seed=3, loss=lambda t: noise(t) - 3 * (t.count("W") > 1)))
    row, rules = findings.skill(frame)
    X, y = findings._numbers(frame).fillna(-1).to_numpy(), stats.rankdata(frame["fitness"])
    model, plain = np.empty(len(y)), np.empty(len(y))
    tree = DecisionTreeRegressor(max_depth=3, min_samples_leaf=max(5, len(y) // 50), random_state=0)
    for train, test in GroupKFold(5).split(X, y, frame["family"]):
        model[test] = tree.fit(X[train], y[train]).predict(X[test])
        plain[test] = y[train].mean()
    assert row["effect"] == pytest.approx(1 - ((y - model) ** 2).sum() / ((y - plain) ** 2).sum(), abs=1e-6)
    assert row["low"] > 0.1 and rules.startswith("|--- W <= 1.50")


def test_without_scikit_learn_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.model_selection", None)
    frame = pk.traits(invented(300))
    with pytest.raises(UsageError, match=r"pip install 'prunekit\[analysis\]'"):
        pk.findings(frame)
    assert len(pk.findings(frame, model=False)) > 10


# Planted and null -------------------------------------------------------------------------------------------


def test_a_planted_effect_is_found(tmp_path):
    history = searched(tmp_path, lambda tree: noise(tree) - 1.5 * ("sqrt(G)" in str(tree)), 400)
    found = significant(pk.findings(pk.traits(history))).set_index(["kind", "name"])
    assert found.index[0] == ("correlation", "sqrt>G") and found["verdict"].iloc[0] == "lower loss"


def test_the_better_operator_is_found(tmp_path):
    frame = pk.traits(searched(tmp_path, noise, 300))
    gain = [noise(f"{row.i}") - 1.5 + 2 * (row.operator == "insert") for row in frame.itertuples()]
    frame["gain"] = frame["gain"].where(frame["gain"].isna(), gain)
    found = significant(pk.findings(frame, model=False)).set_index("name")
    assert found.loc["insert (modern)", ["kind", "verdict"]].tolist() == ["operator", "improves more often"]


def test_fitness_that_means_nothing_teaches_nothing(tmp_path):
    history = searched(tmp_path, noise, 250)
    false = 0
    for seed in range(20):
        history["fitness"] = [pk.Shuffled(tuple(range(1000)), seed)(tree) for tree in history["tree"]]
        false += not significant(pk.findings(pk.traits(history))).empty
    assert false <= 2


@pytest.mark.torture
def test_a_hundred_searches_for_nothing(tmp_path):
    """A whole search on shuffled losses, a hundred times: at most ten may find anything at the level of
    0.05."""
    losses = tuple(np.random.default_rng(0).lognormal(size=500))
    false = 0
    for seed in range(100):
        preset = ("modern", "paper")[seed % 2]
        history = searched(tmp_path, pk.Shuffled(losses, seed), 300, preset, f"j{seed}", seed=seed)
        false += not significant(pk.findings(pk.traits(history))).empty
    assert false <= 10


@pytest.mark.torture
def test_a_long_search_for_nothing(tmp_path):
    """So many children that any dependence among them would look significant."""
    history = searched(tmp_path, noise, 5000)
    losses, false = tuple(history["fitness"]), 0
    for seed in range(20):
        history["fitness"] = [pk.Shuffled(losses, seed)(tree) for tree in history["tree"]]
        false += not significant(pk.findings(pk.traits(history))).empty
    assert false <= 3


@pytest.mark.torture
def test_a_hundred_times_luck_that_is_inherited(tmp_path):
    """One search, in which a hundred times every family is drawn a luck that all its members share, whatever
    their traits."""
    frame = pk.traits(searched(tmp_path, noise, 300)).assign(gain=np.nan)
    false = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        luck = {family: rng.normal() for family in frame["family"].unique()}
        frame["fitness"] = frame["family"].map(luck) + rng.normal(0, 0.5, len(frame))
        false += not significant(pk.findings(frame, model=False)).empty
    assert false <= 10


# Several searches -------------------------------------------------------------------------------------------


def several():
    """Two seeds of `modern`, and a grid with a point that was refused and replaced."""
    rows = [("modern", 0, "", 3.0), ("modern", 0, "0", 1.0), ("modern", 1, "", 5.0), ("modern", 1, "", 4.0),
            ("modern", 1, "1", 2.0), ("grid", 0, "", 2.5), ("grid", 0, "", 0.1)]
    frame = pd.DataFrame(rows, columns=["search", "seed", "parents", "fitness"])
    frame["journal"] = "journal-" + frame.pop("search") + frame["seed"].map({0: "", 1: "-1"})
    frame["operator"] = np.where(frame["fitness"] == 0.1, "random", "given")
    frame["evaluated"] = frame.groupby("journal").cumcount() + 1
    return frame.assign(best=frame.groupby("journal")["fitness"].cummin(), complete=True, same=np.nan)


def test_searches_are_known_by_their_journals_and_the_grid_by_its_points():
    named = history.searches(several())
    assert named["search"].tolist() == ["modern"] * 5 + ["grid"]


def test_the_lowest_of_every_other_search_and_of_those_that_read_less():
    rows = several().assign(terminals=["GW", "W", "GWX", "WX", "W", "GX", "X"],
                            tree=["mul(W, G)", "W", "mul(G, mul(W, X))", "mul(W, X)", "W", "mul(G, X)", "X"])
    found = {name: str(tree) for name, tree in history.lowest(history.searches(rows)).items()}
    assert found == {"best of the grid": "mul(G, X)", "best without G": "W", "best without X": "W"}


def test_the_best_of_every_other_search_is_chosen_on_select_windows_as_the_winner_is():
    """Of the ten different metrics with the lowest losses, and of the front; not of all."""
    ten = [f"mul({'sqr(' * power}W{')' * power}, mul(G, X))" for power in range(10)]
    texts = ["mul(mul(G, X), W)", *ten, "mul(G, W)", "mul(W, mul(W, G))"]  # the first two are one metric
    rows = pd.DataFrame({"tree": texts, "search": "grid", "fitness": np.arange(13.0), "complete": True,
                         "terminals": ["GWX"] * 11 + ["GW"] * 2})
    places = {pk.Tree.parse(text): place for place, text in enumerate(texts)}
    unseen = SimpleNamespace(losses=lambda tree: np.array([-places[tree]]))  # the last would be chosen
    found = {name: str(tree) for name, tree in history.lowest(rows, unseen).items()}
    assert found == {"best of the grid": "mul(G, W)", "best without X": "mul(W, mul(W, G))"}
    assert str(history.lowest(rows)["best of the grid"]) == texts[0]


def test_curves_and_ends_of_several_seeds_by_hand():
    named = history.searches(several())
    curves = history.convergence(named)
    modern = curves[curves["search"] == "modern"]   # what was planted before breeding starts is no find
    assert modern[["evaluated", "loss", "low", "high"]].values.tolist() == [[3, 1.5, 1.0, 2.0]]
    assert curves[curves["search"] == "grid"]["loss"].tolist() == [2.5]
    ends = history.ends(named).set_index("search")
    columns = ["seeds", "evaluated", "planted", "bred", "equal", "median", "lowest", "highest"]
    assert ends.loc["modern", columns].tolist() == [2, 2.5, 3.5, 1.5, 4.0, 1.5, 1.0, 2.0]
    assert ends.loc["grid", columns[:3]].tolist() == [1, 1, 2.5] and np.isnan(ends.loc["grid", "bred"])
    assert ends["drawn"].isna().all()


def test_a_lead_over_seeds_is_students_and_of_equal_budgets():
    named = history.searches(several())
    [lead] = history.leads(named, "modern").itertuples()
    expected = stats.ttest_1samp([3.0 - 2.5, 5.0 - 2.5], 0)   # after one evaluation, all that the grid had
    assert (lead.search, lead.evaluated, lead.change, lead.n) == ("grid", 1, 1.5, 2)
    assert lead.verdict == "indistinguishable" and lead.p_holm == pytest.approx(expected.pvalue)
    assert (lead.holm_low, lead.holm_high) == pytest.approx(tuple(expected.confidence_interval()))
    one_seed = several().query("seed == 0")
    assert history.leads(history.searches(one_seed), "modern")["verdict"].tolist() == ["indistinguishable"]
    drawing = named.query("search == 'modern' and seed == 0").assign(search="paper", operator="random")
    lead = history.leads(pd.concat([named, drawing]), "modern").set_index("search")
    assert lead.loc["paper", "n"] == 1 and lead.loc["grid", "n"] == 2
    others = named.query("search == 'modern'").assign(search="random", seed=lambda rows: rows["seed"] + 10,
                                                      operator="random", fitness=9.0)
    [_, lead] = history.leads(pd.concat([named, others]), "modern").itertuples()
    assert (lead.search, lead.n, lead.change) == ("random", 2, (1 - 9 + 4 - 9) / 2)  # in their order


def test_the_front_has_nothing_that_is_smaller_and_as_good():
    frame = pk.traits(invented(80))
    front = traits.front(frame)
    assert front["fitness"].is_monotonic_increasing and len(front) == len(frame)
    for row in front.itertuples():
        dominated = ((frame["size"] <= row.size) & (frame["fitness"] < row.fitness)
                     | (frame["size"] < row.size) & (frame["fitness"] <= row.fitness)).any()
        assert row.front == (not dominated)


def test_what_is_replicated_is_on_the_same_side_elsewhere():
    columns = ["kind", "name", "low", "high", "effect", "verdict"]
    found = pd.DataFrame([["correlation", "W", -0.6, -0.4, -0.5, "lower loss"],
                          ["correlation", "sub", 0.4, 0.6, 0.5, "higher loss"],
                          ["correlation", "G", 0.3, 0.5, 0.4, "higher loss"],
                          ["correlation", "X", 0.0, 0.2, 0.1, "no signal"]], columns=columns)
    other = pd.DataFrame([["correlation", "W", -0.4, -0.1], ["correlation", "sub", -0.1, 0.3],
                          ["best tenth", "G", 0.1, 0.2]], columns=columns[:4])
    table = findings.replicated(found, {"elsewhere": other, "nowhere": other.head(0)})
    assert table["name"].tolist() == ["W", "sub", "G"]
    assert table["elsewhere"].tolist() == ["yes", "not shown", "not asked"]
    assert table["nowhere"].tolist() == ["not asked"] * 3
