"""Models that also see: their language model is pruned, whatever the depth of the vision tower."""
from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForImageTextToText

import prunekit as pk
from tests.pruning.families import _GATED, _HEAD, _TOKENS, BLOCKS, windows

_TEXT = _TOKENS | _GATED
_IMAGES = {"image_token_id": 5, "video_token_id": 6, "vision_start_token_id": 7, "vision_end_token_id": 8}
_TOWER = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "image_size": 16,
          "patch_size": 4}
_QWEN = {"hidden_size": 32, "num_heads": 4, "patch_size": 4}


def seeing(family: str, depth: int) -> nn.Module:
    """A tiny random model with `depth` vision blocks."""
    tower = _TOWER | {"num_hidden_layers": depth}
    text, vision, more = {
        "gemma3": (_TEXT | _HEAD, tower | {"model_type": "siglip_vision_model"}, {"mm_tokens_per_image": 4}),
        "llava": (_TEXT | {"model_type": "llama"}, tower | {"model_type": "clip_vision_model"},
                  {"image_token_index": 5}),
        "qwen2_vl": (_TEXT | {"rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2]}},
                     _QWEN | {"depth": depth, "embed_dim": 32}, _IMAGES),
        "qwen3_vl": (_TEXT | _HEAD, _QWEN | {"depth": depth, "intermediate_size": 48, "out_hidden_size": 32,
                                             "deepstack_visual_indexes": [0, 1]}, _IMAGES)}[family]
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, text_config=text, vision_config=vision, **more)
    return AutoModelForImageTextToText.from_config(config, dtype=torch.float32).eval()


@pytest.mark.parametrize("depth", [2, BLOCKS])
@pytest.mark.parametrize("family", ["gemma3", "llava", "qwen2_vl", "qwen3_vl"])
@pytest.mark.parametrize("method", ["magnitude", "wanda"])
def test_the_language_models_blocks_are_pruned(family: str, depth: int, method: str):
    model = seeing(family, depth)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    report = pk.prune(model, windows(), method, 0.5, "2:4", progress=False)
    assert len(report.rows) == 7 * BLOCKS and report.sparsity == 0.5
    for name, tensor in model.state_dict().items():
        linear = ".language_model.layers." in name and "proj" in name and tensor.ndim == 2
        assert torch.equal(tensor, before[name]) != linear, name


@pytest.mark.parametrize("depth", [2, BLOCKS])
@pytest.mark.parametrize("method", ["magnitude", "wanda"])
def test_from_disk_to_disk_it_is_the_same(depth: int, method: str, tmp_path: Path):
    seeing("gemma3", depth).save_pretrained(tmp_path / "source")
    model, _ = pk.load_model(tmp_path / "source")
    report = pk.prune(model, windows(), method, 0.5, progress=False)
    target = tmp_path / "target"
    streamed = pk.prune_checkpoint(tmp_path / "source", target, windows(), method, 0.5, progress=False)
    assert streamed.rows == report.rows and all(".language_model." in row["layer"] for row in report.rows)
    again = pk.load_model(target)[0].state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in model.state_dict().items())
