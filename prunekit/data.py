"""Windows of tokens by role; no two roles share text, unless published ones are asked for."""
from __future__ import annotations

import gzip
import hashlib
import itertools
import json
import random
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from numbers import Integral
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prunekit.choices import BEGINNINGS, CORPORA, SAMPLINGS, check_bos
from prunekit.errors import UsageError, did_you_mean
from prunekit.hub import hub_or_cache

ROLES = ("calibration", "gradient", "search", "train", "select", "test")
# `select` and `test` are a corpus's validation and test split. The other roles (train: for fine-tuning), and
# these two where there is no such split, divide the rest of it in these proportions.
SHARES = {"calibration": 0.4, "gradient": 0.2, "search": 0.2, "train": 0.2, "select": 0.125, "test": 0.125}
_OWN_SPLIT = {"select": "validation", "test": "test"}
EMBEDDED_TEST_WINDOWS = 256
_C4_TEST_DOCUMENTS, _C4_TEST_WINDOWS = 1100, 256
_COLUMNS = ("text", "sentence")  # documents, or the sentences of a running text, as PTB has them
_SPLIT_FILE, _VALIDATION_FILE = (
    re.compile(rf"(?:.*[-_.])?({words})(?:[-_.].*)?\.(txt|jsonl?|ndjson|parquet)(?:\.gz)?")
    for words in ("train|validation|test", "valid|val|dev"))


@dataclass(frozen=True, eq=False)
class Corpus:
    """Texts by split ("all" if there are none).

    running: one text that may be cut anywhere; otherwise documents. skipped: by split, the number of rows
    left out because they are null or no text. most: of test windows, if there is a limit.
    """

    name: str
    splits: dict[str, list[str]]
    running: bool
    joiner: str = "\n\n"
    skipped: Mapping[str, int] = field(default_factory=dict)
    most: int | None = None

    def split_of(self, role: str) -> str:
        """The split that a role's text comes from. Raises UsageError if the corpus has none for it."""
        for split in (_OWN_SPLIT.get(role), "train", "all"):
            if split in self.splits:
                return split
        raise UsageError(f"corpus '{self.name}' has no split train, from which the windows of role {role} "
                         f"would come (it has {', '.join(self.splits)}).")

    def share(self, role: str) -> tuple[float, float]:
        """The part of its split that a role owns, as bounds in [0, 1]."""
        if self.split_of(role) == _OWN_SPLIT.get(role):
            return 0.0, 1.0
        sharing = [other for other in ROLES if self.split_of(other) == self.split_of(role)]
        total = sum(SHARES[other] for other in sharing)
        before = sum(SHARES[other] for other in sharing[:sharing.index(role)])
        return before / total, (before + SHARES[role]) / total


