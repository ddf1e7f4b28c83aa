"""How much of the space of trees is the same metric: by text, by simplification, by proof, and by masks."""
from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence

import pandas as pd

from prunekit.metric.simplify import simplify
from prunekit.metric.tree import Tree, defect
from prunekit.pruning.masks import keep_rows
from prunekit.search.bench import Bench, without_gradients


def census(trees: Iterable[Tree], bench: Bench, layers: Sequence[int] = (0,)) -> pd.DataFrame:
    """One row per tree: is it a metric on these layers (by number), its forms, a hash of its masks there.

    Columns: tree, valid (finite and not constant on every layer), naive, oos, key (texts of its forms), and
    masks, naive_masks, oos_masks, key_masks: hashes of the masks of the tree and of its forms ("" where one
    is no metric). In every row of a layer the lower half of the scores goes.
    """
    rows = []
    with without_gradients(threads=1):  # matrices this small gain nothing from more
        for tree in trees:
            forms = {"naive": simplify(tree, "naive"), "oos": simplify(tree), "key": simplify(tree, "rank")}
            masks = {form: _masks(form, bench, layers) for form in {tree, *forms.values()}}
            rows.append({"tree": str(tree), "valid": bool(masks[tree]), "masks": masks[tree],
                         **{name: str(form) for name, form in forms.items()},
                         **{f"{name}_masks": masks[form] for name, form in forms.items()}})
    return pd.DataFrame(rows)


def _masks(tree: Tree, bench: Bench, layers: Sequence[int]) -> str:
    sha = hashlib.blake2b(digest_size=12)
    for index in layers:
        S = bench.scores(tree, index)
        if defect(S):
            return ""
        sha.update(keep_rows(S, S.shape[1] // 2).cpu().numpy().tobytes())
    return sha.hexdigest()


def distinct(trees: pd.DataFrame) -> pd.DataFrame:
    """The table of a census: how many metrics are left when more and more is recognised as the same.

    Also how often a form changes the masks of its tree: a proof may not, in exact arithmetic.
    """
    valid = trees[trees["valid"]]
    rows = [("nothing (all drawn)", len(trees), math.nan, 0), ("nothing (valid ones)", len(valid), 1.0, 0)]
    for what, column in (("the same text", "tree"), ("naive opposing pairs (wrong)", "naive"),
                         ("exact simplification", "oos"), ("proof of equal masks", "key"),
                         ("the masks themselves", "masks")):
        masks = valid.get(f"{column}_masks", valid["masks"])
        changed = (masks != valid["masks"]) & (masks != "")
        count = valid[column].nunique()
        rows.append((what, count, count / max(len(valid), 1), int(changed.sum())))
    return pd.DataFrame(rows, columns=["what counts as the same", "distinct", "of valid", "masks changed"])
