"""Checkpoints of tensors and plain values, from which training goes on bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def save(state: dict[str, Any], path: Path) -> None:
    """Write in one move, so that an interruption leaves the old file whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    torch.save(state, partial)
    partial.replace(path)


def load(path: Path) -> dict[str, Any]:
    """Read what `save` wrote."""
    return torch.load(path, weights_only=True, map_location="cpu")


def random_state() -> list[Tensor]:
    """Torch's random streams, which dropout draws from: the CPU's and those of all GPUs."""
    return [torch.get_rng_state(), *torch.cuda.get_rng_state_all()]


def set_random_state(states: list[Tensor]) -> None:
    """Go on from `random_state`."""
    torch.set_rng_state(states[0])
    torch.cuda.set_rng_state_all(states[1:])
