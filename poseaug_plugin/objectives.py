"""What policy, critics and predictor minimise: the losses put together, as pure functions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .augmentation import AugmentationParameters, AugmentedPoses
from .bones import skeleton_tables
from .camera import project_points
from .config import PoseAugConfig
from .curriculum import Ramp
from .losses import (
    critic_accuracy,
    dead_zone,
    guessing_error,
    limit_feedback,
    lsgan_critic_loss,
    lsgan_policy_loss,
    paper_feedback,
    rectified_mean,
    released_feedback,
    weighted_mean,
)
from .rigid import root_relative
from .skeleton import Skeleton
from .windows import motion_features, one_frame

ErrorOf = Callable[[Tensor, Tensor], Tensor]
"""(keypoints (B, T, J, 2), joints (B, T, J, 3)) to the estimator's errors (B, groups)."""


class Generated(NamedTuple):
    """What one call of `augment` made, still attached to the policy's graph."""

    clean: Tensor  # (B, T, J, 3) the poses it was made from
    clean_keypoints: Tensor  # (B, T, J, 2) their projection
    parameters: AugmentationParameters
    poses: AugmentedPoses
    keypoints: Tensor  # (B, T, J, 2) projection of the moved poses
    intrinsics: Tensor  # (B, 9) of the clean poses' cameras
    seen_by: Tensor  # (B, 9) of the moved poses'
    weights: Tensor  # (B,) 1 for usable samples, else 0
    bone_angle_change: Tensor  # (B, bones) 1 - cos of the angle, in the judged frame
    judged_frame: Tensor | None = None  # (B,) which frame the critics see; None for T = 1

    def judged(self, poses: Tensor) -> Tensor:
        """(B, J, .) of the frame that the critics of single poses see."""
        return one_frame(poses, self.judged_frame)


class Judged(NamedTuple):
    """What a critic compares."""

    real: Tensor
    fake: Tensor


def judged_by(critic: str, generated: Generated, skeleton: Skeleton) -> Judged:
    """What the critic "3d" (bent poses), "2d" (their picture) or "motion" (windows) sees."""
    if critic == "3d":
        return Judged(generated.judged(generated.clean), generated.judged(generated.poses.bent))
    if critic == "2d":
        return Judged(
            generated.judged(generated.clean_keypoints), generated.judged(generated.keypoints)
        )
    return Judged(
        motion_features(generated.clean, generated.clean_keypoints, skeleton),
        motion_features(generated.poses.bent, generated.keypoints, skeleton),
    )


class PolicyLosses(NamedTuple):
    """The terms of the policy's loss, weighted; `total` is their sum."""

    total: Tensor
    adversarial_3d: Tensor
    adversarial_2d: Tensor
    adversarial_motion: Tensor
    feedback: Tensor
    range: Tensor
    frame: Tensor
    entropy: Tensor


def policy_objective(
    generated: Generated,
    critic_3d: nn.Module,
    critic_2d: nn.Module,
    error_of: ErrorOf | None,
    config: PoseAugConfig,
    skeleton: Skeleton,
    progress: float = 0.0,
    entropy: Tensor | None = None,
    critic_motion: nn.Module | None = None,
) -> PolicyLosses:
    """Loss of the policy (PoseAug section 3.4): adversarial + feedback + range; ours - entropy.

    Args:
        generated: The augmented batch.
        critic_3d: Scores (B, J, 3).
        critic_2d: Scores (B, J, 2).
        error_of: The estimator's error, or a prediction of it; None leaves feedback out.
        config: Options.
        skeleton: The tree.
        progress: Share of the training that is done.
        entropy: The policy's, if it has one.
        critic_motion: Scores `windows.motion_features`; None leaves it out, as for single frames.
    """
    weights = generated.weights

    def adversarial(name: str, critic: nn.Module | None, weight: float) -> Tensor:
        if critic is None or not weight:
            return weights.new_zeros(())
        judged = judged_by(name, generated, skeleton)
        real = critic(judged.real).detach() if config.both_sided else None
        return weight * lsgan_policy_loss(critic(judged.fake), weights, real)

    adversarial_losses = (
        adversarial("3d", critic_3d, config.weight_3d),
        adversarial("2d", critic_2d, config.weight_2d),
        adversarial("motion", critic_motion, config.weight_motion),
    )
    change = range_penalty(generated, config, skeleton) * config.range_weight
    frame = weights.new_zeros(())
    if config.frame_weight:
        frame = config.frame_weight * frame_penalty(generated, config.aspect_ratio)
    feedback = weights.new_zeros(())
    if error_of is not None and (progress > config.warmup or not config.warmup):
        feedback = feedback_objective(generated, error_of, config, progress, skeleton)
    spread = weights.new_zeros(()) if entropy is None else -config.entropy_weight * entropy
    terms = (*adversarial_losses, feedback, change, frame, spread)
    return PolicyLosses(sum(terms, weights.new_zeros(())), *terms)


