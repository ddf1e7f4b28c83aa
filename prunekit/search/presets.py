"""The ways to search, as data."""
from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, field, fields, replace
from types import MappingProxyType
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic.dataclasses import dataclass

from prunekit.errors import UsageError, did_you_mean
from prunekit.metric.tree import MAX_DEPTH, MAX_SIZE
from prunekit.search.operators import OPERATORS
from prunekit.search.random_trees import MOST_STEPS, Alphabet

_EXACT_COPIES = ("pow", "skp")  # of sqr, and of nothing at all
_DEEPEST = (MAX_SIZE + 1).bit_length() - 2  # of trees that are full, and binary throughout

_Count = Annotated[int, Field(ge=1)]
_Share = Annotated[float, Field(ge=0, le=1)]
_Depth = Annotated[int, Field(ge=1, le=_DEEPEST, strict=True)]
_Depths = Annotated[tuple[_Depth, ...], Field(min_length=1, strict=False)]
_Weights = Annotated[dict[Literal[OPERATORS], Annotated[int | float, Field(ge=0)]], Field(strict=False),
                     AfterValidator(MappingProxyType)]


@dataclass(frozen=True, config=ConfigDict(strict=True, allow_inf_nan=False))
class Preset:
    """Everything that decides which tree is tried next. The fields' types are their bounds."""

    name: str

    # who is kept, and how the first of them are made
    population: Annotated[int, Field(ge=2)]  # trees kept
    depths: _Depths  # of ramped half-and-half, for the first `population` trees

    # who becomes a parent, and what is done to it
    sample: Annotated[float, Field(gt=0, le=1)]  # share of the population in a tournament, each once
    top: _Count  # how many of its best may become parents
    crossover: _Share = 0.5  # probability that the two parents are crossed, or else the first is copied
    mutation: _Share = 0.5  # probability that one symbol then changes; without a crossover it always does
    weights: _Weights = field(default_factory=dict)  # if given, one operator is drawn by these instead

    # what is bred: metrics; budgets (see `budgets.py`), of the first tree that is given, or Wanda's; or both,
    # each child differing from its parent in one of them
    evolve: Literal["metric", "budget", "both"] = "metric"

    # what is kept of an offspring
    form: Literal["raw", "naive", "oos", "rank"] = "oos"  # level of simplification
    # refuse a form that was proposed before (with rank: a metric proven to give the same masks), and let the
    # budget count distinct evaluations instead of candidates
    unique: bool = False
    replace: Literal["worst", "oldest"] = "worst"  # who leaves; the oldest never from the Pareto front

    # where to look
    start: Annotated[int, Field(ge=0, le=MOST_STEPS)] = 0  # first come the monomials of this degree; 0: none
    local: _Share = 0.0  # how often the first parent is one of the best five instead of a tournament's
    max_size: Annotated[int, Field(ge=1, le=MAX_SIZE // 2)] = 63  # nodes; two such, crossed, are still a tree
    max_depth: Annotated[int, Field(ge=0, le=MAX_DEPTH // 2)] = 12  # edges from the root to the deepest leaf
    crowding: Annotated[float, Field(ge=0)] = 0.0  # a tournament's dislike of frequent sizes, as a loss
    # once so many candidates in a row have brought no better one, every second one is the smallest metric not
    # tried yet; 0: never
    patience: Annotated[int, Field(ge=0)] = 0

    # what is spared
    racing: bool = False  # stop hopeless candidates early
    share: bool = False  # measure equal masks once
    random: bool = False  # never breed: every tree is drawn afresh

    # how long, how many at once, of what
    lag: _Count = 1  # a candidate sees all but the last lag - 1 before it: so many are evaluated at once
    budget: _Count = 350  # evaluations
    alphabet: Alphabet = Alphabet()

    @model_validator(mode="after")
    def _together(self) -> Self:
        if self.weights and not sum(self.weights.values()):
            raise ValueError("weights must hold one above 0")
        if not (self.weights or self.random) and self.top < 2:
            raise ValueError("top must be 2 or more where no weights are given, since two parents are drawn")
        return self

    def as_dict(self) -> dict[str, Any]:
        """For the journal's header, as JSON gives it back; without the budget, so that it may grow."""
        alphabet = asdict(self.alphabet) | {"without": list(self.alphabet.without)}
        return {key.name: getattr(self, key.name) for key in fields(self) if key.name != "budget"} | {
            "depths": list(self.depths), "weights": dict(self.weights), "alphabet": alphabet}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Preset:
        """As a journal's header has it."""
        alphabet = plain["alphabet"] | {"without": tuple(plain["alphabet"]["without"])}
        return preset("paper", **{**plain, "alphabet": Alphabet(**alphabet)})


# Ours. A search of a few hundred evaluations has no time to find out again what a coarse grid knows, nor can
# subtree operators take a small step from W²·G to W²·sqrt(G): a change of one symbol changes most of the
# mask. Hence the six monomials W^a G^b X^c of degree three that read W (magnitude, Wanda's and W²·G among
# them, but not the published line, which would hand in the answer), the operators `power` and `factor` (one
# exponent, one step), every third candidate bred from one of the best five, and a population that is small
# enough to be bred from early. Where thousands are evaluated, breeding converges, often on a long
# approximation of a short metric; since about 2,200 metrics have five symbols or fewer, half of the effort
# then goes to these, in order.
_MODERN = Preset(
    "modern", population=30, depths=(1, 2, 3, 4), sample=0.2, top=1, form="rank", unique=True,
    replace="oldest", start=3, local=0.3, weights={"crossover": 3, "point": 2, "regrow": 2, "insert": 2,
                                                   "hoist": 1, "swap": 2, "power": 2, "factor": 3},
    max_size=15, max_depth=10, crowding=0.02, patience=250, racing=True, share=True, lag=8, budget=500,
    alphabet=Alphabet(without=_EXACT_COPIES, binary=0.5))

PRESETS: dict[str, Preset] = {preset.name: preset for preset in (
    # Algorithm 1 of the paper, reconstructed. Stated in secondary sources: population, iterations, top,
    # mutation, OOS on every offspring, redraw of offspring equal to a parent, deletion of the worst. Assumed:
    # sample 0.4, crossover 0.5, depths. No limit of size is stated; this one only keeps trees readable by
    # every tool.
    Preset("paper", population=50, depths=(3, 4), sample=0.4, top=10),
    # The published loop of LPZero, by the same authors: parents from the better half.
    Preset("lpzero", population=80, depths=(3, 4), sample=1.0, top=40, budget=1080),
    _MODERN,
    # Controls: every tree drawn afresh, with and without the proofs of sameness.
    Preset("random", population=50, depths=(2, 3, 4), sample=1.0, top=1, form="raw", random=True, lag=8),
    replace(_MODERN, name="random-distinct", random=True, start=0, patience=0),
)}


def preset(name: str | Preset, /, **changes: Any) -> Preset:
    """A preset by name, with fields changed. Raises UsageError for an unknown name or field, or bad value."""
    if not isinstance(name, Preset):
        if name not in PRESETS:
            raise UsageError(f"unknown preset {name!r:.60}{did_you_mean(name, PRESETS)}")
        name = PRESETS[name]
    for key in changes:
        if key not in Preset.__dataclass_fields__:
            raise UsageError(f"a preset has no field '{key}'{did_you_mean(key, Preset.__dataclass_fields__)}")
    try:
        return replace(name, **changes)
    except ValidationError as error:
        first = error.errors()[0]
        what = re.sub(r"^\w+ should ", "must ", first["msg"].removeprefix("Value error, "))
        parts = [part for part in first["loc"] if part != "[key]"]
        place = "".join(f"[{part!r}]" if at else part for at, part in enumerate(parts))
        value = f"{place} = {first['input']!r:.60} " if place else ""
        raise UsageError(f"preset '{name.name}': {value}{what}.") from None
