"""Loading causal language models, and finding what in them can be pruned."""
from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext, redirect_stderr
from dataclasses import dataclass
from functools import partial
from os import devnull
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from prunekit.choices import DTYPES as _DTYPES
from prunekit.choices import EMBEDDED
from prunekit.errors import UsageError, did_you_mean
from prunekit.hub import (
    gguf_file,
    gguf_on_hub,
    gguf_read_once,
    hub_or_cache,
    no_model,
    quantization_of,
    unreadable,
)

DTYPES = {name: getattr(torch, name) for name in _DTYPES}
_READ, _VOCABULARIES = {".json", ".safetensors", ".model", ".jinja", ".tiktoken"}, {"merges.txt", "vocab.txt"}
_HASHED_WHOLE = 256 * 2**20  # bytes; of larger files 64 pieces of 1 MiB, evenly spread


# --- loading ------------------------------------------------------------------------------------------------


def load_model(source: str | Path, *, dtype: str = "auto", device: str = "auto", cache_dir: str | None = None
               ) -> tuple[nn.Module, Any]:
    """Load a causal language model, in eval mode, and its tokenizer (`None` if it has none).

    source: `embedded/llama`, `embedded/opt`, a Hugging Face directory, a hub id, or a GGUF file (FILE.gguf,
    org/name/FILE.gguf of the hub, a directory or hub id without config.json that holds one), whose weights
    are dequantized: what comes is a plain model, which saves as safetensors. Weights are read from
    safetensors or GGUF only and no code is taken from the source. dtype: `float32`, `bfloat16`, `float16`, or
    `auto`: float32 on the CPU and for GGUF, the checkpoint's own dtype elsewhere. device: a torch device,
    `auto` (the GPU if there is one, spread by accelerate if there are several, else the CPU) or `balanced`
    (accelerate's device map over the GPUs there are; what they cannot hold it offloads, which is enough to
    evaluate a model, not to prune it).

    Raises UsageError if there is no such model, if it is not a decoder, if it holds pickled or (but for GGUF)
    quantized weights or an adapter, and if what its files hold is not what its config.json asks for.
    """
    from transformers import AutoModelForCausalLM

    placement = _placement(device)
    path, gguf = _place(source, cache_dir)
    options: dict[str, Any] = {
        **gguf, "dtype": _dtype(dtype, placement), "device_map": placement.get("device_map"),
        "cache_dir": cache_dir, "use_safetensors": True, "trust_remote_code": False,
        "output_loading_info": True, "ignore_mismatched_sizes": True}  # they are refused by name
    if gguf:
        from transformers import GgufConfig

        options["quantization_config"] = GgufConfig(dequantize=True)
    with gguf_read_once() if gguf else nullcontext():
        options["config"] = load_config(source, cache_dir=cache_dir)
        with _source(path, gguf, partial(_load_error, str(source), path)):
            model, found = AutoModelForCausalLM.from_pretrained(path, **options)
        if getattr(model.config, "is_encoder_decoder", False):
            raise UsageError(f"model '{source}' is an encoder-decoder; only decoders can be pruned here.")
        refuse_unfilled(source, model, found)
        tokenizer = load_tokenizer(source, cache_dir=cache_dir)
    if "device" in placement:
        model.to(placement["device"])
    return model.eval(), tokenizer


def save_model(model: nn.Module, tokenizer: Any, folder: Path) -> None:
    """Write a model as safetensors, with its tokenizer if it has one, into a folder."""
    with _without_bars():
        model.save_pretrained(folder)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)


def locate(source: str | Path) -> str:
    """The directory, GGUF file or hub id behind a model's name. UsageError for what names none."""
    name, path = str(source), Path(source).expanduser()
    if wrong := no_model(name):
        raise UsageError(f"model '{name}' {wrong}.")
    if name in EMBEDDED:
        return str(EMBEDDED[name])
    if file := gguf_file(path):
        return str(file.absolute())
    return str(path) if path.is_dir() else name


def _place(source: str | Path, cache_dir: str | None) -> tuple[str, dict[str, str]]:
    """A model's directory or hub id and, as transformers' option, the GGUF file in it that holds the weights.

    Raises UsageError if the hub does not say, or the header of that file cannot be read.
    """
    path = locate(source)
    try:
        file = gguf_file(Path(path)) or (None if Path(path).is_dir() else gguf_on_hub(path, cache_dir))
    except OSError as error:
        raise _load_error(str(source), path, error) from error
    if not file:
        return path, {}
    quantization_of(file)
    return str(file.parent), {"gguf_file": str(file)}  # not its bare name: that may be found elsewhere


