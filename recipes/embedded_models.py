"""How the embedded models were made: `python -m recipes.embedded_models llama|opt --output DIR`.

A plain loop on one CPU thread: bfloat16 weights for the products, float32 masters for AdamW, fresh documents
throughout (no text is seen twice on purpose), learning rate up in a short ramp and down to zero. Killed runs
resume from DIR/checkpoint.
"""
from __future__ import annotations

import argparse
import json
import math
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from tqdm import tqdm
from transformers import (
    AttentionInterface,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from prunekit.embedded import world
from prunekit.errors import UsageError

END, PAD = "<|end|>", "<|pad|>"
VOCABULARY, WIDTH, BLOCKS, HEADS, POSITIONS = 2048, 192, 6, 4, 512
CHUNK = 128  # steps that share one stream of documents; checkpoints fall on its borders


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the result; written to training.json."""

    architecture: str
    tokens: int = 18_000_000
    seed: int = 0
    learning_rate: float = 2e-3
    weight_decay: float = 0.01  # matrices only
    warmup: int = 200  # steps
    decay: float = 0.6  # the last share of the steps, down to zero by a cosine
    batch: int = 2048  # tokens a step
    context: tuple[int, ...] = (128,) * 7 + (512,)  # window lengths, in turn
    initializer: float = 0.025  # standard deviation of the initial weights
    gain_spread: float = 0.7  # sigma of the log-normal initial gains of the norms inside the blocks


RECIPES = {"llama": Recipe("llama", learning_rate=1.5e-3, weight_decay=0.1),
           "opt": Recipe("opt", tokens=14_000_000)}


def train_tokenizer(characters: int = 6_000_000) -> PreTrainedTokenizerFast:
    """A byte-level BPE on text of the train role; digits stand alone, END closes every document."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=[END, PAD], show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(islice(world.documents("train"), characters // 400), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=END, eos_token=END, pad_token=PAD,
                                   clean_up_tokenization_spaces=False, model_max_length=POSITIONS)


def tokens_of(tokenizer: PreTrainedTokenizerFast, documents: Iterator[str], count: int) -> torch.Tensor:
    """The first `count` token ids of the documents, each closed by END: int64 (count,)."""
    ids: list[int] = []
    while len(ids) < count:
        for one in tokenizer(list(islice(documents, 64)), add_special_tokens=False)["input_ids"]:
            ids += one
            ids.append(tokenizer.eos_token_id)
    return torch.tensor(ids[:count])


def build(architecture: str, initializer: float = 0.02) -> PreTrainedModel:
    """A fresh model; every linear layer's width is a multiple of 8, so that 2:4 and 4:8 fit."""
    common = {"vocab_size": VOCABULARY, "hidden_size": WIDTH, "num_hidden_layers": BLOCKS,
              "num_attention_heads": HEADS,
              "max_position_embeddings": POSITIONS, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1}
    if architecture == "llama":
        return LlamaForCausalLM(LlamaConfig(intermediate_size=512, num_key_value_heads=2, rms_norm_eps=1e-5,
                                            initializer_range=initializer, tie_word_embeddings=False,
                                            **common))
    return OPTForCausalLM(OPTConfig(ffn_dim=768, word_embed_proj_dim=WIDTH, dropout=0.0,
                                    attention_dropout=0.0,
                                    init_std=initializer, tie_word_embeddings=True, **common))


def _attention(module, query, key, value, attention_mask, scaling, dropout=0.0, **_):
    """Causal attention as plain batched products: on a CPU in bfloat16 its backward is much faster."""
    batch, heads, length, width = query.shape
    shared = heads // key.shape[1]
    if shared > 1:
        key, value = key.repeat_interleave(shared, 1), value.repeat_interleave(shared, 1)
    future = torch.full((length, length), -math.inf, dtype=query.dtype).triu(1).expand(batch * heads, -1, -1)
    scores = torch.baddbmm(future, query.flatten(0, 1), key.flatten(0, 1).transpose(1, 2), alpha=scaling)
    mixed = torch.bmm(torch.softmax(scores, -1), value.flatten(0, 1))
    return mixed.view(batch, heads, length, width).transpose(1, 2).contiguous(), None


AttentionInterface.register("bmm", _attention)


