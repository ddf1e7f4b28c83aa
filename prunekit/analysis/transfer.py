"""Where metrics agree, what their disputes are worth, and whether an order of metrics travels."""
from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import kendalltau
from torch import Tensor, nn

from prunekit.choices import Target
from prunekit.errors import UsageError
from prunekit.evaluate.intervals import (
    Mean,
    corrected,
    exp_mean,
    mean_of,
    percentiles,
    pooled,
    resampled,
    verdict,
)
from prunekit.metric.catalogue import resolve
from prunekit.metric.rank import canonical
from prunekit.metric.tree import Tree
from prunekit.models import load_model
from prunekit.progress import tqdm
from prunekit.pruning.decide import Decision
from prunekit.pruning.gradients import collect_gradients
from prunekit.search.bench import Bench
from prunekit.search.evaluator import Evaluator

Trees = Mapping[str, Tree]
Setting = tuple[Evaluator, Tensor]  # of one model, and the windows (n, seqlen), in the text's order

# Masks ------------------------------------------------------------------------------------------------------


def mask_agreement(bench: Bench, trees: Trees, target: float | str = 0.5) -> pd.DataFrame:
    """How far the masks of every two metrics agree, layer by layer of the dense model.

    Columns: layer, block, kind, first, second, agreement (of the weights that either removes, the share that
    both remove; two random masks at sparsity s: s / (2 - s)), disputed (share of all weights that exactly one
    removes).
    """
    rows = []
    for index, layer in enumerate(bench.layers):
        removed = {name: ~_keep(bench, tree, index, target) for name, tree in trees.items()}
        for (first, a), (second, b) in combinations(removed.items(), 2):
            both, either = (a & b).sum(), (a | b).sum()
            rows.append((layer.name, layer.block, layer.kind, first, second,
                         float(both / either) if either else 1.0, float(either - both) / a.numel()))
    return pd.DataFrame(rows, columns=["layer", "block", "kind", "first", "second", "agreement", "disputed"])


def _keep(bench: Bench, tree: Tree, index: int, target: float | str) -> Tensor:
    try:
        return bench.decide(resolve(tree), index, [Target.parse(target)])[0].keep
    except UsageError as error:
        raise UsageError(f"the metric {tree} is {error}, so it has no mask there.") from error


def corner(bench: Bench, tree: Tree, index: int, target: float | str = 0.5, most: int = 40) -> pd.DataFrame:
    """Scores and mask of the first rows and columns of one layer, given by its number in the bench: columns
    row, column, score, kept (bool)."""
    full = _keep(bench, tree, index, target), bench.scores(tree, index)
    keep, S = (M[:most, :most].cpu().numpy() for M in full)
    row, column = (places.ravel() for places in np.indices(S.shape))
    return pd.DataFrame({"row": row, "column": column, "score": S.ravel(), "kept": keep.ravel()})


def flip_disputed(bench: Bench, first: Tree, second: Tree, target: float | str = 0.5, *,
                  windows: Tensor | None = None, progress: bool = True) -> pd.DataFrame:
    """What disputes are worth: the model pruned by `first`, with `second`'s masks in one kind or block.

    windows: (n, seqlen) in the text's order, of which `first` knows nothing; default: the bench's search
    windows. Columns: by ("kind", "block" or "all"), part, disputed (share of those layers' weights that
    change hands), change (of the mean loss, nats per token: above 0, `first` was right there), low, high
    (95 % paired interval over these windows), n. The model is dense again afterwards.
    """
    windows = bench.given if windows is None else windows
    places = dict.fromkeys((by, getattr(layer, by)) for by in ("kind", "block") for layer in bench.layers)
    masks = [[_keep(bench, tree, index, target) for tree in (first, second)]
             for index in range(len(bench.layers))]
    rows = []
    try:
        base = _measured(bench, [ours for ours, _ in masks], windows)
        for by, part in tqdm([("all", "all layers"), *places], desc="flips", disable=not progress):
            turned = [by == "all" or getattr(layer, by) == part for layer in bench.layers]
            mixed = [pair[turn] for pair, turn in zip(masks, turned, strict=True)]
            whose = [pair for pair, turn in zip(masks, turned, strict=True) if turn]
            disputed = sum(int((a != b).sum()) for a, b in whose) / sum(a.numel() for a, _ in whose)
            change = mean_of(_measured(bench, mixed, windows) - base, running=True)
            rows.append((by, f"block {part}" if by == "block" else part, disputed, change.value,
                         *change.interval(), len(windows)))
    finally:
        bench.restore()
    return pd.DataFrame(rows, columns=["by", "part", "disputed", "change", "low", "high", "n"])


