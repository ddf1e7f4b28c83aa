"""G, by backward passes; and what is kept of a model layer by layer, with how it was made."""
from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Self

import torch
from pydantic import Field
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from prunekit.choices import checked
from prunekit.errors import UsageError, did_you_mean
from prunekit.files import replacing_file
from prunekit.models import Layer, check_windows, decoder_blocks, in_eval_mode, layers, refuse_offloaded
from prunekit.progress import tqdm
from prunekit.pruning.inputs import refuse_not_finite_inputs
from prunekit.pruning.masks import bounds, finite, nonzero
from prunekit.pruning.walk import InputGroup, Walk, called_instead

GRADIENT_NORMS = ("l2", "l1", "signed")
ACTIVATION_NORMS = ("l2", "l1")
_ORDERED_ON = ("cuda",)  # kinds of devices where torch has faster sums that differ from run to run
_VANISHING = 0.01  # share of a layer that a narrower dtype may make 0: far below the targets that are asked
# --- tensors by layer name, with how they were made ---------------------------------------------------------


class LayerTensors(Mapping[str, Tensor]):
    """Tensors by layer, with how they were made in `meta`.

    Keys are Hugging Face module paths. A layer is found by its block and its place in it, so that files of
    the published code (`self_attn.q_proj_layer_0`) answer to the same names. Raises UsageError on a tensor
    that is not dense and real, on a name that names no layer, and on two names for one layer.
    """

    kind = "tensor"

    def __init__(self, tensors: Mapping[str, Tensor], meta: Mapping[str, Any] | None = None):
        self.meta: dict[str, Any] = dict(meta or {})
        self._tensors = tensors  # perhaps still on disk
        self._names: dict[tuple[int, str], str] = {}
        for name, tensor in tensors.items():
            place = _place(name)
            if place is None:
                raise UsageError(f"{self.kind} {name!r:.60} names no layer of a decoder block; collect the "
                                 f"{self.kind}s again.")
            if self._names.setdefault(place, name) != name:
                raise UsageError(f"the {self.kind}s hold one layer under two names, {self._names[place]} and "
                                 f"{name}; keep one.")
            if isinstance(tensor, Tensor) and (tensor.layout != torch.strided or tensor.is_complex()):
                raise UsageError(f"the {self.kind} of layer {name} is {tensor.layout}, {tensor.dtype}; give "
                                 "a dense tensor of real numbers.")

    def __getitem__(self, name: str) -> Tensor:
        tensor = self._tensors[self._names[_place(name)]]
        return tensor.float() if isinstance(tensor, Tensor) else tensor.read(torch.float32)

    def near(self, W: Tensor, name: str) -> Tensor:
        """The tensor on W's device, in float32; on a GPU, one of 16 bits as it is."""
        stored = self._tensors[self._names[_place(name)]]
        as_it_is = W.device.type != "cpu" and isinstance(stored, Tensor) and stored.itemsize == 2
        return (stored if as_it_is else self[name]).to(W.device)

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def check(self, layers: list[Layer]) -> None:
        """Raise UsageError unless every layer is here, in its own shape, finite and not negative."""
        for layer in layers:
            if _place(layer.name) not in self._names:
                raise UsageError(f"the {self.kind}s hold nothing for layer {layer.name}; they were made with "
                                 "another model (collect them with this one).")
            tensor, wanted = self[layer.name], tuple(layer.weight.shape)
            whose = f"the {self.kind} of layer {layer.name}"
            if tensor.shape != wanted:
                raise UsageError(f"{whose} has shape {tuple(tensor.shape)} where the model needs {wanted}; "
                                 "it was made with another model (collect it with this one).")
            low, high = bounds(tensor)
            if not (math.isfinite(low) and math.isfinite(high)):
                raise UsageError(f"{whose} is not finite; collect it again, in float32.")
            if low < 0:
                raise UsageError(f"{whose} is negative somewhere, where a norm cannot be; collect it with "
                                 f"collect_{self.kind}s.")

    def save(self, path: str | Path, *, dtype: torch.dtype | None = None) -> Path:
        """Write a .safetensors file that says how it was made; `dtype=torch.float16` halves it.

        Raises UsageError if that dtype cannot hold what was finite, if it makes 0 of over a hundredth of a
        layer (fewer are the lowest scores, which go first as it is), and if the file cannot be written."""
        path = Path(path)
        _refuse_whole(dtype)
        tensors = {name: tensor.to("cpu", dtype).contiguous() for name, tensor in self.items()}
        for name, tensor in tensors.items() if dtype else ():
            if self[name].isfinite().all() and not tensor.isfinite().all():
                raise UsageError(f"the {self.kind} of layer {name} is beyond {dtype}; save it in float32, or "
                                 "in bfloat16.")
            if _vanishes(self[name], tensor):
                raise UsageError(f"the {self.kind} of layer {name} is so small that {dtype} makes 0 of it; "
                                 "save it in float32 or bfloat16, or collect it at a larger scale.")
        with replacing_file(path) as file:
            meta = json.dumps(self.meta, sort_keys=True)
            save_file(tensors, file, metadata={"kind": self.kind, "prunekit": meta})
        return path

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a .safetensors file, or a .pth file of the published code, by content and not by suffix.

        Tensors come back in float32. Raises UsageError if the file is missing, torn, or holds anything but
        tensors (pickled code is never run).
        """
        path = Path(path)
        if not path.is_file():
            raise UsageError(f"{cls.kind} file {path} does not exist.")
        if is_safetensors(path):
            tensors, header = _read_safetensors(path, cls.kind)
            return cls(tensors, cls.made(header, path))
        return cls(_read_pth(path, cls.kind), {"source": path.name})

    @classmethod
    def made(cls, header: Mapping[str, str], path: str | Path) -> dict[str, Any]:
        """How the file says its tensors were made. Raises UsageError if they are of another kind."""
        if header.get("kind", cls.kind) != cls.kind:
            raise UsageError(f"file {path} holds {header['kind']}s, not {cls.kind}s.")
        try:
            return dict(json.loads(header.get("prunekit", "{}")))
        except (ValueError, TypeError, RecursionError) as error:
            raise UsageError(f"{cls.kind} file {path} does not say in JSON how it was made; collect it "
                             "again.") from error


class Gradients(LayerTensors):
    """G per layer, (out, in) float32, by `collect_gradients` or from a file."""

    kind = "gradient"


class Unread(Gradients):
    """Stands for gradients that need not be there yet."""

    def check(self, layers: list[Layer]) -> None:
        """Nothing to check."""


class Activations(LayerTensors):
    """Mean over windows of the inputs' column norms per layer, (in,) float32, by `collect_activations`."""

    kind = "activation"


