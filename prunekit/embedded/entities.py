"""The inhabitants of the embedded world: invented names, Zipf popularity, and the facts that never change.

Everything here follows from one seed. A fact is `entity.facts[attribute]`, always a plain word; `ATTRIBUTES` lists
what can be asked of each kind and how it is said.
"""
from __future__ import annotations

import random
from dataclasses import dataclass, field
from functools import lru_cache

SEED = 2402
COUNTS = {"person": 360, "place": 60, "animal": 60, "thing": 80, "craft": 24}
COLOURS = ("red", "blue", "green", "white", "black", "grey", "brown", "gold", "silver", "pink", "amber", "violet")
MATERIALS = ("oak", "iron", "clay", "wool", "glass", "bone", "copper", "straw", "leather", "stone", "wax", "tin")
GROUNDS = ("river", "hill", "marsh", "forest", "lake", "desert", "valley", "coast", "island", "meadow")
FOODS = ("barley", "honey", "moss", "apples", "fish", "roots", "beans", "grass", "nuts", "berries", "eggs", "snails")
SOUNDS = ("howls", "sings", "hums", "barks", "clicks", "whistles", "roars", "squeaks", "croaks", "purrs")
SEASONS = ("spring", "summer", "autumn", "winter", "harvest", "midsummer", "midwinter", "seedtime")
NUMBERS = ("two", "three", "four", "five", "six", "seven", "eight", "nine")