def fingerprint(source: str | Path, cache_dir: str | None = None) -> str:
    """A short hash that changes when the model's files change (a hub id: its cached revision); of a GGUF
    file, also of a cached one, it says what the weights are made from: `gguf-Q4_1:b179c9523d0e6a0f`.

    Of a directory it reads configuration, tokenizer, chat template and weights; of a file above 256 MiB its
    size and 64 pieces of 1 MiB, evenly spread, so that a change between two pieces goes unseen."""
    path = Path(locate(source))
    if path.is_file():
        return f"gguf-{quantization_of(path)}:{_file_digest(path).hex()[:16]}"
    if path.is_dir():
        digest = hashlib.sha256()
        for file in sorted(path.iterdir()):
            if (file.suffix in _READ or file.name in _VOCABULARIES) and file.name != "prunekit.json":
                digest.update(file.name.encode())
                digest.update(_file_digest(file))
        return digest.hexdigest()[:16]
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    org, file = (path.parent.as_posix(), path.name) if path.suffix == ".gguf" else (path.as_posix(), "")
    try:
        cached = Path(snapshot_download(org, cache_dir=cache_dir, local_files_only=True))
        gguf = gguf_file(cached / file)
    except (LocalEntryNotFoundError, UsageError):  # not here, or several files of it, by name
        return str(source)
    return fingerprint(gguf) if gguf else str(source) if file else f"{source}@{cached.name[:12]}"


def _file_digest(file: Path) -> bytes:
    size = file.stat().st_size
    with file.open("rb") as handle:
        if size <= _HASHED_WHOLE:
            return hashlib.file_digest(handle, "sha256").digest()
        digest = hashlib.sha256(str(size).encode())
        for start in range(0, size, size // 64):
            handle.seek(start)
            digest.update(handle.read(2**20))
        return digest.digest()


@contextmanager
def _source(path: str, gguf: Mapping[str, str], told: Callable[[Exception], UsageError]) -> Iterator[None]:
    """Inside, transformers reads a model, from the hub if need be. A UsageError for what it makes of a torn
    GGUF file or, by `told`, of other files."""
    with ExitStack() as stack:
        stack.enter_context(_without_bars())
        if not Path(path).is_dir():
            stack.enter_context(hub_or_cache())
        if gguf:  # whose reader has bars of its own
            stack.enter_context(redirect_stderr(stack.enter_context(open(devnull, "w"))))
        try:
            yield
        except UsageError:
            raise
        except Exception as error:
            if gguf:  # a torn file is a dozen kinds of error
                raise unreadable(gguf["gguf_file"], error) from error
            if not isinstance(error, (OSError, ValueError, KeyError, RuntimeError, SafetensorError)):
                raise
            raise told(error) from error


@contextmanager
def _without_bars() -> Iterator[None]:
    """Inside, transformers draws none: a bar of milliseconds in every notebook says nothing."""
    from transformers.utils import logging

    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if bars:
            logging.enable_progress_bar()


def _placement(device: str) -> dict[str, Any]:
    """How to place the weights: {"device": torch.device} or {"device_map": …}."""
    gpus = torch.cuda.device_count()
    if (device == "balanced" and gpus) or (device == "auto" and gpus > 1):
        return {"device_map": "auto"}
    if device in ("auto", "balanced"):
        device = "cuda" if gpus else "cpu"
    try:
        place = torch.device(device)
        torch.empty(1, device=place)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"device '{device}' is not available here; use auto, cpu, or one that torch can "
                         "see.") from error
    return {"device": place}


def _dtype(name: str, placement: dict[str, Any]) -> torch.dtype | str:
    if name == "auto":
        on_cpu = "device" in placement and placement["device"].type == "cpu"
        return torch.float32 if on_cpu else "auto"
    if name not in DTYPES:
        raise UsageError(f"dtype '{name}' is not known{did_you_mean(name, ['auto', *DTYPES])}.")
    return DTYPES[name]


