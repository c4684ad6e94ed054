"""Losses of critics and policy, against loops over samples."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from helpers import agree, bent_joints, generated, gradient, human_poses, leaf, lifted
from random_bodies import generator, normal
from torch import Tensor

from poseaug_plugin.adversary.critics import (
    KeypointCritic,
    PartKCSCritic,
    adversarial_term,
    critic_accuracy,
    critic_loss,
    entropy_term,
    frame_term,
    lsgan_critic_loss,
    lsgan_policy_loss,
    range_term,
    rectified_mean,
    weighted_mean,
)
from poseaug_plugin.augment.policy import AugmentationPolicy, RandomPolicy, Spread
from poseaug_plugin.body.bones import bone_directions, joints_to_bones
from poseaug_plugin.body.presets import H36M_16

WEIGHTS = torch.tensor([1.0, 0, 1, 1, 0, 1], dtype=torch.float64)
each_weights = pytest.mark.parametrize("weights", [torch.ones(6).double(), WEIGHTS])
NO_WEIGHTS = torch.zeros(6, dtype=torch.float64)


def poses() -> Tensor:
    return human_poses(6, 1, H36M_16, generator(0))[:, 0]


def bent(joints: Tensor, scale: float) -> Tensor:
    offset = scale * normal(len(joints), 1, H36M_16.num_bones, 3)
    return bent_joints(joints[:, None], offset, H36M_16)[:, 0]


# -- means -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(6,), (6, 5), (6, 2, 3)])
def test_weighted_means_are_what_a_loop_finds(shape: tuple[int, ...]) -> None:
    values = normal(*shape)
    total = sum(w * v.sum() / v.numel() for w, v in zip(WEIGHTS, values, strict=True))
    agree(weighted_mean(values, WEIGHTS), total / 4)
    agree(weighted_mean(values, 3 * torch.ones(6).double()), values.mean())


def test_means_of_nothing_are_zero_with_finite_slopes() -> None:
    values = leaf(normal(6, 5))
    mean = weighted_mean(values, NO_WEIGHTS)
    assert mean == 0
    assert not gradient(mean, values).any()


def test_rectified_means_are_free_below_the_threshold() -> None:
    values = leaf(torch.tensor([[0.1, 0.3], [0.2, 0.2], [0.5, 0.3], [-1.0, 0.0]]).double())
    rectified = rectified_mean(values, 0.2)
    assert rectified.tolist() == pytest.approx([0.04, 0.04, 0.16, 0.0])
    slopes = gradient(rectified.sum(), values)
    assert slopes.tolist() == pytest.approx([pytest.approx([x, x]) for x in (0.2, 0.2, 0.4, 0.0)])


# -- adversarial -----------------------------------------------------------------------------------


@each_weights
def test_adversarial_losses_are_what_a_loop_finds(weights: Tensor) -> None:
    real, fake = normal(6, 5), normal(6, 5, seed=1)
    count = 5 * float(weights.sum())
    real_part = fake_part = policy_part = 0.0
    for weight, real_row, fake_row in zip(weights.tolist(), real, fake, strict=True):
        for a, b in zip(real_row.tolist(), fake_row.tolist(), strict=True):
            real_part += weight * (a - 1) ** 2 / count
            fake_part += b**2 / 30  # older fakes are of other batches
            policy_part += weight * (b - 1) ** 2 / count
    critics = lsgan_critic_loss(real, fake, weights)
    assert critics.item() == pytest.approx((real_part + fake_part) / 2)
    assert lsgan_policy_loss(fake, weights).item() == pytest.approx(policy_part / 2)


def test_perfect_scores_have_no_loss() -> None:
    ones, zeros = torch.ones(4, 5), torch.zeros(4, 5)
    alike = torch.ones(4)
    assert lsgan_critic_loss(ones, zeros, alike) == 0
    assert lsgan_critic_loss(zeros, ones, alike) == 1
    assert lsgan_policy_loss(ones, alike) == 0
    assert lsgan_policy_loss(zeros, alike) == 0.5


def test_accuracy_counts_within_half_of_the_label() -> None:
    scores = torch.tensor([-0.51, -0.5, 0.0, 0.5, 0.51, 1.0, 1.5, 1.51])
    assert critic_accuracy(scores, True) == 4 / 8
    assert critic_accuracy(scores, False) == 3 / 8
    assert critic_accuracy(torch.tensor([torch.nan, 1.0]), True) == 0.5


@each_weights
def test_loss_of_a_critic_is_of_both_kinds_of_poses(weights: Tensor) -> None:
    critic = PartKCSCritic(H36M_16, width=8).double()
    real, fake = poses(), bent(poses(), 1.0)
    loss, accuracy = critic_loss(critic, real, fake, weights)
    agree(loss.detach(), lsgan_critic_loss(critic(real), critic(fake), weights).detach())
    expected = critic_accuracy(critic(real), True) + critic_accuracy(critic(fake), False)
    assert accuracy.item() == pytest.approx(expected.item() / 2)
    assert loss.requires_grad
    assert not accuracy.requires_grad


@each_weights
@pytest.mark.parametrize("weight", [0.1, 6.0])
@pytest.mark.parametrize("name", ["3d", "2d"])
def test_adversarial_terms_are_of_the_augmented_poses_alone(
    name: str, weight: float, weights: Tensor
) -> None:
    if name == "3d":
        critic, fake = PartKCSCritic(H36M_16, width=8).double(), leaf(bent(poses(), 1.0))
        made = generated(poses(), fake, weights=weights)
    else:
        critic, fake = KeypointCritic(H36M_16, width=8).double(), leaf(normal(6, 16, 2))
        made = generated(poses(), keypoints=fake, weights=weights)
    critic.weight = weight
    term = partial(adversarial_term, critic=critic)
    agree(term(made).detach(), weight * lsgan_policy_loss(critic(fake), weights).detach())
    slopes = gradient(term(made), fake)
    assert (slopes.flatten(1).any(1) == (weights > 0)).all()
    # What raises the scores lowers the term.
    closer = fake.detach() - 1e-3 * slopes / slopes.abs().max()
    closer = closer[:, None]
    if name == "3d":
        moved = replace(made, poses=made.poses._replace(bent=closer))
    else:
        moved = replace(made, keypoints=closer)
    assert term(moved) < term(made)


# -- range -----------------------------------------------------------------------------------------


def ranges_by_a_loop(
    clean: Tensor, changed: Tensor, ratios: Tensor, weights: Tensor, limits: tuple[float, float]
) -> float:
    """Equation 4 for angles and for the length ratios of tied groups."""
    total = 0.0
    groups = torch.tensor(H36M_16.bone_length_groups)
    for i in range(len(clean)):
        before, after = (bone_directions(joints_to_bones(x[i], H36M_16)) for x in (clean, changed))
        angle = float((1 - (before * after).sum(-1)).mean())
        each = [float(ratios[i][groups == g].mean().abs()) for g in range(9)]
        length = sum(each) / len(each)
        for value, limit in zip((angle, length), limits, strict=True):
            total += float(weights[i]) * (value**2 if value >= limit else 0.0)
    return total / float(weights.sum())


@each_weights
@pytest.mark.parametrize("scale", [0.1, 0.5, 2.0])
def test_range_term_is_what_a_loop_finds(scale: float, weights: Tensor) -> None:
    clean = poses()
    changed, ratios = bent(clean, scale), 0.2 * scale * normal(6, 15)
    made = generated(clean, changed, ratio=ratios, weights=weights)
    for term, factor, limits in (
        (range_term(made), 3.0, (0.205, 0.15)),
        (range_term(made, weight=0.5, angle_limit=0.01, length_limit=0.05), 0.5, (0.01, 0.05)),
    ):
        expected = factor * ranges_by_a_loop(clean, changed, ratios, weights, limits)
        assert term.item() == pytest.approx(expected)


def test_small_changes_are_free() -> None:
    changed = leaf(bent(poses(), 0.1))
    ratios = leaf(torch.full((6, 15), -0.149, dtype=torch.float64))
    loss = range_term(generated(poses(), changed, ratio=ratios))
    assert loss == 0
    assert not gradient(loss, changed).any()
    assert not gradient(loss, ratios).any()


# -- frame -----------------------------------------------------------------------------------------


@each_weights
@pytest.mark.parametrize("aspect_ratio", [1.0, 0.5])
def test_frame_term_is_what_a_loop_finds(aspect_ratio: float, weights: Tensor) -> None:
    keypoints = 2 * normal(6, 16, 2)
    expected = 0.0
    for weight, pose in zip(weights.tolist(), keypoints.tolist(), strict=True):
        for x, y in pose:
            outside = max(abs(x) - 1, 0) ** 2 + max(abs(y) - aspect_ratio, 0) ** 2
            expected += weight * outside / (1 + outside) / 16 / float(weights.sum())
    made = generated(poses(), keypoints=keypoints, weights=weights)
    assert frame_term(made, aspect_ratio).item() == pytest.approx(expected)


def test_what_is_in_frame_costs_nothing() -> None:
    keypoints = normal(6, 16, 2).tanh() * torch.tensor([1.0, 0.5])
    assert frame_term(generated(poses(), keypoints=keypoints), 0.5) == 0
    assert frame_term(generated(poses(), keypoints=keypoints), 0.4) > 0


@pytest.mark.parametrize("far", [1.01, 10.0, 1e3])
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("side", [-1, 1])
def test_its_slope_pulls_back_from_outside(far: float, axis: int, side: int) -> None:
    keypoints = torch.zeros(6, 16, 2, dtype=torch.float64)
    keypoints[2, 4, axis] = side * far
    keypoints = leaf(keypoints)
    loss = frame_term(generated(poses(), keypoints=keypoints), 1.0)
    slopes = gradient(loss, keypoints)
    assert slopes[2, 4, axis] * side > 0
    assert slopes.count_nonzero() == 1
    assert loss <= 1 / (6 * 16)


def test_windows_are_in_frame_in_every_frame() -> None:
    made = generated(poses())
    windows = torch.zeros(6, 3, 16, 2, dtype=torch.float64)
    assert frame_term(replace(made, keypoints=windows), 1.0) == 0
    windows[:, 2] = 2.0
    assert frame_term(replace(made, keypoints=windows), 1.0).item() == pytest.approx(2 / 3 / 3)


# -- entropy ---------------------------------------------------------------------------------------


def test_entropy_term_rewards_entropy() -> None:
    narrow = Spread(
        **{"pitch": 0.1, "roll": 0.1, "limb_angle": 0.1},
        **{"bone_angle": 0.03, "torso_angle": 0.06, "bone_length": 0.06, "torso_length": 0.14},
    )
    policy = AugmentationPolicy("h36m_16", spread=narrow).double()
    with torch.no_grad():
        policy.widening.copy_(0.003 * normal(5))
    term = partial(entropy_term, policy=policy, weight=0.05)
    entropy = policy.entropy()
    assert entropy is not None
    assert term(generated(poses())).item() == pytest.approx(-0.05 * entropy.item())
    slopes = gradient(term(generated(poses())), policy.widening)
    assert (slopes < 0).all()


def test_policies_without_entropy_have_no_reward() -> None:
    loss = entropy_term(generated(poses()), RandomPolicy("h36m_16"), 0.05)
    assert loss == 0
    assert loss.dim() == 0


def test_what_the_helpers_show_is_what_it_says() -> None:
    """Or else nothing above would be of what it says."""
    seen = normal(6, 16, 2)
    made = generated(lifted(seen))
    assert torch.equal(made.seen_pose, seen)
    assert made.parameters.bone_length_ratio.eq(0).all()
    assert math.isclose(float(made.weights.sum()), 6)
