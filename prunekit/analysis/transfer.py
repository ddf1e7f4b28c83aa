"""Where metrics agree, what their disputes are worth, and whether an order of metrics travels to other settings."""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.stats import kendalltau
from torch import Tensor, nn
from tqdm import tqdm

from prunekit.choices import Target
from prunekit.errors import UsageError
from prunekit.evaluate.intervals import exp_mean, mean_of, percentiles, resampled
from prunekit.metric.rank import canonical
from prunekit.metric.tree import Tree, defect
from prunekit.models import load_model
from prunekit.pruning.gradients import collect_gradients
from prunekit.pruning.masks import keep_mask, zero_out
from prunekit.search.bench import Bench
from prunekit.search.evaluator import Evaluator

Trees = Mapping[str, Tree]


# Masks --------------------------------------------------------------------------------------------------------------------


def mask_agreement(bench: Bench, trees: Trees, target: float | str = 0.5) -> pd.DataFrame:
    """How far the masks of every two metrics agree, layer by layer of the dense model.

    Columns: layer, block, kind, first, second, agreement (of the weights that either removes, the share that both remove;
    two random masks at sparsity s: s / (2 - s)), disputed (share of all weights that exactly one removes).
    """
    rows = []
    for index, layer in enumerate(bench.layers):
        removed = {name: ~_keep(bench, tree, index, target) for name, tree in trees.items()}
        for first, second in combinations(removed, 2):
            both, either = (removed[first] & removed[second]).sum(), (removed[first] | removed[second]).sum()
            rows.append({"layer": layer.name, "block": layer.block, "kind": layer.kind, "first": first, "second": second,
                         "agreement": float(both / either) if either else 1.0,
                         "disputed": float(either - both) / removed[first].numel()})
    return pd.DataFrame(rows, columns=["layer", "block", "kind", "first", "second", "agreement", "disputed"])


def _keep(bench: Bench, tree: Tree, index: int, target: float | str) -> Tensor:
    S = bench.scores(tree, index)
    if why := defect(S):
        raise UsageError(f"the metric {tree} is {why} in layer {bench.layers[index].name}, so it has no mask there.")
    return keep_mask(S, *Target.parse(target))


def corner(bench: Bench, tree: Tree, index: int, target: float | str = 0.5, most: int = 40) -> pd.DataFrame:
    """Scores and mask of the first rows and columns of one layer, given by its number in the bench: columns
    row, column, score, kept (bool)."""
    full = _keep(bench, tree, index, target), bench.scores(tree, index)
    keep, S = (M[:most, :most].cpu().numpy() for M in full)
    row, column = (places.ravel() for places in np.indices(S.shape))
    return pd.DataFrame({"row": row, "column": column, "score": S.ravel(), "kept": keep.ravel()})


def disputed_weights(bench: Bench, first: Tree, second: Tree, target: float | str = 0.5) -> pd.DataFrame:
    """What the two metrics fight about: per kind of layer, the weights that only one of them keeps.

    Columns: kind, kept (by first or by second only), share (of all weights), and W, G, X: the mean place of those weights
    among all weights of their row, 0 lowest to 1 highest (random ones: 0.5).
    """
    found: dict[tuple[str, str], list[list[float]]] = {}
    for index, layer in enumerate(bench.layers):
        one, other = (_keep(bench, tree, index, target) for tree in (first, second))
        places = [_places(M) for M in _matrices(bench, index)]
        for name, only in (("first", one & ~other), ("second", other & ~one)):
            means = [float(place[only].mean()) if only.any() else np.nan for place in places]
            found.setdefault((layer.kind, name), []).append([float(only.float().mean()), *means])
    rows = [{"kind": kind, "kept": name, **dict(zip(("share", "W", "G", "X"), np.nanmean(values, axis=0), strict=True))}
            for (kind, name), values in found.items() if np.sum(values, axis=0)[0] > 0]
    return pd.DataFrame(rows, columns=["kind", "kept", "share", "W", "G", "X"])


def _matrices(bench: Bench, index: int) -> list[Tensor]:
    W = bench.dense[index].abs().float()
    return [W, bench.G[index] if bench.G else torch.full_like(W, torch.nan), bench.X[index].reshape(1, -1).expand_as(W)]


def _places(M: Tensor) -> Tensor:
    """Of each entry, its rank in its row, scaled to 0..1."""
    return M.argsort(1).argsort(1).float() / max(1, M.shape[1] - 1)