def _load_error(source: str, path: str, error: Exception) -> UsageError:
    local = Path(path).is_dir()
    if local and not list(Path(path).glob("*.safetensors")):
        return UsageError(f"model '{source}' holds no .safetensors weights; convert it first (pickled "
                          "weights are never loaded, since they can run code).")
    if "trust_remote_code" in str(error):
        return UsageError(f"model '{source}' needs code of its own, and no code of a model is run here; give "
                          "a model of a family that transformers knows.")
    reason = _reason(error)
    if local:
        return UsageError(f"model '{source}' cannot be loaded: {reason}")
    return UsageError(f"model '{source}' is neither a directory here nor a hub model that can be reached and "
                      "loaded without its own code; check the spelling and the network, or give a directory "
                      f"({reason})")


def _reason(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:200] or type(error).__name__


def load_tokenizer(source: str | Path, *, cache_dir: str | None = None) -> Any:
    """The tokenizer of a model; `None` if the directory has none. Raises UsageError if it is broken."""
    from transformers import AutoTokenizer

    files = ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")
    path, gguf = _place(source, cache_dir)
    if Path(path).is_dir() and not gguf and not any((Path(path) / file).is_file() for file in files):
        return None

    def told(error: Exception) -> UsageError:
        return UsageError(f"the tokenizer of model '{source}' cannot be loaded: {_reason(error)}")

    with _source(path, gguf, told):
        return AutoTokenizer.from_pretrained(path, cache_dir=cache_dir, trust_remote_code=False, **gguf)


# --- what a checkpoint holds -----------------------------------------------------------------------------


def load_config(source: str | Path, *, cache_dir: str | None = None) -> Any:
    """The configuration of a model whose files hold its plain weights; known before these are read.

    Raises UsageError if there is none, if the weights are quantized in any way but GGUF's, or if an adapter
    lies beside them, which transformers would apply.
    """
    from transformers import AutoConfig
    from transformers.utils import cached_file

    path, gguf = _place(source, cache_dir)
    where = {"path_or_repo_id": path, "cache_dir": cache_dir, "_raise_exceptions_for_missing_entries": False}
    with _source(path, gguf, partial(_load_error, str(source), path)):
        if cached_file(filename="adapter_config.json", **where):
            raise UsageError(f"model '{source}' holds an adapter beside its weights; move its "
                             "adapter_config.json and weights to a folder of their own, for load_lora.")
        config = AutoConfig.from_pretrained(path, cache_dir=cache_dir, trust_remote_code=False, **gguf)
        modelopt = cached_file(filename="hf_quant_config.json", **where)
    method = _quantization(config.to_dict()) or ("modelopt" if modelopt else None)
    if method:
        raise UsageError(f"model '{source}' is quantized ({method}); prune the unquantized one, then "
                         "quantize.")
    return config


def _quantization(config: Mapping[str, Any]) -> str | None:
    """The method by which the model, or any model inside it, is quantized."""
    for key, value in config.items():
        if key in ("quantization_config", "compression_config") and value:
            return value.get("quant_method") or "bitsandbytes"  # whose older configurations name no method
        if isinstance(value, dict) and (method := _quantization(value)):
            return method
    return None


# Buffers that older versions stored, though they are computed; parts that a language model can do without.
_COMPUTED = re.compile(r"(^|\.)(inv_freq|position_ids|masked_bias|causal_mask|(attn|attention)\.bias)$")
_PARTS = re.compile(r"(?:^|\.)(mtp\w*|visual|vision\w*|audio\w*|multi_modal\w*|embed_vision|embed_audio)\.")


def refuse_unfilled(source: object, model: nn.Module, found: Mapping[str, Iterable[Any]]) -> None:
    """Raise UsageError unless a checkpoint's files and the model of its config.json belong together.

    found, as transformers reports it: `missing_keys` (only the model has them, nor are they tied),
    `mismatched_keys` (name, shape there, shape here), `unexpected_keys` (only the files have them). Harmless
    of these are, beside what transformers knows of a family: buffers that are computed, layers that predict
    further tokens, and towers of other modalities that the model does without.
    """
    shapes = [f"{name} {tuple(there)} for {tuple(here)}" for name, there, here in found["mismatched_keys"]]
    unexpected = [name for name in found["unexpected_keys"] if not _harmless(name, model)]
    for what, names in (("no tensor for", found["missing_keys"]),
                        ("tensors of other shapes than it asks for:", shapes),
                        ("tensors that it has no place for:", unexpected)):
        if names := sorted(names):
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise UsageError(f"model '{source}' does not belong to its config.json: it holds {what} "
                             f"{', '.join(names[:3])}{more}.")


