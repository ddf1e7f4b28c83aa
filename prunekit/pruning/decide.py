"""The one place where a metric meets a layer: what is scored, what goes, and what the weights become.

`prune`, `prune_checkpoint` and the search all ask `decide`, so that a metric is in a search what it is after
it. A further weight update is a further line of `SOLVERS`.
"""
from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from prunekit.choices import Target
from prunekit.errors import UsageError
from prunekit.metric.catalogue import Method
from prunekit.metric.tree import Tree
from prunekit.pruning.admm import AdmmOptions, Inverse, admm_inverse, admm_update, output_error
from prunekit.pruning.inputs import InputStatistics
from prunekit.pruning.masks import bounds, keep_mask, remedy, zero_out
from prunekit.pruning.obs import Factor, ObsOptions, inverse_factor, obs_update

_MAGNITUDE = Tree.parse("W")


@dataclass(frozen=True)
class Known:
    """What a decision about a layer rests on: W (out, in), any dtype; G (out, in) float32; X and H."""

    W: Tensor
    G: Tensor | None = None
    inputs: InputStatistics | None = None
    expert: bool = False  # one of a mixture's, which perhaps no token reaches
    zeros: Tensor | None = None  # (out, in) bool: weights that are zero and must stay so; the mask's first

    @property
    def X(self) -> Tensor | None:
        return self.inputs.X if self.inputs else None

    def score(self, tree: Tree, *, check: bool = True) -> Tensor:
        """S (out, in) float32. Raises UsageError where it ranks nothing, unless `check` is off."""
        return tree.score(self.W, self.G, self.X, check=check)

    def unseen(self, needs: Iterable[str]) -> bool:
        """Did no token reach this expert? Of the statistics that are needed one is then all zero."""
        read = [self.X if name in "XH" else self.G for name in needs if name != "W"]
        return self.expert and not all(statistic is None or statistic.any() for statistic in read)

    def ranked_by(self, method: Method) -> Method:
        """The method itself; for an unseen expert, magnitude without an update."""
        return replace(method, tree=_MAGNITUDE, update=None) if self.unseen(method.needs) else method


@dataclass(frozen=True)
class Decision:
    """What becomes of a layer.

    keep: bool (out, in), True where the weight stays. W: (out, in) float32, the weights as a solver made them
    anew; None: those that stay, stay as they are. unseen: is it an expert that no token reached, so that
    magnitude decided? record: what the solver says of the layer.
    """

    keep: Tensor
    W: Tensor | None = None
    unseen: bool = False
    record: dict[str, Any] = field(default_factory=dict)

    def write(self, weight: Tensor, dense: Tensor | None = None) -> None:
        """Prune `weight` (out, in) in place; the weights that were decided on are in it, or in `dense`."""
        if self.W is None:
            zero_out(weight, self.keep, dense)
        else:
            weight.copy_(self.W)


def decide(known: Known, method: Method, target: Target, options: Any = None, S: Tensor | None = None
           ) -> Decision:
    """How a method prunes a layer; nothing is written. options: of its update. S: its scores, if known and
    found to be finite. A layer whose target is no zeros stays as it is.

    Raises UsageError if the scores rank nothing, and if the model's dtype cannot hold the update's weights.
    """
    if not target.sparsity:  # not even an update
        return Decision(torch.ones_like(known.W, dtype=torch.bool))
    ranked = known.ranked_by(method)
    if ranked.update is None:
        return Decision(_mask(known, ranked, target, S), unseen=ranked is not method)
    decision = SOLVERS[method.update].solve(known, method, target, options, S)
    largest, dtype = max(map(abs, bounds(decision.W))), known.W.dtype
    if not largest <= torch.finfo(dtype).max:  # also if it is not a number
        raise UsageError(f"the update makes a weight of {largest:.3g}, too large for {dtype}; "
                         f"{remedy(dtype)}.")
    return decision


def _mask(known: Known, method: Method, target: Target, S: Tensor | None) -> Tensor:
    known_finite = S is not None
    return keep_mask(S if known_finite else known.score(method.tree), *target, method.group, known.zeros,
                     check=not known_finite)


# --- weight updates -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Solver:
    """A weight update.

    options: the class of its options; shared: of what layers with the same inputs share; factor: (H (in, in),
    options) -> that; solve: (known, method, target, options, S) -> Decision.
    """

    options: type
    shared: type
    factor: Callable[[Tensor, Any], Any]
    solve: Callable[[Known, Method, Target, Any, Tensor | None], Decision]


def _obs(known: Known, method: Method, target: Target, options: ObsOptions, S: Tensor | None) -> Decision:
    """SparseGPT's solver: the whole mask first ("obs"), or block by block inside ("obs-iter")."""
    keep = score = None
    if method.update == "obs":
        keep = _mask(known, method, target, S)
    elif method.tree:
        score = method.tree.bind(known.W, known.G, known.X).score
    W, factor = known.W.to(torch.float32, copy=True), known.inputs.factored(inverse_factor, options)
    keep = obs_update(W, factor, *target, keep=keep, score=score, options=options, zeros=known.zeros)
    return Decision(keep, W, record={"damping": factor.damping, "dead": int(factor.dead.sum())})


def _admm(known: Known, method: Method, target: Target, options: AdmmOptions, S: Tensor | None) -> Decision:
    """The layer's problem as a whole, the mask by the metric of the current weights, whatever S is."""
    W, H = known.W.to(torch.float32, copy=True), known.inputs.H
    inverse = known.inputs.factored(admm_inverse, options, keep=True)
    keep = admm_update(W, inverse, *target, method.group, options=options,
                       score=lambda V: method.tree.score(V, known.G, known.X), zeros=known.zeros)
    error = {} if H is None else {"error": output_error(known.W.float(), W, H)}  # a search has given H up
    return Decision(keep, W, record={"damping": inverse.damping, "dead": int(inverse.dead.sum()),
                                     "iterations": options.iterations} | error)


SOLVERS = {"obs": Solver(ObsOptions, Factor, inverse_factor, _obs),
           "obs-iter": Solver(ObsOptions, Factor, inverse_factor, _obs),
           "admm": Solver(AdmmOptions, Inverse, admm_inverse, _admm)}