def token_windows(corpus: str | Path, tokenizer: Any, role: str, n: int | None = None, seqlen: int = 128,
                  seed: int = 0, *, roles: str = "disjoint", bos: str = "auto",
                  windows: str | Path | None = None, cache_dir: str | None = None) -> Tensor:
    """Token ids of n windows of a corpus, LongTensor (n, seqlen).

    corpus: `embedded` (or `embedded:almanac+stories`, some of its registers), `wikitext2`, `c4`, `ptb`, or a
    path: a text file or JSON lines (.jsonl, .ndjson, .json), both also as .gz, .parquet, a folder of such
    files with train, validation (or valid, val, dev) or test in their names, a `save_to_disk` folder. Rows
    have a column `text`, or `sentence` where they make up a running text; those that are null or no text are
    skipped (`skipped_rows`).

    roles: `disjoint` (every role its own text, windows drawn without overlap or repeat), or `published`:
    calibration and gradient windows start anywhere in the train split, by `random.Random(seed)`, as in the
    published lib/data.py, so that they are the same windows when corpus and seed are; those of other roles
    may lie in that split, too (search, select without a validation split), but never test. It is always the
    consecutive windows of the test text (n: the first n; None or 0: all). The train role packs documents
    one after the other, each closed by the end-of-text token; `published`: those of the whole train split in
    its order, as in the published finetune_lm.py.

    bos: `auto` (every window begins with the BOS token if the tokenizer puts it before a text by itself),
    `never` or `always`; for all roles alike. A window that begins with it holds seqlen - 1 tokens of text,
    all of them predicted; one that does not holds seqlen, and nothing predicts its first. Consecutive windows
    neither lose nor repeat a token of the text either way. Published windows have it only where the whole
    text begins, if the tokenizer puts it there. `begins` says which it is.

    windows: a safetensors file with tensors by role, which overrides all; they are taken as they are.

    Raises UsageError for unknown names, missing files or network, too little text, a file of windows that are
    no whole numbers, `always` with a tokenizer that has no BOS token, `never` or `always` with published or
    ready windows, and published ones of a corpus without a train split, or with one that test would share.
    """
    for what, given, known in (("role", role, ROLES), ("roles", roles, SAMPLINGS)):
        if given not in known:
            raise UsageError(f"{what} '{given}' is not known{did_you_mean(given, known)}.")
    if n is None and role != "test":
        raise UsageError(f"role {role} needs a number of windows n.")
    if n is not None and (not isinstance(n, Integral) or isinstance(n, bool) or n < (role != "test")):
        raise UsageError(f"n = {n!r} is no number of windows; give 1 or more.")
    check_seqlen(seqlen)
    begun = begins(tokenizer, bos, roles, windows) == "every window"
    if windows:
        return _from_file(Path(windows), role, n, seqlen)
    if tokenizer is None:
        raise UsageError("the model has no tokenizer; give one that has, or windows as a safetensors file.")
    text = _drawn(str(corpus), tokenizer, role, n, seqlen - begun, seed, roles == "published", cache_dir)
    return torch.cat([torch.full((len(text), 1), tokenizer.bos_token_id), text], 1) if begun else text


def drawn_again(windows: Mapping[str, Tensor], corpora: Mapping[str, str], tokenizer: Any, seed: int,
                roles: str = "disjoint", bos: str = "auto") -> dict[str, Tensor]:
    """As many windows of each role from its corpus, and as long, with another seed. They are disjoint,
    whatever the roles of these: beside published windows none begins with BOS either."""
    bos = bos if roles == "disjoint" else "never"
    return {role: token_windows(corpora[role], tokenizer, role, *ids.shape, seed, bos=bos)
            for role, ids in windows.items()}


def begins(tokenizer: Any, bos: str = "auto", roles: str = "disjoint", windows: str | Path | None = None
           ) -> str:
    """Where the windows that `token_windows` gives have their BOS token, as rows of results say it.

    `every window`, `no window`, `text` (published: where the whole text begins, if the tokenizer puts it
    there), `file` (ready windows, as they are). Raises UsageError as `token_windows` does.
    """
    if bos not in BEGINNINGS:
        raise UsageError(f"bos '{bos}' is not known{did_you_mean(bos, BEGINNINGS)}.")
    check_bos(bos, roles, windows)
    if windows or roles == "published":
        return "file" if windows else "text"
    token = getattr(tokenizer, "bos_token_id", None)
    if bos == "always" and token is None:
        raise UsageError("bos = 'always', but the tokenizer has no BOS token: set its bos_token, or bos to "
                         "'auto'.")
    if bos == "auto" and token is not None:  # does it put it before a text by itself?
        bos = "always" if _encode(tokenizer, ["a"], special=True)[0][:1] == [token] else "never"
    return "every window" if bos == "always" else "no window"