def _measured(bench: Bench, masks: Sequence[Tensor], windows: Tensor) -> np.ndarray:
    bench.apply([Decision(keep) for keep in masks])
    return bench.measure(windows)


# Transfer ---------------------------------------------------------------------------------------------------


def setting(model: str | nn.Module, calibration: Tensor, gradient: Tensor, windows: Tensor, *,
            dtype: str = "auto", device: str = "auto", **measuring: Any) -> Setting:
    """A model, by name or itself, with statistics of its own: X of the calibration windows (n, seqlen), G of
    the gradient windows, measured on `windows`. measuring: as for `Evaluator`, such as targets."""
    network = load_model(model, dtype=dtype, device=device)[0] if isinstance(model, str) else model
    gradients = collect_gradients(network, gradient, progress=False)
    return Evaluator(Bench(network, calibration, windows, gradients=gradients), **measuring), windows


def transfer(trees: Trees, settings: Mapping[str, Setting | Callable[[], Setting]], *,
             progress: bool = True) -> pd.DataFrame:
    """Every metric in every setting, window by window: columns metric, setting, window, loss (nll pruned -
    nll dense, mean over the evaluator's targets).

    settings: name -> a `Setting`, or a function that makes it when its turn comes, so that statistics of one
    setting at a time are in memory. A metric that is invalid somewhere has NaN there.
    """
    rows = []
    for name, setting in tqdm(settings.items(), desc="settings", disable=not progress):
        evaluator, windows = setting() if callable(setting) else setting
        focused = evaluator.on([windows])
        for metric, tree in trees.items():
            try:
                losses = focused.losses(tree).mean((0, 1))  # (1 model, targets, windows) -> (windows,)
            except UsageError:
                losses = np.full(len(windows), np.nan)
            rows += [(metric, name, window, loss) for window, loss in enumerate(losses)]
    return pd.DataFrame(rows, columns=["metric", "setting", "window", "loss"])


def catalogue(trees: Trees, evaluator: Evaluator, windows: Tensor) -> pd.DataFrame:
    """What each metric is and does: columns metric, formula, canonical form (equal: provably the same masks),
    ppl, low, high (95 %), n; lowest perplexity first. Losses as in `transfer`, of one model."""
    losses = transfer(trees, {"": (evaluator, windows)}, progress=False).groupby("metric", sort=False)["loss"]
    dense = evaluator.benches[0].measure(windows)
    rows = [(name, trees[name].infix(), canonical(trees[name]).infix(), *exp_mean(dense + loss.to_numpy()),
             len(loss)) for name, loss in losses]
    columns = ["metric", "formula", "canonical form", "ppl", "low", "high", "n"]
    return pd.DataFrame(rows, columns=columns).sort_values("ppl", ignore_index=True)


def atlas(frame: pd.DataFrame) -> pd.DataFrame:
    """`transfer` as means: columns metric, setting, loss, low, high (95 % interval over windows), n, rank (1:
    lowest loss in that setting)."""
    rows = []
    for (metric, setting), losses in frame.groupby(["metric", "setting"], sort=False)["loss"]:
        mean = mean_of(losses.to_numpy(), running=True)
        rows.append((metric, setting, mean.value, *mean.interval(), len(losses)))
    table = pd.DataFrame(rows, columns=["metric", "setting", "loss", "low", "high", "n"])
    return table.assign(rank=table.groupby("setting")["loss"].rank())


