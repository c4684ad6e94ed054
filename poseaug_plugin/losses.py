"""Every loss of the method as a pure function."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from .bones import skeleton_tables
from .errors import PoseAugError
from .skeleton import Skeleton

ErrorKind = Literal["mpjpe", "mse", "squared_norm", "grouped"]


def weighted_mean(values: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean of ``values`` (B, ...) over everything, samples weighted by ``weights`` (B,)."""
    if weights is None:
        return values.mean()
    per_sample = values.flatten(1).mean(1) if values.dim() > 1 else values
    return (per_sample * weights).sum() / weights.sum().clamp(min=1e-12)


# -- adversarial (LSGAN; PoseAug equations 7 and 8) ------------------------------------------------


def lsgan_critic_loss(
    real_scores: Tensor, fake_scores: Tensor, weights: Tensor | None = None
) -> Tensor:
    """1/2 [(D(real) - 1)^2 + D(fake)^2], for scores (B, parts)."""
    return 0.5 * (weighted_mean((real_scores - 1).square(), weights) + fake_scores.square().mean())


def lsgan_policy_loss(
    fake_scores: Tensor, weights: Tensor | None = None, real_scores: Tensor | None = None
) -> Tensor:
    """1/2 (D(fake) - 1)^2.

    With ``real_scores`` the released code's both-sided form 1/2 [D(real)^2 + (D(fake) - 1)^2]: the
    first half is a constant for the policy, so only the reported value differs.
    """
    loss = 0.5 * weighted_mean((fake_scores - 1).square(), weights)
    if real_scores is not None:
        loss = loss + 0.5 * weighted_mean(real_scores.square(), weights)
    return loss


def critic_accuracy(scores: Tensor, is_real: bool) -> Tensor:
    """Share of scores (any shape) within 1/2 of their label, as the released code counts."""
    return ((scores - float(is_real)).abs() <= 0.5).to(torch.float32).mean()


# -- the estimator's error -------------------------------------------------------------------------


def estimator_errors(
    predicted: Tensor, target: Tensor, kind: ErrorKind, skeleton: Skeleton
) -> Tensor:
    """L_P of every sample, both poses root-relative in metres.

    Args:
        predicted: (B, T, J, 3).
        target: (B, T, J, 3).
        kind: ``"mpjpe"`` mean joint distance, ``"mse"`` mean square, ``"squared_norm"`` (the
            paper's L_P), or ``"grouped"``: the released code's joint-weighted means over proximal,
            middle and distal joints.
        skeleton: Gives the groups and weights.

    Returns:
        (B, 1), or (B, groups) for ``"grouped"``.
    """
    difference = predicted - target
    if kind == "mpjpe":
        return difference.norm(dim=-1).mean((1, 2)).unsqueeze(-1)
    if kind == "mse":
        return difference.square().mean((1, 2, 3)).unsqueeze(-1)
    if kind == "squared_norm":
        return difference.square().sum((2, 3)).mean(1, keepdim=True)
    if kind == "grouped":
        tables = skeleton_tables(skeleton, difference.device, difference.dtype)
        return difference.norm(dim=-1).mean(1) @ tables.error_groups.T
    raise PoseAugError(
        f"estimator_errors: kind must be mpjpe, mse, squared_norm or grouped, got {kind!r}."
    )


# -- feedback --------------------------------------------------------------------------------------


def paper_feedback(harder: Tensor, easier: Tensor, ratio: float) -> Tensor:
    """|1 - exp(L_P(X') - beta L_P(X))| per entry (PoseAug equation 3).

    The exponent stops at 20, so that a pose at the edge of the camera does not overflow.
    """
    return (1 - torch.exp((harder - ratio * easier).clamp(max=20.0))).abs()


def released_feedback(harder: Tensor, easier: Tensor, ratio: float, tolerance: float) -> Tensor:
    """Squared distance of L_P(X') / L_P(X) from ``ratio``, 0 inside +-``tolerance``, per entry."""
    return dead_zone(harder / easier.clamp(min=1e-9), ratio, tolerance)


def guessing_error(joints: Tensor, weights: Tensor, kind: ErrorKind, skeleton: Skeleton) -> Tensor:
    """L_P of an estimator that always answers with the mean of these poses.

    Args:
        joints: (B, J, 3) root-relative metres.
        weights: (B,).
        kind: As in `estimator_errors`.
        skeleton: The tree.

    Returns:
        (B, 1), or (B, groups) for ``"grouped"``.
    """
    total = weights.sum().clamp(min=1e-12)
    mean_pose = (joints * weights[:, None, None]).sum(0) / total
    return estimator_errors(mean_pose.expand_as(joints)[:, None], joints[:, None], kind, skeleton)


def limit_feedback(error: Tensor, guessing: Tensor, limit: float, weights: Tensor) -> Tensor:
    """By how much the batch's mean log error exceeds that of guessing by more than allowed; ours.

    A brake and no drive: what drives is the policy's entropy. An estimator that does not follow,
    because it has only begun or is too small, does little better than to guess, and gets easier
    poses until it does. Of the whole batch, so that it may hold poses that are harder than that.

    Args:
        error: (B, groups) L_P of the augmented poses, in any unit.
        guessing: (B, groups) `guessing_error` of the same poses.
        limit: Highest error / guessing error, on geometric average.
        weights: (B,).

    Returns:
        0-d, in nats.
    """
    log_error, log_guessing = (x.clamp(min=1e-9).log().mean(1) for x in (error, guessing))
    excess = weighted_mean(log_error, weights) - weighted_mean(log_guessing, weights)
    return (excess - math.log(limit)).relu()


# -- range regularisation --------------------------------------------------------------------------


def dead_zone(values: Tensor, centre: float, half_width: float) -> Tensor:
    """(v - centre)^2 where |v - centre| > half_width, else 0, per entry."""
    distance = (values - centre).square()
    return torch.where(distance > half_width**2, distance, torch.zeros_like(distance))


def rectified_mean(values: Tensor, threshold: float) -> Tensor:
    """mean(gamma)^2 where that mean is at least ``threshold``, else 0: (B, n) -> (B,).

    PoseAug equation 4: changes are free as long as they stay small on average.
    """
    mean = values.mean(-1)
    return torch.where(mean >= threshold, mean.square(), torch.zeros_like(mean))