def _drawn(corpus: str, tokenizer: Any, role: str, n: int | None, seqlen: int, seed: int, published: bool,
           cache_dir: str | None) -> Tensor:
    """n windows of a role, all of them text."""
    name, _, part = corpus.partition(":")
    if name == "embedded":
        return _embedded_windows(tokenizer, role, n, seqlen, seed, part)
    loaded = load_corpus(corpus, cache_dir)
    if published and role == "test" and loaded.split_of(role) == "train":
        raise UsageError(f"corpus '{loaded.name}' has no test split, and published windows are of all of its "
                         "train split; give its folder a test.txt (or .jsonl, .parquet), or test on another.")
    if role == "test":
        return _test_windows(loaded, tokenizer, n, seqlen, published)
    if published and role in ("calibration", "gradient", "train") and "all" in loaded.splits:
        raise UsageError(f"corpus '{loaded.name}' has no train split, so published {role} windows would be "
                         "of its test text too; put it into a folder, as train.txt (or .jsonl, .parquet), or "
                         "leave roles at 'disjoint'.")
    if role == "train" and (published or not loaded.running):
        return _training_windows(loaded, tokenizer, n, seqlen, None if published else seed)
    if published and role in ("calibration", "gradient"):  # fitness is not measured on what X is from
        return _published_windows(loaded, tokenizer, n, seqlen, seed)
    return _disjoint_windows(loaded, tokenizer, role, n, seqlen, seed)


def check_seqlen(seqlen: int) -> None:
    """Raise UsageError unless a window of this length has a prediction in it."""
    if not isinstance(seqlen, Integral) or seqlen < 2:
        raise UsageError(f"seqlen = {seqlen!r} is no length of a window; give 2 or more tokens.")


def leaks(corpus: str, gradient_corpus: str, test_corpus: str, roles: str = "disjoint") -> bool:
    """Are statistics and test text of one corpus, or may calibration and gradient windows coincide?"""
    return test_corpus in (corpus, gradient_corpus) or (roles == "published" and corpus == gradient_corpus)


def skipped_rows(corpus: str | Path, role: str, cache_dir: str | None = None) -> int:
    """How many rows of the split that a role reads were left out, as they are null or no text."""
    if str(corpus).partition(":")[0] == "embedded":
        return 0
    loaded = load_corpus(str(corpus), cache_dir)
    return loaded.skipped.get(loaded.split_of(role), 0)


def fingerprint(corpus: str | Path) -> str:
    """A short hash that changes when what is read of a corpus on disk changes, also by a name in its folder,
    which makes a split, or by the kind of a file; for a named corpus, its name."""
    name = str(corpus).partition(":")[0]
    if name == "embedded":
        from prunekit.embedded import world

        parts = Path(world.__file__).parent.iterdir()
        return _digest(sorted(part for part in parts if part.suffix in (".py", ".yaml")), str(corpus))
    if name in CORPORA or not Path(str(corpus)).expanduser().exists():
        return str(corpus)
    return content(corpus, _texts(corpus))


def content(path: str | Path, files: Sequence[Path] | None = None) -> str:
    """A short hash of a file, or of a folder's files (None: all that it holds) with their names."""
    path, files = Path(path).expanduser(), _files(path) if files is None else files
    names = [file.relative_to(path).as_posix() for file in files] if path.is_dir() else [_kind(path)]
    return _digest(files, "\0".join(names))


def _kind(file: Path) -> str:
    """.txt, .jsonl, .ndjson, .json or .parquet, also of a file.TXT.gz."""
    return Path(file.name.lower().removesuffix(".gz")).suffix


def _files(path: str | Path) -> list[Path]:
    """A file, or all in a folder; none where there is neither."""
    path = Path(path).expanduser()
    return [file for file in (sorted(path.rglob("*")) if path.is_dir() else [path]) if file.is_file()]


def _texts(corpus: str | Path) -> list[Path]:
    """The files that a corpus on disk is read from: of a folder of splits these alone."""
    path = Path(corpus).expanduser()
    splits = _split_names(path) if path.is_dir() and not _is_saved(path) else ()
    return [file for file in sorted(splits) if file.is_file()] or _files(path)


def _digest(files: Iterable[Path], salt: str) -> str:
    digest = hashlib.sha256(salt.encode())
    for file in files:
        with file.open("rb") as handle:
            digest.update(hashlib.file_digest(handle, "sha256").digest())
    return digest.hexdigest()[:16]


# --- corpora ---------------------------------------------------------------------------------------


def load_corpus(corpus: str, cache_dir: str | None = None) -> Corpus:
    """Read a corpus of the hub or of this disk. Raises UsageError if it cannot be found or holds no text."""
    return _read_once(corpus, cache_dir, () if corpus in CORPORA else stamp(*_texts(corpus)))


