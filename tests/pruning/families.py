"""Tiny random models of every decoder family that is tested, and what is prunable in each."""
from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from prunekit.models import layers

VOCAB, HIDDEN, BLOCKS, HEADS = 128, 32, 3, 4
_PLAIN = {"vocab_size": VOCAB, "hidden_size": HIDDEN, "num_hidden_layers": BLOCKS,
          "num_attention_heads": HEADS, "max_position_embeddings": 64}
_TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_GATED = _PLAIN | {"intermediate_size": 48, "num_key_value_heads": 2}
_HEAD = {"head_dim": 8}
_EXPERTS = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 16}


@dataclass(frozen=True)
class Family:
    """`linears`: prunable linear maps per block, experts counted one by one."""

    name: str
    model_type: str
    blocks: str
    linears: int
    config: dict[str, Any]
    notes: str = ""
    experts: int = 0

    def model(self, **changes: Any) -> nn.Module:
        torch.manual_seed(0)
        config = AutoConfig.for_model(self.model_type, **(_TOKENS | self.config | changes))
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
        with torch.no_grad():
            # away from the small initial values, so that every block matters
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
        return model


FAMILIES = {family.name: family for family in (
    Family("LLaMA", "llama", "model.layers", 7, _GATED),
    Family("Mistral", "mistral", "model.layers", 7, _GATED | _HEAD | {"sliding_window": 4}, "sliding window"),
    Family("Qwen2", "qwen2", "model.layers", 7, _GATED, "biases on q, k, v"),
    Family("Qwen3", "qwen3", "model.layers", 7, _GATED | _HEAD, "norms on q, k"),
    Family("Gemma 2", "gemma2", "model.layers", 7,
           _GATED | _HEAD | {"sliding_window": 4, "query_pre_attn_scalar": 8},
           "alternating local and global attention"),
    Family("Gemma 3", "gemma3_text", "model.layers", 7,
           _GATED | _HEAD | {"sliding_window": 4, "query_pre_attn_scalar": 8, "sliding_window_pattern": 2},
           "alternating attention, two rotary bases"),
    Family("Gemma 4", "gemma4_text", "model.layers", 9,
           _GATED | _HEAD | {"sliding_window": 4, "global_head_dim": 8, "num_global_key_value_heads": 2,
                             "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": VOCAB,
                             "num_kv_shared_layers": 0,
                             "layer_types": ["sliding_attention", "full_attention", "full_attention"]},
           "alternating attention; every block reads the token ids too"),
    Family("Phi-3", "phi3", "model.layers", 4, _GATED, "q, k, v and gate, up are fused"),
    Family("OPT", "opt", "model.decoder.layers", 6, _PLAIN | {"ffn_dim": 48, "word_embed_proj_dim": HIDDEN},
           "learned positions, biases"),
    Family("GPT-NeoX", "gpt_neox", "gpt_neox.layers", 4, _PLAIN | {"intermediate_size": 48},
           "q, k, v fused, attention parallel to the MLP"),
    Family("Falcon", "falcon", "transformer.h", 4,
           _PLAIN | {"new_decoder_architecture": False, "multi_query": True},
           "q, k, v fused, attention parallel to the MLP"),
    Family("BLOOM", "bloom", "transformer.h", 4,
           {"vocab_size": VOCAB, "hidden_size": HIDDEN, "n_layer": BLOCKS, "n_head": HEADS}, "ALiBi"),
    Family("GPT-2", "gpt2", "transformer.h", 4,
           {"vocab_size": VOCAB, "n_embd": HIDDEN, "n_layer": BLOCKS, "n_head": HEADS, "n_positions": 64},
           "Conv1D: stored transposed"),
    Family("StarCoder2", "starcoder2", "model.layers", 6, _GATED | {"sliding_window": 4}, "biases"),
    Family("OLMo 2", "olmo2", "model.layers", 7, _GATED, "norms after attention and MLP"),
    Family("Mixtral", "mixtral", "model.layers", 4 + 2 * 4,
           _GATED | {"num_local_experts": 4, "num_experts_per_tok": 2}, "4 experts here", experts=4),
    Family("Qwen2-MoE", "qwen2_moe", "model.layers", 4 + 3 + 2 * 8,
           _GATED | _EXPERTS | {"shared_expert_intermediate_size": 24}, "8 experts here and a shared one",
           experts=8),
    Family("Qwen3-MoE", "qwen3_moe", "model.layers", 4 + 2 * 8, _GATED | _HEAD | _EXPERTS, "8 experts here",
           experts=8),
    Family("GPT-OSS", "gpt_oss", "model.layers", 4 + 2 * 8,
           _GATED | _HEAD | {"num_local_experts": 8, "num_experts_per_tok": 2, "sliding_window": 4},
           "8 experts here, stored transposed; attention sinks", experts=8),
    Family("Llama 4", "llama4_text", "model.layers", 7 + 2 * 4,
           _GATED | _HEAD | {"num_local_experts": 4, "num_experts_per_tok": 2, "intermediate_size_mlp": 48,
                             "interleave_moe_layer_step": 1, "attention_chunk_size": 4},
           "4 experts here, all in one product, and a shared one; chunked attention", experts=4),
)}

