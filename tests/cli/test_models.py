"""The command line: what it refuses, and that a pruned model on disk is what was promised."""
from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields

import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

import prunekit as pk
from prunekit.cli import _parser, main
from prunekit.cli.models import _add_rows
from prunekit.lora.options import LoraOptions
from prunekit.pruning.gradients import Activations
from tests.conftest import SEQLEN, VOCABULARY, options


def zeros(model):
    return {name: float((weight == 0).float().mean())
            for name, weight in model.named_parameters() if "proj" in name}


def test_a_saved_model_has_exactly_the_promised_zeros(tiny, tmp_path, capsys):
    from transformers import AutoModelForCausalLM

    target, results = tmp_path / "pruned", tmp_path / "results"
    asked = options(tiny, method="pruner-zero", pattern="2:4", save_model=target, results=results)
    command = ["prune", *asked]
    assert main(command) == 0
    written = capsys.readouterr().out
    said = f"pruner-zero reads G and no --gradients are given: collecting them on {tiny / 'w.safetensors'}"
    assert said in written and f"] on {tiny / 'w.safetensors'}, 4 windows" in written
    assert "wikitext2" not in written  # whose text was not read
    model = AutoModelForCausalLM.from_pretrained(target)
    assert set(zeros(model).values()) == {0.5} and len(zeros(model)) == 14
    groups = model.model.layers[1].mlp.up_proj.weight.reshape(-1, 4)
    assert ((groups == 0).sum(1) == 2).all()
    made = json.loads((target / "prunekit.json").read_text())
    assert made["method"] == "pruner-zero" and made["pattern"] == "2:4" and made["sparsity"] == 0.5
    assert main(command) == 2  # the directory is taken, and this is said before anything is loaded
    assert "exists and is not an empty directory" in capsys.readouterr().err
    assert main(["evaluate", *options(tiny, model=target)]) == 0
    row = pd.read_csv(results / "results.csv").iloc[0]
    assert f"perplexity {row.ppl:.4f} [{row.low:.4f}, {row.high:.4f}]" in capsys.readouterr().out
    assert {row.corpus, row.test_corpus, row.gradient_corpus} == {str(tiny / "w.safetensors")}
    for more in ([], ["--activations"]):
        assert main(["gradients", *options(tiny, output=tmp_path / "g.safetensors"), *more]) == 0
        kind = Activations if more else pk.Gradients
        assert kind.load(tmp_path / "g.safetensors").meta["corpus"] == str(tiny / "w.safetensors")


def test_every_row_says_where_its_windows_begin(tiny, tmp_path, capsys):
    embedded = ["--model=embedded/llama", "--seqlen=32", "--nsamples=2", "--test-windows=2"]
    saved = tmp_path / "m"
    for bos, word in (("auto", "no window"), ("always", "every window")):
        asked = [*embedded, "--method=wanda", f"--bos={bos}", f"--results={tmp_path}"]
        assert main(["prune", *asked, *([f"--save-model={saved}"] if bos == "always" else [])]) == 0
        assert ("each begins with BOS" in capsys.readouterr().out) == (word == "every window")
    ready = options(tiny, method="magnitude", results=tmp_path)
    assert main(["prune", *ready]) == 0
    assert pd.read_csv(tmp_path / "results.csv")["bos"].tolist() == ["no window", "every window", "file"]
    assert json.loads((saved / "prunekit.json").read_text())["bos"] == "every window"
    file = tmp_path / "g.safetensors"
    assert main(["gradients", *embedded, "--bos=always", f"--output={file}"]) == 0
    assert pk.Gradients.load(file).meta["bos"] == "every window"
    of_file = [*embedded, "--method=gradient", f"--gradients={file}"]
    assert main(["prune", *of_file, "--bos=always", "--no-evaluate"]) == 0
    capsys.readouterr()
    for asked in (["prune", *of_file], ["search", "start", *of_file, f"--output={tmp_path / 'found'}"]):
        assert main(asked) == 2
        assert (f"gradient file {file} was made with BOS in every window, and this run has it in no window: "
                "give the --bos of then, or collect G again.") in capsys.readouterr().err
    assert main(["prune", *options(tiny, method="wanda", bos="always")]) == 2
    assert "bos = 'always' does not go with ready windows (windows=)" in capsys.readouterr().err


