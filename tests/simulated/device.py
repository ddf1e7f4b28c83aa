"""A second device, simulated: `import tests.simulated.device`, and `torch.device("sim")` is there.

Its tensors are torch's own (PrivateUse1), with the processor's memory behind them. As on CUDA they refuse to
be mixed with the processor's, to be read by numpy and to draw from the processor's generators; autocast does
nothing. It is there for the whole process, which no longer behaves like one without an accelerator: import it
in one of its own.
"""
from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor
from torch._C import DispatchKey, DispatchKeySet
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

DEVICE = torch.device("privateuseone", 0)  # "sim:0" once it has its name
_CPU, _SIM = 1, 12  # DLPack's numbers of the processor and of PrivateUse1
_MIXED = ("aten::_copy_from", "aten::index", "aten::index_put_", "aten::_index_put_impl_")  # CUDA takes them

_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_pointer.restype, _pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]


def _seen(tensor: Tensor, kind: int) -> Tensor:
    """The same memory as a tensor of the other device: in DLPack's struct, after the pointer, its kind."""
    capsule = torch._C._to_dlpack(tensor)
    ctypes.c_int32.from_address(_pointer(capsule, b"dltensor") + ctypes.sizeof(ctypes.c_void_p)).value = kind
    return torch._C._from_dlpack(capsule)


class _Call:
    """One call of an operator with tensors of the device, computed by the processor."""

    def __init__(self, op: Any):
        self.op, self.mixes, self.pairs = op, op._schema.name in _MIXED, []

    def inward(self, x: Any) -> Any:
        if isinstance(x, Tensor):
            return self._memory(x)
        if isinstance(x, (list, tuple)):
            return [self.inward(each) for each in x]
        if isinstance(x, torch.Generator):
            raise RuntimeError(f"Expected a '{DEVICE}' device type for generator but found '{x.device}'")  # noqa: TRY004
        return torch.device("cpu") if isinstance(x, torch.device) else x

    def outward(self, x: Any) -> Any:
        if isinstance(x, (list, tuple)):
            return type(x)(map(self.outward, x))
        if not isinstance(x, Tensor):
            return x
        for mine, memory in self.pairs:
            if memory is x:
                return mine
        return _seen(x, _SIM)

    def _memory(self, x: Tensor) -> Tensor:
        if x.device != DEVICE:
            if x.dim() and not self.mixes:
                raise RuntimeError("Expected all tensors to be on the same device, but found at least two "
                                   f"devices, {DEVICE} and {x.device}, in {self.op}")
            return x
        for mine, memory in self.pairs:
            if mine is x:
                return memory
        memory = _seen(x, _CPU) if x.numel() else torch.empty_strided(x.shape, x.stride(), dtype=x.dtype)
        self.pairs.append((x, memory))
        return memory


def _compute(op: Any, *args: Any, **kwargs: Any) -> Any:
    schema = op._schema
    views = any(out.alias_info and not out.alias_info.is_write for out in schema.returns)
    if views or schema.name == "aten::set_":  # no memory is touched
        return op.redispatch(DispatchKeySet(DispatchKey.CPU), *args, **kwargs)
    call = _Call(op)
    if schema.name == "aten::_copy_from":  # from one, to the other
        call.inward(args[1]).copy_(call.inward(args[0]))
        return args[1]
    args = [torch.scalar_tensor(x, dtype=torch.result_type(x, x)) if isinstance(x, (bool, int, float)) and
            isinstance(argument.type, torch.TensorType) else call.inward(x)
            for x, argument in zip(args, schema.arguments, strict=False)]
    result = op(*args, **{name: call.inward(x) for name, x in kwargs.items()})
    for mine, memory in call.pairs:
        if mine.shape != memory.shape:  # an empty `out` has been filled
            mine.set_(_seen(memory, _SIM))
    return call.outward(result)


class _Module(_DummyBackendModule):
    """`torch.sim`: it draws from the processor's generator, so that it has no state of its own."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]

    def get_rng_state(self, device: Any = None) -> Tensor:
        return torch.empty(0)

    def set_rng_state(self, state: Tensor, device: Any = None) -> None:
        pass


_setup_privateuseone_for_python_backend("sim", _Module())
_fallbacks = torch.library.Library("_", "IMPL")
_fallbacks.fallback(_compute, "PrivateUse1")
_fallbacks.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
torch.__future__.set_swap_module_params_on_conversion(True)  # `.data =` is only for torch's own backends
Tensor.pin_memory = lambda self, device=None: self  # the device reads all of the processor's memory
