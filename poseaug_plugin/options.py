"""The hook's options, each checked when the hook is built, and the trainings they describe."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from .adversary.critics import (
    Critic,
    KeypointCritic,
    PartKCSCritic,
    Terms,
    adversarial_term,
    entropy_term,
    frame_term,
    range_term,
)
from .augment.augmenter import FrameCheck, Projection
from .augment.policy import AugmentationPolicy, Operation, RandomPolicy, Spread, check_operations
from .augment.transforms import AugmentedBatch, Policy
from .body.camera import in_view, project_points
from .body.skeleton import Skeleton
from .errors import PoseAugError, check_choice, check_flag, check_number
from .feedback.controller import FeedbackController
from .feedback.observer import first_tensor
from .feedback.target import ClosedLoop, TargetKeypoints
from .host.adapter import Adapter, HostPoses
from .runtime.isolation import Mode, TorchDefaults, isolated_call


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of `PoseAugHook`, which describes them; `PoseAugError` for a wrong value."""

    policy: Policy | None = None
    spread: Spread | None = None
    operations: tuple[Operation, ...] | None = None
    mix: Literal["replace", "append"] = "replace"
    share: float | None = None
    critic_weight: float | None = None
    entropy_weight: float | None = None
    feedback: bool | None = None
    total_updates: int | None = None
    target_2d: TargetKeypoints | None = None
    cuda_graphs: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.policy, Policy | None):
            raise PoseAugError(f"policy must be a poseaug_plugin.Policy, got {self.policy!r}.")
        if not isinstance(self.spread, Spread | None):
            raise PoseAugError(f"spread must be a Spread(pitch=..., ...), got {self.spread!r}.")
        check_choice("mix", self.mix, ("replace", "append"))
        check_flag("cuda_graphs", self.cuda_graphs)
        check_operations(self.operations)
        if self.feedback is not None:
            check_flag("feedback", self.feedback)
        if self.total_updates is not None:
            check_number("total_updates", self.total_updates, 1, 2**53, whole=True)
        for name, high in (("share", 1.0), ("critic_weight", 1e3), ("entropy_weight", 1e3)):
            if getattr(self, name) is not None:
                check_number(name, getattr(self, name), 0.0, high)

    def check_effects(self, preset: str, reads: frozenset[str]) -> None:
        """Refuse an option that has no effect, and ask for one that is missing."""
        if "total_updates" in reads and self.total_updates is None:
            raise PoseAugError(
                f"preset={preset!r} changes over the training: pass "
                "total_updates=epochs * batches_per_epoch."
            )
        read_by_all = "mix", "cuda_graphs"
        given = [n for n, value in vars(self).items() if value is not None and n not in read_by_all]
        idle = dict.fromkeys(set(given) - reads, f"preset={preset!r}")
        if self.mix == "append":
            idle["share"] = "mix='append', which augments a copy of the whole batch"
        if (policy := self.policy) is not None:
            idle["spread"] = idle["operations"] = "a policy that draws by itself"
            if not learns(policy):
                taught = ("critic_weight", "entropy_weight", "feedback")
                idle |= dict.fromkeys(taught, "a policy that has nothing to learn")
            if policy.entropy() is None:
                idle["entropy_weight"] = "a policy that has no entropy()"
            if not isinstance(policy, AugmentationPolicy):
                idle["feedback"] = "a policy of your own, whose strength the hook cannot set"
        for name in given:
            if name in idle:
                raise PoseAugError(f"{name} has no effect with {idle[name]}; leave it out.")


class Surroundings(NamedTuple):
    """What a training is built for."""

    estimator: nn.Module
    adapter: Adapter
    skeleton: Skeleton
    generator: torch.Generator  # the hook's, on the device where everything lives

    @property
    def aspect_ratio(self) -> float:
        """Image height / width."""
        return getattr(self.adapter, "aspect_ratio", 1.0)

    def ask(self, poses: HostPoses, defaults: TorchDefaults, mode: Mode = "frozen") -> Tensor:
        """The estimator's poses (B, T, J, 3), metres, for the host's inputs, by `isolated_call`."""
        change = getattr(self.adapter, "estimator_inputs", lambda same: same)
        with defaults.used():
            output = isolated_call(self.estimator, change(poses.inputs_2d), self.generator, mode)
        prediction = first_tensor(output)
        if prediction is None:
            raise PoseAugError("the estimator is asked by the hook, so it must return a tensor.")
        return self.adapter.predicted_joints(prediction, self.skeleton)


class UpdateContext(NamedTuple):
    """What is known of the host when an update begins."""

    batch: AugmentedBatch | None
    host: HostPoses | None  # the host's own samples that were augmented
    defaults: TorchDefaults  # the user's


class Training(NamedTuple):
    """What a preset makes: networks, what they minimise, and how poses are looked at."""

    policy: Policy
    critics: tuple[Critic, ...] = ()
    terms: Terms | None = None  # of the policy's loss; none where it does not learn
    controller: FeedbackController | None = None
    closed_loop: ClosedLoop | None = None
    interval: int = 8  # something is learned, and figures are taken, in one update out of so many
    learn_from: int | None = 128  # augmented poses of a batch that are learned from; None for all
    pool_capacity: int = 1024
    project: Projection = project_points
    frame_check: FrameCheck = in_view
    # Called with the number of updates so far, and gives the learning rate.
    before_update: Callable[[int, UpdateContext], float] | None = None


class Preset(Protocol):
    """A kind of training by name."""

    name: str
    share: float
    reads: frozenset[str]  # options that have an effect

    def build(self, options: Options, surroundings: Surroundings) -> Training:
        """Make the networks; called once, under the hook's own random stream."""


class DefaultPreset:
    """The loop: draws whose spreads critics, entropy and feedback tune."""

    name = "default"
    share = 0.75
    reads = frozenset(
        {"policy", "spread", "operations", "share"}
        | {"critic_weight", "entropy_weight", "feedback", "target_2d"}
    )
    draws: type[RandomPolicy] = AugmentationPolicy

    def build(self, options: Options, surroundings: Surroundings) -> Training:
        """Make the policy and what teaches it."""
        _, _, skeleton, generator = surroundings
        policy = options.policy
        if policy is None:
            policy = self.draws(skeleton, spread=options.spread, operations=options.operations)
        policy.to(generator.device)
        target = options.target_2d
        loop = None if target is None else ClosedLoop(target, skeleton).to(generator.device)
        if not learns(policy):
            return Training(policy, closed_loop=loop)
        weight = 0.1 if options.critic_weight is None else options.critic_weight
        reward = 0.05 if options.entropy_weight is None else options.entropy_weight
        critics = (PartKCSCritic(skeleton), KeypointCritic(skeleton)) if weight else ()
        for critic in critics:
            critic.weight = weight
        terms: Terms = {c.name: partial(adversarial_term, critic=c) for c in critics}
        terms["range"] = range_term
        terms["frame"] = partial(frame_term, aspect_ratio=surroundings.aspect_ratio)
        terms["entropy"] = partial(entropy_term, policy=policy, weight=reward)
        controller = None
        if isinstance(policy, AugmentationPolicy) and options.feedback is not False:
            controller = FeedbackController(policy.strength)
        return Training(policy, critics, terms, controller, loop)


class RandomPreset(DefaultPreset):
    """The default's draws with nothing learned: the baseline to beat."""

    name = "random"
    reads = frozenset(["spread", "operations", "share"])
    draws = RandomPolicy


def learns(policy: Policy) -> bool:
    """Whether there is anything to train."""
    return any(parameter.requires_grad for parameter in policy.parameters())