def flip_disputed(bench: Bench, first: Tree, second: Tree, target: float | str = 0.5, windows: Tensor | None = None, *,
                  progress: bool = True) -> pd.DataFrame:
    """What the disputes are worth: the model pruned by `first`, with `second`'s mask in one kind of layer or one block.

    Columns: by ("kind", "block" or "all"), part, disputed (share of those layers' weights that change hands), change (of
    the mean loss, nats per token: above 0, `first` was right there), low, high (95 % paired interval over
    windows), n. windows: LongTensor (n, seqlen); default, the bench's search windows. The model is dense again afterwards.
    """
    windows = bench.search if windows is None else windows
    parts = [("all", "all layers"), *(("kind", kind) for kind in dict.fromkeys(layer.kind for layer in bench.layers)),
             *(("block", block) for block in dict.fromkeys(layer.block for layer in bench.layers))]
    masks = [[_keep(bench, tree, index, target) for index in range(len(bench.layers))] for tree in (first, second)]
    rows = []
    try:
        base = _measured(bench, masks[0], windows)
        for by, part in tqdm(parts, desc="flips", disable=not progress):
            turned = [by == "all" or getattr(layer, by) == part for layer in bench.layers]
            mixed = [masks[int(turn)][index] for index, turn in enumerate(turned)]
            differing = sum(int((masks[0][i] != masks[1][i]).sum()) for i, turn in enumerate(turned) if turn)
            weights = sum(mask.numel() for mask, turn in zip(mixed, turned, strict=True) if turn)
            change = _measured(bench, mixed, windows) - base
            low, high = mean_of(change, running=True).interval()
            rows.append({"by": by, "part": f"block {part}" if by == "block" else part, "disputed": differing / weights,
                         "change": change.mean(), "low": low, "high": high, "n": len(change)})
    finally:
        bench.restore()
    return pd.DataFrame(rows)


@torch.no_grad()
def _measured(bench: Bench, masks: Sequence[Tensor], windows: Tensor) -> np.ndarray:
    bench.restore()
    for layer, keep in zip(bench.layers, masks, strict=True):
        zero_out(layer.weight, keep)
    return bench.measure(windows)


def distances(frame: pd.DataFrame, bench: Bench, targets: Trees, target: float | str = 0.5) -> pd.DataFrame:
    """How far the search was from known metrics, metric by metric, on the smallest layer.

    frame: as from `traits`. Columns: journal, i, evaluated, fitness, target, distance (share of the layer's weights on which
    the two masks differ; two random masks at sparsity s: 2 s (1 - s)). A metric that is invalid on that layer has none.
    """
    index = min(range(len(bench.layers)), key=lambda i: bench.dense[i].numel())
    wanted = {name: _keep(bench, tree, index, target) for name, tree in targets.items()}
    rows = []
    for row in frame.itertuples():
        S = bench.scores(Tree.parse(row.key), index)
        if defect(S):
            continue
        keep = keep_mask(S, *Target.parse(target))
        rows += [{"journal": row.journal, "i": row.i, "evaluated": row.evaluated, "fitness": row.fitness, "target": name,
                  "distance": float((keep != other).float().mean())} for name, other in wanted.items()]
    return pd.DataFrame(rows, columns=["journal", "i", "evaluated", "fitness", "target", "distance"])


# Transfer -----------------------------------------------------------------------------------------------------------------


Setting = tuple[Evaluator, Tensor]


def setting(model: str | nn.Module, calibration: Tensor, gradient: Tensor, windows: Tensor, *,
            dtype: str = "auto", device: str = "auto", **measuring: Any) -> Setting:
    """A model, by name or itself, with statistics of its own: X of the calibration windows (n, seqlen), G of
    the gradient windows, measured on `windows`. measuring: as for `Evaluator`, such as targets."""
    network = load_model(model, dtype=dtype, device=device)[0] if isinstance(model, str) else model
    gradients = collect_gradients(network, gradient, progress=False)
    return Evaluator(Bench(network, calibration, windows, gradients=gradients), **measuring), windows


