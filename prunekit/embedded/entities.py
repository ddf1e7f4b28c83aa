"""The inhabitants of the embedded world: invented names, Zipf popularity, and the facts that never change.

Everything here follows from one seed and the words of words.yaml. A fact is `entity.facts[attribute]`, always
a plain word; `ATTRIBUTES[kind][attribute]` says what it can be, and how it is said and asked.
"""
from __future__ import annotations

import random
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import yaml

SEED = 2402
COUNTS = {"person": 360, "place": 60, "animal": 60, "thing": 80, "craft": 24}
WORDS = yaml.safe_load(Path(__file__).with_name("words.yaml").read_text(encoding="utf-8"))
ATTRIBUTES: dict[str, dict[str, dict]] = WORDS["attributes"]
LISTS: dict[str, list[str]] = WORDS["lists"]


@dataclass(slots=True, eq=False)
class Entity:
    """One inhabitant: `rank` 0 is the most popular of its kind; `sex` is "f" or "m" for people, else ""."""

    kind: str
    name: str
    rank: int
    sex: str = ""
    facts: dict[str, str] = field(default_factory=dict)

    they = property(lambda self: {"f": "she", "m": "he", "": "it"}[self.sex])
    them = property(lambda self: {"f": "her", "m": "him", "": "it"}[self.sex])
    their = property(lambda self: {"f": "her", "m": "his", "": "its"}[self.sex])


@dataclass(frozen=True)
class World:
    """`kinds[kind]` are the entities by popularity; `urns[kind]` repeats each in proportion to it (draw
    uniformly); `values[kind, attribute]` are the possible answers; `days` is the week, in order."""

    kinds: dict[str, list[Entity]]
    urns: dict[str, list[Entity]]
    values: dict[tuple[str, str], list[str]]
    days: tuple[str, ...]


class _Names:
    """Invented words by syllables, never twice the same."""

    onsets = (*"bdfghklmnprstvz", "br", "dr", "gr", "kl", "tr", "sh", "th", "st", "j")
    vowels = (*"aeiouaeiou", "ai", "ou")
    codas = "nrlmkst"

    def __init__(self, rng: random.Random) -> None:
        self.rng, self.seen = rng, set()

    def new(self, syllables: int, ending: tuple[str, ...] = ("",), proper: bool = False) -> str:
        choice = self.rng.choice
        while True:
            parts = [choice(self.onsets) + choice(self.vowels) for _ in range(syllables)]
            word = "".join(parts) + choice(self.codas) + choice(ending)
            if word not in self.seen:
                self.seen.add(word)
                return word.capitalize() if proper else word


def _zipf(count: int) -> list[int]:
    """How often each rank lies in the urn of 20,000: proportional to (rank + 8)^-0.8, at least once."""
    weights = [(rank + 8) ** -0.8 for rank in range(count)]
    return [max(1, round(weight / sum(weights) * 20_000)) for weight in weights]


def _name_all(rng: random.Random, names: _Names) -> dict[str, list[Entity]]:
    make = {
        "person": lambda: names.new(rng.choice((1, 2, 2, 2)), ("a", "o", "i", "u", ""), proper=True),
        "place": lambda: names.new(1, ("ford", "wick", "mar", "dun", "by", "holm"), proper=True),
        "animal": lambda: names.new(rng.choice((1, 2))),
        "thing": lambda: names.new(rng.choice((1, 2))),
        "craft": lambda: names.new(1, ("er", "ist", "wright")),
    }
    return {kind: [Entity(kind, make[kind](), rank, rng.choice("fm") if kind == "person" else "")
                   for rank in range(count)] for kind, count in COUNTS.items()}


@lru_cache(maxsize=1)
def the_world() -> World:
    """Build the one world (about 20 ms; cached)."""
    rng = random.Random(SEED)
    names = _Names(rng)
    kinds = _name_all(rng, names)
    answers = {**LISTS, **{kind: [entity.name for entity in members] for kind, members in kinds.items()},
               "land": [names.new(2, ("ia", "and"), proper=True) for _ in range(12)],
               "year": [str(year) for year in range(300, 700)]}
    days = tuple(names.new(1, ("day",), proper=True) for _ in range(7))
    values = {(kind, attribute): answers[how["answer"]]
              for kind, attributes in ATTRIBUTES.items() for attribute, how in attributes.items()}
    for kind, members in kinds.items():
        for entity in members:
            for attribute in ATTRIBUTES[kind]:
                others = [value for value in values[kind, attribute] if value != entity.name]
                entity.facts[attribute] = rng.choice(others)
    urns = {kind: [entity for entity, n in zip(members, _zipf(len(members))) for _ in range(n)]
            for kind, members in kinds.items()}
    return World(kinds, urns, values, days)
