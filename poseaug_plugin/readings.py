"""The figures of one update, by the names that they have in `Diagnostics`."""

from __future__ import annotations

import torch
from torch import Tensor

from .generation import Augmented, matching_frames
from .losses import guessing_error, weighted_mean
from .objectives import Generated
from .rigid import root_relative
from .skeleton import Skeleton


def augmentation_readings(augmented: Augmented, generated: Generated) -> dict[str, Tensor]:
    """What was done to the poses, and how many of them got out."""
    turned = generated.bone_angle_change
    spread, before = (
        generated.judged(k).std(0).mean() for k in (generated.keypoints, generated.clean_keypoints)
    )
    in_batch = augmented.usable[augmented.places]
    return {
        "unusable": (~augmented.usable).sum(),
        "kept_share": (augmented.valid & in_batch).sum() / in_batch.sum(),  # NaN without any
        "angle_change": weighted_mean(turned, generated.weights),
        "length_change": generated.parameters.bone_length_ratio.abs().mean(),
        "diversity": spread / before.clamp(min=1e-6),
    }


def hardness_readings(
    augmented: Augmented, observed: Tensor, skeleton: Skeleton
) -> dict[str, Tensor]:
    """How hard the estimator, whose errors were observed, found the augmented poses."""
    return {
        "hardness_ratio": hardness_ratio(observed, augmented),
        "guessing_ratio": guessing_ratio(observed, augmented, skeleton),
    }


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
