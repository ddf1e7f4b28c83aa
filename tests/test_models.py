from __future__ import annotations

import json
import shutil

import pytest
import torch

import prunekit as pk
from prunekit.models import fingerprint, prunable_layers

from .conftest import GOLDEN


def test_embedded_models_load_with_their_tokenizer():
    for name in ("embedded/llama", "embedded/opt"):
        model, tokenizer = pk.load_model(name)
        assert not model.training and model.dtype == torch.float32
        assert tokenizer("a", add_special_tokens=False)["input_ids"]
        assert pk.load_model(name, dtype="bfloat16")[0].dtype == torch.bfloat16


def test_without_a_gpu_balanced_is_the_processor(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    model, _ = pk.load_model(GOLDEN / "llama", device="balanced")
    assert model.dtype == torch.float32 and model.device.type == "cpu"


@pytest.mark.parametrize(("device", "gpus", "expected"), [("auto", 2, True), ("balanced", 2, True), ("balanced", 1, True),
                                                          ("cpu", 2, False)])
def test_several_gpus_share_a_model_by_accelerates_map(device, gpus, expected, monkeypatch):
    asked = {}

    def loaded(path, **options):
        asked.update(options)
        raise ValueError("there are no such GPUs")

    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", loaded)
    with pytest.raises(pk.UsageError, match="no such GPUs"):
        pk.load_model(GOLDEN / "llama", device=device)
    assert asked.get("device_map") == ("auto" if expected else None)


def test_a_directory_without_tokenizer_gives_none():
    model, tokenizer = pk.load_model(GOLDEN / "llama")
    assert tokenizer is None
    names = [layer.name for layer in prunable_layers(model)[1]]
    assert names == [f"model.layers.1.{kind}" for kind in (
        "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj",
        "mlp.down_proj")]


def test_fingerprint_follows_the_content(tmp_path):
    copy = tmp_path / "model"
    shutil.copytree(GOLDEN / "llama", copy)
    before = fingerprint(copy)
    assert before == fingerprint(GOLDEN / "llama") != fingerprint(GOLDEN / "opt")
    weights = bytearray((copy / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (copy / "model.safetensors").write_bytes(weights)
    assert fingerprint(copy) != before


def test_fingerprint_of_a_large_file_sees_a_changed_matrix(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.truncate(320 * 2**20)
        file.flush()
        before = fingerprint(tmp_path)
        file.seek(100 * 2**20)
        file.write(b"x" * 6 * 2**20)  # one matrix somewhere in the middle, as wide as the pieces lie apart
    assert fingerprint(tmp_path) != before


def broken(tmp_path, case: str):
    folder = tmp_path / "model"
    shutil.copytree(GOLDEN / "llama", folder)
    if case == "pickled":
        (folder / "model.safetensors").unlink()
        torch.save({}, folder / "pytorch_model.bin")
    elif case == "torn":
        (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:1000])
    elif case == "own code":
        config = json.loads((folder / "config.json").read_text())
        config |= {"model_type": "mine", "auto_map": {"AutoModelForCausalLM": "code.Mine", "AutoConfig": "code.Config"}}
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "code.py").write_text("raise SystemExit('code of the model was run')")
    elif case == "encoder-decoder":
        from transformers import T5Config, T5ForConditionalGeneration

        shutil.rmtree(folder)
        tiny = T5Config(vocab_size=32, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
        T5ForConditionalGeneration(tiny).save_pretrained(folder)
    elif case == "no config":
        (folder / "config.json").unlink()
    return folder


@pytest.mark.parametrize(("case", "message"), [
    ("pickled", "holds no .safetensors weights"),
    ("torn", "cannot be loaded"),
    ("own code", "cannot be loaded"),
    ("encoder-decoder", "cannot be loaded"),
    ("no config", "is a directory without config.json"),
])
def test_broken_directories_get_one_sentence(case, message, tmp_path):
    with pytest.raises(pk.UsageError) as refused:
        pk.load_model(broken(tmp_path, case))
    assert message in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize(("source", "message"), [
    ("embedded/lama", "(did you mean 'embedded/llama'?)"),
    ("./nowhere", "is not a directory"),
    ("/nowhere/at/all", "is not a directory"),
    ("a model", "is not a directory"),
])
def test_names_that_are_no_model(source, message):
    with pytest.raises(pk.UsageError) as refused:
        pk.load_model(source)
    assert message in str(refused.value)


def test_a_hub_id_out_of_reach_is_one_sentence(monkeypatch):
    monkeypatch.setattr("prunekit.hub._reachable", lambda endpoint: False)
    with pytest.raises(pk.UsageError, match="check the spelling and the network"):
        pk.load_model("nobody/no-such-model")


@pytest.mark.parametrize("options", [{"dtype": "int8"}, {"device": "cuda:99"}, {"device": "tpu"}])
def test_dtypes_and_devices_that_are_not_there(options):
    with pytest.raises(pk.UsageError):
        pk.load_model(GOLDEN / "llama", **options)
