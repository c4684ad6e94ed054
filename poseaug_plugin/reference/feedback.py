"""The feedback and the penalties of PoseAug's paper and of its released code."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ..adversary.critics import AdversarialTerm
from ..adversary.losses import length_ratios, weighted_mean
from ..augment.augmenter import Projection
from ..augment.transforms import GeneratedPoses, bone_angle_change, matching_frames
from ..body.bones import root_relative
from ..body.camera import Z_NEAR, project_rays
from ..body.skeleton import Skeleton
from ..errors import PoseAugError
from ..feedback.observer import first_tensor
from ..options import Surroundings, UpdateContext
from ..runtime.isolation import isolated_call
from .regressors import trunk_bones


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
    trunk = {skeleton.root} | {skeleton.bone_children[b] for b in trunk_bones(skeleton)}
    proximal = {js[0] for _, js in skeleton.limbs}
    distal = {j for _, js in skeleton.limbs for j in js[2:]}
    middle = {js[1] for _, js in skeleton.limbs if len(js) > 1}
    middle |= set(range(skeleton.num_joints)) - limb_joints - trunk  # head and neck
    return tuple(tuple(sorted(group)) for group in (proximal, middle, distal) if group)


@cache
def _error_table(skeleton: Skeleton, device: torch.device) -> Tensor:
    """(groups, J) that makes joint-weighted means of joint errors."""
    weights = torch.tensor(joint_weights(skeleton), dtype=torch.float64)
    groups = error_groups(skeleton)
    table = torch.zeros(len(groups), skeleton.num_joints, dtype=torch.float64)
    for row, group in zip(table, groups, strict=True):
        row[list(group)] = weights[list(group)] / len(group)
    return table.to(device)


def paper_feedback(harder: Tensor, easier: Tensor, ratio: float) -> Tensor:
    """|1 - exp(L_P(X') - beta L_P(X))| per entry (PoseAug equation 3); the exponent stops at 20."""
    return (1 - torch.exp((harder - ratio * easier).clamp(max=20.0))).abs()


def released_feedback(harder: Tensor, easier: Tensor, ratio: float, tolerance: float) -> Tensor:
    """Squared distance of L_P(X') / L_P(X) from ``ratio``, 0 inside +-``tolerance``, per entry."""
    return dead_zone(harder / easier.clamp(min=1e-9), ratio, tolerance)


def dead_zone(values: Tensor, centre: float, half_width: float) -> Tensor:
    """(v - centre)^2 where |v - centre| > half_width, else 0, per entry."""
    distance = (values - centre).square()
    return torch.where(distance > half_width**2, distance, torch.zeros_like(distance))


class FeedbackCase(NamedTuple):
    """Poses on which the estimator is asked, and how much harder than their originals they get."""

    weight: float
    hardness: Ramp
    tolerance: float
    poses: Callable[[GeneratedPoses], Tensor]  # (B, T, J, 3)


class EstimatorFeedback:
    """The estimator's own error as a term of the policy's loss, asked without a trace in it."""

    name = "feedback"
    progress = 0.0  # share of the training that is done

    def __init__(
        self,
        ask: IsolatedEstimator,
        cases: tuple[FeedbackCase, ...],
        loss: Callable[[Tensor, Tensor, float, float], Tensor],
        *,
        warmup: float,
        project: Projection,
    ) -> None:
        self.ask, self.cases, self.loss = ask, cases, loss
        self.warmup, self.project = warmup, project

    def __call__(self, generated: GeneratedPoses) -> Tensor:
        """The weighted term, 0-d."""
        total = generated.weights.new_zeros(())
        if not self.cases or (self.warmup and self.progress <= self.warmup):
            return total
        clean, _, intrinsics, _ = generated.inputs.poses
        easier = self.ask(self.project(clean, intrinsics), clean).detach()
        for case in self.cases:
            poses = case.poses(generated)
            moved = poses is generated.poses.moved
            keypoints = generated.keypoints if moved else self.project(poses, intrinsics)
            harder = self.ask(keypoints, poses)
            terms = self.loss(harder, easier, case.hardness.at(self.progress), case.tolerance)
            total = total + case.weight * weighted_mean(terms, generated.weights)
        return total


class IsolatedEstimator:
    """Asks the estimator for its error L_P, differentiable in the poses.

    It leaves the estimator as it was; ``mode`` is that of `isolated_call`.
    """

    def __init__(
        self, surroundings: Surroundings, *, error: ErrorKind, mode: Literal["frozen", "as_found"]
    ) -> None:
        self.estimator, self.adapter, self.skeleton, self.generator = surroundings
        self.error, self.mode = error, mode
        self.context: UpdateContext | None = None

    def prepare(self, context: UpdateContext) -> None:
        """Take the batch of the update that begins."""
        self.context = context

    def __call__(self, keypoints: Tensor, joints: Tensor) -> Tensor:
        """(B, T, J, 2) and (B, T, J, 3) to errors (B, terms)."""
        context = self.context
        assert context is not None
        assert context.batch is not None
        assert context.host is not None
        target = context.batch.target
        joints = matching_frames(joints, context.batch.joints.shape[1], target)
        inputs = self.adapter.encode(joints, keypoints, context.host, self.skeleton).inputs_2d
        inputs = getattr(self.adapter, "estimator_inputs", lambda same: same)(inputs)
        with context.defaults.used():
            output = first_tensor(isolated_call(self.estimator, inputs, self.generator, self.mode))
        if output is None:
            raise PoseAugError("this preset's feedback needs an estimator that returns a tensor.")
        predicted = self.adapter.predicted_joints(output, self.skeleton)
        joints = matching_frames(joints, predicted.shape[1], target)
        predicted, joints = (root_relative(x, self.skeleton) for x in (predicted, joints))
        return estimator_errors(predicted, joints, self.error, self.skeleton)


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

    def __init__(self, skeleton: Skeleton) -> None:
        self.skeleton = skeleton

    def __call__(self, generated: GeneratedPoses) -> Tensor:
        """The weighted term, 0-d."""
        clean, bent = generated.clean_pose, generated.bent_pose
        turned = bone_angle_change(clean, bent, self.skeleton).mean(1)  # 1 - cosine
        angle = dead_zone(turned, centre=0.205, half_width=0.165)
        ratios = length_ratios(generated, self.skeleton)
        length = dead_zone(ratios, centre=0.0, half_width=0.1)
        weights = generated.weights
        return 3.0 * (weighted_mean(angle, weights) + weighted_mean(length, weights))


def project_clamped(points: Tensor, intrinsics: Tensor) -> Tensor:
    """`project_points` with x/z and y/z cut to [-1, 1], and so the gradient that pulls it back."""
    return project_rays((points[..., :2] / points[..., 2:]).clamp(-1, 1), intrinsics)


def released_frame_check(points: Tensor, keypoints: Tensor, _: Tensor) -> Tensor:
    """In front of the camera, and no coordinate above 1: the left and the top are open."""
    return (points[..., 2] > Z_NEAR) & (keypoints <= 1).all(-1)
