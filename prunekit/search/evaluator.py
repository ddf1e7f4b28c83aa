"""What a metric costs: the dense models, their statistics and the search windows stay resident; a tree is
scores, masks, a masked forward pass, and everything as it was before."""
from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from prunekit.choices import Sparsity, Target, checked
from prunekit.errors import UsageError
from prunekit.files import read_json, replacing_file
from prunekit.metric.catalogue import UPDATES, Method
from prunekit.metric.tree import Tree, defect
from prunekit.models import check_windows
from prunekit.pruning.admm import AdmmOptions
from prunekit.pruning.budgets import layer_targets
from prunekit.pruning.decide import SOLVERS, Decision
from prunekit.pruning.gradients import Gradients
from prunekit.pruning.inputs import InputStatistics
from prunekit.pruning.masks import keep_mask, mask_sums
from prunekit.pruning.obs import ObsOptions, check_blocks
from prunekit.search.bench import Bench, together, without_gradients
from prunekit.search.budgets import Budget, Places
from prunekit.search.records import Outcome, Race, behind

_PROBE_ROWS = 8
_FEW_DISTINCT = 0.5  # scores of a row to its weights: fewer, and position decides, not the metric
_TOP, _MOST = 0.1, 0.9  # a metric that removes 90 % of the largest tenth of the weights is upside down,
# but at targets above that share, where a good one removes most of them as well: there it is nearly all
Decided = list[list[list[Decision]]]  # by model, target and layer


