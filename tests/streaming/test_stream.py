"""Pruning from disk to disk: the same tensors as in memory, in the memory that was announced, whatever
interrupts it."""
from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections import namedtuple
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

import prunekit as pk
from prunekit.streaming import stream
from prunekit.streaming.checkpoint import Checkpoint, Entry, write_safetensors
from prunekit.streaming.stream import checkpoint_needs, prune_checkpoint
from tests.conftest import GOLDEN
from tests.pruning.families import FAMILIES, windows

G_TREE = "mul(mul(W, G), sqrt(X))"
pytestmark = pytest.mark.usefixtures("no_fsync")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return saved("LLaMA", tmp_path / "source")


def saved(family: str, path: Path, **options: Any) -> Path:
    FAMILIES[family].model().save_pretrained(path, **options)
    return path


def gradients(source: Path) -> pk.Gradients:
    return pk.collect_gradients(pk.load_model(source)[0], windows(2, 12, seed=1), progress=False)


def in_memory(source: Path, method: str, sparsity: Any, pattern: str = "unstructured", *,
              dtype: str = "float32",
              **options: Any) -> tuple[dict[str, torch.Tensor], pk.pruning.prune.Report]:
    model, _ = pk.load_model(source, dtype=dtype)
    report = pk.prune(model, windows(), method, sparsity, pattern, progress=False, **options)
    return model.state_dict(), report


def assert_same(target: Path, expected: dict[str, torch.Tensor]) -> None:
    found = pk.load_model(target,
                          dtype="auto" if next(iter(expected.values())).dtype == torch.float32
                          else "bfloat16")[0]
    for name, tensor in found.state_dict().items():
        assert tensor.dtype == expected[name].dtype and torch.equal(tensor, expected[name]), name


def files(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir() if file.name != stream.PROVENANCE}


# --- the same result as in memory ---------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_equals_pruning_in_memory(family: str, tmp_path: Path):
    source = saved(family, tmp_path / "source")
    expected, there = in_memory(source, "wanda", 0.5)
    report = prune_checkpoint(source, tmp_path / "target", windows(), "wanda", 0.5, progress=False)
    assert_same(tmp_path / "target", expected)
    assert report.rows == there.rows and report.sparsity == there.sparsity


@pytest.mark.parametrize("method, sparsity, pattern, options", [
    ("magnitude", 0.6, "unstructured", {}), ("wanda", [0.4, 0.5, 0.6], "unstructured", {}),
    ("wanda", 0.5, "2:4", {"update": "obs"}), ("sparsegpt", 0.5, "unstructured", {}),
    (G_TREE, [0.4, 0.5, 0.6], "unstructured", {"update": "admm", "admm": pk.AdmmOptions(6, 4)}),
    ("wanda", {"*": 0.4, "*.down_proj": "2:4", "*.1.mlp.*": 0.6}, "unstructured", {"skip": ["*.k_proj"]}),
    (G_TREE, 0.5, "unstructured", {}), ("pruner-zero", 0.5, "2:4", {"update": "obs-iter"})])
def test_every_kind_of_method_equals_pruning_in_memory(source: Path, tmp_path: Path, method: str,
                                                       sparsity: Any, pattern: str, options: dict):
    G = gradients(source)
    expected, there = in_memory(source, method, sparsity, pattern, gradients=G, **options)
    path = G.save(tmp_path / "G.safetensors")  # read from disk, layer by layer
    report = prune_checkpoint(source, tmp_path / "target", windows(), method, sparsity, pattern,
                              gradients=path, progress=False, **options)
    assert_same(tmp_path / "target", expected)
    assert report.rows == there.rows
    assert {key: report.meta[key] for key in there.meta if key != "seconds"} == {
        key: value for key, value in there.meta.items() if key != "seconds"}


def test_gradients_of_the_published_code_are_read_as_in_memory(tmp_path: Path, golden_windows,
                                                               golden_gradients):
    source, file = GOLDEN / "llama", GOLDEN / "llama-grad-l2.pth"
    model, _ = pk.load_model(source)
    pk.prune(model, golden_windows, "pruner-zero", 0.5, gradients=golden_gradients["llama"], progress=False)
    prune_checkpoint(source, tmp_path / "target", golden_windows, "pruner-zero", 0.5, gradients=file,
                     progress=False)
    assert_same(tmp_path / "target", model.state_dict())


