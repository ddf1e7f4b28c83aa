"""Every parameter that cannot be is refused with one sentence: file, key, value, what is allowed."""
from __future__ import annotations

import json
import subprocess
import sys

import pytest
import yaml

from prunekit import choices
from prunekit.errors import UsageError
from prunekit.workbook import checks, params, project
from tests.tiny_project import DATA, profile, write_notebook

OWN = "params/tiny/03_baselines.yaml: "
COMMON = "params/tiny/common.yaml: "
MODELS = ("an embedded model ('embedded/llama', 'embedded/opt'), an existing directory or GGUF file, or a "
          "hub id ('org/name', 'gpt2')")
N_OF_M = "'n:m' with 0 < n < m (n zeros in every m consecutive inputs, as in '2:4')."
BAD = [
    ("pattern: 2:4", 'pattern = 124 must be text (YAML reads an unquoted 2:4 as 124: quote it: "2:4").'),
    ("targets: [4:8]", 'targets[0] = 248 must be text (YAML reads an unquoted 4:8 as 248: quote it: "4:8").'),
    ("targets: [0.5]", 'targets[0] = 0.5 must be text (quote it: "0.5").'),
    ("targets: 2:4",
     'targets = 124 must be a list, each entry text (YAML reads an unquoted 2:4 as 124: quote it: "2:4").'),
    ("targets: unstructured",
     "targets = 'unstructured' must be a list, each entry text (write it as a list: [unstructured])."),
    ("targets: [unstructured]", "targets[0] = 'unstructured' must be a sparsity such as '0.6', or " + N_OF_M),
    ('targets: ["1.0"]', "targets[0] = '1.0' must be a sparsity such as '0.6', or " + N_OF_M),
    ('pattern: "4:2"', "pattern = '4:2' must be 'unstructured' or " + N_OF_M),
    ('pattern: "2:4"\nsparsity: 0.6',
     "sparsity = 0.6 does not go with pattern = '2:4', which removes exactly 0.5."),
    ("sparsity: 1.0", "sparsity = 1.0 must be at least 0 and below 1 (share of zeros)."),
    ('sparsity: "0.5"', "sparsity = '0.5' must be a number (remove the quotes: 0.5)."),
    ("sparsity: true", "sparsity = True must be a number."),
    ("scale: 1e-4", "scale = '1e-4' must be a number (YAML reads 1e-4 as text: write 1.0e-4)."),
    ("scale: 5e3", "scale = '5e3' must be a number (YAML reads 5e3 as text: write 5.0e+3)."),
    ("scale: .inf", "scale = inf must be a finite number."),
    ("scale: 0", "scale = 0 must be greater than 0 (factor on gradients, as published)."),
    ("method: no",
     "method = False must be text (YAML reads an unquoted yes, no, on or off as true or false: quote it)."),
    ("methods: []", "methods = [] is an empty list; it needs at least one entry."),
    ("nsamples: 2.5", "nsamples = 2.5 must be a whole number."),
    ("seed: 1e3", "seed = '1e3' must be a whole number (write 1000)."),
    ('seed: "3"', "seed = '3' must be a whole number (remove the quotes: 3)."),
    ("scale: inf", "scale = 'inf' must be a number."),
    ("method: 0.5", 'method = 0.5 must be text (quote it: "0.5").'),
    ("a: " + "{a: " * 10**5, "cannot be read: it is nested too deeply."),
    ("nsamples: 0", "nsamples = 0 must be at least 1 (windows)."),
    ("nsample: 3", "03_baselines has no parameter 'nsample' (did you mean 'nsamples'?)."),
    ("fast: 1", "fast = 1 must be true or false."),
    ("seed: -1", "seed = -1 must be at least 0 and below 4294967296."),
    ("seed:", "seed = None must be a whole number (the line has a key but no value)."),
    ("model: embedded/lama",
     "model = 'embedded/lama' is not an embedded model (did you mean 'embedded/llama'?)."),
    ("model: ./nothing", f"model = './nothing' does not exist; allowed are {MODELS}."),
    ("model: a/b/c", f"model = 'a/b/c' does not exist; allowed are {MODELS}."),
    ('model: ""', f"model = '' names no model: give {MODELS}."),
    ("corpus: wikitext",
     ("corpus = 'wikitext' is neither a known corpus (embedded, wikitext2, c4, ptb) nor an existing file or "
     "folder.")),
    ("windows: no.safetensors",
     "windows = 'no.safetensors' does not exist: give the path of a file, or \"\" for none."),
    ("a: [", "line 2: not readable as YAML: expected the node content, but found '<stream end>'."),
    ("- 1", "must be lines of the form 'key: value'."),
    ("seed: 1\nseed: 2", "line 1: not readable as YAML: the key 'seed' is given twice."),
]


