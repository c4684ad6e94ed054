"""Losses of critics and policy: LSGAN, and the terms that need no critic."""

from typing import Protocol

import torch
from torch import Tensor

from ..augment.policy import Policy
from ..augment.transforms import GeneratedPoses, bone_angle_change
from ..body.bones import skeleton_tables
from ..body.skeleton import Skeleton


def weighted_mean(values: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean of ``values`` (B, ...) over everything, samples weighted by ``weights`` (B,)."""
    if weights is None:
        return values.mean()
    per_sample = values.flatten(1).mean(1) if values.dim() > 1 else values
    return (per_sample * weights).sum() / weights.sum().clamp(min=1e-12)


def lsgan_critic_loss(
    real_scores: Tensor, fake_scores: Tensor, weights: Tensor | None = None
) -> Tensor:
    """1/2 [(D(real) - 1)^2 + D(fake)^2], for scores (B, parts) (PoseAug equations 7 and 8)."""
    return 0.5 * (weighted_mean((real_scores - 1).square(), weights) + fake_scores.square().mean())


def lsgan_policy_loss(fake_scores: Tensor, weights: Tensor | None = None) -> Tensor:
    """1/2 (D(fake) - 1)^2, for scores (B, parts)."""
    return 0.5 * weighted_mean((fake_scores - 1).square(), weights)


def critic_accuracy(scores: Tensor, is_real: bool) -> Tensor:
    """Share of scores (any shape) within 1/2 of their label, as the released code counts."""
    return ((scores - float(is_real)).abs() <= 0.5).to(torch.float32).mean()


def rectified_mean(values: Tensor, threshold: float) -> Tensor:
    """mean(gamma)^2 where that mean is at least ``threshold``, else 0: (B, n) -> (B,).

    PoseAug equation 4: changes are free as long as they stay small on average.
    """
    mean = values.mean(-1)
    return torch.where(mean >= threshold, mean.square(), torch.zeros_like(mean))


class Term(Protocol):
    """One term of the policy's loss."""

    name: str

    def __call__(self, generated: GeneratedPoses) -> Tensor:
        """The weighted term, 0-d."""


class RangeTerm:
    """Keeps bone angles and lengths near the source's (PoseAug equation 4).

    A mean of 1 - cos(bone angle) below ``angle_limit`` is free, and a mean |bone length ratio|
    below ``length_limit``.
    """

    name = "range"

    def __init__(
        self,
        skeleton: Skeleton,
        *,
        weight: float = 3.0,
        angle_limit: float = 0.205,
        length_limit: float = 0.15,
    ) -> None:
        self.skeleton, self.weight = skeleton, weight
        self.angle_limit, self.length_limit = angle_limit, length_limit

    def __call__(self, generated: GeneratedPoses) -> Tensor:
        """The weighted term, 0-d."""
        weights = generated.weights
        turned = bone_angle_change(generated.clean_pose, generated.bent_pose, self.skeleton)
        ratios = length_ratios(generated, self.skeleton)
        angle = rectified_mean(turned, self.angle_limit)
        length = rectified_mean(ratios.abs(), self.length_limit)
        total = weighted_mean(angle, weights) + weighted_mean(length, weights)
        return total * self.weight


def length_ratios(generated: GeneratedPoses, skeleton: Skeleton) -> Tensor:
    """(B, groups) bone length ratio of each left/right-tied group."""
    ratios = generated.parameters.bone_length_ratio[:, 0]
    return ratios @ skeleton_tables(skeleton, ratios.device, ratios.dtype).pooling.T


class FrameTerm:
    """Mean squared distance of keypoints outside the frame; its gradient pulls a pose back."""

    name = "frame"

    def __init__(self, aspect_ratio: float, weight: float = 1.0) -> None:
        self.aspect_ratio, self.weight = aspect_ratio, weight

    def __call__(self, generated: GeneratedPoses) -> Tensor:
        """The weighted term, 0-d."""
        x, y = generated.keypoints.abs().unbind(-1)
        outside = (x - 1).relu().square() + (y - self.aspect_ratio).relu().square()
        # Bounded, so that a pose far outside does not drown the others, and never without gradient.
        return self.weight * weighted_mean(outside / (1 + outside), generated.weights)


class EntropyTerm:
    """Rewards wide draws of a policy that tells its entropy."""

    name = "entropy"

    def __init__(self, policy: Policy, weight: float) -> None:
        self.policy, self.weight = policy, weight

    def __call__(self, generated: GeneratedPoses) -> Tensor:
        """The weighted term, 0-d."""
        entropy = self.policy.entropy()
        return generated.keypoints.new_zeros(()) if entropy is None else -self.weight * entropy