def test_zeros_are_preserved_as_in_memory(source: Path, tmp_path: Path):
    once = tmp_path / "once"
    prune_checkpoint(source, once, windows(), "magnitude", 0.4, progress=False)
    expected, _ = in_memory(once, "wanda", 0.6, update="admm", preserve=True)
    prune_checkpoint(once, tmp_path / "twice", windows(), "wanda", 0.6, update="admm", preserve=True,
                     progress=False)
    assert_same(tmp_path / "twice", expected)
    with pytest.raises(pk.UsageError, match="are zero already"):
        prune_checkpoint(tmp_path / "twice", tmp_path / "back", windows(), "wanda", 0.5, preserve=True)


@pytest.mark.parametrize("family", ["LLaMA", "Qwen3-MoE", "GPT-OSS"])
def test_in_another_dtype(family: str, tmp_path: Path):
    source = saved(family, tmp_path / "source")
    expected, _ = in_memory(source, "sparsegpt", 0.5, dtype="bfloat16")
    prune_checkpoint(source, tmp_path / "target", windows(), "sparsegpt", 0.5, dtype="bfloat16",
                     progress=False)
    assert_same(tmp_path / "target", expected)
    config = json.loads((tmp_path / "target/config.json").read_text())
    assert config.get("dtype", config.get("torch_dtype")) == "bfloat16"


@pytest.mark.parametrize("family", ["OPT", "GPT-2", "BLOOM"])
def test_checkpoint_of_the_base_model_keeps_its_names(family: str, tmp_path: Path):
    FAMILIES[family].model().base_model.save_pretrained(tmp_path / "source")
    expected, _ = in_memory(tmp_path / "source", "wanda", 0.5)
    prune_checkpoint(tmp_path / "source", tmp_path / "target", windows(), "wanda", 0.5, progress=False)
    assert_same(tmp_path / "target", expected)
    assert set(Checkpoint(tmp_path / "target")) == set(Checkpoint(tmp_path / "source"))


def test_shards_index_and_configuration(tmp_path: Path):
    source = saved("LLaMA", tmp_path / "source", max_shard_size="20KB")
    (source / "tokenizer_config.json").write_text('{"a": 1}')
    (source / "README.md").write_text("not part of the model")
    assert len(list(source.glob("*.safetensors"))) > 2
    prune_checkpoint(source, tmp_path / "target", windows(), "wanda", 0.5, progress=False)
    shards = [f"model-{i:05d}-of-00004.safetensors" for i in range(1, 5)]
    assert sorted(file.name for file in (tmp_path / "target").iterdir()) == sorted(
        [*shards, "config.json", "generation_config.json", "tokenizer_config.json", stream.INDEX,
         stream.PROVENANCE])
    index = json.loads((tmp_path / "target" / stream.INDEX).read_text())["weight_map"]
    for name, file in index.items():
        with safe_open(tmp_path / "target" / file, "pt") as shard:
            assert shard.get_slice(name).get_shape()
        assert (file == shards[int(name.split(".")[2])]) if ".layers." in name else (file == shards[3])


# --- interruptions ------------------------------------------------------------------------------------------


class Killed(BaseException):
    """Stands for the end of the process: nothing may catch it."""


def interrupted(monkeypatch: pytest.MonkeyPatch, after: int, run: Any) -> None:
    """Let `run` come past `after` points where a file, or its name, is on the disk, and die at the next."""
    written: list[int] = []

    def dies(handle: int) -> None:
        written.append(handle)
        if len(written) > after:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", dies)
        with pytest.raises(Killed):
            run()


@pytest.mark.parametrize("method", ["wanda", "sparsegpt", "magnitude"])
def test_resumes_wherever_it_died_with_the_same_bytes(source: Path, tmp_path: Path, method: str,
                                                      monkeypatch: pytest.MonkeyPatch):
    def run(target: str) -> Any:
        return prune_checkpoint(source, tmp_path / target, windows(), method, 0.5, progress=False)

    rows, expected = run("undisturbed").rows, files(tmp_path / "undisturbed")
    # two for each file: progress; shard and progress of three blocks; rest; json files
    syncs = 2 * (1 + 2 * 3 + 1 + 3)
    for after in range(0, syncs, 1 if method == "wanda" else 5):
        target = f"died-{after}"
        interrupted(monkeypatch, after, partial(run, target))
        assert (tmp_path / target / stream.PROVENANCE).exists() == (after == syncs - 1)
        assert run(target).rows == rows
        assert files(tmp_path / target) == expected, after
    for after in (3, 7, 11):  # and again and again
        interrupted(monkeypatch, after % 4 + 2, partial(run, "often"))
    assert run("often").rows == rows
    assert files(tmp_path / "often") == expected