def _place(name: str) -> tuple[int, str] | None:
    """(block, place in the block) of `model.layers.0.self_attn.q_proj` or `self_attn.q_proj_layer_0`."""
    published = re.fullmatch(r"(.+)_layer_(\d{1,6})", name)
    if published:
        return int(published[2]), published[1]
    path = re.fullmatch(r"[^\d]*?\.(\d{1,6})\.(.+)", name)
    return (int(path[1]), path[2]) if path else None


def is_safetensors(path: str | Path) -> bool:
    """By content: JSON begins after eight bytes, its length. False where there is no file."""
    if not Path(path).is_file():
        return False
    with Path(path).open("rb") as file:
        return file.read(9)[8:] == b"{"


def _read_safetensors(path: Path, kind: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, "pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, OSError) as error:
        raise UsageError(f"{kind} file {path} is damaged ({error}); collect it again.") from error
    return tensors, header


def _read_pth(path: Path, kind: str) -> dict[str, Tensor]:
    try:
        with path.open("rb") as file:  # a file, not a path: torch would go by the suffix
            content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged or hostile file makes the reader raise
        raise UsageError(f"{kind} file {path} is neither safetensors nor a file of plain tensors; it is "
                         "damaged or holds code, which is never run. Collect it again.") from error
    named = isinstance(content, dict) and all(isinstance(name, str) for name in content)
    if not named or not all(isinstance(x, Tensor) and not x.is_meta for x in content.values()):
        raise UsageError(f"{kind} file {path} does not map layer names to tensors; collect it again.")
    return content


# --- backward: G --------------------------------------------------------------------------------------------


def collect_gradients(model: nn.Module, windows: Tensor, *, norm: str = "l2", scale: float = 100.0,
                      local: bool = False, gradient_checkpointing: bool = False,
                      offload: str | Path | None = None, on_device: torch.dtype | None = None,
                      progress: bool = True, meta: Mapping[str, Any] | None = None) -> Gradients:
    """G of every prunable layer over windows (n, seqlen), each window one sample; (out, in) float32.

    With g the gradient of a window's mean-token cross-entropy, `l2`: G = sqrt(sum (scale g)^2); `l1`: G = sum
    |scale g|; `signed`: G = |sum scale g|, with which |W| G is the first-order change of the loss when a
    weight is removed. The model is in eval mode; each layer's gradient is added and freed as soon as the
    backward pass has made it, so that no more than one is ever alive. Source: the published
    lib/gradient_computation.py (which keeps float16).

    local: g is the gradient of |block(x)|, the norm of what the layer's own block returns for the window, as
    in Wanda++ (arXiv 2503.04992, regional gradients): no backward pass through the model, one block's
    activations alive. gradient_checkpointing: compute every block's activations again in the backward pass
    instead of keeping them. offload: a directory for the sums, which are then memory-mapped files (4 bytes
    per weight; yours to delete). on_device: a dtype, such as torch.bfloat16, in which G then stays where its
    layer is instead of going to the processor's memory; sums are float32 all the same, and so is a score.

    On a GPU the backward pass adds in a fixed order, so that G is the same to the last bit each time; where a
    model has a step without such an order, it is as torch makes it and meta has `repeatable`: False.

    Raises UsageError on an unknown norm, a scale that is no number above 0 or makes G zero or infinite, a
    model that is offloaded in part or in inference mode, windows that it cannot read, a loss that is not
    finite, or a dtype that cannot hold G (see `Gradients.save`).
    """
    if norm not in GRADIENT_NORMS:
        raise UsageError(f"gradient norm '{norm}' is not known{did_you_mean(norm, GRADIENT_NORMS)}.")
    checked("scale", scale, Annotated[float, Field(gt=0)])
    _refuse_whole(on_device)
    refuse_offloaded(model)
    check_windows(model, windows)
    prunable = layers(model)
    parameters = {id(layer.parameter): layer.parameter for layer in prunable}
    sums = {key: _zeros(p, Path(offload) / f"{place:05d}.f32" if offload else None)
            for place, (key, p) in enumerate(parameters.items())}

    def run() -> None:
        losses = _block_norms(model, windows, progress) if local else _losses(model, windows, progress)
        with (_differentiating(model, list(parameters.values()), partial(_add, sums, norm)),
              _recomputed(model, gradient_checkpointing and not local), closing(losses)):
            for index, loss in losses:
                if not torch.isfinite(loss):
                    raise UsageError(f"the loss of gradient window {index} is {loss.item()}; load the model "
                                     "in float32.")
                (loss * scale).backward()

    repeats = _repeatedly(run, model.get_input_embeddings().weight.device, sums.values())
    _finish(sums, norm, scale)
    for key, total in sums.items() if on_device else ():
        sums[key] = _held(total, parameters[key].device, on_device)
    made = {"kind": "gradient", "norm": norm, "scale": scale, "n": len(windows), "seqlen": windows.shape[1],
            "dtype": str(model.dtype).removeprefix("torch."), **({"local": True} if local else {}),
            **({} if repeats else {"repeatable": False}), **(meta or {})}
    found = {layer.name: _oriented(layer, sums[id(layer.parameter)]) for layer in prunable}
    return Gradients(found if on_device else {name: G.cpu() for name, G in found.items()}, made)


def _losses(model: nn.Module, windows: Tensor, progress: bool) -> Iterator[tuple[int, Tensor]]:
    """(window, its mean-token cross-entropy)."""
    adds = getattr(model.config.get_text_config(), "output_router_logits", False)  # a loss of its routers'
    alone = {"output_router_logits": False} if adds else {}
    for index, window in enumerate(tqdm(windows, desc="gradients", disable=not progress, leave=False)):
        ids = window[None].to(model.get_input_embeddings().weight.device)
        yield index, model(input_ids=ids, labels=ids, use_cache=False, **alone).loss


def _block_norms(model: nn.Module, windows: Tensor, progress: bool) -> Iterator[tuple[int, Tensor]]:
    """Per block: (window, the norm of the block's output for it)."""
    for step in Walk(model, windows, one_shot=True, progress=progress, batch=1):
        for index, output in enumerate(step.outputs()):
            yield index, output.float().norm()


def _repeatedly(run: Callable[[], None], device: torch.device, sums: Iterable[Tensor]) -> bool:
    """Run with operations that give the same bits each time, where a device has others; has it worked?

    Else the first window has said so, and it runs again from empty sums, with what there is.
    """
    if device.type not in _ORDERED_ON:
        run()
        return True
    memory = torch.utils.deterministic  # new memory is not filled: all of it gets written
    before = torch.are_deterministic_algorithms_enabled()
    warned, filled = torch.is_deterministic_algorithms_warn_only_enabled(), memory.fill_uninitialized_memory
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # torch asks for it by this name
    try:
        torch.use_deterministic_algorithms(True)
        memory.fill_uninitialized_memory = False
        run()
        return True
    except RuntimeError as error:
        if "deterministic" not in str(error):
            raise
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warned)
        memory.fill_uninitialized_memory = filled
    for total in sums:
        total.zero_()
    run()
    return False


