"""Callbacks on somebody else's module and optimizer that leave no trace, and reminders."""

import threading
import weakref
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.optim.optimizer import (
    Optimizer,
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from ..errors import PoseAugError, warn

_is_exporting = getattr(torch.compiler, "is_exporting", lambda: False)  # in newer versions
_PATIENCE = 100  # batches that come to nothing, after which a word is due


class InertCallback:
    """Calls ``method(owner, ...)`` while the owner lives; does nothing in copies.

    Copying or pickling the user's model takes its forward hooks along. The copy gets the bound
    method of a null context, which takes any arguments and needs nothing of this package.
    """

    def __init__(self, owner: object, method: Callable[..., None]) -> None:
        self.owner, self._method = weakref.ref(owner), method

    def __call__(self, *arguments: Any) -> None:
        """Pass the arguments on, if there is still somebody to take them."""
        if not _is_exporting():
            self._call(*arguments)

    # Not compiled: a compiled step of the user's would take all of the hook's training in.
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _call(self, *arguments: Any) -> None:
        if (owner := self.owner()) is not None:
            self._method(owner, *arguments)

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (nullcontext(), "__exit__")


# Callbacks are registered for good: taken away while another thread steps, or by the garbage
# collector in a step, they would break it. So would a change of their tuple, which is replaced.
_watchers: tuple[InertCallback, ...] = ()
_registering = threading.RLock()
_is_registered = False


# Not compiled, like an `InertCallback`.
@torch.compiler.disable  # type: ignore[untyped-decorator]
def _tell_watchers(is_over: bool, optimizer: Optimizer, *_: Any) -> None:
    for watcher in _watchers:
        watcher(optimizer, is_over)


def watch_optimizers(owner: object, method: Callable[..., None]) -> None:
    """Call ``method(owner, optimizer, is_over)`` before and after every step, while it lives."""
    global _watchers, _is_registered
    with _registering:
        living = (watcher for watcher in _watchers if watcher.owner() is not None)
        _watchers = (*living, InertCallback(owner, method))
        if not _is_registered:
            _is_registered = True
            register_optimizer_step_pre_hook(partial(_tell_watchers, False))
            register_optimizer_step_post_hook(partial(_tell_watchers, True))


def device_of(module: nn.Module) -> torch.device:
    """The device of a module's first parameter; the CPU where it has none."""
    return next((parameter.device for parameter in module.parameters()), torch.device("cpu"))


def holds_parameters(optimizer: Optimizer, estimator: nn.Module) -> bool:
    """Whether the optimizer trains any of the estimator's parameters, by identity."""
    own = {id(p) for p in estimator.parameters()}
    return any(id(p) in own for group in optimizer.param_groups for p in group["params"])


def check_estimator(estimator: nn.Module) -> None:
    """Refuse what is no module, or sharded by FSDP."""
    if not isinstance(estimator, nn.Module):
        kind = type(estimator).__name__
        raise PoseAugError(f"PoseAugHook: estimator must be a torch.nn.Module, got {kind}.")
    parts = (*estimator.modules(), *estimator.parameters())
    kinds = {kind.__name__ for part in parts for kind in type(part).__mro__}
    is_flat = any(getattr(part, "_is_flat_param", False) for part in parts)
    if is_flat or kinds & {"FullyShardedDataParallel", "FSDPModule", "DTensor"}:
        raise PoseAugError(
            "PoseAugHook: FSDP shards the estimator's parameters, which the hook cannot follow; "
            "use DistributedDataParallel."
        )


def check_optimizer(optimizer: Optimizer, estimator: nn.Module) -> None:
    """Refuse an optimizer that has no step hooks, or trains something else."""
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


class Reminders:
    """Warns, once each, where the hook's batches come to nothing or should not be augmented."""

    def __init__(self, names_optimizer: bool) -> None:
        self._expected = "an optimizer with the estimator's parameters"
        if names_optimizer:
            self._expected = "the optimizer that the hook was given"
        self.without_update = 0  # batches since an optimizer has stepped
        self._too_small, self._has_evaluated = 0, False

    def evaluating(self) -> None:
        """A batch is augmented as in an evaluation."""
        if not self._has_evaluated:
            self._has_evaluated = True
            warn(
                "PoseAugHook.augment was called while the estimator is in eval mode and gradients "
                "are off. To evaluate, leave augment out there, or use hook.paused()."
            )

    def too_small(self, size: int, share: float) -> None:
        """A batch had too few samples to augment."""
        self._too_small += 1
        if self._too_small == _PATIENCE:
            warn(
                f"PoseAugHook: {_PATIENCE} batches in a row were not augmented: share={share} of "
                f"{size} samples is less than two. Pass a larger share, or larger batches."
            )

    def augmented(self) -> None:
        """A batch was augmented."""
        self._too_small = 0
        self.without_update += 1
        if self.without_update == _PATIENCE:
            warn(
                f"PoseAugHook: {_PATIENCE} batches were augmented and {self._expected} has not "
                "stepped. Does another one step in its place? Leave the argument out, and any with "
                "the estimator's parameters counts. Is it no torch.optim.Optimizer? Then call "
                "hook.step() right before its step()."
            )
