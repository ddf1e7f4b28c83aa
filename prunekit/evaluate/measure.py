"""One model, many ways to prune it: prune, measure, put everything back."""
from __future__ import annotations

import copy
import threading
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from prunekit.choices import Target, percent
from prunekit.evaluate.perplexity import Perplexity, perplexity
from prunekit.models import as_it_was, layers
from prunekit.progress import tqdm
from prunekit.pruning.admm import output_error
from prunekit.pruning.gradients import Gradients
from prunekit.pruning.inputs import collect_inputs
from prunekit.pruning.prune import Report, prune
from prunekit.pruning.walk import Walk

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Measured:
    """One setting: what pruning did, and the perplexity after it on every test text, by its name."""

    report: Report
    perplexities: Mapping[str, Perplexity]

    @property
    def perplexity(self) -> Perplexity:
        """On the first test text."""
        return next(iter(self.perplexities.values()))

    @property
    def nll(self) -> np.ndarray:
        """Of the windows of the first test text."""
        return self.perplexity.nll

    def rows(self) -> list[dict[str, Any]]:
        """The rows of a result table, one for each text: setting, sparsity reached, perplexity with 95 %
        interval, windows; and the text's name, if it has one. setting: what it was pruned to, in words."""
        return [self._row(text, ppl) for text, ppl in self.perplexities.items()]

    def row(self) -> dict[str, Any]:
        """That of the first text."""
        return self._row(*next(iter(self.perplexities.items())))

    def _row(self, text: str, ppl: Perplexity) -> dict[str, Any]:
        meta, (low, high) = self.report.meta, ppl.interval
        target, pattern = self.report.target, meta["pattern"]
        return {"method": meta["method"], "metric": "perplexity", "sparsity": target, "pattern": pattern,
                "setting": percent(Target(round(target, 4), pattern)), "ppl": ppl.value, "low": low,
                "high": high, "reached": self.report.sparsity, "n": len(ppl.nll), "tree": meta["tree"],
                "calibration_windows": meta["n"], "group": meta["group"], "update": meta["update"],
                "seconds": meta["seconds"], "dtype": ppl.meta["dtype"], **({"text": text} if text else {})}


def prune_and_measure(model: nn.Module, calibration: Tensor, test: Tensor | Mapping[str, Tensor],
                      settings: Iterable[Mapping[str, Any]], *, gradients: Gradients | None = None,
                      progress: bool = True, workers: int = 1) -> Iterator[Measured]:
    """For every setting (keyword arguments of `prune`): prune, measure perplexity on test windows, yield.

    test: LongTensor (n, seqlen), or several of them by the names of their texts.

    While a result is being looked at the model is pruned; before the next one, and at the end, its weights
    are the dense ones again, bit for bit (a copy of the prunable weights is kept for that). With more than
    one of `workers` the settings are shared among as many threads, each with its own copy of the model, which
    itself stays dense then; a small model on a processor gains most, since one matrix product does not keep
    all cores busy.
    """
    if workers > 1:
        yield from _side_by_side(model, calibration, test, list(settings), gradients, progress, workers)
        return
    texts = test if isinstance(test, Mapping) else {"": test}
    with as_it_was(model) as restore:
        for setting in tqdm(list(settings), desc="settings", disable=not progress):
            report = prune(model, calibration, gradients=gradients, progress=False, **setting)
            yield Measured(report, {text: perplexity(model, windows, windows.shape[1], progress=False)
                                    for text, windows in texts.items()})
            restore()


def measure_targets(model: nn.Module, calibration: Tensor, test: Tensor | Mapping[str, Tensor],
                    methods: Mapping[str, Any], targets: Iterable[float | str], *,
                    gradients: Gradients | None = None, progress: bool = True, workers: int = 1, **shared: Any
                    ) -> dict[tuple[str, str], Measured]:
    """`prune_and_measure` of every method at every target ("0.6", "2:4"): {(name, target as given): result}.

    methods: name -> method of `prune`; one method under two names is measured once. shared: what all settings
    have in common, such as update="obs".
    """
    goals = {str(target): Target.parse(target) for target in targets}
    settings = {(str(method), word): {
        "method": method, "sparsity": goal.sparsity, "pattern": goal.pattern, **shared}
        for method in methods.values() for word, goal in goals.items()}
    results = prune_and_measure(model, calibration, test, settings.values(), gradients=gradients,
                                progress=progress, workers=workers)
    known = dict(zip(settings, results, strict=True))
    return {(name, word): known[str(method), word] for name, method in methods.items() for word in goals}


def _side_by_side(model: nn.Module, calibration: Tensor, test: Tensor | Mapping[str, Tensor],
                  settings: list[Mapping[str, Any]], gradients: Gradients | None, progress: bool,
                  workers: int) -> Iterator[Measured]:
    mine = threading.local()
    threads = max(1, torch.get_num_threads() // workers)

    def start() -> None:
        torch.set_num_threads(threads)  # of this thread's sums
        mine.model = copy.deepcopy(model)

    def one(setting: Mapping[str, Any]) -> Measured:
        [found] = prune_and_measure(mine.model, calibration, test, [setting], gradients=gradients,
                                    progress=False)
        return found

    pool = ThreadPoolExecutor(workers, initializer=start)
    try:
        yield from tqdm(pool.map(one, settings), total=len(settings), desc="settings", disable=not progress)
    finally:
        pool.shutdown(cancel_futures=True)


def kept_weights(model: nn.Module) -> dict[str, Tensor]:
    """The keep mask of every prunable layer as it is now: bool (out, in), True where a weight is not zero."""
    return {layer.name: layer.weight != 0 for layer in layers(model)}


def pruned_in_common(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> float:
    """Of the weights that either mask removes, the share that both remove (Jaccard index over all layers)."""
    both = sum(int((~first[name] & ~second[name]).sum()) for name in first)
    either = sum(int((~first[name] | ~second[name]).sum()) for name in first)
    return both / either if either else 1.0


def layer_errors(pruned: nn.Module, dense: nn.Module, windows: Tensor, *,
                 progress: bool = True) -> pd.DataFrame:
    """Relative reconstruction error of every prunable layer, on the dense model's inputs: one row per layer.

    error = ||(W - V) x||^2 / ||W x||^2 summed over the tokens of windows (n, seqlen), with W the dense and V
    the pruned weight; computed as tr(D H D^T) / tr(W H W^T) with D = W - V, from H (in, in), float32.
    """
    import pandas as pd

    others = {layer.name: layer for layer in layers(pruned)}
    rows = []
    with torch.no_grad():
        for step in Walk(dense, windows, one_shot=True, progress=progress):
            inputs = collect_inputs(step, len(windows), hessian=True)
            for layer in step.layers:
                V = others[layer.name].weight.float()
                rows.append({"layer": layer.name, "block": layer.block, "kind": layer.kind,
                             "error": output_error(layer.weight.float(), V, inputs[layer.name].H)})
    return pd.DataFrame(rows)