def _harmless(name: str, model: nn.Module) -> bool:
    config = model.config.get_text_config()
    part, layer = _PARTS.search(name), re.search(r"(?:^|\.)layers\.(\d+)\.", name)
    depth, further = config.num_hidden_layers, getattr(config, "num_nextn_predict_layers", 0) or 0
    return bool(part and not any(part[1] in path.split(".") for path, _ in model.named_modules())
                or layer and depth <= int(layer[1]) < depth + further
                or _COMPUTED.search(name)
                or any(buffer.endswith(name) for buffer, _ in model.named_buffers()))


# --- what can go in ----------------------------------------------------------------------------------------

# Tables of positions; rotary ones and ALiBi are computed for any length
_POSITIONS = re.compile(r"(.*\.)?(wpe|embed_positions|positions_embed)(\.weight)?")


def check_windows(model: nn.Module, windows: Tensor) -> None:
    """Raise UsageError unless windows are token ids, LongTensor (n, seqlen), that the model can read."""
    if not isinstance(windows, Tensor):
        raise UsageError(f"windows are a {type(windows).__name__}; give token ids, a LongTensor (n, seqlen).")
    if windows.dtype != torch.long or windows.ndim != 2 or not len(windows) or windows.shape[1] < 2:
        raise UsageError(f"windows have shape {tuple(windows.shape)} and dtype {windows.dtype}; give token "
                         "ids, a LongTensor (n, seqlen) of at least one window of two tokens.")
    low, high = (int(bound) for bound in windows.aminmax())
    vocabulary = model.get_input_embeddings().num_embeddings
    if low < 0 or high >= vocabulary:
        raise UsageError(f"token {low if low < 0 else high} is not in the model's vocabulary of "
                         f"{vocabulary}; these windows were made with another tokenizer.")
    limit = positions(model)
    if limit is not None and windows.shape[1] > limit:
        raise UsageError(f"windows of {windows.shape[1]} tokens are too long for the model, which has "
                         f"{limit} positions; set seqlen to {limit} or less.")


def positions(model: nn.Module) -> int | None:
    """The longest window that a model has positions for; None if it computes them for any length."""
    config = model.config.get_text_config()
    sizes = []
    for name, table in (*model.named_parameters(), *model.named_buffers()):
        if _POSITIONS.fullmatch(name):
            spare = getattr(model.get_submodule(name.rpartition(".")[0]), "offset", 0)  # OPT's first two rows
            sizes.append(len(table) - spare)
    return min(sizes, default=config.max_seq_len if config.model_type == "mpt" else None)


# --- what can be pruned -------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Layer:
    """One prunable linear map y = W x: a linear module, or an expert's slice of a 3-D parameter.

    `weight` is a view of shape (out, in) on the model's own storage: writing to it prunes the model.
    """

    name: str  # Hugging Face module path; an expert's slice ends in [e]
    block: int
    module: nn.Module  # the module that holds the parameter
    key: str = "weight"  # its name there
    transposed: bool = False  # stored (in, out), as GPT-2's Conv1D
    expert: int | None = None

    @property
    def parameter(self) -> nn.Parameter:
        return getattr(self.module, self.key)

    @property
    def weight(self) -> Tensor:
        weight = self.parameter.detach() if self.expert is None else self.parameter.detach()[self.expert]
        return weight.T if self.transposed else weight

    @property
    def kind(self) -> str:
        """The layer's place inside its block, e.g. `self_attn.q_proj`."""
        return re.sub(r"^.*?\.\d+\.", "", self.name)