_KILLED = """
import os, signal, sys, torch
from prunekit.streaming import stream
torch.set_num_threads(1)
write = stream._Run.write_block
def dies(self, index, tensors, rows):
    write(self, index, tensors, rows)
    os.kill(os.getpid(), signal.SIGKILL)
stream._Run.write_block = dies
ids = torch.load(sys.argv[3], weights_only=True)
stream.prune_checkpoint(sys.argv[1], sys.argv[2], ids, "sparsegpt", 0.5, progress=False)
"""


def test_resumes_after_kill_9(source: Path, tmp_path: Path):
    torch.save(windows(), tmp_path / "ids.pt")
    for block in range(1, 3):
        done = subprocess.run([sys.executable, "-c", _KILLED, source, tmp_path / "target",
                               tmp_path / "ids.pt"],
                              check=False)
        assert done.returncode == -signal.SIGKILL
        assert json.loads((tmp_path / "target" / stream.PROGRESS).read_text())["finished"] == block
    for target in ("target", "undisturbed"):
        prune_checkpoint(source, tmp_path / target, windows(), "sparsegpt", 0.5, progress=False)
    assert files(tmp_path / "target") == files(tmp_path / "undisturbed")


def test_finished_run_is_not_run_again(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def run() -> Any:
        return prune_checkpoint(source, tmp_path / "target", windows(), "wanda", 0.5, progress=False)

    rows, before = run().rows, {file: file.stat().st_mtime_ns for file in (tmp_path / "target").iterdir()}
    assert run().rows == rows
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "target").iterdir()} == before


def test_one_process_at_a_time(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    target, write = tmp_path / "target", stream._Run.write_block

    def run() -> Any:
        return prune_checkpoint(source, target, windows(), "wanda", 0.5, progress=False)

    def meanwhile(self: Any, *args: Any) -> None:
        before = files(target)
        with pytest.raises(pk.UsageError, match="is being written by another process"):
            run()
        assert files(target) == before
        write(self, *args)

    monkeypatch.setattr(stream._Run, "write_block", meanwhile)
    rows = run().rows
    assert run().rows == rows and not (target / stream.LOCK).exists()


@pytest.mark.parametrize("finished", [True, False])
def test_flipped_bits_are_noticed(finished: bool, source: Path, tmp_path: Path,
                                  monkeypatch: pytest.MonkeyPatch):
    def run() -> Any:
        return prune_checkpoint(source, tmp_path / "target", windows(), "wanda", 0.5, progress=False)

    if finished:
        run()
    else:
        interrupted(monkeypatch, 9, run)
    shard = tmp_path / "target/model-00002-of-00004.safetensors"
    content = bytearray(shard.read_bytes())
    content[-5] ^= 1
    shard.write_bytes(content)
    with pytest.raises(pk.UsageError, match="model-00002-of-00004.safetensors is not as it was written"):
        run()


@pytest.mark.parametrize("record", ["", "[]", "{}", '{"request": {', '{"request": [], "rows": 3}',
                                    "[" * 10**5], ids=range(6))
@pytest.mark.parametrize("name", [stream.PROGRESS, stream.PROVENANCE])
def test_torn_records_are_a_sentence(name: str, record: str, source: Path, tmp_path: Path):
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / name).write_text(record)
    with pytest.raises(pk.UsageError, match=rf"record .*{name} is damaged; remove"):
        prune_checkpoint(source, tmp_path / "target", windows(), "wanda", 0.5, progress=False)


# --- refusals -----------------------------------------------------------------------------------------------


def test_foreign_targets_are_refused(source: Path, tmp_path: Path):
    target = tmp_path / "target"
    target.mkdir()
    (target / "thesis.txt").write_text("three years of work")
    with pytest.raises(pk.UsageError, match="not empty"):
        prune_checkpoint(source, target, windows(), "wanda", 0.5, progress=False)
    assert [file.name for file in target.iterdir()] == ["thesis.txt"]


def test_a_target_that_another_command_wrote_is_not_called_damaged(source: Path, tmp_path: Path):
    target = tmp_path / "target"
    shutil.copytree(source, target)
    (target / stream.PROVENANCE).write_text('{"model": "mine", "method": "wanda"}')
    with pytest.raises(pk.UsageError, match="target holds what another command wrote; give a new directory"):
        prune_checkpoint(source, target, windows(), "wanda", 0.5, progress=False)