def _recomputed(model: nn.Module, wanted: bool) -> AbstractContextManager[None]:
    """For a while, keep only what goes into a block (transformers' checkpointing works in training only)."""
    blocks = decoder_blocks(model)[1] if wanted else []
    return called_instead(blocks, lambda _, own: partial(checkpoint, own, use_reentrant=False))


def _zeros(parameter: Tensor, path: Path | None) -> Tensor:
    """Zeros in float32, in the parameter's shape: beside it, or in a new file."""
    if path is None:
        return torch.zeros_like(parameter, dtype=torch.float32)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    zeros = torch.from_file(str(path), shared=True, size=parameter.numel(), dtype=torch.float32)
    return zeros.view(parameter.shape)


def _add(sums: dict[int, Tensor], norm: str, parameter: nn.Parameter) -> None:
    """Take a sample's gradient from a parameter."""
    g, total = parameter.grad, sums[id(parameter)]
    if total.device.type != "cuda" or g.device != total.device:  # there sums read g as it is
        g = g.to(total)
    total.addcmul_(g, g) if norm == "l2" else total.add_(g.abs_() if norm == "l1" else g)
    parameter.grad = None


def _finish(sums: dict[int, Tensor], norm: str, scale: float) -> None:
    """From sums to norms, in place. Raises UsageError where these are zero everywhere, or not finite."""
    reach = 0.0
    for total in sums.values():
        if norm != "l1":
            total.sqrt_() if norm == "l2" else total.abs_()
        reach += total.max().item()
    if not 0 < reach < math.inf:
        what, other = ("zero everywhere", "larger") if reach == 0 else ("not finite", "smaller")
        raise UsageError(f"G is {what} with scale {scale:g}; take a {other} one, or load the model in "
                         "float32.")