class Evaluator:
    """Fitness of metrics, one-shot: the mean over models, targets and windows of ln(ppl pruned / ppl dense).

    benches: one model or several (with equally many search windows). targets: what to prune to, each a
    sparsity (0.6: unstructured, per row) or a pattern ("2:4"). update: None, or the weight update that every
    candidate is scored with; the factored Hessians are shared. rungs: the numbers of windows after which a
    hopeless candidate may be stopped; the windows are taken in one fixed random order. threads: per
    evaluation, since sums depend on it; evaluations of one process take turns. What becomes of a layer is
    `pruning.decide`'s word, as in `prune`. A bench is then this evaluator's; a further one works on a copy.

    Raises UsageError if there is no target or an impossible one, an unknown update, threads, a seed or rungs
    that cannot be, or models with different numbers of windows.
    """

    def __init__(self, benches: Bench | Sequence[Bench], targets: Sequence[float | str] = (0.5,), *,
                 update: str | None = None, rungs: Sequence[int] = (16, 64), threads: int = 1, seed: int = 0,
                 obs: ObsOptions = ObsOptions(), admm: AdmmOptions = AdmmOptions()):
        self.update, self.threads, self.seed = update, threads, seed
        self.options = admm if update == "admm" else obs
        given = [benches] if isinstance(benches, Bench) else benches
        self._set([bench.again() if bench.inputs else bench for bench in given], targets, rungs)
        with without_gradients(self.threads):
            for bench in self.benches:
                order = torch.randperm(len(bench.search), generator=torch.Generator().manual_seed(seed))
                bench.search = bench.search[order]
                bench.prepare(update, self.options)

    def _set(self, benches: list[Bench], targets: Sequence[float | str], rungs: Sequence[int]) -> None:
        checked("threads", self.threads, Annotated[int, Field(ge=1)])
        checked("seed", self.seed, Annotated[int, Field(ge=0, lt=2**63)])
        rungs = checked("rungs", list(rungs), list[Annotated[int, Field(ge=1)]])
        self.benches, self.targets = benches, [Target.parse(target) for target in targets]
        self.home: Path | None = None
        if not self.targets or not self.benches:
            raise UsageError("an evaluator needs at least one model and one target, such as 0.6 or \"2:4\".")
        if len(set(self.targets)) < len(self.targets):
            named = " ".join(map(str, self.targets))
            raise UsageError(f"targets {named} name one twice, and it would count twice.")
        if self.update is not None and self.update not in UPDATES:
            known = ", ".join(UPDATES)
            raise UsageError(f"weight update {self.update!r} is not known; give None or one of {known}.")
        for target in self.targets:
            for bench in self.benches:
                layer_targets(bench.layers, str(target))
            if self.update in ("obs", "obs-iter"):
                check_blocks(self.options, target.pattern)
        counts = {len(bench.search) for bench in self.benches}
        if len(counts) > 1:
            several = " and ".join(map(str, sorted(counts)))
            raise UsageError(f"the models have {several} search windows; give equally many.")
        windows = counts.pop()
        self.rungs = [rung for rung in rungs if rung < windows] + [windows]
        if self.rungs != sorted(set(self.rungs)):
            raise UsageError(f"rungs {rungs} must grow.")

    @property
    def group(self) -> str:
        """The group that proofs of sameness must hold in: obs-iter compares weights that it has updated."""
        return "solver" if self.update == "obs-iter" else "row"

    @property
    def parts(self) -> list[str]:
        """What fitness is the mean over: the targets, after the model's name where there are several."""
        targets = [str(target) for target in self.targets]
        models = [bench.name or type(bench.model).__name__ for bench in self.benches]
        if len(models) == 1:
            return targets
        if len(set(models)) < len(models):
            models = [f"{model} #{place}" for place, model in enumerate(models, 1)]
        return [f"{model} {target}" for model in models for target in targets]

    @property
    def identity(self) -> dict[str, Any]:
        """What decides an evaluation's result; in the journal's header."""
        known = {"models": [bench.identity for bench in self.benches],
                 "tasks": [list(target) for target in self.targets], "update": self.update or "",
                 "rungs": self.rungs, "threads": self.threads, "seed": self.seed, "torch": torch.__version__}
        if self.update:
            known["options"] = json.loads(json.dumps(asdict(self.options)))  # lists, as they will be read
        return known

    # One metric ---------------------------------------------------------------------------------------------

    @property
    def places(self) -> Places:
        """What budgets are moved between. Raises UsageError for several models or targets."""
        if len(self.benches) > 1 or len(self.targets) > 1:
            raise UsageError(f"budgets are evolved for one model and one target, and here are "
                             f"{len(self.benches)} and {len(self.targets)}: give one of each.")
        return Places.of(self.benches[0].layers, self.targets[0])

    def budget(self, sparsity: Sparsity) -> Budget:
        """What `prune` takes as a sparsity, as a budget; UsageError if its mean is not the target."""
        layers = self.benches[0].layers
        blocks = 1 + max(layer.block for layer in layers)
        return self.places.near(layer_targets(layers, sparsity, self.targets[0].pattern, (), blocks), layers)

    def __call__(self, tree: Tree, race: Race | None = None, seen: Mapping[str, int] | None = None,
                 raw: Tree | None = None, budget: Budget | None = None) -> Outcome:
        """Measure one metric. seen: masks measured before, not measured again (never with a weight update).

        raw: the tree as bred; a form that is valid only because simplifying removed the invalid part is
        refused. budget: what each layer is pruned to instead of the target, if one is given.
        """
        with without_gradients(self.threads):
            trees = dict.fromkeys((raw or tree, tree))  # in order, since the first reason is written down
            if why := next(filter(None, map(self._probe, trees)), ""):
                return Outcome(defect=why)
            try:
                for bench in self.benches if len(trees) > 1 else ():
                    bench.check(raw)
                decided, masks = self._decided(tree, budget)
            except UsageError as error:
                return Outcome(defect=str(error)[:200])
            if not self.update and masks in (seen or {}):
                return Outcome(same=seen[masks], masks=masks)
            try:
                return self._raced(decided, race, masks)
            finally:
                self._restore()

    def on(self, windows: Sequence[Tensor] | None = None,
           targets: Sequence[float | str] | None = None) -> Evaluator:
        """The same models and statistics on other windows, one tensor (n, seqlen) per model, or pruned to
        other targets. The dense models read the new windows once, here; they keep their order."""
        benches = [copy.copy(bench) for bench in self.benches]
        with without_gradients(self.threads):
            for bench, given in zip(benches, windows or (), strict=bool(windows)):
                check_windows(bench.model, given)
                bench.given = bench.search = given
                bench.nll = bench.measure(given)
        other = Evaluator.__new__(Evaluator)
        vars(other).update(vars(self))
        other._set(benches, list(map(str, self.targets)) if targets is None else targets, self.rungs[:-1])
        return other

    def losses(self, tree: Tree, budget: Budget | None = None) -> np.ndarray:
        """nll(pruned) - nll(dense) of a metric: (models, targets, windows) float64, on the search windows in
        their order. Raises UsageError if the metric is invalid there."""
        with without_gradients(self.threads):
            decided, _ = self._decided(tree, budget)
            try:
                return self._losses(decided).reshape(len(self.benches), len(self.targets), -1)
            finally:
                self._restore()

    def _decided(self, tree: Tree, budget: Budget | None = None) -> tuple[Decided, str]:
        """What becomes of every layer, and one hash of all masks."""
        method = Method(str(tree), tree, update=self.update)
        sha, decided = hashlib.blake2b(digest_size=12), []
        for bench in self.benches:
            if budget is None:
                by_layer = bench.decide_all(method, self.targets, self.options)
            else:
                by_layer = [[bench.decide_again(method, i, budget.of(layer), self.options)]
                            for i, layer in enumerate(bench.layers)]
            for content in () if self.update else identifying(by_layer, bench.stacks):
                sha.update(content)
            decided.append(list(zip(*by_layer, strict=True)))
        return decided, "" if self.update else sha.hexdigest()

    def _losses(self, decided: Decided, part: slice = slice(None)) -> np.ndarray:
        """What pruning adds to the nll of some windows, (models * targets, windows); they stay pruned."""
        losses = []
        for bench, by_target in zip(self.benches, decided, strict=True):
            for decisions in by_target:
                bench.apply(decisions)
                losses.append(bench.measure(bench.search[part]) - bench.nll[part])
        return np.stack(losses)

    def _restore(self) -> None:
        for bench in self.benches:
            bench.restore()

    def _raced(self, decided: Decided, race: Race | None, masks: str) -> Outcome:
        losses: list[float] = []
        sums = np.zeros(len(self.parts))
        stopped = 0
        for end in self.rungs:
            by_part = self._losses(decided, slice(len(losses), end))  # (parts, windows of this rung)
            if not np.isfinite(by_part).all():
                return Outcome(defect="the pruned model's loss is not finite")
            sums += by_part.sum(1)
            losses += by_part.mean(0).astype(np.float32).tolist()
            if race and not stopped and end < self.rungs[-1] and behind(losses, race):
                stopped = end
                if not race.audit:
                    break
        by_task = dict(zip(self.parts, (sums / len(losses)).tolist(), strict=True))
        return Outcome(losses, len(losses) == self.rungs[-1], stopped, masks, by_task=by_task)

    def _probe(self, tree: Tree) -> str:
        """Why a tree is no metric, as far as one small layer shows; "" if it may be one."""
        bench = self.benches[0]
        S = bench.scores(tree, bench.smallest)
        if why := defect(S):
            return why
        W = bench.dense[bench.smallest].abs()
        distinct, of_weights = (sum(len(row.unique()) for row in rows[:_PROBE_ROWS]) for rows in (S, W))
        if distinct < _FEW_DISTINCT * of_weights:
            return "tied"
        W = W.flatten()
        largest = W.topk(max(1, int(_TOP * W.numel()))).indices
        removed = ~keep_mask(S, *self.targets[0]).flatten()[largest]
        sparsity = self.targets[0].sparsity
        bar = _MOST if sparsity <= _MOST else _MOST + (1 - _MOST) * sparsity
        return "inverted" if removed.float().mean() > bar else ""

    # In other processes -------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> Path:
        """Write all statistics and windows to a .safetensors file, so that workers (also on other machines
        that see it) can load the same evaluator. Raises UsageError for a model that was given as an
        object."""
        if any(not bench.name for bench in self.benches):
            raise UsageError("an evaluator of a model that was given as an object cannot be saved: give the "
                             "model's name.")
        tensors: dict[str, Tensor] = {}
        for number, bench in enumerate(self.benches):
            tensors |= {f"{number}/calibration": bench.calibration, f"{number}/search": bench.search,
                        f"{number}/given": bench.given, f"{number}/nll": torch.from_numpy(bench.nll)}
            for index, layer in enumerate(bench.layers):
                known = bench.known(index)
                shared = vars(known.inputs.shared) if self.update else {}
                tensors |= {f"{number}/{kind}/{layer.name}": tensor for kind, tensor in
                            {"X": known.X, "G": known.G, **shared}.items() if isinstance(tensor, Tensor)}
        self.home = Path(path).resolve()
        meta = self.identity | {"benches": [[b.name, b.dtype, b.device, b.tokens] for b in self.benches]}
        # Layers share X: one copy each
        whole = {key: tensor.cpu().contiguous().clone() for key, tensor in tensors.items()}
        with replacing_file(self.home) as file:
            save_file(whole, file, metadata={"prunekit": json.dumps(meta)})
        self._saved = _digest(meta)
        return self.home

    @classmethod
    def load(cls, path: str | Path) -> Evaluator:
        """An evaluator as it was saved. Raises UsageError if there is none, or its model has changed."""
        path = Path(path)
        if not path.is_file():
            raise UsageError(f"there is no saved evaluator {path}: make one with Evaluator(…).save(path).")
        return _resident(str(path.resolve()), path.stat().st_mtime_ns)

    def __reduce__(self) -> tuple[Any, ...]:
        if self.home is None:
            raise UsageError("this evaluator lives in this process only: save it first "
                             "(evaluator.save(path)), so that other processes can load it.")
        return _sent, (self.home, self._saved)

    @classmethod
    def _read(cls, path: Path) -> Evaluator:
        self = cls.__new__(cls)
        try:
            with safe_open(path, "pt") as file:
                meta = read_json((file.metadata() or {})["prunekit"])
                tensors = {key: file.get_tensor(key) for key in file.keys()}
            self.update, self.threads, self.seed = meta["update"] or None, meta["threads"], meta["seed"]
            options = SOLVERS[self.update].options if self.update else ObsOptions
            self.options = options(**meta.get("options", {}))
            benches = [_read_bench(tensors, number, self.update, *named)
                       for number, named in enumerate(meta["benches"])]
            self._set(benches, [str(Target(*target)) for target in meta["tasks"]], meta["rungs"])
            same = meta["models"] == self.identity["models"]
        except UsageError:
            raise
        except (SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
            raise UsageError(f"{path} holds no evaluator ({str(error)[:80]}): make it anew with "
                             "Evaluator(…).save(path).") from error
        self.home, self._saved = path, _digest(meta)
        if not same:
            raise UsageError(f"the evaluator {path} was made with another state of {benches[0].name}: make "
                             "it anew.")
        return self


def _digest(meta: Mapping[str, Any]) -> str:
    return hashlib.blake2b(json.dumps(meta).encode(), digest_size=12).hexdigest()


def _sent(path: Path, saved: str) -> Evaluator:
    """In a worker, the evaluator that was sent to it. Raises UsageError if another was saved there since."""
    found = Evaluator.load(path)
    if found._saved != saved:
        raise UsageError(f"another evaluator was saved as {path} since: give each a file of its own.")
    return found


def identifying(decided: Sequence[Sequence[Decision]], stacks: Sequence[Sequence[int]]
                ) -> Iterable[bytes | np.ndarray]:
    """What the hash of all masks is made of: their bits or, not to bring these from a GPU, sums of stacks."""
    masks = [[each.keep for each in by_target] for by_target in decided]  # by layer and target
    if all(keep.device.type == "cpu" for keep in chain(*masks)):
        return (np.packbits(keep.numpy()) for keep in chain(*masks))
    by_target = zip(*masks, strict=True)
    sums = [mask_sums(torch.cat([keeps[i] for i in stack])) for keeps in by_target for stack in stacks]
    return [together(sums).numpy().tobytes()]


@lru_cache(maxsize=2)
def _resident(path: str, changed: int) -> Evaluator:
    """One per process, however many evaluations it is sent for."""
    return Evaluator._read(Path(path))


def _read_bench(tensors: Mapping[str, Tensor], number: int, update: str | None, name: str, dtype: str,
                device: str, tokens: int | None) -> Bench:
    by_kind: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        whose, kind, *name_of = key.split("/", 2)
        if whose == str(number):
            by_kind.setdefault(kind, {})["".join(name_of)] = tensor
    G, calibration, search = by_kind.get("G"), by_kind["calibration"][""], by_kind["search"][""]
    if device.startswith("cuda:") and torch.cuda.device_count() == 1:  # a worker, with a GPU of its own
        device = "cuda"
    bench = Bench(name, calibration, search, dtype=dtype, device=device, tokens=tokens,
                  gradients=G and Gradients(G))
    for layer in bench.layers:
        here = {kind: by_layer[layer.name].to(layer.weight.device) for kind, by_layer in by_kind.items()
                if layer.name in by_layer}
        bench.inputs.append(InputStatistics(len(calibration), here.pop("X")))
        here.pop("G", None)
        if update:  # the rest is what the update's layers share
            bench.inputs[-1].shared = SOLVERS[update].shared(**here, damping=0.0)
    bench.nll = by_kind["nll"][""].numpy()
    bench.given = by_kind["given"][""]
    return bench