def refusal(root, **files: str) -> str:
    profile(root, "tiny", **files)
    with pytest.raises(UsageError) as caught:
        params.resolve_profile("tiny")
    return str(caught.value)


@pytest.mark.parametrize(("text", "sentence"), BAD, ids=[text[:40] for text, _ in BAD])
def test_a_bad_parameter_gets_one_sentence(home, text, sentence):
    assert refusal(home, **{"03_baselines": text + "\n"}) == OWN + sentence


@pytest.mark.parametrize("method", ["wnada", "mul(W, Y)"])
def test_an_unknown_method_names_its_place_and_the_nearest(home, method):
    sentence = refusal(home, **{"03_baselines": f'methods: [wanda, "{method}"]\n'})
    assert sentence.startswith(OWN + f"methods[1] = '{method}' is no method: ")
    assert "'wanda'" in sentence or "W, G, X" in sentence


@pytest.mark.parametrize(("files", "sentence"), [
    ({"common": "seqln: 3\n"}, COMMON + "no notebook has a parameter 'seqln' (did you mean 'seqlen'?)."),
    ({"common": "profile: other\n"},
     COMMON + "profile = 'other' must be 'tiny', the name of the file's folder."),
    ({"01_data": "method: wanda\n"},
     "params/tiny/01_data.yaml: 01_data has no parameter 'method' (known: profile, rows, seqlen, seed)."),
    ({"04_nothing": "seed: 1\n"},
     "params/tiny/04_nothing.yaml: no notebook reads this file (known: 01_data, 03_baselines)."),
    ({"03_baselines": "seqlen: 16\n"},
     ("params/tiny: seqlen = 16 in 03_baselines but 8 in 01_data, which it reads from: set seqlen once, in "
     "params/tiny/common.yaml.")),
])
def test_profiles_hold_only_what_a_notebook_knows(home, files, sentence):
    assert refusal(home, **files) == sentence


@pytest.mark.parametrize(("overrides", "sentence"), [
    ({"seqln": "3"}, "--set seqln=3: no notebook has a parameter 'seqln' (did you mean 'seqlen'?)."),
    ({"seqlen": "many"}, "--set seqlen=many: seqlen = 'many' must be a whole number."),
    ({"seed": "1e3"}, "--set seed=1e3: seed = '1e3' must be a whole number (write 1000)."),
    ({"pattern": "2:3:4"}, "--set pattern=2:3:4: pattern = '2:3:4' must be 'unstructured' or " + N_OF_M),
])
def test_overrides_are_checked_alike(home, overrides, sentence):
    with pytest.raises(UsageError) as caught:
        params.resolve_profile("tiny", overrides)
    assert str(caught.value) == sentence


def test_nothing_is_twice_in_a_list(home):
    for overrides, twice in (({"targets": "0.5,0.50"}, "0.5"), ({"methods": "wanda,wanda"}, "wanda")):
        with pytest.raises(UsageError, match=rf"has '{twice}' twice\."):
            params.resolve_profile("tiny", overrides)