def stamp(*paths: str | Path) -> tuple[tuple[str, int, int], ...]:
    """Name, time of change and size of files, or of all in folders: what has the same is not read again."""
    files = [file for path in paths for file in _files(path)]
    return tuple((str(file), file.stat().st_mtime_ns, file.stat().st_size) for file in files)


@lru_cache(maxsize=4)
def _read_once(corpus: str, cache_dir: str | None, then: tuple[tuple[str, int, int], ...]) -> Corpus:
    path = Path(corpus).expanduser()
    found = _from_hub(corpus, cache_dir) if corpus in CORPORA else _from_disk(path)
    empty = [split for split, texts in found.splits.items() if not any(text.strip() for text in texts)]
    if empty:
        nothing = found.skipped.get(empty[0], 0)
        raise UsageError(f"corpus '{corpus}' holds no text in its split {empty[0]}"
                         + (f": {nothing} of its rows are null or no text." if nothing else "."))
    return found


def _from_hub(name: str, cache_dir: str | None) -> Corpus:
    from datasets import load_dataset

    options = {
        "wikitext2": {"path": "Salesforce/wikitext", "name": "wikitext-2-raw-v1"},
        "ptb": {"path": "ptb-text-only/ptb_text_only", "name": "penn_treebank",
                "revision": "refs/convert/parquet"},
        "c4": {"path": "allenai/c4", "data_files": {"train": "en/c4-train.00000-of-01024.json.gz",
                                                    "validation": "en/c4-validation.00000-of-00008.json.gz"}},
    }[name]
    try:
        with hub_or_cache():
            data = load_dataset(**options, cache_dir=cache_dir)
    except Exception as error:  # the hub client raises a dozen kinds of error for one fact
        raise UsageError(f"corpus '{name}' ({options['path']}) cannot be had from the hub; connect to the "
                         "network, or give a local file or folder as corpus.") from error
    splits = {split: list(data[split]["sentence" if name == "ptb" else "text"]) for split in data}
    if name == "c4":
        splits["test"] = splits.pop("validation")[:_C4_TEST_DOCUMENTS]
    return Corpus(name, splits, running=name != "c4", joiner="\n\n" if name == "wikitext2" else " ",
                  most=_C4_TEST_WINDOWS if name == "c4" else None)


def _from_disk(path: Path) -> Corpus:
    if not path.exists():
        raise UsageError(f"corpus '{path}' is neither a known corpus{did_you_mean(str(path), CORPORA)} nor a "
                         "file or folder.")
    if path.is_file():
        files = {"all": [path]}
    elif _is_saved(path):
        return _from_saved(path)
    else:
        files = _split_files(path)
    columns, rows = set(), {}
    for split, parts in files.items():
        read = [_read_file(file) for file in parts]
        columns |= {column for column, _ in read}
        rows[split] = [value for _, values in read for value in values]
    return _corpus(path, columns, rows)


def _is_saved(folder: Path) -> bool:
    """Is it one by `save_to_disk`?"""
    return any((folder / f"dataset_{what}.json").is_file() for what in ("dict", "info"))


def _split_names(folder: Path) -> dict[Path, tuple[str, str]]:
    """(split, form) of a folder's files by their names: train.txt, c4-train.00000-of-01024.json.gz. Where
    none is the validation split, those of the others' form with valid, val or dev are."""
    names = {file: file.name.lower() for file in sorted(folder.iterdir())}
    found = {file: match.groups() for file, name in names.items() if (match := _SPLIT_FILE.fullmatch(name))}
    forms = {form for _, form in found.values()}
    if "validation" in {split for split, _ in found.values()}:
        return found
    return {file: ("validation", match[2]) for file, name in names.items()
            if (match := _VALIDATION_FILE.fullmatch(name)) and (not forms or match[2] in forms)} | found


