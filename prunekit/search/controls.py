"""What a search must be held against: the grid of monomials, a hidden target, and fitness that means
nothing."""
from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from typing import Any

from prunekit.metric.primitives import TERMINALS
from prunekit.metric.tree import Tree

GRID_STEPS = 12


def monomial(exponents: Mapping[str, int]) -> Tree:
    """W^a G^b X^c, exponents in quarters from 1 to 15: a product of squares and roots of the terminals."""
    factors: list[tuple[str, ...]] = []
    for name, quarters in exponents.items():
        for bit, power in ((8, ("sqr",)), (4, ()), (2, ("sqrt",)), (1, ("sqrt", "sqrt"))):
            if quarters & bit:
                factors.append((*power, name))
    return Tree(reduce(lambda left, right: ("mul", *left, *right), factors))


def grid(steps: int = GRID_STEPS) -> dict[tuple[int, int, int], Tree]:
    """Every W^a G^b X^c with a + b + c = `steps` (at most 15), by (a, b, c): 91 of them for 12 steps.

    Only ratios of exponents matter to a mask, so this holds magnitude (12, 0, 0), Wanda (8, 0, 4), W·G (6, 6,
    0) and W²·G (8, 4, 0). As trees the exponents are quarters, which keeps the products inside float32.
    """
    found = {}
    for a in range(steps + 1):
        for b in range(steps + 1 - a):
            exponents = dict(zip(TERMINALS, (a, b, steps - a - b), strict=True))
            found[a, b, steps - a - b] = monomial({name: e for name, e in exponents.items() if e})
    return found


@dataclass(frozen=True)
class Planted:
    """Loss of a tree: the share of weights on which its mask differs from a hidden tree's, on random layers.

    W normal, G log-normal and X chi-squared with spread columns, from `seed`; half of every row goes. Not
    finite for a tree that is no metric there. So a search can be tested on a target that is known.
    """

    target: Tree
    seed: int = 0
    shape: tuple[int, int] = (64, 64)
    layers: int = 2

    @cached_property
    def _layers(self) -> list[tuple[Any, Any, Any]]:
        import torch

        rng = torch.Generator().manual_seed(self.seed)
        out, width = self.shape

        def layer() -> tuple[Any, Any, Any]:
            W = torch.randn(out, width, generator=rng) * 0.05
            G = torch.exp(torch.randn(out, width, generator=rng) - 3)
            X = torch.exp(torch.randn(1, width, generator=rng)) * torch.rand(1, width, generator=rng)
            return W, G, X
        return [layer() for _ in range(self.layers)]

    @cached_property
    def _wanted(self) -> list[Any]:
        return [self._keep(self.target, layer) for layer in self._layers]

    @staticmethod
    def _keep(tree: Tree, layer: tuple[Any, Any, Any]) -> Any:
        from prunekit.metric.tree import defect
        from prunekit.pruning.masks import keep_rows

        S = tree.score(*layer, check=False)
        return None if defect(S) else keep_rows(S, S.shape[1] // 2)

    def __call__(self, tree: Tree) -> float:
        differing = 0.0
        for layer, wanted in zip(self._layers, self._wanted, strict=True):
            keep = self._keep(tree, layer)
            if keep is None:
                return float("inf")
            differing += float((keep != wanted).float().mean())
        return differing / self.layers


@dataclass(frozen=True)
class Shuffled:
    """Null control: a loss drawn from `losses` by the tree's text alone, whatever the tree does."""

    losses: Sequence[float]
    seed: int = 0

    def __call__(self, tree: Tree) -> float:
        return random.Random(f"{self.seed}/{tree}").choice(self.losses)