class _CrossEntropy(torch.autograd.Function):
    """Mean cross-entropy of hidden (n, width) @ head.T (width, vocabulary) in slices that stay in the cache.

    Gradients are made on the way forward.
    """

    @staticmethod
    def forward(ctx, hidden, head, target, rows=256):
        total, count = 0.0, len(target)
        d_hidden, d_head = torch.empty_like(hidden), torch.zeros(head.shape)
        for start in range(0, count, rows):
            part, wanted = hidden[start:start + rows], target[start:start + rows, None]
            logits = (part @ head.t()).float()
            top = logits.amax(1, keepdim=True)
            right = logits.gather(1, wanted)
            share = logits.sub_(top).exp_()
            mass = share.sum(1, keepdim=True)
            total += (mass.log() + top - right).sum().item()
            share.div_(mass).scatter_add_(1, wanted, torch.full_like(right, -1.0))
            share = share.mul_(1 / count).to(hidden.dtype)
            torch.mm(share, head, out=d_hidden[start:start + rows])
            d_head += share.t() @ part
        ctx.save_for_backward(d_hidden, d_head.to(head.dtype))
        return hidden.new_tensor(total / count, dtype=torch.float32)

    @staticmethod
    def backward(ctx, gradient):
        d_hidden, d_head = ctx.saved_tensors
        return d_hidden, d_head, None, None


class Trainer:
    """Model in bfloat16, masters and optimizer in float32, and the steps between them."""

    def __init__(self, recipe: Recipe, compiled: bool = False) -> None:
        torch.manual_seed(recipe.seed)
        self.recipe, self.step, self.curve = recipe, 0, []
        self.steps = recipe.tokens // recipe.batch
        self.model = build(recipe.architecture, recipe.initializer)
        self._spread_gains()
        self.model.set_attn_implementation("bmm")
        self.masters = {name: p.detach().clone() for name, p in self.model.named_parameters()}
        self.model.bfloat16().train()
        matrices = [p for p in self.masters.values() if p.dim() > 1]
        gains = [p for p in self.masters.values() if p.dim() < 2]
        self.optimizer = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": recipe.weight_decay},
             {"params": gains, "weight_decay": 0.0}],
            lr=recipe.learning_rate, betas=(0.9, 0.99), fused=True)
        body = self.model.get_decoder()
        self.body = torch.compile(body) if compiled else body

    def _spread_gains(self) -> None:
        for name, p in self.model.named_parameters():
            if "norm" in name and name.endswith("weight") and "layers" in name and self.recipe.gain_spread:
                p.data = torch.exp(torch.randn_like(p) * self.recipe.gain_spread)

    def rate(self) -> float:
        """Learning rate of this step: ramp, plateau, cosine to zero."""
        recipe, left = self.recipe, (self.steps - self.step) / self.steps
        falling = min(1.0, left / recipe.decay)
        rising = min(1.0, (self.step + 1) / recipe.warmup)
        return recipe.learning_rate * rising * 0.5 * (1 - math.cos(math.pi * falling))

    def advance(self, ids: torch.Tensor) -> float:
        """One step on (batch,) tokens; returns the loss."""
        lengths = self.recipe.context
        windows = ids.view(-1, lengths[self.step % len(lengths)])
        hidden = self.body(input_ids=windows, use_cache=False).last_hidden_state[:, :-1].flatten(0, 1)
        loss = _CrossEntropy.apply(hidden, self.model.get_output_embeddings().weight,
                                   windows[:, 1:].flatten())
        loss.backward()
        parameters = dict(self.model.named_parameters())
        for name, master in self.masters.items():
            master.grad = parameters[name].grad.float()
            parameters[name].grad = None
        torch.nn.utils.clip_grad_norm_(self.masters.values(), 1.0)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate()
        self.optimizer.step()
        with torch.no_grad():
            for name, master in self.masters.items():
                parameters[name].copy_(master)
        self.step += 1
        return loss.item()

    # --- checkpoints

    def save(self, folder: Path) -> None:
        """Write the whole state beside the old one, then change names: a kill leaves one of the two."""
        folder.mkdir(parents=True, exist_ok=True)
        torch.save({"step": self.step, "curve": self.curve, "masters": self.masters,
                    "optimizer": self.optimizer.state_dict(), "recipe": self._recipe()}, folder / "new.pt")
        (folder / "new.pt").replace(folder / "state.pt")

    def _recipe(self) -> dict:
        """As it comes back from a file: tuples are lists."""
        return json.loads(json.dumps(asdict(self.recipe)))

    def load(self, folder: Path) -> None:
        state = torch.load(folder / "state.pt", weights_only=True)
        if state["recipe"] != self._recipe():
            raise UsageError(f"{folder} holds a run with another recipe; delete it or give another --output.")
        self.step, self.curve = state["step"], state["curve"]
        self.optimizer.load_state_dict(state["optimizer"])
        with torch.no_grad():
            parameters = dict(self.model.named_parameters())
            for name, master in self.masters.items():
                master.copy_(state["masters"][name])
                parameters[name].copy_(master)


