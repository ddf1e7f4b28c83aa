"""The embedded world: the same text for the same arguments, disjoint roles, models that have learned it."""
from __future__ import annotations

import hashlib
import json
import math
from itertools import islice
from pathlib import Path

import pytest
from safetensors import safe_open

from prunekit.embedded import tasks, world
from prunekit.embedded.entities import ATTRIBUTES, COUNTS, the_world
from prunekit.embedded.registers import Story
from prunekit.embedded.scribe import Scribe
from prunekit.errors import UsageError

FOLDER = Path(world.__file__).parent
MODELS = ("llama", "opt")


def some(role: str, count: int, **options) -> list[str]:
    return list(islice(world.documents(role, **options), count))


def test_same_arguments_same_text() -> None:
    """The models and their measured tables belong to this text: whoever changes it, trains them anew."""
    text = "\n".join(some("test", 50))
    assert text == "\n".join(some("test", 50))
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "ba11f7438b837b9a"
    assert some("test", 5, seed=1) != some("test", 5)
    every = [some(role, 60, seed=1, registers=[name]) for role in world.ROLES for name in world.REGISTERS]
    every += [list(tasks.documents(task, 60)) for task in tasks.TASKS]
    assert hashlib.sha256(json.dumps(every).encode()).hexdigest()[:16] == "fbc22c651c5bfc61"


def test_no_document_has_two_roles() -> None:
    seen: dict[str, str] = {}
    for role in world.ROLES:
        for seed in (0, 1):
            for document in some(role, 400, seed=seed):
                assert seen.setdefault(document, role) == role
    assert set(seen.values()) == set(world.ROLES)


def test_one_stream_hardly_repeats_itself() -> None:
    documents = some("train", 3000)
    assert len(set(documents)) > 2990


@pytest.mark.parametrize("register", world.REGISTERS)
def test_every_register_writes_documents_of_its_own(register: str) -> None:
    tokenizer = pytest.importorskip("transformers").AutoTokenizer.from_pretrained(FOLDER / "llama")
    documents = some("train", 60, registers=[register])
    lengths = [len(ids) for ids in tokenizer(documents)["input_ids"]]
    assert 50 < sum(lengths) / len(lengths) < 300 and max(lengths) < 512 and min(lengths) > 15
    for other in world.REGISTERS:
        if other != register:
            assert not set(documents) & set(some("train", 60, registers=[other]))


def test_all_registers_are_drawn_from_by_default() -> None:
    marks = {"stories": "Question: who has", "reckoning": "Count by", "nested": "Backwards:",
             "chronicle": "neighbours"}
    text = " ".join(some("select", 400))
    assert [mark for mark in marks.values() if mark not in text] == []


@pytest.mark.parametrize("arguments", [{"role": "tset"}, {"role": "test", "registers": ["storys"]},
                                       {"role": "test", "registers": []}])
def test_unknown_names_are_refused_at_once(arguments: dict) -> None:
    with pytest.raises(UsageError, match="embedded world has no"):
        world.documents(**arguments)


def test_everybody_has_a_name_of_their_own_and_all_facts() -> None:
    members = [entity for kind in the_world().kinds.values() for entity in kind]
    assert len(members) == sum(COUNTS.values()) == len({entity.name.lower() for entity in members})
    for entity in members:
        assert set(entity.facts) == set(ATTRIBUTES[entity.kind])
        assert all(v in the_world().values[entity.kind, a] and v != entity.name
                   for a, v in entity.facts.items())


def test_popularity_falls_by_a_power_of_the_rank() -> None:
    urn = the_world().urns["person"]
    counts = [urn.count(the_world().kinds["person"][rank]) for rank in (0, 10, 100, 359)]
    assert counts == sorted(counts, reverse=True) and counts[0] > 10 * counts[-1] > 0


def test_a_story_never_contradicts_its_state() -> None:
    """Read the events back with a few words of grammar, independently of the state that made them."""
    import random

    for seed in range(30):
        story = Story(Scribe(random.Random(seed)), agents=3, things=1)
        story.opening()
        (thing,) = story.things
        for _ in range(8):
            line, before = story.event(), story.holder[thing]
            if f"the {thing} to " in line:
                assert line.endswith(f" to {before.name}.")
            elif any(f" {verb} the {thing} at " in line for verb in ("left", "hid", "dropped")):
                assert before is None and story.whereabouts(thing)[1] == "at " + line.split(" at ")[1][:-1]


@pytest.mark.parametrize("name", MODELS)
def test_weights_are_bfloat16_and_fit_every_pattern(name: str) -> None:
    with safe_open(FOLDER / name / "model.safetensors", "pt") as file:
        tensors = {key: file.get_slice(key) for key in sorted(file.keys())}
        assert {tensor.get_dtype() for tensor in tensors.values()} == {"BF16"}
        layers = {key: tensor.get_shape() for key, tensor in tensors.items() if ".layers." in key
                  and len(tensor.get_shape()) == 2}
    assert len(layers) == 6 * {"llama": 7, "opt": 6}[name]
    assert all(size % 8 == 0 for shape in layers.values() for size in shape)


def test_both_models_stay_small() -> None:
    assert sum(file.stat().st_size for name in MODELS for file in (FOLDER / name).iterdir()) <= 20e6


@pytest.mark.parametrize("name", MODELS)
def test_tokenizer_gives_text_back(name: str) -> None:
    tokenizer = pytest.importorskip("transformers").AutoTokenizer.from_pretrained(FOLDER / name)
    text = "\n".join(some("test", 30)) + " {\"ä\": 417}"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert tokenizer.eos_token == "<|end|>" and 2000 <= len(tokenizer) <= 4096
    assert len(text) / len(tokenizer(text)["input_ids"]) > 3


