"""What parameters and options may hold: a row for each name with its type, default, bounds and words.

A parameters cell is checked by these rows, the command line is made of them: the words are an option's help,
and stand in the refusal of a number that is out of bounds.
"""
from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Annotated, Any, get_type_hints

from pydantic import AfterValidator, BaseModel, Field
from pydantic.fields import FieldInfo

from prunekit import choices
from prunekit.choices import BEGINNINGS, CORPORA, DTYPES, SAMPLINGS, checked, entry
from prunekit.errors import UsageError, did_you_mean
from prunekit.hub import no_model
from prunekit.lora.options import LoraOptions
from prunekit.search.presets import PRESETS, Preset

PATHS = ("model", "corpus", "gradient_corpus", "test_corpus", "test_corpora", "other_corpus",
         "windows", "gradients", "tree", "layer_targets")
_N_OF_M = "'n:m' with 0 < n < m (n zeros in every m consecutive inputs, as in '2:4')"


# ---------------------------------------------------------------- what is wrong with a text, or None

def model(value: str) -> str | None:
    """As whatever loads one takes it, see `hub.no_model`."""
    try:
        return no_model(value)
    except UsageError as error:
        return f"is no choice: {str(error).rstrip('.')}"


def corpus(value: str) -> str | None:
    """A known corpus, `embedded:REGISTER+REGISTER`, or something on this disk."""
    if value in CORPORA or (value and Path(value).expanduser().exists()):
        return None
    if value.startswith("embedded:"):
        from prunekit.embedded.world import REGISTERS

        unknown = [name for name in value.partition(":")[2].split("+") if name not in REGISTERS]
        return f"has no register '{unknown[0]}'{did_you_mean(unknown[0], REGISTERS)}" if unknown else None
    return f"is neither a known corpus ({', '.join(CORPORA)}) nor an existing file or folder"


def existing_file(value: str) -> str | None:
    there = Path(value).expanduser().is_file()
    return None if there else "does not exist: give the path of a file, or \"\" for none"


def data_folders(value: str) -> str | None:
    try:
        folders = choices.task_folders(value).values()
    except UsageError as error:
        return f"must be TASK=FOLDER (several separated by commas): {str(error).rstrip('.')}"
    wrong = next((folder for folder in folders if not Path(folder).expanduser().is_dir()), None)
    return wrong and f"must name folders that exist; '{wrong}' does not"


def preset(value: str) -> str | None:
    return None if value in PRESETS else f"is no preset of the search{did_you_mean(value, PRESETS)}"


def method(value: str) -> str | None:
    from prunekit.metric.catalogue import resolve

    try:
        resolve(value)
    except UsageError as error:
        return f"is no method: {str(error).rstrip('.')}"
    return None


# ---------------------------------------------------------------- the rows

def _text(wrong: Callable[[str], str | None], optional: bool = False) -> Any:
    def check(value: str) -> str:
        if (value or not optional) and (sentence := wrong(value)):
            raise ValueError(sentence)
        return value
    return Annotated[str, AfterValidator(check)]


def _parsed(parse: Callable[[str], Any], sentence: str) -> Any:
    def wrong(value: str) -> str | None:
        try:
            parse(value)
        except UsageError:
            return sentence
        return None
    return _text(wrong)


def _one_of(*known: str) -> Any:
    return _text(lambda value: None if value in known else f"must be one of {', '.join(map(repr, known))}")


def _sparsity(value: Any) -> Any:
    try:
        choices.targets_in(choices.read_sparsity(value))
    except UsageError:
        words = ("" if isinstance(value, (int, float)) else ", a pattern such as 2:4, or JSON (also a .json "
                 "file) of these: a list by block, or a mapping from patterns of layer names")
        raise ValueError(f"must be at least 0 and below 1 (share of zeros){words}") from None
    return value


