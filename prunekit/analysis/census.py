"""How much of the space of trees is the same metric: by text, by simplification, by proof, and by the masks themselves."""
from __future__ import annotations

import hashlib
from collections.abc import Iterable

import pandas as pd

from prunekit.metric.rank import rank_key
from prunekit.metric.simplify import simplify
from prunekit.metric.tree import Tree, defect
from prunekit.pruning.masks import keep_rows
from prunekit.search.bench import Bench, without_gradients


def census(trees: Iterable[Tree], bench: Bench, layers: Iterable[int] = (0,), sparsity: float = 0.5) -> pd.DataFrame:
    """One row per tree: is it a metric on these layers (by number), its forms, and a hash of its masks there.

    Columns: tree, valid (finite and not constant on every layer), naive, oos, key (texts of its forms), and masks,
    naive_masks, oos_masks, key_masks: hashes of the masks of the tree and of its forms ("" where one is no metric).
    Rows of the layer's outputs are compared within themselves; the int(in * sparsity) lowest scores go.
    """
    layers = list(layers)
    rows = []
    with without_gradients(threads=1):  # matrices this small gain nothing from more
        for tree in trees:
            key = rank_key(tree)
            forms = {"naive": simplify(tree, "naive"), "oos": simplify(tree), "key": Tree(key[1])}
            masks = _masks(tree, bench, layers, sparsity)
            rows.append({"tree": str(tree), "valid": bool(masks), "masks": masks, **{k: str(v) for k, v in forms.items()},
                         **{f"{k}_masks": masks if v == tree else _masks(v, bench, layers, sparsity) for k, v in forms.items()}})
    return pd.DataFrame(rows)


def _masks(tree: Tree, bench: Bench, layers: list[int], sparsity: float) -> str:
    sha = hashlib.blake2b(digest_size=12)
    for index in layers:
        S = bench.scores(tree, index)
        if defect(S):
            return ""
        sha.update(keep_rows(S, int(S.shape[1] * sparsity)).cpu().numpy().tobytes())
    return sha.hexdigest()


def distinct(found: pd.DataFrame) -> pd.DataFrame:
    """The table of a census: how many metrics are left when more and more is recognised as the same.

    Also how often a form changes the masks of its tree: a proof may not, in exact arithmetic.
    """
    valid = found[found["valid"]]

    def row(what: str, column: str, masks: str) -> dict:
        changed = int(((valid[masks] != valid["masks"]) & (valid[masks] != "")).sum()) if masks else 0
        count = valid[column].nunique()
        return {"what counts as the same": what, "distinct": count, "of valid": count / max(len(valid), 1), "masks changed": changed}
    return pd.DataFrame([
        {"what counts as the same": "nothing (all drawn)", "distinct": len(found), "of valid": float("nan"), "masks changed": 0},
        {"what counts as the same": "nothing (valid ones)", "distinct": len(valid), "of valid": 1.0, "masks changed": 0},
        row("the same text", "tree", ""), row("naive opposing pairs (wrong)", "naive", "naive_masks"),
        row("exact simplification", "oos", "oos_masks"), row("proof of equal masks", "key", "key_masks"),
        row("the masks themselves", "masks", ""),
    ])