def test_of_both_forms_the_one_that_transformers_reads_is_read(tmp_path: Path):
    """A model was saved in shards, and again, changed, in one piece: the index stays."""
    source = saved("LLaMA", tmp_path / "source", max_shard_size="20KB")
    model = AutoModelForCausalLM.from_pretrained(source)
    model.model.norm.weight.data += 1
    save_file(model.state_dict(), source / "model.safetensors", metadata={"format": "pt"})
    read = AutoModelForCausalLM.from_pretrained(source).state_dict()
    assert torch.equal(read["model.norm.weight"], model.state_dict()["model.norm.weight"])
    assert torch.equal(Checkpoint(source)["model.norm.weight"].read(), read["model.norm.weight"])


@pytest.mark.parametrize("change, names", [
    ({"sparsity": 0.6}, "sparsity"), ({"skip": ["*.q_proj"]}, "sparsity"),
    ({"pattern": "2:4"}, "pattern, sparsity"), ({"method": "wanda"}, "method, tree, gradients"),
    ({"group": "layer"}, "group"), ({"update": "obs-iter"}, "update"), ({"preserve": True}, "preserve"),
    ({"obs": pk.ObsOptions(block_size=16)}, "options"), ({"dtype": "bfloat16"}, "dtype"),
    ({"windows": windows(seed=5)}, "windows"), ({"gradients": 2}, "gradients"), ({}, "source")])
def test_run_of_another_request_is_refused(source: Path, tmp_path: Path, change: dict, names: str):
    G = gradients(source)
    request = {"windows": windows(), "method": "mul(W, G)", "sparsity": 0.5, "update": "obs", "gradients": G}
    prune_checkpoint(source, tmp_path / "target", **request, progress=False)
    if not change:  # nothing but one weight, under the same name
        model = FAMILIES["LLaMA"].model()
        model.model.layers[1].mlp.up_proj.weight.data[0, 0] += 1
        model.save_pretrained(source)
    if "gradients" in change:  # of the last layer alone
        last = max(G)
        change = {"gradients": pk.Gradients({**G, last: G[last] * change["gradients"]})}
    with pytest.raises(pk.UsageError, match=rf"another request \(it differs in {names}\)"):
        prune_checkpoint(source, tmp_path / "target", **(request | change), progress=False)


def test_too_little_disk_is_refused_first(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9, 2000))
    with pytest.raises(pk.UsageError, match=r"needs 0\.01 GB of disk where 0\.00 GB are free"):
        prune_checkpoint(source, tmp_path / "deep/target", windows(), "wanda", 0.5, progress=False)
    assert not (tmp_path / "deep").exists()


def test_checkpoints_that_do_not_fit_are_refused(source: Path, tmp_path: Path):
    tensors = load_file(source / "model.safetensors")
    gone = {name: tensor for name, tensor in tensors.items() if "layers.1.mlp.up_proj" not in name}
    save_file(gone, source / "model.safetensors")
    with pytest.raises(pk.UsageError, match=r"no tensor for model\.layers\.1\.mlp\.up_proj\.weight"):
        prune_checkpoint(source, tmp_path / "target", windows(), "wanda", 0.5, progress=False)
    save_file(tensors | {"lm_head.weight": torch.zeros(3, 3)}, source / "model.safetensors")
    with pytest.raises(pk.UsageError, match=r"lm_head.weight \(3, 3\) for \(128, 32\)"):
        prune_checkpoint(source, tmp_path / "target", windows(), "wanda", 0.5, progress=False)
    whole = (source / "model.safetensors").read_bytes()
    for size in (3, 200, len(whole) - 1):
        (source / "model.safetensors").write_bytes(whole[:size])
        with pytest.raises(pk.UsageError, match="model.safetensors"):
            prune_checkpoint(source, tmp_path / "target", windows(), "wanda", 0.5, progress=False)
    (source / "model.safetensors").unlink()
    with pytest.raises(pk.UsageError, match="holds no model.safetensors"):
        prune_checkpoint(source, tmp_path / "target", windows(), "wanda", 0.5, progress=False)
    assert not (tmp_path / "target").exists()


