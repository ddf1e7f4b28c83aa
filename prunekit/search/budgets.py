"""Budgets, what a search may evolve beside a metric: how many zeros each kind of layer bears in each block.

A budget is whole zeros per row (of N:M patterns: whole n), and every change moves as many zeros to one place
as it takes from others, so all budgets of a target have the zeros of the uniform one, to the last.
"""
from __future__ import annotations

import json
import math
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

from prunekit.choices import Target, parse_pattern
from prunekit.errors import UsageError

if TYPE_CHECKING:
    import pandas as pd

    from prunekit.models import Layer

_STEP = 0.02  # of a row's weights, unstructured: what a step moves; or twice, or four times that
_MOST_MOVES = 8  # that a random budget is made of
_PROBE = 4  # steps fewer in a probe
_STRETCHES = 6  # of blocks, that probes tell apart
_FEWEST = 6  # measured budgets that a slope may be learned from
_SHRINKAGE = 0.1  # of the slope, as a share of what the measured budgets have in common
_TRIES = 20  # to make shares whole


class Place(NamedTuple):
    """The layers of one kind in one block (several, if they are experts), all with the same inputs."""

    name: str  # what they are called, as a pattern of `layer_targets`
    block: int
    kind: str
    rows: int  # of all of them
    inputs: int


@dataclass(frozen=True)
class Places:
    """The places of a model, and the target that all their budgets reach together."""

    places: tuple[Place, ...]
    target: Target

    @classmethod
    def of(cls, layers: Sequence[Layer], target: Target) -> Places:
        """Those of a model's `layers`, in their order."""
        found: dict[tuple[int, str], Place] = {}
        for layer in layers:
            kind, name = (re.sub(r"\[\d+\]$", "", text) for text in (layer.kind, layer.name))
            rows, inputs = layer.weight.shape
            before = found.get((layer.block, kind))
            name = layer.name if layer.expert is None else f"{name}[[]*]"
            rows += before.rows if before else 0
            found[layer.block, kind] = Place(name, layer.block, kind, rows, inputs)
        return cls(tuple(found.values()), target)

    @classmethod
    def from_plain(cls, plain: Mapping[str, Sequence]) -> Places:
        """As a journal's header has them."""
        return cls(tuple(Place(*place) for place in plain["places"]), Target(*plain["target"]))

    def plain(self) -> dict[str, list]:
        return {"places": [list(place) for place in self.places], "target": list(self.target)}

    @property
    def uniform(self) -> Budget:
        return Budget(self, (0,) * len(self.places))

    @cached_property
    def unit(self) -> tuple[int, ...]:
        """Zeros per row that one step is, in each place."""
        ratio = parse_pattern(self.target.pattern)
        return tuple(place.inputs // ratio[1] if ratio else max(1, round(_STEP * place.inputs))
                     for place in self.places)

    @cached_property
    def groups(self) -> dict[str, list[list[int]]]:
        """What zeros are moved between: single places, whole kinds, whole blocks."""
        by: dict[str, dict[object, list[int]]] = {"place": {}, "kind": {}, "block": {}}
        for index, place in enumerate(self.places):
            for name, key in (("place", index), ("kind", place.kind), ("block", place.block)):
                by[name].setdefault(key, []).append(index)
        return {name: list(groups.values()) for name, groups in by.items() if len(groups) > 1}

    def zeros(self, moved: Sequence[int]) -> int:
        """More zeros than the uniform budget has, of whole zeros per row more."""
        return sum(place.rows * more for place, more in zip(self.places, moved, strict=True))

    def near(self, targets: Sequence[Target], layers: Sequence[Layer]) -> Budget:
        """The budget next to a target for each layer, as `layer_targets` gives them.

        Of the places with rows and inputs alike, those that lose most by rounding down get what is left over.
        Raises UsageError if the targets' mean is another than this one's, or experts of a block differ.
        """
        given: dict[str, Target] = {}
        index = {(place.block, place.kind): place for place in self.places}
        for layer, target in zip(layers, targets, strict=True):
            place = index[layer.block, re.sub(r"\[\d+\]$", "", layer.kind)]
            if given.setdefault(place.name, target) != target:
                raise UsageError(f"the experts of {place.name} have different targets; give them one.")
        shares = [given[place.name].sparsity for place in self.places]
        whole = Budget(self, tuple(int(place.inputs * share) - int(place.inputs * self.target.sparsity)
                                   for place, share in zip(self.places, shares, strict=True)))
        if not self.zeros(whole.moved) and whole.possible:  # as `prune` reads them
            return whole
        moved = [0] * len(self.places)
        alike: dict[tuple[int, int], list[int]] = {}
        for at, place in enumerate(self.places):
            alike.setdefault((place.rows, place.inputs), []).append(at)
        for members in alike.values():
            exact = {at: (shares[at] - self.target.sparsity) * self.places[at].inputs for at in members}
            down = {at: math.floor(value + 1e-9) for at, value in exact.items()}
            short = round(sum(exact.values())) - sum(down.values())
            for at in sorted(members, key=lambda at: down[at] - exact[at])[:short]:
                down[at] += 1
            for at in members:
                moved[at] = down[at]
        found = Budget(self, tuple(moved))
        if self.zeros(moved) or not found.possible:
            raise UsageError(f"a budget for target {self.target} must have its mean and leave something "
                             "everywhere, which one of those given does not.")
        return found