def _split_files(folder: Path) -> dict[str, list[Path]]:
    """The files of a folder by their split."""
    found = _split_names(folder)
    if not found:
        raise UsageError(f"corpus folder '{folder}' holds neither {{train,validation,test}}.{{txt,jsonl,json,"
                         "parquet}} nor a data set saved with save_to_disk.")
    forms, names = {form for _, form in found.values()}, [file.name for file in found]
    if len(forms) > 1 or len({name.lower().removesuffix(".gz") for name in names}) < len(names):
        raise UsageError(f"corpus folder '{folder}' holds its splits in more than one form "
                         f"({', '.join(names[:6])}): keep one.")
    return {split: [file for file, (own, _) in found.items() if own == split]
            for split in dict.fromkeys(split for split, _ in found.values())}


def _from_saved(path: Path) -> Corpus:
    from datasets import DatasetDict, load_from_disk

    try:
        data = load_from_disk(str(path))
    except Exception as error:  # of many kinds, for one fact
        raise UsageError(f"corpus folder '{path}' cannot be read as a data set saved with save_to_disk "
                         f"({_first(error)}).") from error
    columns, rows = set(), {}
    for split, part in (data if isinstance(data, DatasetDict) else {"all": data}).items():
        column = _column(part.column_names, f"folder '{path}', split {split},")
        columns.add(column)
        rows[split] = list(part[column])
    return _corpus(path, columns, rows)


def _corpus(path: Path, columns: set[str], rows: Mapping[str, list[Any]]) -> Corpus:
    """What was read from disk, without the rows that are no text; `columns` as of `_read_file`."""
    texts = {split: [value for value in values if _is_text(value)] for split, values in rows.items()}
    skipped = {split: len(values) - len(texts[split]) for split, values in rows.items()}
    joiner = " " if "sentence" in columns else "\n\n"
    return Corpus(path.name, texts, running="text" not in columns, joiner=joiner, skipped=skipped)


def _is_text(value: Any) -> bool:
    """Text of whole characters; JSON may also hold halves of them, which no tokenizer takes."""
    return isinstance(value, str) and not re.search("[\ud800-\udfff]", value)


def _column(names: Sequence[str], where: str) -> str:
    found = next((column for column in _COLUMNS if column in names), None)
    if found is None:
        raise UsageError(f"corpus {where} has no column {' or '.join(_COLUMNS)} "
                         f"(it has {', '.join(names[:8]) or 'none'}).")
    return found


def _read_file(path: Path) -> tuple[str, list[Any]]:
    """(column, its values) of a file: one a row of JSON lines and parquet; a text file is one, column ""."""
    kind = _kind(path)
    try:
        if kind == ".parquet":
            import pandas as pd
            from pyarrow.parquet import read_schema

            column = _column(read_schema(path).names, f"file {path}")
            return column, pd.read_parquet(path, columns=[column])[column].tolist()
        lines = kind in {".jsonl", ".ndjson", ".json"}
        unpacked = gzip.open if path.suffix.lower() == ".gz" else open
        # Only a line feed ends a line of JSON.
        with unpacked(path, "rt", encoding="utf-8-sig", newline="\n" if lines else None) as file:
            return _json_lines(file, path) if lines else ("", [_running(file.read(), path)])
    except UsageError:
        raise
    except UnicodeDecodeError as error:
        raise UsageError(f"corpus file {path} is not UTF-8 text; convert it first.") from error
    except (ValueError, OSError, EOFError, zlib.error) as error:
        raise UsageError(f"corpus file {path} cannot be read ({_first(error)}).") from error


def _running(text: str, path: Path) -> str:
    """A text as it is. Raises UsageError if it is JSON lines, of a file with another suffix, or none."""
    try:
        first = json.loads(text.lstrip().partition("\n")[0])
    except (ValueError, RecursionError):
        return text
    if isinstance(first, dict) and set(_COLUMNS) & first.keys():
        raise UsageError(f"corpus file {path} holds JSON lines, not running text: name it .jsonl.")
    return text


