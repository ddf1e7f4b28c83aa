"""A small LLaMA as a GGUF file, written with the gguf package alone, and what its tensors are."""
from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import torch
from transformers.convert_slow_tokenizer import bytes_to_unicode

WIDTH, INNER, HEADS, GROUPS, BLOCKS, VOCABULARY = 64, 96, 4, 2, 2, 259
NAMES = {"attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
         "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
         "ffn_down": "mlp.down_proj"}


def write(path: Path) -> dict[str, torch.Tensor]:
    """Write the file: linear layers in Q4_1, embeddings in Q8_0, norms in float32. The tensors that it holds,
    by their names in transformers, dequantized by the gguf package, float32."""
    random = np.random.default_rng(0)
    writer, stored = gguf.GGUFWriter(path, "llama"), {}
    key_width = WIDTH // HEADS * GROUPS
    shapes = {"attn_q": (WIDTH, WIDTH), "attn_k": (key_width, WIDTH), "attn_v": (key_width, WIDTH),
              "attn_output": (WIDTH, WIDTH), "ffn_gate": (INNER, WIDTH), "ffn_up": (INNER, WIDTH),
              "ffn_down": (WIDTH, INNER)}

    def add(name: str, there: str, shape: tuple[int, ...], kind: gguf.GGMLQuantizationType, heads: int = 0):
        packed = gguf.quantize((0.1 * random.standard_normal(shape)).astype(np.float32), kind)
        writer.add_tensor(name, packed, raw_dtype=kind)
        plain = torch.from_numpy(gguf.dequantize(packed, kind).copy())
        if heads:  # llama.cpp turns neighbours, transformers halves of a head: undone row by row
            size = shape[0] // heads
            rows = [head * size + 2 * i + half for head in range(heads) for half in (0, 1)
                    for i in range(size // 2)]
            plain = plain[rows]
        stored[there] = plain

    Q4_1, Q8_0, F32 = (gguf.GGMLQuantizationType[kind] for kind in ("Q4_1", "Q8_0", "F32"))
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_1)
    writer.add_name("tiny")
    writer.add_block_count(BLOCKS)
    writer.add_context_length(256)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(GROUPS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(VOCABULARY)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(["<s>", "</s>", *bytes_to_unicode().values(), "ab"])
    writer.add_token_types([gguf.TokenType.CONTROL] * 2 + [gguf.TokenType.NORMAL] * 257)
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    add("token_embd.weight", "model.embed_tokens.weight", (VOCABULARY, WIDTH), Q8_0)
    add("output_norm.weight", "model.norm.weight", (WIDTH,), F32)
    for block in range(BLOCKS):
        for name in ("attn_norm", "ffn_norm"):
            there = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}[name]
            add(f"blk.{block}.{name}.weight", f"model.layers.{block}.{there}.weight", (WIDTH,), F32)
        for name, shape in shapes.items():
            heads = {"attn_q": HEADS, "attn_k": GROUPS}.get(name, 0)
            there = f"model.layers.{block}.{NAMES[name]}.weight"
            add(f"blk.{block}.{name}.weight", there, shape, Q4_1, heads)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return stored