def rank_agreement(frame: pd.DataFrame, home: str) -> pd.DataFrame:
    """Kendall's tau-b between the order of the metrics in `home` and in every other setting of `transfer`.

    Columns: setting, tau, low, high, metrics (those invalid in either setting are left out). The interval is
    of the tau without the windows' noise, and approximate: resampling windows (home's and the other's,
    independently; `intervals.resampled`) adds this noise a second time and takes the orders further apart, so
    it spans the percentiles and their reflection at tau (the basic bootstrap). In simulations it holds that
    tau in 90 to 100 of 100 cases where a mean's error is at most a third of the spread between metrics; where
    it is as large, it is too low.
    """
    tables = {name: part.pivot(index="metric", columns="window", values="loss").dropna()
              for name, part in frame.groupby("setting", sort=False)}
    if home not in tables:
        raise UsageError(f"there is no setting '{home}'; it is one of {', '.join(tables)}.")
    rows = []
    for name, table in tables.items():
        shared = tables[home].index.intersection(table.index)
        if name == home or len(shared) < 3:
            continue
        tau, (low, high) = _resampled(*(t.loc[shared].to_numpy() for t in (tables[home], table)),
                                      lambda ours, theirs: kendalltau(ours, theirs).statistic)
        ends = np.clip([min(low, 2 * tau - high), max(high, 2 * tau - low)], -1, 1)
        rows.append((name, tau, *ends, len(shared)))
    return pd.DataFrame(rows, columns=["setting", "tau", "low", "high", "metrics"])


def _resampled(ours: np.ndarray, theirs: np.ndarray, statistic: Callable[[np.ndarray, np.ndarray], float]
               ) -> tuple[float, tuple[float, float]]:
    """A statistic of two settings' mean losses (metrics,), and its interval over windows (metrics, windows):
    of each setting the same are drawn for all metrics."""
    draws = (resampled(losses.shape[1], seed) @ losses.T for seed, losses in enumerate((ours, theirs)))
    interval = percentiles(statistic(*means) for means in zip(*draws, strict=True))
    return statistic(ours.mean(1), theirs.mean(1)), interval


# From model to model, as `recipes.monomials` records it -----------------------------------------------------


def monomial_losses(frame: pd.DataFrame, target: str = "") -> pd.DataFrame:
    """A table of `recipes.monomials`, of one model or several, as `transfer` has it: columns metric (as
    "W8 X4": exponents), setting (the model), window (the group of windows), loss (nll pruned - nll dense);
    and target (unless one is named, the first)."""
    target = target or next(goal for goal in frame["target"] if goal != "dense")
    mean = frame.assign(mean=frame["nll"] / frame["tokens"])
    dense = mean[mean["target"] == "dense"].set_index(["model", "group"])["mean"]
    rows = mean[mean["target"] == target]
    spelled = [" ".join(f"{name}{power}" for name, power in zip("WGX", powers, strict=True) if power)
               for powers in rows[["W", "G", "X"]].to_numpy()]
    before = dense.loc[pd.MultiIndex.from_frame(rows[["model", "group"]])].to_numpy()
    return pd.DataFrame({"metric": spelled, "setting": rows["model"], "window": rows["group"],
                         "loss": rows["mean"] - before, "target": target}).reset_index(drop=True)


def model_agreement(losses: pd.DataFrame, top: int | None = None) -> pd.DataFrame:
    """`rank_agreement` of every two models of `monomial_losses`: its columns, and first, the model before.

    A model beside itself is every other group of windows against those between, half of the windows each.
    top: of the metrics with the lowest losses on the first model only.
    """
    tables = []
    for first, home in losses.groupby("setting", sort=False):
        order = home.groupby("metric")["loss"].mean().sort_values()
        leading = losses[losses["metric"].isin(order.index[:top])]
        mine = leading[leading["setting"] == first]
        halves = mine.assign(setting=np.where(mine["window"] % 2, "other half", first))
        itself = rank_agreement(halves, first).assign(setting=first)
        tables.append(pd.concat([itself, rank_agreement(leading, first)]).assign(first=first))
    table = pd.concat(tables, ignore_index=True)
    return table[["first", "setting", "tau", "low", "high", "metrics"]]


def orders(of_all: pd.DataFrame, of_few: pd.DataFrame, top: int) -> str:
    """`model_agreement` of every two models in words: of all metrics, and of the first `top`."""
    few, said = of_few.set_index(["first", "setting"]), "{tau:.2f} ({low:.2f} to {high:.2f})".format
    return "; ".join(f"{row['first']} and {row['setting']} {said(**row)}, of the first {top} on the former "
                     f"{said(**few.loc[(row['first'], row['setting'])])}"
                     for row in of_all.to_dict("records") if row["first"] < row["setting"])