def test_layers_have_targets_of_their_own_and_zeros_are_kept(tiny, tmp_path):
    """By a mapping on the command line, then once more by a file, from what the first left."""
    from transformers import AutoModelForCausalLM

    first, file = tmp_path / "first", tmp_path / "budget.json"
    asked = options(tiny, method="wanda", sparsity='{"*": 0.5, "*.down_proj": "1:4"}', save_model=first)
    assert main(["prune", *asked, "--skip", "*.k_proj", "--no-evaluate"]) == 0
    file.write_text('{"*.up_proj": 0.75, "*.down_proj": 0.5}')
    asked = options(tiny, method="wanda", model=first, sparsity=file, save_model=tmp_path / "second")
    assert main(["prune", *asked, "--update", "admm", "--preserve", "--no-evaluate"]) == 0
    a, b = (AutoModelForCausalLM.from_pretrained(tmp_path / name) for name in ("first", "second"))
    shares = {"k_proj": (0, 0), "down_proj": (0.25, 0.5), "up_proj": (0.5, 0.75)}
    for (name, before), after in zip(zeros(a).items(), zeros(b).values(), strict=True):
        assert (before, after) == shares.get(name.split(".")[-2], (0.5, 0.5)), name
    assert all((q[p == 0] == 0).all() for p, q in zip(a.parameters(), b.parameters(), strict=True))
    made, then = (json.loads((tmp_path / name / "prunekit.json").read_text()) for name in ("first", "second"))
    assert made["pattern"] == "mixed" and made["target"] == pytest.approx(made["sparsity"])
    assert json.loads(made["sparsity_asked"]) == {"*": 0.5, "*.down_proj": "1:4"}
    assert made["skip"] == "*.k_proj" and json.loads(then["sparsity_asked"]) == json.loads(file.read_text())


def test_gradients_from_a_file_give_the_same_masks(tiny, tmp_path):
    from transformers import AutoModelForCausalLM

    assert main(["gradients", *options(tiny, output=tmp_path / "g.safetensors")]) == 0
    for name, more in {"a": {}, "b": {"gradients": tmp_path / "g.safetensors"}}.items():
        asked = options(tiny, method="gradient", save_model=tmp_path / name, **more)
        assert main(["prune", *asked, "--no-evaluate"]) == 0
        made = json.loads((tmp_path / name / "prunekit.json").read_text())
        assert (made["gradient_norm"], made["gradient_scale"], made["gradient_n"]) == ("l2", 100, 4)
        assert made["gradient_corpus"] == str(more.get("gradients", tiny / "w.safetensors"))
    a, b = (AutoModelForCausalLM.from_pretrained(tmp_path / name) for name in "ab")
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
    asked = options(tiny, output=tmp_path / "x.safetensors")
    assert main(["gradients", *asked, "--activations", "--half"]) == 0


def test_gradients_beyond_float16_are_written_in_float32(tiny, tmp_path, capsys):
    file = tmp_path / "g.safetensors"
    assert main(["gradients", *options(tiny, output=file, scale=1e12), "--half"]) == 0
    assert "in float32, not float16: the gradient of layer" in capsys.readouterr().out
    assert max(G.max() for G in pk.Gradients.load(file).values()) > 1e9


def test_too_many_zeros_to_preserve_are_noticed_before_anything_is_computed(tiny, tmp_path, monkeypatch,
                                                                            capsys):
    asked = options(tiny, method="magnitude", sparsity=0.6, save_model=tmp_path / "first")
    assert main(["prune", *asked, "--no-evaluate"]) == 0
    monkeypatch.setattr(pk, "collect_gradients", lambda *given, **more: pytest.fail("computed"))
    again = options(tiny, method="pruner-zero", model=tmp_path / "first", sparsity=0.5)
    assert main(["prune", *again, "--preserve"]) == 2
    assert "are zero already" in capsys.readouterr().err


