"""The seven kinds of questions, as they occur in the dialogue register: from a passage or from knowledge."""
from __future__ import annotations

from dataclasses import dataclass, replace

from prunekit.embedded.entities import ATTRIBUTES, LISTS, WORDS, Entity
from prunekit.embedded.scribe import Scribe, cap

KINDS = ("person", "person", "person", "person", "place", "animal", "thing", "craft")
# What ends with {b} having the {t}.
TRANSFERS = [pair for pair in WORDS["converses"] if "{t}" in pair[0]] + WORDS["transfers"]
RULES: dict[str, list[str]] = WORDS["rules"]
KNOWN = 60  # the tasks' rules ask about the best-known people only
Pairs = list[tuple[str, str]]  # questions and answers that belong together, in order


def dialogue(w: Scribe) -> list[str]:
    """Questions and answers: facts, yes or no, one of four, what follows, whom a pronoun means, rules."""
    asker, teller = w.people(2)
    plain, wanted = w.chance(0.8), w.number(4, 7)
    pairs: Pairs = []
    while len(pairs) < wanted:
        pairs += w.pick(_TALK)(w)
    if plain:
        return [f"Question: {w.put(question)} Answer: {answer}." for question, answer in pairs]
    return [f'"{cap(question)}" asked {asker.name}. "{cap(answer)}," said {teller.name}.'
            for question, answer in pairs]


def _fact(w: Scribe) -> Pairs:
    entity = w.entity(w.pick(KINDS))
    attribute = w.pick(list(ATTRIBUTES[entity.kind]))
    return [(w.asked(entity, attribute), entity.facts[attribute])]


def _choice(w: Scribe) -> Pairs:
    entity = w.entity(w.pick(KINDS))
    attribute = w.pick(list(ATTRIBUTES[entity.kind]))
    answer = entity.facts[attribute]
    options = [answer, *w.other(entity, attribute, 3)]
    w.rng.shuffle(options)
    return [(f"{w.asked(entity, attribute)[:-1]}: {', '.join(options[:3])} or {options[3]}?", answer)]


def _doubt(w: Scribe) -> Pairs:
    entity = w.entity(w.pick(KINDS))
    attribute = w.pick(list(ATTRIBUTES[entity.kind]))
    if w.chance(0.5):
        return [(f"is it true that {w.said(entity, attribute)}?", "yes")]
    twin = replace(entity, facts={attribute: w.other(entity, attribute)[0]})
    return [(f"is it true that {w.said(twin, attribute)}?", "no")]


def follows(w: Scribe) -> tuple[str, str]:
    """Whether a sentence follows from another that says it from the other side, and "yes" or "no"."""
    (a, b), (thing,) = w.people(2), w.things(1)
    premise, conclusion = w.pick(WORDS["converses"])
    if w.chance(0.5):
        premise, conclusion = conclusion, premise
    true = w.chance(0.5)
    before = premise.format(a=a.name, b=b.name, t=thing)
    x, y = (a, b) if true else (b, a)
    after = conclusion.format(a=x.name, b=y.name, t=thing)
    frame = w.pick(("if {} is it true that {}?", "{}; does it follow that {}?",
                    "we know that {}, so is it sure that {}?"))
    return frame.format(before, after), "yes" if true else "no"


def _follows(w: Scribe) -> Pairs:
    return [follows(w), follows(w)]


def pronoun(w: Scribe) -> tuple[str, str, Entity, Entity]:
    """A sentence with a pronoun that only one of two people fits, the question, the one and the other."""
    a, b = w.people(2)
    while a.sex == b.sex:
        a, b = w.people(2)
    meant = w.pick((a, b))
    mood = w.pick(LISTS["moods"])
    verb = w.pick(("met", "saw", "thanked", "called", "helped", "left", "followed"))
    link = w.pick((" because {} was {}", " when {} was {}", ", and {} was {}")).format(meant.they, mood)
    return f"{a.name} {verb} {b.name}{link}", f"who was {mood}?", meant, b if meant is a else a


def _pronoun(w: Scribe) -> Pairs:
    sentence, question, meant, _ = pronoun(w)
    return [(f"{sentence}: {question}", meant.name)]


@dataclass(frozen=True)
class Rule:
    """`text` says which attribute counts in which season (`cases`); `duty` is what all must do."""

    text: str
    duty: str
    cases: dict[str, str]

    def asked(self, person: Entity, season: str) -> str:
        return f"what must {person.name} {self.duty} in {season}?"


def rule(w: Scribe, clauses: int) -> Rule:
    """A rule of so many clauses; what it asks of somebody follows from one clause and one fact about them."""
    duty = w.pick(LISTS["duties"])
    cases = dict(zip(w.some(LISTS["seasons"], clauses), w.some(list(RULES), clauses)))
    text = [f"in {season} all {duty} {w.pick(RULES[attribute])}" for season, attribute in cases.items()]
    return Rule(" and ".join(text), duty, cases)


def _rule(w: Scribe) -> Pairs:
    """The rule is told once, then asked about several people, of whom it must be known what they have."""
    law, pairs = rule(w, w.pick((1, 2, 2, 3))), []
    for person in w.people(w.number(2, 4)):
        season = w.pick(list(law.cases))
        pairs.append((law.asked(person, season), person.facts[law.cases[season]]))
    (question, answer), *rest = pairs
    return [(f"{w.pick(('by the law', 'here', 'by old custom'))} {law.text}; {question}", answer), *rest]


_TALK = (_fact, _fact, _choice, _doubt, _follows, _pronoun, _rule, _rule)