def _json_lines(file: Iterable[str], path: Path) -> tuple[str, list[Any]]:
    rows = []
    for number, line in enumerate(file, 1):
        try:
            rows += [json.loads(line)] if line.strip() else []
        except (ValueError, RecursionError) as error:
            raise UsageError(f"corpus file {path}, line {number}, cannot be read as JSON; "
                             "one object a line is expected.") from error
    objects = [row if isinstance(row, dict) else {} for row in rows]
    column = _column(list(dict.fromkeys(key for row in objects for key in row)), f"file {path}")
    return column, [row.get(column) for row in objects]


def _first(error: Exception) -> str:
    return str(error).partition("\n")[0][:120]


# --- windows ---------------------------------------------------------------------------------------


def _from_file(path: Path, role: str, n: int | None, seqlen: int) -> Tensor:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise UsageError(f"windows file {path} does not exist.")
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise UsageError(f"windows file {path} is not a safetensors file ({error}).") from error
    if role not in tensors:
        has = ", ".join(sorted(tensors))
        raise UsageError(f"windows file {path} has no windows for role {role} (it has {has}).")
    kind, held = tensors[role].dtype, tensors[role].long()
    if kind.is_floating_point or kind.is_complex or kind == torch.bool or not held.numel():
        raise UsageError(f"windows file {path} holds {role} windows of shape {tuple(held.shape)} and {kind}; "
                         "give whole numbers, one window a row.")
    if held.ndim != 2 or held.shape[1] != seqlen:
        raise UsageError(f"windows file {path} holds {role} windows of shape {tuple(held.shape)}; set seqlen "
                         "to their length.")
    if n and n > len(held):
        raise UsageError(f"windows file {path} holds {len(held)} {role} windows where {n} are asked for.")
    return held[:n] if n else held


def _embedded_windows(tokenizer: Any, role: str, n: int | None, seqlen: int, seed: int, part: str) -> Tensor:
    """Consecutive windows of a stream of fresh documents, each closed by the end-of-text token."""
    from prunekit.embedded import world

    documents = world.documents(role, 0 if role == "test" else seed, part.split("+") if part else None)
    return _packed(documents, tokenizer, n or EMBEDDED_TEST_WINDOWS, seqlen)