@pytest.mark.parametrize(("more", "sentence"), [
    (["--target-modules=q_prj"], "target 'q_prj' is no linear layer of LlamaForCausalLM (did you mean 'q_"),
    (["--rank=99"], "rank = 99 is more than that of the layers, at most 16"),
    (["--save-model=new"], "--save-model new needs 0.00 GB of disk where 0.00 GB are free; make room")])
def test_finetune_refuses_before_it_measures(tiny, tmp_path, monkeypatch, capsys, more, sentence):
    ids = torch.randint(0, VOCABULARY, (8, SEQLEN))
    save_file({"train": ids, "test": ids.clone()}, tmp_path / "w")
    monkeypatch.setattr(pk, "perplexity", lambda *given, **more: pytest.fail("measured"))
    monkeypatch.chdir(tmp_path)
    free = shutil.disk_usage(tmp_path)._replace(free=2000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: free)
    asked = options(tiny, windows=tmp_path / "w", block=SEQLEN, batch=2, output=tmp_path / "adapter")
    assert main(["finetune", *asked, *more]) == 2
    assert sentence in capsys.readouterr().err


def test_help_says_the_default_that_holds(capsys):
    for command, number in (("finetune", 1600), ("prune", 32)):
        with pytest.raises(SystemExit):
            main([command, "--help"])
        said = " ".join(capsys.readouterr().out.split())
        assert f"NSAMPLES windows (default: {number} for embedded models" in said


def test_a_configuration_file_is_overruled_by_the_command_line(tiny, tmp_path, capsys):
    file = tmp_path / "c.json"
    file.write_text(json.dumps({"method": "wanda", "sparsity": 0.25, "variant": False, "no_evaluate": True}))
    assert main(["prune", "--config", str(file), *options(tiny)]) == 0
    assert main(["prune", "--config", str(file), *options(tiny, sparsity=0.5, method="magnitude")]) == 0
    written = capsys.readouterr().out
    assert "wanda: 25.0000%" in written and "magnitude: 50" in written


def test_windows_that_are_not_there_are_missed_at_once(tiny, tmp_path, monkeypatch, capsys):
    ids = torch.ones(4, SEQLEN, dtype=torch.long)
    for name in ("collect_gradients", "prune", "evolve"):
        monkeypatch.setattr(pk, name, lambda *given, **more: pytest.fail("computed"))
    prune = ["prune", *options(tiny, windows=tmp_path / "w", method="pruner-zero")]
    search = ["search", "start", *options(tiny, windows=tmp_path / "w", search_windows=4)]
    for command, roles, absent in (
            (prune, ["gradient"], "test"), (search, ["calibration", "gradient", "search"], "select"),
            ([*prune, "--update=obs"], ["gradient", "test"], "calibration"),
            (search, ["calibration", "gradient", "select"], "search")):
        save_file({role: ids.clone() for role in roles}, tmp_path / "w")
        more = [f"--output={tmp_path / absent}"] if command is search else []
        assert main([*command, *more]) == 2
        assert f"no windows for role {absent}" in capsys.readouterr().err


def test_finetune_goes_on_after_its_adapters_were_written(tiny, tmp_path, monkeypatch, capsys):
    from prunekit.lora.finetune import Tuned

    ids = torch.randint(0, VOCABULARY, (8, SEQLEN))
    save_file({"train": ids, "test": ids.clone()}, tmp_path / "w")
    asked = options(tiny, windows=tmp_path / "w", block=SEQLEN, batch=2, output=tmp_path / "adapter",
                    target_modules="q_proj", save_model=tmp_path / "tuned")
    with monkeypatch.context() as killed:
        killed.setattr(Tuned, "merge", lambda tuned: (_ for _ in ()).throw(KeyboardInterrupt))
        assert main(["finetune", *asked, "--rank=2"]) != 0
    adapter = tmp_path / "adapter" / "adapter_model.safetensors"
    before = adapter.read_bytes()
    assert main(["finetune", *asked, "--rank=4"]) == 2
    assert "are of another fine-tuning (other options)" in capsys.readouterr().err
    assert main(["finetune", *asked, "--rank=2"]) == 0
    assert adapter.read_bytes() == before and (tmp_path / "tuned" / "config.json").is_file()
    assert not (tmp_path / "adapter" / "checkpoints").exists()
    assert main(["finetune", *asked[:-1], "--rank=2"]) == 2
    assert "holds adapters already: give a new directory" in capsys.readouterr().err