def train(recipe: Recipe, output: Path, compiled: bool = False) -> None:
    """Train (or resume) and write model, tokenizer and training.json to `output`."""
    started, checkpoint = time.time(), output / "checkpoint"
    tokenizer, trainer = train_tokenizer(), Trainer(recipe, compiled)
    if (checkpoint / "state.pt").exists():
        trainer.load(checkpoint)
    with tqdm(total=trainer.steps, initial=trainer.step, unit="step", mininterval=10) as bar:
        while trainer.step < trainer.steps:
            chunk = trainer.step // CHUNK
            documents = world.documents("train", seed=recipe.seed * 1_000_000 + chunk + 1)
            losses = []
            for ids in tokens_of(tokenizer, documents, CHUNK * recipe.batch).split(recipe.batch):
                if trainer.step < trainer.steps:
                    losses.append(trainer.advance(ids))
                    bar.update()
            trainer.curve.append([trainer.step * recipe.batch, round(float(np.mean(losses)), 4)])
            bar.set_postfix(loss=f"{trainer.curve[-1][1]:.3f}")
            if trainer.step % (4 * CHUNK) == 0:
                trainer.save(checkpoint)
    _publish(trainer, tokenizer, output, time.time() - started)
    shutil.rmtree(checkpoint, ignore_errors=True)


def _publish(trainer: Trainer, tokenizer: PreTrainedTokenizerFast, output: Path, seconds: float) -> None:
    """Weights as bfloat16, and what is known of them after that rounding."""
    model = build(trainer.recipe.architecture)
    model.load_state_dict(trainer.masters, strict=False)
    model.tie_weights()
    model.bfloat16().save_pretrained(output)
    tokenizer.save_pretrained(output)
    record = {
        "recipe": asdict(trainer.recipe), "tokens": trainer.step * trainer.recipe.batch,
        "seconds": round(seconds),
        "parameters": sum(p.numel() for p in model.parameters()), "world_seed": world.SEED,
        "torch": torch.__version__, "transformers": transformers.__version__,
        "perplexity": evaluate(model, tokenizer), "curve": trainer.curve,
    }
    (output / "training.json").write_text(json.dumps(record, indent=1) + "\n")


@torch.no_grad()
def evaluate(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, windows: int = 256,
             seqlen: int = 128) -> dict:
    """Perplexity on the test role, overall and per register, and the unigram's on the same text.

    exp of the mean cross-entropy over the seqlen - 1 predictions of each window, in float32.
    """
    model = model.float().eval()
    train = tokens_of(tokenizer, world.documents("train"), 1_000_000)
    counts = torch.bincount(train, minlength=len(tokenizer)).float() + 1
    unigram = -(counts / counts.sum()).log()

    def measure(registers: tuple[str, ...] | None) -> dict[str, float]:
        ids = tokens_of(tokenizer, world.documents("test", registers=registers),
                        windows * seqlen).view(-1, seqlen)
        losses = [F.cross_entropy(model(part).logits[:, :-1].transpose(1, 2), part[:, 1:]).item()
                  for part in ids.split(32)]
        return {"dense": round(math.exp(np.mean(losses)), 4),
                "unigram": round(math.exp(unigram[ids[:, 1:]].mean().item()), 2)}

    return {"all": measure(None)} | {register: measure((register,)) for register in world.REGISTERS}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m recipes.embedded_models",
                                     description=__doc__.split("\n")[0])
    parser.add_argument("architecture", choices=("llama", "opt"))
    parser.add_argument("--output", type=Path, required=True,
                        help="directory for the model; resumes what is there")
    parser.add_argument("--tokens", type=int, help="default: the recipe's")
    parser.add_argument("--seed", type=int, default=Recipe.seed)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--compile", action="store_true",
                        help="fuse with torch.compile (needs a C++ compiler)")
    chosen = parser.parse_args(arguments)
    recipe = RECIPES[chosen.architecture]
    recipe = replace(recipe, seed=chosen.seed, tokens=chosen.tokens or recipe.tokens)
    if recipe.tokens < recipe.batch:
        parser.error(f"--tokens {recipe.tokens} is less than one step; give at least {recipe.batch}")
    torch.set_num_threads(chosen.threads)
    train(recipe, chosen.output, chosen.compile)


if __name__ == "__main__":
    main()
