"""`Trainer`: trains the networks of a `Training` on augmented batches, phase by phase."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .adversary.critics import Critic, Terms, critic_loss
from .adversary.pool import FakePosePool
from .augment.augmenter import Augmenter
from .augment.policy import AugmentationPolicy, RandomPolicy
from .augment.transforms import AugmentedBatch, GeneratedPoses, middle_frame
from .body.poses import CanonicalPoses
from .errors import warn
from .feedback.controller import observed_errors
from .feedback.target import Answers, ClosedLoop
from .host.adapter import HostPoses
from .host.sequences import PoseWindows
from .options import Options, Preset, Surroundings, UpdateContext
from .runtime.checkpoint import check_modules
from .runtime.distributed import Ranks, WeightedGradients
from .runtime.isolation import saved_buffers, seeded_stream
from .runtime.monitor import Diagnostics, Monitor
from .runtime.optimizer import GuardedAdam
from .runtime.recorder import Recorder

_PATIENCE = 8  # updates that left a network out, after which weights are looked at
_FEEDBACK = "feedback"  # among gradients: the figures that the controller needs

Tensors = dict[str, Tensor]  # by name
Gradients = dict[str, WeightedGradients]  # by network
# A loss to be differentiated; and detached, losses of the hook's and readings of the monitor's.
Loss = tuple[Tensor, Tensors, Tensors]


class Phase(NamedTuple):
    """A network that learns: what it minimises, with what, and when."""

    name: str
    network: nn.Module
    loss: Callable[[GeneratedPoses], Loss]
    optimizer: GuardedAdam
    interval: int  # it learns in one of so many updates


def _policy_loss(terms: Terms, generated: GeneratedPoses) -> Loss:
    """Sum of the terms (PoseAug section 3.4), of poses that are in graph with the policy."""
    values = {f"policy/{name}": term(generated) for name, term in terms.items()}
    total = sum(values.values(), generated.keypoints.new_zeros(()))
    return total, {n: x.detach() for n, x in {"policy": total, **values}.items()}, {}


def _critic_loss(
    critic: Critic, pool: FakePosePool, generator: torch.Generator, generated: GeneratedPoses
) -> Loss:
    """Loss of a critic on real poses and on detached generated ones, older ones among them."""
    with torch.no_grad():
        real, fake = critic.real(generated), critic.fake(generated)
        # Zeros for a pose that is not finite, so that no pool holds one.
        finite = fake.flatten(1).sum(1).abs() < torch.inf
        fake = torch.where(finite.reshape(-1, *[1] * (fake.dim() - 1)), fake, 0.0)
        fake = pool.exchange(fake, generator)
    loss, accuracy = critic_loss(critic, real, fake, generated.weights)
    return loss, {critic.name: loss.detach()}, {critic.name: accuracy}


class Trainer:
    """The networks of a training, their optimizers, pools and random stream."""

    def __init__(
        self,
        preset: Preset,
        options: Options,
        surroundings: Surroundings,
        seed: int = 0,
        windows: PoseWindows | None = None,  # where windows come from, if not from the batch
        ranks: Ranks | None = None,  # the processes that train together, each with a trainer
    ) -> None:
        self.skeleton, self.generator = surroundings.skeleton, surroundings.generator
        self.ranks, self.windows, self.num_updates = ranks, windows, 0
        device = self.generator.device
        # Initial weights come from a stream of our own; the user's global one is given back.
        with seeded_stream(seed, torch.device("cpu")):
            training = preset.build(options, surroundings)
        # Ranks start alike and draw differently.
        self.generator.manual_seed(seed + (0 if ranks is None else 1_000_003 * ranks.rank))
        records = options.cuda_graphs and options.policy is None
        self.recorder = Recorder(self.generator, records=records)
        self.policy, self.controller = training.policy.train(), training.controller
        self.closed_loop, self._surroundings = training.closed_loop, surroundings
        self._before_update = training.before_update
        self.augmenter = Augmenter(
            self.policy,
            self.skeleton,
            self.generator,
            share=preset.share if options.share is None else options.share,
            appends=options.mix == "append",
            aspect_ratio=surroundings.aspect_ratio,
            learn_from=training.learn_from,
            project=training.project,
            frame_check=training.frame_check,
            sample=None if windows is None else windows.sample,
            target_frame=middle_frame if windows is None else windows.target_frame,
            exchange=None if training.closed_loop is None else training.closed_loop.mix_in,
        )
        self.phases: list[Phase] = []
        self.pools: dict[str, FakePosePool] = {}
        self.interval = training.interval

        if training.terms:
            loss, optimizer = partial(_policy_loss, training.terms), GuardedAdam(self.policy)
            self.phases.append(Phase("policy", self.policy, loss, optimizer, self.interval))
        for critic in training.critics:
            self.pools[critic.name] = pool = FakePosePool(training.pool_capacity, critic.shape)
            optimizer = GuardedAdam(critic.to(device))
            loss = partial(_critic_loss, critic, pool.to(device), self.generator)
            interval = self.interval * critic.interval
            self.phases.append(Phase(critic.name, critic, loss, optimizer, interval))
        self.monitor = Monitor(tuple(self.pools), isinstance(self.policy, RandomPolicy)).to(device)
        self._statistics = [b for b in saved_buffers(self.policy) if b.is_floating_point()]
        names = [p.name for p in self.phases] + [f"policy/{name}" for name in training.terms or ()]
        self.losses = dict.fromkeys(names, torch.full((), torch.nan, device=device))
        modules: dict[str, Any] = {"policy": self.policy, "monitor": self.monitor}
        for phase in self.phases:
            modules |= {phase.name: phase.network, f"{phase.name}_optimizer": phase.optimizer}
        modules |= {f"{name}_pool": pool for name, pool in self.pools.items()}
        modules |= {"controller": self.controller, "closed_loop": self.closed_loop}
        self._modules = nn.ModuleDict(modules)
        # What an update changes, the counts in front, and what it was before.
        state = self._modules.state_dict().values()
        everything = [x for x in state if isinstance(x, Tensor) and x.numel()]
        self._changing = [self.monitor.counts, *everything]
        self._before = [x.clone() for x in self._changing]
        # The counts as they were lately, which the host reads without waiting.
        self._lately = torch.zeros(2, dtype=torch.int64, pin_memory=device.type == "cuda")
        self._skipped = self._lately.numpy()[1:]
        self._patience, self.is_broken = _PATIENCE, False
        if ranks is not None:
            ranks.broadcast(everything)

    def augment(self, poses: CanonicalPoses, keeps_cameras: bool = True) -> AugmentedBatch:
        """Augment poses, and keep what the next update reads."""
        return self.recorder.call(self.augmenter.augment, poses, keeps_cameras, self.learns_next)

    @property
    def learns_next(self) -> bool:
        """Whether the next update learns anything, or takes figures."""
        return self.num_updates % self.interval == 0

    def update(
        self,
        context: UpdateContext,
        predicted: Tensor | None = None,  # (N, T, J, 3) metres: the user's own forward pass on it
        skip: Tensor | None = None,  # not zero where the user's step is undone: no weights change
    ) -> None:
        """One update of every network that is due, policy first; all of it, or nothing."""
        batch, learns, loop = context.batch, self.learns_next, self.closed_loop
        if loop is not None and not loop.is_due(self.num_updates):
            loop = None
        due = tuple(p.name for p in self.phases if self.num_updates % p.interval == 0)
        # A published recipe asks somebody else's network, and changes: it cannot be replayed. Nor
        # can a pool that fills up: how full it is is Python's.
        are_settled = all(len(pool) in (0, pool.capacity) for pool in self.pools.values())
        repeats = self._before_update is None and are_settled
        call: Callable[..., Any] = self.recorder.call if repeats else lambda f, *args: f(*args)
        gradients: Gradients = {}
        answers, readings, failure = None, None, None
        with self._all_or_nothing(changes_counts_alone=not learns and loop is None):
            try:
                if batch is not None:
                    self.monitor.counts[0].add_((~batch.batch.usable).sum())
                if loop is not None:
                    answers = self._ask(loop, context)
                if learns and self._before_update is not None:
                    rate = self._before_update(self.num_updates, context)
                    for phase in self.phases:
                        phase.optimizer.set_learning_rate(rate)
                if learns and batch is not None:
                    gradients, losses, readings = call(self._learn, batch, predicted, due)
                    self.losses = self.losses | losses
            except Exception as problem:
                if self.ranks is None:
                    raise
                failure = problem  # the others wait for this rank, which learns from them
            if loop is not None:
                figures, weight = loop.figures(answers)
                if self.ranks is not None:
                    (shared,) = self.ranks.average([WeightedGradients([figures], weight)], [])
                    (figures,), weight = shared
                loop.take(figures, weight, answers)
            if learns:
                if self.ranks is not None and (everyones := self._nothing_learned(due)):
                    # The same networks on every rank, whoever has something for them.
                    everyones |= gradients
                    averaged = self.ranks.average(list(everyones.values()), self._statistics)
                    gradients = dict(zip(everyones, averaged, strict=True))
                # With what is due and for how many, though it does not read it: so it is recorded
                # no sooner than what its gradients come from, and can take them where they are.
                size = 0 if batch is None else batch.joints.shape[0]
                call(self._apply, gradients, skip, readings, due, size)
            self.num_updates += 1
        if learns:
            self._lately.copy_(self.monitor.counts, non_blocking=True)
            if self._skipped[0] >= self._patience:
                self._look_at_weights()
        if failure is not None:
            raise failure

    @contextmanager
    def _all_or_nothing(self, changes_counts_alone: bool) -> Iterator[None]:
        """Put back what an update changes where anything stops it."""
        count, losses = self.num_updates, self.losses
        # Where counts alone change nothing is drawn.
        stream = None if changes_counts_alone else self.generator.get_state()
        fills = [len(pool) for pool in self.pools.values()]
        changing = 1 if changes_counts_alone else len(self._changing)
        if changes_counts_alone:
            self._before[0].copy_(self.monitor.counts)
        else:
            self.recorder.call(self._keep)
        try:
            yield
        except BaseException:  # an interrupt too
            with torch.no_grad():
                torch._foreach_copy_(self._changing[:changing], self._before[:changing])
            for pool, fill in zip(self.pools.values(), fills, strict=True):
                pool.set_extra_state(fill)
            if stream is not None:
                self.generator.set_state(stream)
            self.num_updates, self.losses = count, losses
            raise

    def _keep(self) -> None:
        with torch.no_grad():
            torch._foreach_copy_(self._before, self._changing)

    def _look_at_weights(self) -> None:
        """Warn of networks that will never learn again; asked seldom, since it waits."""
        self._patience = 2 * int(self._skipped[0])
        parameters = {phase.name: phase.network.parameters() for phase in self.phases}
        broken = [n for n, own in parameters.items() if not all(x.isfinite().all() for x in own)]
        if broken and not self.is_broken:
            self.is_broken = True
            warn(
                f"PoseAugHook: weights of {', '.join(broken)} are not finite and will not recover, "
                "so training goes on without augmentation. Load an earlier state_dict() into the "
                "hook, or build another."
            )

    def _ask(self, loop: ClosedLoop, context: UpdateContext) -> Answers | None:
        """The estimator's answers about the target; every rank asks about other frames."""
        batch, host, defaults = context
        if batch is None or host is None:
            return None
        one = batch.batch.joints, *host  # any sample: of the format

        def ask(keypoints: Tensor) -> Tensor:
            joints, *host = (x[:1].expand(len(keypoints), *x.shape[1:]) for x in one)
            around, like = self._surroundings, HostPoses(*host)
            poses = around.adapter.encode(joints, keypoints, like, self.skeleton)
            return around.ask(poses, defaults)

        return loop.look(ask, batch.batch, batch.target, self.generator)

    def _learn(
        self, batch: AugmentedBatch, predicted: Tensor | None, due: tuple[str, ...]
    ) -> tuple[Gradients, Tensors, Tensors]:
        """Gradients of every network that is due, in order; losses and readings."""
        gradients: Gradients = {}
        losses: Tensors = {}
        readings: Tensors = {}
        assert batch.inputs is not None
        generated = self.augmenter.generate(batch.inputs)
        weight = generated.weights.sum()
        for phase in self.phases:
            if phase.name in due:
                loss, parts, read = phase.loss(generated)
                learned = phase.optimizer.gradients(loss)
                gradients[phase.name] = WeightedGradients(learned, weight)
                losses, readings = losses | parts, readings | read
        with torch.no_grad():
            readings |= self.augmenter.readings(batch, generated)
            errors = observed_errors(predicted, batch, self.skeleton)
            if errors is not None:
                readings["hardness_ratio"] = errors.augmented / errors.original
                readings["mean_pose_ratio"] = errors.augmented / errors.mean_pose
            if self.controller is not None:
                readings["strength"] = self.controller.strength.clone()
                if errors is not None:
                    figures = torch.stack(errors[:3])
                    gradients[_FEEDBACK] = WeightedGradients([figures], errors.weight)
        return gradients, losses, readings

    def _apply(
        self, gradients: Gradients, skip: Tensor | None, readings: Tensors | None, *_: Any
    ) -> None:
        """Every network's step, and the monitor's where this rank has readings."""
        skipped = torch.zeros((), dtype=torch.bool, device=self.generator.device)
        optimizers = {phase.name: phase.optimizer for phase in self.phases}
        for name, (tensors, weight) in gradients.items():
            allowed = weight > 0 if skip is None else (weight > 0) & (skip == 0)
            if name in optimizers:
                skipped = skipped | optimizers[name].step(tensors, allowed)
            elif self.controller is not None:
                self.controller.move(tensors[0], allowed)
        if readings is not None:
            self.monitor.record(skipped=skipped, **readings)

    def _nothing_learned(self, due: tuple[str, ...]) -> Gradients:
        """What a rank with nothing to say contributes: all that every rank averages, in order."""
        nothing = torch.zeros((), device=self.generator.device)
        averaged = {p.name: p.optimizer.network_parameters for p in self.phases if p.name in due}
        if self.controller is not None:
            averaged[_FEEDBACK] = [nothing.expand(3)]
        zeros = {name: [torch.zeros_like(x) for x in own] for name, own in averaged.items()}
        return {name: WeightedGradients(own, nothing) for name, own in zeros.items()}

    def diagnostics(self) -> Diagnostics:
        """The monitor's figures, and what was learned."""
        found = list(self.policy.changes()) if isinstance(self.policy, AugmentationPolicy) else []
        if self.closed_loop is not None:
            found.append(str(self.closed_loop))
        nothing = "to change: all spreads are those of the beginning" if self.phases else "to learn"
        learned = "; ".join(found) or f"nothing {nothing}"
        return self.monitor.read(self.num_updates, learned)

    def state_dict(self) -> dict[str, Any]:
        """Everything that changes: tensors and plain values."""
        return {
            "num_updates": self.num_updates,
            "modules": self._modules.state_dict(),
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` saved; `PoseAugError`, and nothing changed, if it misfits."""
        check_modules(state["modules"], self._modules)
        self._modules.load_state_dict(state["modules"])
        self._patience, self.is_broken = int(self.monitor.counts[1]) + _PATIENCE, False
        self.num_updates = state["num_updates"]
        generator = state["generator"].cpu()
        is_first = self.ranks is None or self.ranks.rank == 0
        if is_first and generator.shape == self.generator.get_state().shape:
            self.generator.set_state(generator)
        else:
            # Saved by another rank, or on another kind of device: a stream of one's own.
            self.generator.manual_seed(self.generator.initial_seed() + self.num_updates)
