"""The content of a checkpoint, and the checks before anything of it is loaded."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..body.skeleton import Skeleton
from ..errors import PoseAugError

_VERSION = 1
_PARTS = {"num_updates", "modules", "generator"}
_FILL = "_pool._extra_state"
_COUNTS = ("_optimizer.second_moment", "_optimizer.steps", "monitor.seen", "monitor.counts")


class Checkpoint(NamedTuple):
    """A training as it was saved."""

    skeleton: Skeleton
    training: dict[str, Any]  # of a `Trainer`


def as_state(skeleton: Skeleton | None, training: dict[str, Any] | None) -> dict[str, Any]:
    """Tensors and plain values; both None where nothing was trained yet."""
    data = None if skeleton is None else skeleton.as_data()
    return {"version": _VERSION, "skeleton": data, "training": training}


def from_state(state: object, known: Skeleton | None) -> Checkpoint | None:
    """Inverse of `as_state`; None where nothing was trained.

    Raises `PoseAugError` for something else, another version, or another skeleton than the one
    that is known already.
    """
    expected = {"version", "skeleton", "training"}
    if not isinstance(state, dict) or set(state) != expected:
        got = sorted(map(str, state)) if isinstance(state, dict) else type(state).__name__
        raise PoseAugError(f"expected the keys {sorted(expected)}, got {got}.")
    if type(state["version"]) is not int or state["version"] != _VERSION:
        raise PoseAugError(f"expected version {_VERSION}, got {state['version']!r}.")
    training = state["training"]
    if training is None:
        return None
    try:
        skeleton = Skeleton.from_data(state["skeleton"])
        fits = known is None or skeleton == known
    except (TypeError, KeyError, ValueError, AttributeError, RuntimeError) as problem:
        raise PoseAugError(f"the skeleton in it cannot be read ({problem}).") from problem
    if not fits:
        raise PoseAugError(f"saved for {skeleton}, this hook has {known}.")
    if not isinstance(training, dict) or set(training) != _PARTS:
        raise PoseAugError(f"training state must have the keys {sorted(_PARTS)}.")
    count = training["num_updates"]
    if not isinstance(count, int) or isinstance(count, bool) or not 0 <= count < 2**53:
        raise PoseAugError(f"num_updates must be a count, got {count!r}.")
    if not _is_random_state(training["generator"]):
        raise PoseAugError("generator must be the state of a torch.Generator.")
    return Checkpoint(skeleton, training)


def problems_with(given: object, modules: nn.Module) -> list[str]:
    """Reasons why a state of the modules cannot be loaded; empty where there are none."""
    if not isinstance(given, dict):
        return [f"the networks must be a dictionary, got {type(given).__name__}"]
    own = modules.state_dict()
    missing, surplus = sorted(set(own) - set(given)), sorted(map(str, set(given) - set(own)))
    if missing or surplus:
        return [
            f"networks differ (missing: {', '.join(missing[:3]) or '-'}; not known here: "
            f"{', '.join(surplus[:3]) or '-'}): was it saved with another preset or options?"
        ]
    problems = []
    for name, value in own.items():
        problem = _problem_with(given[name], value, name)
        if not problem and name.endswith(_FILL):
            capacity = len(own[f"{name.removesuffix(_FILL)}_pool.items"])
            if not 0 <= given[name] <= capacity:
                problem = f"be from 0 to {capacity}, got {given[name]}"
        if problem:
            problems.append(f"{name} must {problem}")
    return problems


def _problem_with(given: object, own: object, name: str) -> str:
    """What a value must be and is not, in words; an empty string where it fits."""
    if not isinstance(own, Tensor):  # the fill of a pool
        fits = type(given) is type(own)
        return "" if fits else f"be a {type(own).__name__}, got {type(given).__name__}"
    if not isinstance(given, Tensor):
        return f"be a tensor of shape {tuple(own.shape)}, got {type(given).__name__}"
    if not _is_dense(given):
        return f"be a dense tensor with values, got {given.layout} on {given.device}"
    if given.shape != own.shape or given.dtype != own.dtype:
        return (
            f"be a tensor of shape {tuple(own.shape)} and {own.dtype}, got {tuple(given.shape)} "
            f"and {given.dtype}"
        )
    # A policy of one's own may have infinite buffers.
    if given.is_floating_point() and not bool((given.isfinite() | ~own.isfinite()).all()):
        return "be finite, got NaN or Inf"
    if name.endswith(_COUNTS) and bool((given < 0).any()):
        return "not be negative"
    return ""


def _is_dense(value: Tensor) -> bool:
    has_values = value.layout == torch.strided and not value.is_meta
    return has_values and not (value.is_nested or value.is_quantized)


def _is_random_state(value: object) -> bool:
    if not isinstance(value, Tensor) or value.dtype != torch.uint8 or not _is_dense(value):
        return False
    scratch = torch.Generator()
    if value.shape != scratch.get_state().shape:
        return True  # of another kind of device
    try:
        scratch.set_state(value.cpu())
    except RuntimeError:
        return False
    return True
