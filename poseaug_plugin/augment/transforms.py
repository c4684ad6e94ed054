"""What is done to a pose, apart from how it is chosen: parameters in, poses out; nothing random."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only
from typing_extensions import override

from ..body.bones import (
    bone_directions,
    bone_lengths,
    bones_to_joints,
    joints_to_bones,
    skeleton_tables,
)
from ..body.poses import CanonicalBatch
from ..body.skeleton import Skeleton


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


class AugmentationInputs(NamedTuple):
    """What a policy makes augmented poses of, always the same."""

    poses: CanonicalBatch
    noise: Tensor  # (B, noise_size) standard normal
    judged_frame: Tensor | None  # (B,) which frame critics of single poses see; None for T = 1
    keeps_cameras: bool  # whatever the focal ratio is


@dataclass(frozen=True, eq=False)
class GeneratedPoses:
    """What a policy makes of its inputs, in graph with it where gradients are enabled."""

    inputs: AugmentationInputs
    parameters: AugmentationParameters
    poses: AugmentedPoses
    keypoints: Tensor  # (B, T, J, 2) projection of the moved poses
    intrinsics: Tensor  # (B, 9) of the cameras that see the moved poses
    skeleton: Skeleton

    @cached_property
    def weights(self) -> Tensor:
        """(B,): 1 for usable samples, else 0."""
        return self.inputs.poses.usable.to(self.keypoints.dtype)

    @cached_property
    def clean_pose(self) -> Tensor:
        """(B, J, 3) of the inputs."""
        return select_frame(self.inputs.poses.joints, self.inputs.judged_frame)

    @cached_property
    def bent_pose(self) -> Tensor:
        """(B, J, 3) of the bent poses."""
        return select_frame(self.poses.bent, self.inputs.judged_frame)

    @cached_property
    def seen_pose(self) -> Tensor:
        """(B, J, 2) of the keypoints."""
        return select_frame(self.keypoints, self.inputs.judged_frame)

    @cached_property
    def angle_change(self) -> Tensor:
        """(B, bones): by how much bones were turned, as of `bone_angle_change`."""
        return bone_angle_change(self.clean_pose, self.bent_pose, self.skeleton)

    @cached_property
    def length_ratios(self) -> Tensor:
        """(B, groups): bone length ratio of each left/right-tied group."""
        ratios = self.parameters.bone_length_ratio[:, 0]
        return ratios @ skeleton_tables(self.skeleton, ratios.device, ratios.dtype).pooling.T


class AugmentedBatch(NamedTuple):
    """The augmented samples of a batch, and what an update reads; nothing carries a graph."""

    joints: Tensor  # (k, T or 1, J, 3) augmented poses, in the frames where the host has 3D
    keypoints: Tensor  # (k, T, J, 2) likewise, all frames
    intrinsics: Tensor  # (k, 9) of the cameras that see them
    accepted: Tensor  # (k,) bool: the augmented pose replaces its original
    sources: Tensor  # (k,) which samples of the host's batch they stand for
    places: Tensor  # (k,) which samples of the output they are
    originals: Tensor  # (m,) which samples of the output are originals
    target: int  # the frame of the window that is lifted, where it is one of several
    batch: CanonicalBatch  # the host's whole batch
    inputs: AugmentationInputs | None  # those that the next update makes again, where it learns


class Policy(nn.Module):
    """From poses and noise to the parameters of an augmentation; one's own overrides `forward`.

    Joints (B, T, J, 3), camera-space metres, and standard normal noise (B, noise_size) decide it.
    """

    noise_size: int  # standard normal numbers that one augmentation takes

    @override
    def forward(self, joints: Tensor, noise: Tensor) -> AugmentationParameters:
        """Choose the parameters."""
        raise TypeError(f"{type(self).__name__} must define forward(joints, noise).")

    def entropy(self) -> Tensor | None:
        """How widely the policy draws, 0-d, in nats and up to a constant; None if that is fixed."""
        return None


def evenly_spaced(values: Any, available: int, wanted: int | None) -> Any:
    """``wanted`` of ``available`` samples out of every tensor of nested tuples; None for all."""
    if wanted is None or available <= wanted:
        return values
    rows = torch.arange(wanted, device=tree_leaves(values)[0].device) * available // wanted
    return tree_map_only(Tensor, lambda tensor: tensor.index_select(0, rows), values)


def middle_frame(frames: int) -> int:
    """Index of the frame that stands for a window."""
    return frames // 2


def select_frame(poses: Tensor, frame: Tensor | None) -> Tensor:
    """(B, J, C) out of (B, T, J, C): of each window its own ``frame`` (B,); None for T = 1."""
    if frame is None:
        return poses[:, 0]
    return poses.take_along_dim(frame[:, None, None, None], 1)[:, 0]


def matching_frames(poses: Tensor, frames: int, target: int) -> Tensor:
    """Of (B, T, ...) the one ``target`` frame where only that is asked for, else all of them."""
    return poses[:, target : target + 1] if frames == 1 < poses.shape[1] else poses


def centre_root(joints: Tensor, skeleton: Skeleton) -> Tensor:
    """(B, 1, 3) root position in the window's middle frame, for joints (B, T, J, 3)."""
    middle = middle_frame(joints.shape[1])
    return joints[:, middle : middle + 1, skeleton.root]


