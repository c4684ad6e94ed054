"""`Paper` and `Released`: PoseAug by its paper's formulas, and by its code's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from ..adversary.critics import (
    Critic,
    KeypointCritic,
    PartKCSCritic,
    Terms,
    adversarial_term,
    range_term,
    weighted_mean,
)
from ..augment.transforms import GeneratedPoses, matching_frames
from ..body.bones import root_relative
from ..body.camera import Z_NEAR, in_view, project_points, project_rays
from ..body.skeleton import Skeleton
from ..errors import check_choice, check_number
from ..options import Options, Surroundings, Training, UpdateContext, learns
from ..runtime.isolation import Mode
from .regressors import RegressorPolicy, trunk_bones


class Ramp(NamedTuple):
    """A value that goes linearly from ``start`` to ``end`` over the training."""

    start: float
    end: float

    def at(self, progress: float) -> float:
        """The value at ``progress`` in [0, 1]."""
        return self.start + (self.end - self.start) * progress


_GROWING = Ramp(3.0, 5.0)
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
    trunk = {skeleton.root, *(skeleton.bone_children[b] for b in trunk_bones(skeleton))}
    proximal = {joints[0] for _, joints in skeleton.limbs}
    distal = {j for _, joints in skeleton.limbs for j in joints[2:]}
    middle = {joints[1] for _, joints in skeleton.limbs if len(joints) > 1}
    middle |= set(range(skeleton.num_joints)) - trunk - proximal - distal  # head and neck
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


def both_sided_term(generated: GeneratedPoses, critic: Critic) -> Tensor:
    """1/2 [D(real)^2 + (D(fake) - 1)^2]; the first half is a constant, with no gradient."""
    real = critic(critic.real(generated)).detach()
    half = 0.5 * critic.weight * weighted_mean(real.square(), generated.weights)
    return adversarial_term(generated, critic) + half


def released_range_term(generated: GeneratedPoses) -> Tensor:
    """Two-sided limits on the mean bone angle, and limits on every bone length ratio."""
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


def paper_frame_check(points: Tensor, _: Tensor, intrinsics: Tensor, aspect_ratio: float) -> Tensor:
    """`in_view`; keypoints of clamped rays do not tell."""
    return in_view(points, project_points(points, intrinsics), intrinsics, aspect_ratio)


# A weight, how much harder than their originals poses are to get, the tolerance of that (released),
# and which of the `AugmentedPoses` the estimator is asked about.
FeedbackCase = tuple[float, Ramp, float, Literal["bent", "moved"]]


@dataclass
class EstimatorFeedback:
    """The estimator's own error as a term of the policy's loss, asked without a trace in it."""

    surroundings: Surroundings
    cases: tuple[FeedbackCase, ...]
    loss: Callable[[Tensor, Tensor, float, float], Tensor]
    error: ErrorKind
    mode: Mode  # of `isolated_call`
    warmup: float
    context: UpdateContext | None = None  # of the update that begins
    progress: float = 0.0  # share of the training that is done

    def __call__(self, generated: GeneratedPoses) -> Tensor:
        """The weighted term, 0-d."""
        total = generated.weights.new_zeros(())
        if not self.cases or (self.warmup and self.progress <= self.warmup):
            return total
        clean, _, intrinsics, _ = generated.inputs.poses
        easier = self.ask(project_clamped(clean, intrinsics), clean).detach()
        for weight, hardness, tolerance, stage in self.cases:
            poses, keypoints = getattr(generated.poses, stage), generated.keypoints
            if stage == "bent":
                keypoints = project_clamped(poses, intrinsics)
            harder = self.ask(keypoints, poses)
            terms = self.loss(harder, easier, hardness.at(self.progress), tolerance)
            total = total + weight * weighted_mean(terms, generated.weights)
        return total

    def ask(self, keypoints: Tensor, joints: Tensor) -> Tensor:
        """The error L_P (B, terms) on (B, T, J, 2) and (B, T, J, 3), differentiable in both."""
        assert self.context is not None
        batch, host, defaults = self.context
        assert batch is not None
        assert host is not None
        adapter, skeleton = self.surroundings.adapter, self.surroundings.skeleton
        joints = matching_frames(joints, batch.joints.shape[1], batch.target)
        inputs = adapter.encode(joints, keypoints, host, skeleton)
        predicted = self.surroundings.ask(inputs, defaults, self.mode)
        joints = root_relative(matching_frames(joints, predicted.shape[1], batch.target), skeleton)
        return estimator_errors(root_relative(predicted, skeleton), joints, self.error, skeleton)


@dataclass(frozen=True, kw_only=True)
class Paper:
    """The paper's formulas; `PoseAugError` for a value of another kind or out of range.

    Attributes:
        bent_weight: Weight of the feedback on bent poses, put where the originals stood.
        moved_weight: Weight of the feedback on fully augmented poses.
        bent_hardness: Target of error(bent) / error(clean): a number or a `Ramp` (3 to 5).
        moved_hardness: Target of error(moved) / error(clean); likewise.
        warmup: Share of the training without feedback.
        weight_3d: Weight of the 3D critic in the policy's loss.
        weight_2d: Weight of the 2D critic.
        kcs: Part-aware (``"parts"``) or ``"whole"``-body KCS critic (the paper's ablation).
        width: Hidden width of regressors and 3D critic.
        pool_capacity: Generated poses kept for the critics.
        learning_rate: Of policy and critics, falling linearly to zero.
    """

    bent_weight: float = 0.0
    moved_weight: float = 1.0
    bent_hardness: Ramp | float = _GROWING
    moved_hardness: Ramp | float = _GROWING
    warmup: float = 0.04
    weight_3d: float = 1.0
    weight_2d: float = 1.0
    kcs: Literal["parts", "whole"] = "parts"
    width: int = 256
    pool_capacity: int = 4096
    learning_rate: float = 1e-4

    name: ClassVar[str] = "paper"
    share: ClassVar[float] = 0.5
    reads: ClassVar[frozenset[str]] = frozenset(("policy", "operations", "share", "total_updates"))
    is_released: ClassVar[bool] = False  # else by the paper's formulas

    def __post_init__(self) -> None:
        check_choice("kcs", self.kcs, ("parts", "whole"))
        for name, value in vars(self).items():
            if name.endswith("hardness"):
                for end in value if isinstance(value, Ramp) else (value,):
                    check_number(f"{name}, a number or Ramp(start, end),", end, 0.0, 1e6)
            elif name in ("width", "pool_capacity"):
                check_number(name, value, name == "width", 1e6, whole=True)
            elif name != "kcs":
                highest = 1.0 if name in ("warmup", "learning_rate") else 1e6
                check_number(name, value, 0.0, highest)

    def build(self, options: Options, surroundings: Surroundings) -> Training:
        """Make the networks and what they minimise."""
        assert options.total_updates is not None
        _, _, skeleton, generator = surroundings
        total, released, policy = options.total_updates, self.is_released, options.policy
        if policy is None:
            policy = RegressorPolicy(
                skeleton,
                operations=options.operations,
                fixed_trunk=released,
                shared_extractor=not released,
                width=self.width,
            )
        policy.to(generator.device)
        frame_check = released_frame_check if released else paper_frame_check
        if not learns(policy):
            return Training(policy, project=project_clamped, frame_check=frame_check)
        critics: tuple[Critic, ...] = (
            PartKCSCritic(skeleton, scope=self.kcs, width=self.width, last_width=100),
            KeypointCritic(skeleton, width=100),
        )
        critics[0].weight, critics[1].weight = self.weight_3d, self.weight_2d
        critics[0].interval = critics[1].interval = 2
        adversarial = both_sided_term if released else adversarial_term
        terms: Terms = {c.name: partial(adversarial, critic=c) for c in critics if c.weight}
        terms["feedback"] = feedback = EstimatorFeedback(
            surroundings,
            self._cases(),
            released_feedback if released else paper_feedback,
            error="grouped" if released else "squared_norm",
            mode="as_found" if released else "frozen",
            warmup=self.warmup,
        )
        terms["range"] = released_range_term
        if not released:
            terms["range"] = partial(range_term, weight=1.0, length_limit=0.1)

        def before_update(num_updates: int, context: UpdateContext) -> float:
            feedback.context = context
            feedback.progress = min(num_updates / total, 1.0)
            return self.learning_rate * (1.0 - feedback.progress)

        return Training(
            policy,
            critics,
            terms,
            interval=1,
            learn_from=None,
            pool_capacity=self.pool_capacity,
            project=project_clamped,
            frame_check=frame_check,
            before_update=before_update,
        )

    def _cases(self) -> tuple[FeedbackCase, ...]:
        targets = self.bent_hardness, self.moved_hardness
        bent, moved = (ramp if isinstance(ramp, Ramp) else Ramp(ramp, ramp) for ramp in targets)
        bent_case: FeedbackCase = (self.bent_weight, bent, 2.0, "bent")
        moved_case: FeedbackCase = (self.moved_weight, moved, 15.0, "moved")
        return tuple(case for case in (bent_case, moved_case) if case[0])


@dataclass(frozen=True, kw_only=True)
class Released(Paper):
    """The released code's formulas, row by row in docs/fidelity.md; arguments as in `Paper`."""

    bent_weight: float = 0.1
    moved_weight: float = 0.01
    moved_hardness: Ramp | float = 17.0
    weight_3d: float = 6.0

    name: ClassVar[str] = "released"
    is_released: ClassVar[bool] = True
