"""LoRA that keeps the zeros: what is trained is what is merged, killed or not."""
from __future__ import annotations

import json
import math
import random
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from scipy import stats
from torch import nn
from transformers import AutoModelForCausalLM

import prunekit as pk
from prunekit.choices import EMBEDDED
from prunekit.cli import main
from prunekit.evaluate.intervals import percentiles, resampled
from prunekit.evaluate.perplexity import Perplexity
from prunekit.lora import finetune, training
from prunekit.lora import layers as lora_layers
from prunekit.lora.options import LoraOptions
from prunekit.models import prunable_layers
from tests.pruning.families import FAMILIES, weights, windows

FAST = LoraOptions(rank=4, dropout=0.0, target_modules=("all-linear",), learning_rate=0.02, batch=2,
                   validation=0.0)


def pruned(family="LLaMA", pattern="2:4", dtype=torch.float32):
    model = FAMILIES[family].model().to(dtype)
    pk.prune(model, None, "magnitude", 0.5, pattern, progress=False)
    return model


def logits(model, ids):
    with torch.no_grad():
        return model(input_ids=ids).logits


# ---------------------------------------------------------------- the masked product

@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("whole", [False, True])
def test_the_product_and_its_gradients_are_those_of_the_plain_formula(whole, transposed):
    torch.manual_seed(0)
    W = torch.randn(5, 6, dtype=torch.double) * (torch.rand(5, 6) > 0.5)
    A, B = (torch.randn(*shape, dtype=torch.double, requires_grad=True) for shape in ((3, 6), (5, 3)))
    x = torch.randn(2, 4, 6, dtype=torch.double, requires_grad=True)
    stored = W.T.contiguous() if transposed else W

    def mine(x, A, B):
        return lora_layers._MaskedProduct.apply(x, A, B, stored, None, 1.7, transposed, whole)

    plain = F.linear(x, (W if whole else 0) + (W != 0) * (B @ A) * 1.7)
    torch.testing.assert_close(mine(x, A, B), plain, rtol=1e-12, atol=1e-12)
    upstream = torch.randn_like(plain)
    for a, b in zip(torch.autograd.grad(mine(x, A, B), (x, A, B), upstream),
                    torch.autograd.grad(plain, (x, A, B), upstream), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    assert torch.autograd.gradcheck(mine, (x, A, B))


def test_masked_places_change_no_bit_not_even_the_sign_of_zero():
    model = nn.Sequential(nn.Linear(4, 1, bias=False)).to(torch.bfloat16)
    model[0].weight.data = torch.tensor([[0.0, -0.0, 1.0, -2.0]], dtype=torch.bfloat16)
    plain = LoraConfig(r=1, lora_alpha=0.5, target_modules=["0"], init_lora_weights=False)
    config = lora_layers.with_masks(plain, True)
    layer = get_peft_model(model, config).base_model.model[0]
    for part in (layer.lora_A, layer.lora_B):
        nn.init.ones_(part["default"].weight)
    before = layer.weight.clone()
    lora_layers.merge_layer(layer, True)
    assert torch.equal(layer.weight.view(torch.int16)[0, :2], before.view(torch.int16)[0, :2])
    assert layer.weight[0, 2:].tolist() == [1.5, -1.5]


def test_dropout_acts_on_the_input_of_the_low_rank_path_only():
    model = nn.Sequential(nn.Linear(6, 5))
    with torch.no_grad():
        model[0].weight[:, ::2] = 0
    plain = LoraConfig(r=2, lora_alpha=4, lora_dropout=0.5, target_modules=["0"])
    config = lora_layers.with_masks(plain, True)
    layer = get_peft_model(model, config).train().base_model.model[0]
    nn.init.normal_(layer.lora_B["default"].weight)
    x, W, bias = torch.randn(7, 6), layer.base_layer.weight, layer.base_layer.bias
    delta = (W != 0) * (layer.lora_B["default"].weight @ layer.lora_A["default"].weight) * 2
    torch.manual_seed(3)
    dropped = F.dropout(x, 0.5)
    torch.manual_seed(3)
    torch.testing.assert_close(layer(x), F.linear(x, W, bias) + F.linear(dropped, delta))
    torch.testing.assert_close(layer.eval()(x), F.linear(x, W + delta, bias))


def test_without_zeros_masked_and_plain_training_agree():
    ids = windows(12, 10)
    runs = []
    for masked in (True, False):
        model = FAMILIES["LLaMA"].model().double()
        pk.finetune_lora(model, ids, replace(FAST, dropout=0.3), masked=masked, progress=False).merge()
        runs.append(weights(model))
    for name, weight in runs[0].items():
        torch.testing.assert_close(weight, runs[1][name], rtol=1e-5, atol=1e-6)


# ---------------------------------------------------------------- what is trained is what is merged

@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("pattern", ["2:4", "4:8", "unstructured"])
@pytest.mark.parametrize("family", ["LLaMA", "OPT"])
def test_merging_keeps_every_zero_and_computes_what_was_trained(family, pattern, dtype):
    model, ids = pruned(family, pattern, dtype), windows(16, 10)
    before = weights(model)
    tuned = pk.finetune_lora(model, ids, replace(FAST, learning_rate=0.1), progress=False)
    trained = logits(model, ids)
    assert tuned.merge() is model and not any(isinstance(module, LoraLayer) for module in model.modules())
    assert torch.equal(logits(model, ids), trained)
    for name, weight in weights(model).items():
        assert torch.equal(weight == 0, before[name] == 0) and not torch.equal(weight, before[name])
        assert weight.dtype == dtype
        if ":" in pattern:
            m = int(pattern[2])
            assert ((weight.reshape(-1, m) == 0).sum(1) == m // 2).all()
    frame = tuned.to_frame()
    assert frame["lost"].eq(0).all() and frame["zeros"].equals(frame["zeros_before"])
    assert set(frame["pattern"]) == {pattern if ":" in pattern else ""}


def test_the_plain_merge_fills_the_zeros_in_and_says_so():
    model, ids = pruned(), windows(16, 10)
    before = weights(model)
    tuned = pk.finetune_lora(model, ids, FAST, masked=False, progress=False)
    tuned.merge()
    frame = tuned.to_frame().set_index("layer")
    after = weights(model)
    pk.mask_weights(model, {name: weight != 0 for name, weight in before.items()})
    assert all(torch.equal(weight, after[name] * (before[name] != 0))
               for name, weight in weights(model).items())
    for name, zeros in before.items():
        row, lost = frame.loc[name], int(((zeros == 0) & (after[name] != 0)).sum())
        assert row["lost"] == lost > 0.9 * row["zeros_before"]
    assert set(frame["pattern_before"]) == {"2:4"} and set(frame["pattern"]) == {""}


def test_plain_training_can_be_masked_at_the_merge():
    model, ids = pruned(), windows(16, 10)
    before = weights(model)
    tuned = pk.finetune_lora(model, ids, FAST, masked=False, progress=False)
    deltas = {name: model.get_submodule(name).get_delta_weight("default") for name in tuned.layers}
    tuned.merge(masked=True)
    for name, weight in weights(model).items():
        assert torch.equal(weight, before[name] + deltas[name] * (before[name] != 0))


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_every_family_keeps_its_zeros(family, tmp_path):
    model, ids = pruned(family.name), windows(4, 8)
    before = weights(model)
    tuned = pk.finetune_lora(model, ids, replace(FAST, target_modules=("query-value",)), progress=False)
    trained = logits(model, ids)
    tuned.save(tmp_path)
    config(fan_in_fan_out=family.name != "GPT-2")(tmp_path)  # a wrong one does no harm, as in peft
    loaded = pk.load_lora(pruned(family.name), tmp_path)
    assert loaded.masked and loaded.layers == tuned.layers and torch.equal(logits(loaded.model, ids), trained)
    model = tuned.merge()
    assert torch.equal(logits(loaded.merge(), ids), trained) and torch.equal(logits(model, ids), trained)
    after = weights(model)
    assert 0 < len(tuned.layers) <= 2 * 3
    for name, weight in before.items():
        assert torch.equal(after[name] == 0, weight == 0)
        assert torch.equal(after[name], weight) == (name not in tuned.layers)
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("changes, bound", [
    ({"gradient_checkpointing": True}, 1e-5),
    ({"bf16": True}, 0.25)])  # 0.10 here, as rounding turns signs of small gradients; at 1/5 of the rate 0.81
def test_less_memory_is_the_same_training(changes, bound):
    """The weights end close to one another, as a share of how far they went."""
    ids, before, results = windows(8, 10), weights(pruned()), []
    for options in (FAST, replace(FAST, **changes)):
        model = pruned()
        pk.finetune_lora(model, ids, options, progress=False).merge()
        results.append(weights(model))
    plain, other = results
    assert all(torch.equal(weight == 0, other[name] == 0) for name, weight in plain.items())
    apart, way = (sum((one[name] - plain[name]).square().sum() for name in plain) for one in (other, before))
    assert apart < bound**2 * way and (apart > 0 or "bf16" not in changes)


def test_it_learns_and_records_how():
    ids = windows(1, 12).repeat(200, 1)
    tuned = pk.finetune_lora(pruned(), ids, replace(FAST, validation=0.1, eval_samples=5), progress=False)
    start, *_, end = [record["eval_loss"] for record in tuned.records if "eval_loss" in record]
    assert end < start / 2
    widths = sum(sum(layer.weight.shape) for layer in prunable_layers(FAMILIES["LLaMA"].model())[0])
    assert tuned.costs["steps"] == 90 and tuned.costs["tokens"] == 180 * 12
    assert tuned.costs["trainable"] == 3 * 4 * widths
    assert tuned.costs["memory_mb"] > 50 and tuned.records[-1]["tokens"] == 2160
    seconds = [record["seconds"] for record in tuned.records]
    assert seconds == sorted(seconds)


@pytest.mark.parametrize(("epochs", "tokens"), [(0.5, 256), (2.0, 640), (0.01, 128)])
def test_tokens_are_those_that_were_read(epochs, tokens):
    """Of ten windows in batches of four the third holds two."""
    options = replace(FAST, batch=4, epochs=epochs)
    tuned = pk.finetune_lora(pruned(), windows(10, 32), options, progress=False)
    assert tuned.costs["tokens"] == tuned.records[-1]["tokens"] == tokens


# ---------------------------------------------------------------- on disk

def test_peft_alone_loads_the_file_and_computes_the_unmasked_product(tmp_path):
    ids = windows(16, 10)
    tuned = pk.finetune_lora(pruned(), ids, FAST, progress=False)
    masked = logits(tuned.model, ids)
    with tuned.unmasked() as model:
        unmasked = logits(model, ids)
    assert torch.equal(logits(tuned.model, ids), masked) and not torch.allclose(masked, unmasked, atol=1e-2)
    tuned.save(tmp_path)
    alone = PeftModel.from_pretrained(pruned(), str(tmp_path))
    assert torch.equal(logits(alone, ids), unmasked)
    again = pk.load_lora(pruned(), tmp_path)
    assert again.masked and sorted(again.layers) == sorted(tuned.layers)
    assert torch.equal(logits(again.model, ids), masked)
    assert torch.equal(logits(again.merge(), ids), masked)
    for name, keep in lora_layers.load_keep(tmp_path / "keep.safetensors").items():
        assert torch.equal(keep, weights(pruned())[name] != 0)


def test_a_merged_model_loads_in_plain_transformers_with_the_zeros_it_had(tmp_path):
    model, ids = pruned(), windows(8, 10)
    before = weights(model)
    pk.finetune_lora(model, ids, FAST, progress=False).merge().save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert torch.equal(logits(loaded, ids), logits(model, ids))
    for name, weight in weights(loaded).items():
        assert torch.equal(weight == 0, before[name] == 0)


def test_masks_of_any_width_survive_packing(tmp_path):
    keep = {"a": torch.rand(5, 13) > 0.5, "b": torch.rand(3, 16) > 0.5}
    lora_layers.save_keep(keep, tmp_path / "keep.safetensors")
    assert load_file(tmp_path / "keep.safetensors")["a"].shape == (5, 2)
    assert all(torch.equal(mask, keep[name])
               for name, mask in lora_layers.load_keep(tmp_path / "keep.safetensors").items())


# ---------------------------------------------------------------- adapters of others

def adapter_of_peft(model, folder, **config):
    """Random adapters as peft saves them, and what the model computes with them, in peft's hands alone."""
    torch.manual_seed(1)
    plain = {"r": 4, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj", "c_attn", "c_proj"]}
    with lora_layers.quiet_peft():
        adapters = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **plain | config)).eval()
    with torch.no_grad():
        for parameter in adapters.parameters():
            parameter += 0.1 * torch.randn_like(parameter) * parameter.requires_grad
    adapters.save_pretrained(str(folder))
    return logits(adapters, windows(4, 8))


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(("family", "config"), [
    ("LLaMA", {}),
    ("LLaMA", {"rank_pattern": {r"1\..*q_proj": 2}, "alpha_pattern": {"v_proj": 3}, "use_rslora": True}),
    ("LLaMA", {"layers_to_transform": [1], "exclude_modules": ["model.layers.1.self_attn.v_proj"]}),
    ("LLaMA", {"target_modules": r".*\.1\..*(up|down)_proj", "init_lora_weights": "gaussian"}),
    ("LLaMA", {"target_modules": ["lm_head", "k_proj"]}),
    ("LLaMA", {"modules_to_save": ["lm_head", "norm"]}),
    ("LLaMA", {"use_dora": True}),
    ("Qwen2", {"bias": "all"}),
    ("Qwen2", {"bias": "lora_only", "use_dora": True}),
    ("GPT-2", {"fan_in_fan_out": True}),
    ("GPT-2", {}),
    ("GPT-2", {"fan_in_fan_out": True, "use_dora": True}),
], ids=str)
def test_merging_gives_what_the_adapter_computed(family, config, tmp_path):
    wanted = adapter_of_peft(FAMILIES[family].model(), tmp_path, **config)
    dense = logits(FAMILIES[family].model(), windows(4, 8))
    assert (wanted - dense).abs().max() > 0.05
    tuned = pk.load_lora(FAMILIES[family].model(), tmp_path)
    assert torch.equal(logits(tuned.model, windows(4, 8)), wanted)
    torch.testing.assert_close(logits(tuned.merge(), windows(4, 8)), wanted, rtol=1e-5, atol=1e-5)
    assert not tuned.masked and tuned.to_frame()["lost"].eq(0).all()  # there were none


def refused(model, folder):
    """The sentence with which `load_lora` refuses, leaving the model as it was."""
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(pk.UsageError) as error:
        pk.load_lora(model, folder)
    assert "\n" not in str(error.value) and model.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    return str(error.value)


TIED = {"tie_word_embeddings": True}


@pytest.mark.parametrize(("config", "changes", "sentence"), [
    ({"target_modules": ["embed_tokens", "q_proj"]}, {}, "go to model.embed_tokens, which is no linear"),
    ({"target_modules": ["lm_head"]}, TIED, "lm_head.weight is shared with another module, which a merge"),
    ({"modules_to_save": ["lm_head"]}, TIED, "lm_head.weight is shared with another module, which a merge"),
    ({"lora_bias": True}, {}, "have lora_bias = true, which cannot be merged here"),
    ({"trainable_token_indices": [3]}, {}, "have trainable_token_indices = [3], which cannot be merged here"),
    ({"init_lora_weights": "pissa"}, {}, 'have init_lora_weights = "pissa", which cannot be merged here'),
    ({"layer_replication": [[0, 2], [1, 3]]}, {}, "have layer_replication = [[0, 2], [1, 3]], which cannot"),
    ({"alora_invocation_tokens": [3]}, {}, "have alora_invocation_tokens = [3], which cannot be merged here"),
], ids=str)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_adapters_that_are_not_known_are_refused_by_name(config, changes, sentence, tmp_path):
    adapter_of_peft(FAMILIES["LLaMA"].model(**changes), tmp_path, **config)
    assert sentence in refused(FAMILIES["LLaMA"].model(**changes), tmp_path)


def tensors(change):
    def rewrite(folder):
        file = folder / "adapter_model.safetensors"
        save_file({key: change(key, tensor) for key, tensor in load_file(file).items()}, file)
    return rewrite


def text(name, content):
    return lambda folder: (folder / name).write_text(content)


def config(**changes):
    def rewrite(folder):
        file = folder / "adapter_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return rewrite


@pytest.mark.parametrize(("change", "layers", "sentence"), [
    (config(), 4, "of another model, or broken: model.layers.3.self_attn.q_proj.lora_A.weight is not in the"),
    (config(), 2, "are of another model: it has no place for model.layers.2.self_attn.q_proj.lora_A.weight."),
    (lambda folder: save_file({}, folder / "adapter_model.safetensors"), 3, "lora_A.weight is not in the"),
    (tensors(lambda key, tensor: tensor.repeat(1, 2) if "lora_A" in key else tensor), 3,
     "of another model: model.layers.0.self_attn.q_proj.lora_A.weight is (4, 64) in the file and (4, 32)"),
    (tensors(lambda key, tensor: tensor * math.nan), 3, "lora_A.weight holds values that are no finite"),
    (tensors(lambda key, tensor: tensor.cfloat()), 3, "lora_A.weight holds values that are no finite"),
    (text("adapter_model.safetensors", "x" * 99), 3, "cannot be put into this model: Error while des"),
    (text("adapter_config.json", '{"r": 4,'), 3, "cannot be put into this model: Expecting property name"),
    (text("adapter_config.json", "[" * 100_000), 3, "cannot be put into this model: maximum recursion depth"),
    (text("adapter_config.json", "[]"), 3, "cannot be put into this model: "),
    (config(r="four"), 3, "cannot be put into this model: "),
    (config(target_modules=["nothing"]), 3, "cannot be put into this model: Target modules {'nothing'} not"),
    (config(peft_type="IA3"), 3, 'have peft_type = "IA3", which cannot be merged here'),
    (config(an_option_of_tomorrow=1), 3, "have an_option_of_tomorrow = 1, which cannot be merged here"),
    (config(bias="some"), 3, 'have bias = "some", which cannot be merged here'),
], ids=lambda value: value if isinstance(value, str) else "")
def test_an_adapter_of_another_model_or_broken_is_one_sentence(change, layers, sentence, tmp_path):
    adapter_of_peft(FAMILIES["LLaMA"].model(), tmp_path, target_modules=["q_proj"])
    change(tmp_path)
    assert sentence in refused(FAMILIES["LLaMA"].model(num_hidden_layers=layers), tmp_path)


def without_first(file):
    keep = lora_layers.load_keep(file)
    lora_layers.save_keep({name: keep[name] for name in sorted(keep)[1:]}, file)


BROKEN = "keep.safetensors holds no masks, or broken ones"


@pytest.mark.parametrize(("change", "sentence"), [
    (lambda file: file.write_bytes(b""), BROKEN),
    (lambda file: save_file(load_file(file), file), BROKEN),  # without the widths
    (lambda file: (file.unlink(), file.symlink_to("nowhere")), BROKEN),
    (without_first, "are not of the layers that its adapters go to"),
    (lambda file: config(use_dora=True)(file.parent), "have use_dora = true, which cannot be merged through"),
])
def test_masks_that_are_not_the_adapters_are_refused(change, sentence, tmp_path):
    pk.finetune_lora(pruned(), windows(4, 8), FAST, progress=False).save(tmp_path)
    change(tmp_path / "keep.safetensors")
    assert sentence in refused(pruned(), tmp_path)


# ---------------------------------------------------------------- killed and resumed

CHILD = """
import os, signal, sys, torch
torch.set_num_threads(1)
from dataclasses import replace
from prunekit.lora import finetune, training
from tests.lora.test_finetune import KILLED, pruned, windows
step, place, folder = int(sys.argv[1]), sys.argv[2], sys.argv[3]
plain = getattr(training.Watch, place)
def deadly(self, args, state, control, **more):
    if state.global_step == step:
        os.kill(os.getpid(), signal.SIGKILL)  # at on_save: the checkpoint is written, its mark is not
    plain(self, args, state, control, **more)
setattr(training.Watch, place, deadly)
finetune.finetune_lora(pruned(), windows(60, 8), KILLED, checkpoints=folder, progress=False)
"""
# Logged every 3 steps, so saved every 9.
KILLED = replace(FAST, dropout=0.3, epochs=4.0, save_every=7, validation=0.1)


def test_a_killed_run_goes_on_to_the_same_adapter_bit_for_bit(tmp_path):
    for step, place, left in ((20, "on_step_end", {"checkpoint-9", "checkpoint-18"}),
                              (36, "on_save", {"checkpoint-27", "checkpoint-36"})):
        killed = subprocess.run([sys.executable, "-c", CHILD, str(step), place, tmp_path / "a"],
                                capture_output=True, check=False)
        assert killed.returncode == -9, killed.stderr.decode()
        assert {folder.name for folder in (tmp_path / "a").iterdir()} == left
    again = pk.finetune_lora(pruned(), windows(60, 8), KILLED, checkpoints=tmp_path / "a", progress=False)
    whole = pk.finetune_lora(pruned(), windows(60, 8), KILLED, checkpoints=tmp_path / "b", progress=False)
    assert again.costs["steps"] == whole.costs["steps"] == 108
    again.save(tmp_path / "again"), whole.save(tmp_path / "whole")
    mine, theirs = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("again", "whole"))
    assert mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)
    curve = [[(r["step"], r.get("loss"), r.get("eval_loss")) for r in run.records] for run in (again, whole)]
    assert curve[0] == curve[1]