_N = {"n_embd": HIDDEN, "n_layer": BLOCKS, "n_head": HEADS, "n_positions": 64}
_LATENT = {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8,
           "num_key_value_heads": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1,
           "topk_group": 1, "first_k_dense_replace": 1, "moe_intermediate_size": 16}
FURTHER = {model_type: Family(model_type, model_type, "", 0, {"vocab_size": VOCAB} | config)
           for model_type, config in {
    "gemma": _GATED | _HEAD, "stablelm": _GATED, "phi": _GATED, "nemotron": _GATED, "olmo": _GATED,
    "olmo3": _GATED, "granite": _GATED, "smollm3": _GATED, "exaone4": _GATED, "cohere": _GATED,
    "cohere2": _GATED, "glm4": _GATED | _HEAD, "apertus": _GATED, "ernie4_5": _GATED,
    "gptj": _N | {"rotary_dim": 4}, "codegen": _N | {"rotary_dim": 4, "n_ctx": 64}, "gpt_bigcode": _N,
    "mpt": {"d_model": HIDDEN, "n_heads": HEADS, "n_layers": BLOCKS, "max_seq_len": 64},
    "gpt_neo": {"hidden_size": HIDDEN, "num_layers": 2, "num_heads": HEADS,
                "attention_types": [[["global", "local"], 1]], "max_position_embeddings": 64},
    "granitemoe": _GATED | {"num_local_experts": 4, "num_experts_per_tok": 2},
    "olmoe": _GATED | {"num_experts": 4, "num_experts_per_tok": 2},
    "phimoe": _GATED | {"num_local_experts": 4},
    "deepseek_v2": _GATED | _LATENT, "deepseek_v3": _GATED | _LATENT,
    "glm4_moe": _GATED | _HEAD | {"n_routed_experts": 4, "num_experts_per_tok": 2,
                                  "moe_intermediate_size": 16},
    "ernie4_5_moe": _GATED | {"moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 16,
                              "moe_layer_start_index": 0},
    "minimax": _GATED | _HEAD | {"num_local_experts": 4, "block_size": 16}}.items()}
DBRX = Family("DBRX", "dbrx", "transformer.blocks", 0, {
    "d_model": HIDDEN, "n_heads": HEADS, "n_layers": BLOCKS, "max_seq_len": 64,
    "ffn_config": {"ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2},
    "attn_config": {"kv_n_heads": 2, "clip_qkv": 8, "rope_theta": 10000.0}})


def table(families: dict[str, Family] = FAMILIES) -> str:
    """The families as rows of a Markdown table."""
    head = ["| family | decoder blocks | linears per block | notes |", "|---|---|---|---|"]
    return "\n".join(head + [f"| {f.name} | `{f.blocks}` | {_count(f)} | {f.notes} |"
                             for f in families.values()])


def _count(family: Family) -> str:
    return f"{family.linears - 2 * family.experts} + 2 per expert" if family.experts else str(family.linears)


@contextmanager
def outputs_of(block: nn.Module) -> Iterator[list[torch.Tensor]]:
    """For a while, record what a block returns."""
    outputs: list[torch.Tensor] = []
    handle = block.register_forward_hook(
        lambda module, args, output: outputs.append((output if isinstance(output, torch.Tensor)
                                                     else output[0]).clone()))
    yield outputs
    handle.remove()


def block_outputs(model: nn.Module, blocks: str, ids: torch.Tensor) -> list[torch.Tensor]:
    """What every block returns in one ordinary forward pass."""
    with ExitStack() as stack, torch.no_grad():
        outputs = [stack.enter_context(outputs_of(block)) for block in model.get_submodule(blocks)]
        model(input_ids=ids, use_cache=False)
    return [torch.cat(output) for output in outputs]


def windows(n: int = 4, seqlen: int = 12, seed: int = 0) -> torch.Tensor:
    return torch.randint(3, VOCAB, (n, seqlen), generator=torch.Generator().manual_seed(seed))


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """Copies of what can be pruned, by layer."""
    return {layer.name: layer.weight.clone() for layer in layers(model)}


def assert_close(mine: Mapping[str, torch.Tensor], theirs: Mapping[str, torch.Tensor]) -> None:
    """The same by layer, of all linear layers of a LLaMA."""
    assert set(mine) == set(theirs) and len(mine) == 7 * BLOCKS
    for name, tensor in mine.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=1e-4, atol=1e-5)
