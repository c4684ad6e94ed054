"""What is done to a pose, apart from how it is chosen: parameters in, poses out; nothing random."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .bones import bone_directions, bone_lengths, bones_to_joints, joints_to_bones
from .rigid import transform_rigidly, turn_by
from .skeleton import Skeleton
from .windows import middle_frame

_OPPOSITE = 1e-6  # of 1 + cosine: a bone turned right round has no smallest rotation


class AugmentationParameters(NamedTuple):
    """One augmentation of a batch of windows (PoseAug section 3.2: gamma_ba, gamma_bl, R and t).

    The size of 1 in the second axis shares a value over the window's frames.
    """

    bone_direction_offset: Tensor  # (B, 1, bones, 3) added to unit bones, then renormalised
    bone_length_ratio: Tensor  # (B, 1, bones) length * (1 + ratio)
    rotation: Tensor  # (B, 1, 3, 3) about the window's centre root
    translation: Tensor  # (B, 1, 3) metres: where that root is put, camera space
    focal_ratio: Tensor  # (B, 1) what the camera's focal length is multiplied by


class AugmentedPoses(NamedTuple):
    """Every stage of an augmentation, each (B, T, J, 3) in metres."""

    bent: Tensor  # bone directions changed
    scaled: Tensor  # and bone lengths
    moved: Tensor  # and rotated and put elsewhere: the augmented pose


def centre_root(joints: Tensor, skeleton: Skeleton) -> Tensor:
    """(B, 1, 3) root position in the window's middle frame, for joints (B, T, J, 3)."""
    middle = middle_frame(joints.shape[1])
    return joints[:, middle : middle + 1, skeleton.root]


def identity_parameters(joints: Tensor, skeleton: Skeleton) -> AugmentationParameters:
    """The parameters that change nothing."""
    batch = joints.shape[0]
    return AugmentationParameters(
        joints.new_zeros(batch, 1, skeleton.num_bones, 3),
        joints.new_zeros(batch, 1, skeleton.num_bones),
        torch.eye(3, dtype=joints.dtype, device=joints.device).expand(batch, 1, 3, 3),
        centre_root(joints, skeleton),
        joints.new_ones(batch, 1),
    )


def offset_of_turns(joints: Tensor, turns: Tensor, skeleton: Skeleton) -> Tensor:
    """The bone direction offset that rotates the bones of a window's middle frame.

    Args:
        joints: (B, T, J, 3).
        turns: (B, bones, 3) axis times angle, radians, camera axes.
        skeleton: The tree.

    Returns:
        (B, 1, bones, 3) for `bend_bones`.
    """
    middle = joints[:, middle_frame(joints.shape[1])]
    return turn_by(turns, bone_directions(joints_to_bones(middle, skeleton))).unsqueeze(1)


def bend_bones(bones: Tensor, offset: Tensor) -> Tensor:
    """Turn bones, lengths kept: direction = normalise(direction + offset).

    In a window of frames that is the middle frame's direction; the others are turned with it.

    Args:
        bones: (B, T, bones, 3).
        offset: (B, 1, bones, 3).

    Returns:
        (B, T, bones, 3).
    """
    lengths = bone_lengths(bones).unsqueeze(-1)
    return _bent_directions(bones / lengths, offset) * lengths


def _bent_directions(directions: Tensor, offset: Tensor) -> Tensor:
    """Unit bones (B, T, bones, 3), turned by what takes their middle frame to direction + offset.

    One rotation per bone for the whole window, the smallest that does it, so that a bone moves as
    fast as before. Adding the offset in every frame would speed it up wherever the two cancel.
    """
    frames = directions.shape[1]
    if frames == 1:
        return bone_directions(directions + offset)
    middle = middle_frame(frames)
    start = directions[:, middle : middle + 1]
    end = bone_directions(start + offset)
    axis = torch.cross(start, end, dim=-1)  # times the sine
    cosine = (start * end).sum(-1, keepdim=True)
    along = (axis * directions).sum(-1, keepdim=True) / (1 + cosine).clamp(min=_OPPOSITE)
    return (
        cosine * directions
        + torch.cross(axis.expand_as(directions), directions, dim=-1)
        + (along * axis)
    )


def scale_bones(bones: Tensor, ratio: Tensor) -> Tensor:
    """Stretch bones (B, T, bones, 3) to length * (1 + ratio), directions kept; (B, 1, bones)."""
    return bones * (1 + ratio).unsqueeze(-1)


def apply_augmentation(
    joints: Tensor, parameters: AugmentationParameters, skeleton: Skeleton
) -> AugmentedPoses:
    """Bend, scale and move poses: X' = R H^-1(B') + t (PoseAug section 3.2).

    Deterministic and differentiable in both arguments. The root's path through the window is
    rotated and carried along.

    Args:
        joints: (B, T, J, 3) camera-space metres.
        parameters: What to do.
        skeleton: The tree.

    Returns:
        `AugmentedPoses`.
    """
    root = joints[..., skeleton.root, :]
    bones = bend_bones(joints_to_bones(joints, skeleton), parameters.bone_direction_offset)
    bent = bones_to_joints(bones, skeleton, root)
    bones = scale_bones(bones, parameters.bone_length_ratio)
    scaled = bones_to_joints(bones, skeleton, root)
    moved = transform_rigidly(
        scaled, parameters.rotation, centre_root(joints, skeleton), parameters.translation
    )
    return AugmentedPoses(bent, scaled, moved)


def bone_angle_change(joints: Tensor, bent: Tensor, skeleton: Skeleton) -> Tensor:
    """1 - cos of the angle that each bone was turned by: (..., bones), 0 to 2."""
    before = bone_directions(joints_to_bones(joints, skeleton))
    after = bone_directions(joints_to_bones(bent, skeleton))
    return 1 - (before * after).sum(-1)