def test_no_moment_of_saving_leaves_adapters_without_their_own_masks(tmp_path, monkeypatch):
    other = lambda: pruned(pattern="4:8")
    plain = pk.finetune_lora(other(), windows(4, 8), FAST, masked=False, progress=False)
    tuned = pk.finetune_lora(pruned(), windows(4, 8), FAST, progress=False)
    plain.save(tmp_path)

    def stopped(module, name, after):
        write, calls = getattr(module, name), iter(range(9))

        def full(*given, **more):
            if next(calls) == after:
                raise OSError(28, "No space left on device")
            return write(*given, **more)

        with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
            patch.setattr(module, name, full)
            tuned.save(tmp_path)

    for module, name in ((lora_layers, "save_file"), (PeftModel, "save_pretrained")):
        stopped(module, name, 0)
        assert not pk.load_lora(other(), tmp_path).masked  # what was there is still there
    for after in range(5):
        stopped(finetune.os, "replace", after)
        assert "holds no adapter_model.safetensors with its" in refused(pruned(), tmp_path)
    tuned.save(tmp_path)
    assert pk.load_lora(pruned(), tmp_path).masked
    plain.save(tmp_path)
    assert not pk.load_lora(other(), tmp_path).masked and not any(tmp_path.glob(".*"))


def test_only_whole_checkpoints_of_the_same_job_are_read(tmp_path):
    ids = windows(12, 8)
    pk.finetune_lora(pruned(), ids, replace(FAST, save_every=2), checkpoints=tmp_path, progress=False)
    job = json.loads((tmp_path / "checkpoint-6/prunekit.json").read_text())["job"]
    assert training.resumable(tmp_path, job) == tmp_path / "checkpoint-6"
    (tmp_path / "checkpoint-6/optimizer.pt").write_bytes(b"anything else")  # damaged, or not ours
    assert training.resumable(tmp_path, job) == tmp_path / "checkpoint-4"
    (tmp_path / "checkpoint-4/prunekit.json").unlink()
    assert training.resumable(tmp_path, job) is None
    for other, change in (("options", {"options": FAST}), ("masked", {"masked": False}),
                          ("windows", {"windows": windows(12, 8, seed=1)})):
        asked = {"windows": ids, "options": replace(FAST, save_every=2), **change}
        with pytest.raises(pk.UsageError, match=rf"are of another fine-tuning \(other {other}\)"):
            pk.finetune_lora(pruned(), **asked, checkpoints=tmp_path, progress=False)