def transfer(trees: Trees, settings: Mapping[str, Setting | Callable[[], Setting]], *, progress: bool = True) -> pd.DataFrame:
    """Every metric in every setting, window by window: columns metric, setting, window, loss (nll pruned - nll dense, mean
    over the evaluator's targets).

    settings: name -> (evaluator of one model, windows (n, seqlen) to measure on), or a function that makes these two when
    their turn comes, so that statistics of one setting at a time are in memory. A metric that is invalid somewhere has NaN
    there.
    """
    rows = []
    for name, setting in tqdm(settings.items(), desc="settings", disable=not progress):
        evaluator, windows = setting() if callable(setting) else setting
        focused = evaluator.on([windows])
        for metric, tree in trees.items():
            try:
                losses = focused.losses(tree).mean((0, 1))
            except UsageError:
                losses = np.full(len(windows), np.nan)
            rows += [{"metric": metric, "setting": name, "window": i, "loss": loss} for i, loss in enumerate(losses)]
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
    """`transfer` as means: columns metric, setting, loss, low, high (95 % interval over windows), rank (1:
    lowest loss in that setting), n."""
    rows = []
    for (metric, setting), part in frame.groupby(["metric", "setting"], sort=False):
        values = part["loss"].to_numpy()
        low, high = mean_of(values, running=True).interval()
        rows.append({"metric": metric, "setting": setting, "loss": values.mean(), "low": low, "high": high, "n": len(values)})
    found = pd.DataFrame(rows, columns=["metric", "setting", "loss", "low", "high", "n"])
    return found.assign(rank=found.groupby("setting")["loss"].rank())


def rank_agreement(frame: pd.DataFrame, home: str) -> pd.DataFrame:
    """Kendall's tau-b between the order of the metrics in `home` and in every other setting of `transfer`.

    Columns: setting, tau, low, high, metrics. The interval resamples windows (those of home and of the other setting,
    independently; `intervals.resampled`), so it says what other windows would have given, for these metrics.
    Metrics invalid in either setting are left out. A tau of home's order against itself on other windows is
    the most that any setting can reach.
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
        ours, theirs = (t.loc[shared].to_numpy() for t in (tables[home], table))
        drawn = [kendalltau(a, b).statistic for a, b in zip(_means(ours, 0), _means(theirs, 1), strict=True)]
        low, high = percentiles(drawn)
        rows.append({"setting": name, "tau": kendalltau(ours.mean(1), theirs.mean(1)).statistic, "low": low, "high": high,
                     "metrics": len(shared)})
    return pd.DataFrame(rows, columns=["setting", "tau", "low", "high", "metrics"])


def _means(losses: np.ndarray, seed: int) -> np.ndarray:
    """Means over windows (columns) resampled, the same windows for all metrics: (resamples, metrics)."""
    return resampled(losses.shape[1], seed) @ losses.T


def winners_curse(frame: pd.DataFrame, home: str, other: str, chosen: Sequence[str]) -> tuple[pd.DataFrame, dict[str, float]]:
    """What choosing by `home`'s loss has flattered: the losses of `transfer` there and in `other` (the same on new windows).

    Returns a table (metric, chosen, search, other, low, high: 95 % interval of other) and {"excess", "low", "high"}: the ratio
    of the chosen metrics' losses (geometric mean of other / home) to that of the metrics that nobody chose by these windows,
    minus 1. Ratios, since harder windows raise large losses more; the others measure how hard the windows are, and what
    remains is luck. The interval resamples windows. NaN without both kinds of metrics, or where a mean loss is not positive.
    """
    both = frame[frame["setting"].isin([home, other])]
    wide = both.pivot(index="metric", columns=["setting", "window"], values="loss").reindex(both["metric"].unique()).dropna()
    search, unseen = wide[home], wide[other]
    ours = search.index.isin(chosen)
    new = atlas(both[both["setting"] == other]).set_index("metric").loc[search.index].rename(columns={"loss": "other"})
    found = new.assign(chosen=ours, search=search.mean(axis=1)).reset_index()
    found = found[["metric", "chosen", "search", "other", "low", "high"]]
    if ours.all() or not ours.any():
        return found, dict.fromkeys(("excess", "low", "high"), np.nan)

    def ratio(before: np.ndarray, after: np.ndarray) -> float:
        growth = np.log(np.where((before > 0) & (after > 0), after / before, np.nan))
        return float(np.expm1(growth[ours].mean() - growth[~ours].mean()))

    drawn = [ratio(*means) for means in zip(_means(search.to_numpy(), 0), _means(unseen.to_numpy(), 1), strict=True)]
    low, high = percentiles(drawn)
    excess = ratio(search.mean(axis=1).to_numpy(), unseen.mean(axis=1).to_numpy())
    return found, {"excess": excess, "low": low, "high": high}
