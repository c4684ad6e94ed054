"""`Trainer`: trains the networks of a `Training` on augmented batches, phase by phase.

It knows nothing of anybody's loop; `hook` connects the two.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from .adversary.critics import Critic, critic_loss
from .adversary.losses import Term
from .adversary.pool import FakePosePool
from .augment.augmenter import AugmentedBatch, Augmenter, Windows
from .augment.transforms import GeneratedPoses
from .body.poses import CanonicalPoses
from .errors import PoseAugError
from .feedback.controller import observed_errors
from .options import Options, Preset, Surroundings, UpdateContext
from .runtime.checkpoint import problems_with
from .runtime.distributed import Ranks, WeightedGradients
from .runtime.isolation import saved_buffers, seeded_stream
from .runtime.monitor import Monitor
from .runtime.optimizer import GuardedAdam
from .runtime.recorder import Recorder

Result = TypeVar("Result")

_SEEDS_APART = 1_000_003
_FEEDBACK = "feedback"  # among gradients: the figures that the controller needs


class Loss(NamedTuple):
    """A loss to be differentiated, and what it tells about itself."""

    total: Tensor
    losses: dict[str, Tensor]  # 0-d, detached, by the names of `PoseAugHook.losses`
    readings: dict[str, Tensor]  # 0-d, detached, by the names of the monitor


class Phase(NamedTuple):
    """A network that learns: what it minimises, with what, and when."""

    name: str
    network: nn.Module
    loss: Callable[[GeneratedPoses], Loss]
    optimizer: GuardedAdam
    interval: int
    due_at: int  # it learns in update n where n % interval is this

    def is_due(self, update: int) -> bool:
        """Whether it learns in that update."""
        return update % self.interval == self.due_at


class PolicyLoss:
    """Loss of the policy (PoseAug section 3.4): the sum of its terms."""

    def __init__(self, terms: tuple[Term, ...], recorder: Recorder) -> None:
        self.terms, self._values = terms, recorder.compiled(_term_values)

    def __call__(self, generated: GeneratedPoses) -> Loss:
        """The loss of poses that are in graph with the policy."""
        values = self._values(self.terms, generated)
        total = sum(values, generated.keypoints.new_zeros(()))
        losses = {f"policy/{t.name}": v.detach() for t, v in zip(self.terms, values, strict=True)}
        return Loss(total, {"policy": total.detach(), **losses}, {})


def _term_values(terms: tuple[Term, ...], generated: GeneratedPoses) -> list[Tensor]:
    return [term(generated) for term in terms]


class CriticLoss:
    """Loss of a critic on real poses and on generated ones, older ones among them."""

    def __init__(self, critic: Critic, pool: FakePosePool, recorder: Recorder) -> None:
        self.critic, self.pool, self.generator = critic, pool, recorder.generator
        self._compared = recorder.compiled(_compared)
        self._loss = recorder.compiled(critic_loss)

    def __call__(self, generated: GeneratedPoses) -> Loss:
        """The loss of detached poses."""
        name = self.critic.name
        with torch.no_grad():
            real, fake = self._compared(self.critic, generated)
            fake = self.pool.exchange(fake, self.generator)
        loss, accuracy = self._loss(self.critic, real, fake, generated.weights)
        return Loss(loss, {name: loss.detach()}, {name: accuracy})


def _compared(critic: Critic, generated: GeneratedPoses) -> tuple[Tensor, Tensor]:
    """Real and fake poses, with zeros for one that is not finite, so that no pool holds it."""
    real, fake = critic.real(generated), critic.fake(generated)
    finite = fake.isfinite().flatten(1).all(1)
    return real, torch.where(finite.reshape(-1, *[1] * (fake.dim() - 1)), fake, 0.0)


class Trainer:
    """The networks of a training, their optimizers, pools and random stream.

    Args:
        preset: Makes the networks.
        options: Of the hook.
        surroundings: What they are made for.
        seed: Of initial weights and noise.
        windows: Where windows to augment come from, if not from the batch.
        ranks: The processes that train together, each with such a trainer.
    """

    def __init__(
        self,
        preset: Preset,
        options: Options,
        surroundings: Surroundings,
        *,
        seed: int = 0,
        windows: Windows | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        self.skeleton, self.generator = surroundings.skeleton, surroundings.generator
        self.ranks = ranks
        device = self.generator.device
        self.num_updates = 0
        # Initial weights come from a stream of our own; the user's global one is given back.
        with seeded_stream(seed, torch.device("cpu")):
            training = preset.build(options, surroundings)
        # Ranks start alike and draw differently.
        rank = 0 if ranks is None else ranks.rank
        self.generator.manual_seed(seed + _SEEDS_APART * rank)
        self.recorder = Recorder(
            self.generator,
            records=options.cuda_graphs and options.policy is None,
            compiles=options.compile,
        )
        self.policy, self.controller = training.policy.train(), training.controller
        self._before_update = training.before_update
        self.augmenter = Augmenter(
            self.policy,
            self.skeleton,
            self.recorder,
            share=preset.share if options.share is None else options.share,
            appends=options.mix == "append",
            aspect_ratio=surroundings.aspect_ratio,
            learn_from=training.learn_from,
            project=training.project,
            frame_check=training.frame_check,
            windows=windows,
        )
        self._generate = self.recorder.compiled(Augmenter.generate)
        self.phases: list[Phase] = []
        self.pools: dict[str, FakePosePool] = {}

        def add_phase(
            network: nn.Module, loss: Callable[[GeneratedPoses], Loss], name: str, *when: int
        ) -> None:
            optimizer = training.make_optimizer(network)
            self.phases.append(Phase(name, network, loss, optimizer, *when))

        if training.terms:
            interval, loss = training.policy_interval, PolicyLoss(training.terms, self.recorder)
            add_phase(self.policy, loss, "policy", interval, interval - 1)
        for critic in training.critics:
            pool = FakePosePool(training.pool_capacity, critic.shape).to(device)
            self.pools[critic.name] = pool
            loss_of_critic = CriticLoss(critic.to(device), pool, self.recorder)
            add_phase(critic, loss_of_critic, critic.name, critic.interval, 0)
        self.monitor = Monitor(tuple(self.pools), hasattr(self.policy, "base")).to(device)
        self._statistics = [b for b in saved_buffers(self.policy) if b.is_floating_point()]
        names = [*(p.name for p in self.phases), *(f"policy/{t.name}" for t in training.terms)]
        self.losses = dict.fromkeys(names, torch.full((), torch.nan, device=device))
        if ranks is not None:
            state = self._modules().state_dict().values()
            ranks.broadcast([x for x in state if isinstance(x, Tensor) and x.numel()])

    def augment(self, poses: CanonicalPoses, keeps_cameras: bool = True) -> AugmentedBatch:
        """Augment poses, and keep what the next update reads."""
        policy_learns = any(p.name == "policy" and p.is_due(self.num_updates) for p in self.phases)
        call = self.recorder.call if self.recorder.records else _as_written
        return call(self.augmenter.augment, poses, keeps_cameras, not policy_learns)

    def update(
        self,
        batch: AugmentedBatch | None,
        predicted: Tensor | None = None,
        skip: Tensor | None = None,
        context: UpdateContext | None = None,
    ) -> None:
        """One update of every network that is due: the policy first, then critics.

        Args:
            batch: What `augment` made; None where only other ranks may have something.
            predicted: (N, T, J, 3) metres: the user's own forward pass on that batch, if known.
            skip: Not zero where the device undoes the user's own step: no weights change then.
            context: What a published recipe asks about.
        """
        if self._before_update is not None and context is not None:
            self._before_update(context)
        due = tuple(phase.name for phase in self.phases if phase.is_due(self.num_updates))
        # A published recipe asks somebody else's network, and changes: it cannot be replayed.
        repeats = self._before_update is None and self._pools_are_settled
        replays = self.recorder.records and repeats
        call = self.recorder.call if replays else _as_written
        gradients: dict[str, WeightedGradients] = {}
        readings = None
        if batch is not None:
            gradients, losses, readings = call(self._learn, batch, predicted, due)
            self.losses = self.losses | losses
        own = tuple(gradients)
        if self.ranks is not None and (everyones := self._nothing_learned(due)):
            # The same networks on every rank, whoever has something for them.
            everyones |= gradients
            averaged = self.ranks.average(list(everyones.values()), self._statistics)
            gradients = dict(zip(everyones, averaged, strict=True))
        # With what is due and for how many, though it does not read it: so it is recorded no sooner
        # than what its gradients come from, and can take them where they are.
        size = 0 if batch is None else batch.joints.shape[0]
        call(self._apply, gradients, own, skip, readings, (*due, size))
        self.num_updates += 1

    @property
    def _pools_are_settled(self) -> bool:
        """Whether pools swap poses as they will from now on; how full one is is Python's."""
        return all(len(pool) in (0, pool.capacity) for pool in self.pools.values())

    def _learn(
        self, batch: AugmentedBatch, predicted: Tensor | None, due: tuple[str, ...]
    ) -> tuple[dict[str, WeightedGradients], dict[str, Tensor], dict[str, Tensor]]:
        """Gradients of every network that is due, in order; losses and readings by name."""
        gradients: dict[str, WeightedGradients] = {}
        losses: dict[str, Tensor] = {}
        readings: dict[str, Tensor] = {}
        generated = batch.generated
        if generated is None:
            generated = self._generate(self.augmenter, batch.inputs)
        weight = generated.weights.sum()
        for phase in self.phases:
            if phase.name not in due:
                continue
            loss = phase.loss(generated)
            learned = phase.optimizer.gradients(loss.total)
            gradients[phase.name] = WeightedGradients(learned, weight)
            losses |= loss.losses
            readings |= loss.readings
            if generated.keypoints.requires_grad:
                generated = tree_map_only(Tensor, Tensor.detach, generated)
        with torch.no_grad():
            readings |= self.augmenter.readings(batch, generated)
            errors = observed_errors(predicted, batch, self.skeleton)
            if errors is not None:
                readings["hardness_ratio"] = errors.augmented / errors.original
                readings["mean_pose_ratio"] = errors.augmented / errors.mean_pose
            if self.controller is not None:
                readings["strength"] = self.controller.strength.clone()
                if errors is not None:
                    figures = torch.stack([errors.augmented, errors.mean_pose])
                    gradients[_FEEDBACK] = WeightedGradients([figures], errors.weight)
        return gradients, losses, readings

    def _apply(
        self,
        gradients: dict[str, WeightedGradients],
        own: tuple[str, ...],
        skip: Tensor | None,
        readings: dict[str, Tensor] | None,
        _: tuple[str | int, ...],
    ) -> None:
        """Every network's step, and the monitor's of this rank's ``own`` gradients."""
        skipped = torch.zeros((), dtype=torch.bool, device=self.generator.device)
        optimizers = {phase.name: phase.optimizer for phase in self.phases}
        for name, (tensors, weight) in gradients.items():
            allowed = weight > 0 if skip is None else (weight > 0) & (skip == 0)
            if name == _FEEDBACK:
                assert self.controller is not None
                self.controller.move(tensors[0], allowed)
                continue
            left_out = optimizers[name].step(tensors, allowed)
            if name in own:
                skipped = skipped | left_out
        if readings is not None:
            self.monitor.record(skipped=skipped, **readings)

    def _nothing_learned(self, due: tuple[str, ...]) -> dict[str, WeightedGradients]:
        """What a rank with nothing to say contributes: all that every rank averages, in order."""
        nothing = torch.zeros((), device=self.generator.device)
        due_phases = (phase for phase in self.phases if phase.name in due)
        shapes = {phase.name: phase.optimizer.network_parameters for phase in due_phases}
        if self.controller is not None:
            shapes[_FEEDBACK] = [nothing.expand(2)]
        return {
            name: WeightedGradients([torch.zeros_like(x) for x in like], nothing)
            for name, like in shapes.items()
        }

    def _modules(self) -> nn.ModuleDict:
        """Every module with something to save."""
        modules: dict[str, nn.Module] = {"policy": self.policy, "monitor": self.monitor}
        for phase in self.phases:
            modules[phase.name] = phase.network
            modules[f"{phase.name}_optimizer"] = phase.optimizer
        modules |= {f"{name}_pool": pool for name, pool in self.pools.items()}
        if self.controller is not None:
            modules["controller"] = self.controller
        return nn.ModuleDict(modules)

    def state_dict(self) -> dict[str, Any]:
        """Everything that changes: tensors and plain values."""
        return {
            "num_updates": self.num_updates,
            "modules": self._modules().state_dict(),
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` saved; `PoseAugError`, and nothing changed, if it misfits."""
        modules = self._modules()
        problems = problems_with(state["modules"], modules)
        if problems:
            more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
            raise PoseAugError(f"{'; '.join(problems[:3])}{more}.")
        modules.load_state_dict(state["modules"])
        self.num_updates = state["num_updates"]
        generator = state["generator"].cpu()
        is_first = self.ranks is None or self.ranks.rank == 0
        if is_first and generator.shape == self.generator.get_state().shape:
            self.generator.set_state(generator)
        else:
            # Saved by another rank, or on another kind of device: a stream of one's own.
            self.generator.manual_seed(self.generator.initial_seed() + self.num_updates)


def _as_written(method: Callable[..., Result], *arguments: Any) -> Result:
    return method(*arguments)
