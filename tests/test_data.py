from __future__ import annotations

import gzip
import itertools
import json
import random
from functools import cache

import pandas as pd
import pytest
import torch
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

import prunekit as pk
from prunekit import data


class Words:
    """A tokenizer of numbers: every word is its own id."""

    eos_token_id = 0

    def __call__(self, texts, add_special_tokens=False, verbose=True):
        return {"input_ids": [[int(word) for word in text.split()] for text in texts]}


def numbers(low: int, high: int) -> str:
    return " ".join(map(str, range(low, high)))


@pytest.fixture
def folder(tmp_path):
    """A running text whose tokens say where they stand: train 0-9999, validation 10000-, test 20000-."""
    for split, start, count in (("train", 0, 10_000), ("validation", 10_000, 2000), ("test", 20_000, 1005)):
        (tmp_path / f"{split}.txt").write_text(numbers(start, start + count))
    return tmp_path


@pytest.mark.parametrize(("name", "value"), [("n", -1), ("n", 0), ("n", 2.5), ("seqlen", 0), ("seqlen", 1),
                                             ("seqlen", -8), ("seqlen", 8.0), ("n", True)])
@pytest.mark.parametrize("corpus", ["embedded", None])
def test_impossible_numbers_are_one_sentence(name, value, corpus, folder):
    with pytest.raises(pk.UsageError, match=f"^{name} = {value} is no "):
        pk.token_windows(corpus or folder, Words(), "train", **{"n": 2, "seqlen": 8, name: value})