def identity_parameters(joints: Tensor, skeleton: Skeleton) -> AugmentationParameters:
    """The parameters that change nothing."""
    batch, bones = joints.shape[0], joints.shape[2] - 1
    return AugmentationParameters(
        joints.new_zeros(batch, 1, bones, 3),
        joints.new_zeros(batch, 1, bones),
        torch.eye(3, dtype=joints.dtype, device=joints.device).expand(batch, 1, 3, 3),
        centre_root(joints, skeleton),
        joints.new_ones(batch, 1),
    )


def bend_directions(directions: Tensor, offset: Tensor) -> Tensor:
    """Turn bones: direction = normalise(direction + offset), in a window's middle frame.

    Of unit vectors (B, T, bones, 3) and offsets (B, 1, bones, 3). The smallest rotation serves
    the whole window, so that it moves as fast as before: offsets in every frame may speed it up.
    """
    frames = directions.shape[1]
    middle = middle_frame(frames)
    start = directions[:, middle : middle + 1]
    end = bone_directions(start + offset)
    if frames == 1:
        return end
    axis = torch.cross(start, end, dim=-1)  # times the sine
    across = torch.cross(axis.expand_as(directions), directions, dim=-1)
    cosine = (start * end).sum(-1, keepdim=True)
    # A bone turned right round has no smallest rotation.
    along = (axis * directions).sum(-1, keepdim=True) / (1 + cosine).clamp(min=1e-6)
    return cosine * directions + across + along * axis


def apply_augmentation(
    joints: Tensor, parameters: AugmentationParameters, skeleton: Skeleton
) -> AugmentedPoses:
    """Bend, scale and move poses: X' = R H^-1(B') + t (PoseAug section 3.2).

    Differentiable in the joints (B, T, J, 3), camera-space metres, and in the parameters. The
    root's path through the window is rotated and carried along.
    """
    root, centre = joints[..., skeleton.root, :], centre_root(joints, skeleton)
    bones = joints_to_bones(joints, skeleton)
    lengths = bone_lengths(bones).unsqueeze(-1)
    bent_bones = bend_directions(bones / lengths, parameters.bone_direction_offset) * lengths
    scaled_bones = bent_bones * (1 + parameters.bone_length_ratio).unsqueeze(-1)
    both = torch.stack([bent_bones, scaled_bones])
    bent, scaled = bones_to_joints(both, skeleton, root).unbind()
    # Rotated about the centre, which goes to the translation: R (x - c) + t.
    points, rotation = scaled.flatten(1, 2) - centre, parameters.rotation[:, 0]
    moved = torch.baddbmm(parameters.translation, points, rotation.mT).view_as(scaled)
    return AugmentedPoses(bent, scaled, moved)


def bone_angle_change(joints: Tensor, bent: Tensor, skeleton: Skeleton) -> Tensor:
    """1 - cos of the angle that each bone was turned by: (..., bones), 0 to 2."""
    before = bone_directions(joints_to_bones(joints, skeleton))
    after = bone_directions(joints_to_bones(bent, skeleton))
    return 1 - (before * after).sum(-1)