def test_a_metric_is_a_method_and_so_is_a_tree_in_a_file(tiny, tmp_path, capsys):
    from prunekit.metric.tree import Tree

    Tree.parse("mul(W, sqrt(X))").to_json(tmp_path / "t.json")
    rows = []
    for more in ({"method": "mul(W, sqrt(X))"}, {"tree": tmp_path / "t.json"}, {"method": "wanda"}):
        assert main(["prune", *options(tiny, results=tmp_path / f"r{len(rows)}", **more)]) == 0
        rows.append(pd.read_csv(tmp_path / f"r{len(rows)}/results.csv").ppl[0])
    assert rows[0] == rows[1] == rows[2]


@pytest.mark.parametrize(("arguments", "sentence"), [
    (["prune", "--model", "embedded/lama", "--method", "wanda"],
     "--model embedded/lama is not an embedded model (did you mean 'embedded/llama'?)."),
    (["prune", "--model", "embedded/llama"], "give either --method or --tree."),
    (["prune", "--model", "embedded/llama", "--method", "wanda", "--pattern", "2:4", "--sparsity", "0.6"],
     "sparsity = 0.6 does not go with pattern = '2:4', which removes exactly 0.5."),
    (["prune", "--model", "embedded/llama", "--method", "wanda", "--sparsity", "1.5"],
     ("--sparsity 1.5 must be at least 0 and below 1 (share of zeros), a pattern such as 2:4, or JSON (also "
      "a .json file) of these: a list by block, or a mapping from patterns of layer names.")),
    (["prune", "--model", "embedded/llama", "--method", "wanda", "--sparsity", "[0.5, 0.6]"],
     "2 sparsities were given for a model of 6 decoder blocks; give one number or one per block."),
    (["prune", "--model", "embedded/llama", "--method", "wanda", "--skip", "*.donw_proj"],
     "no layer's name matches '*.donw_proj' (did you mean '*.down_proj'?)."),
    (["prune", "--model", "embedded/llama", "--method", "wanda", "--update", "ob"],
     "--update ob must be one of '', 'obs', 'obs-iter', 'admm'."),
    (["prune", "--model", "embedded/llama", "--method", "wanda", "--gradients", "none.pth"],
     "--gradients none.pth does not exist: give the path of a file, or \"\" for none."),
    (["gradients", "--model", "embedded/llama", "--output", "g.pth"],
     "--output g.pth must end in .safetensors."),
    (["gradients", "--model", "embedded/llama", "--output", "g.safetensors", "--norm", "l3"],
     "--norm l3 must be one of 'l1', 'l2', 'signed'."),
    (["evaluate", "--model", "embedded/llama", "--bos", "yes"],
     "--bos yes must be one of 'auto', 'never', 'always'."),
    (["gradients", "--model", "embedded/llama", "--output", "g.safetensors", "--bos", "never", "--roles",
      "published"],
     ("bos = 'never' does not go with published ones (roles: published), which are taken as they are: leave "
      "bos at 'auto', or draw windows of the package's own (roles: disjoint).")),
    (["evaluate", "--model", "embedded/llama", "--seqlen", "1"],
     "--seqlen 1 must be at least 2 (tokens per window)."),
    (["evaluate", "--model", "embedded/llama", "--config", "none.json"],
     "none.json: cannot be read: No such file or directory."),
    (["run", "tny"], "There is no profile 'tny' (did you mean 'tiny'?)."),
    (["run", "tiny", "03_baslines"], "There is no notebook '03_baslines' (did you mean '03_baselines'?)."),
    (["run", "tiny", "--set", "seqlen"], "--set seqlen: must have the form key=value."),
    (["status", "tiny", "--set", "seqlen=x"], "--set seqlen=x: seqlen = 'x' must be a whole number."),
])
def test_what_cannot_be_is_said_in_one_sentence(home, capsys, arguments, sentence):
    assert main(arguments) == 2
    assert capsys.readouterr().err == f"prunekit: {sentence}\n"