# attribute -> (statements, questions); {s} subject, {p} its possessive, {n} its name in full, {v} the value.
Phrases = tuple[tuple[str, ...], tuple[str, ...]]
ATTRIBUTES: dict[str, dict[str, Phrases]] = {
    "person": {
        "home": (("{s} lives in {v}", "{s} has a house in {v}", "{p} home is {v}", "{s} sleeps in {v}"),
                 ("where does {n} live?", "which town is the home of {n}?", "where is the house of {n}?")),
        "trade": (("{s} is a {v}", "{s} works as a {v}", "{p} trade is that of a {v}", "{s} earns bread as a {v}"),
                  ("what is the trade of {n}?", "what does {n} work as?", "which craft feeds {n}?")),
        "pet": (("{s} keeps a {v}", "{s} has a {v} at home", "{p} animal is a {v}", "{s} feeds a {v}"),
                ("which animal does {n} keep?", "what animal has {n}?", "what is fed by {n}?")),
        "treasure": (("{s} owns a {v}", "{p} treasure is a {v}", "{s} treasures a {v}", "{s} never lends the {v}"),
                     ("what is the treasure of {n}?", "what does {n} own?", "what does {n} never lend?")),
        "colour": (("{s} loves {v}", "{p} colour is {v}", "{s} always wears {v}", "{s} paints the door {v}"),
                   ("which colour does {n} love?", "what is the colour of {n}?", "what does {n} always wear?")),
        "parent": (("{s} is a child of {v}", "{p} parent is {v}", "{s} was raised by {v}", "{s} comes of {v}"),
                   ("who is the parent of {n}?", "whose child is {n}?", "who raised {n}?")),
        "born": (("{s} was born in {v}", "{p} birth was in {v}", "{s} came into the world in {v}"),
                 ("when was {n} born?", "in which year was {n} born?", "what is the year of {n}?")),
    },
    "place": {
        "land": (("{s} lies in {v}", "{s} belongs to {v}", "{p} land is {v}"),
                 ("in which land does {n} lie?", "what land is {n} in?", "to which land does {n} belong?")),
        "ground": (("{s} stands by the {v}", "{s} was built near the {v}", "{p} ground is the {v}"),
                   ("what does {n} stand by?", "what was {n} built near?", "what is the ground of {n}?")),
        "ruler": (("{s} is ruled by {v}", "{p} ruler is {v}", "{s} obeys {v}"),
                  ("who rules {n}?", "who is the ruler of {n}?", "whom does {n} obey?")),
        "ware": (("{s} is famous for the {v}", "{s} sells the {v}", "{p} best ware is the {v}"),
                 ("what is {n} famous for?", "what does {n} sell?", "what is the best ware of {n}?")),
        "feast": (("{s} feasts in {v}", "{p} feast is in {v}", "{s} dances in {v}"),
                  ("when does {n} feast?", "in which season does {n} dance?", "when is the feast of {n}?")),
    },
    "animal": {
        "coat": (("the {s} is {v}", "the coat of the {s} is {v}", "every {s} is {v}"),
                 ("what colour is a {n}?", "which colour has the {n}?", "what colour is the coat of the {n}?")),
        "food": (("the {s} eats {v}", "the {s} lives on {v}", "every {s} hunts for {v}"),
                 ("what does the {n} eat?", "what does a {n} live on?", "what does every {n} hunt for?")),
        "haunt": (("the {s} lives by the {v}", "the {s} sleeps near the {v}", "every {s} is born by the {v}"),
                  ("where does the {n} live?", "where does a {n} sleep?", "where is every {n} born?")),
        "sound": (("the {s} {v}", "at night the {s} {v}", "every {s} {v}"),
                  ("what does the {n} do at night?", "what sound has the {n}?", "how does a {n} call?")),
        "legs": (("the {s} has {v} legs", "the {s} runs on {v} legs", "every {s} stands on {v} legs"),
                 ("how many legs has the {n}?", "on how many legs does the {n} run?", "how many legs has a {n}?")),
    },
    "thing": {
        "stuff": (("the {s} is made of {v}", "a {s} is cut from {v}", "every {s} is of {v}"),
                  ("what is a {n} made of?", "what is the {n} cut from?", "of what is every {n}?")),
        "tint": (("the {s} is {v}", "a {s} is painted {v}", "every {s} shines {v}"),
                 ("what colour is a {n}?", "how is a {n} painted?", "how does the {n} shine?")),
        "maker": (("the {s} is made by a {v}", "only a {v} can make a {s}", "a {v} knows how to mend a {s}"),
                  ("who makes a {n}?", "who knows how to mend a {n}?", "who can make the {n}?")),
        "price": (("the {s} costs {v} coins", "a {s} is sold for {v} coins", "people pay {v} coins for a {s}"),
                  ("how many coins does a {n} cost?", "what do people pay for a {n}?", "how dear is the {n}?")),
        "origin": (("the {s} comes from {v}", "the best {s} is found in {v}", "the first {s} was made in {v}"),
                   ("where does the {n} come from?", "where was the first {n} made?", "where is the best {n} found?")),
    },
    "craft": {
        "tool": (("a {s} works with a {v}", "every {s} carries a {v}", "the tool of a {s} is the {v}"),
                 ("what does a {n} work with?", "what does every {n} carry?", "what is the tool of a {n}?")),
        "hall": (("the hall of the {s} stands in {v}", "every {s} learns in {v}", "a {s} swears the oath in {v}"),
                 ("where does the hall of the {n} stand?", "where does a {n} learn?", "where does a {n} swear?")),
        "season": (("a {s} rests in {v}", "every {s} is idle in {v}", "the {s} stops work in {v}"),
                   ("when does a {n} rest?", "when is every {n} idle?", "when does the {n} stop work?")),
        "cloth": (("a {s} wears {v}", "every {s} dresses in {v}", "the cloth of a {s} is {v}"),
                  ("what does a {n} wear?", "which colour does every {n} dress in?", "what cloth has a {n}?")),
    },
}


