"""What a search must be held against: a hidden target, and fitness that means nothing."""
from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from prunekit.metric.tree import Tree, defect
from prunekit.pruning.masks import keep_rows
from prunekit.search.budgets import Budget, Places


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
    def _layers(self) -> list[tuple[Tensor, Tensor, Tensor]]:
        rng, (out, width) = torch.Generator().manual_seed(self.seed), self.shape

        def layer() -> tuple[Tensor, Tensor, Tensor]:
            W = torch.randn(out, width, generator=rng) * 0.05
            G = torch.exp(torch.randn(out, width, generator=rng) - 3)
            X = torch.exp(torch.randn(1, width, generator=rng)) * torch.rand(1, width, generator=rng)
            return W, G, X
        return [layer() for _ in range(self.layers)]

    @cached_property
    def _wanted(self) -> list[Tensor | None]:
        return [self._keep(self.target, layer) for layer in self._layers]

    @staticmethod
    def _keep(tree: Tree, layer: tuple[Tensor, Tensor, Tensor]) -> Tensor | None:
        S = tree.score(*layer, check=False)
        return None if defect(S) else keep_rows(S, S.shape[1] // 2)

    def __call__(self, tree: Tree) -> float:
        differing = 0.0
        for layer, wanted in zip(self._layers, self._wanted, strict=True):
            keep = self._keep(tree, layer)
            if keep is None:
                return math.inf
            differing += float((keep != wanted).float().mean())
        return differing / self.layers


@dataclass(frozen=True)
class Shuffled:
    """Null control: a loss drawn from `losses` by the text of tree and budget alone, whatever these do.

    places: those of the evaluator that it stands for, where budgets are evolved.
    """

    losses: Sequence[float]
    seed: int = 0
    places: Places | None = None

    def __call__(self, tree: Tree, budget: Budget | None = None) -> float:
        text = f"{tree}" if budget is None else f"{tree}/{budget.moved}"
        return random.Random(f"{self.seed}/{text}").choice(self.losses)
