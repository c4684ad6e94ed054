"""Putting augmented samples into a host's batch, or behind it."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor


class HostBatch(NamedTuple):
    """An augmented batch with its cameras."""

    inputs_2d: Tensor
    inputs_3d: Tensor
    camera: Any


def mixed(
    original: Tensor,
    made: Tensor,
    clean: Tensor,
    rows: Tensor,
    valid: Tensor,
    mix: Literal["replace", "append"],
) -> Tensor:
    """The batch with augmented samples where they are valid; everything else bit for bit.

    Args:
        original: (B, ...) as the host has it.
        made: (k, ...) the augmented samples.
        clean: (k, ...) those that they stand for.
        rows: (k,) where these are.
        valid: (k,) bool.
        mix: Put them in their places, or behind the batch.
    """
    keep = valid.reshape(-1, *[1] * (made.dim() - 1))
    samples = torch.where(keep, made, clean)
    original = original.detach()
    if mix == "append":
        return torch.cat([original, samples])
    return original.index_copy(0, rows, samples).contiguous()


def twice(camera: Any) -> Any:  # noqa: ANN401
    """(B, .) cameras for a batch and its appended copy; what is shared stays as it is."""
    if isinstance(camera, (tuple, list)):
        return type(camera)(map(twice, camera))
    if getattr(camera, "ndim", 0) != 2:
        return camera
    return torch.cat([camera] * 2) if isinstance(camera, Tensor) else np.concatenate([camera] * 2)
