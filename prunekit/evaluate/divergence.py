"""How far a pruned model's predictions are from the dense model's, which perplexity averages away."""
from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from prunekit.errors import UsageError
from prunekit.evaluate.intervals import mean_of, within
from prunekit.evaluate.perplexity import batches, cut, logit_pieces
from prunekit.models import check_windows, in_eval_mode
from prunekit.pruning.walk import batch_tokens


@dataclass(frozen=True)
class Divergence:
    """Of a model from the dense one, per window (n,), float64.

    kl: mean over the window's predictions of KL(p_dense || p) = sum_v p_dense(v) ln(p_dense(v) / p(v)), nats
    per token; changed: share of predictions whose most probable token is another one.
    """

    kl: np.ndarray
    changed: np.ndarray
    meta: dict[str, Any] = field(default_factory=dict)

    def row(self) -> dict[str, Any]:
        """Means over windows, 95 % intervals: kl, kl_low, kl_high, changed, changed_low, changed_high, n.

        Neither can be negative, nor a share above 1, so on few windows an interval ends there.
        """
        row: dict[str, Any] = {**self.meta, "n": len(self.kl)}
        for name, most in (("kl", math.inf), ("changed", 1.0)):
            mean = mean_of(getattr(self, name), running=True)
            low, high = within(mean.interval(), min(0.0, mean.value), most)  # of like models: rounding
            row |= {name: mean.value, f"{name}_low": low, f"{name}_high": high}
        return row


def divergence(model: nn.Module, dense: nn.Module, tokens: Tensor, seqlen: int = 128, *,
               progress: bool = True, meta: dict[str, Any] | None = None) -> Divergence:
    """Compare two models' next-token distributions on the same tokens: `Divergence`, one value per window.

    tokens: a text (1-D), cut into consecutive windows of seqlen with the rest dropped, or windows (n,
    seqlen). Both models are in memory; of their logits never more than `perplexity.LOGIT_BUDGET` each at
    once. Sums in float32, means in float64.

    Raises UsageError if the vocabularies differ, and where `perplexity` does.
    """
    windows = cut(tokens, seqlen)
    sizes = [one.get_input_embeddings().num_embeddings for one in (model, dense)]
    if sizes[0] != sizes[1]:
        raise UsageError(f"models with vocabularies of {sizes[0]} and {sizes[1]} tokens have no "
                         "distributions to compare; give the dense model that was pruned.")
    check_windows(model, windows)
    kl, changed = [], []
    with in_eval_mode(model, dense), torch.no_grad():
        tokens = batch_tokens(model)
        here, there = logit_pieces(model, tokens), logit_pieces(dense, tokens)
        for batch in batches(windows, tokens, "divergence", progress):
            parts = [_compare(q, p.to(q.device)) for q, p in zip(here(batch), there(batch), strict=True)]
            for kept, values in zip((kl, changed), zip(*parts, strict=True), strict=True):
                kept.append(torch.cat(values).double().view(len(batch), -1).mean(1))
    kl, changed = (torch.cat(values).cpu().numpy() for values in (kl, changed))
    if wrong := int((~np.isfinite(kl)).sum()):
        raise UsageError(f"the divergence of {wrong} of {len(kl)} windows is not finite; evaluate in "
                         "float32.")
    return Divergence(kl, changed, {"seqlen": seqlen, **(meta or {})})


def _compare(q: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (t, vocabulary) of the model, of the dense one -> KL (t,), does the first choice differ (t,)."""
    log_q, log_p = q.float().log_softmax(-1), p.float().log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1), q.argmax(-1) != p.argmax(-1)

