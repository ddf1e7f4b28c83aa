"""Random trees and probe layers for the tests of the metric language."""

from __future__ import annotations

import torch
from hypothesis import settings
from hypothesis import strategies as st

from prunekit.metric.primitives import PRIMITIVES, symbols
from prunekit.metric.tree import Tree

settings.register_profile("repeatable", derandomize=True)  # the same examples in every run
settings.load_profile("repeatable")


def trees(grammar: str = "reference", max_leaves: int = 8) -> st.SearchStrategy[Tree]:
    """Any tree of a grammar."""
    names = symbols(grammar)
    unary = [s for s in names if s in PRIMITIVES and PRIMITIVES[s].arity == 1]
    binary = [s for s in names if s in PRIMITIVES and PRIMITIVES[s].arity == 2]
    leaves = st.sampled_from([(s,) for s in names if s not in PRIMITIVES])
    grown = st.recursive(
        leaves,
        lambda inner: st.one_of(
            st.tuples(st.sampled_from(unary), inner).map(lambda n: (n[0], *n[1])),
            st.tuples(st.sampled_from(binary), inner, inner).map(lambda n: (n[0], *n[1], *n[2])),
        ),
        max_leaves=max_leaves,
    )
    return grown.map(Tree)


def layer(seed: int = 0, rows: int = 12, columns: int = 20) -> dict[str, torch.Tensor]:
    """W (signed), G (some exact zeros) and X of one made-up layer."""
    generator = torch.Generator().manual_seed(seed)
    W = torch.randn(rows, columns, generator=generator) * 0.05
    G = torch.rand(rows, columns, generator=generator) * (
        torch.rand(rows, columns, generator=generator) > 0.1
    )
    return {"W": W, "G": G, "X": torch.rand(1, columns, generator=generator) * 10}
