"""`PolicyTrainer`: draws augmented batches and trains policy, critics and predictor.

It knows nothing of anybody's loop; `hook` connects the two.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .adapters import CanonicalBatch
from .augmentation import (
    AugmentationParameters,
    apply_augmentation,
    bone_angle_change,
    moved_poses,
)
from .camera import in_view, project_points
from .config import PoseAugConfig
from .curriculum import linear_decay, training_progress
from .diagnostics import Monitor
from .discriminators import KeypointDiscriminator, PartKCSDiscriminator
from .errors import PoseAugError
from .guarded import GuardedAdam
from .hardness import HardnessController, HardnessPredictor, choose_candidate
from .losses import critic_accuracy, lsgan_critic_loss, weighted_mean
from .objectives import (
    ErrorOf,
    Generated,
    PolicyLosses,
    policy_objective,
    predictor_objective,
)
from .policy import AugmentationPolicy, Policy, RandomPolicy, RawParameters
from .pool import FakePosePool
from .skeleton import Skeleton


class Augmented(NamedTuple):
    """An augmented batch: what gets out, and what the update needs."""

    joints: Tensor  # (N, T, J, 3) whole batch as it gets out, detached
    keypoints: Tensor  # (N, T, J, 2) likewise
    rows: Tensor  # (k,) which samples of the original batch were augmented
    valid: Tensor  # (k,) bool: the augmented pose got out; else the original did
    is_augmented: Tensor  # (N,) bool
    usable: Tensor  # (N,) bool
    generated: Generated


class Losses(NamedTuple):
    """Losses of the last update, 0-d tensors on the device; NaN for what was not trained."""

    policy: PolicyLosses
    critic_3d: Tensor
    critic_2d: Tensor
    predictor: Tensor

    def with_critic(self, name: str, loss: Tensor) -> Losses:
        """The same with the loss of critic "3d" or "2d"."""
        return self._replace(critic_3d=loss) if name == "3d" else self._replace(critic_2d=loss)


class Critic(NamedTuple):
    """A discriminator with what belongs to it."""

    name: str  # "3d" or "2d"
    network: nn.Module
    pool: FakePosePool
    adam: GuardedAdam
    real: Tensor | None  # given poses that stand for real ones


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
    ) -> None:
        self.skeleton = skeleton
        self.config = config
        self.num_updates = 0
        self.generator = torch.Generator(device).manual_seed(seed)
        real_3d = _checked(real_poses_3d, "real_poses_3d", (skeleton.num_joints, 3), device)
        real_2d = _checked(real_poses_2d, "real_poses_2d", (skeleton.num_joints, 2), device)
        # Initial weights come from a stream of our own; the user's global one is given back.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.policy: Policy = policy if policy is not None else _make_policy(skeleton, config)
            learns = any(p.requires_grad for p in self.policy.parameters())
            critic_3d = PartKCSDiscriminator(skeleton, scope=config.kcs, width=config.width)
            critic_2d = KeypointDiscriminator(skeleton)
            predictor = HardnessPredictor(skeleton)
        self.policy.to(device).train()
        self.monitor = Monitor().to(device)
        self.controller = HardnessController().to(device)
        self._policy_adam = self._adam(self.policy, config.learning_rate) if learns else None
        self.critics: tuple[Critic, ...] = ()
        if learns:
            self.critics = (
                self._critic("3d", critic_3d.to(device), real_3d, channels=3),
                self._critic("2d", critic_2d.to(device), real_2d, channels=2),
            )
        self.predictor: HardnessPredictor | None = None
        if config.feedback == "predicted":
            self.predictor = predictor.to(device)
            self._predictor_adam = self._adam(self.predictor, config.predictor_learning_rate)
        self.losses = _no_losses(device)

    def _adam(self, network: nn.Module, learning_rate: float) -> GuardedAdam:
        return GuardedAdam(network, learning_rate, self.config.max_gradient_norm)

    def _critic(self, name: str, network: nn.Module, real: Tensor | None, channels: int) -> Critic:
        config = self.config
        shape = (self.skeleton.num_joints, channels)
        pool = FakePosePool(config.pool_capacity, shape, config.pool_swap_probability)
        return Critic(
            name,
            network,
            pool.to(self.generator.device),
            self._adam(network, config.learning_rate),
            real,
        )

    @property
    def replaces(self) -> bool:
        """Whether augmented samples take the place of originals."""
        return self.config.mix == "replace"

    @property
    def progress(self) -> float:
        """Share of the training that is done."""
        return training_progress(self.num_updates, self.config.total_updates)

    # -- generating ------------------------------------------------------------------------------

    def count_of(self, batch_size: int) -> int:
        """How many samples of a batch are augmented."""
        return round(self.config.share * batch_size) if self.replaces else batch_size

    def augment(self, batch: CanonicalBatch) -> Augmented:
        """Replace a share of the batch, or append an augmented copy, as the options say."""
        size, replaces = batch.joints.shape[0], self.replaces
        count = self.count_of(size)
        device = batch.joints.device
        order = torch.rand(size, device=device, generator=self.generator).argsort()
        rows = order[:count] if replaces else torch.arange(size, device=device)
        generated = self.generate(CanonicalBatch(*(field[rows] for field in batch)))
        with torch.no_grad():
            valid = batch.usable[rows] & self._valid(
                generated.poses.moved,
                generated.keypoints,
                generated.parameters,
                generated.intrinsics,
            )
            keep = valid[:, None, None, None]
            joints = torch.where(keep, generated.poses.moved, batch.joints[rows])
            keypoints = torch.where(keep, generated.keypoints, batch.keypoints[rows])
            if replaces:
                joints = batch.joints.index_copy(0, rows, joints)
                keypoints = batch.keypoints.index_copy(0, rows, keypoints)
                is_augmented = torch.zeros_like(batch.usable).index_copy(0, rows, valid)
                usable = batch.usable
            else:
                joints = torch.cat([batch.joints, joints])
                keypoints = torch.cat([batch.keypoints, keypoints])
                is_augmented = torch.cat([torch.zeros_like(valid), valid])
                usable = batch.usable.repeat(2)
        return Augmented(joints, keypoints, rows, valid, is_augmented, usable, generated)

    def generate(self, batch: CanonicalBatch) -> Generated:
        """Augment every sample, attached to the policy's graph."""
        policy, candidates = self.policy, self.config.candidates
        size, base = batch.joints.shape[0], policy.base_noise_size
        parts = [candidates * base, policy.network_noise_size, candidates]
        noise = torch.randn(size, sum(parts), device=batch.joints.device, generator=self.generator)
        base_noise, network_noise, choice_noise = noise.split(parts, 1)
        # The networks run once; the candidates differ in the base draw.
        raw = policy.regress(batch.joints, network_noise)
        base_noise = base_noise.reshape(size, candidates, base)
        chosen = base_noise[:, 0]
        if candidates > 1:
            choice = self._choose(batch, base_noise, raw, torch.special.ndtr(choice_noise))
            chosen = base_noise.gather(1, choice[:, None, None].expand(-1, 1, base))[:, 0]
        return self._apply(batch, policy.assemble(batch.joints, chosen, raw))

    @torch.no_grad()
    def _choose(
        self, batch: CanonicalBatch, base_noise: Tensor, raw: RawParameters | None, draws: Tensor
    ) -> Tensor:
        """Index (B,) into base draws (B, candidates, .), by predicted hardness."""
        candidates = base_noise.shape[1]
        joints, intrinsics = (
            x.repeat_interleave(candidates, 0) for x in (batch.joints, batch.intrinsics)
        )
        if raw is not None:
            raw = RawParameters(*(r.repeat_interleave(candidates, 0) for r in raw))
        parameters = self.policy.assemble(joints, base_noise.flatten(0, 1), raw)
        moved = moved_poses(joints, parameters, self.skeleton)
        keypoints = project_points(moved, intrinsics, clamp_rays=self.config.clamp_rays)
        return choose_candidate(
            self._predict(keypoints, moved).reshape(-1, candidates),
            self._valid(moved, keypoints, parameters, intrinsics).reshape(-1, candidates),
            self.controller.exponent,
            draws,
        )

    def _apply(self, batch: CanonicalBatch, parameters: AugmentationParameters) -> Generated:
        poses = apply_augmentation(batch.joints, parameters, self.skeleton)
        clean_keypoints, keypoints = (
            project_points(p, batch.intrinsics, clamp_rays=self.config.clamp_rays)
            for p in (batch.joints, poses.moved)
        )
        weights = batch.usable.to(batch.joints.dtype)
        return Generated(
            batch.joints, clean_keypoints, parameters, poses, keypoints, batch.intrinsics, weights
        )

    def _valid(
        self,
        moved: Tensor,
        keypoints: Tensor,
        parameters: AugmentationParameters,
        intrinsics: Tensor,
    ) -> Tensor:
        """(B,): finite, positive bone lengths, and in view in every frame."""
        finite = moved.isfinite().flatten(1).all(1) & keypoints.isfinite().flatten(1).all(1)
        finite &= (parameters.bone_length_ratio > -1).flatten(1).all(1)
        if self.config.frame_check == "released":
            return finite & (keypoints <= 1).flatten(1).all(1)
        seen = in_view(moved, intrinsics, self.config.aspect_ratio)
        return finite & seen.flatten(1).all(1)

    def _predict(self, keypoints: Tensor, joints: Tensor) -> Tensor:
        assert self.predictor is not None
        middle = joints.shape[1] // 2
        return self.predictor(keypoints[:, middle], joints[:, middle])

    # -- learning --------------------------------------------------------------------------------

    def update(
        self,
        augmented: Augmented,
        observed: Tensor | None,
        estimator_error: ErrorOf | None = None,
        skip: Tensor | None = None,
    ) -> None:
        """One update of everything: policy first, then critics on detached fakes, then predictor.

        Args:
            augmented: Result of `augment`.
            observed: (N,) errors in metres of the user's own forward pass on that batch, if known.
            estimator_error: The estimator itself, for ``feedback="estimator"``.
            skip: Not zero where the user's own step is being undone on the device: then no network
                changes either.
        """
        rate = linear_decay(self.progress) if self.config.decay_learning_rate else 1.0
        generated = augmented.generated
        may_learn = generated.weights.sum() > 0
        if skip is not None:
            may_learn = may_learn & (skip == 0)
        self.losses = _no_losses(generated.weights.device)
        skipped, readings = [], {}
        if self._policy_adam is not None:
            losses = self._policy_losses(generated, estimator_error)
            skipped.append(self._policy_adam.minimize(losses.total, may_learn, rate))
            self.losses = self.losses._replace(policy=PolicyLosses(*(x.detach() for x in losses)))
        if self.num_updates % self.config.critic_interval == 0:
            for critic in self.critics:
                loss, accuracy = self._critic_loss(critic, generated)
                skipped.append(critic.adam.minimize(loss, may_learn, rate))
                self.losses = self.losses.with_critic(critic.name, loss.detach())
                readings[f"accuracy_{critic.name}"] = accuracy
        if observed is not None:
            readings["hardness_ratio"] = ratio = _ratio(observed, augmented)
            self.controller.update(ratio, self.config.hardness)
        if observed is not None and self.predictor is not None:
            fit = predictor_objective(
                self._predict(augmented.keypoints, augmented.joints),
                observed,
                augmented.usable.to(observed.dtype),
            )
            skipped.append(self._predictor_adam.minimize(fit.loss, may_learn))
            self.losses = self.losses._replace(predictor=fit.loss.detach())
            readings["predictor_r_squared"] = fit.r_squared
        self._record(augmented, skipped, readings)
        self.num_updates += 1

    def _policy_losses(self, generated: Generated, estimator_error: ErrorOf | None) -> PolicyLosses:
        error_of = self._predicted_error if self.config.feedback == "predicted" else estimator_error
        critic_3d, critic_2d = (critic.network for critic in self.critics)
        return policy_objective(
            generated, critic_3d, critic_2d, error_of, self.config, self.skeleton, self.progress
        )

    def _predicted_error(self, keypoints: Tensor, joints: Tensor) -> Tensor:
        return self._predict(keypoints, joints).exp().unsqueeze(-1)

    def _critic_loss(self, critic: Critic, generated: Generated) -> tuple[Tensor, Tensor]:
        """Loss and accuracy on detached poses of the window's middle frame."""
        if critic.name == "3d":
            clean, fake = generated.clean, generated.poses.bent
        else:
            clean, fake = generated.clean_keypoints, generated.keypoints
        real, weights = generated.middle(clean), generated.weights
        if critic.real is not None:
            real = critic.real[self._random_rows(critic.real.shape[0], real.shape[0])]
            weights = torch.ones_like(weights)
        fakes = critic.pool.exchange(_finite(generated.middle(fake)), self.generator)
        real_scores, fake_scores = critic.network(real), critic.network(fakes)
        accuracy = 0.5 * (critic_accuracy(real_scores, True) + critic_accuracy(fake_scores, False))
        return lsgan_critic_loss(real_scores, fake_scores, weights), accuracy

    def _random_rows(self, available: int, count: int) -> Tensor:
        return torch.randint(
            available, (count,), device=self.generator.device, generator=self.generator
        )

    @torch.no_grad()
    def _record(
        self, augmented: Augmented, skipped: list[Tensor], readings: dict[str, Tensor]
    ) -> None:
        generated = augmented.generated
        turned = bone_angle_change(generated.clean, generated.poses.bent, self.skeleton)
        spread, before = (
            generated.middle(k).std(0).mean()
            for k in (generated.keypoints, generated.clean_keypoints)
        )
        self.monitor.record(
            unusable=(~augmented.usable).sum(),
            skipped=sum(skipped, torch.zeros_like(spread)),
            kept_share=weighted_mean(augmented.valid.to(turned.dtype), generated.weights),
            angle_change=weighted_mean(turned, generated.weights),
            length_change=generated.parameters.bone_length_ratio.abs().mean(),
            diversity=spread / before.clamp(min=1e-6),
            **readings,
        )

    # -- state -----------------------------------------------------------------------------------

    def _modules(self) -> nn.ModuleDict:
        """Every module with something to save."""
        modules: dict[str, nn.Module] = {
            "policy": self.policy,
            "monitor": self.monitor,
            "controller": self.controller,
        }
        for critic in self.critics:
            modules[f"critic_{critic.name}"] = critic.network
            modules[f"pool_{critic.name}"] = critic.pool
        if self.predictor is not None:
            modules["predictor"] = self.predictor
        return nn.ModuleDict(modules)

    def _adams(self) -> dict[str, GuardedAdam]:
        adams = {f"critic_{critic.name}": critic.adam for critic in self.critics}
        if self._policy_adam is not None:
            adams["policy"] = self._policy_adam
        if self.predictor is not None:
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

    def problems_with(self, state: dict[str, Any]) -> list[str]:
        """What keeps ``state`` from being loaded here; checked before anything is assigned."""
        expected = {"num_updates", "modules", "optimizers", "generator"}
        if not isinstance(state, dict) or set(state) != expected:
            return [f"training state must have the keys {sorted(expected)}"]
        problems = []
        own, given = self._modules().state_dict(), state["modules"]
        if not isinstance(given, dict):
            return [f"the networks must be a dictionary, got {_kind(given)}"]
        missing, surplus = sorted(set(own) - set(given)), sorted(set(given) - set(own))
        if missing or surplus:
            return [
                f"networks differ (missing: {', '.join(missing[:3]) or '-'}; not known here: "
                f"{', '.join(surplus[:3]) or '-'}): was it saved with another preset or options?"
            ]
        for name in own:
            here, there = _kind(own[name]), _kind(given[name])
            if here != there:
                problems.append(f"{name} must be {here}, got {there}")
        for critic in self.critics:
            fill, capacity = given[f"pool_{critic.name}._extra_state"], critic.pool.capacity
            if not isinstance(fill, int) or not 0 <= fill <= capacity:
                problems.append(
                    f"the fill of pool_{critic.name} must lie in [0, {capacity}], got {fill!r}"
                )
        adams, given = self._adams(), state["optimizers"]
        if not isinstance(given, dict) or set(given) != set(adams):
            problems.append(f"optimizers must be those of {', '.join(sorted(adams)) or 'nobody'}")
        else:
            for name, adam in adams.items():
                problems += [f"{name}: {p}" for p in adam.problems_with(given[name])]
        if not isinstance(state["num_updates"], int) or state["num_updates"] < 0:
            problems.append(f"num_updates must be a count, got {state['num_updates']!r}")
        if not _is_random_state(state["generator"]):
            problems.append("generator must be the state of a torch.Generator")
        return problems

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` saved; ask `problems_with` first."""
        self._modules().load_state_dict(state["modules"])
        for name, adam in self._adams().items():
            adam.load_state_dict(state["optimizers"][name])
        self.num_updates = state["num_updates"]
        generator = state["generator"].cpu()
        if generator.shape == self.generator.get_state().shape:
            self.generator.set_state(generator)
        else:
            # Saved on another kind of device, whose random stream cannot go on here.
            self.generator.manual_seed(self.generator.initial_seed() + self.num_updates)


def _kind(value: object) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    return type(value).__name__


def _is_random_state(value: object) -> bool:
    if not isinstance(value, Tensor) or value.dtype != torch.uint8:
        return False
    scratch = torch.Generator()
    if value.shape != scratch.get_state().shape:
        return True  # of another kind of device
    try:
        scratch.set_state(value.cpu())
    except RuntimeError:
        return False
    return True


def _no_losses(device: torch.device) -> Losses:
    nan = torch.full((), torch.nan, device=device)
    return Losses(PolicyLosses(*[nan] * len(PolicyLosses._fields)), nan, nan, nan)


def _make_policy(skeleton: Skeleton, config: PoseAugConfig) -> Policy:
    if not config.learned:
        return RandomPolicy(
            skeleton,
            spread=config.spread,
            operations=config.operations,
            fixed_trunk=config.fixed_trunk,
        )
    return AugmentationPolicy(
        skeleton,
        start=config.start,
        width=config.width,
        spread=config.spread,
        operations=config.operations,
        fixed_trunk=config.fixed_trunk,
        shared_extractor=config.shared_extractor,
    )


def _checked(
    poses: Tensor | None, name: str, shape: tuple[int, int], device: torch.device
) -> Tensor | None:
    if poses is None:
        return None
    if poses.dim() != 3 or poses.shape[1:] != shape or not poses.shape[0]:
        raise PoseAugError(
            f"{name} must be (poses, {shape[0]}, {shape[1]}), got {tuple(poses.shape)}."
        )
    if not poses.isfinite().all():
        raise PoseAugError(f"{name} must be finite, got NaN or Inf; drop those poses.")
    return poses.detach().to(device, torch.float32)


def _finite(poses: Tensor) -> Tensor:
    """Zeros in place of a pose that is not finite, so that no pool ever holds one."""
    finite = poses.detach().isfinite().flatten(1).all(1)[:, None, None]
    return torch.where(finite, poses.detach(), 0.0)


def _ratio(observed: Tensor, augmented: Augmented) -> Tensor:
    """Mean error of the augmented samples over that of the original ones; NaN without either."""
    usable = augmented.usable & observed.isfinite()
    observed = torch.where(usable, observed, 0.0)
    harder, easier = (
        (observed * chosen).sum() / chosen.sum()
        for chosen in (usable & augmented.is_augmented, usable & ~augmented.is_augmented)
    )
    return harder / easier
