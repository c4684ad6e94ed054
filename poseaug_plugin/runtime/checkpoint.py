"""The content of a checkpoint, and the checks before anything of it is loaded."""

from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from ..body.skeleton import Skeleton
from ..errors import PoseAugError, check_number

_VERSION = 1
# Ends of names: what cannot be negative, and what has an upper bound too.
_COUNTS = ("_optimizer.second_moment", "_optimizer.steps", "monitor.seen", "monitor.counts")
_FILL, _STRENGTH = "_pool._extra_state", "controller.strength"


def as_state(skeleton: Skeleton | None, training: dict[str, Any] | None) -> dict[str, Any]:
    """A skeleton and the state of its `Trainer`, both None where nothing was trained yet."""
    data = None if skeleton is None else skeleton.as_data()
    return {"version": _VERSION, "skeleton": data, "training": training}


def from_state(state: object, known: Skeleton | None) -> tuple[Skeleton, dict[str, Any]] | None:
    """Inverse of `as_state`, None where nothing was trained; `PoseAugError` for what misfits."""
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
        skeleton = Skeleton(**state["skeleton"])
        fits = known is None or skeleton == known
    except (TypeError, KeyError, ValueError, AttributeError, RuntimeError) as problem:
        raise PoseAugError(f"the skeleton in it cannot be read ({problem}).") from problem
    if not fits:
        raise PoseAugError(f"saved for {skeleton}, this hook has {known}.")
    parts = {"num_updates", "modules", "generator"}
    if not isinstance(training, dict) or set(training) != parts:
        raise PoseAugError(f"training state must have the keys {sorted(parts)}.")
    check_number("num_updates", training["num_updates"], 0, 2**53 - 1, whole=True)
    if not _is_random_state(training["generator"]):
        raise PoseAugError("generator must be the state of a torch.Generator.")
    return skeleton, training


def check_modules(given: object, modules: nn.Module) -> None:
    """Refuse what cannot be loaded into the modules; `PoseAugError` says why."""
    if not isinstance(given, dict):
        raise PoseAugError(f"the networks must be a dictionary, got {type(given).__name__}.")
    own = modules.state_dict()
    missing, surplus = sorted(set(own) - set(given)), sorted(map(str, set(given) - set(own)))
    if missing or surplus:
        raise PoseAugError(
            f"networks differ (missing: {', '.join(missing[:3]) or '-'}; not known here: "
            f"{', '.join(surplus[:3]) or '-'}): was it saved with another preset or options?"
        )
    problems = {name: _problem_with(given[name], value, name) for name, value in own.items()}
    for name in (name for name in own if name.endswith(_FILL) and not problems[name]):
        capacity = len(own[f"{name.removesuffix(_FILL)}_pool.items"])
        if not 0 <= given[name] <= capacity:
            problems[name] = f"be from 0 to {capacity}, got {given[name]}"
    found = [f"{name} must {problem}" for name, problem in problems.items() if problem]
    if found:
        more = f"; and {len(found) - 3} more" if len(found) > 3 else ""
        raise PoseAugError(f"{'; '.join(found[:3])}{more}.")


def _problem_with(given: object, own: object, name: str) -> str:
    """What a value must be and is not, in words; an empty string where it fits."""
    kind = type(given).__name__
    if not isinstance(own, Tensor):  # the fill of a pool
        return "" if type(given) is type(own) else f"be a {type(own).__name__}, got {kind}"
    wanted = f"be a tensor of shape {tuple(own.shape)}"
    if not isinstance(given, Tensor):
        return f"{wanted}, got {kind}"
    if not _is_dense(given):
        return f"be a dense tensor with values, got {given.layout} on {given.device}"
    if given.shape != own.shape or given.dtype != own.dtype:
        return f"{wanted} and {own.dtype}, got {tuple(given.shape)} and {given.dtype}"
    # A policy of one's own may have infinite buffers.
    if given.is_floating_point() and not bool((given.isfinite() | ~own.isfinite()).all()):
        return "be finite, got NaN or Inf"
    if name.endswith((*_COUNTS, _STRENGTH)) and bool((given < 0).any()):
        return "not be negative"
    return "be 1 at most" if name.endswith(_STRENGTH) and bool(given > 1) else ""


def _is_dense(value: Tensor) -> bool:
    has_values = value.layout == torch.strided and not value.is_meta
    return has_values and not (value.is_nested or value.is_quantized)


def _is_random_state(value: object) -> bool:
    if not isinstance(value, Tensor) or value.dtype != torch.uint8 or not _is_dense(value):
        return False
    scratch = torch.Generator()
    with suppress(RuntimeError):
        if value.shape == scratch.get_state().shape:  # else of another kind of device
            scratch.set_state(value.cpu())
        return True
    return False