def _packed(documents: Iterator[str], tokenizer: Any, n: int, seqlen: int) -> Tensor:
    """The first n windows of documents in a row, each closed by the end-of-text token; fewer if they end."""
    if tokenizer.eos_token_id is None:
        raise UsageError("the tokenizer has no end-of-text token, which closes every document of these "
                         "windows; set its eos_token, or give ready windows as a safetensors file.")
    ids: list[int] = []
    while len(ids) < n * seqlen and (batch := list(itertools.islice(documents, 64))):
        for tokens in _encode(tokenizer, batch):
            ids += [*tokens, tokenizer.eos_token_id]
    count = min(n, len(ids) // seqlen)
    return torch.tensor(ids[:count * seqlen]).view(count, seqlen)


def _training_windows(corpus: Corpus, tokenizer: Any, n: int, seqlen: int, seed: int | None) -> Tensor:
    """Packed windows of the role's documents, shuffled; without a seed, of the train split in its order."""
    if corpus.running:
        found = torch.tensor(_split_tokens(corpus, tokenizer, corpus.split_of("train"), True))
        found = found[:len(found) // seqlen * seqlen].view(-1, seqlen)[:n]
    else:
        documents = corpus.splits[corpus.split_of("train")]
        if seed is not None:
            documents = _role_documents(corpus, "train")
            random.Random(f"train/{seed}").shuffle(documents)
        found = _packed(iter(documents), tokenizer, n, seqlen)
    if len(found) < n:
        raise _too_little(corpus, "train", n, seqlen, len(found))
    return found


def _test_windows(corpus: Corpus, tokenizer: Any, n: int | None, seqlen: int, special: bool) -> Tensor:
    if corpus.running:
        ids = torch.tensor(_role_tokens(corpus, tokenizer, "test", special))
    else:
        text = corpus.joiner.join(_role_documents(corpus, "test"))
        ids = torch.tensor(_encode(tokenizer, [text], special=special)[0])
    count = min(len(ids) // seqlen, corpus.most or len(ids))
    if count < max(n or 0, 1):
        raise _too_little(corpus, "test", n or 1, seqlen, count)
    return ids[:(n or count) * seqlen].view(-1, seqlen)


def _disjoint_windows(corpus: Corpus, tokenizer: Any, role: str, n: int, seqlen: int, seed: int) -> Tensor:
    """n consecutive windows of the role's text, drawn without repeat; from documents, one window each."""
    generator = random.Random(f"{role}/{seed}")
    if corpus.running:
        ids = torch.tensor(_role_tokens(corpus, tokenizer, role))
        whole = ids[:len(ids) // seqlen * seqlen].view(-1, seqlen)
        if len(whole) < n:
            raise _too_little(corpus, role, n, seqlen, len(whole))
        return whole[sorted(generator.sample(range(len(whole)), n))]
    documents = _role_documents(corpus, role)
    generator.shuffle(documents)
    found = list(itertools.islice(_inside(documents, tokenizer, seqlen, generator), n))
    if len(found) < n:
        raise _too_little(corpus, role, n, seqlen, len(found))
    return torch.stack(found)


def _published_windows(corpus: Corpus, tokenizer: Any, n: int, seqlen: int, seed: int) -> Tensor:
    """The sampling of the published lib/data.py, window for window."""
    generator = random.Random(seed)
    texts = corpus.splits[corpus.split_of("calibration")]
    if corpus.running:
        ids = torch.tensor(_encode(tokenizer, [" ".join(texts)], special=True)[0])
        if len(ids) <= seqlen:
            raise _too_little(corpus, "calibration", n, seqlen, 0)
        starts = [generator.randint(0, len(ids) - seqlen - 1) for _ in range(n)]
        return torch.stack([ids[start:start + seqlen] for start in starts])
    found: list[Tensor] = []
    short: set[int] = set()  # documents, drawn before, in which no window fits
    while len(found) < n:
        place = generator.randint(0, len(texts) - 1)
        if place not in short:
            inside = list(_inside([texts[place]], tokenizer, seqlen, generator, special=True))
            found += inside
            if not inside:
                short.add(place)
        if len(short) == len(texts):
            raise _too_little(corpus, "calibration", n, seqlen, 0)
    return torch.stack(found)


def _inside(documents: Iterable[str], tokenizer: Any, seqlen: int, generator: random.Random,
            special: bool = False) -> Iterator[Tensor]:
    """One window, anywhere, of every document longer than seqlen tokens."""
    for document in documents:
        ids = _encode(tokenizer, [document], special=special)[0]
        if len(ids) > seqlen:
            start = generator.randint(0, len(ids) - seqlen - 1)
            yield torch.tensor(ids[start:start + seqlen])


def _role_documents(corpus: Corpus, role: str) -> list[str]:
    """The documents of a role: those of its split whose hash falls into its share; no two roles share one."""
    low, high = corpus.share(role)
    texts = corpus.splits[corpus.split_of(role)]
    return [text for text in texts
            if low <= int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big") / 2**48 < high]


def _role_tokens(corpus: Corpus, tokenizer: Any, role: str, special: bool = False) -> list[int]:
    """The tokens of a role in a running text: its share of the tokens of its split."""
    ids = _split_tokens(corpus, tokenizer, corpus.split_of(role), special)
    low, high = (round(bound * len(ids)) for bound in corpus.share(role))
    return ids[low:high]


@lru_cache(maxsize=4)
def _split_tokens(corpus: Corpus, tokenizer: Any, split: str, special: bool) -> list[int]:
    return _encode(tokenizer, [corpus.joiner.join(corpus.splits[split])], special=special)[0]


def _encode(tokenizer: Any, texts: list[str], *, special: bool = False) -> list[list[int]]:
    """Token ids of texts of any length (a tokenizer's warning, of its model's context, says nothing here)."""
    return tokenizer(texts, add_special_tokens=special, verbose=False)["input_ids"]


def _too_little(corpus: Corpus, role: str, n: int, seqlen: int, found: int) -> UsageError:
    return UsageError(f"corpus '{corpus.name}' has text for {found} {role} windows of {seqlen} tokens where "
                      f"{n} are asked for; ask for fewer or shorter windows, or give more text.")