# ---------------------------------------------------------------- numbers and refusals

def test_the_recovered_share_by_hand():
    generator = np.random.default_rng(0)
    dense = generator.normal(1.0, 0.2, 50)
    of = lambda shift: Perplexity(dense + shift)
    value, low, high = pk.recovered(of(0), of(0.3), of(0.1))
    assert value == pytest.approx((math.exp(0.3) - math.exp(0.1)) / (math.exp(0.3) - 1))
    # Shifts alike in every window: no spread, being paired.
    assert low == pytest.approx(value) and high == pytest.approx(value)
    noisy = Perplexity(dense + 0.1 + generator.normal(0, 0.05, 50))
    value, low, high = pk.recovered(of(0), of(0.3), noisy)
    assert low < value < high and high - low < 0.3
    for other in (Perplexity(dense[:40]), Perplexity(dense, {"seqlen": 2048})):
        with pytest.raises(pk.UsageError, match="not paired"):
            pk.recovered(of(0), of(0.3), other)


def test_where_nothing_is_lost_no_share_comes_back():
    dense, pruned, tuned = (Perplexity(np.arange(8) / 8 + shift) for shift in (0, 0.3, 0.1))
    row = finetune.recovery(dense, pruned, tuned)
    share = row["recovered"], row["recovered_low"], row["recovered_high"]
    assert share == pk.recovered(dense, pruned, tuned)
    assert (row["tuned"], row["tuned_low"], row["tuned_high"]) == (tuned.value, *tuned.interval)
    assert math.isnan(finetune.recovery(dense, dense, tuned)["recovered"])
    for dense_as_lossy in (dense, pruned):
        assert all(map(math.isnan, pk.recovered(dense_as_lossy, dense, tuned)))


