"""PoseAug's own augmentor as a policy; what every policy does is tested beside the others."""

from __future__ import annotations

import torch
from helpers import agree
from policies import build, drawn, each_preset, each_regressor_kind, poses, taught
from random_bodies import normal

from poseaug_plugin.augment.transforms import apply_augmentation, bone_angle_change
from poseaug_plugin.body.presets import H36M_16
from poseaug_plugin.body.skeleton import Skeleton
from poseaug_plugin.reference.regressors import RegressorNetwork, anchor_length_group, trunk_bones


@each_regressor_kind
@each_preset
def test_a_fixed_trunk_is_not_bent(skeleton: Skeleton, kind: str) -> None:
    joints = poses(skeleton=skeleton)
    parameters = drawn(build(kind, skeleton, fixed_trunk=True), joints)
    bent = apply_augmentation(joints, parameters, skeleton).bent
    turned = bone_angle_change(joints, bent, skeleton)[:, 0]
    trunk = torch.zeros(skeleton.num_bones, dtype=torch.bool)
    trunk[list(trunk_bones(skeleton))] = True
    assert turned[:, trunk].abs().max() < 1e-12
    assert (turned[:, ~trunk] > 1e-9).all()


@each_regressor_kind
def test_a_fixed_trunk_keeps_the_anchor_length(kind: str) -> None:
    ratios = drawn(build(kind, fixed_trunk=True), poses()).bone_length_ratio[:, 0]
    anchor = torch.tensor(H36M_16.bone_length_groups) == anchor_length_group(H36M_16)
    assert (ratios[:, anchor] == 0).all()
    assert (ratios[:, ~anchor] != 0).all()


@each_regressor_kind
def test_the_regressed_root_is_not_behind_the_camera(kind: str) -> None:
    policy = taught(build(kind), 10.0)
    assert (drawn(policy, poses(200)).translation[..., 2] >= 0).all()


@each_regressor_kind
def test_the_networks_see_root_relative_poses(kind: str) -> None:
    policy, joints = build(kind), poses()
    noise = normal(6, policy.network.noise_size)
    here, there = (policy(j, noise) for j in (joints, joints + normal(6, 1, 1, 3)))
    for one, other in zip(here, there, strict=True):
        agree(other, one)


def test_one_extractor_instead_of_four() -> None:
    four, one = build("regressors"), build("one extractor")
    assert one.noise_size * 4 == four.noise_size
    assert one.network.inputs.weight.shape[0] == 1
    assert four.network.inputs.weight.shape[0] == 4


def test_branches_do_not_share_noise() -> None:
    policy = build("regressors")
    noise = normal(6, 4, RegressorNetwork.NOISE)
    before = policy(poses(), noise.flatten(1))[:4]
    for branch in range(4):
        other = noise.clone()
        other[:, branch] = normal(6, RegressorNetwork.NOISE, seed=9)
        after = policy(poses(), other.flatten(1))[:4]
        changed = [not torch.equal(a, b) for a, b in zip(before, after, strict=True)]
        assert changed == [branch == i for i in range(4)]
