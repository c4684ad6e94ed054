"""Bones without a length: finite numbers and gradients, from the bones to policy and critics."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from helpers import agree, bent_joints, h36m_intrinsics, human_poses, scaled_joints
from random_bodies import generator, normal
from torch import Tensor

from poseaug_plugin.adversary.critics import KeypointCritic, PartKCSCritic
from poseaug_plugin.augment.policy import AugmentationPolicy, Policy, RandomPolicy
from poseaug_plugin.augment.transforms import (
    apply_augmentation,
    bone_angle_change,
    identity_parameters,
)
from poseaug_plugin.body.bones import (
    average_bone_lengths,
    bone_directions,
    bone_lengths,
    joints_to_bones,
    with_bone_lengths,
)
from poseaug_plugin.body.camera import project_points
from poseaug_plugin.body.presets import H36M_16
from poseaug_plugin.body.skeleton import Skeleton
from poseaug_plugin.reference.regressors import RegressorPolicy


def collapsed(which: str, dtype: torch.dtype) -> Tensor:
    """Poses (4, 1, J, 3) of which the first has bones of length zero."""
    joints = human_poses(4, 1, H36M_16, generator(0)).to(dtype)
    if which == "one bone":
        joints[0, :, 11] = joints[0, :, 10]
    elif which == "trunk":
        joints[0, :, 7:9] = joints[0, :, :1]
    else:
        joints[0] = joints[0, :, :1]
    return joints.requires_grad_()


each_collapse = pytest.mark.parametrize("which", ["one bone", "trunk", "all bones"])
each_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])

BONE_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "lengths": lambda x: bone_lengths(joints_to_bones(x, H36M_16)),
    "directions": lambda x: bone_directions(joints_to_bones(x, H36M_16)),
    "average lengths": lambda x: average_bone_lengths(x, H36M_16),
    "new lengths": lambda x: with_bone_lengths(x, torch.ones(15, dtype=x.dtype), H36M_16),
    "bend": lambda x: bent_joints(x, x.new_full((4, 1, 15, 3), 0.1), H36M_16),
    "bend by nothing": lambda x: bent_joints(x, x.new_zeros(4, 1, 15, 3), H36M_16),
    "augment by nothing": lambda x: (
        apply_augmentation(x, identity_parameters(x, H36M_16), H36M_16).moved
    ),
    "scale": lambda x: scaled_joints(x, x.new_full((4, 1, 15), 0.1), H36M_16),
    "angle change": lambda x: bone_angle_change(
        x, bent_joints(x, x.new_full((4, 1, 15, 3), 0.1), H36M_16), H36M_16
    ),
}


class FixedTrunk(RegressorPolicy):
    """The regressors as the released code has them."""

    def __init__(self, skeleton: Skeleton) -> None:
        super().__init__(skeleton, fixed_trunk=True)


def assert_finite_with_gradients(of: Tensor, *wrt: Tensor) -> None:
    assert of.isfinite().all()
    weights = torch.randn(of.shape, generator=generator(0), dtype=of.dtype)
    for slopes in torch.autograd.grad(of, wrt, weights, allow_unused=True):
        assert slopes is None or slopes.isfinite().all()


@each_dtype
@each_collapse
@pytest.mark.parametrize("name", BONE_FUNCTIONS)
def test_bones_without_length_give_finite_numbers(
    name: str, which: str, dtype: torch.dtype
) -> None:
    joints = collapsed(which, dtype)
    assert_finite_with_gradients(BONE_FUNCTIONS[name](joints), joints)


@each_dtype
def test_a_bone_bent_into_nothing_gives_finite_numbers(dtype: torch.dtype) -> None:
    joints = human_poses(4, 1, H36M_16, generator(0)).to(dtype)
    opposite = -bone_directions(joints_to_bones(joints, H36M_16))
    opposite.requires_grad_()
    assert_finite_with_gradients(bent_joints(joints, opposite, H36M_16), opposite)


def test_a_bone_without_length_has_no_direction() -> None:
    directions = bone_directions(joints_to_bones(collapsed("all bones", torch.float64), H36M_16))
    assert (directions[0] == 0).all()
    agree(directions[1:].norm(dim=-1), torch.ones(3, 1, 15, dtype=torch.float64))


@each_dtype
@each_collapse
@pytest.mark.parametrize("scope", ["parts", "whole"])
def test_critic_scores_bones_without_length(scope: str, which: str, dtype: torch.dtype) -> None:
    critic = PartKCSCritic(H36M_16, scope=scope, width=8).to(dtype)
    joints = collapsed(which, dtype)
    assert_finite_with_gradients(critic(joints[:, 0]), joints, *critic.parameters())


@each_dtype
@each_collapse
@pytest.mark.parametrize("policy_class", [RandomPolicy, AugmentationPolicy, FixedTrunk])
@pytest.mark.parametrize("training", [True, False])
def test_policies_augment_bones_without_length(
    training: bool, policy_class: type[Policy], which: str, dtype: torch.dtype
) -> None:
    policy = policy_class(H36M_16).to(dtype).train(training)
    joints = collapsed(which, dtype)
    noise = normal(4, policy.noise_size).to(dtype)
    poses = apply_augmentation(joints, policy(joints, noise), H36M_16)
    # The critics see it as in training: what was bent, and the projection of what was moved.
    critics = (
        PartKCSCritic(H36M_16, width=8).to(dtype),
        KeypointCritic(H36M_16, width=8).to(dtype),
    )
    seen = project_points(poses.moved, h36m_intrinsics(4).to(dtype))
    scores = [critics[0](poses.bent[:, 0]), critics[1](seen[:, 0])]
    for of in (*poses, *scores):
        assert of.isfinite().all()
    loss = (
        sum(score.sum() for score in scores) + bone_angle_change(joints, poses.bent, H36M_16).mean()
    )
    assert_finite_with_gradients(loss, joints, *policy.parameters())
