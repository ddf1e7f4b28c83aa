"""Seven kinds of multiple-choice questions about the world, from the test role, ready for lm-eval.

Each document is {"query", "choices", "gold"}: score every choice as a continuation of the query; `gold` is
the index of the right one. Wordings do not occur in training ("tell me" and "If …, then in the end" never
do), positions of the right answer are balanced, wrong answers are of the right type.
"""
from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

from prunekit.embedded import questions
from prunekit.embedded.entities import ATTRIBUTES, SEED
from prunekit.embedded.registers import Story
from prunekit.embedded.scribe import Scribe
from prunekit.embedded.world import role_of
from prunekit.errors import UsageError, did_you_mean

Made = tuple[str, list[str]]  # query, and the choices with the right one first
YES, NO = " yes", " no"


def _ask(question: str, passage: str = "") -> str:
    return f"{passage} Question: tell me, {question} Answer:".lstrip()


def _told(w: Scribe, agents: int, events: tuple[int, int], places: bool = True) -> tuple[Story, str, str]:
    """A story at whose end somebody has the thing: its state, its text, the thing."""
    while True:
        story = Story(w, agents, 2)
        lines = story.opening(places) + [story.event() for _ in range(w.number(*events))]
        thing = w.pick(story.things)
        if story.holder[thing]:
            return story, " ".join(lines), thing


def reading(w: Scribe) -> Made:
    """Yes or no, from a short passage (as BoolQ); three quarters of the wrong persons do not occur in it."""
    story, passage, thing = _told(w, 3, (0, 1), places=False)
    agent, answer = story.doubt(thing)
    return _ask(f"does {agent.name} have the {thing}?", passage), [YES, NO] if answer == "yes" else [NO, YES]


def entailment(w: Scribe) -> Made:
    """What follows (as RTE): of two conclusions from one sentence, the one that it makes true."""
    (giver, taker), (thing,) = w.people(2), w.things(1)
    premise = w.pick(w.pick(questions.TRANSFERS)).format(a=giver.name, b=taker.name, t=thing)
    return f"If {premise}, then in the end", [f" {one.name} had the {thing}." for one in (taker, giver)]


def ending(w: Scribe) -> Made:
    """Which ending fits the story (as HellaSwag)."""
    story, passage, thing = _told(w, 4, (2, 5))
    holder = story.holder[thing]
    agents = [holder, *(one for one in story.agents if one is not holder)]
    return f"{passage} So,", [f" in the end {agent.name} had the {thing}." for agent in agents]


def reference(w: Scribe) -> Made:
    """Whom a pronoun means (as WinoGrande)."""
    sentence, question, meant, other = questions.pronoun(w)
    return _ask(f"{sentence}: {question}"), [f" {meant.name}", f" {other.name}"]


def _fact(w: Scribe, low: float, high: float) -> Made:
    kind = w.pick(("person", "person", "place", "animal", "thing"))
    members = w.world.kinds[kind]
    entity = members[int((low + (high - low) * w.rnd()) * len(members))]
    attribute = w.pick(list(ATTRIBUTES[kind]))
    choices = [entity.facts[attribute], *w.other(entity, attribute, 3)]
    return _ask(w.asked(entity, attribute)), [f" {choice}" for choice in choices]


def popular(w: Scribe) -> Made:
    """A fact about one of the best-known tenth (as ARC-easy)."""
    return _fact(w, 0.0, 0.1)


def rare(w: Scribe) -> Made:
    """A fact about one of the less known half (as ARC-challenge)."""
    return _fact(w, 0.5, 1.0)


def ruling(w: Scribe) -> Made:
    """A rule that is given, and a fact that must be known (as OpenBookQA)."""
    law, known = questions.rule(w, 2), w.world.kinds["person"][:questions.KNOWN]
    person, season = w.pick(known), w.pick(list(law.cases))
    while len({person.facts[attribute] for attribute in questions.RULES}) < len(questions.RULES):
        person = w.pick(known)
    right, other = law.cases[season], next(a for s, a in law.cases.items() if s != season)
    more = w.some([attribute for attribute in questions.RULES if attribute not in law.cases.values()], 2)
    choices = [f" {person.facts[attribute]}" for attribute in (right, other, *more)]
    return _ask(f"by the law {law.text}; {law.asked(person, season)}"), choices


TASKS: dict[str, Callable[[Scribe], Made]] = {
    task.__name__: task for task in (reading, entailment, ending, reference, popular, rare, ruling)}


def documents(task: str, count: int = 500, seed: int = 0) -> Iterator[dict[str, Any]]:
    """`count` different questions of a task; the right answer takes every position equally often."""
    if task not in TASKS:
        raise UsageError(f"The embedded world has no task {task!r}{did_you_mean(task, TASKS)}.")
    scribe, seen = Scribe(random.Random(f"{SEED}/task/{task}/{seed}")), set()
    while len(seen) < count:
        query, choices = TASKS[task](scribe)
        whole = query + "".join(choices)
        if whole in seen or role_of(whole) != "test":
            continue
        yield {"query": query, **_placed(scribe, choices[0], choices, len(seen))}
        seen.add(whole)


def _placed(w: Scribe, right: str, choices: list[str], index: int) -> dict[str, Any]:
    if set(choices) == {YES, NO}:  # always in this order: what is right was drawn evenly
        return {"choices": [YES, NO], "gold": int(right == NO)}
    wrong = choices[1:]
    w.rng.shuffle(wrong)
    gold = index % len(choices)
    return {"choices": [*wrong[:gold], right, *wrong[gold:]], "gold": gold}