_Name = Annotated[str, Field(pattern=r"^[\w.+-]+$", description="the name of a task of lm-eval")]
_Target = _parsed(choices.Target.parse, f"must be a sparsity such as '0.6', or {_N_OF_M}")
_Pattern = _parsed(choices.parse_pattern, f"must be 'unstructured' or {_N_OF_M}")
_Model, _OtherModel = _text(model), _text(model, optional=True)
_Sparsity = Annotated[Any, AfterValidator(_sparsity)]
_OwnSparsity = Annotated[str, AfterValidator(lambda value: value and _sparsity(value))]
_Corpus, _OtherCorpus = _text(corpus), _text(corpus, optional=True)
_File, _Folders = _text(existing_file, optional=True), _text(data_folders, optional=True)
_Method, _Preset = _text(method), _text(preset)
_Roles, _Dtype, _SearchDtype = _one_of(*SAMPLINGS), _one_of("auto", *DTYPES), _one_of("fast", "auto", *DTYPES)
_Bos = _one_of(*BEGINNINGS)
_Norm, _Group = _one_of("l1", "l2", "signed"), _one_of("", "row", "layer", "variant")
_RivalSearch = _one_of("paper", "random", "grid", "parametric")
_Evolve = _one_of("metric", "budget", "both")
_Update = _one_of("", "obs", "obs-iter", "admm")


class Options(BaseModel):
    """A list is checked entry by entry. The defaults are the command line's; a notebook states its own."""

    profile: str = Field("", pattern=r"^\w[\w.-]*(/\w[\w.-]*)*$",  # those of sweeps are in folders
                         description="a plain name (letters, digits, '-', '_', '.')")
    seed: int = Field(0, ge=0, lt=2**32)

    # model and text
    model: _Model = Field(description="embedded/llama, embedded/opt, a directory, or a hub id")
    corpus: _Corpus = Field(
        None, description="embedded, wikitext2, c4, ptb, or a path (default: embedded for embedded models; "
        "else c4 to calibrate, wikitext2 to evaluate)")
    windows: _File = Field(None, description="ready token windows (.safetensors) instead of sampling")
    roles: _Roles = Field("disjoint", description="disjoint, or published: the published sampling")
    bos: _Bos = Field("auto", description="whether every window begins with the BOS token: auto (if the "
                      "tokenizer adds it by itself), never, always")
    nsamples: int = Field(None, ge=1, description="windows")
    seqlen: int = Field(None, ge=2, description="tokens per window")
    test_windows: int = Field(0, ge=0, description="windows to evaluate on; 0: all")
    norm: _Norm = Field("l2", description="of G: l2, l1 or signed")
    scale: float = Field(100.0, gt=0, description="factor on gradients, as published")
    dtype: _Dtype = Field("auto", description=", ".join(("auto", *DTYPES)))
    device: str = Field("auto", pattern=r"^(auto|balanced|cpu|mps|cuda(:\d+)?)$",
                        description="'auto', 'cpu', 'cuda', 'cuda:N', 'mps' or 'balanced'")
    gradient_samples: int = Field(None, ge=1, description="windows")
    gradient_corpus: _OtherCorpus = Field(
        None, description="where to collect G when no file is given (default: --corpus)")
    test_corpus: _OtherCorpus = Field(
        None, description="to evaluate on (default: as --corpus of `evaluate`; a path given as --corpus)")
    test_corpora: _OtherCorpus = ""
    gradients: _File = Field(None, description="G from a file (.safetensors, published .pth); else collected")

    # pruning
    method: _Method = Field(None, description="a name of the catalogue, or a metric as 'mul(W, sqrt(X))'")
    methods: _Method = ""
    update_methods: _Method = ""
    plain_method: _Method = ""
    reference_method: _Method = ""
    task_methods: _Method = ""
    targets: list[_Target] = Field(["0.6"], description="sparsities and patterns, as 0.5 0.7 2:4")
    update_targets: _Target = ""
    layer_targets: _OwnSparsity = ""
    test_targets: _Target = ""
    other_targets: _Target = ""
    sparsity: _Sparsity = Field(
        0.5, description="share of zeros; or one per block or per pattern of layer names, as JSON such as "
        "'{\"*\": 0.6, \"*.down_proj\": \"2:4\"}', or a .json file of that")
    skip: list[str] = Field([], description="patterns of the names of layers that stay dense, as '*.k_proj'")
    preserve: bool = Field(False, description="keep the zeros that the weights have; they count")
    pattern: _Pattern = Field(
        "unstructured", description="unstructured, or n:m as 2:4")
    group: _Group = Field(
        "row", description="what scores are compared within: row, layer or variant")
    update: _Update = Field(None, description="weight update: obs, obs-iter or admm")

    # the search, and what is made of it
    preset: _Preset = Field("modern", description=", ".join(PRESETS))
    evolve: _Evolve = Field("metric", description="metric, budget (which layers bear how many zeros) or both")
    search_windows: int = Field(128, ge=1, description="windows that fitness is measured on")
    threads: int = Field(1, ge=1, description="threads of one evaluation")
    workers: int = Field(None, ge=0, description="processes; 0: none but this one")
    census_trees: int = Field(0, ge=1, description="random trees")
    search_dtype: _SearchDtype = "fast"
    rival_searches: _RivalSearch = ""
    other_models: _OtherModel = ""
    other_corpus: _OtherCorpus = ""
    top: int = Field(0, ge=3, description="metrics")
    eval_windows: int = Field(0, ge=2, description="windows")
    shuffles: int = Field(0, ge=1, description="null runs")

    # fine-tuning, beside the fields of LoraOptions
    block: int = Field(None, ge=2, description="tokens per training window")
    train_samples: int = Field(None, ge=1, description="windows")
    task_documents: int = Field(0, ge=-1, description="documents; 0: no tasks, -1: all")

    # tasks
    zero_shot_tasks: _Name = ""
    folders: _Folders = ""
    documents: int = Field(0, ge=0, description="of each task; 0: all")
    divergence_windows: int = Field(0, ge=2, description="windows")
    calibration_samples: int = Field(0, ge=1, description="disjoint parts of the calibration windows")
    limit: float = Field(None, gt=0, description="documents, or a share below 1")
    num_fewshot: int = Field(0, ge=0, description="worked examples before each question")
    batch_size: int = Field(32, ge=1, description="questions at a time")


