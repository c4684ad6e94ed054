"""Hanging callbacks on somebody else's module and optimizer without leaving a trace in them."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, Generic, TypeVar

import torch
from torch import nn
from torch.optim.optimizer import Optimizer

from .errors import PoseAugError

Owner = TypeVar("Owner")


class InertCallback(Generic[Owner]):
    """Calls ``method(owner, ...)`` while the owner lives; does nothing in copies.

    Deep-copying or pickling the user's model takes its forward hooks along. What arrives in the
    copy needs nothing of this package: the bound method of a null context takes any arguments and
    returns None.
    """

    def __init__(self, owner: Owner, method: Callable[..., None]) -> None:
        self._owner, self._method = weakref.ref(owner), method

    # Not compiled: a compiled step of the user's would take all of the hook's training in.
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def __call__(self, *arguments: Any) -> None:  # noqa: ANN401
        """Pass the arguments on, if there is still somebody to take them."""
        owner = self._owner()
        if owner is not None:
            self._method(owner, *arguments)

    def __deepcopy__(self, _: Any) -> Callable[..., None]:  # noqa: ANN401
        return nullcontext().__exit__

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (nullcontext(), "__exit__")


def device_of(module: nn.Module) -> torch.device:
    """The device of a module's first parameter; the CPU where it has none."""
    parameter = next(module.parameters(), None)
    return torch.device("cpu") if parameter is None else parameter.device


def holds_parameters(optimizer: Optimizer, estimator: nn.Module) -> bool:
    """Whether the optimizer trains any of the estimator's parameters, by identity."""
    own = {id(p) for p in estimator.parameters()}
    return any(id(p) in own for group in optimizer.param_groups for p in group["params"])


def check_estimator(estimator: nn.Module) -> None:
    """Refuse what cannot be attached to.

    Raises:
        PoseAugError: Not a module, or sharded by FSDP.
    """
    if not isinstance(estimator, nn.Module):
        raise PoseAugError(
            f"PoseAugHook: estimator must be a torch.nn.Module, got {type(estimator).__name__}."
        )
    if any(
        kind.__name__ in ("FullyShardedDataParallel", "FSDPModule")
        for module in estimator.modules()
        for kind in type(module).__mro__
    ):
        raise PoseAugError(
            "PoseAugHook: FSDP shards the estimator's parameters, which the hook cannot follow; "
            "use DistributedDataParallel."
        )


def check_optimizer(optimizer: Optimizer, estimator: nn.Module) -> None:
    """Refuse an optimizer that cannot be hooked or trains something else.

    Raises:
        PoseAugError: No step hooks, or none of the estimator's parameters.
    """
    if not hasattr(optimizer, "_optimizer_step_pre_hooks"):
        raise PoseAugError(
            f"PoseAugHook: {type(optimizer).__name__} has no step hooks (it is not a "
            "torch.optim.Optimizer, or does not call its __init__). Pass the optimizer inside it, "
            "or leave it out and call hook.step() right before its step()."
        )
    if not holds_parameters(optimizer, estimator):
        raise PoseAugError(
            "PoseAugHook: the optimizer holds none of the estimator's parameters. Was the "
            "estimator copied or re-created after the optimizer was made?"
        )
