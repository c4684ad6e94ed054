"""What a checkpoint holds, and whether these networks can go on from it: asked before they do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .errors import PoseAugError
from .guarded import GuardedAdam
from .pool import FakePosePool
from .skeleton import Skeleton

_VERSION = 1


class Saved(NamedTuple):
    """What a checkpoint is about."""

    skeleton: Skeleton
    training: dict[str, Any]  # of a `PolicyTrainer`


def as_state(skeleton: Skeleton | None, training: dict[str, Any] | None) -> dict[str, Any]:
    """Tensors and plain values; both None where nothing was trained yet."""
    data = None if skeleton is None else skeleton.as_data()
    return {"version": _VERSION, "skeleton": data, "training": training}


def from_state(state: object, known: Skeleton | None) -> Saved | None:
    """Inverse of `as_state`; None where nothing was trained.

    Args:
        state: What was loaded.
        known: The skeleton that it must be for; None for any.

    Raises:
        PoseAugError: It is something else, of another version, or for another skeleton.
    """
    expected = {"version", "skeleton", "training"}
    if not isinstance(state, dict) or set(state) != expected:
        got = sorted(state) if isinstance(state, dict) else type(state).__name__
        raise PoseAugError(f"expected the keys {sorted(expected)}, got {got}.")
    if state["version"] != _VERSION:
        raise PoseAugError(f"expected version {_VERSION}, got {state['version']!r}.")
    if state["training"] is None:
        return None
    try:
        skeleton = Skeleton.from_data(state["skeleton"])
    except (PoseAugError, TypeError, KeyError, ValueError, AttributeError) as problem:
        raise PoseAugError(f"the skeleton in it cannot be read ({problem}).") from problem
    if known is not None and skeleton != known:
        raise PoseAugError(f"saved for {skeleton}, this hook has {known}.")
    return Saved(skeleton, state["training"])


def problems_with(
    state: dict[str, Any],
    modules: nn.Module,
    adams: Mapping[str, GuardedAdam],
) -> list[str]:
    """What keeps the state of a `PolicyTrainer` from being loaded; empty where nothing does."""
    expected = {"num_updates", "modules", "optimizers", "generator"}
    if not isinstance(state, dict) or set(state) != expected:
        return [f"training state must have the keys {sorted(expected)}"]
    problems = []
    own, given = modules.state_dict(), state["modules"]
    if not isinstance(given, dict):
        return [f"the networks must be a dictionary, got {_kind(given)}"]
    missing, surplus = sorted(set(own) - set(given)), sorted(set(given) - set(own))
    if missing or surplus:
        return [
            f"networks differ (missing: {', '.join(missing[:3]) or '-'}; not known here: "
            f"{', '.join(surplus[:3]) or '-'}): was it saved with another preset or options?"
        ]
    for name in own:
        here, there = _kind(own[name]), _kind(given[name])
        if here != there:
            problems.append(f"{name} must be {here}, got {there}")
    for name, pool in modules.named_children():
        if isinstance(pool, FakePosePool):
            fill = given[f"{name}._extra_state"]
            if not isinstance(fill, int) or not 0 <= fill <= pool.capacity:
                problems.append(
                    f"the fill of {name} must lie in [0, {pool.capacity}], got {fill!r}"
                )
    given = state["optimizers"]
    if not isinstance(given, dict) or set(given) != set(adams):
        problems.append(f"optimizers must be those of {', '.join(sorted(adams)) or 'nobody'}")
    else:
        for name, adam in adams.items():
            problems += [f"{name}: {p}" for p in adam.problems_with(given[name])]
    if not isinstance(state["num_updates"], int) or state["num_updates"] < 0:
        problems.append(f"num_updates must be a count, got {state['num_updates']!r}")
    if not _is_random_state(state["generator"]):
        problems.append("generator must be the state of a torch.Generator")
    return problems


def _kind(value: object) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    return type(value).__name__


def _is_random_state(value: object) -> bool:
    if not isinstance(value, Tensor) or value.dtype != torch.uint8:
        return False
    scratch = torch.Generator()
    if value.shape != scratch.get_state().shape:
        return True  # of another kind of device
    try:
        scratch.set_state(value.cpu())
    except RuntimeError:
        return False
    return True