@pytest.mark.parametrize("name", MODELS)
def test_models_have_learned_the_world(name: str) -> None:
    """Perplexity far below the unigram's, and what training.json says of it is true."""
    import prunekit as pk

    record = json.loads((FOLDER / name / "training.json").read_text())
    model, tokenizer = pk.load_model(f"embedded/{name}")
    found = pk.perplexity(model, pk.token_windows("embedded", tokenizer, "test", 256, 128)[:64], 128,
                          progress=False)
    stated = record["perplexity"]["all"]
    assert stated["dense"] < stated["unigram"] / 10
    assert found.value == pytest.approx(stated["dense"], rel=0.1)
    assert model.config.max_position_embeddings >= 512
    assert record["tokens"] == pytest.approx(record["recipe"]["tokens"], rel=0.01)
    assert record["curve"][-1][1] < record["curve"][0][1] / 2


def test_training_resumes_where_it_was_killed(tmp_path) -> None:
    """Two steps, a checkpoint, two more: the same weights as four in a row."""
    import torch

    from recipes import embedded_models

    recipe = embedded_models.Recipe("llama", tokens=1024 * 4, batch=1024, warmup=1, context=(128,))
    batches = torch.randint(0, embedded_models.VOCABULARY, (4, 1024),
                            generator=torch.Generator().manual_seed(0))
    whole = embedded_models.Trainer(recipe)
    for ids in batches:
        whole.advance(ids)
    first = embedded_models.Trainer(recipe)
    for ids in batches[:2]:
        first.advance(ids)
    first.save(tmp_path)
    second = embedded_models.Trainer(recipe)
    second.load(tmp_path)
    for ids in batches[2:]:
        second.advance(ids)
    assert whole.step == second.step == 4
    assert all(torch.equal(a, b) for a, b in zip(whole.masters.values(), second.masters.values()))
    with pytest.raises(UsageError, match="another recipe"):
        embedded_models.Trainer(embedded_models.Recipe("llama", seed=1)).load(tmp_path)


@pytest.mark.parametrize("task", tasks.TASKS)
def test_questions_are_different_balanced_and_of_the_test_role(task: str) -> None:
    documents = list(tasks.documents(task, 200))
    assert documents == list(tasks.documents(task, 200))
    assert len({json.dumps(document, sort_keys=True) for document in documents}) == 200
    options = len(documents[0]["choices"])
    golds = [document["gold"] for document in documents]
    assert all(golds.count(place) > 0.7 * 200 / options for place in range(options))
    for document in documents:
        assert len(set(document["choices"])) == len(document["choices"]) == options
        assert all(choice.startswith(" ") for choice in document["choices"])


def binomial_tail(hits: int, count: int, share: float) -> float:
    """P(at least `hits` of `count`), each with probability `share`."""
    return sum(math.comb(count, k) * share**k * (1 - share)**(count - k) for k in range(hits, count + 1))


@pytest.mark.parametrize("task", tasks.TASKS)
def test_guessers_are_at_chance(task: str) -> None:
    """Always the same place, always the shortest, always the longest: none beats chance on 500 questions."""
    documents = list(tasks.documents(task, 500))
    options = len(documents[0]["choices"])
    guessers = [lambda lengths, place=place: place for place in range(options)]
    guessers += [lambda lengths: lengths.index(min(lengths)), lambda lengths: lengths.index(max(lengths))]
    for guess in guessers:
        hits = sum(guess([len(choice) for choice in one["choices"]]) == one["gold"] for one in documents)
        assert binomial_tail(hits, 500, 1 / options) > 0.001


def test_every_task_is_above_chance_on_llama() -> None:
    import prunekit as pk

    frame = pk.zero_shot(*pk.load_model("embedded/llama"), ["embedded"], limit=80, progress=False)
    right = frame[frame["metric"] == "acc"]
    assert right["task"].tolist() == [f"embedded_{task}" for task in tasks.TASKS]
    for row in right.itertuples():
        assert binomial_tail(round(row.value * 80), 80, row.chance) < 0.01, row.task
    assert (right["value"] - right["chance"]).mean() > 0.15


def test_rule_questions_have_the_answer_that_rule_and_fact_give() -> None:
    people = {person.name: person for person in the_world().kinds["person"]}
    words = {"town": "home", "home": "home", "craft": "trade", "trade": "trade", "animal": "pet",
             "thing": "treasure", "treasure": "treasure", "colour": "colour", "parent": "parent"}
    for document in tasks.documents("ruling", 100):
        law, question = document["query"].split("; ")
        person, season = people[question.split()[2]], question.removesuffix("? Answer:").split()[-1]
        clauses = [f" {clause} ".replace(" law in", "  in") for clause in law.split(" and ")]
        (clause,) = [clause for clause in clauses if f" in {season} " in clause]
        (attribute,) = {words[word] for word in clause.split() if word in words}
        facts = list(person.facts.values())
        assert document["choices"][document["gold"]].strip() == person.facts[attribute]
        assert all(choice.strip() in facts for choice in document["choices"])


def test_most_of_the_wrong_persons_of_reading_do_not_occur_in_its_passage() -> None:
    """About three quarters: half are not of the story, and the passage does not name all who are."""
    absent = []
    for document in tasks.documents("reading", 500):
        passage, question = document["query"].split(" Question: tell me, does ")
        if document["choices"][document["gold"]] == " no":
            absent.append(question.partition(" have the ")[0] not in passage)
    assert sum(absent) / len(absent) == pytest.approx(0.75, abs=0.05)
    assert "three quarters of the wrong persons do not occur" in tasks.reading.__doc__


def test_unknown_task_is_refused() -> None:
    with pytest.raises(UsageError, match="no task 'raer'"):
        next(tasks.documents("raer"))