def test_roles_divide_the_train_tokens_40_20_20_20(folder):
    bounds = {"calibration": (0, 4000), "gradient": (4000, 6000), "search": (6000, 8000),
              "train": (8000, 10_000), "select": (10_000, 12_000)}
    for role, (low, high) in bounds.items():
        windows = pk.token_windows(folder, Words(), role, (high - low) // 10, 10)
        assert windows.dtype == torch.long
        assert sorted(windows.flatten().tolist()) == list(range(low, high))
        few = pk.token_windows(folder, Words(), role, 7, 10, seed=1)
        assert len(few.unique()) == 70 and low <= few.min() and few.max() < high


def test_test_windows_are_consecutive_from_the_start_with_the_rest_dropped(folder):
    windows = pk.token_windows(folder, Words(), "test", seqlen=10)
    assert windows.flatten().tolist() == list(range(20_000, 21_000))
    assert torch.equal(pk.token_windows(folder, Words(), "test", 3, 10, seed=9), windows[:3])


def test_published_sampling_by_its_own_recipe(folder):
    generator = random.Random(3)
    starts = [generator.randint(0, 10_000 - 10 - 1) for _ in range(5)]
    for role in ("calibration", "gradient"):
        windows = pk.token_windows(folder, Words(), role, 5, 10, 3, roles="published")
        assert windows[:, 0].tolist() == starts
    for role in ("search", "select"):  # what is measured and chosen by is no text that X was collected on
        published, own = (pk.token_windows(folder, Words(), role, 5, 10, 3, roles=roles)
                          for roles in ("published", "disjoint"))
        assert published.equal(own) and not published.equal(windows)


def test_published_sampling_of_documents_gives_up_when_all_are_too_short(tmp_path):
    """Long ones among short ones: drawn as published, each document tokenized once if it is too short."""
    texts = [numbers(i * 100, i * 100 + (30 if i % 10 == 0 else 5)) for i in range(100)]
    generator, expected, asked = random.Random(3), [], []
    while len(expected) < 5:
        text = texts[generator.randint(0, 99)].split()
        if len(text) > 10:
            expected.append(int(text[generator.randint(0, len(text) - 11)]))

    class Counted(Words):
        def __call__(self, texts, **options):
            asked.extend(texts)
            return super().__call__(texts, **options)

    write_rows(tmp_path / "train.jsonl", texts)
    draw = lambda long: pk.token_windows(tmp_path, Counted(), "calibration", 5, long, 3, roles="published")
    assert draw(10)[:, 0].tolist() == expected
    asked.clear()
    with pytest.raises(pk.UsageError, match="has text for 0 calibration windows of 50 tokens where 5"):
        draw(50)
    assert sorted(asked) == sorted(texts)


def test_training_windows_pack_whole_documents(tmp_path):
    path = tmp_path / "corpus"
    path.mkdir()
    write_documents(tmp_path, ".jsonl").rename(path / "train.jsonl")
    published = pk.token_windows(path, Words(), "train", 6, 50, roles="published").flatten().tolist()
    packed = [token for i in range(300) for token in [*range(i * 100, i * 100 + 30), 0]]
    assert published == packed[:300]
    own = pk.token_windows(path, Words(), "train", 6, 50, seed=1).flatten().tolist()
    assert own != pk.token_windows(path, Words(), "train", 6, 50, seed=2).flatten().tolist()
    within = [(a, b) for a, b in itertools.pairwise(own) if a % 100 < 29 and a]
    assert all(b == a + 1 for a, b in within)
    with pytest.raises(pk.UsageError, match="has text for 186 train windows"):
        pk.token_windows(path, Words(), "train", 187, 50, roles="published")


@pytest.mark.parametrize("role", ["calibration", "gradient", "train"])
def test_published_windows_need_a_train_split(role, tmp_path):
    (tmp_path / "text.txt").write_text(numbers(0, 5000))
    draw = lambda role, roles: pk.token_windows(tmp_path / "text.txt", Words(), role, 4, 10, roles=roles)
    with pytest.raises(pk.UsageError, match=f"no train split, so published {role} windows would be of its"):
        draw(role, "published")
    for other in ("search", "select", "test"):
        assert draw(other, "published").equal(draw(other, "disjoint"))


@pytest.mark.parametrize("others", [(), ("validation",)])
def test_published_windows_are_never_of_the_test_text(others, tmp_path):
    """All of the train split may be theirs, and without a split of its own test is a share of it."""
    for place, split in enumerate(("train", *others)):
        (tmp_path / f"{split}.txt").write_text(numbers(5000 * place, 5000 * place + 5000))
    draw = lambda role, roles: pk.token_windows(tmp_path, Words(), role, 4, 10, roles=roles)
    with pytest.raises(pk.UsageError, match="has no test split, and published windows are of all of its tra"):
        draw("test", "published")
    assert len(draw("calibration", "published")) == len(draw("test", "disjoint")) == 4
    (tmp_path / "test.txt").write_text(numbers(20_000, 21_000))
    assert draw("test", "published").equal(draw("test", "disjoint"))


def test_a_corpus_that_changes_within_a_process_is_read_again(folder):
    before = pk.token_windows(folder, Words(), "test", 1, 10)
    (folder / "test.txt").write_text(numbers(30_000, 30_100))
    assert not pk.token_windows(folder, Words(), "test", 1, 10).equal(before)


def test_published_training_windows_of_a_running_text_are_its_first(folder):
    windows = pk.token_windows(folder, Words(), "train", 7, 10, roles="published")
    assert windows.flatten().tolist() == list(range(70))


def test_seeds_and_roles_give_other_windows(folder):
    draw = lambda role, seed: pk.token_windows(folder, Words(), role, 5, 10, seed)
    assert torch.equal(draw("search", 0), draw("search", 0))
    assert not torch.equal(draw("search", 0), draw("search", 1))


def write_documents(tmp_path, suffix: str):
    """300 documents of 30 tokens, document i holding i*100, i*100+1, …"""
    return write_rows(tmp_path / f"documents{suffix}", [numbers(i * 100, i * 100 + 30) for i in range(300)])


def write_rows(path, rows):
    """Rows of a column `text` in the form that the path's name says."""
    if path.suffix == ".parquet":
        pd.DataFrame({"text": rows}).to_parquet(path)
    elif path.suffix == "":
        Dataset.from_dict({"text": rows}).save_to_disk(path)
    else:
        content = "".join(json.dumps({"text": row}, ensure_ascii=False) + "\n" for row in rows).encode()
        path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.json.gz", "a.jsonl.gz", "a.parquet", "a"])
def test_rows_without_text_are_skipped_and_counted(name, tmp_path):
    """Null in every form; in JSON also numbers, lists, halves of characters, and rows without the column."""
    rows = ["1 2 3", None, "4 5\u2028 6\x0b 7\x85 8"]
    path = write_rows(tmp_path / name, rows)
    if "json" in name:
        extra = b'\n[1]\n"9"\n{"text": 9}\n{"text": ["9"]}\n{"text": "\\ud800"}\n{"body": "9"}\n'
        path.write_bytes(path.read_bytes() + (gzip.compress(extra) if name.endswith(".gz") else extra))
    found = data.load_corpus(str(path))
    assert found.splits == {"all": [rows[0], rows[2]]} and not found.running
    assert data.skipped_rows(path, "test") == (7 if "json" in name else 1)
    assert data.skipped_rows("embedded", "test") == 0


@pytest.mark.parametrize("name", ["{}.txt", "{}.txt.gz", "{}.jsonl", "{}.json.gz", "{}.parquet", "{}.ndjson",
                                  "{}.TXT", "A.{}.JSONL", "c4-{}.00000-of-00002.json.gz"])
def test_a_folder_of_splits_in_every_form(name, tmp_path):
    for number, split in enumerate(("train", "validation", "test")):
        path, text = tmp_path / name.format(split), numbers(1000 * number, 1000 * number + 500)
        content = b"\xef\xbb\xbf" + text.encode()
        if ".txt" in name.lower():
            path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
        else:
            write_rows(path, [text, None])
    if "c4" in name:
        write_rows(tmp_path / "c4-train.00001-of-00002.json.gz", [numbers(500, 900)])
    found = data.load_corpus(str(tmp_path))
    assert found.running == (".txt" in name.lower())
    assert found.splits.keys() == {"train", "validation", "test"}
    for role, number in (("test", 2), ("select", 1)):
        drawn = pk.token_windows(tmp_path, Words(), role, 1, 50)
        assert set((drawn // 1000).flatten().tolist()) == {number}
    assert found.splits["train"][1:] == ([numbers(500, 900)] if "c4" in name else [])
    assert data.skipped_rows(tmp_path, "calibration") == (0 if found.running else 1)


@pytest.mark.parametrize("word", ["valid", "val", "dev"])
def test_a_validation_split_by_another_name_is_one_where_there_is_no_other(word, tmp_path):
    """As Penn Treebank has it."""
    names = ("ptb.train.txt", f"ptb.{word}.txt", "ptb.test.txt")
    for number, name in enumerate(names):
        (tmp_path / name).write_text(numbers(1000 * number, 1000 * number + 500))
    (tmp_path / f"{word}.jsonl").write_text("of another form")
    assert pk.token_windows(tmp_path, Words(), "select", 5, 100).min() == 1000
    (tmp_path / "validation.txt").write_text(numbers(5000, 5500))
    assert pk.token_windows(tmp_path, Words(), "select", 5, 100).min() == 5000


@pytest.mark.parametrize("name", ["blob", "a.text"])
def test_json_lines_are_not_read_as_running_text(name, tmp_path):
    (tmp_path / name).write_text('\n{"text": "1 2", "id": 3}\n{"text": "4 5"}\n')
    with pytest.raises(pk.UsageError, match=f"{name} holds JSON lines, not running text: name it .jsonl"):
        data.load_corpus(str(tmp_path / name))
    for text in ('{"a": 1}\n', '["text"]', '{"text": '):
        (tmp_path / name).write_text(text)
        assert data.load_corpus(str(tmp_path / name)).splits == {"all": [text]}


def test_a_byte_order_mark_is_no_text(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "1 2 3"}\r\n{"text": "4 5 6"}\r\n')
    assert data.load_corpus(str(tmp_path / "a.jsonl")).splits == {"all": ["1 2 3", "4 5 6"]}


def test_a_column_of_sentences_is_a_running_text(tmp_path):
    """Of Penn Treebank, whose rows are too short for a window."""
    rows = [numbers(i, i + 5) for i in range(0, 1000, 5)]
    Dataset.from_dict({"sentence": rows}).save_to_disk(tmp_path / "ptb")
    windows = pk.token_windows(tmp_path / "ptb", Words(), "calibration", 4, 20)
    assert torch.equal(windows, windows[:, :1] + torch.arange(20))


def test_a_folder_without_a_train_split_serves_the_roles_that_need_none(tmp_path):
    (tmp_path / "test.txt").write_text(numbers(0, 100))
    (tmp_path / "validation.txt").write_text(numbers(100, 200))
    assert pk.token_windows(tmp_path, Words(), "test", seqlen=10).flatten().tolist() == list(range(100))
    assert pk.token_windows(tmp_path, Words(), "select", 10, 10).flatten().tolist() == list(range(100, 200))


def test_a_file_called_c4_is_read_to_its_end(tmp_path):
    write_rows(tmp_path / "c4.jsonl", [numbers(i, i + 400) for i in range(100)])
    assert len(pk.token_windows(tmp_path / "c4.jsonl", Words(), "test", seqlen=10)) > 256


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet", ""])
def test_documents_belong_to_one_role_each(suffix, tmp_path):
    path = write_documents(tmp_path, suffix)
    seen = {role: set((pk.token_windows(path, Words(), role, 12, 10) // 100).flatten().tolist())
            for role in ("calibration", "gradient", "search", "select")}
    packed = pk.token_windows(path, Words(), "train", 60, 10)  # 0 closes a document
    seen["train"] = set((packed[packed > 0] // 100).tolist())
    seen["test"] = set((pk.token_windows(path, Words(), "test", seqlen=10) // 100).flatten().tolist())
    assert all(len(documents) >= 12 for documents in seen.values())
    assert all(not seen[a] & seen[b] for a, b in itertools.combinations(seen, 2))


def test_one_text_file_serves_all_roles(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(numbers(0, 5000))
    roles = [set(pk.token_windows(path, Words(), role, 40, 10).flatten().tolist()) for role in data.ROLES]
    assert all(not a & b for a, b in itertools.combinations(roles, 2))


def test_embedded_roles_share_no_window():
    _, tokenizer = pk.load_model("embedded/llama")
    windows = {role: pk.token_windows("embedded", tokenizer, role, 8, 64) for role in data.ROLES}
    assert all(w.shape == (8, 64) for w in windows.values())
    seen = {role: {tuple(window) for seed in range(3)
                   for window in pk.token_windows("embedded", tokenizer, role, 8, 64, seed).tolist()}
            for role in data.ROLES}
    assert all(not seen[a] & seen[b] for a, b in itertools.combinations(seen, 2))
    assert torch.equal(windows["test"], pk.token_windows("embedded", tokenizer, "test", 8, 64, seed=5))
    one = pk.token_windows("embedded:almanac", tokenizer, "calibration", 8, 64)
    assert not torch.equal(one, windows["calibration"])


def test_a_windows_file_overrides_all(tmp_path):
    path = tmp_path / "windows.safetensors"
    save_file({"calibration": torch.arange(40, dtype=torch.int32).view(4, 10), "train": torch.rand(4, 10),
               "select": torch.zeros(0, 10, dtype=torch.long)}, path)
    assert pk.token_windows("nothing", None, "calibration", 2, 10, windows=path).tolist() == [
        list(range(10)), list(range(10, 20))]
    for arguments, message in ((("calibration", 5, 10), "holds 4 calibration windows where 5"),
                               (("test", None, 10), "no windows for role test (it has calibration, select, "),
                               (("train", 2, 10), "of shape (4, 10) and torch.float32; give whole numbers"),
                               (("select", 1, 10), "of shape (0, 10) and torch.int64; give whole"),
                               (("calibration", 2, 8), "of shape (4, 10); set seqlen")):
        with pytest.raises(pk.UsageError) as refused:
            pk.token_windows("nothing", None, *arguments, windows=path)
        assert message in str(refused.value)


# --- begin of text ------------------------------------------------------------------------------------------

BOS = 30_001


@cache
def numbered(kind: str) -> PreTrainedTokenizerFast:
    """A real tokenizer of numbers (30,000 closes a text) that `adds` BOS by itself, only `has` one, or has
    `none`."""
    special = {"</s>": 30_000, "<s>": BOS, "a": 30_002}
    words = Tokenizer(WordLevel({str(number): number for number in range(30_000)} | special, unk_token="a"))
    words.pre_tokenizer = WhitespaceSplit()
    if kind == "adds":
        words.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token="</s>",
                                   **({} if kind == "none" else {"bos_token": "<s>"}))


@pytest.mark.parametrize(("kind", "bos", "word"), [
    ("adds", "auto", "every window"), ("adds", "always", "every window"), ("adds", "never", "no window"),
    ("has", "auto", "no window"), ("has", "always", "every window"), ("has", "never", "no window"),
    ("none", "auto", "no window"), ("none", "never", "no window")])
def test_bos_begins_every_window_of_every_role_or_none(kind, bos, word, folder):
    tokenizer = numbered(kind)
    assert data.begins(tokenizer, bos) == word
    test = pk.token_windows(folder, tokenizer, "test", seqlen=10, bos=bos).tolist()
    if word == "every window":  # 1005 tokens: 111 times nine, six are dropped
        assert test == [[BOS, *range(first, first + 9)] for first in range(20_000, 20_999, 9)]
    else:
        assert test == [[*range(first, first + 10)] for first in range(20_000, 21_000, 10)]
    seen = []
    for role in ("calibration", "gradient", "search", "train", "select"):
        windows = pk.token_windows(folder, tokenizer, role, 200, 10, bos=bos)
        begun = windows[:, 0] == BOS
        assert windows.shape == (200, 10) and begun.all() == begun.any() == (word == "every window")
        text = windows[:, int(begun.all()):]
        assert torch.equal(text, text[:, :1] + torch.arange(text.shape[1]))
        seen.append(set(text.flatten().tolist()))
    assert all(not a & b for a, b in itertools.combinations(seen, 2))


def test_bos_begins_windows_of_documents_and_packed_ones(tmp_path):
    """Packed ones lose nothing: without BOS they are the documents one after the other, each closed."""
    path = write_documents(tmp_path, ".jsonl")
    inside = pk.token_windows(path, numbered("adds"), "calibration", 12, 10)
    assert (inside[:, 0] == BOS).all() and torch.equal(inside[:, 1:], inside[:, 1:2] + torch.arange(9))
    packed, plain = (pk.token_windows(path, numbered("adds"), "train", n, 10, bos=bos)
                     for n, bos in ((60, "auto"), (54, "never")))
    assert (packed[:, 0] == BOS).all() and not (plain == BOS).any()
    assert packed[:, 1:].flatten().tolist() == plain.flatten().tolist()
    test, plain = (pk.token_windows(path, numbered("adds"), "test", n, 10, bos=bos)
                   for n, bos in ((20, "auto"), (18, "never")))
    assert test[:, 1:].flatten().tolist() == plain.flatten().tolist()


@given(tokens=st.integers(12, 400), seqlen=st.integers(2, 12), kind=st.sampled_from(["adds", "has", "none"]),
       bos=st.sampled_from(["auto", "never", "always"]))
def test_no_token_of_the_test_text_is_lost_or_repeated(tmp_path_factory, tokens, seqlen, kind, bos):
    if (kind, bos) == ("none", "always"):
        return
    path = tmp_path_factory.mktemp("text") / "test.txt"
    path.write_text(numbers(0, tokens))
    tokenizer = numbered(kind)
    begun = int(data.begins(tokenizer, bos) == "every window")
    windows = pk.token_windows(path.parent, tokenizer, "test", seqlen=seqlen, bos=bos)
    text = windows[:, begun:].flatten().tolist()
    assert text == list(range(len(text))) and tokens - len(text) < seqlen - begun
    assert windows.shape[1] == seqlen and (windows == BOS).sum() == begun * len(windows)


def test_published_windows_stay_as_they_were(folder):
    """The text is tokenized once, so that BOS stands at its very beginning alone."""
    drawn = {kind: {role: pk.token_windows(folder, numbered(kind), role, 5, 10, 3, roles="published")
                    for role in ("calibration", "gradient", "train", "test")} for kind in ("adds", "none")}
    assert drawn["adds"]["test"].flatten().tolist() == [BOS, *range(20_000, 20_049)]
    assert drawn["adds"]["train"].flatten().tolist() == [BOS, *range(49)]
    generator = random.Random(3)
    starts = [generator.randint(0, 10_001 - 10 - 1) - 1 for _ in range(5)]  # one token more: BOS
    assert drawn["adds"]["calibration"][:, 0].tolist() == drawn["adds"]["gradient"][:, 0].tolist() == starts
    assert not any((windows == BOS).any() for windows in drawn["none"].values())
    assert data.begins(numbered("adds"), roles="published") == "text"


def test_bos_before_the_embedded_text_takes_nothing_from_it():
    _, tokenizer = pk.load_model("embedded/llama")
    for role in ("calibration", "train", "test"):
        auto, never, always = (pk.token_windows("embedded", tokenizer, role, n, 16, bos=bos)
                               for n, bos in ((15, "auto"), (15, "never"), (16, "always")))
        assert torch.equal(auto, never) and (always[:, 0] == tokenizer.bos_token_id).all()
        assert torch.equal(always[:, 1:].flatten(), auto.flatten())


@pytest.mark.parametrize(("kind", "options", "message"), [
    ("none", {"bos": "always"}, "bos = 'always', but the tokenizer has no BOS token: set its bos_token"),
    ("has", {"bos": "allways"}, "bos 'allways' is not known (did you mean 'always'?)"),
    ("has", {"bos": "always", "roles": "published"}, "does not go with published ones (roles: published)"),
    ("adds", {"bos": "never", "roles": "published"}, "does not go with published ones (roles: published)")])
def test_what_cannot_begin_so_gets_one_sentence(kind, options, message, folder):
    with pytest.raises(pk.UsageError) as refused:
        pk.token_windows(folder, numbered(kind), "test", 4, 10, **options)
    assert message in str(refused.value)


def test_ready_windows_begin_as_they_do(tmp_path):
    path = tmp_path / "windows.safetensors"
    save_file({"test": torch.arange(40).view(4, 10)}, path)
    drawn = pk.token_windows("nothing", numbered("adds"), "test", 4, 10, windows=path)
    assert drawn.flatten().tolist() == list(range(40))
    assert data.begins(None, windows=path) == "file"
    with pytest.raises(pk.UsageError, match=r"bos = 'always' does not go with ready windows \(windows=\)"):
        pk.token_windows("nothing", numbered("adds"), "test", 4, 10, windows=path, bos="always")


def bad_corpus(tmp_path, case: str):
    path = tmp_path / "bad"
    if case == "empty folder":
        path.mkdir()
    elif case == "not text":
        path = path.with_suffix(".txt")
        path.write_bytes(b"\xff\xfe\x00\x80")
    elif case == "empty file":
        path = path.with_suffix(".txt")
        path.write_text(" \n")
    elif case == "no text field":
        path = path.with_suffix(".jsonl")
        path.write_text('{"body": "1 2"}\n')
    elif case == "no rows of text":
        path = path.with_suffix(".jsonl")
        path.write_text('{"text": null}\n{"text": 5}\n')
    elif case in ("two forms", "no train split"):
        path.mkdir()
        (path / "test.txt").write_text("1 2")
        if case == "two forms":
            (path / "train.jsonl").write_text('{"text": "1 2"}')
    elif case == "torn gzip":
        path = path.with_suffix(".json.gz")
        path.write_bytes(gzip.compress(b'{"text": "1 2"}\n')[:-9])
    elif case == "torn data set":
        path.mkdir()
        (path / "dataset_info.json").write_text("{")
    elif case == "nested":
        path = path.with_suffix(".jsonl")
        path.write_text('{"text": "1 2"}\n' + "[" * 100_000)
    elif case == "torn json":
        path = path.with_suffix(".jsonl")
        path.write_text('{"text": "1 2"')
    elif case == "torn parquet":
        path = path.with_suffix(".parquet")
        path.write_bytes(b"PAR1")
    return path


@pytest.mark.parametrize(("case", "message"), [
    ("missing", "is neither a known corpus"),
    ("empty folder", "holds neither {train,validation,test}."),
    ("no rows of text", "holds no text in its split all: 2 of its rows are null or no text."),
    ("two forms", "holds its splits in more than one form (test.txt, train.jsonl): keep one."),
    ("no train split", "no split train, from which the windows of role calibration would come (it has test)"),
    ("torn gzip", "cannot be read (Compressed file ended"),
    ("torn data set", "cannot be read as a data set saved with save_to_disk"),
    ("nested", "line 2, cannot be read as JSON"),
    ("not text", "is not UTF-8 text"),
    ("empty file", "holds no text"),
    ("no text field", "has no column text or sentence (it has body)"),
    ("torn json", "cannot be read"),
    ("torn parquet", "cannot be read"),
])
def test_bad_corpora_get_one_sentence(case, message, tmp_path):
    with pytest.raises(pk.UsageError) as refused:
        pk.token_windows(bad_corpus(tmp_path, case), Words(), "calibration", 4, 10)
    assert message in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize(("options", "message"), [
    ({"n": 401}, "has text for 400 calibration windows of 10 tokens where 401 are asked for"),
    ({"role": "test", "n": 101}, "has text for 100 test windows"),
    ({"role": "trial"}, "role 'trial' is not known"),
    ({"roles": "publishd"}, "(did you mean 'published'?)"),
    ({"n": None}, "role calibration needs a number of windows"),
    ({"tokenizer": None}, "the model has no tokenizer"),
    ({"windows": "nowhere.safetensors"}, "windows file nowhere.safetensors does not exist"),
])
def test_bad_requests_get_one_sentence(options, message, folder):
    asked = {"tokenizer": Words(), "role": "calibration", "n": 4, "seqlen": 10, **options}
    with pytest.raises(pk.UsageError) as refused:
        pk.token_windows(folder, **asked)
    assert message in str(refused.value)


def test_a_hub_corpus_out_of_reach_is_one_sentence(monkeypatch, tmp_path):
    monkeypatch.setattr("prunekit.hub._reachable", lambda endpoint: False)
    with pytest.raises(pk.UsageError, match=r"corpus 'ptb' .* cannot be had from the hub"):
        pk.token_windows("ptb", Words(), "test", 4, 10, cache_dir=str(tmp_path))


def test_fingerprint_follows_the_content(folder):
    before = data.fingerprint(folder)
    assert before == data.fingerprint(folder)
    (folder / "test.txt").write_text("1 2 3")
    assert data.fingerprint(folder) != before
    assert data.fingerprint("embedded") != data.fingerprint("embedded:almanac")


def test_what_else_lies_in_a_corpus_folder_changes_nothing(folder):
    """A search writes its output there, and git its own."""
    before, whole, read = data.fingerprint(folder), data.content(folder), data.load_corpus(str(folder))
    (folder / "found").mkdir()
    (folder / "found" / "test.txt").write_text("3 4")
    (folder / "notes.md").write_text("5 6")
    assert data.fingerprint(folder) == before and data.load_corpus(str(folder)) is read
    assert data.content(folder) != whole


def test_fingerprint_follows_the_names_that_say_how_a_text_is_read(folder):
    before = data.fingerprint(folder)
    moved = folder.rename(folder.with_name("moved"))
    assert data.fingerprint(moved) == before
    (moved / "validation.txt").rename(moved / "dev.txt")  # still the first file
    assert data.fingerprint(moved) != before
    text = data.fingerprint(moved / "train.txt")
    (moved / "train.txt").rename(moved / "words.txt")
    assert data.fingerprint(moved / "words.txt") == text
    (moved / "words.txt").rename(moved / "words.jsonl")
    assert data.fingerprint(moved / "words.jsonl") != text


def test_leakage_flag():
    assert data.leaks("wikitext2", "c4", "wikitext2") and data.leaks("c4", "wikitext2", "wikitext2")
    assert data.leaks("c4", "c4", "wikitext2", roles="published")
    assert not data.leaks("c4", "c4", "wikitext2")


def test_documents_cannot_be_closed_without_an_end_of_text_token(tmp_path):
    rows = [json.dumps({"text": numbers(i, i + 40)}) for i in range(50)]
    (tmp_path / "texts.jsonl").write_text("\n".join(rows))
    tokenizer = Words()
    tokenizer.eos_token_id = None
    assert len(pk.token_windows(tmp_path / "texts.jsonl", tokenizer, "calibration", 2, 8)) == 2
    for corpus in (tmp_path / "texts.jsonl", "embedded"):
        with pytest.raises(pk.UsageError, match="no end-of-text token, which closes every document"):
            pk.token_windows(corpus, tokenizer, "train", 2, 8)


def test_windows_are_drawn_again_as_many_and_as_long():
    _, tokenizer = pk.load_model("embedded/llama")
    old = {role: pk.token_windows("embedded", tokenizer, role, n, 16) for role, n in
           (("calibration", 2), ("gradient", 3))}
    texts = dict.fromkeys(old, "embedded")
    same, new = (data.drawn_again(old, texts, tokenizer, seed) for seed in (0, 1))
    for role, ids in old.items():
        assert torch.equal(same[role], ids) and not torch.equal(new[role], ids)
        assert new[role].shape == ids.shape
    other = data.drawn_again(old, texts | {"gradient": "embedded:reckoning"}, tokenizer, 1)
    assert torch.equal(other["calibration"], new["calibration"])
    reckoned = pk.token_windows("embedded:reckoning", tokenizer, "gradient", 3, 16, 1)
    assert torch.equal(other["gradient"], reckoned)
    beside = data.drawn_again(old, texts, tokenizer, 1, "published", "always")
    assert all(torch.equal(ids, pk.token_windows("embedded", tokenizer, role, len(ids), 16, 1, bos="never"))
               for role, ids in beside.items())