def _refuse_whole(dtype: torch.dtype | None) -> None:
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise UsageError(f"dtype {dtype} holds no G; give one of fractions, such as torch.bfloat16.")


def _held(total: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    G = total.to(device, dtype)
    if not finite(G):
        raise UsageError(f"{dtype} cannot hold G, which reaches {total.max():.3g}; use bfloat16 or a smaller "
                         "scale.")
    if _vanishes(total, G):
        raise UsageError(f"{dtype} makes 0 of G, which is below {total.max():.3g}; use bfloat16 or a larger "
                         "scale.")
    return G


def _vanishes(exact: Tensor, held: Tensor) -> bool:
    """Is too much of it 0 in the dtype that holds it, and was not?"""
    return nonzero(exact) - nonzero(held) > _VANISHING * held.numel()


def _oriented(layer: Layer, total: Tensor) -> Tensor:
    total = total if layer.expert is None else total[layer.expert]
    return total.T if layer.transposed else total


@contextmanager
def _differentiating(model: nn.Module, parameters: list[nn.Parameter],
                     receive: Callable[[nn.Parameter], None]) -> Iterator[None]:
    """For a while, let gradients flow to the given parameters only; each is handed over once complete."""
    before = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    held = [parameter.grad for parameter in parameters]
    model.requires_grad_(False)
    for parameter in parameters:
        parameter.requires_grad_(True)
        parameter.grad = None  # what a caller left there is no sample
    handles = [parameter.register_post_accumulate_grad_hook(receive) for parameter in parameters]
    try:
        with in_eval_mode(model), torch.enable_grad():
            yield
    finally:
        for handle in handles:
            handle.remove()
        for parameter, flag in before:
            parameter.requires_grad_(flag)
        for parameter, grad in zip(parameters, held, strict=True):
            parameter.grad = grad


# --- the published `--task activation` ----------------------------------------------------------------------


def collect_activations(model: nn.Module, windows: Tensor, *, norm: str = "l2", progress: bool = True,
                        meta: Mapping[str, Any] | None = None) -> Activations:
    """Column norms of every prunable layer's input x in the dense model, mean over n windows; (in,) float32.

    `l2`: (1/n) sum over tokens of x_j^2, which is the X of the metrics; `l1`: (1/n) sum over tokens of |x_j|.
    Raises UsageError on an unknown norm, windows that the model cannot read, or inputs that are not finite.
    """
    if norm not in ACTIVATION_NORMS:
        raise UsageError(f"activation norm '{norm}' is not known{did_you_mean(norm, ACTIVATION_NORMS)}.")
    measure = torch.Tensor.square if norm == "l2" else torch.Tensor.abs
    norms: dict[str, Tensor] = {}
    for step in Walk(model, windows, one_shot=True, progress=progress):
        sums = {id(group): torch.zeros(group.inputs, device=group.layers[0].weight.device)
                for group in step.groups}
        step.collect(partial(_add_columns, sums, measure))
        for group in step.groups:
            refuse_not_finite_inputs(group, sums[id(group)])
            norms |= {layer.name: (sums[id(group)] / len(windows)).cpu() for layer in group.layers}
    made = {"kind": "activation", "norm": norm, "n": len(windows), "seqlen": windows.shape[1], **(meta or {})}
    return Activations(norms, made)


def _add_columns(sums: dict[int, Tensor], measure: Callable[[Tensor], Tensor], group: InputGroup,
                 x: Tensor) -> None:
    sums[id(group)] += measure(x.float()).sum(0)
