"""The feedback and the penalties of PoseAug's paper and of its released code."""

from __future__ import annotations

from functools import cache
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ..adversary.critics import AdversarialTerm, weighted_mean
from ..augment.transforms import GeneratedPoses
from ..body.camera import Z_NEAR, project_rays
from ..body.skeleton import Skeleton


class Ramp(NamedTuple):
    """A value that goes linearly from ``start`` to ``end`` over the training."""

    start: float
    end: float

    def at(self, progress: float) -> float:
        """The value at ``progress`` in [0, 1]."""
        return self.start + (self.end - self.start) * progress


ErrorKind = Literal["squared_norm", "grouped"]


def estimator_errors(
    predicted: Tensor, target: Tensor, kind: ErrorKind, skeleton: Skeleton
) -> Tensor:
    """L_P of every sample, both poses (B, T, J, 3) root-relative in metres.

    ``"squared_norm"`` is the paper's, (B, 1); ``"grouped"``, (B, groups), the released code's:
    joint-weighted means over proximal, middle and distal joints.
    """
    difference = predicted - target
    if kind == "squared_norm":
        return difference.square().sum((2, 3)).mean(1, keepdim=True)
    groups = _error_table(skeleton, difference.device).to(difference.dtype)
    return difference.norm(dim=-1).mean(1) @ groups.T


def joint_weights(skeleton: Skeleton) -> tuple[float, ...]:
    """Weights of the released feedback error: 5, 2, 1, 1 ... outwards on limbs, 1 elsewhere."""
    weights = dict.fromkeys(range(skeleton.num_joints), 1.0)
    for _, joints in skeleton.limbs:
        weights |= dict(zip(joints, (5.0, 2.0), strict=False))
    return tuple(weights.values())


def error_groups(skeleton: Skeleton) -> tuple[tuple[int, ...], ...]:
    """Proximal, middle and distal joints of the released feedback error, without the trunk."""
    limb_joints = {j for _, js in skeleton.limbs for j in js}
    trunk, to_root = {skeleton.root}, skeleton.bones_to_root
    for _, joints in skeleton.limbs:
        trunk |= {skeleton.bone_children[b] for b in to_root(skeleton.parent_indices[joints[0]])}
    proximal = {js[0] for _, js in skeleton.limbs}
    distal = {j for _, js in skeleton.limbs for j in js[2:]}
    middle = {js[1] for _, js in skeleton.limbs if len(js) > 1}
    middle |= set(range(skeleton.num_joints)) - limb_joints - trunk  # head and neck
    return tuple(tuple(sorted(group)) for group in (proximal, middle, distal) if group)


@cache
def _error_table(skeleton: Skeleton, device: torch.device) -> Tensor:
    """(groups, J) that makes joint-weighted means of joint errors."""
    weights = joint_weights(skeleton)
    rows = [
        [weight / len(group) if joint in group else 0.0 for joint, weight in enumerate(weights)]
        for group in error_groups(skeleton)
    ]
    return torch.tensor(rows, dtype=torch.float64, device=device)


def paper_feedback(harder: Tensor, easier: Tensor, ratio: float, _: float = 0.0) -> Tensor:
    """|1 - exp(L_P(X') - beta L_P(X))| per entry (PoseAug equation 3); the exponent stops at 20."""
    return (1 - torch.exp((harder - ratio * easier).clamp(max=20.0))).abs()


def released_feedback(harder: Tensor, easier: Tensor, ratio: float, tolerance: float) -> Tensor:
    """Squared distance of L_P(X') / L_P(X) from ``ratio``, 0 inside +-``tolerance``, per entry."""
    return dead_zone(harder / easier.clamp(min=1e-9), ratio, tolerance)


def dead_zone(values: Tensor, centre: float, half_width: float) -> Tensor:
    """(v - centre)^2 where |v - centre| > half_width, else 0, per entry."""
    distance = (values - centre).square()
    return torch.where(distance > half_width**2, distance, 0.0)


class BothSidedTerm(AdversarialTerm):
    """1/2 [D(real)^2 + (D(fake) - 1)^2]; the first half is a constant, with no gradient."""

    def __call__(self, generated: GeneratedPoses) -> Tensor:
        """The weighted term, 0-d."""
        real = self.critic(self.critic.real(generated)).detach()
        half = 0.5 * self.critic.weight * weighted_mean(real.square(), generated.weights)
        return super().__call__(generated) + half


class ReleasedRangeTerm:
    """Two-sided limits on the mean bone angle, and limits on every bone length ratio."""

    name = "range"

    def __call__(self, generated: GeneratedPoses) -> Tensor:
        """The weighted term, 0-d."""
        turned, weights = generated.angle_change.mean(1), generated.weights
        angle = weighted_mean(dead_zone(turned, 0.205, 0.165), weights)
        length = weighted_mean(dead_zone(generated.length_ratios, 0.0, 0.1), weights)
        return 3.0 * (angle + length)


def project_clamped(points: Tensor, intrinsics: Tensor) -> Tensor:
    """`project_points` with x/z and y/z cut to [-1, 1], and so the gradient that pulls it back."""
    return project_rays((points[..., :2] / points[..., 2:]).clamp(-1, 1), intrinsics)


def released_frame_check(points: Tensor, keypoints: Tensor, *_: object) -> Tensor:
    """In front of the camera, and no coordinate above 1: the left and the top are open."""
    return (points[..., 2] > Z_NEAR) & (keypoints <= 1).all(-1)