def test_a_folder_stands_for_all_that_the_hub_would_give(tmp_path, monkeypatch):
    monkeypatch.delenv("PRUNEKIT_HOME", raising=False)
    monkeypatch.chdir(tmp_path)
    tasks = ("boolq", "rte", "hellaswag", "winogrande", "arc_easy", "arc_challenge", "openbookqa")
    for name in ("data/wikitext2", "data/web", *(f"data/zero_shot/{task}" for task in tasks)):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "data/web/c4.jsonl").write_text('{"text": "words"}')
    overrides = {"data": "data", "model": "embedded/llama", "gradient_corpus": "c4",
                 "test_corpora": "[c4, embedded]"}
    values = params.resolve_profile("smollm2", overrides)
    there = str(tmp_path / "data")
    assert {own["corpus"] for own in values.values() if "corpus" in own} == {f"{there}/wikitext2"}
    assert values["01_data"]["gradient_corpus"] == f"{there}/web/c4.jsonl"
    assert values["01_data"]["test_corpus"] == ""
    assert values["01_data"]["test_corpora"] == [f"{there}/web/c4.jsonl", "embedded"]
    assert values["06_zero_shot"]["folders"] == ",".join(f"{task}={there}/zero_shot/{task}" for task in tasks)
    assert values["07_lora"]["folders"] == ""  # which asks nothing unless it is told to
    (tmp_path / "data/config.json").write_text("{}")
    asked = overrides | {"model": there, "task_documents": "9"}
    assert params.resolve_profile("smollm2", asked)["07_lora"]["folders"] == values["06_zero_shot"]["folders"]
    own = params.resolve_profile("smollm2", overrides | {"folders": f"rte={there}"})["06_zero_shot"]
    assert own["folders"] == f"rte={there}"
    assert params.resolve_profile("embedded", {"data": "data"}) == params.resolve_profile("embedded")
    with pytest.raises(UsageError, match=rf"^--set data=data: {there} holds no ptb and no web/ptb\.jsonl\.$"):
        params.resolve_profile("smollm2", overrides | {"test_corpora": "[c4, ptb]"})
    (tmp_path / "data/zero_shot/rte").rmdir()
    with pytest.raises(UsageError, match=rf"^--set data=data: {there} holds no zero_shot/rte\.$"):
        params.resolve_profile("smollm2", overrides)


@pytest.mark.parametrize(("overrides", "sentence"), [
    ({"test_corpora": "[ptb, embedded]"}, "two texts called 'embedded', which results could not tell apart"),
    ({"test_corpora": "[web/a.jsonl, a.txt]"}, "two texts called 'a', which results could not tell apart"),
    ({"test_corpora": "[ptb]", "windows": "w.safetensors"}, "test_corpora does not go with ready windows"),
    ({"test_corpora": "[pbt]"}, r"test_corpora\[0\] = 'pbt' is neither a known corpus")])
def test_test_texts_that_results_could_not_tell_apart_are_refused(tmp_path, monkeypatch, overrides, sentence):
    monkeypatch.delenv("PRUNEKIT_HOME", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "web").mkdir()
    for name in ("web/a.jsonl", "a.txt", "w.safetensors"):
        (tmp_path / name).write_text("words")
    with pytest.raises(UsageError, match=sentence):
        params.resolve_profile("embedded", overrides)


def test_overrides_mean_what_they_say_without_yaml(home, tmp_path):
    (tmp_path / "text.txt").write_text("words")
    overrides = {"targets": "0.5,2:4", "methods": "mul(W, sqrt(X))", "scale": "1e-4", "fast": "false",
                 "corpus": "text.txt"}
    values = params.resolve_profile("tiny", overrides)["03_baselines"]
    assert values["targets"] == ["0.5", "2:4"] and values["methods"] == ["mul(W, sqrt(X))"]
    assert values["scale"] == 1e-4 and values["fast"] is False
    assert values["corpus"] == str(tmp_path / "text.txt")  # absolute: the notebook runs elsewhere