@dataclass(frozen=True)
class Budget(Mapping[str, float | str]):
    """A share of zeros, or an N:M word, for every place: what `prune` takes as `sparsity`.

    moved: by place, zeros per row more than the uniform budget's; times the places' rows they add up to 0.
    """

    places: Places
    moved: tuple[int, ...]

    def __getitem__(self, name: str) -> float | str:
        target = self.targets[self._index[name]]
        return target.sparsity if target.pattern == "unstructured" else target.pattern

    def __iter__(self) -> Iterator[str]:
        return (place.name for place in self.places.places)

    def __len__(self) -> int:
        return len(self.moved)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Budget) and (self.moved, self.places) == (other.moved, other.places)

    def __hash__(self) -> int:
        return hash(self.moved)

    def __str__(self) -> str:
        return json.dumps(dict(self))

    @cached_property
    def _index(self) -> dict[str, int]:
        return {place.name: at for at, place in enumerate(self.places.places)}

    @cached_property
    def targets(self) -> list[Target]:
        """By place. Where nothing was moved it is the uniform one itself."""
        return [self._target(place, more) for place, more in zip(self.places.places, self.moved, strict=True)]

    def of(self, layer: Layer) -> Target:
        """The target of a layer."""
        name = layer.name if layer.expert is None else re.sub(r"\[\d+\]$", "[[]*]", layer.name)
        return self.targets[self._index[name]]

    def _target(self, place: Place, more: int) -> Target:
        target, inputs = self.places.target, place.inputs
        if not more:
            return target
        if ratio := parse_pattern(target.pattern):
            n = ratio[0] + more * ratio[1] // inputs
            return Target(n / ratio[1], f"{n}:{ratio[1]}")
        zeros = int(inputs * target.sparsity) + more
        share = zeros / inputs
        return Target(share if int(inputs * share) == zeros else math.nextafter(share, 1))

    @property
    def possible(self) -> bool:
        """Does every place keep something, and none more than there is? (N:M: n from 1 to m - 1.)"""
        ratio = parse_pattern(self.places.target.pattern)
        for place, more in zip(self.places.places, self.moved, strict=True):
            least = place.inputs // ratio[1] if ratio else 0
            zeros = int(place.inputs * self.places.target.sparsity) + more
            if not least <= zeros <= place.inputs - max(1, least):
                return False
        return True

    def table(self) -> pd.DataFrame:
        """Shares of zeros: a row for each kind, a column for each block."""
        import pandas as pd

        rows = [(place.kind, place.block, target.sparsity)
                for place, target in zip(self.places.places, self.targets, strict=True)]
        frame = pd.DataFrame(rows, columns=["kind", "block", "share"])
        return frame.pivot(index="kind", columns="block", values="share").reindex(frame["kind"].unique())


# --- how new budgets are made from old ones -----------------------------------------------------------------


def exchange(rng: random.Random, budget: Budget, by: str) -> Budget | None:
    """Some steps from one place (or kind, or block) to another; None if they cannot trade whole zeros."""
    places, ratio = budget.places, parse_pattern(budget.places.target.pattern)
    groups = rng.sample(places.groups[by], 2)
    steps = 1 if ratio else rng.choice((1, 2, 4))
    zeros = [{at: steps * places.unit[at] for at in group} for group in groups]
    rows = [{at: places.places[at].rows for at in group} for group in groups]
    first, second = (sum(rows[side][at] * zeros[side][at] for at in groups[side]) for side in (0, 1))
    if first != second:
        if ratio or by == "block":
            return None
        # each side is of one kind, so of one width: the fewest zeros x, y per row with x a = y b, repeated
        a, b = (sum(side.values()) for side in rows)
        x, y = b // math.gcd(a, b), a // math.gcd(a, b)
        wanted = [next(iter(side.values())) for side in zeros]
        times = max(1, round(wanted[0] / x))
        if times * x > 4 * wanted[0] or times * y > 4 * wanted[1]:
            return None
        zeros = [dict.fromkeys(groups[0], times * x), dict.fromkeys(groups[1], times * y)]
    moved = list(budget.moved)
    for sign, side in zip((1, -1), zeros, strict=True):
        for at, more in side.items():
            moved[at] += sign * more
    return Budget(places, tuple(moved))


def tilt(rng: random.Random, budget: Budget) -> Budget | None:
    """A step more in the first block and less in the last, or the other way, and evenly in between; None if
    the blocks are not alike."""
    places, steps = budget.places, rng.choice((-2, -1, 1, 2))
    last = max(place.block for place in places.places) or 1
    ratio = parse_pattern(places.target.pattern)
    moved = []
    for place, unit, before in zip(places.places, places.unit, budget.moved, strict=True):
        slope = steps * (last - 2 * place.block)  # over last
        size = round(abs(slope) / last) * unit if ratio else round(abs(slope) * unit / last)
        moved.append(before + (size if slope > 0 else -size))
    return Budget(places, tuple(moved)) if places.zeros(moved) == places.zeros(budget.moved) else None


