"""Bones: there and back over random skeletons, slow loops, and the mirror image."""

from __future__ import annotations

import numpy as np
import torch
from helpers import agree
from hypothesis import given
from random_bodies import (
    leading_shapes,
    lengths_of,
    mirror,
    mirrored_bones,
    normal,
    seeds,
    skeletons,
    some_examples,
)

from poseaug_plugin.body.bones import (
    average_bone_lengths,
    bone_directions,
    bone_lengths,
    bones_to_joints,
    joints_to_bones,
    root_relative,
    with_bone_lengths,
)
from poseaug_plugin.body.skeleton import Skeleton

# -- joints and bones ------------------------------------------------------------------------------


@some_examples
@given(skeletons(), leading_shapes, seeds)
def test_joints_to_bones_and_back(skeleton: Skeleton, lead: tuple[int, ...], seed: int) -> None:
    joints = normal(*lead, skeleton.num_joints, 3, seed=seed)
    bones = joints_to_bones(joints, skeleton)
    assert bones.shape == (*lead, skeleton.num_bones, 3)
    agree(bones_to_joints(bones, skeleton, joints[..., skeleton.root, :]), joints)


@some_examples
@given(skeletons(), leading_shapes, seeds)
def test_bones_to_joints_and_back(skeleton: Skeleton, lead: tuple[int, ...], seed: int) -> None:
    bones = normal(*lead, skeleton.num_bones, 3, seed=seed)
    joints = bones_to_joints(bones, skeleton)
    agree(joints_to_bones(joints, skeleton), bones)
    assert (joints[..., skeleton.root, :] == 0).all()


@some_examples
@given(skeletons(), leading_shapes, seeds)
def test_bones_are_what_a_loop_finds(skeleton: Skeleton, lead: tuple[int, ...], seed: int) -> None:
    joints = normal(*lead, skeleton.num_joints, 3, seed=seed)
    numbers = joints.numpy()
    expected = [
        numbers[..., parent, :] - numbers[..., child, :]
        for child, parent in enumerate(skeleton.parent_indices)
        if parent >= 0
    ]
    bones = torch.from_numpy(np.stack(expected, -2))
    agree(joints_to_bones(joints, skeleton), bones)
    lengths = torch.from_numpy(np.linalg.norm(bones.numpy(), axis=-1))
    agree(bone_lengths(bones), lengths)
    agree(bone_directions(bones), bones / lengths[..., None])


@some_examples
@given(skeletons(), seeds)
def test_average_lengths_are_what_a_loop_finds(skeleton: Skeleton, seed: int) -> None:
    joints = normal(3, skeleton.num_joints, 3, seed=seed)
    lengths = lengths_of(joints, skeleton)
    expected = []
    for group in range(skeleton.num_bone_length_groups):
        members = [b for b, g in enumerate(skeleton.bone_length_groups) if g == group]
        expected.append(sum(lengths[:, b] for b in members) / len(members))
    agree(average_bone_lengths(joints, skeleton), torch.stack(expected, -1))


@some_examples
@given(skeletons(), seeds)
def test_new_lengths_keep_directions_and_root(skeleton: Skeleton, seed: int) -> None:
    joints = normal(3, 2, skeleton.num_joints, 3, seed=seed)
    lengths = 0.2 + normal(3, 1, skeleton.num_bones, seed=seed).square()
    changed = with_bone_lengths(joints, lengths, skeleton)
    agree(lengths_of(changed, skeleton), lengths.expand(3, 2, -1))
    directions = [bone_directions(joints_to_bones(j, skeleton)) for j in (joints, changed)]
    agree(directions[1], directions[0])
    assert torch.equal(changed[..., skeleton.root, :], joints[..., skeleton.root, :])


@some_examples
@given(skeletons(), leading_shapes, seeds)
def test_root_relative(skeleton: Skeleton, lead: tuple[int, ...], seed: int) -> None:
    joints = normal(*lead, skeleton.num_joints, 3, seed=seed)
    relative = root_relative(joints, skeleton)
    assert (relative[..., skeleton.root, :] == 0).all()
    agree(joints_to_bones(relative, skeleton), joints_to_bones(joints, skeleton))


def test_tables_made_in_inference_mode_serve_training_later() -> None:
    skeleton = Skeleton("fresh", {"a": None, "b": "a", "c": "b"}, {"all": ["a", "b", "c"]})
    with torch.inference_mode():
        joints_to_bones(torch.randn(1, 3, 3), skeleton)
    joints = torch.randn(2, 3, 3, requires_grad=True)
    bones_to_joints(joints_to_bones(joints, skeleton), skeleton).sum().backward()
    assert joints.grad is not None


# -- left and right --------------------------------------------------------------------------------


@some_examples
@given(skeletons(), seeds)
def test_mirroring_twice_is_nothing(skeleton: Skeleton, seed: int) -> None:
    joints = normal(2, skeleton.num_joints, 3, seed=seed)
    assert torch.equal(mirror(mirror(joints, skeleton), skeleton), joints)


@some_examples
@given(skeletons(), seeds)
def test_bones_of_the_mirror_image(skeleton: Skeleton, seed: int) -> None:
    joints = normal(2, skeleton.num_joints, 3, seed=seed)
    bones = joints_to_bones(joints, skeleton)[:, mirrored_bones(skeleton)]
    agree(joints_to_bones(mirror(joints, skeleton), skeleton), bones * bones.new_tensor([-1, 1, 1]))


@some_examples
@given(skeletons(), seeds)
def test_average_lengths_of_the_mirror_image(skeleton: Skeleton, seed: int) -> None:
    joints = normal(2, skeleton.num_joints, 3, seed=seed)
    lengths = average_bone_lengths(joints, skeleton)
    agree(average_bone_lengths(mirror(joints, skeleton), skeleton), lengths)