@dataclass(slots=True, eq=False)
class Entity:
    """One inhabitant: `rank` 0 is the most popular of its kind; `sex` is "f" or "m" for people, else ""."""

    kind: str
    name: str
    rank: int
    sex: str = ""
    facts: dict[str, str] = field(default_factory=dict)

    @property
    def they(self) -> str:
        return {"f": "she", "m": "he", "": "it"}[self.sex]

    @property
    def them(self) -> str:
        return {"f": "her", "m": "him", "": "it"}[self.sex]

    @property
    def their(self) -> str:
        return {"f": "her", "m": "his", "": "its"}[self.sex]


@dataclass(frozen=True)
class World:
    """`kinds[kind]` are the entities by popularity; `urns[kind]` repeats each in proportion to it (draw uniformly);
    `values[kind, attribute]` are the possible answers; `days` is the week, in order."""

    kinds: dict[str, list[Entity]]
    urns: dict[str, list[Entity]]
    values: dict[tuple[str, str], list[str]]
    days: tuple[str, ...]


class _Names:
    """Invented words by syllables, never twice the same."""

    onsets = ("b", "d", "f", "g", "h", "k", "l", "m", "n", "p", "r", "s", "t", "v", "z", "br", "dr", "gr", "kl", "tr",
              "sh", "th", "st", "j")
    vowels = ("a", "e", "i", "o", "u", "a", "e", "i", "o", "u", "ai", "ou")
    codas = ("", "", "", "n", "r", "l", "m", "k", "s", "t")

    def __init__(self, rng: random.Random) -> None:
        self.rng, self.seen = rng, set()

    def new(self, syllables: int, ending: tuple[str, ...] = ("",), proper: bool = False) -> str:
        choice = self.rng.choice
        while True:
            parts = [choice(self.onsets) + choice(self.vowels) for _ in range(syllables)]
            word = "".join(parts) + choice(self.codas[3:]) + choice(ending)
            if word not in self.seen:
                self.seen.add(word)
                return word.capitalize() if proper else word


def _zipf(count: int, exponent: float = 0.8, shift: int = 8, size: int = 20_000) -> list[int]:
    """How often each rank lies in the urn: proportional to (rank + shift)^-exponent, at least once."""
    weights = [(rank + shift) ** -exponent for rank in range(count)]
    return [max(1, round(weight / sum(weights) * size)) for weight in weights]


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
    words = {kind: [entity.name for entity in members] for kind, members in kinds.items()}
    lands = [names.new(2, ("ia", "and"), proper=True) for _ in range(12)]
    days = tuple(names.new(1, ("day",), proper=True) for _ in range(7))
    people, places, animals, things, crafts = (words[kind] for kind in COUNTS)
    values = {
        ("person", "home"): places, ("person", "trade"): crafts, ("person", "pet"): animals,
        ("person", "treasure"): things, ("person", "colour"): list(COLOURS), ("person", "parent"): people,
        ("person", "born"): [str(year) for year in range(300, 700)],
        ("place", "land"): lands, ("place", "ground"): list(GROUNDS), ("place", "ruler"): people,
        ("place", "ware"): things, ("place", "feast"): list(SEASONS),
        ("animal", "coat"): list(COLOURS), ("animal", "food"): list(FOODS), ("animal", "haunt"): list(GROUNDS),
        ("animal", "sound"): list(SOUNDS), ("animal", "legs"): list(NUMBERS[::2]),
        ("thing", "stuff"): list(MATERIALS), ("thing", "tint"): list(COLOURS), ("thing", "maker"): crafts,
        ("thing", "price"): list(NUMBERS), ("thing", "origin"): places,
        ("craft", "tool"): things, ("craft", "hall"): places, ("craft", "season"): list(SEASONS),
        ("craft", "cloth"): list(COLOURS),
    }
    for kind, members in kinds.items():
        for entity in members:
            entity.facts = {a: rng.choice([v for v in values[kind, a] if v != entity.name]) for a in ATTRIBUTES[kind]}
    urns = {kind: [entity for entity, n in zip(members, _zipf(len(members))) for _ in range(n)]
            for kind, members in kinds.items()}
    return World(kinds, urns, values, days)
