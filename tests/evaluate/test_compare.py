from __future__ import annotations

import itertools
import math
import re

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

import prunekit as pk
from prunekit.evaluate import intervals
from prunekit.evaluate.compare import _interval, _mcnemar, compare_draws, compare_means, leaders
from prunekit.evaluate.measure import Measured
from prunekit.evaluate.perplexity import Perplexity

RNG = np.random.default_rng


def documents(**tasks):
    """Documents as zero_shot gives them; every argument: task=list of values."""
    return pd.DataFrame([{"task": task, "metric": "acc", "document": f"{i:03}", "value": float(value)}
                         for task, values in tasks.items() for i, value in enumerate(values)])


# ------------------------------------------------------------ Holm, power

@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_holm_is_the_closed_test_of_bonferroni(p):
    """The definition: a hypothesis falls when every set that holds it does; a set's p is its size times its
    smallest."""
    sets = [s for size in range(1, len(p) + 1) for s in itertools.combinations(range(len(p)), size)]
    expected = [max(min(1, len(s) * min(p[j] for j in s)) for s in sets if i in s) for i in range(len(p))]
    np.testing.assert_allclose(pk.holm(p), expected, rtol=1e-12, atol=0)


def test_an_interval_by_holms_correction_excludes_zero_where_p_is_below_one_in_twenty():
    drawn = RNG(0)
    means = [intervals.mean_of(drawn.normal(shift, 1, 40), running=False) for shift in (0, 0.3, 0.4, 0.5, 1)]
    found = intervals.corrected(means)
    assert [p for p, *_ in found] == pytest.approx(pk.holm([mean.p for mean in means]).tolist())
    assert [not low <= 0 <= high for _, low, high in found] == [p < 0.05 for p, *_ in found]
    assert intervals.corrected(means[:1]) == [(means[0].p, *means[0].interval())]


