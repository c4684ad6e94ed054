"""Is a saved state one that these networks can go on from? Asked before anything is assigned."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .guarded import GuardedAdam
from .pool import FakePosePool


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