def carried(losses: pd.DataFrame) -> pd.DataFrame:
    """What a metric chosen on one model is worth on another: columns chosen on, metric, model, ratio,
    holm_low, holm_high, p_holm, verdict.

    metric: the lowest loss of `monomial_losses` on the model that it was chosen on; ratio: of perplexities on
    the other model, to Wanda's (W8 X4), paired over groups of windows. A model that chooses Wanda's itself
    has nothing to compare, and no rows.
    """
    wanda = "W8 X4"
    means = losses.groupby(["setting", "metric"], sort=False)["loss"].mean()
    best = means.groupby("setting", sort=False).idxmin().str[1]
    wide = losses.pivot(index=["setting", "metric"], columns="window", values="loss")
    pairs = [(home, model) for home in best.index if best[home] != wanda
             for model in best.index if home != model]
    found = [mean_of((wide.loc[(model, best[home])] - wide.loc[(model, wanda)]).dropna().to_numpy(),
                     running=True) for home, model in pairs]
    rows = [(home, best[home], model) for home, model in pairs]
    return _as_ratios(pd.DataFrame(rows, columns=["chosen on", "metric", "model"]), found)


def one_for_all(losses: pd.DataFrame, published: str = "W8 G4") -> pd.DataFrame:
    """Does one metric fit all models? Columns what, metric, model, and those of `carried`.

    ratio: on that model, perplexity of the metric to that of the model's own choice (`_cost`). what: the
    published line (of Pruner-Zero, without its scaling), and what all other models together would choose, by
    mean rank. losses: as of `monomial_losses`; of metrics that all models have.
    """
    tables = _of_all(losses)
    ranks = pd.DataFrame({model: table.mean(axis=1).rank() for model, table in tables.items()})
    others = {model: ranks.drop(columns=model).mean(axis=1).idxmin() for model in tables}
    rows = [(what, metric, model) for model in tables
            for what, metric in (("published line", published), ("chosen on the others", others[model]))]
    costs = [_cost(tables[model], metric) for _, metric, model in rows]
    return _as_ratios(pd.DataFrame(rows, columns=["what", "metric", "model"]), costs)


def stronger_to_weaker(losses: pd.DataFrame, weights: Mapping[str, int]) -> pd.DataFrame:
    """Does a choice carry over from a stronger model to a weaker one, and less so the other way?

    Columns stronger, weaker, down, up, and those of `carried` from ratio on. down: on the weaker model,
    perplexity of the metric that the stronger one chose to that of its own choice (`_cost`); up: the other
    way round; ratio: down / up, below 1 where carrying it down costs less. weights: by model, how many can be
    pruned; the one with half as many again counts as the stronger. losses: as for `one_for_all`.
    """
    tables = _of_all(losses)
    best = {model: table.mean(axis=1).idxmin() for model, table in tables.items()}
    pairs = [(a, b) for a in tables for b in tables if weights[a] > 1.5 * weights[b]]
    costs = [(_cost(tables[weak], best[strong]), _cost(tables[strong], best[weak])) for strong, weak in pairs]
    rows = [(*pair, *np.exp([down.value, up.value])) for pair, (down, up) in zip(pairs, costs, strict=True)]
    apart = [pooled([down, replace(up, value=-up.value)]) for down, up in costs]  # half of the difference
    changes = [replace(half, value=2 * half.value, error=2 * half.error) for half in apart]
    return _as_ratios(pd.DataFrame(rows, columns=["stronger", "weaker", "down", "up"]), changes)