def join(budget: Budget, other: Budget) -> Budget:
    """What both have moved."""
    return Budget(budget.places, tuple(map(sum, zip(budget.moved, other.moved, strict=True))))


def further(budget: Budget, before: Budget) -> Budget:
    """The step that led here from `before`, once more."""
    return Budget(budget.places, tuple(2 * a - b for a, b in zip(budget.moved, before.moved, strict=True)))


def whole(rng: random.Random, places: Places, moved: Sequence[float]) -> Budget | None:
    """Parts of zeros per row made whole, at random up or down, and then moved by one until they add up to 0;
    None if they do not."""
    for _ in range(_TRIES):
        near = [math.floor(more + rng.random()) for more in moved]
        left = places.zeros(near)
        while fitting := [at for at, place in enumerate(places.places) if place.rows <= abs(left)]:
            at, sign = rng.choice(fitting), 1 if left > 0 else -1
            near[at] -= sign
            left -= sign * places.places[at].rows
        if not left:
            return Budget(places, tuple(near))
    return None


def probes(places: Places) -> list[Budget]:
    """For every kind, and every stretch of blocks: fewer zeros there, as many more everywhere else.

    What `downhill` learns a slope from soonest. None for N:M, whose steps are too large to be shared.
    """
    import numpy as np

    if parse_pattern(places.target.pattern):
        return []
    rng, blocks = random.Random(0), 1 + max(place.block for place in places.places)
    stretches = min(_STRETCHES, blocks)
    names = [(place.kind, place.block * stretches // blocks) for place in places.places]
    size = np.array([place.rows * place.inputs for place in places.places])
    inputs, found = np.array([place.inputs for place in places.places]), []
    for name in dict.fromkeys(one for both in zip(*names, strict=True) for one in both):
        share = -_PROBE * _STEP * np.array([name in both for both in names])
        found.append(whole(rng, places, (share - np.average(share, weights=size)) * inputs))
    return [budget for budget in dict.fromkeys(found) if budget and any(budget.moved) and budget.possible]


def downhill(rng: random.Random, budget: Budget, measured: Sequence[tuple[Budget, float]]) -> Budget | None:
    """Some steps down the slope that fits the measured losses best, places of a kind or block being alike.

    Ridge regression of the loss on the weights that each place loses, whose slopes are the sum of one of the
    place, one of its kind and one of its block, all shrunk alike. One more zero costs g there, so the share
    changes by mean g - g, the largest change being 1, 2 or 4 steps.
    """
    import numpy as np

    all_places = budget.places.places
    inputs = np.array([place.inputs for place in all_places])
    size = np.array([place.rows * place.inputs for place in all_places])
    size = size / size.sum()
    kind, block = (np.array([getattr(place, name) for place in all_places]) for name in ("kind", "block"))
    alike = np.eye(len(size)) + (kind[:, None] == kind) + (block[:, None] == block)
    Z = np.array([each.moved for each, _ in measured]) / inputs * size
    loss = np.array([loss for _, loss in measured])
    Z, loss = Z - Z.mean(0), loss - loss.mean()
    common = Z @ alike @ Z.T
    common += _SHRINKAGE * common.trace() / len(Z) * np.eye(len(Z))
    if not common.any():
        return None
    slope = alike @ Z.T @ np.linalg.solve(common, loss)
    change = slope @ size - slope
    if not (largest := np.abs(change).max()):
        return None
    change *= rng.choice((1, 2, 4)) * _STEP / largest
    return whole(rng, budget.places, np.array(budget.moved) + change * inputs)


def varied(rng: random.Random, budget: Budget, other: Budget | None = None, before: Budget | None = None,
           measured: Sequence[tuple[Budget, float]] = ()) -> tuple[Budget | None, str]:
    """A neighbour by one operator, and the operator's name; None where it gives no budget that can be.

    other: of another candidate; before: its parent's; measured: budgets with their losses. Where these are
    enough to learn a slope from, every second neighbour is down it.
    """
    makers: dict[str, Callable[[], Budget | None]] = {
        name: lambda name=name: exchange(rng, budget, name) for name in budget.places.groups}
    makers["tilt"] = lambda: tilt(rng, budget)
    if before is not None and before != budget:
        makers["further"] = lambda: further(budget, before)
    if other is not None and other != budget:
        makers["join"] = lambda: join(budget, other)
    name = rng.choice(list(makers))
    if len(measured) >= _FEWEST and not parse_pattern(budget.places.target.pattern) and rng.random() < 0.5:
        name, makers["downhill"] = "downhill", lambda: downhill(rng, budget, measured)
    found = makers[name]()
    return (found if found is not None and found.possible else None), name


def random_budget(rng: random.Random, places: Places) -> Budget:
    """The uniform one after a few random moves."""
    budget = places.uniform
    for _ in range(rng.randint(1, _MOST_MOVES)):
        budget = varied(rng, budget)[0] or budget
    return budget
