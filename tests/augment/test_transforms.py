"""What is done to a pose: slow loops, what stays, windows of frames, and the mirror image."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from helpers import agree, bent_joints, human_poses, scaled_joints
from hypothesis import given
from random_bodies import (
    any_parameters,
    generator,
    lengths_of,
    mirror,
    mirrored_bones,
    normal,
    seeds,
    skeletons,
    some_examples,
    windows,
)
from torch import Tensor

from poseaug_plugin.augment.transforms import (
    AugmentationParameters,
    apply_augmentation,
    bone_angle_change,
    identity_parameters,
    matching_frames,
    select_frame,
)
from poseaug_plugin.body.bones import per_bone
from poseaug_plugin.body.presets import H36M_16
from poseaug_plugin.body.skeleton import Skeleton

# -- bones and bodies ------------------------------------------------------------------------------


@some_examples
@given(skeletons(), windows, seeds)
def test_identity_parameters_change_nothing(
    skeleton: Skeleton, size: tuple[int, int], seed: int
) -> None:
    joints = human_poses(*size, skeleton, generator(seed))
    for stage in apply_augmentation(joints, identity_parameters(joints, skeleton), skeleton):
        agree(stage, joints)


def smallest_turn(start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """The rotation in the plane of two unit vectors that takes one to the other."""
    side = end - (start @ end) * start
    if np.linalg.norm(side) < 1e-12:
        return np.eye(3)
    side = side / np.linalg.norm(side)
    angle = math.atan2(side @ end, start @ end)
    plane = np.stack([start, side], 1)
    within = np.array(
        [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
    ) - np.eye(2)
    return np.eye(3) + plane @ within @ plane.T


def augment_by_loop(
    joints: Tensor, parameters: AugmentationParameters, skeleton: Skeleton
) -> list[Tensor]:
    """`apply_augmentation` joint by joint, root outwards."""
    x = joints.numpy()
    offset, ratio, rotation, translation, _ = (p.numpy() for p in parameters)
    bent, scaled, moved = (np.empty_like(x) for _ in range(3))
    order = sorted(range(skeleton.num_joints), key=lambda j: len(skeleton.bones_to_root(j)))
    for sample, frame in np.ndindex(*x.shape[:2]):
        middle = x.shape[1] // 2
        centre = x[sample, middle, skeleton.root]
        for joint in order:
            here = (sample, frame, joint)
            if joint == skeleton.root:
                bent[here] = scaled[here] = x[here]
            else:
                parent = (sample, frame, skeleton.parent_indices[joint])
                bone = skeleton.bone_children.index(joint)
                vector = x[here] - x[parent]
                # Offsets are for bones from child to parent, in the middle frame.
                start = x[sample, middle, joint] - x[sample, middle, parent[2]]
                start = start / np.linalg.norm(start)
                end = start - offset[sample, 0, bone]
                turned = smallest_turn(start, end / np.linalg.norm(end)) @ vector
                bent[here] = bent[parent] + turned
                scaled[here] = scaled[parent] + turned * (1 + ratio[sample, 0, bone])
            moved[here] = rotation[sample, 0] @ (scaled[here] - centre) + translation[sample, 0]
    return [torch.from_numpy(stage) for stage in (bent, scaled, moved)]


@some_examples
@given(skeletons(), windows, seeds)
def test_augmentation_is_what_a_loop_does(
    skeleton: Skeleton, size: tuple[int, int], seed: int
) -> None:
    joints = human_poses(*size, skeleton, generator(seed))
    parameters = any_parameters(joints, skeleton, seed)
    stages = apply_augmentation(joints, parameters, skeleton)
    for stage, expected in zip(stages, augment_by_loop(joints, parameters, skeleton), strict=True):
        agree(stage, expected)


@some_examples
@given(skeletons(), windows, seeds)
def test_bending_and_moving_keep_bone_lengths(
    skeleton: Skeleton, size: tuple[int, int], seed: int
) -> None:
    joints = human_poses(*size, skeleton, generator(seed))
    stages = apply_augmentation(joints, any_parameters(joints, skeleton, seed), skeleton)
    agree(lengths_of(stages.bent, skeleton), lengths_of(joints, skeleton))
    agree(lengths_of(stages.moved, skeleton), lengths_of(stages.scaled, skeleton))


@some_examples
@given(skeletons(), windows, seeds)
def test_scaling_multiplies_lengths_and_keeps_directions(
    skeleton: Skeleton, size: tuple[int, int], seed: int
) -> None:
    joints = human_poses(*size, skeleton, generator(seed))
    ratio = any_parameters(joints, skeleton, seed).bone_length_ratio
    scaled = scaled_joints(joints, ratio, skeleton)
    agree(lengths_of(scaled, skeleton), lengths_of(joints, skeleton) * (1 + ratio))
    agree(
        bone_angle_change(joints, scaled, skeleton), torch.zeros_like(lengths_of(joints, skeleton))
    )


def test_bone_angle_change_counts_from_zero_to_two() -> None:
    skeleton = Skeleton("bone", {"a": None, "b": "a"}, {"all": ["a", "b"]})
    before = torch.tensor([[0.0, 0, 0], [1, 0, 0]])
    for after, change in (([2.0, 0, 0], 0.0), ([0.0, 3, 0], 1.0), ([-1.0, 0, 0], 2.0)):
        turned = bone_angle_change(before, torch.tensor([[0.0, 0, 0], after]), skeleton)
        assert turned.tolist() == [change]


# -- left and right --------------------------------------------------------------------------------


@some_examples
@given(skeletons(), windows, seeds)
def test_tied_scaling_commutes_with_the_mirror(
    skeleton: Skeleton, size: tuple[int, int], seed: int
) -> None:
    joints = human_poses(*size, skeleton, generator(seed))
    groups = 0.5 * normal(size[0], 1, skeleton.num_bone_length_groups, seed=seed).tanh()
    ratio = per_bone(groups, skeleton)
    scaled = scaled_joints(joints, ratio, skeleton)
    agree(scaled_joints(mirror(joints, skeleton), ratio, skeleton), mirror(scaled, skeleton))


@some_examples
@given(skeletons(), windows, seeds)
def test_mirrored_bending_commutes_with_the_mirror(
    skeleton: Skeleton, size: tuple[int, int], seed: int
) -> None:
    joints = human_poses(*size, skeleton, generator(seed))
    offset = any_parameters(joints, skeleton, seed).bone_direction_offset
    opposite = offset[:, :, mirrored_bones(skeleton)] * offset.new_tensor([-1, 1, 1])
    bent = bent_joints(joints, offset, skeleton)
    agree(bent_joints(mirror(joints, skeleton), opposite, skeleton), mirror(bent, skeleton))


# -- windows ---------------------------------------------------------------------------------------


def window_and_parameters(frames: int = 5) -> tuple[Tensor, AugmentationParameters]:
    """A window in which bodies walk, and parameters shared over time."""
    joints = human_poses(4, frames, H36M_16, generator(0))
    parameters = any_parameters(joints, H36M_16, 1)
    return joints, parameters._replace(
        bone_direction_offset=parameters.bone_direction_offset[:, :1]
    )


def test_bone_lengths_stay_constant_over_a_window() -> None:
    joints, parameters = window_and_parameters()
    for stage in apply_augmentation(joints, parameters, H36M_16):
        lengths = lengths_of(stage, H36M_16)
        agree(lengths, lengths[:, :1].expand_as(lengths))


def test_the_root_keeps_its_speed_in_every_frame() -> None:
    joints, parameters = window_and_parameters()
    moved = apply_augmentation(joints, parameters, H36M_16).moved
    speeds = [poses[:, :, H36M_16.root].diff(dim=1).norm(dim=-1) for poses in (joints, moved)]
    assert (speeds[0] > 0).all()
    agree(speeds[1], speeds[0])


def test_the_root_path_is_rotated_along() -> None:
    joints, parameters = window_and_parameters()
    moved = apply_augmentation(joints, parameters, H36M_16).moved
    before, after = (poses[:, :, H36M_16.root].diff(dim=1) for poses in (joints, moved))
    agree(after, (parameters.rotation @ before.unsqueeze(-1)).squeeze(-1))


def test_of_every_window_its_own_frame_is_selected() -> None:
    joints = human_poses(3, 5, H36M_16, generator(0))
    selected = select_frame(joints, torch.tensor([4, 0, 2]))
    assert torch.equal(selected, torch.stack([joints[0, 4], joints[1, 0], joints[2, 2]]))
    assert torch.equal(select_frame(joints[:, :1], None), joints[:, 0])


def test_of_a_window_the_target_frame_is_taken_where_one_is_asked_for() -> None:
    joints = human_poses(3, 5, H36M_16, generator(0))
    assert torch.equal(matching_frames(joints, 1, 3), joints[:, 3:4])
    assert matching_frames(joints, 5, 3) is joints
    assert matching_frames(joints[:, :1], 1, 3).shape == (3, 1, 16, 3)


@pytest.mark.parametrize("frames", [1, 4, 5])
def test_the_middle_frame_is_put_in_place(frames: int) -> None:
    joints, parameters = window_and_parameters(frames)
    moved = apply_augmentation(joints, parameters, H36M_16).moved
    agree(moved[:, frames // 2, H36M_16.root], parameters.translation[:, 0])
