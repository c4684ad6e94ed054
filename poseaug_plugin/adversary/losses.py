"""Losses of critics and policy as pure functions."""

import torch
from torch import Tensor


def weighted_mean(values: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean of ``values`` (B, ...) over everything, samples weighted by ``weights`` (B,)."""
    if weights is None:
        return values.mean()
    per_sample = values.flatten(1).mean(1) if values.dim() > 1 else values
    return per_sample.dot(weights) / weights.sum().clamp(min=1e-12)


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
    return ((scores - float(is_real)).abs() <= 0.5).mean(dtype=torch.float32)


def rectified_mean(values: Tensor, threshold: float) -> Tensor:
    """mean(gamma)^2, but 0 below a mean of ``threshold`` (PoseAug equation 4): (B, n) -> (B,)."""
    mean = values.mean(-1)
    return torch.where(mean >= threshold, mean.square(), 0.0)
