"""Working beside somebody else's network without leaving a trace."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

Mode = Literal["frozen", "as_found"]  # of a call


def unwrap_module(module: nn.Module) -> nn.Module:
    """The user's own module inside DistributedDataParallel, DataParallel or torch.compile."""
    wrappers = nn.DataParallel, nn.parallel.DistributedDataParallel
    name = "module" if isinstance(module, wrappers) else "_orig_mod"
    inner = getattr(module, name, None)
    return unwrap_module(inner) if isinstance(inner, nn.Module) else module


def saved_buffers(module: nn.Module) -> list[Tensor]:
    """The buffers that are state, as running statistics are; constants are not."""
    saved = module.state_dict(keep_vars=True)
    return [buffer for name, buffer in module.named_buffers() if name in saved]


@contextmanager
def unchanged(buffers: list[Tensor]) -> Iterator[None]:
    """Whatever runs inside, the buffers (running statistics) are afterwards as before."""
    saved = [buffer.clone() for buffer in buffers]
    try:
        yield
    finally:
        torch._foreach_copy_(buffers, saved)


class _DefaultDtype(TorchFunctionMode):
    """The default floating-point type of this thread alone; torch's own is the whole process's."""

    always = torch.empty, torch.zeros, torch.ones, torch.rand, torch.randn, torch.eye
    by_value = torch.tensor, torch.full, torch.arange, torch.linspace, torch.where

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def __torch_function__(
        self, function: Any, types: Any, arguments: Any = (), options: Any = None
    ) -> Any:
        options = options or {}
        if options.get("dtype") is None and function in self.always:
            return function(*arguments, **{**options, "dtype": self.dtype})
        made = function(*arguments, **options)
        if options.get("dtype") is None and function in self.by_value:
            given = {x.dtype for x in arguments if isinstance(x, Tensor)}
            if made.is_floating_point() and made.dtype not in given:
                return made.to(self.dtype)
        return made


class TorchDefaults(NamedTuple):
    """What `torch.set_default_dtype` and `torch.set_default_device` say."""

    dtype: torch.dtype
    device: torch.device

    @classmethod
    def found(cls) -> TorchDefaults:
        """Those that hold now."""
        # Not torch.get_default_device: before 2.8 it misses `with torch.device(...)`.
        made = torch.empty(0)
        return cls(made.dtype, made.device)

    @contextmanager
    def used(self) -> Iterator[TorchDefaults]:
        """Inside, these hold; gives those that held before."""
        before = TorchDefaults.found()
        # Only where they differ: both are asked at every call.
        device = nullcontext() if self.device == before.device else self.device
        dtype = nullcontext() if self.dtype == before.dtype else _DefaultDtype(self.dtype)
        with device, dtype:
            yield before


@contextmanager
def library_defaults(device: torch.device) -> Iterator[TorchDefaults]:
    """Torch as it comes: float32, no default device, no autocast; gives what the user has set."""
    as_it_comes = TorchDefaults(torch.float32, torch.device("cpu"))
    with as_it_comes.used() as the_users, torch.autocast(device.type, enabled=False):
        yield the_users


@contextmanager
def seeded_stream(seed: int, device: torch.device) -> Iterator[None]:
    """Let global draws inside, on CPU and ``device``, start from ``seed``; then give back."""
    on_gpu = device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if on_gpu else []):
        # Not torch.manual_seed: it seeds every GPU, and only these streams are given back.
        torch.default_generator.manual_seed(seed)
        if on_gpu:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Every layer in evaluation mode, and afterwards as found."""
    training = [m for m in module.modules() if m.training]

    def set_all(mode: bool) -> None:
        for m in training:
            m.training = mode

    try:
        try:
            set_all(False)
            yield
        finally:
            set_all(True)
    except BaseException:  # also an interrupt in the middle of that
        set_all(True)
        raise


def isolated_call(
    module: nn.Module, inputs: Tensor, generator: torch.Generator, mode: Mode = "frozen"
) -> Tensor:
    """``module(inputs)`` with detached parameters and cloned buffers.

    Gradients flow to ``inputs`` alone. Everything of the module's and the global random streams are
    afterwards as before. Wrappers are taken off, and autocast; forward hooks do see the call. In
    mode ``"frozen"`` dropout is off and BatchNorm on its running statistics; ``"as_found"`` leaves
    layers in their modes, with dropout masks from ``generator``.
    """
    module = unwrap_module(module)
    stand_ins = _stand_ins(module)
    if mode == "frozen":
        layers = _evaluating(module)
    else:
        seed = torch.randint(2**31, (1,), generator=generator, device=generator.device)
        layers = seeded_stream(int(seed), inputs.device)
    with torch.autocast(inputs.device.type, enabled=False), layers:
        # A clone, since the module may write into it.
        return torch.func.functional_call(module, stand_ins, (inputs.clone(),), tie_weights=False)


def _stand_ins(module: nn.Module) -> dict[str, Tensor]:
    """Detached parameters and cloned buffers, by name; what several names share they share here.

    `functional_call` would put back what it had put there itself (and does, with ``tie_weights``).
    """
    named: dict[str, Tensor] = {}
    for prefix, part in module.named_modules():
        named |= part.named_parameters(prefix, recurse=False, remove_duplicate=False)
        named |= part.named_buffers(prefix, recurse=False, remove_duplicate=False)
    made = {id(x): x.detach() for x in named.values()}
    made |= {id(x): x.detach().clone() for x in named.values() if not isinstance(x, nn.Parameter)}
    return {name: made[id(x)] for name, x in named.items()}