def _of_all(losses: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """By model the losses (metrics, windows) of the metrics that are one on all models."""
    wide = losses.pivot(index="metric", columns=["setting", "window"], values="loss").dropna()
    return {model: wide[model] for model in losses["setting"].unique()}


def _cost(table: pd.DataFrame, metric: str) -> Mean:
    """ln of the perplexity's ratio to that of the model's own choice, which every other window makes for
    those between, so that it has not seen the windows that it is measured on."""
    odd = np.arange(table.shape[1]) % 2 == 1
    chosen = [table.loc[table.loc[:, ~half].mean(axis=1).idxmin()] for half in (~odd, odd)]
    return mean_of(table.loc[metric].to_numpy() - np.where(odd, chosen[1], chosen[0]), running=True)


def _as_ratios(rows: pd.DataFrame, means: Sequence[Mean]) -> pd.DataFrame:
    values = [(mean.value, *found) for mean, found in zip(means, corrected(means), strict=True)]
    value, p, low, high = np.array(values).reshape(-1, 4).T  # also of no rows
    return rows.assign(ratio=np.exp(value), holm_low=np.exp(low), holm_high=np.exp(high), p_holm=p,
                       verdict=[*map(verdict, p, value)])


def model_properties(properties: pd.DataFrame, losses: pd.DataFrame) -> pd.DataFrame:
    """Beside each model's best monomial what might explain it: a row per model, of a table of
    `recipes.monomials --properties`.

    Columns model, weights, blocks; medians over layers: kurtosis and top (share of the sum in the largest
    hundredth) of G, outliers (maximum of X by its median), W~G and W~X (rank correlations within rows); tails
    (the kind of layer in which the top of G is largest); monomial (that of minimum loss), G and X (its
    exponents in quarters, of twelve in all, over resampled windows, 95 %: "2 to 4"); these three are missing
    for a model whose monomials were not measured.
    """
    rows = []
    for model, part in properties.groupby("model", sort=False):
        middle = part[["kurtosis", "top", "outliers", "W~G", "W~X"]].median()
        rows.append({"model": model, "weights": part["size"].sum(), "blocks": part["block"].nunique(),
                     **middle, "tails": part.groupby("kind")["top"].median().idxmax().rpartition(".")[2]})
        mine = losses[losses["setting"] == model]
        if mine.empty:
            continue
        table = mine.pivot(index="metric", columns="window", values="loss").dropna()
        drawn = (resampled(table.shape[1], 0) @ table.to_numpy().T).argmin(1)
        powers = pd.DataFrame([dict(re.findall(r"([WGX])(\d+)", metric)) for metric in table.index],
                              columns=["G", "X"]).astype(float).fillna(0).to_numpy()[drawn]
        ends = np.quantile(powers, [0.025, 0.975], axis=0, method="nearest").astype(int).astype(str)
        spread = {letter: " to ".join(dict.fromkeys(column))
                  for letter, column in zip("GX", ends.T, strict=True)}
        rows[-1] |= {"monomial": table.mean(axis=1).idxmin(), **spread}
    return pd.DataFrame(rows, columns=["model", "weights", "blocks", *middle.index, "tails", "monomial",
                                       *"GX"])


def winners_curse(frame: pd.DataFrame, home: str, other: str, chosen: Sequence[str]) -> pd.DataFrame:
    """What choosing by `home`'s loss has flattered: losses of `transfer` there and in `other` (new windows).

    One row with excess, low, high (95 %): the ratio of the chosen metrics' losses (geometric mean of other /
    home) to that of the metrics that nobody chose by these windows, minus 1. Ratios, since harder windows
    raise large losses more; the others measure how hard the windows are, and what remains is luck. One that
    has a chosen metric's losses at home was chosen under another name: it is left out. The interval resamples
    windows. NaN without both kinds of metrics, or where a mean loss is not positive.
    """
    wide = frame.pivot(index="metric", columns=["setting", "window"], values="loss")[[home, other]]
    wide = wide.reindex(frame["metric"].unique()).dropna()
    ours, value, interval = wide.index.isin(chosen), np.nan, (np.nan, np.nan)
    found = set(map(tuple, wide.loc[ours, home].to_numpy()))
    kept = ours | np.array([tuple(losses) not in found for losses in wide[home].to_numpy()], dtype=bool)
    wide, ours = wide[kept], ours[kept]

    def excess(before: np.ndarray, after: np.ndarray) -> float:
        growth = np.log(np.where((before > 0) & (after > 0), after / before, np.nan))
        return float(np.expm1(growth[ours].mean() - growth[~ours].mean()))

    if 0 < ours.sum() < len(ours):
        value, interval = _resampled(wide[home].to_numpy(), wide[other].to_numpy(), excess)
    return pd.DataFrame([(value, *interval)], columns=["excess", "low", "high"])