def decoder_blocks(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """The list of decoder blocks and its module path. Raises UsageError if the model has none."""
    depth = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    language = set(model.get_decoder().modules())  # a vision tower may well have as many blocks
    for path, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and module in language and len(module) == depth and depth:
            return path, module
    raise UsageError(f"{type(model).__name__} has no list of {depth} decoder blocks; only decoder-only "
                     "language models can be pruned here.")


def prunable_layers(model: nn.Module) -> list[list[Layer]]:
    """Per decoder block, every linear layer in it. Routers, embeddings and the output head are not prunable.

    Raises UsageError if a block keeps a good part of its weights where no linear layer is to be seen, or if
    the model carries adapters, whose matrices are no weights of its own.
    """
    kinds = {kind for module in model.modules() for kind in type(module).__mro__}
    if any(kind.__module__.startswith("peft.") for kind in kinds):  # by name: most models need no peft loaded
        raise UsageError("the model carries adapters; merge them into its weights first, or load it anew.")
    path, blocks = decoder_blocks(model)
    by_block = [list(_layers_of(block, f"{path}.{index}", index)) for index, block in enumerate(blocks)]
    for index, block in enumerate(blocks):
        _refuse_unseen(model, block, f"{path}.{index}", {id(layer.parameter) for layer in by_block[index]})
    return by_block


def layers(model: nn.Module) -> list[Layer]:
    """Every prunable layer, block by block; UsageError as of `prunable_layers`."""
    return [layer for block in prunable_layers(model) for layer in block]


@contextmanager
def as_it_was(model: nn.Module) -> Iterator[Callable[[], None]]:
    """Afterwards the prunable weights are as before, bit for bit (a copy is kept); call what it yields to put
    them back on the way."""
    with torch.no_grad():
        before = [(layer, layer.weight.clone()) for layer in layers(model)]

    @torch.no_grad()
    def restore() -> None:
        for layer, weight in before:
            layer.weight.copy_(weight)

    try:
        yield restore
    finally:
        restore()


@contextmanager
def in_eval_mode(*models: nn.Module) -> Iterator[None]:
    """For a while; afterwards each is in the mode that it was in."""
    before = [(module, module.training) for model in models for module in model.modules()]
    try:
        for model in models:
            model.eval()
        yield
    finally:
        for module, training in before:
            module.training = training


def _refuse_unseen(model: nn.Module, block: nn.Module, prefix: str, seen: set[int]) -> None:
    """Convolutions and routers are small and stay dense; a large matrix that does so in silence is not."""
    whole = sum(parameter.numel() for parameter in block.parameters())
    for name, parameter in block.named_parameters():
        if parameter.ndim > 1 and id(parameter) not in seen and parameter.numel() > whole / 10:
            raise UsageError(f"{type(model).__name__} cannot be pruned here: {prefix}.{name} holds "
                             f"{parameter.numel() / whole:.0%} "
                             "of its block's weights and is neither a linear layer nor a stack of experts.")


def refuse_offloaded(model: nn.Module) -> None:
    """Raise UsageError if weights are only brought (by accelerate) for a forward pass and dropped after, or
    if `torch.inference_mode` keeps track of nothing that is done to them."""
    if torch.is_inference_mode_enabled() or any(parameter.is_inference() for parameter in model.parameters()):
        raise UsageError("torch.inference_mode is on, or was when the model was loaded, and nothing that it "
                         "makes can be changed or differentiated; use torch.no_grad.")
    if any(parameter.is_meta for parameter in model.parameters()):
        raise UsageError("parts of the model are offloaded to disk or the CPU, where they can be neither "
                         "measured nor changed; load it whole, or prune it from disk to disk with "
                         "prune_checkpoint.")


_TRANSPOSED = ("Llama4TextExperts",)  # experts stored (in, out) that do not say so


def _layers_of(block: nn.Module, prefix: str, index: int) -> Iterator[Layer]:
    from transformers.pytorch_utils import Conv1D

    experts = [path for path, module in block.named_modules()
               if not isinstance(module, nn.modules.conv._ConvNd)
               and any(parameter.ndim == 3 for parameter in module.parameters(recurse=False))]
    for path, module in block.named_modules():
        name = f"{prefix}.{path}"
        if isinstance(module, nn.Linear):
            if not _routes(path, experts):
                yield Layer(name, index, module)
        elif isinstance(module, Conv1D):
            yield Layer(name, index, module, transposed=True)
        elif path in experts:
            transposed = bool(getattr(module, "is_transposed", type(module).__name__ in _TRANSPOSED))
            for key, parameter in module.named_parameters(recurse=False):
                for expert in range(len(parameter)) if parameter.ndim == 3 else ():
                    yield Layer(f"{name}.{key}[{expert}]", index, module, key, transposed, expert)


def _routes(path: str, experts: Iterable[str]) -> bool:
    """Does a linear module choose among experts, or weigh a shared one? Its name says so, next to theirs."""
    mixtures = {expert.rpartition(".")[0] + "." for expert in experts}
    return any(path.startswith(mixture) and re.match(r"(\w*_)?(gate|router)\b", path[len(mixture):])
               for mixture in mixtures)