def test_the_recovered_shares_interval_is_scipys_bootstraps():
    def share(*means):
        d, p, t = np.exp(means)
        return (p - t) / (p - d)

    def of_windows(*nll, axis):
        return share(*(values.mean(axis) for values in nll))

    generator = np.random.default_rng(1)
    shifts = np.array([[0], [0.3], [0.1]]) + generator.normal(0, 0.1, (3, 1000))
    many = generator.normal(1.0, 0.2, 1000) + shifts
    found = stats.bootstrap(tuple(many), of_windows, paired=True, n_resamples=2000, rng=generator)
    low, high = found.confidence_interval
    _, *interval = pk.recovered(*map(Perplexity, many))
    assert interval == pytest.approx((low, high), abs=0.1 * (high - low))
    many = np.repeat(many[:, :250], 4, axis=1)  # neighbours resemble each other: weights that move together
    low, high = percentiles(share(*many @ resampled(1000, 0).T))
    _, *interval = pk.recovered(*map(Perplexity, many))
    assert interval == pytest.approx((low, high), abs=0.1 * (high - low))


@pytest.mark.parametrize(("make", "sentence"), [
    (lambda: LoraOptions(rank=0), "rank = 0 must be at least 1 (columns of A and B)."),
    (lambda: LoraOptions(rank=2.5), "rank = 2.5 must be a whole number."),
    (lambda: LoraOptions(batch=True), "batch = True must be a whole number."),
    (lambda: LoraOptions(eval_samples="8"), "eval_samples = '8' must be a whole number."),
    (lambda: LoraOptions(seed=-1), "seed = -1 must be at least 0 and below 4294967296."),
    (lambda: LoraOptions(dropout=1.0), "dropout = 1.0 must be at least 0 and below 1 (share, on the input"),
    (lambda: LoraOptions(validation=math.nan), "validation = nan must be a finite number."),
    (lambda: LoraOptions(learning_rate=0),
     "learning_rate = 0 must be greater than 0 (at the first step, then linearly to 0)."),
    (lambda: LoraOptions(learning_rate=math.inf), "learning_rate = inf must be a finite number."),
    (lambda: LoraOptions(epochs=None), "epochs = None must be a number."),
    (lambda: LoraOptions(target_modules=()),
     "target_modules = () is an empty list; it needs at least one entry."),
    (lambda: LoraOptions(target_modules="q_proj"),
     "target_modules = 'q_proj' must be a list, each entry text."),
    (lambda: pk.finetune_lora(pruned(), windows(4, 8), replace(FAST, rank=10**6)),
     "rank = 1000000 is more than that of the layers, at most 32; give less."),
    (lambda: pk.finetune_lora(pruned(), windows(4, 8), replace(FAST, learning_rate=1e38), progress=False),
     "the training diverged, and model.layers.0.self_attn.q_proj.lora_A.default.weight is no longer finite"),
    (lambda: lora_layers.target_layers(pruned(), ("q_prj",)),
     "target 'q_prj' is no linear layer of LlamaForCausalLM (did you mean 'q_proj'?)."),
    (lambda: lora_layers.target_layers(pruned("GPT-NeoX"), ("q_proj",)),
     "target 'q_proj' is no linear layer of GPTNeoXForCausalLM (known: "),
    (lambda: pk.finetune_lora(pruned(), torch.arange(9), FAST), "windows have shape (9,) and dtype"),
    (lambda: pk.load_lora(pruned(), "nowhere"),
     "folder nowhere holds no adapter_model.safetensors with its adapter_config.json;"),
])
def test_what_cannot_be_is_said_in_one_sentence(make, sentence):
    with pytest.raises(pk.UsageError) as refused:
        make()
    assert sentence in str(refused.value) and "\n" not in str(refused.value)


