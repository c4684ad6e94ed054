"""Left and right exchanged: the flip augmentation of the known training loops."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

# Of the nine intrinsics those that change their sign: the principal point's x, and p1.
_MIRRORED_INTRINSICS = (2, 7)


def mirrored(poses: Any, permutation: Sequence[int]) -> Any:
    """Mirror poses left to right, as a copy.

    Args:
        poses: Array or tensor (..., J, 2) or (..., J, 3), x first, centred on x = 0.
        permutation: Which joint is the mirror image of each, `Skeleton.flip_permutation`.
    """
    poses = poses[..., list(permutation), :]
    poses[..., 0] *= -1
    return poses


def mirrored_camera(intrinsics: Any) -> Any:
    """The cameras (..., 9) that see the mirrored poses as the mirrored picture, as a copy."""
    intrinsics = intrinsics + 0
    intrinsics[..., _MIRRORED_INTRINSICS] *= -1
    return intrinsics
