"""The methods of the field, each one line: metric + comparison group + (optional) weight update.

Group: `row` (the lowest scores of every output row go), `layer` (one threshold for the whole layer),
`variant` (Wanda's, on cumulated scores). Update: None, "obs" (mask first, then the OBS update), "obs-iter"
(mask chosen block by block inside the OBS solver), "admm" (mask grown while the layer's problem is solved as
a whole).
"""
from __future__ import annotations

import re
from dataclasses import dataclass, replace

from prunekit.errors import UsageError, did_you_mean
from prunekit.metric.primitives import TERMINALS
from prunekit.metric.tree import Tree

GROUPS = ("row", "layer", "variant")
UPDATES = ("obs", "obs-iter", "admm")


@dataclass(frozen=True)
class Method:
    """`tree` None: the solver's own score w²/U_ii² (SparseGPT). `source`: where it was published."""

    name: str
    tree: Tree | None
    group: str = "row"
    update: str | None = None
    source: str = ""
    note: str = ""

    @property
    def needs(self) -> frozenset[str]:
        """Letters of the statistics it reads: W, G, X of its metric, and H for a weight update."""
        return (self.tree.terminals if self.tree else frozenset("W")) | frozenset("H" if self.update else "")


def _method(name: str, metric: str, source: str, note: str, group: str = "row") -> Method:
    return Method(name, Tree.parse(metric), group, None, source, note)


_PUBLISHED = "mul(abs(mul(W, W)), mms(G))"

METHODS: dict[str, Method] = {m.name: m for m in (
    _method("magnitude", "W", "Han et al. 2015, arXiv 1506.02626", "needs no data", "layer"),
    _method("wanda", "mul(W, sqrt(X))", "arXiv 2306.11695", "X is the squared norm, so its root is taken"),
    _method("wanda-variant", "mul(W, sqrt(X))", "arXiv 2306.11695, code option use_variant",
            "share of the cumulated score instead of a count per row", "variant"),
    Method("sparsegpt", None, "layer", "obs-iter", "arXiv 2301.00774",
           "w²/U_ii² per block of columns, U from H⁻¹ = UᵀU; kept weights are updated"),
    Method("admm", Tree.parse("mul(W, sqrt(X))"), "row", "admm", "arXiv 2401.02938",
           "Wanda's metric of the current weights; the layer's problem is solved as a whole"),
    _method("pruner-zero", _PUBLISHED, "arXiv 2406.02924",
            "the published tree; same masks as |W|·sqrt(G − min G)"),
    _method("pruner-zero-variant", _PUBLISHED, "arXiv 2406.02924, code option use_variant",
            "share of the cumulated score instead of a count per row", "variant"),
    _method("gblm", "add(mul(W, sqrt(X)), mul(W, G))", "arXiv 2311.04902",
            "|W|·‖X‖ + α·|W|·G: the scale 100 that gradients are collected with plays the part of α = 100"),
    _method("wanda++", "mul(W, add(sqrt(X), mul(100, G)))", "arXiv 2503.04992, score only",
            "its gradients are those of a block's output, ours of the loss; α = 100 on top of the scale"),
    _method("ria", "mul(add(rcol(W), rrow(W)), sqrt(sqrt(X)))", "Zhang et al., Plug-and-Play, ICLR 2024",
            "relative importance in row and column times ‖X‖^0.5; extended grammar"),
    _method("grad-weight", "mul(W, G)", "SNIP, arXiv 1810.02340, with accumulated gradient norms",
            "first-order loss change"),
    _method("fisher", "mul(sqr(W), sqr(G))", "LeCun et al. 1989 (OBD) with the diagonal empirical Fisher",
            "second-order loss change; same masks as grad-weight"),
    _method("w2g", "mul(sqr(W), G)", "the published metric without its min-max scaling",
            "differs where G is near its minimum"),
    _method("obd-layer", "mul(sqr(W), X)", "LeCun et al. 1989 on the layer's output error, diag H = 2X",
            "second-order change of the layer's output; same masks as wanda"),
    _method("weight-x", "mul(W, X)", "a common misreading of Wanda", "|W| times the squared norm: not Wanda"),
    _method("gradient", "G", "none (control)", "ignores the weight"),
)}
"""The methods of the field by name, each with its metric, group, update, source and a note."""


def resolve(method: str | Tree | Method, group: str | None = None, update: str | None = None) -> Method:
    """The method asked for: a catalogue name, a Tree or its text; `group` and `update` override its own.

    Raises UsageError for an unknown name (with the nearest), group or update, for a metric that cannot be
    read, for `sparsegpt` with another update than its own, for `variant` with a score not proven >= 0, and
    under `obs-iter`, which has a threshold per block of columns, for a metric of group `variant` or one that
    is asked to compare by `layer`.
    """
    asked = method if isinstance(method, Method) else _find(method)
    if group is not None and group not in GROUPS:
        raise UsageError(f"unknown comparison group {group!r}{did_you_mean(group, GROUPS)}")
    if update is not None and update not in UPDATES:
        raise UsageError(f"unknown weight update {update!r}{did_you_mean(update, UPDATES)}")
    asked = replace(asked, group=group or asked.group, update=update or asked.update)
    if asked.tree is None and asked.update != "obs-iter":
        raise UsageError(f"{asked.name} chooses its mask inside the solver: update must be 'obs-iter', "
                         f"not {update!r}")
    if asked.tree and asked.update == "obs-iter" and (group == "layer" or asked.group == "variant"):
        raise UsageError(f"update 'obs-iter' compares by block of columns, so group {asked.group!r} is not "
                         "what would happen; leave that group out, or take update 'obs' or 'admm'")
    if asked.group == "variant" and (asked.tree is None or asked.tree.sign != 1):
        raise UsageError(f"group 'variant' cumulates scores, so it needs a metric that is never negative; "
                         f"{asked.name} is not proven to be")
    return asked


def _find(method: str | Tree) -> Method:
    if isinstance(method, Tree):
        return Method(str(method), method, source="given as a tree")
    if not isinstance(method, str):
        raise UsageError(f"a method is a name, a Tree or its text, not {type(method).__name__}")
    if method in METHODS:
        return METHODS[method]
    if re.fullmatch(r"[\w+-]*[a-z][\w+-]*", method) and method not in TERMINALS:
        raise UsageError(f"unknown method '{method[:60]}'{did_you_mean(method[:60], METHODS)}; "
                         "a metric is written as in 'mul(W, sqrt(X))'")
    return _find(Tree.parse(method))
