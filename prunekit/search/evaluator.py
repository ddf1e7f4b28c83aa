"""What a metric costs: the dense models, their statistics and the search windows stay resident; a tree is scores, masks,
masked forward, and everything as it was before."""
from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from prunekit.choices import Target
from prunekit.errors import UsageError
from prunekit.files import read_json, replacing_file
from prunekit.metric.catalogue import UPDATES
from prunekit.metric.tree import Tree, defect
from prunekit.models import check_windows
from prunekit.pruning.gradients import Gradients
from prunekit.pruning.masks import keep_mask, zero_out
from prunekit.pruning.obs import Factor, ObsOptions, obs_update
from prunekit.search.bench import Bench, without_gradients
from prunekit.search.records import Outcome, Race, behind

_PROBE_ROWS = 8
_FEW_DISTINCT = 0.5  # of a row's scores: fewer, and position decides the mask rather than the metric
_TOP, _MOST = 0.1, 0.9  # a metric that removes 90 % of the largest tenth of the weights is upside down
Applied = Callable[[], None]


class Evaluator:
    """Fitness of metrics: the mean over models, targets and search windows of ln(ppl pruned / ppl dense), one-shot.

    benches: one model or several (with equally many search windows). targets: what to prune to, each a sparsity (0.6:
    unstructured, per row) or a pattern ("2:4"). update: None, "obs" or "obs-iter": every candidate is scored with this
    weight update on; the factored Hessians are shared. rungs: the numbers of windows after which a hopeless candidate
    may be stopped; the windows are taken in one fixed random order. threads: per evaluation, since sums depend on it.

    Raises UsageError if there is no target or an impossible one, an unknown update, rungs that do not grow, or models with
    different numbers of windows.
    """

    def __init__(self, benches: Bench | Sequence[Bench], targets: Sequence[float | str] = (0.5,), *, update: str | None = None,
                 rungs: Sequence[int] = (16, 64), threads: int = 1, seed: int = 0, obs: ObsOptions = ObsOptions()):
        self._set(benches, targets, update, rungs, threads, seed, obs)
        with without_gradients(self.threads):
            for bench in self.benches:
                order = torch.randperm(len(bench.search), generator=torch.Generator().manual_seed(seed))
                bench.search = bench.search[order]
                bench.prepare(update is not None, obs)

    def _set(self, benches: Bench | Sequence[Bench], targets: Sequence[float | str], update: str | None, rungs: Sequence[int],
             threads: int, seed: int, obs: ObsOptions) -> None:
        self.benches = [benches] if isinstance(benches, Bench) else list(benches)
        self.targets = [Target.parse(target) for target in targets]
        self.update, self.threads, self.seed, self.obs = update, threads, seed, obs
        self.home: Path | None = None
        if not self.targets or not self.benches:
            raise UsageError("an evaluator needs at least one model and one target, such as 0.6 or \"2:4\".")
        if update is not None and update not in UPDATES:
            raise UsageError(f"weight update {update!r} is not known; give None, \"obs\" or \"obs-iter\".")
        counts = {len(bench.search) for bench in self.benches}
        if len(counts) > 1:
            raise UsageError(f"the models have {' and '.join(map(str, sorted(counts)))} search windows; give equally many.")
        windows = counts.pop()
        self.rungs = [rung for rung in rungs if rung < windows] + [windows]
        if self.rungs != sorted(set(self.rungs)) or self.rungs[0] < 1:
            raise UsageError(f"rungs {list(rungs)} must grow and begin at 1 window or more.")

    @property
    def group(self) -> str:
        """The comparison group that proofs of sameness must hold in: the solver has one threshold per block of columns."""
        unstructured = any(pattern == "unstructured" for _, pattern in self.targets)
        return "layer" if self.update == "obs-iter" and unstructured else "row"

    @property
    def parts(self) -> list[str]:
        """What fitness is the mean over, model by model: the targets, after the model's name where there are several."""
        targets = self._named()
        models = [bench.name or type(bench.model).__name__ for bench in self.benches]
        if len(models) == 1:
            return targets
        if len(set(models)) < len(models):
            models = [f"{model} #{place}" for place, model in enumerate(models, 1)]
        return [f"{model} {target}" for model in models for target in targets]

    def _named(self) -> list[str]:
        return [str(target) for target in self.targets]

    @property
    def identity(self) -> dict[str, Any]:
        """What decides an evaluation's result; in the journal's header."""
        return {"models": [bench.identity for bench in self.benches], "tasks": [list(target) for target in self.targets],
                "update": self.update or "", "rungs": self.rungs, "threads": self.threads, "seed": self.seed,
                "torch": torch.__version__}

    # One metric -----------------------------------------------------------------------------------------------------

    def __call__(self, tree: Tree, race: Race | None = None, seen: Mapping[str, int] | None = None,
                 raw: Tree | None = None) -> Outcome:
        """Measure one metric. seen: masks measured before, which are not measured again (never with a weight update).

        raw: the tree as bred; a form that is valid only because simplifying removed the invalid part is refused.
        """
        with without_gradients(self.threads):
            trees = dict.fromkeys((raw or tree, tree))  # in order, since the first reason is written down
            why = next((found for one in trees if (found := self._probe(one))), "")
            if why:
                return Outcome(defect=why)
            try:
                applied, masks = self._pruned(tree)
            except UsageError as error:
                return Outcome(defect=str(error)[:200])
            if not self.update and masks in (seen or {}):
                return Outcome(same=seen[masks], masks=masks)
            try:
                return self._raced(applied, race, masks)
            finally:
                for bench in self.benches:
                    bench.restore()

    def on(self, windows: Sequence[Tensor] | None = None, targets: Sequence[float | str] | None = None) -> Evaluator:
        """The same models and statistics on other windows, one tensor (n, seqlen) per model, or pruned to other targets.

        The dense models read the new windows once, here; they keep their order.
        """
        benches = [copy.copy(bench) for bench in self.benches]
        with without_gradients(self.threads):
            for bench, given in zip(benches, windows or (), strict=bool(windows)):
                check_windows(bench.model, given)
                bench.search, bench.nll = given, bench.measure(given)
        other = Evaluator.__new__(Evaluator)
        other._set(benches, self._named() if targets is None else targets, self.update, self.rungs[:-1], self.threads, self.seed, self.obs)
        return other

    def losses(self, tree: Tree) -> np.ndarray:
        """nll(pruned) - nll(dense) of a metric: (models, targets, windows) float64, on the search windows in their order.
        Raises UsageError if the metric is invalid there."""
        with without_gradients(self.threads):
            applied, _ = self._pruned(tree)
            try:
                return np.array([[self._after(apply, bench, bench.search) - bench.nll for apply in one]
                                 for one, bench in zip(applied, self.benches, strict=True)])
            finally:
                for bench in self.benches:
                    bench.restore()

    @staticmethod
    def _after(apply: Applied, bench: Bench, windows: Tensor) -> np.ndarray:
        apply()
        return bench.measure(windows)

    def _raced(self, applied: list[list[Applied]], race: Race | None, masks: str) -> Outcome:
        losses: list[float] = []
        sums = np.zeros(len(self.parts))
        stopped = 0
        for end in self.rungs:
            part = slice(len(losses), end)
            found = np.stack([self._after(apply, bench, bench.search[part]) - bench.nll[part]
                              for bench, appliers in zip(self.benches, applied, strict=True) for apply in appliers])
            if not np.isfinite(found).all():
                return Outcome(defect="the pruned model's loss is not finite")
            sums += found.sum(1)
            losses += found.mean(0).astype(np.float32).tolist()
            if race and not stopped and end < self.rungs[-1] and behind(losses, race):
                stopped = end
                if not race.audit:
                    break
        by_task = dict(zip(self.parts, (sums / len(losses)).tolist(), strict=True))
        return Outcome(losses, len(losses) == self.rungs[-1], stopped, masks, by_task=by_task)

    def _probe(self, tree: Tree) -> str:
        """Why a tree is no metric, as far as the smallest layer shows; "" if it may be one."""
        bench = self.benches[0]
        index = min(range(len(bench.layers)), key=lambda i: bench.dense[i].numel())
        S = bench.scores(tree, index)
        if why := defect(S):
            return why
        distinct = [len(row.unique()) for row in S[:_PROBE_ROWS]]
        if sum(distinct) < _FEW_DISTINCT * len(distinct) * S.shape[1]:
            return "tied"
        sparsity, pattern = self.targets[0]
        W = bench.dense[index].abs().flatten()
        largest = W.topk(max(1, int(_TOP * W.numel()))).indices
        removed = ~keep_mask(S, sparsity, pattern).flatten()[largest]
        return "inverted" if removed.float().mean() > _MOST else ""

    def _pruned(self, tree: Tree) -> tuple[list[list[Applied]], str]:
        """Per model and target what prunes the model, and one hash of all masks."""
        sha = hashlib.blake2b(digest_size=12)
        applied = []
        for bench in self.benches:
            kept: list[list[Tensor]] = [[] for _ in self.targets]
            for index, layer in enumerate(bench.layers):
                S = bench.scores(tree, index)
                if why := defect(S):
                    raise UsageError(f"{why} in layer {layer.name}")
                for keep, (sparsity, pattern) in zip(kept, self.targets, strict=True):
                    keep.append(self._solved(bench, index, tree, S, sparsity, pattern))
                    if not self.update:
                        sha.update(np.packbits(keep[-1].cpu().numpy()).tobytes())
            applied.append([self._applier(bench, one) for one in kept])
        return applied, "" if self.update else sha.hexdigest()

    def _solved(self, bench: Bench, index: int, tree: Tree, S: Tensor, sparsity: float, pattern: str) -> Tensor:
        """The keep mask of a layer or, with a weight update, its new weights."""
        if self.update == "obs-iter":
            bound = tree.bind(bench.dense[index], bench.G[index] if bench.G else None, bench.X[index])
            W = bench.dense[index].float().clone()
            obs_update(W, bench.factors[index], sparsity, pattern, score=bound.score, options=self.obs)
            return W
        keep = keep_mask(S, sparsity, pattern)
        if self.update is None:
            return keep
        W = bench.dense[index].float().clone()
        obs_update(W, bench.factors[index], sparsity, pattern, keep=keep, options=self.obs)
        return W

    def _applier(self, bench: Bench, found: list[Tensor]) -> Applied:
        @torch.no_grad()
        def apply() -> None:
            for layer, dense, one in zip(bench.layers, bench.dense, found, strict=True):
                if self.update:
                    layer.weight.copy_(one)
                else:
                    layer.weight.copy_(dense)
                    zero_out(layer.weight, one)
        return apply

    # In other processes ---------------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> Path:
        """Write all statistics and windows to a .safetensors file, so that workers (also on other machines that see the
        file) can load the same evaluator. Raises UsageError for a model that was given as an object."""
        if any(not bench.name for bench in self.benches):
            raise UsageError("an evaluator of a model that was given as an object cannot be saved: give the model's name.")
        tensors: dict[str, Tensor] = {}
        for number, bench in enumerate(self.benches):
            tensors |= {f"{number}/calibration": bench.calibration, f"{number}/search": bench.search,
                        f"{number}/nll": torch.from_numpy(bench.nll)}
            for i, layer in enumerate(bench.layers):
                tensors[f"{number}/X/{layer.name}"] = bench.X[i]
                if bench.G:
                    tensors[f"{number}/G/{layer.name}"] = bench.G[i]
                if bench.factors[i]:
                    tensors |= {f"{number}/U/{layer.name}": bench.factors[i].U, f"{number}/dead/{layer.name}": bench.factors[i].dead}
        self.home = Path(path).resolve()
        meta = self.identity | {"benches": [[b.name, b.dtype, b.device] for b in self.benches]}
        whole = {key: tensor.cpu().contiguous().clone() for key, tensor in tensors.items()}  # layers share X: one copy each
        with replacing_file(self.home) as file:
            save_file(whole, file, metadata={"prunekit": json.dumps(meta)})
        return self.home

    @classmethod
    def load(cls, path: str | Path) -> Evaluator:
        """An evaluator as it was saved. Raises UsageError if the file is none, or if its model is another one by now."""
        path = Path(path)
        if not path.is_file():
            raise UsageError(f"there is no saved evaluator {path}: make one with Evaluator(…).save(path).")
        return _resident(str(path.resolve()), path.stat().st_mtime_ns)

    def __reduce__(self) -> tuple[Any, ...]:
        if self.home is None:
            raise UsageError("this evaluator lives in this process only: save it first (evaluator.save(path)), so that other "
                             "processes can load it.")
        return Evaluator.load, (self.home,)

    @classmethod
    def _read(cls, path: Path) -> Evaluator:
        try:
            with safe_open(path, "pt") as file:
                meta = read_json((file.metadata() or {})["prunekit"])
                tensors = {key: file.get_tensor(key) for key in file.keys()}
            benches = [_read_bench(tensors, number, *named) for number, named in enumerate(meta["benches"])]
        except (SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
            if isinstance(error, UsageError):
                raise
            raise UsageError(f"{path} holds no evaluator ({str(error)[:80]}): make it anew with Evaluator(…).save(path).") from error
        self = cls.__new__(cls)
        targets = [str(Target(*target)) for target in meta["tasks"]]
        self._set(benches, targets, meta["update"] or None, meta["rungs"], meta["threads"], meta["seed"], ObsOptions())
        self.home = path
        then, now = meta["models"], self.identity["models"]
        if then != now:
            raise UsageError(f"the evaluator {path} was made with another state of {benches[0].name}: make it anew.")
        return self


@lru_cache(maxsize=2)
def _resident(path: str, changed: int) -> Evaluator:
    """One per process, however many evaluations it is sent for."""
    return Evaluator._read(Path(path))


def _read_bench(tensors: Mapping[str, Tensor], number: int, name: str, dtype: str, device: str) -> Bench:
    def of(kind: str) -> dict[str, Tensor]:
        start = f"{number}/{kind}/"
        return {key.removeprefix(start): value for key, value in tensors.items() if key.startswith(start)}

    G, U, dead = of("G"), of("U"), of("dead")
    bench = Bench(name, tensors[f"{number}/calibration"], tensors[f"{number}/search"], dtype=dtype, device=device,
                  gradients=Gradients(G) if G else None)
    X = of("X")
    bench.X = [bench._here(X[layer.name], layer) for layer in bench.layers]
    bench.factors = [Factor(bench._here(U[layer.name], layer), dead[layer.name].to(layer.weight.device), 0.0) if U else None
                     for layer in bench.layers]
    bench.nll = tensors[f"{number}/nll"].numpy()
    return bench

