"""`PolicyTrainer`: trains policy, critics and hardness predictor on augmented batches.

It knows nothing of anybody's loop; `hook` connects the two.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from .adapters import CanonicalPoses
from .checkpoint import problems_with
from .config import PoseAugConfig
from .critics import Critic, able_to_judge, compared_by, make_critics
from .curriculum import linear_decay, training_progress
from .diagnostics import Monitor
from .errors import PoseAugError
from .execution import Execution
from .generation import Augmented, BatchAugmenter, Draft, detached, evenly_spaced
from .guarded import GuardedAdam
from .hardness import HardnessPredictor
from .isolation import saved_buffers, seeded_stream
from .objectives import (
    ErrorOf,
    Generated,
    PolicyLosses,
    PredictorFit,
    critic_objective,
    policy_objective,
    predictor_objective,
)
from .policy import AugmentationPolicy, Policy, RandomPolicy
from .ranks import Lesson, Ranks
from .readings import augmentation_readings, hardness_readings
from .regressor_policy import RegressorPolicy
from .skeleton import Skeleton
from .source import PoseWindows

Result = TypeVar("Result")

_SEEDS_APART = 1_000_003


class Turn(NamedTuple):
    """What an update depends on beside its tensors."""

    policy_learns: bool
    critics_learn: bool
    progress: float  # 0 where nothing but the learning rate changes with it
    poses: int  # that the batch has
    recurs: bool  # the same arithmetic again: nothing of the user's, no options that change


class Learned(NamedTuple):
    """What an update finds out before any network changes."""

    lessons: dict[str, Lesson]  # by network, in the order in which they learn
    losses: dict[str, Any]  # by the names of `Losses`
    readings: dict[str, Tensor]  # by the names of `Diagnostics`


class Losses(NamedTuple):
    """Losses of every network's last update, 0-d tensors on the device; NaN before the first."""

    policy: PolicyLosses
    critic_3d: Tensor
    critic_2d: Tensor
    critic_motion: Tensor
    predictor: Tensor