def feedback_objective(
    generated: Generated,
    error_of: ErrorOf,
    config: PoseAugConfig,
    progress: float,
    skeleton: Skeleton,
) -> Tensor:
    """Weighted feedback on bent and on moved poses (PoseAug equation 3, or ours)."""
    total = generated.weights.new_zeros(())
    cases = list(_feedback_cases(generated, config))
    easier = None
    if cases and config.feedback_loss != "limit":
        easier = error_of(generated.clean_keypoints, generated.clean).detach()
    for case in cases:
        error = error_of(case.keypoints, case.poses)
        if easier is None:
            loss = _limited(error, generated, case.poses, config, skeleton)
        else:
            ratio = case.hardness.at(progress)
            if config.feedback_loss == "paper":
                terms = paper_feedback(error, easier, ratio)
            else:
                terms = released_feedback(error, easier, ratio, case.tolerance)
            loss = weighted_mean(terms, generated.weights)
        total = total + case.weight * loss
    return total


class _FeedbackCase(NamedTuple):
    weight: float
    keypoints: Tensor
    poses: Tensor
    hardness: Ramp
    tolerance: float


def _feedback_cases(generated: Generated, config: PoseAugConfig) -> Iterator[_FeedbackCase]:
    """Bent poses where the originals stood, and fully augmented ones, where they count."""
    if config.bent_weight:
        bent = generated.poses.bent
        seen = project_points(bent, generated.intrinsics, clamp_rays=config.clamp_rays)
        yield _FeedbackCase(
            config.bent_weight, seen, bent, config.bent_hardness, config.bent_tolerance
        )
    if config.moved_weight:
        yield _FeedbackCase(
            *(config.moved_weight, generated.keypoints, generated.poses.moved),
            *(config.moved_hardness, config.moved_tolerance),
        )


def _limited(
    error: Tensor, generated: Generated, poses: Tensor, config: PoseAugConfig, skeleton: Skeleton
) -> Tensor:
    # Detached, so that nothing is gained by making poses differ in ways that are hard to guess.
    judged = root_relative(generated.judged(poses).detach(), skeleton)
    guessing = guessing_error(judged, generated.weights, config.error, skeleton)
    return limit_feedback(error, guessing, config.feedback_limit, generated.weights)


def range_penalty(generated: Generated, config: PoseAugConfig, skeleton: Skeleton) -> Tensor:
    """Keeps bone angles and lengths near the source's (PoseAug equation 4)."""
    turned = generated.bone_angle_change
    ratios = generated.parameters.bone_length_ratio[:, 0]
    ratios = ratios @ skeleton_tables(skeleton, ratios.device, ratios.dtype).pooling.T
    centre, half_width = config.angle_range
    if config.range_penalty == "released":
        angle = dead_zone(turned.mean(1), centre, half_width)
        length = dead_zone(ratios, 0.0, config.length_limit)
    else:
        angle = rectified_mean(turned, centre)
        length = rectified_mean(ratios.abs(), config.length_limit)
    return weighted_mean(angle, generated.weights) + weighted_mean(length, generated.weights)


def frame_penalty(generated: Generated, aspect_ratio: float) -> Tensor:
    """Mean squared distance of keypoints outside the frame; its gradient pulls a pose back."""
    x, y = generated.keypoints.abs().unbind(-1)
    outside = (x - 1).relu().square() + (y - aspect_ratio).relu().square()
    # Bounded, so that a pose far outside does not drown the others, and never without gradient.
    return weighted_mean(outside / (1 + outside), generated.weights)


class CriticFit(NamedTuple):
    """Loss of a critic and the share of poses that it tells right."""

    loss: Tensor
    accuracy: Tensor


def critic_objective(critic: nn.Module, real: Tensor, fake: Tensor, weights: Tensor) -> CriticFit:
    """LSGAN loss (PoseAug equations 7 and 8) and accuracy on real and generated poses.

    Args:
        critic: Scores what is in the other two.
        real: (B, ...).
        fake: (B, ...) likewise, detached.
        weights: (B,) of the real ones.
    """
    real_scores, fake_scores = critic(torch.cat([real, fake])).split(len(real))
    accuracy = 0.5 * (critic_accuracy(real_scores, True) + critic_accuracy(fake_scores, False))
    return CriticFit(lsgan_critic_loss(real_scores, fake_scores, weights), accuracy)


class PredictorFit(NamedTuple):
    """Loss of the hardness predictor and how much of the spread it explains."""

    loss: Tensor
    r_squared: Tensor


def predictor_objective(predicted: Tensor, observed_error: Tensor, weights: Tensor) -> PredictorFit:
    """Squared error of the predicted log error.

    Args:
        predicted: (B,) log of the error.
        observed_error: (B,) metres, from the user's own forward pass.
        weights: (B,).
    """
    usable = weights * (observed_error.isfinite() & (observed_error > 0)).to(weights.dtype)
    log_error = torch.where(usable > 0, observed_error, 1.0).clamp(min=1e-6).log()
    loss = weighted_mean((predicted - log_error).square(), usable)
    mean = weighted_mean(log_error, usable)
    spread = weighted_mean((log_error - mean).square(), usable)
    return PredictorFit(loss, 1 - loss.detach() / spread.clamp(min=1e-6))
