"""`Paper` and `Released`: PoseAug by its paper's formulas, and by its code's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal, NamedTuple

from torch import Tensor, nn

from ..adversary.critics import (
    AdversarialTerm,
    Critic,
    KeypointCritic,
    PartKCSCritic,
    RangeTerm,
    Term,
    weighted_mean,
)
from ..augment.augmenter import FrameCheck, Projection
from ..augment.transforms import GeneratedPoses, Policy, matching_frames
from ..body.bones import root_relative
from ..body.camera import in_view, project_points
from ..errors import check_choice, check_number
from ..options import Options, Surroundings, Training, UpdateContext, learns
from ..runtime.optimizer import GuardedAdam
from .feedback import (
    BothSidedTerm,
    ErrorKind,
    Ramp,
    ReleasedRangeTerm,
    estimator_errors,
    paper_feedback,
    project_clamped,
    released_feedback,
    released_frame_check,
)
from .regressors import RegressorPolicy

_GROWING = Ramp(3.0, 5.0)


class FeedbackCase(NamedTuple):
    """Poses on which the estimator is asked, and how much harder than their originals they get."""

    weight: float
    hardness: Ramp
    tolerance: float
    poses: Callable[[GeneratedPoses], Tensor]  # (B, T, J, 3)


@dataclass
class EstimatorFeedback:
    """The estimator's own error as a term of the policy's loss, asked without a trace in it."""

    ask: IsolatedEstimator
    cases: tuple[FeedbackCase, ...]
    loss: Callable[[Tensor, Tensor, float, float], Tensor]
    warmup: float
    project: Projection
    progress: float = 0.0  # share of the training that is done
    name = "feedback"

    def __call__(self, generated: GeneratedPoses) -> Tensor:
        """The weighted term, 0-d."""
        weights = generated.weights
        total = weights.new_zeros(())
        if not self.cases or (self.warmup and self.progress <= self.warmup):
            return total
        clean, _, intrinsics, _ = generated.inputs.poses
        easier = self.ask(self.project(clean, intrinsics), clean).detach()
        for case in self.cases:
            poses, hardness = case.poses(generated), case.hardness.at(self.progress)
            moved = poses is generated.poses.moved
            keypoints = generated.keypoints if moved else self.project(poses, intrinsics)
            terms = self.loss(self.ask(keypoints, poses), easier, hardness, case.tolerance)
            total = total + case.weight * weighted_mean(terms, weights)
        return total


@dataclass
class IsolatedEstimator:
    """The estimator's error L_P, differentiable in the poses."""

    surroundings: Surroundings
    error: ErrorKind
    mode: Literal["frozen", "as_found"]  # of `isolated_call`
    context: UpdateContext | None = None  # of the update that begins

    def __call__(self, keypoints: Tensor, joints: Tensor) -> Tensor:
        """(B, T, J, 2) and (B, T, J, 3) to errors (B, terms)."""
        assert self.context is not None
        _, batch, host, defaults = self.context
        assert batch is not None
        assert host is not None
        adapter, skeleton = self.surroundings.adapter, self.surroundings.skeleton
        joints = matching_frames(joints, batch.joints.shape[1], batch.target)
        inputs = adapter.encode(joints, keypoints, host, skeleton)
        predicted = self.surroundings.ask(inputs, defaults, self.mode)
        joints = root_relative(matching_frames(joints, predicted.shape[1], batch.target), skeleton)
        return estimator_errors(root_relative(predicted, skeleton), joints, self.error, skeleton)


class Formulas(NamedTuple):
    """What differs between the paper, by default, and the released code beside numbers."""

    policy: Callable[..., Policy] = partial(RegressorPolicy, shared_extractor=True)
    error: ErrorKind = "squared_norm"
    mode: Literal["frozen", "as_found"] = "frozen"  # of the estimator that is asked
    feedback: Callable[[Tensor, Tensor, float, float], Tensor] = paper_feedback
    tolerances: tuple[float, float] = (0.0, 0.0)  # of the feedback on bent and on moved poses
    adversarial: Callable[[Critic], Term] = AdversarialTerm
    range: Callable[[], Term] = partial(RangeTerm, weight=1.0, length_limit=0.1)
    # The paper's keypoints are of clamped rays, so they do not tell.
    frame_check: FrameCheck = lambda points, _, camera, aspect_ratio: in_view(
        points, project_points(points, camera), camera, aspect_ratio
    )