def test_a_file_means_the_same_to_papermill(tmp_path):
    from papermill.iorw import read_yaml_file

    file = tmp_path / "p.yaml"
    file.write_text("a: 2:4\nb: 1e-4\nc: no\nd: 2020-01-02\ne: 1.0e-4\nf: [x, '2:4']\ng: 010\n")
    assert params.load_yaml(file) == read_yaml_file(str(file))


def test_the_parameters_cell_is_read_without_running_it(home):
    declared = params.read_parameters(project.notebook("01_data"))
    assert declared["rows"].type is int and declared["rows"].default == 4
    assert declared["rows"].comment == "rows of the table; made up"


@pytest.mark.parametrize("line", [
    "rows = 4", "rows: int = 2 + 2", "rows: set = {1}", "import os", "rows: int", "rows: int = ("])
def test_only_annotated_literals_are_parameters(home, line):
    write_notebook(home / "notebooks" / "01_data.ipynb", [("parameters", DATA + line + "\n")])
    with pytest.raises(UsageError, match="notebooks/01_data.ipynb: the parameters cell may hold only lines"):
        params.resolve_profile("tiny")


def test_bad_parameters_are_refused_before_torch_is_imported(home):
    profile(home, "tiny", **{"03_baselines": "methods: [wnada]\n"})
    code = ("import json, sys; from prunekit.cli import main; code = main(['run', 'tiny']); "
            "heavy = {'torch', 'transformers', 'pandas', 'matplotlib', 'papermill'} & set(sys.modules); "
            "print(json.dumps([code, sorted(heavy)]))")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [2, []]
    assert done.stderr.startswith("prunekit: params/tiny/03_baselines.yaml: methods[0] = 'wnada'")


def test_yaml_traps_are_as_described():
    """The traps that the hints speak of are there in the YAML library that papermill uses."""
    assert yaml.safe_load("[2:4, 1e-4, no]") == [124, "1e-4", False]


def test_folders_of_tasks_are_split_alike_everywhere(tmp_path):
    named = {"rte": "a=b", "boolq": "c"}
    assert choices.task_folders("rte=a=b,boolq=c") == choices.task_folders(["rte=a=b", "boolq=c"]) == named
    assert checks.problem("folders", f"rte={tmp_path}") is None
    assert checks.problem("folders", "rte").endswith("data set 'rte' is not TASK=FOLDER")
    assert checks.problem("folders", f"rte={tmp_path}/no") == (
        f"must name folders that exist; '{tmp_path}/no' does not")


def test_paths_of_an_override_are_of_the_folder_where_it_was_given(home, tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/my.txt").write_text("A text.")
    monkeypatch.chdir(tmp_path / "a")
    here = params.resolve_profile("tiny", {"corpus": "my.txt"})
    monkeypatch.chdir(tmp_path)
    assert params.resolve_profile("tiny", {"corpus": "my.txt"}, tmp_path / "a") == here
    assert here["03_baselines"]["corpus"] == str(tmp_path / "a/my.txt")
    (tmp_path / "blob").write_text('{"text": "A text."}')
    (tmp_path / "a/my.jsonl").symlink_to("../blob")  # as in a cache of the hub
    assert params.absolute("corpus", params.Setting("b/../a/my.jsonl", "--set"), tmp_path).value == (
        "b/../a/my.jsonl")  # there is no b
    (tmp_path / "b").symlink_to("a", target_is_directory=True)
    assert params.absolute("corpus", params.Setting("b/my.jsonl", "--set"), tmp_path).value == (
        f"{tmp_path}/a/my.jsonl")
    own = {"folders": ("rte=a,boolq=none", f"rte={tmp_path}/a,boolq=none"),
           "layer_targets": (["a/my.txt", '{"*": 0.6}'], [f"{tmp_path}/a/my.txt", '{"*": 0.6}'])}
    for key, (value, there) in own.items():
        assert params.absolute(key, params.Setting(value, "--set"), tmp_path).value == there
