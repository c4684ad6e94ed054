"""Checkpoints of tensors and plain values, from which training goes on bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .files import FileError, write_whole


def save(state: dict[str, Any], path: Path) -> None:
    """Write in one move: after an interruption the old file is whole."""
    write_whole(path, lambda partial: torch.save(state, partial))


def load(path: Path) -> dict[str, Any]:
    """Read what `save` wrote; `FileError` for anything else."""
    try:
        return torch.load(path, weights_only=True, map_location="cpu")
    except Exception as problem:  # what is no checkpoint can raise anything
        first = str(problem).split("\n")[0]
        raise FileError(
            f"{path}: expected a checkpoint of this script ({type(problem).__name__}: {first}). "
            "Leave --resume out to start anew."
        ) from None


def states(order: torch.Generator, **parts: Any) -> dict[str, Any]:
    """States by name: parts with a ``state_dict`` (or None), the order of batches, random streams.

    Args:
        order: Generator of the data loader.
        **parts: Modules, optimizers, hooks.
    """
    of_parts = {name: None if part is None else part.state_dict() for name, part in parts.items()}
    return {**of_parts, "order": order.get_state(), "torch_random_state": random_state()}


def restore(state: dict[str, Any], order: torch.Generator, **parts: Any) -> None:
    """Load what `states` gave into the same parts."""
    for name, part in parts.items():
        if part is not None:
            part.load_state_dict(state[name])
    order.set_state(state["order"])
    set_random_state(state["torch_random_state"])


def random_state() -> list[Tensor]:
    """Torch's random streams (dropout draws from them): the CPU's and those of all GPUs."""
    return [torch.get_rng_state(), *torch.cuda.get_rng_state_all()]


def set_random_state(states: list[Tensor]) -> None:
    """Go on from `random_state`."""
    torch.set_rng_state(states[0])
    torch.cuda.set_rng_state_all(states[1:])