RELEASED = Formulas(
    policy=partial(RegressorPolicy, fixed_trunk=True),
    error="grouped",
    mode="as_found",
    feedback=released_feedback,
    tolerances=(2.0, 15.0),
    adversarial=BothSidedTerm,
    range=ReleasedRangeTerm,
    frame_check=released_frame_check,
)


@dataclass(frozen=True, kw_only=True)
class Paper:
    """The paper's formulas; `PoseAugError` for a value of another kind or out of range.

    Attributes:
        bent_weight: Weight of the feedback on bent poses, put where the originals stood.
        moved_weight: Weight of the feedback on fully augmented poses.
        bent_hardness: Target of error(bent) / error(clean); a number, or a `Ramp`.
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
    formulas: ClassVar[Formulas] = Formulas()

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
        total, formulas = options.total_updates, self.formulas
        policy = options.policy
        if policy is None:
            policy = formulas.policy(skeleton, operations=options.operations, width=self.width)
        policy.to(generator.device)
        if not learns(policy):
            return Training(policy, project=project_clamped, frame_check=formulas.frame_check)
        critics: tuple[Critic, ...] = (
            PartKCSCritic(skeleton, scope=self.kcs, width=self.width, last_width=100),
            KeypointCritic(skeleton, width=100),
        )
        critics[0].weight, critics[1].weight = self.weight_3d, self.weight_2d
        critics[0].interval = critics[1].interval = 2
        ask = IsolatedEstimator(surroundings, error=formulas.error, mode=formulas.mode)
        feedback = EstimatorFeedback(
            ask, self._cases(), formulas.feedback, warmup=self.warmup, project=project_clamped
        )
        optimizers: list[GuardedAdam] = []

        def make_optimizer(network: nn.Module) -> GuardedAdam:
            optimizers.append(GuardedAdam(network, self.learning_rate))
            return optimizers[-1]

        def before_update(context: UpdateContext) -> None:
            ask.context = context
            feedback.progress = min(context.num_updates / total, 1.0)
            for optimizer in optimizers:
                optimizer.set_learning_rate(self.learning_rate * (1.0 - feedback.progress))

        adversarial = (formulas.adversarial(critic) for critic in critics if critic.weight)
        return Training(
            policy,
            critics,
            (*adversarial, feedback, formulas.range()),
            interval=1,
            learn_from=None,
            pool_capacity=self.pool_capacity,
            project=project_clamped,
            frame_check=formulas.frame_check,
            make_optimizer=make_optimizer,
            before_update=before_update,
        )

    def _cases(self) -> tuple[FeedbackCase, ...]:
        targets = self.bent_hardness, self.moved_hardness
        ramps = [ramp if isinstance(ramp, Ramp) else Ramp(ramp, ramp) for ramp in targets]
        bent, moved = self.formulas.tolerances
        cases = (
            FeedbackCase(self.bent_weight, ramps[0], bent, lambda g: g.poses.bent),
            FeedbackCase(self.moved_weight, ramps[1], moved, lambda g: g.poses.moved),
        )
        return tuple(case for case in cases if case.weight)


@dataclass(frozen=True, kw_only=True)
class Released(Paper):
    """The released code's formulas, row by row in docs/presets.md; arguments as in `Paper`."""

    bent_weight: float = 0.1
    moved_weight: float = 0.01
    moved_hardness: Ramp | float = 17.0
    weight_3d: float = 6.0

    name: ClassVar[str] = "released"
    formulas: ClassVar[Formulas] = RELEASED