def test_requests_are_checked_as_in_memory(source: Path, tmp_path: Path):
    target = tmp_path / "target"
    with pytest.raises(pk.UsageError, match="did you mean 'wanda'"):
        prune_checkpoint(source, target, windows(), "wandaa", 0.5)
    with pytest.raises(pk.UsageError, match="block size 4 is smaller than a group of pattern 4:8"):
        prune_checkpoint(source, target, windows(), "sparsegpt", {"*.q_proj": "2:4", "*.o_proj": "4:8"},
                         obs=pk.ObsOptions(block_size=4))
    for file in (source / "config.json", source / "config.json" / "target"):
        with pytest.raises(pk.UsageError, match="cannot be written"):
            prune_checkpoint(source, file, windows(), "wanda", 0.5)
    with pytest.raises(pk.UsageError, match="dtype 'bf16'"):
        prune_checkpoint(source, target, windows(), "wanda", 0.5, dtype="bf16")
    with pytest.raises(pk.UsageError, match="reads G"):
        prune_checkpoint(source, target, windows(), "pruner-zero", 0.5)
    with pytest.raises(pk.UsageError, match="does not exist"):
        prune_checkpoint(source, target, windows(), "pruner-zero", 0.5, gradients=tmp_path / "G.safetensors")
    with pytest.raises(pk.UsageError, match="not a directory"):
        prune_checkpoint("facebook/opt-125m", target, windows(), "wanda", 0.5)
    saved("Qwen2", tmp_path / "other")
    model = FAMILIES["Qwen2"].model(intermediate_size=64)
    G = pk.collect_gradients(model, windows(1, 8), progress=False).save(tmp_path / "G.safetensors")
    with pytest.raises(pk.UsageError, match="gradient of layer .* has shape"):
        prune_checkpoint(source, target, windows(), "pruner-zero", 0.5, gradients=G)
    assert not target.exists()


# --- files --------------------------------------------------------------------------------------------------


def test_tensors_are_written_as_safetensors_reads_them(tmp_path: Path):
    tensors = {"a": torch.randn(3, 5), "b": torch.randn(7).bfloat16(), "c": torch.tensor(3),
               "d": torch.zeros(0, 4), "e": torch.tensor([True, False]), "f": torch.randn(4, 6).T}
    write_safetensors(tmp_path / "x.safetensors",
                      {name: Entry(t.dtype, tuple(t.shape), t.detach) for name, t in tensors.items()})
    with safe_open(tmp_path / "x.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
    for name, tensor in load_file(tmp_path / "x.safetensors").items():
        assert tensor.dtype == tensors[name].dtype and torch.equal(tensor, tensors[name]), name
    for name, stored in Checkpoint(tmp_path / "x.safetensors").items():
        assert torch.equal(stored.read(), tensors[name]), name
    assert torch.equal(Checkpoint(tmp_path / "x.safetensors")["b"].read(torch.float32), tensors["b"].float())
    assert [file.name for file in tmp_path.iterdir()] == ["x.safetensors"]


# --- memory -------------------------------------------------------------------------------------------------

_MEASURED = """
import gc, sys, torch
torch.set_num_threads(1)
from prunekit.streaming.stream import prune_checkpoint
def status(key):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(key))
source, warm, target, method = sys.argv[1:]
ids = torch.randint(3, 128, (4, 512), generator=torch.Generator().manual_seed(0))
prune_checkpoint(warm, target + "-warm", ids[:, :16], method, 0.5, progress=False)
gc.collect()
open("/proc/self/clear_refs", "w").write("5")  # the peak starts anew
before = status("VmRSS")
prune_checkpoint(source, target, ids, method, 0.5, progress=False)
print(status("VmHWM") - before)
"""


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="the peak cannot be reset here")
@pytest.mark.parametrize("blocks, method", [
    (2, "wanda"), (5, "wanda"), (3, "magnitude"), (2, "sparsegpt"), (2, "admm")])
def test_memory_is_as_announced_and_flat_in_blocks(blocks: int, method: str, tmp_path: Path):
    config = AutoConfig.for_model("llama", vocab_size=4096, hidden_size=768, intermediate_size=2048,
                                  num_hidden_layers=blocks, num_attention_heads=12, dtype="float32")
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    generator = torch.Generator().manual_seed(0)
    entries = {name: Entry(torch.float32, tuple(p.shape),
                           lambda p=p: torch.randn(p.shape, generator=generator) * 0.02)
               for name, p in model.state_dict().items()}
    for path in (tmp_path / "source", tmp_path / "warm"):
        path.mkdir()
    config.save_pretrained(tmp_path / "source")
    write_safetensors(tmp_path / "source/model.safetensors", entries)
    saved("LLaMA", tmp_path / "warm")
    announced = checkpoint_needs(tmp_path / "source", torch.zeros(4, 512, dtype=torch.long), method)
    done = subprocess.run([sys.executable, "-c", _MEASURED,
                           *(tmp_path / name for name in ("source", "warm", "target")), method],
                          capture_output=True, text=True, check=True,
                          env=os.environ | {"OMP_NUM_THREADS": "1"})
    peak = int(done.stdout.split()[-1])
    assert 0.8 * peak <= announced["memory"] <= 1.25 * peak
    written = sum(file.stat().st_size for file in (tmp_path / "target").iterdir())
    assert 0.8 * written <= announced["disk"] <= 1.25 * written
