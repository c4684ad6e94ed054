"""The estimator's observed error as the two figures that say how hard augmented poses are."""

from __future__ import annotations

import torch
from torch import Tensor

from .generation import Augmented, matching_frames
from .losses import guessing_error, weighted_mean
from .rigid import root_relative
from .skeleton import Skeleton


def hardness_ratio(observed: Tensor, augmented: Augmented) -> Tensor:
    """Mean error of the augmented samples over that of the original ones; NaN without either.

    Args:
        observed: (N,) errors of the user's own forward pass, metres.
        augmented: The batch that they are of.
    """
    usable = augmented.usable & observed.isfinite()
    observed = torch.where(usable, observed, 0.0)
    harder, easier = (
        (observed * chosen).sum() / chosen.sum()
        for chosen in (usable & augmented.is_augmented, usable & ~augmented.is_augmented)
    )
    return harder / easier


def guessing_ratio(observed: Tensor, augmented: Augmented, skeleton: Skeleton) -> Tensor:
    """Mean error of the augmented samples over that of guessing; NaN without any.

    Args:
        observed: (N,) errors of the user's own forward pass, metres.
        augmented: The batch that they are of.
        skeleton: The tree.
    """
    chosen = augmented.usable & augmented.is_augmented & observed.isfinite()
    weights = chosen.to(observed.dtype)
    poses = matching_frames(augmented.joints, 1, augmented.target)[:, 0]
    guessing = guessing_error(root_relative(poses, skeleton), weights, "mpjpe", skeleton)[:, 0]
    error = weighted_mean(torch.where(chosen, observed, 0.0), weights)
    return error / weighted_mean(guessing, weights)
