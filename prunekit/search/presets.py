"""The ways to search, as data."""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from types import MappingProxyType
from typing import Any

from prunekit.errors import UsageError, did_you_mean
from prunekit.search.sample import Alphabet

_EXACT_COPIES = ("pow", "skp")  # of sqr, and of nothing at all


@dataclass(frozen=True)
class Preset:
    """Everything that decides which tree is tried next.

    population: trees kept. depths: ramped half-and-half's, for the first `population` trees. sample: share of the
    population that a tournament draws without replacement; `top`: how many of its best may become parents.
    crossover, mutation: probabilities, applied one after the other (if neither happens, mutation does); `weights`, if
    given, instead draws one operator by weight. form: what is kept of an offspring: "raw", "naive", "oos" or "rank".
    unique: refuse a form that was proposed before (with form "rank": a metric proven to give the same masks), and let
    the budget count distinct evaluations instead of candidates. replace: who leaves, the "worst" or the "oldest" (never
    one on the Pareto front). start: the first population begins with the monomials of this degree that read W (0: all
    of it is random). local: how often the first parent is one of the best five instead of a tournament's. crowding: how
    much a tournament dislikes frequent sizes, in units of loss. patience: once so many candidates in a row have brought
    no better one, every second candidate is the smallest metric that was not tried (0: never). racing: stop hopeless
    candidates early. lag: a candidate sees the results of all but the last lag - 1 before it, so up to `lag` are evaluated
    at once.
    """

    name: str
    population: int
    depths: tuple[int, ...]
    sample: float
    top: int
    crossover: float = 0.5
    mutation: float = 0.5
    weights: Mapping[str, float] = field(default_factory=dict)
    form: str = "oos"
    unique: bool = False
    replace: str = "worst"
    start: int = 0
    local: float = 0.0
    max_size: int = 63
    max_depth: int = 12
    crowding: float = 0.0
    patience: int = 0
    racing: bool = False
    share: bool = False  # fitness of equal masks
    random: bool = False  # never breed
    lag: int = 1
    budget: int = 350
    alphabet: Alphabet = Alphabet()  # noqa: RUF009 - frozen

    def as_dict(self) -> dict[str, Any]:
        """For the journal's header, as JSON gives it back; the budget is no part of it, so that it may grow."""
        plain = asdict(replace(self, alphabet=Alphabet(), weights={})) | {"weights": dict(self.weights)}
        alphabet = {"grammar": self.alphabet.grammar, "without": list(self.alphabet.without), "binary": self.alphabet.binary}
        return {key: list(value) if isinstance(value, tuple) else value for key, value in plain.items()
                if key not in ("budget", "alphabet")} | {"alphabet": alphabet}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Preset:
        """As a journal's header has it."""
        alphabet = plain["alphabet"]
        return cls(**{key: tuple(value) if isinstance(value, list) else value for key, value in plain.items()
                      if key != "alphabet"},
                   alphabet=Alphabet(alphabet["grammar"], tuple(alphabet["without"]), alphabet["binary"]))


# Ours. A search of a few hundred evaluations has no time to find out again what a coarse grid knows, nor can subtree
# operators take a small step from W²·G to W²·sqrt(G): a change of one symbol changes most of the mask. Hence the six
# monomials W^a G^b X^c of degree three that read W (magnitude, Wanda's and W²·G among them, but not the published line,
# which would hand in the answer), the operators `power` and `factor` (one exponent, one step), every third candidate
# bred from one of the best five, and a population that is small enough to be bred from early. Where thousands are
# evaluated, breeding converges, often on a long approximation of a short metric; since about 2,200 metrics have five
# symbols or fewer, half of the effort then goes to these, in order.
_MODERN = Preset(
    "modern", population=30, depths=(1, 2, 3, 4), sample=0.2, top=1, form="rank", unique=True, replace="oldest",
    start=3, local=0.3,
    weights=MappingProxyType({"crossover": 3, "point": 2, "regrow": 2, "insert": 2, "hoist": 1, "swap": 2, "power": 2,
                              "factor": 3}),
    max_size=15, max_depth=10, crowding=0.02, patience=250, racing=True, share=True, lag=8, budget=500,
    alphabet=Alphabet(without=_EXACT_COPIES, binary=0.5))

PRESETS: dict[str, Preset] = {preset.name: preset for preset in (
    # Algorithm 1 of the paper, reconstructed. Stated in secondary sources: population, iterations, top, mutation, OOS
    # on every offspring, redraw of offspring equal to a parent, deletion of the worst. Assumed: sample 0.4, crossover
    # 0.5, depths. No limit of size is stated; this one only keeps trees readable by every tool.
    Preset("paper", population=50, depths=(3, 4), sample=0.4, top=10),
    # The published loop of LPZero, by the same authors: parents from the better half.
    Preset("lpzero", population=80, depths=(3, 4), sample=1.0, top=40, budget=1080),
    _MODERN,
    # Controls: every tree drawn afresh, with and without the proofs of sameness.
    Preset("random", population=50, depths=(2, 3, 4), sample=1.0, top=1, form="raw", random=True, lag=8),
    replace(_MODERN, name="random-distinct", random=True, start=0, patience=0),
)}


def preset(name: str | Preset, **changes: Any) -> Preset:
    """A preset by name, with fields changed. Raises UsageError for an unknown name or field."""
    if not isinstance(name, Preset):
        if name not in PRESETS:
            raise UsageError(f"unknown preset {name!r:.60}{did_you_mean(name, PRESETS)}")
        name = PRESETS[name]
    for key in changes:
        if key not in Preset.__dataclass_fields__:
            raise UsageError(f"a preset has no field '{key}'{did_you_mean(key, Preset.__dataclass_fields__)}")
    return replace(name, **changes)