def test_adapters_go_into_no_other_model_and_are_merged_once(tmp_path):
    model = pruned()
    tuned = pk.finetune_lora(model, windows(4, 8), FAST, progress=False)
    tuned.save(tmp_path)
    for use in (lambda: pk.finetune_lora(model, windows(4, 8), FAST),
                lambda: pk.prune(model, None, "magnitude", 0.5),
                lambda: pk.prune(tuned.adapters, None, "magnitude", 0.5),
                lambda: pk.collect_gradients(model, windows(4, 8)),
                lambda: pk.collect_activations(model, windows(4, 8)),
                lambda: pk.load_lora(model, tmp_path)):
        with pytest.raises(pk.UsageError, match="the model carries adapters; merge them into its weights"):
            use()
    with pytest.raises(pk.UsageError, match=r"the zeros of layer .* are not those that the adapters in"):
        pk.load_lora(FAMILIES["LLaMA"].model(), tmp_path)
    tuned.merge()
    with pytest.raises(pk.UsageError, match="merged already"):
        tuned.save(tmp_path)


def test_a_failure_leaves_the_model_as_it_was(monkeypatch):
    model, ids = pruned(), windows(4, 8)
    before = logits(model, ids)
    monkeypatch.setattr(finetune, "train", lambda *arguments: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        pk.finetune_lora(model, ids, FAST, progress=False)
    assert torch.equal(logits(model, ids), before)
    assert not any(isinstance(module, LoraLayer) for module in model.modules())


def test_a_merge_that_overflows_is_said(tmp_path):
    adapter_of_peft(FAMILIES["LLaMA"].model(), tmp_path, lora_alpha=1e7)
    tuned = pk.load_lora(FAMILIES["LLaMA"].model().half(), tmp_path)
    with pytest.raises(pk.UsageError, match=r"layer model\.layers\.0\.self_attn\.q_proj is no longer finite"):
        tuned.merge()


# ---------------------------------------------------------------- the command

@pytest.mark.parametrize("plain", [False, True])
def test_the_command_before_after_and_merged(plain, tmp_path, capsys):
    import pandas as pd
    pruned().save_pretrained(tmp_path / "model")
    save_file({"train": windows(40, 12), "test": windows(6, 12, seed=1)}, tmp_path / "w.safetensors")
    given = [f"--windows={tmp_path}/w.safetensors", "--corpus=wikitext2", "--seqlen=12"]
    tuning = ["finetune", f"--model={tmp_path}/model", *given, "--block=12", "--nsamples=40",
              "--learning-rate=0.01", f"--output={tmp_path}/adapter", f"--save-model={tmp_path}/merged",
              f"--results={tmp_path}", "--target-modules", "q_proj", "up_proj", *["--plain"] * plain]
    assert main(tuning) == 0
    row = pd.read_csv(tmp_path / "results.csv").iloc[0]
    assert row.target_modules == "q_proj up_proj" and row.steps == 38
    assert (row.zeros == row.zeros_before) == (not plain)
    if plain:
        assert row.ppl_before != row.ppl_merged and abs(row.ppl_merged / row.ppl_unmasked - 1) < 1e-5
    else:
        assert row.ppl_merged != row.ppl_unmasked
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    after = {name: int((weight == 0).sum()) for name, weight in weights(model).items()}
    before = {name: int((weight == 0).sum()) for name, weight in weights(pruned()).items()}
    assert (after == before) == (not plain)
    capsys.readouterr()
    assert main(["evaluate", f"--model={tmp_path}/merged", *given]) == 0
    assert main(["evaluate", f"--model={tmp_path}/model", *given, f"--lora-weights={tmp_path}/adapter"]) == 0
    merged, loaded = (line.split()[1] for line in capsys.readouterr().out.splitlines())
    assert merged == loaded == f"{row.ppl_merged:.4f}"
    assert main(tuning) == 2 and "holds adapters already: give a new directory." in capsys.readouterr().err
    shutil.copy(tmp_path / "model/config.json", tmp_path / "adapter")
    assert main(["evaluate", f"--model={tmp_path}/adapter", *given]) == 2
    assert "holds an adapter beside its weights" in capsys.readouterr().err


def test_the_command_refuses_before_it_loads(capsys):
    for more, sentence in ((["--save-model", "./nowhere"], "--output nowhere is the directory of a model"),
                           (["--output", str(EMBEDDED["embedded/llama"])], "is the directory of a model"),
                           (["--learning-rate", "inf"], "--learning-rate inf must be a finite number."),
                           (["--rank", "0"], "--rank 0 must be at least 1 (columns of A and B)."),
                           (["--target-modules", "q proj"],
                            "--target-modules q proj must be the name of a linear layer as q_proj, or")):
        assert main(["finetune", "--model", "embedded/llama", "--output", "nowhere", *more]) == 2
        assert sentence in capsys.readouterr().err
    assert main(["evaluate", "--model", "embedded/llama", "--lora-weights", "nowhere"]) == 2
    assert "folder nowhere holds no adapter_model.safetensors" in capsys.readouterr().err


def test_a_model_that_differs_elsewhere_does_not_go_on_from_anothers_checkpoints(tmp_path):
    ids, options = windows(40, 8), replace(FAST, save_every=2)
    pk.finetune_lora(pruned(), ids, options, checkpoints=tmp_path, progress=False)
    other = pruned()
    mlp = other.model.layers[0].mlp.down_proj.weight
    mlp.data[0, :4] = 0  # no target of the adapters
    with pytest.raises(pk.UsageError, match=r"another fine-tuning \(other model\)"):
        pk.finetune_lora(other, ids, options, checkpoints=tmp_path, progress=False)


@pytest.mark.parametrize("mark", ["{", "[]", "{}", "[" * 100_000, '{"job": 3, "files": {}}'])
def test_a_damaged_mark_is_no_checkpoint(tmp_path, mark):
    (tmp_path / "checkpoint-2").mkdir()
    (tmp_path / "checkpoint-2" / "prunekit.json").write_text(mark)
    assert training.resumable(tmp_path, {"model": "a"}) is None


@pytest.mark.parametrize("recomputed", [False, True])
def test_afterwards_the_model_is_configured_as_before(recomputed):
    model = pruned()
    assert model.config.use_cache
    frozen = model.get_input_embeddings().weight.requires_grad_(False)
    model.train().get_input_embeddings().eval()
    modes = {name: module.training for name, module in model.named_modules()}
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    expected = random.random(), np.random.rand(), torch.rand(1).item()
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    pk.finetune_lora(model, windows(20, 8), replace(FAST, gradient_checkpointing=recomputed),
                     progress=False).merge()
    assert (random.random(), np.random.rand(), torch.rand(1).item()) == expected
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert model.config.use_cache and not frozen.requires_grad
    assert not model(windows(1, 8)).logits.requires_grad or any(p.requires_grad for p in model.parameters())
    assert not model.get_input_embeddings()._forward_hooks