def test_holm_by_hand():
    np.testing.assert_allclose(pk.holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    assert len(pk.holm([])) == 0


def test_a_detectable_difference_is_found_four_times_in_five():
    error = 0.3 / math.sqrt(100)
    shifted = RNG(0).normal(pk.detectable(error), 0.3, size=(4000, 100))
    found = (stats.ttest_1samp(shifted, 0, axis=1).pvalue < 0.05).mean()
    assert found == pytest.approx(0.8, abs=0.025)
    assert pk.detectable(1.0) == pytest.approx(2.8016, abs=1e-4)


def test_of_eight_windows_it_is_found_as_often():
    shifted = RNG(0).normal(pk.detectable(0.3 / math.sqrt(8), freedom=7), 0.3, size=(10_000, 8))
    assert (stats.ttest_1samp(shifted, 0, axis=1).pvalue < 0.05).mean() == pytest.approx(0.8, abs=0.012)


# ------------------------------------------------------------ perplexities

@given(st.integers(0, 10**6), st.integers(2, 40))
@settings(max_examples=60, deadline=None)
def test_verdict_p_and_interval_are_one(seed, n):
    """Also after Holm's correction, and in print."""
    shifts = RNG(seed).normal(0.1, 0.1, 5)
    base = RNG(seed).normal(3, 0.5, n)
    pairs = {shift: (Perplexity(base + RNG(seed).normal(shift, 0.2, n)), Perplexity(base))
             for shift in shifts}
    found = pk.compare_many(pairs)
    for row, one in zip(found.itertuples(), (pk.compare(*pair) for pair in pairs.values()), strict=True):
        assert (row.p < 0.05) == (not row.low <= 1 <= row.high) == (one.verdict != "indistinguishable")
        told_apart = row.verdict != "indistinguishable"
        assert (row.p_holm < 0.05) == (not row.holm_low <= 1 <= row.holm_high) == told_apart
        low, high = map(float, re.search(r"interval (\S+) to ([^,]+),", str(one)).groups())
        assert (not low <= 1 <= high) == (one.verdict != "indistinguishable"), str(one)


def test_windows_with_bos_are_not_compared_with_windows_without(golden_model, golden_windows):
    """Also where a table has lost how they were made: it is seen in the windows."""
    model, begun = golden_model("llama"), golden_windows.clone()
    begun[:, 0] = 7
    plain, bos = (pk.perplexity(model, windows, 64, progress=False) for windows in (golden_windows, begun))
    assert "begins_with" not in plain.meta and bos.row()["begins_with"] == 7
    assert pk.compare(bos, bos).ratio == 1
    with pytest.raises(pk.UsageError, match="that begin with token 7 and windows that begin anywhere"):
        pk.compare(bos, plain)
    turned = pk.perplexity(model, golden_windows.flip(0), 64, progress=False)
    unknown = Perplexity(turned.nll, turned.meta)  # of which windows
    assert pk.compare(plain, unknown).n == len(golden_windows)
    with pytest.raises(pk.UsageError, match="windows that are not the same are not paired"):
        pk.compare(plain, turned)


def test_the_same_is_not_distinguishable_and_one_window_says_nothing():
    a, b = RNG(1).normal(3, 0.5, (2, 40))
    same = pk.compare(Perplexity(a), Perplexity(a))
    assert (same.p, same.ratio, same.detectable, same.verdict) == (1, 1, 1, "indistinguishable")
    alone = pk.compare(Perplexity(a[:1]), Perplexity(b[:1]))
    assert (alone.p, alone.detectable, alone.verdict) == (1, math.inf, "indistinguishable")
    assert np.isnan(alone.interval).all()


def test_digits_carry_their_verdict():
    lower = pk.compare(Perplexity(3 - 0.0004 + RNG(0).normal(0, 1e-4, 64)), Perplexity(np.full(64, 3.0)))
    equal = pk.compare(Perplexity(3 - 0.0002 + RNG(0).normal(0, 1e-3, 64)), Perplexity(np.full(64, 3.0)))
    assert str(lower) == "lower (ratio 0.9996, 95 % interval 0.9996 to 0.9996, 64 windows)"
    assert str(equal) == "indistinguishable (ratio 0.9999, 95 % interval 0.9995 to 1.0003, 64 windows)"


def test_many_comparisons_are_corrected():
    """Among twenty pairs without a difference some look distinguishable alone; after Holm none does, a real
    one still."""
    base = RNG(0).normal(3.0, 0.5, 100)
    noise = [Perplexity(base + RNG(seed).normal(0, 0.05, 100)) for seed in range(1, 41)]
    pairs = {i: (one, Perplexity(base)) for i, one in enumerate(noise)}
    pairs["real"] = (Perplexity(base + RNG(99).normal(-0.05, 0.05, 100)), Perplexity(base))
    frame = pk.compare_many(pairs).set_index("name")
    assert (frame["p"][:-1] < 0.05).any()
    assert (frame["verdict"][:-1] == "indistinguishable").all() and frame.loc["real", "verdict"] == "lower"
    np.testing.assert_allclose(frame["p_holm"], pk.holm(frame["p"]))
    assert list(pk.compare_many({}).columns)[:2] == ["name", "ratio"]


def test_the_parts_of_a_pairs_key_become_columns():
    a, b = (Perplexity(nll) for nll in RNG(1).normal(3, 0.5, (2, 9)))
    frame = pk.compare_many({("wanda", "0.5"): (a, b), ("ria", "2:4"): (b, a)}, ["rival", "target"])
    assert frame[["rival", "target"]].values.tolist() == [["wanda", "0.5"], ["ria", "2:4"]]
    assert "name" not in frame and list(pk.compare_many({}, ["rival", "target"]))[-2:] == ["rival", "target"]


def test_the_leader_of_a_setting_is_corrected_for_all_who_could_have_been():
    """Three names in two settings: six pairs, of which the four with a leader are shown."""
    base = RNG(0).normal(3, 0.5, 40)
    shifts = {("a", "0.5"): 0.02, ("b", "0.5"): 0.0, ("c", "0.5"): 0.01,
              ("a", "2:4"): 0.0, ("b", "2:4"): 0.01, ("c", "2:4"): 0.03}
    measured = {key: Perplexity(base + RNG(seed).normal(shift, 0.03, 40))
                for seed, (key, shift) in enumerate(shifts.items())}
    found = leaders(measured)
    assert list(found)[:4] == ["setting", "first", "second", "ratio"]
    told = [tuple(row) for row in found[["setting", "first", "second"]].to_numpy()]
    assert told == [("0.5", "b", "c"), ("0.5", "b", "a"), ("2:4", "a", "b"), ("2:4", "a", "c")]
    pairs = [*told, ("0.5", "c", "a"), ("2:4", "b", "c")]
    one_by_one = [pk.compare(measured[first, setting], measured[second, setting])
                  for setting, first, second in pairs]
    assert found["p_holm"].tolist() == pytest.approx(pk.holm([one.p for one in one_by_one])[:4].tolist())
    assert found["ratio"].tolist() == pytest.approx([one.ratio for one in one_by_one[:4]])
    assert ((found["holm_high"] < 1) == (found["p_holm"] < 0.05)).all()


# ------------------------------------------------------------ documents

def test_mcnemar_by_hand():
    """Twelve documents on which the two disagree, ten against two: 2 (1 + 12 + 66) / 2^12."""
    first, second = [1] * 10 + [0] * 2 + [1] * 30 + [0] * 8, [0] * 10 + [1] * 2 + [1] * 30 + [0] * 8
    row = pk.compare_documents(documents(boolq=first), documents(boolq=second)).iloc[0]
    assert row["p"] == row["p_holm"] == pytest.approx(2 * 79 / 4096)
    assert (row["n"], row["only_first"], row["only_second"], row["verdict"]) == (50, 10, 2, "higher")
    assert row["difference"] == pytest.approx(8 / 50)
    back = pk.compare_documents(documents(boolq=second), documents(boolq=first)).iloc[0]
    assert (back["p"], back["verdict"]) == (row["p"], "lower")


def test_what_mcnemar_can_detect_has_a_floor():
    """Two models that never disagree: a difference that large, all one way, is found four times in five."""
    right = np.ones(75)
    row = pk.compare_documents(documents(rte=right), documents(rte=right)).iloc[0]
    lost = RNG(0).binomial(75, row["detectable"], 3000)
    power = np.mean([stats.binomtest(int(k), int(k)).pvalue < 0.05 if k else False for k in lost])
    assert (row["p"], row["verdict"]) == (1, "indistinguishable") and power == pytest.approx(0.8, abs=0.025)
    few = pk.compare_documents(documents(rte=right[:5]), documents(rte=1 - right[:5])).iloc[0]
    assert few["detectable"] == math.inf and few["verdict"] == "indistinguishable"


def test_no_interval_of_shares_passes_one():
    found = pk.compare_documents(*(documents(a=[right] * 3, b=[right] * 3) for right in (1, 0)))
    assert (found["high"].max(), found["holm_high"].max()) == (1, 1)


@pytest.mark.parametrize("level", [0.05, 0.01, 0.05 / 7])
def test_intervals_of_answers_exclude_zero_where_mcnemars_p_does(level):
    for n, first, second in itertools.product((8, 20, 200), range(13), range(13)):
        if first + second <= n:
            values = np.repeat([1, -1, 0], [first, second, n - first - second])
            low, high = _interval(values, level)
            assert low <= values.mean() <= high
            assert (not low <= 0 <= high) == (_mcnemar(first, second) < level), (n, first, second)


@pytest.mark.parametrize(("n", "lost", "won"), [
    (50, 0.12, 0.06), (200, 0.1, 0.1), (200, 0.3, 0.02), (50, 0.02, 0.0)])
def test_intervals_of_answers_hold_the_difference(n, lost, won):
    drawn = RNG(0).multinomial(n, [lost, won, 1 - lost - won], 1000)
    counts, often = np.unique(drawn, axis=0, return_counts=True)
    found = [_interval(np.repeat([1, -1, 0], one), 0.05) for one in counts]
    assert 0.94 <= np.average([low <= lost - won <= high for low, high in found], weights=often)


def test_intervals_agree_with_scipys_bootstrap():
    first, second = RNG(0).integers(0, 2, (2, 300))
    row = pk.compare_documents(documents(rte=first), documents(rte=second)).iloc[0]
    reference = stats.bootstrap((first, second), lambda a, b: (a - b).mean(), paired=True, vectorized=False,
                                n_resamples=3000, method="percentile", rng=RNG(1)).confidence_interval
    assert (row["low"], row["high"]) == pytest.approx((reference.low, reference.high), abs=0.015)


def test_the_mean_gives_every_task_the_same_weight():
    tasks = {"small": RNG(0).integers(0, 2, (2, 100)), "large": RNG(1).integers(0, 2, (2, 900))}
    frame = pk.compare_documents(*(documents(**{t: v[i] for t, v in tasks.items()}) for i in (0, 1)))
    mean, parts = frame.iloc[-1], frame.iloc[:-1]
    assert mean["task"] == "mean" and mean["difference"] == pytest.approx(parts["difference"].mean())
    error = math.sqrt(sum(np.var(v[0] - v[1], ddof=1) / v.shape[1] for v in tasks.values())) / 2
    assert mean["p"] == pytest.approx(2 * stats.norm.sf(abs(mean["difference"]) / error), rel=0.1)
    assert (mean["high"] - mean["low"]) == pytest.approx(2 * 1.96 * error, rel=0.05)
    np.testing.assert_allclose(parts["p_holm"], pk.holm(parts["p"]))


def test_intervals_of_several_tasks_exclude_zero_where_their_corrected_p_does():
    """Disagreements of 8 to 1 (p = 0.039, corrected 0.078), of 15 to 0 and of 5 to 4, among 40 documents."""
    one_way = {"few": (8, 1), "many": (15, 0), "alike": (5, 4)}
    first, second = ({task: [1 - i] * a + [i] * b + [1] * (40 - a - b) for task, (a, b) in one_way.items()}
                     for i in (0, 1))
    found = pk.compare_documents(documents(**first), documents(**second)).set_index("task").drop("mean")
    assert found["p"].tolist() == pytest.approx([20 / 2**9, 2 / 2**15, 1])
    for low, high, p, apart in (("low", "high", "p", ["few", "many"]),
                                ("holm_low", "holm_high", "p_holm", ["many"])):
        assert found.index[(found[low] > 0) | (found[high] < 0)].tolist() == apart
        assert found.index[found[p] < 0.05].tolist() == apart


def test_graded_values_are_compared_by_t_test():
    first, second = RNG(0).random((2, 30))
    found = pk.compare_documents(documents(f1=first), documents(f1=second)).iloc[0]
    reference = stats.ttest_rel(first, second)
    assert found["p"] == pytest.approx(reference.pvalue, rel=1e-9)
    assert (found["low"], found["high"]) == pytest.approx(tuple(reference.confidence_interval()), rel=1e-9)


def test_documents_that_are_not_the_same_are_refused():
    with pytest.raises(pk.UsageError, match=r"3 and 2 documents are not the same ones \(2 in common\)"):
        pk.compare_documents(documents(rte=[1, 0, 1]), documents(rte=[1, 0]))
    with pytest.raises(pk.UsageError, match=r"no documents with the metric 'acc_norm' \(known: acc\)"):
        pk.compare_documents(documents(rte=[1]), documents(rte=[1]), "acc_norm")
    twice = pd.concat([documents(rte=[1, 0]), documents(rte=[1, 0])])
    for frames in ((twice, documents(rte=[1, 0])), (documents(rte=[1, 0]), twice), (twice, twice)):
        with pytest.raises(pk.UsageError, match="document '000' of task 'rte' occurs more than once"):
            pk.compare_documents(*frames)


# ------------------------------------------------------------ seeds

def crossed(generator, seeds, items, sizes, mean=0.0, correlation=0.0):
    """correlation: of neighbouring items."""
    a, b, e = (generator.normal(0, size, shape)
               for size, shape in zip(sizes, ((seeds, 1), (1, items), (seeds, items)), strict=True))
    for t in range(1, items) if correlation else ():
        for part in (b, e):
            part[:, t] = correlation * part[:, t - 1] + math.sqrt(1 - correlation ** 2) * part[:, t]
    return mean + a + b + e


def test_sources_are_those_of_the_two_way_analysis_of_variance():
    y = crossed(RNG(0), 4, 9, (1.0, 0.5, 0.3), 2.0)
    design = np.array([[1, *np.eye(4)[s], *np.eye(9)[i]] for s in range(4) for i in range(9)])

    def left_over(columns):
        part = design[:, list(columns)]
        return ((y.ravel() - part @ np.linalg.lstsq(part, y.ravel(), rcond=None)[0]) ** 2).sum()

    everything = left_over(range(14))
    rest = everything / 24
    seeds = ((left_over([0, *range(5, 14)]) - everything) / 3 - rest) / 9
    items = ((left_over(range(5)) - everything) / 8 - rest) / 4
    assert pk.sources(y).variances == pytest.approx({"seeds": seeds, "items": items, "rest": rest})


@pytest.mark.parametrize("sizes", [(0.5, 1.0, 1.0), (0.0, 1.0, 0.5), (1.0, 0.1, 0.1)])
def test_intervals_hold_the_mean_as_often_as_documented(sizes):
    generator = RNG(0)
    values = [crossed(generator, 3, 60, sizes, 1.0) for _ in range(1000)]
    found = [pk.sources(y) for y in values]
    for seen in (found, [pk.sources(y, running=True) for y in values]):
        assert 0.91 <= np.mean([s.interval[0] <= 1 <= s.interval[1] for s in seen]) <= 0.975
    assert all((s.p < 0.05) == (not s.interval[0] <= 0 <= s.interval[1]) for s in found)


def test_items_that_resemble_their_neighbours_make_intervals_wider():
    """Of 1000 intervals 950 should hold the mean, with a standard deviation of 7."""
    generator, held = RNG(0), {True: 0, False: 0}
    for _ in range(1000):
        y = crossed(generator, 3, 60, (0.0, 1.0, 0.5), 1.0, correlation=0.5)
        for running in held:
            low, high = pk.sources(y, running=running).interval
            held[running] += low <= 1 <= high
    assert held[True] >= 910 and held[False] < 850


def test_new_draws_are_compared_as_two_sources_and_corrected_for_the_rivals():
    """Of windows whose neighbours resemble each other."""
    generator, shifts = RNG(0), {"first": 0.0, "alike": 0.005, "near": 0.02, "far": 0.4}
    base = generator.normal(3, 0.5, 30)
    nll = {name: base + crossed(generator, 4, 30, (0.01, 0.02, 0.05), shift, correlation=0.5)
           for name, shift in shifts.items()}
    draws = [{(name, "0.5"): Measured(None, {"": Perplexity(values[draw])}) for name, values in nll.items()}
             for draw in range(4)]
    found = compare_draws(draws, "first")
    by_rival = [pk.sources(nll["first"] - nll[rival], running=True) for rival in found["rival"]]
    assert found[["rival", "target", "draws"]].values.tolist() == [[name, "0.5", 4] for name in shifts][1:]
    ends = [(s.mean, *s.interval) for s in by_rival]
    np.testing.assert_allclose(np.log(found[["ratio", "low", "high"]].to_numpy(dtype=float)), ends)
    p = [s.p for s in by_rival]
    assert found["p_holm"].tolist() == pytest.approx(pk.holm(p).tolist(), rel=1e-9)


def test_new_draws_are_compared_on_every_text():
    generator, texts = RNG(0), ("wiki", "ptb")
    nll = {(name, text): 3 + 0.3 * (name == "first" and text == "ptb") + generator.normal(0, 0.05, (3, 16))
           for name in ("first", "wanda") for text in texts}
    whole = [{(name, "0.5"): Measured(None, {text: Perplexity(nll[name, text][draw]) for text in texts})
              for name in ("first", "wanda")} for draw in range(3)]
    found = compare_draws(whole, "first")
    assert found[["rival", "target", "text", "n"]].values.tolist() == [
        ["wanda", "0.5", text, 16] for text in texts]
    assert found["ratio"].tolist() == pytest.approx([
        np.exp((nll["first", text] - nll["wanda", text]).mean()) for text in texts])
    assert found["verdict"].tolist() == ["indistinguishable", "higher"]
    apart = [{(*key, text): ppl for key, at in draw.items() for text, ppl in at.perplexities.items()}
             for draw in whole]
    pd.testing.assert_frame_equal(compare_draws(apart, "first"), found)
    assert "text" not in compare_draws([{key: at.perplexity for key, at in draw.items()} for draw in whole],
                                       "first")


def test_shares_say_what_more_of_which_would_help():
    by_seed = pk.sources(crossed(RNG(0), 5, 100, (1.0, 0.1, 0.1)))
    by_item = pk.sources(crossed(RNG(0), 5, 100, (0.0, 1.0, 0.1)))
    assert by_seed.shares["seeds"] > 0.9 and by_item.shares["items"] > 0.9
    assert sum(by_seed.shares.values()) == pytest.approx(1)
    nothing = pk.sources(np.zeros((3, 4)))
    assert nothing.p >= 0.05 and nothing.interval == (0, 0) and nothing.shares["seeds"] == 0


def test_one_seed_is_no_source():
    with pytest.raises(pk.UsageError, match=r"shape \(1, 8\)"):
        pk.sources(np.zeros((1, 8)))


# ------------------------------------------------------------ means of several pairs

def test_means_of_several_pairs_are_corrected():
    """Each row is the mean that `compare_documents` finds, but corrected for the number of pairs."""
    base, *others = (documents(a=RNG(i).random(200) < right, b=RNG(10 + i).random(200) < right)
                     for i, right in enumerate((0.5, 0.58, 0.58, 0.58)))
    pairs = {("model", i): (other, base) for i, other in enumerate(others)}
    frame = compare_means(pairs)
    assert frame["name"].tolist() == list(pairs) and "task" not in frame
    alone = pd.DataFrame([pk.compare_documents(*pair).iloc[-1] for pair in pairs.values()])
    for column in ("n", "first", "second", "difference", "low", "high", "p", "detectable"):
        assert frame[column].tolist() == alone[column].tolist()
    np.testing.assert_allclose(frame["p_holm"], pk.holm(alone["p"]))
    excluded = (frame["holm_low"] > 0) | (frame["holm_high"] < 0)
    assert (excluded == (frame["p_holm"] < 0.05)).all() and set(excluded) == {True, False}
    assert frame["verdict"].ne("indistinguishable").tolist() == excluded.tolist()
    assert (alone["p"] < 0.05).sum() > excluded.sum()  # alone, one more would be
