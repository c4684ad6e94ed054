"""Batches of poses in the canonical form that everything inside works on.

Canonical: camera-space metres, absolute, (B, T, J, 3), x right, y down, z forward; normalised
screen 2D (B, T, J, 2); nine intrinsics (B, 9). A single pose is a window of T = 1 frames.
"""

from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from .camera import Z_NEAR

DEFAULT_INTRINSICS = (2.29, 2.29, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
"""The camera of a host that has none: Human3.6M's focal length, centred, without a lens."""


class CanonicalPoses(NamedTuple):
    """Poses in canonical form, as an adapter gives them."""

    joints: Tensor  # (B, T, J, 3) float32; or (B, 1, J, 3), where 3D of one frame alone is known
    keypoints: Tensor  # (B, T, J, 2) float32
    intrinsics: Tensor  # (B, 9) float32


class CanonicalBatch(NamedTuple):
    """`CanonicalPoses` that were checked; unusable samples hold harmless values instead."""

    joints: Tensor
    keypoints: Tensor
    intrinsics: Tensor
    usable: Tensor  # (B,) bool: finite, in front of the camera, with a focal length


def canonical_batch(poses: CanonicalPoses) -> CanonicalBatch:
    """Mark samples that cannot be augmented, and make them harmless."""
    joints, keypoints, intrinsics = poses
    # A sum is finite where every number is.
    sums = joints.sum((1, 2, 3)) + keypoints.sum((1, 2, 3)) + intrinsics.sum(1)
    usable = (sums.abs() < torch.inf) & (joints[..., 2].amin((1, 2)) > Z_NEAR)
    usable = usable & (intrinsics[:, :2].amin(1) > 0)
    keep, device = usable.view(-1, 1, 1, 1), joints.device
    return CanonicalBatch(
        torch.where(keep, joints, constant((0.0, 0.0, 5.0), device)),
        torch.where(keep, keypoints, 0.0),
        torch.where(usable.unsqueeze(1), intrinsics, constant(DEFAULT_INTRINSICS, device)),
        usable,
    )


# Kept for good: a recorded CUDA graph reads it where it is.
@cache
def constant(values: tuple[float, ...], device: torch.device) -> Tensor:
    """A vector on a device, made once."""
    with torch.inference_mode(False):
        return torch.tensor(values, device=device, dtype=torch.float32)
