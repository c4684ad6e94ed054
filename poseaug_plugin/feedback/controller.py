"""Feedback of the estimator's error: it sets the strength of all spreads."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..augment.transforms import AugmentedBatch, evenly_spaced, matching_frames, middle_frame
from ..body.skeleton import Skeleton

# Above this share of the mean pose's error an estimator learns nothing from augmented poses.
_LIMIT = 0.95
_SPEED = 1 / 64  # of the strength, per observation: slower than an estimator begins to learn
_ENOUGH = 128  # samples of either kind that are compared, at most


class ObservedErrors(NamedTuple):
    """Mean joint errors of the user's own forward pass, 0-d, metres; NaN without samples."""

    augmented: Tensor  # of augmented poses
    original: Tensor  # of original ones
    mean_pose: Tensor  # of answering every augmented pose with their mean
    weight: Tensor  # how many augmented poses that is of


def observed_errors(
    predicted: Tensor | None, batch: AugmentedBatch, skeleton: Skeleton
) -> ObservedErrors | None:
    """Errors of the estimator's answer (N, T or 1, J, 3), metres; None for none, or one unfit."""
    if predicted is None:
        return None
    frames, root = predicted.shape[1], skeleton.root
    augmented = matching_frames(batch.joints, frames, batch.target)
    original = matching_frames(batch.batch.joints, frames, batch.target)
    places, originals = batch.places, batch.originals
    if predicted.shape != (len(places) + len(originals), *original.shape[1:]):
        return None
    rows, poses, accepted = evenly_spaced((places, augmented, batch.accepted), len(places), _ENOUGH)
    originals = evenly_spaced(originals, len(originals), _ENOUGH)

    def errors(rows: Tensor, targets: Tensor) -> Tensor:
        difference = predicted.index_select(0, rows) - targets
        difference = difference - difference[..., root : root + 1, :]
        return torch.linalg.vector_norm(difference, dim=-1).mean((1, 2))

    error = errors(rows, poses)
    chosen = accepted & error.isfinite()
    weight = chosen.sum()
    poses = torch.where(chosen[:, None, None], poses[:, middle_frame(poses.shape[1])], 0.0)
    poses = poses - poses[..., root : root + 1, :]
    from_mean = torch.linalg.vector_norm(poses - poses.sum(0) / weight, dim=-1).mean(1)
    easier = errors(originals, original.index_select(0, originals))
    counted = batch.batch.usable[originals] & easier.isfinite()
    return ObservedErrors(
        torch.where(chosen, error, 0.0).sum() / weight,
        torch.where(counted, easier, 0.0).sum() / counted.sum(),
        torch.where(chosen, from_mean, 0.0).sum() / weight,
        weight.to(error.dtype),
    )


class FeedbackController(nn.Module):
    """Keeps augmented poses no harder than what the estimator can learn from.

    One number in [0, 1], the strength, multiplies all spreads of the policy. It falls while the
    error on augmented poses is near that of answering with their mean pose, else returns. Errors as
    high on originals tell nothing. After StyleGAN2-ADA (Karras et al. 2020, section 3.1).
    """

    strength: Tensor
    ratio: Tensor

    def __init__(self, strength: Tensor) -> None:
        super().__init__()
        # The policy's own tensor, so that loading a checkpoint sets it there.
        self.register_buffer("strength", strength)
        self.register_buffer("ratio", torch.zeros_like(strength))

    @torch.no_grad()
    def move(self, errors: Tensor, allowed: Tensor) -> None:
        """Take in the first three `ObservedErrors` (3,), where allowed."""
        augmented, original, mean_pose = errors
        # An outlier must not hold the strength down.
        latest = (augmented / mean_pose).clamp(max=2.0)
        known = allowed & latest.isfinite() & ~(original > mean_pose)  # NaN: there are none
        # It forgets in a dozen observations.
        self.ratio += torch.where(known, 0.08 * (latest - self.ratio), 0.0)
        direction = torch.where(self.ratio > _LIMIT, -_SPEED, _SPEED)
        self.strength += torch.where(known, direction, 0.0)
        self.strength.clamp_(0.0, 1.0)
