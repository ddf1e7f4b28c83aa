"""Evaluators without torch, for the engine alone. In a module, so that worker processes find them."""
import os
import signal
import time
from pathlib import Path
from typing import ClassVar

from prunekit.choices import Target
from prunekit.metric.tree import Tree
from prunekit.search.budgets import Place, Places
from prunekit.search.records import Outcome, behind

WANTED = Tree.parse("mul(sqrt(X), mul(W, G))")


def distance(tree):
    """How far a tree's symbols are from those of a wanted one; 0 only for the same bag of symbols."""
    names = set(tree) | set(WANTED)
    return sum(abs(tree.count(name) - WANTED.count(name)) for name in names) / 10


def slow_distance(tree):
    time.sleep(0.002)
    return distance(tree)


class Racing:
    """Forty windows of noise around `distance`; stops as a real evaluator does. Masks are the sets of
    symbols. Of its two targets one is always 0.2 harder."""

    group = "row"
    rungs = (8, 20, 40)
    identity: ClassVar = {"toy": "racing", "rungs": rungs}

    def __call__(self, tree, race, seen, raw):
        import random

        if "exp" in tree:
            return Outcome(defect="no exp here")
        masks = " ".join(sorted(set(tree)))
        if masks in seen:
            return Outcome(same=seen[masks], masks=masks)
        noise = random.Random(str(tree))
        losses, stopped = [], 0
        for end in self.rungs:
            losses += [distance(tree) + noise.gauss(0, 0.02) for _ in range(end - len(losses))]
            if race and not stopped and end < 40 and behind(losses, race):
                stopped = end
                if not race.audit:
                    break
        mean = sum(losses) / len(losses)
        by_target = {"0.5": mean - 0.1, "2:4": mean + 0.1}
        return Outcome(losses, len(losses) == 40, stopped, masks, by_task=by_target)


class Sloped:
    """Wants 54, 64, 58, 66 and 58 % in its blocks; metrics with G are a little worse."""

    group = "row"
    places = Places(tuple(Place(f"layers.{block}.{kind}", block, kind, rows, 100) for block in range(5)
                          for kind, rows in (("q", 48), ("k", 16), ("down", 64))), Target(0.6))
    identity: ClassVar = {"toy": "sloped"}

    def __call__(self, tree, race, seen, raw, budget):
        wanted = [(0.54, 0.64, 0.58, 0.66, 0.58)[place.block] for place in self.places.places]
        off = sum((target.sparsity - wish)**2 for target, wish in zip(budget.targets, wanted, strict=True))
        return Outcome([off + 0.01 * tree.count("G")])


class Deadly(Racing):
    """Kills its process on trees with `tanh`, always, or (`once` given, a file) only the first time
    anywhere."""

    identity: ClassVar = {"toy": "deadly"}

    def __init__(self, once=""):
        self.once = once

    def __call__(self, tree, race, seen, raw):
        if "tanh" in tree and not (self.once and Path(self.once).exists()):
            if self.once:
                Path(self.once).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(tree, race, seen, raw)
