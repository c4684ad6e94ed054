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


def mixed_cameras(
    camera: Any,  # noqa: ANN401
    made: Tensor,
    rows: Tensor,
    valid: Tensor,
    batch_size: int,
    mix: Literal["replace", "append"],
) -> Any:  # noqa: ANN401
    """The cameras of a `mixed` batch, in the host's form.

    Args:
        camera: (B, 9) or (9,) intrinsics, tensor or array; or several things, of which the first
            is that and the others have a row per sample.
        made: (k, 9) of the augmented samples.
        rows: As in `mixed`.
        valid: As in `mixed`.
        batch_size: B.
        mix: As in `mixed`.

    Returns:
        (N, 9), of the type, dtype and device that came in; None for None.
    """
    if camera is None:
        return None
    if isinstance(camera, (tuple, list)):
        first, *others = camera
        changed = mixed_cameras(first, made, rows, valid, batch_size, mix)
        if mix == "append":
            others = [_again(values, batch_size) for values in others]
        return _like(camera, [changed, *others])
    camera = one_each(camera, batch_size)
    own = camera.detach() if isinstance(camera, Tensor) else torch.as_tensor(camera, device="cpu")
    its_rows = rows.to(own.device)
    cameras = mixed(own, made.to(own), own[its_rows], its_rows, valid.to(own.device), mix)
    return cameras if isinstance(camera, Tensor) else np.asarray(cameras)


def one_each(camera: Any, batch_size: int) -> Any:  # noqa: ANN401
    """Cameras in the host's form, the intrinsics (B, 9) also where they were (9,) for all."""
    if isinstance(camera, (tuple, list)):
        return _like(camera, [one_each(camera[0], batch_size), *camera[1:]])
    if getattr(camera, "ndim", 0) != 1:
        return camera
    if isinstance(camera, Tensor):
        return camera.expand(batch_size, -1).contiguous()
    return np.repeat(camera[None], batch_size, 0)


def _like(camera: Any, values: list[Any]) -> Any:  # noqa: ANN401
    """A list, a tuple or a named tuple of other values."""
    return type(camera)(*values) if hasattr(camera, "_fields") else type(camera)(values)


def _again(values: Any, batch_size: int) -> Any:  # noqa: ANN401
    """What has a row per sample, for a batch and its appended copy."""
    if not getattr(values, "ndim", 0) or len(values) != batch_size:
        return values
    return torch.cat([values] * 2) if isinstance(values, Tensor) else np.concatenate([values] * 2)
