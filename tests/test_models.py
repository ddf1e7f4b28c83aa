from __future__ import annotations

import json
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import prunekit as pk
from prunekit.models import fingerprint, locate, prunable_layers
from prunekit.workbook import checks
from tests.conftest import GOLDEN
from tests.pruning.families import FAMILIES


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


@pytest.mark.parametrize(("device", "gpus", "expected"),
                         [("auto", 2, True), ("balanced", 2, True), ("balanced", 1, True),
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
        "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj",
        "mlp.up_proj", "mlp.down_proj")]


def test_fingerprint_follows_the_content(tmp_path):
    copy = tmp_path / "model"
    shutil.copytree(GOLDEN / "llama", copy)
    before = fingerprint(copy)
    assert before == fingerprint(GOLDEN / "llama") != fingerprint(GOLDEN / "opt")
    weights = bytearray((copy / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (copy / "model.safetensors").write_bytes(weights)
    assert fingerprint(copy) != before


@pytest.mark.parametrize("name", ["tokenizer.model", "chat_template.jinja", "merges.txt", "vocab.txt"])
def test_fingerprint_sees_what_makes_tokens_of_text(name, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    before = fingerprint(tmp_path)
    (tmp_path / "LICENSE.txt").write_text("yours")
    assert fingerprint(tmp_path) == before
    (tmp_path / name).write_text("a b")
    assert fingerprint(tmp_path) != before


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
    ("encoder-decoder", "cannot be loaded"),
    ("no config", "holds neither config.json nor a GGUF file"),
])
def test_broken_directories_get_one_sentence(case, message, tmp_path):
    with pytest.raises(pk.UsageError) as refused:
        pk.load_model(broken(tmp_path, case))
    assert message in str(refused.value) and "\n" not in str(refused.value)


# --- what the files hold, by load_model and from disk to disk --------------------------------------------


def checkpoint(tmp_path: Path, settings: dict[str, Any] | None = None, **tensors: torch.Tensor) -> Path:
    """The golden LLaMA (2 blocks, 32 wide) with other settings and further tensors."""
    folder = tmp_path / "model"
    shutil.copytree(GOLDEN / "llama", folder)
    config, weights = folder / "config.json", folder / "model.safetensors"
    config.write_text(json.dumps(json.loads(config.read_text()) | (settings or {})))
    save_file(load_file(weights) | tensors, weights, {"format": "pt"})
    return folder


def loaded(folder: Path) -> None:
    pk.load_model(folder)


def streamed(folder: Path) -> None:
    pk.prune_checkpoint(folder, folder.with_name("pruned"), None, "magnitude", 0.5, progress=False)


both = pytest.mark.parametrize("read", [loaded, streamed])


@both
@pytest.mark.parametrize(("config", "tensors", "message"), [
    ({"num_hidden_layers": 3}, {}, r"no tensor for model\.layers\.2\.input_layernorm\.weight, .* and 6 more"),
    ({"attention_bias": True}, {}, r"no tensor for model\.layers\.0\.self_attn\.k_proj\.bias"),
    ({"num_hidden_layers": 1}, {}, r"no place for: model\.layers\.1\.input_layernorm\.weight, .* and 6 more"),
    ({}, {"score.weight": torch.zeros(2, 32)}, r"no place for: score\.weight\."),
    ({"intermediate_size": 164}, {}, r"model\.layers\.0\.mlp\.down_proj\.weight \(32, 160\) for \(32, 164\)"),
    ({"num_hidden_layers": 1, "num_nextn_predict_layers": 0}, {}, "no place for"),
])
def test_files_that_do_not_fill_the_model_are_refused(read, config, tensors, message, tmp_path):
    with pytest.raises(pk.UsageError, match=f"does not belong to its config.json: .*{message}") as refused:
        read(checkpoint(tmp_path, config, **tensors))
    assert "\n" not in str(refused.value) and not (tmp_path / "pruned").exists()


@both
@pytest.mark.parametrize(("config", "name"), [
    ({}, "model.layers.0.self_attn.rotary_emb.inv_freq"), ({}, "model.layers.0.attn.attention.masked_bias"),
    ({}, "mtp.layers.2.mlp.up_proj.weight"), ({}, "vision_tower.layers.2.mlp.up_proj.weight"),
    ({"num_nextn_predict_layers": 1}, "model.layers.2.mlp.up_proj.weight")])
def test_tensors_that_next_tokens_do_not_need_are_harmless(read, config, name, tmp_path):
    read(checkpoint(tmp_path, config, **{name: torch.zeros(2)}))


@both
def test_a_mixture_that_lacks_an_expert_is_refused(read, tmp_path):
    FAMILIES["Mixtral"].model().save_pretrained(tmp_path / "model")
    weights = tmp_path / "model/model.safetensors"
    tensors = load_file(weights)
    experts = [name for name in tensors if ".layers.1." in name and ".experts.2." in name]
    assert len(experts) == 3
    for gone in (experts[:1], experts):  # of the three maps of an expert one, or all
        save_file({name: t for name, t in tensors.items() if name not in gone}, weights, {"format": "pt"})
        with pytest.raises(pk.UsageError, match="does not belong|cannot be loaded"):
            read(tmp_path / "model")


@both
def test_a_mistyped_tie_leaves_no_random_head(read, tmp_path):
    """A base model's checkpoint is whole where the head is tied to the embedding, and only there."""
    FAMILIES["LLaMA"].model(tie_word_embeddings=True).base_model.save_pretrained(tmp_path / "model")
    read(tmp_path / "model")
    shutil.rmtree(tmp_path / "model")
    FAMILIES["LLaMA"].model().base_model.save_pretrained(tmp_path / "model")
    with pytest.raises(pk.UsageError, match=r"no tensor for lm_head\.weight"):
        read(tmp_path / "model")


@both
@pytest.mark.parametrize("method", [
    "modelopt", "gptq", "awq", "compressed-tensors", "hqq", "torchao", "fp8", "mxfp4"])
@pytest.mark.parametrize("inside", [False, True])
def test_quantized_checkpoints_are_refused_by_name(read, method, inside, tmp_path):
    settings = {"quantization_config": {"quant_method": method}}
    folder = checkpoint(tmp_path, {"text_config": settings} if inside else settings)
    (folder / "model.safetensors").write_bytes(b"is not read")
    with pytest.raises(pk.UsageError, match=rf"quantized \({method}\)"):
        read(folder)


@both
def test_quantized_checkpoints_that_name_no_method(read, tmp_path):
    with pytest.raises(pk.UsageError, match=r"quantized \(bitsandbytes\)"):
        read(checkpoint(tmp_path, {"quantization_config": {"load_in_4bit": True}}))


@both
@pytest.mark.parametrize(("file", "message"), [
    ("hf_quant_config.json", r"quantized \(modelopt\)"), ("adapter_config.json", "holds an adapter beside")])
def test_files_that_change_what_the_weights_mean_are_not_passed_over(read, file, message, tmp_path):
    folder = checkpoint(tmp_path)
    (folder / file).write_text("{}")
    with pytest.raises(pk.UsageError, match=message):
        read(folder)


@both
@pytest.mark.parametrize("model_type", ["mine", "llama"])
def test_no_code_of_a_model_is_run(read, model_type, tmp_path, monkeypatch):
    """Whatever stands on standard input, where transformers would ask."""
    names = {"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M", "AutoTokenizer": ["code.T", None]}
    folder = checkpoint(tmp_path, {"model_type": model_type, "auto_map": names})
    (folder / "tokenizer_config.json").write_text(json.dumps({"auto_map": names}))
    (folder / "code.py").write_text(
        f"open({str(tmp_path / 'was run')!r}, 'w')\n"
        "from transformers import LlamaConfig as C, LlamaForCausalLM as M, PreTrainedTokenizerFast as T\n")
    monkeypatch.setattr("builtins.input", lambda prompt: "y")
    with pytest.raises(pk.UsageError) if model_type == "mine" or read is loaded else nullcontext() as refused:
        read(folder)
    assert not (tmp_path / "was run").exists()
    if model_type == "mine":
        assert "needs code of its own" in str(refused.value)


@pytest.mark.parametrize(("name", "wrong"), [
    *((name, "") for name in ("embedded/opt", "gpt2", "facebook/opt-125m", "org/name/FILE.gguf", "one",
                              "one/a.gguf", "embeddings/small")),
    ("embedded/lama", "is not an embedded model (did you mean 'embedded/llama'?)"), ("", "names no model"),
    *((name, "does not exist; allowed are") for name in ("./nowhere", "/nowhere/at/all", "a model", "a/b/c",
                                                         ".cache/model", "org/FILE.gguf", "one/typed wrongly",
                                                         "one/typo")),
    ("models/SmolLM2-135M-Instruct.Q4_1.gguf", "does not exist: `prunekit models get smollm2` brings it"),
    ("none", "holds neither config.json nor a GGUF file"), ("two", "holds 2 GGUF files: name one")])
def test_what_names_a_model_is_decided_once(name, wrong, tmp_path, monkeypatch):
    """For whatever loads one as for a parameter or an option."""
    monkeypatch.chdir(tmp_path)
    for file in ("one/a.gguf", "two/a.gguf", "two/b.gguf", "none/a.txt"):
        Path(file).parent.mkdir(exist_ok=True)
        Path(file).touch()
    said = checks.model(name)
    if not wrong:
        assert said is None and locate(name)
        return
    with pytest.raises(pk.UsageError) as refused:
        locate(name)
    assert wrong in said and wrong in str(refused.value)


def test_a_hub_id_out_of_reach_is_one_sentence(monkeypatch):
    monkeypatch.setattr("prunekit.hub._reachable", lambda endpoint: False)
    with pytest.raises(pk.UsageError, match="check the spelling and the network"):
        pk.load_model("nobody/no-such-model")


@pytest.mark.parametrize("options", [{"dtype": "int8"}, {"device": "cuda:99"}, {"device": "tpu"}])
def test_dtypes_and_devices_that_are_not_there(options):
    with pytest.raises(pk.UsageError):
        pk.load_model(GOLDEN / "llama", **options)