def _rows(cls: type, *names: str) -> dict[str, FieldInfo]:
    hints = get_type_hints(cls, include_extras=True)
    return {field.name: FieldInfo.from_annotated_attribute(hints[field.name], field.default)
            for field in fields(cls) if not names or field.name in names}


LORA = _rows(LoraOptions)
ROWS = LORA | _rows(Preset, "population", "budget") | Options.model_fields


def typed(key: str, value: Any, kind: Any, hint: Callable[[Any, Any], str] | None = None) -> Any:
    """The value of a parameter or option, strictly of its type and as its row allows, without anything twice
    in a list; else UsageError."""
    found = checked(key, value, _bounded(key, kind), hint)
    if isinstance(found, list):
        goals = key.endswith("targets") and key != "layer_targets"
        same = [str(choices.Target.parse(each)) if goals and each else each for each in found]
        if twice := [each for number, each in enumerate(same) if each in same[:number]]:
            raise UsageError(f"{key} = {value!r} has {twice[0]!r} twice.")
    return found


@cache
def _bounded(key: str, kind: Any) -> Any:
    row, of = ROWS.get(key), entry(kind)
    if row:
        row = FieldInfo.from_annotation(entry(row.annotation)) if entry(row.annotation) else row
        bounded = Annotated[of or kind, *row.metadata, Field(description=row.description)]
        kind = list[bounded] if of else bounded
    return Annotated[kind, Field(min_length=1)] if of else kind


def problem(key: str, value: Any) -> str | None:
    """What is wrong with one value, or one entry of a list, without saying which; None if nothing is."""
    try:
        if key in ROWS:
            typed(key, value, type(value))
    except UsageError as error:
        return str(error).removeprefix(f"{key} = {value!r} ").rstrip(".")
    return None


def together(values: Mapping[str, Any]) -> tuple[str, str] | None:
    """(key, sentence) when single values do not go together: an n:m pattern removes exactly n/m; windows that
    are what they are begin as they do, and are of one test text."""
    try:
        choices.check_bos(values.get("bos", "auto"), values.get("roles", ""), values.get("windows"))
    except UsageError as error:
        return "bos", str(error)
    try:
        first = values.get("test_corpus") or values.get("corpus") or ""
        choices.check_texts(first, values.get("test_corpora", ()), values.get("windows"))
    except UsageError as error:
        return "test_corpora", str(error)
    try:
        if values.get("pattern") and values.get("sparsity") is not None:
            choices.targets_in(choices.read_sparsity(values["sparsity"]), values["pattern"])
    except UsageError as error:
        return "sparsity", str(error)
    return None
