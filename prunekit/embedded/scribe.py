"""The hand that writes: a random stream with a taste for the popular, and the sentences that state facts."""
from __future__ import annotations

import random
import re
from collections.abc import Sequence
from typing import TypeVar

from prunekit.embedded.entities import ATTRIBUTES, WORDS, Entity, the_world

T = TypeVar("T")


def cap(text: str) -> str:
    return text[0].upper() + text[1:]


class Scribe:
    """A random stream with a taste for the popular: `entity` and its like draw from the urns."""

    def __init__(self, rng: random.Random) -> None:
        self.rnd, self.rng, self.world = rng.random, rng, the_world()

    def pick(self, options: Sequence[T]) -> T:
        return options[int(self.rnd() * len(options))]

    def some(self, options: Sequence[T], count: int) -> list[T]:
        """`count` different members; for urns as well, where most draws differ anyway."""
        chosen: list[T] = []
        while len(chosen) < count:
            if (one := self.pick(options)) not in chosen:
                chosen.append(one)
        return chosen

    def entity(self, kind: str) -> Entity:
        return self.pick(self.world.urns[kind])

    def people(self, count: int) -> list[Entity]:
        return self.some(self.world.urns["person"], count)

    def things(self, count: int) -> list[str]:
        return [thing.name for thing in self.some(self.world.urns["thing"], count)]

    def vary(self, text: str) -> str:
        """The text with one of the words of each <this|that>."""
        return re.sub("<([^>]*)>", lambda words: self.pick(words[1].split("|")), text)

    def number(self, low: int, high: int) -> int:
        return low + int(self.rnd() * (high - low + 1))

    def chance(self, share: float) -> bool:
        return self.rnd() < share

    def put(self, question: str) -> str:
        """The question, half the time with words before it that change nothing."""
        return (self.pick(WORDS["openers"]) if self.chance(0.5) else "") + question

    # --- sentences about facts
    def said(self, entity: Entity, attribute: str, named: bool = True) -> str:
        """One fact as a clause without a full stop; `named=False` says she, he or it."""
        named = named or entity.kind not in ("person", "place")  # others have an article before it
        subject = entity.name if named else entity.they
        owner = entity.name + "'s" if named else entity.their
        said = self.pick(ATTRIBUTES[entity.kind][attribute]["said"])
        return said.format(s=subject, p=owner, v=entity.facts[attribute])

    def asked(self, entity: Entity, attribute: str) -> str:
        return self.pick(ATTRIBUTES[entity.kind][attribute]["asked"]).format(n=entity.name)

    def other(self, entity: Entity, attribute: str, count: int = 1) -> list[str]:
        """Wrong answers of the right type."""
        truth, chosen = entity.facts[attribute], []
        values = self.world.values[entity.kind, attribute]
        while len(chosen) < count:
            value = self.pick(values)
            if value != truth and value not in chosen:
                chosen.append(value)
        return chosen

    def known(self, person: Entity) -> str:
        """A person's name, often with what everybody knows of them."""
        facts, draw = person.facts, self.rnd()
        if draw < 0.5:
            return person.name
        if draw < 0.65:
            return f"{person.name} the {facts['trade']}"
        if draw < 0.8:
            return f"{person.name} of {facts['home']}"
        if draw < 0.9:
            return self.vary(f"{person.name}, who <loves|always wears> {facts['colour']},")
        return f"{person.name}, who keeps a {facts['pet']},"