def test_finetune_asks_for_every_option_of_lora_and_nothing_else_by_default():
    args = vars(_parser().parse_args(["finetune", "--model=embedded/llama", "--output=new"]))
    assert LoraOptions(**{field.name: args[field.name] for field in fields(LoraOptions)}) == LoraOptions()


@pytest.mark.parametrize(("content", "sentence"), [
    ("seqlen: 1", "seqlen = 1 must be at least 2 (tokens per window)."),
    ("pattern: 2:4", 'pattern = 124 must be text (YAML reads an unquoted 2:4 as 124: quote it: "2:4").'),
    ("sparsty: 0.5", "`prunekit prune` has no option 'sparsty' (did you mean 'sparsity'?)."),
    ("variant: 1", "variant = 1 must be true or false."),
])
def test_a_configuration_file_is_checked_like_a_parameter_file(home, tmp_path, capsys, content, sentence):
    (tmp_path / "c.yaml").write_text(content)
    assert main(["prune", "--model", "embedded/llama", "--config", "c.yaml"]) == 2
    assert capsys.readouterr().err == f"prunekit: c.yaml: {sentence}\n"


def test_rows_of_commands_that_end_at_once_are_all_kept_as_they_were(tmp_path):
    file = tmp_path / "results.csv"
    file.write_text("model,model_hash,n\nNA,12e45,64\n")
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda i: _add_rows(file, [{"model": f"m{i}", "n": i}]), range(12)))
    first, *others = pd.read_csv(file, dtype=str, keep_default_na=False).to_dict("records")
    assert first == {"model": "NA", "model_hash": "12e45", "n": "64"}
    assert sorted(row["model"] for row in others) == sorted(f"m{i}" for i in range(12))


def test_results_without_tasks_are_refused(tiny, capsys):
    assert main(["evaluate", *options(tiny, results=tiny / "kept")]) == 2
    assert "--results keeps the rows of zero-shot tasks: give --tasks as well." in capsys.readouterr().err


def test_status_names_every_notebook(home, capsys):
    assert main(["status", "tiny"]) == 0
    assert capsys.readouterr().out == ("01_data           missing      never run\n"
                                       "03_baselines      missing      never run\n")


def test_status_without_a_profile_names_what_has_been_run(home, capsys):
    assert main(["status"]) == 0
    assert capsys.readouterr().out == "nothing has been run yet: `prunekit run embedded`\n"
    (home / "params/sweeps").mkdir()
    (home / "params/sweeps/s.yaml").write_text("profile: tiny\ntopics: [01_data]\ngrid:\n  seed: [0, 1, 2]\n")
    failed = home / "runs/tiny/03_baselines.attempt"
    failed.mkdir(parents=True)
    (failed / "reason.txt").write_text("too little memory\n")
    (home / "runs/sweeps/s").mkdir(parents=True)
    assert main(["status"]) == 0
    assert capsys.readouterr().out == ("tiny\n01_data           missing      never run\n"
                                       "03_baselines      failed       too little memory\n"
                                       "sweep s: 3 missing\n")


def test_a_full_gpu_is_said_in_one_sentence_and_other_faults_are_not_hidden(tiny, monkeypatch, capsys):
    def fail_with(error):
        def collect(*args, **kwargs):
            raise error
        monkeypatch.setattr(pk, "collect_gradients", collect)
        return main(["gradients", *options(tiny), f"--output={tiny / 'G.safetensors'}"])

    full = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has")
    assert fail_with(full) == 2
    assert "prunekit: the GPU has no memory left (CUDA out of memory): let" in capsys.readouterr().err
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        fail_with(RuntimeError("shapes do not fit"))