class PolicyTrainer:
    """Policy, critics, hardness predictor, their optimizers, pools and random stream.

    Args:
        skeleton: The tree.
        config: Options.
        device: Where all of it lives.
        seed: Of initial weights and noise.
        policy: Used instead of the one that ``config`` describes.
        real_poses_3d: (N, J, 3) poses that the 3D critic takes for real instead of the batch's.
        real_poses_2d: (N, J, 2) likewise for the 2D critic; need not belong to the 3D ones.
        windows: Where windows to augment come from, if not from the batch.
        ranks: The processes that train together, each with such a trainer.
    """

    def __init__(
        self,
        skeleton: Skeleton,
        config: PoseAugConfig,
        device: torch.device,
        seed: int = 0,
        policy: Policy | None = None,
        real_poses_3d: Tensor | None = None,
        real_poses_2d: Tensor | None = None,
        windows: PoseWindows | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        self.ranks = ranks
        self.skeleton = skeleton
        self.config = config
        self.num_updates = 0
        # Ranks start alike and draw differently.
        rank = 0 if ranks is None else ranks.rank
        self.generator = torch.Generator(device).manual_seed(seed + _SEEDS_APART * rank)
        self.execution = Execution(
            self.generator,
            records=config.cuda_graphs and policy is None,
            compiles=config.compile,
        )
        real_3d = _checked(real_poses_3d, "real_poses_3d", (skeleton.num_joints, 3), device)
        real_2d = _checked(real_poses_2d, "real_poses_2d", (skeleton.num_joints, 2), device)
        if config.placement == "real_poses_2d" and real_2d is None:
            raise PoseAugError(
                "placement='real_poses_2d' puts poses where those are seen: pass real_poses_2d, "
                f"(N, {skeleton.num_joints}, 2) normalised screen coordinates."
            )
        # Initial weights come from a stream of our own; the user's global one is given back.
        with seeded_stream(seed, torch.device("cpu")):
            self.policy: Policy = policy if policy is not None else _make_policy(skeleton, config)
            self.policy.to(device).train()
            self._policy_adam: GuardedAdam | None = None
            self.critics: tuple[Critic, ...] = ()
            if any(p.requires_grad for p in self.policy.parameters()):
                self._policy_adam = self._adam(self.policy)
                self.critics = make_critics(skeleton, config, device, self._adam, real_3d, real_2d)
            self.predictor: HardnessPredictor | None = None
            self._predictor_adam: GuardedAdam | None = None
            if config.feedback == "predicted":
                self.predictor = HardnessPredictor(skeleton).to(device)
                self._predictor_adam = self._adam(self.predictor, config.predictor_learning_rate)
        self.monitor = Monitor().to(device)
        self.augmenter = BatchAugmenter(
            self.policy,
            self.predictor,
            skeleton,
            config,
            self.execution,
            windows,
            real_2d if config.placement == "real_poses_2d" else None,
        )
        self.losses = _no_losses(device)
        if ranks is not None:
            ranks.same_start(self._modules())

    def _adam(self, network: nn.Module, learning_rate: float | None = None) -> GuardedAdam:
        config = self.config
        return GuardedAdam(
            network,
            config.learning_rate if learning_rate is None else learning_rate,
            config.max_gradient_norm,
            recordable=self.execution.records,
        )

    @property
    def progress(self) -> float:
        """Share of the training that is done."""
        return training_progress(self.num_updates, self.config.total_updates)

    @property
    def policy_learns(self) -> bool:
        """Whether the next update is one of the policy's."""
        due = (self.num_updates + 1) % self.config.policy_interval == 0
        return due and self._policy_adam is not None

    # -- augmenting and learning -----------------------------------------------------------------

    def augment(self, poses: CanonicalPoses, keeps_cameras: bool = True) -> Augmented:
        """What the `augmenter` makes of poses, with what the next update needs of it."""
        return self.execution.run(
            self.augmenter.augment, poses, keeps_cameras, not self.policy_learns
        )

    def update(
        self,
        augmented: Augmented | None,
        observed: Tensor | None = None,
        estimator_error: ErrorOf | None = None,
        skip: Tensor | None = None,
    ) -> None:
        """One update of everything: policy first, then critics on detached fakes, then predictor.

        Args:
            augmented: What `augment` made; None where this rank has nothing and the others may have
                something.
            observed: (N,) errors in metres of the user's own forward pass on that batch, if known.
            estimator_error: The estimator itself, for ``feedback="estimator"``.
            skip: Not zero where the user's own step is being undone on the device: then no weights
                change either.
        """
        turn = self._turn(augmented, estimator_error)
        run = self.execution.run if turn.recurs and self._pools_are_settled else _as_written
        learned = None
        if augmented is not None:
            learned = run(self._learn, augmented, observed, estimator_error, turn)
            self.losses = self.losses._replace(**learned.losses)
        own = {} if learned is None else learned.lessons
        lessons = own
        if self.ranks is not None and (learning := self._learning()):
            # The same networks on every rank, whoever has something for them.
            lessons = {name: self._nothing_for(adam) for name, adam in learning.items()}
            lessons |= own
            averaged = self.ranks.average(list(lessons.values()), self._moving_buffers())
            lessons = dict(zip(lessons, averaged, strict=True))
        rate = linear_decay(self.progress) if self.config.decay_learning_rate else 1.0
        for name, adam in self._adams().items():
            adam.set_learning_rate(adam.learning_rate * (rate if name != "predictor" else 1.0))
        readings = None if learned is None else learned.readings
        # With the turn, though it does not read it: then it is recorded no sooner than what its
        # gradients come from, and can take them where they are.
        run(self._apply, lessons, tuple(own), skip, readings, turn)
        self.num_updates += 1

    def _turn(self, augmented: Augmented | None, estimator_error: ErrorOf | None) -> Turn:
        recurs = estimator_error is None and not self.config.scheduled
        return Turn(
            self.policy_learns,
            self._critics_learn,
            0.0 if recurs else self.progress,
            0 if augmented is None else augmented.joints.shape[0],
            recurs,
        )

    @property
    def _pools_are_settled(self) -> bool:
        """Whether critics swap poses as they will from now on; how full a pool is is Python's."""
        return all(len(critic.pool) in (0, critic.pool.capacity) for critic in self.critics)

    def _learn(
        self,
        augmented: Augmented,
        observed: Tensor | None,
        estimator_error: ErrorOf | None,
        turn: Turn,
    ) -> Learned:
        """Gradients for every network that has something to learn from this batch, in order."""
        compute = self.execution.compute
        lessons: dict[str, Lesson] = {}
        losses: dict[str, Any] = {}
        readings: dict[str, Tensor] = {}
        poses = augmented.draft.poses
        weight = poses.usable.to(poses.joints.dtype).sum()
        if turn.policy_learns:
            assert self._policy_adam is not None
            total, generated, losses["policy"] = (compute if turn.recurs else _as_written)(
                self._policy_losses, augmented.draft, estimator_error, turn.progress
            )
            lessons["policy"] = Lesson(self._policy_adam.gradients(total), weight)
        else:
            generated = compute(self.augmenter.generate, augmented.draft, augmented.made)
        if turn.critics_learn:
            for critic in able_to_judge(self.critics, generated):
                compared = compared_by(critic, generated, self.skeleton, self.execution)
                told = compute(critic_objective, critic.network, *compared)
                name = f"critic_{critic.name}"
                lessons[name] = Lesson(critic.adam.gradients(told.loss), weight)
                losses[name] = told.loss.detach()
                readings[f"accuracy_{critic.name}"] = told.accuracy
        if observed is not None:
            readings |= compute(hardness_readings, augmented, observed, self.skeleton)
        if observed is not None and self._predictor_adam is not None:
            fit = compute(self._predictor_fit, augmented, observed)
            lessons["predictor"] = Lesson(self._predictor_adam.gradients(fit.loss), weight)
            losses["predictor"] = fit.loss.detach()
            readings["predictor_r_squared"] = fit.r_squared
        with torch.no_grad():
            readings |= compute(augmentation_readings, augmented, generated)
        return Learned(lessons, losses, readings)

    def _apply(
        self,
        lessons: dict[str, Lesson],
        own: tuple[str, ...],
        skip: Tensor | None,
        readings: dict[str, Tensor] | None,
        _: Turn,
    ) -> None:
        """Every network's step, and the monitor's of this rank's ``own`` lessons."""
        adams = self._adams()
        skipped = torch.zeros((), dtype=torch.bool, device=self.generator.device)
        for name, (gradients, weight) in lessons.items():
            may_learn = weight > 0 if skip is None else (weight > 0) & (skip == 0)
            left_out = adams[name].step(gradients, may_learn)
            if name in own:
                skipped = skipped | left_out
        if readings is not None:
            self.monitor.record(skipped=skipped, **readings)

    def _learning(self) -> dict[str, GuardedAdam]:
        """The networks that learn in this update, in order, the same ones on every rank."""
        return {
            name: adam
            for name, adam in self._adams().items()
            if name == "predictor"
            or (self.policy_learns if name == "policy" else self._critics_learn)
        }

    @property
    def _critics_learn(self) -> bool:
        return self.num_updates % self.config.critic_interval == 0

    @staticmethod
    def _nothing_for(adam: GuardedAdam) -> Lesson:
        zeros = [torch.zeros_like(p) for p in adam.parameters]
        return Lesson(zeros, zeros[0].new_zeros(()))

    def _moving_buffers(self) -> list[Tensor]:
        """What changes without a gradient: the released policy's batch statistics."""
        return [b for b in saved_buffers(self.policy) if b.is_floating_point()]

    def _policy_losses(
        self, draft: Draft, estimator_error: ErrorOf | None, progress: float
    ) -> tuple[Tensor, Generated, PolicyLosses]:
        """The total to be differentiated; poses and terms without a graph."""
        generated = self.augmenter.generate(draft)
        error_of = self._predicted_error if self.config.feedback == "predicted" else estimator_error
        judges = able_to_judge(self.critics, generated)
        critics = {critic.name: critic.network for critic in judges}
        losses = policy_objective(
            generated,
            critics["3d"],
            critics["2d"],
            error_of,
            self.config,
            self.skeleton,
            progress,
            self.policy.entropy(),
            critics.get("motion"),
        )
        return losses.total, detached(generated), detached(losses)

    def _predicted_error(self, keypoints: Tensor, joints: Tensor) -> Tensor:
        return self.augmenter.predict(keypoints, joints).exp().unsqueeze(-1)

    def _predictor_fit(self, augmented: Augmented, observed: Tensor) -> PredictorFit:
        keypoints, joints, usable = augmented.keypoints, augmented.joints, augmented.usable
        rows = evenly_spaced(observed.shape[0], self.config.update_batch, observed.device)
        if rows is not None:
            keypoints, joints, usable, observed = (
                x.index_select(0, rows) for x in (keypoints, joints, usable, observed)
            )
        predicted = self.augmenter.predict(keypoints, joints)
        return predictor_objective(predicted, observed, usable.to(observed.dtype))

    # -- state -----------------------------------------------------------------------------------

    def _modules(self) -> nn.ModuleDict:
        """Every module with something to save."""
        modules: dict[str, nn.Module] = {
            "policy": self.policy,
            "monitor": self.monitor,
        }
        for critic in self.critics:
            modules[f"critic_{critic.name}"] = critic.network
            modules[f"pool_{critic.name}"] = critic.pool
        if self.predictor is not None:
            modules["predictor"] = self.predictor
        return nn.ModuleDict(modules)

    def _adams(self) -> dict[str, GuardedAdam]:
        """In the order in which the networks learn."""
        adams = {} if self._policy_adam is None else {"policy": self._policy_adam}
        adams |= {f"critic_{critic.name}": critic.adam for critic in self.critics}
        if self._predictor_adam is not None:
            adams["predictor"] = self._predictor_adam
        return adams

    def state_dict(self) -> dict[str, Any]:
        """Everything that changes: tensors and plain values."""
        return {
            "num_updates": self.num_updates,
            "modules": self._modules().state_dict(),
            "optimizers": {name: adam.state_dict() for name, adam in self._adams().items()},
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` saved.

        Raises:
            PoseAugError: The state does not fit; nothing has changed then.
        """
        problems = problems_with(state, self._modules(), self._adams())
        if problems:
            more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
            raise PoseAugError(f"{'; '.join(problems[:3])}{more}.")
        self.execution.forget()  # Adam's moments will be other tensors
        self._modules().load_state_dict(state["modules"])
        for name, adam in self._adams().items():
            adam.load_state_dict(state["optimizers"][name])
        self.num_updates = state["num_updates"]
        generator = state["generator"].cpu()
        is_first = self.ranks is None or self.ranks.rank == 0
        if is_first and generator.shape == self.generator.get_state().shape:
            self.generator.set_state(generator)
        else:
            # Saved by another rank, or on another kind of device: a stream of one's own.
            self.generator.manual_seed(self.generator.initial_seed() + self.num_updates)


def _as_written(method: Callable[..., Result], *arguments: Any) -> Result:  # noqa: ANN401
    return method(*arguments)


def _no_losses(device: torch.device) -> Losses:
    nan = torch.full((), torch.nan, device=device)
    policy = PolicyLosses(*[nan] * len(PolicyLosses._fields))
    return Losses(policy, *[nan] * (len(Losses._fields) - 1))


def _make_policy(skeleton: Skeleton, config: PoseAugConfig) -> Policy:
    operations, fixed_trunk = config.operations, config.fixed_trunk
    drawing = {"random": RandomPolicy, "learned": AugmentationPolicy}
    if config.augmentor in drawing:
        return drawing[config.augmentor](
            skeleton, spread=config.spread, operations=operations, fixed_trunk=fixed_trunk
        )
    return RegressorPolicy(
        skeleton,
        operations=operations,
        fixed_trunk=fixed_trunk,
        shared_extractor=config.shared_extractor,
        width=config.width,
    )


def _checked(
    poses: Tensor | None, name: str, shape: tuple[int, int], device: torch.device
) -> Tensor | None:
    if poses is None:
        return None
    if not isinstance(poses, Tensor):
        raise PoseAugError(f"{name} must be a tensor, got {type(poses).__name__}.")
    if poses.dim() != 3 or poses.shape[1:] != shape or not poses.shape[0]:
        raise PoseAugError(
            f"{name} must be (poses, {shape[0]}, {shape[1]}), got {tuple(poses.shape)}."
        )
    if not poses.isfinite().all():
        raise PoseAugError(f"{name} must be finite, got NaN or Inf; drop those poses.")
    return poses.detach().to(device, torch.float32)
