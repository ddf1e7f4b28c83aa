"""Perplexity, with what its windows say about its uncertainty."""
from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunekit.data import check_seqlen
from prunekit.errors import UsageError
from prunekit.evaluate.intervals import exp_mean
from prunekit.models import check_windows, in_eval_mode
from prunekit.progress import tqdm
from prunekit.pruning import walk
from prunekit.pruning.walk import batch_noted, batch_tokens

LOGIT_BUDGET = 2**25  # logits alive at once: 128 MiB in float32; on a GPU more, as its batches are larger


@dataclass(frozen=True)
class Perplexity:
    """exp(mean of `nll`).

    nll: mean negative log-likelihood of each window, nats per predicted token, float64 (n,). meta: among
    others `begins_with`, where all windows begin with one token (BOS): its id. text: hash of the windows, ""
    where it is not known. Raises UsageError if there is no loss, or one that is not finite.
    """

    nll: np.ndarray
    meta: dict[str, Any] = field(default_factory=dict)
    text: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        if np.ndim(self.nll) != 1 or not len(self.nll):
            raise UsageError(f"losses of shape {np.shape(self.nll)} are not one for each window.")
        if wrong := int((~np.isfinite(self.nll)).sum()):
            raise UsageError(f"the loss of {wrong} of {len(self.nll)} windows is not finite; evaluate in "
                             "float32.")

    @property
    def value(self) -> float:
        return exp_mean(self.nll)[0]

    @property
    def interval(self) -> tuple[float, float]:
        """95 %, for other windows of such text, whose neighbours may be alike: `intervals.exp_mean`."""
        return exp_mean(self.nll)[1:]

    def row(self) -> dict[str, Any]:
        low, high = self.interval
        return {**self.meta, "ppl": self.value, "low": low, "high": high}


def perplexity(model: nn.Module, tokens: Tensor, seqlen: int = 128, *, progress: bool = True,
               meta: dict[str, Any] | None = None) -> Perplexity:
    """ppl = exp(mean over windows of (1/(seqlen-1)) * sum over t of -ln p(x_t | x_<t)).

    tokens: a text (1-D), cut into consecutive windows of seqlen with the rest dropped, or windows (n,
    seqlen). A window of seqlen tokens holds seqlen - 1 predictions, whatever it begins with: all of its text
    where that is BOS. The mean is over windows, as in the published lib/eval.py; context length is part of
    the metric's name.

    Raises UsageError if there is not one whole window, if the model cannot read the windows, or if a loss is
    not finite.
    """
    windows = cut(tokens, seqlen)
    check_windows(model, windows)
    with in_eval_mode(model), torch.no_grad():
        losses, tokens = window_losses(model), batch_tokens(model)
        parts = [losses(batch) for batch in batches(windows, tokens, "perplexity", progress)]
    nll, first = torch.cat(parts).double().cpu().numpy(), windows[:, 0].unique().tolist()
    begin = {"begins_with": first[0]} if len(first) == 1 < len(windows) else {}
    return Perplexity(nll, {"seqlen": seqlen, "windows": len(nll), **batch_noted(tokens),
                            "dtype": str(model.dtype).removeprefix("torch."), **begin, **(meta or {})},
                      hashlib.sha256(windows.cpu().contiguous().numpy()).hexdigest()[:16])


def batches(windows: Tensor, tokens: int, task: str = "", progress: bool = False) -> Iterator[Tensor]:
    """Windows (n, seqlen) in batches of so many tokens or fewer, with a bar."""
    parts = windows.split(max(1, tokens // windows.shape[1]))
    return iter(tqdm(parts, desc=task, disable=not progress, leave=False))


def cut(tokens: Tensor, seqlen: int) -> Tensor:
    """Consecutive windows (n, seqlen) of a text (1-D), the rest dropped; windows of that length pass."""
    check_seqlen(seqlen)
    if tokens.ndim == 2 and tokens.shape[1] == seqlen and len(tokens):
        return tokens
    if tokens.ndim != 1 or len(tokens) < seqlen:
        raise UsageError(f"tokens of shape {tuple(tokens.shape)} hold no window of {seqlen}; give more text, "
                         "windows of that length, or a shorter seqlen.")
    return tokens[:len(tokens) // seqlen * seqlen].view(-1, seqlen)


def window_losses(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """ids (n, seqlen) -> mean loss of each window, (n,) float32, at most LOGIT_BUDGET logits at once."""
    pieces = logit_pieces(model)

    def losses(ids: Tensor) -> Tensor:
        targets, parts, done = ids[:, 1:].reshape(-1), [], 0
        for logits in pieces(ids):
            expected = targets[done:done + len(logits)].to(logits.device)
            parts.append(F.cross_entropy(logits.float(), expected, reduction="none"))
            done += len(logits)
        return torch.cat(parts).view(len(ids), -1).mean(1)
    return losses


def logit_pieces(model: nn.Module, tokens: int | None = None) -> Callable[[Tensor], Iterator[Tensor]]:
    """ids (n, seqlen) -> logits of the n * (seqlen - 1) predictions in order, in pieces (tokens, vocabulary).

    A piece holds at most LOGIT_BUDGET logits, or one window where the head cannot be applied apart. tokens:
    of a batch, as of `batch_tokens`, which it grows with.
    """
    device, head = model.get_input_embeddings().weight.device, model.get_output_embeddings()
    body = getattr(model, model.base_model_prefix, None)
    direct = body is not None and head is not None and _head_is_all(model, body, head, device)
    budget = LOGIT_BUDGET * (tokens or batch_tokens(model)) // walk.BATCH_TOKENS
    chunk = max(1, budget // model.get_input_embeddings().num_embeddings)

    def pieces(ids: Tensor) -> Iterator[Tensor]:
        ids = ids.to(device)
        if direct:
            hidden = body(input_ids=ids, use_cache=False)[0][:, :-1].flatten(0, 1)
            yield from (head(part) for part in hidden.split(chunk))
        else:  # heads that scale or cap their logits: whole windows through the model itself
            few = max(1, chunk // ids.shape[1])
            yield from (model(input_ids=part, use_cache=False).logits[:, :-1].flatten(0, 1)
                        for part in ids.split(few))
    return pieces


def _head_is_all(model: nn.Module, body: nn.Module, head: nn.Module, device: torch.device) -> bool:
    """Whether the logits are nothing but the output head on the body's last hidden state."""
    ids = torch.arange(8, device=device)[None] % head.weight.shape[0]
    try:
        plain = head(body(input_ids=ids, use_cache=False)[0])
    except (TypeError, RuntimeError):
        return False
    logits = model(input_ids=ids, use_cache=False).logits
    same_shape = plain.shape == logits.shape
    return same_shape and torch.allclose(plain, logits.to(plain.device), rtol=1e-3, atol=1e-3)
