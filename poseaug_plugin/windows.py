"""What the networks see of a window of frames: as much of a long one as of a short one."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from .bones import bone_directions, joints_to_bones
from .skeleton import Skeleton

_PLACES = (-1.0, -0.5, 0.5, 1.0)
"""Where between a window's ends the frames lie that are compared with its middle."""

# Bone directions change by hundredths per frame at 25 to 60 frames a second. With these factors
# human motion is of order one.
_VELOCITY_SCALE = 25.0
_ACCELERATION_SCALE = 50.0


def middle_frame(frames: int) -> int:
    """Index of the frame that stands for a window, which the single-frame networks see."""
    return frames // 2


def one_frame(poses: Tensor, frame: Tensor | None) -> Tensor:
    """(B, ...) out of (B, T, J, C), of each window its own frame (B,); None for T = 1."""
    if frame is None:
        return poses[:, 0]
    return poses.take_along_dim(frame[:, None, None, None], 1)[:, 0]


# Kept for good: a recorded CUDA graph reads it where it is.
@cache
def _compared_frames(frames: int, device: torch.device) -> Tensor:
    middle = middle_frame(frames)
    before, after = middle, frames - 1 - middle
    places = [middle + round(place * (after if place > 0 else before)) for place in _PLACES]
    with torch.inference_mode(False):
        return torch.tensor(places, device=device)


def displacements(points: Tensor) -> Tensor:
    """How (B, T, J, C) points lie in four other frames, less where they lie in the middle one.

    Returns:
        (B, 4 * J * C), whatever T is; zeros for a single frame.
    """
    frames = points.shape[1]
    others = points.index_select(1, _compared_frames(frames, points.device))
    middle = middle_frame(frames)
    return (others - points[:, middle : middle + 1]).flatten(1)


def num_displacements(num_joints: int, channels: int) -> int:
    """Width of what `displacements` gives."""
    return len(_PLACES) * num_joints * channels


def bone_motion(joints: Tensor, skeleton: Skeleton) -> Tensor:
    """Velocity and acceleration of bone directions about the window's middle frame.

    Central differences over three neighbouring frames, in units in which human motion is of order
    one.

    Args:
        joints: (B, T, J, 3), T >= 3, in any unit and frame.
        skeleton: The tree.

    Returns:
        (B, 2 * bones * 3).
    """
    middle = middle_frame(joints.shape[1])
    around = joints[:, middle - 1 : middle + 2]
    before, now, after = bone_directions(joints_to_bones(around, skeleton)).unbind(1)
    velocity = _VELOCITY_SCALE * (after - before) / 2
    acceleration = _ACCELERATION_SCALE * (after - 2 * now + before)
    return torch.cat([velocity, acceleration], 1).flatten(1)


def motion_features(joints: Tensor, keypoints: Tensor, skeleton: Skeleton) -> Tensor:
    """What the motion critic sees: bones in space and keypoints in the picture, both moving.

    Args:
        joints: (B, T, J, 3), T >= 3.
        keypoints: (B, T, J, 2) normalised screen coordinates.
        skeleton: The tree.

    Returns:
        (B, `num_motion_features`).
    """
    return torch.cat([bone_motion(joints, skeleton), displacements(keypoints)], 1)


def num_motion_features(skeleton: Skeleton) -> int:
    """Width of what `motion_features` gives."""
    return 6 * skeleton.num_bones + num_displacements(skeleton.num_joints, 2)
