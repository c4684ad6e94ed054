"""Where a pose has to stand to be seen like another one: where its root is, and how large."""

from __future__ import annotations

import torch
from torch import Tensor

from .camera import undistort_points
from .rigid import root_relative
from .skeleton import Skeleton
from .windows import middle_frame

_SMALLEST = 1e-3  # of a picture's size, in slopes x/z: a metre at a kilometre


def place_as_seen(
    joints: Tensor, pictures: Tensor, intrinsics: Tensor, skeleton: Skeleton
) -> Tensor:
    """Root positions that give poses the root position and the size of given 2D poses.

    The alignment of PoseDA's global position alignment module (Chai et al., ICCV 2023), in closed
    form. Size is the spread of the joints about their mean; what perspective does to it over the
    depth of a body is left out.

    Args:
        joints: (B, T, J, 3) metres, turned as they will be seen; where they stand does not matter.
        pictures: (B, J, 2) normalised screen coordinates.
        intrinsics: (B, 9) of the cameras that see the poses.
        skeleton: The tree.

    Returns:
        (B, 1, 3) metres, camera space, for the root in the window's middle frame.
    """
    slopes = undistort_points(pictures, intrinsics)
    pose = root_relative(joints[:, middle_frame(joints.shape[1])], skeleton)[..., :2]
    depth = _size(pose) / _size(slopes).clamp(min=_SMALLEST)
    root = slopes[:, skeleton.root]
    return torch.cat([root * depth, depth], -1).unsqueeze(1)


def _size(points: Tensor) -> Tensor:
    """(B, 1) root mean square distance of points (B, J, 2) from their mean."""
    centred = points - points.mean(1, keepdim=True)
    return centred.square().sum(-1).mean(1, keepdim=True).sqrt()
