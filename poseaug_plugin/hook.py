"""`PoseAugHook`: PoseAug attached to somebody else's training loop."""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer
from torch.utils.data import get_worker_info

from .augment.policy import Operation, Spread
from .augment.transforms import Policy, middle_frame
from .body.poses import CanonicalPoses
from .body.presets import find_skeleton
from .body.skeleton import Skeleton
from .errors import PoseAugError, check_flag, check_number, warn
from .feedback.observer import PredictionObserver
from .feedback.target import TargetKeypoints
from .host import attachment
from .host.adapter import Adapter, HostBatch, HostPoses, PoseAdapter, mix, mix_cameras, one_each
from .host.checks import BatchReport, check_batch, infer_skeleton
from .host.sequences import PoseSource
from .options import DefaultPreset, Options, Preset, RandomPreset, Surroundings, UpdateContext
from .reference.recipes import Paper, Released
from .runtime.checkpoint import as_state, from_state
from .runtime.distributed import Ranks
from .runtime.isolation import TorchDefaults, library_defaults
from .runtime.monitor import Diagnostics
from .trainer import Trainer

_PRESETS: dict[str, Any] = {p.name: p for p in (DefaultPreset, RandomPreset, Paper, Released)}


class PoseAugHook:
    """Adds PoseAug to a training loop that already exists.

    ``hook.augment`` gives back a batch like the one it got, with a share of its poses augmented.
    When the user's optimizer steps, the hook first trains its own networks. The estimator, its
    gradients, BatchNorm statistics, optimizer and the global random streams are never touched. An
    option that is None is left to the preset; values in brackets are the default preset's.

    Args:
        estimator: The user's 2D-to-3D network, after ``.to(device)``, DDP or ``torch.compile``.
        optimizer: Its optimizer. By default whichever steps with the estimator's parameters.
        skeleton: A `Skeleton` or the name of a preset. By default the preset that fits the batch.
        adapter: The host's format; by default VideoPose3D's (`PoseAdapter`).
        preset: ``"default"``; ``"random"``, the same draws with nothing learned; or PoseAug as
            published, ``"paper"``, ``"released"`` (or `reference.recipes.Paper()`, `Released()`).
        source: Whole sequences, for a loop that has 2D of a window of frames and 3D of one.
        policy: A policy of one's own; is put on the estimator's device, in float32.
        seed: Of the hook's own weights and noise.
        auto_step: Train when the optimizer steps; else only when `step` is called, as for a step
            that a CUDA graph holds, in which Python does not run.
        spread: How widely poses are drawn (`Spread()`), in the beginning.
        operations: Which of bone_angle, bone_length, rigid, focal_length are done (all).
        mix: ``"replace"`` a share of the batch, or ``"append"`` an augmented copy of all of it.
        share: Share of the batch that is replaced (0.75).
        critic_weight: Weight of each critic in the policy's loss (0.1); at 0 there are none.
        entropy_weight: Reward of wide draws (0.05), up to the default spreads.
        feedback: Weaken all draws while the estimator is no better on them than a mean pose (True).
        total_updates: Optimizer steps of the whole training, for ``"paper"`` and ``"released"``.
        target_2d: 2D poses of the place where the estimator will work, without labels (a detector's
            output on videos of there): (frames, J, 2) or a list of such sequences, normalised like
            the estimator's inputs. Its answers to them, now and then, tell bodies, poses and views
            to augment with. A loop that uses cameras needs ``return_camera=True``.
        target_camera: (9,) intrinsics of there, or one for each sequence or frame (the batch's).
        cuda_graphs: On a GPU, record the hook's work in CUDA graphs, except with a ``policy``.

    Raises `PoseAugError` for a wrong value, an option without effect where it is given, an
    optimizer that cannot be hooked or holds other parameters, an estimator under FSDP.
    """

    def __init__(
        self,
        estimator: nn.Module,
        optimizer: Optimizer | None = None,
        *,
        skeleton: Skeleton | str | None = None,
        adapter: Adapter | None = None,
        preset: Literal["default", "random", "paper", "released"] | Preset = "default",
        source: PoseSource | None = None,
        policy: Policy | None = None,
        seed: int = 0,
        auto_step: bool = True,
        spread: Spread | None = None,
        operations: tuple[Operation, ...] | None = None,
        mix: Literal["replace", "append"] = "replace",
        share: float | None = None,
        critic_weight: float | None = None,
        entropy_weight: float | None = None,
        feedback: bool | None = None,
        total_updates: int | None = None,
        target_2d: Any = None,
        target_camera: Any = None,
        cuda_graphs: bool = True,
    ) -> None:
        attachment.check_estimator(estimator)
        if optimizer is not None:
            attachment.check_optimizer(optimizer, estimator)
        check_number("seed", seed, -(2**62), 2**62, whole=True)
        check_flag("auto_step", auto_step)
        if isinstance(preset, str) and preset in _PRESETS:
            preset = _PRESETS[preset]()
        if isinstance(preset, (str, type)) or not hasattr(preset, "build"):
            raise PoseAugError(
                f"preset must be one of {', '.join(_PRESETS)}, or one of reference.recipes with "
                f"arguments, got {preset!r}."
            )
        with library_defaults(torch.device("cpu")):
            target = None if target_2d is None else TargetKeypoints(target_2d, target_camera)
        self.options = Options(
            policy=policy,
            spread=spread,
            operations=operations,
            mix=mix,
            share=share,
            critic_weight=critic_weight,
            entropy_weight=entropy_weight,
            feedback=feedback,
            total_updates=total_updates,
            target_2d=target,
            cuda_graphs=cuda_graphs,
        )
        self.options.check_effects(preset.name, preset.reads)
        if source is not None and not isinstance(source, PoseSource):
            raise PoseAugError(f"source must be a PoseSource, got {type(source).__name__}.")
        needed = ("check", "num_joints", "decode", "encode", "predicted_joints")
        if adapter is not None and not all(hasattr(adapter, name) for name in needed):
            raise PoseAugError(f"adapter must have {', '.join(needed)}, got {adapter!r}.")
        if target_2d is None and target_camera is not None:
            raise PoseAugError("target_camera has no effect without target_2d; leave it out.")
        if optimizer is not None and not auto_step:
            raise PoseAugError("optimizer has no effect with auto_step=False; leave it out.")
        self.skeleton = None if skeleton is None else find_skeleton(skeleton)
        self.adapter: Adapter = adapter if adapter is not None else PoseAdapter()
        self.enabled, self._id = True, id(self)
        self._estimator, self._optimizer, self._seed = estimator, optimizer, seed
        self._ranks, self._source, self._preset = Ranks.of(estimator), source, preset
        if self._ranks is not None and skeleton is None:
            raise PoseAugError(
                "PoseAugHook: with several processes every one needs the hook's networks from the "
                "first step on, so pass skeleton='h36m_17' (or another, or a Skeleton)."
            )
        if policy is not None:
            policy.float()
        self._trainer = None if self.skeleton is None else self._make_trainer(self.skeleton)
        self._pending: UpdateContext | None = None  # waits for the optimizer's step
        self._stepping: Optimizer | None = None  # in whose step an update was made already
        self._observer = PredictionObserver()
        self._reminders, self._has_looked = attachment.Reminders(optimizer is not None), False
        on_forward = attachment.InertCallback(self, PoseAugHook._on_forward)
        self._handle = estimator.register_forward_hook(on_forward, with_kwargs=True)
        self._is_attached = True
        weakref.finalize(self, self._handle.remove)
        if auto_step:
            attachment.watch_optimizers(self, PoseAugHook._on_optimizer_step)

    def __repr__(self) -> str:
        skeleton = self.skeleton.name if self.skeleton else "not known yet"
        updates = self._trainer.num_updates if self._trainer else 0
        return f"PoseAugHook(skeleton={skeleton}, updates={updates}, enabled={self.enabled})"

    def augment(
        self,
        inputs_2d: Tensor,
        inputs_3d: Tensor,
        camera: Any = None,
        *,
        return_camera: bool = False,
    ) -> Any:
        """Augment a batch; call it before the root's trajectory is thrown away.

        Args:
            inputs_2d: (B, T, J, 2) or (B, J, 2) normalised screen coordinates.
            inputs_3d: (B, T, J, 3) or (B, J, 3) camera space, in the adapter's root convention and
                unit (VideoPose3D: metres, root-relative, the trajectory in the root joint). With a
                ``source`` also (B, 1, J, 3), the frame that is lifted.
            camera: (B, 9) or (9,) intrinsics, tensor or array.
            return_camera: Return the cameras that belong to the batch as a third, (N, 9), for a
                loop that uses them afterwards. Only then are augmented samples also seen with other
                focal lengths, if ``Spread.focal_length`` asks for them.

        Returns:
            ``inputs_2d, inputs_3d`` with the same dtypes, devices and conventions (and shapes,
            unless ``mix="append"``): detached, contiguous, safe to change in place. Samples that
            were not augmented are bit-identical; with the hook off, or where less than two samples
            are to be augmented (half of a last batch of two), the very tensors that came in.

        Raises `PoseAugError` for wrong shapes, dtypes or devices; nothing has changed then.
        """
        given = HostBatch(inputs_2d, inputs_3d, camera)
        trainer = self._ready_trainer(given) if self.enabled and self._is_attached else None
        if return_camera:
            given = given._replace(camera=one_each(camera, len(inputs_3d)))
        batch = given if trainer is None else self._augmented(trainer, given, return_camera)
        return batch if return_camera else HostPoses(*batch[:2])

    def _augmented(self, trainer: Trainer, given: HostBatch, return_camera: bool) -> HostBatch:
        augmenter, skeleton, size = trainer.augmenter, trainer.skeleton, len(given.inputs_3d)
        if augmenter.count_of(size) < 2 or trainer.is_broken:
            self._forget()
            if self._ranks is not None:  # the others may have something
                self._pending = UpdateContext(None, None, TorchDefaults.found())
            if not trainer.is_broken:
                self._reminders.too_small(size, augmenter.share)
            return given
        with torch.no_grad(), library_defaults(given.inputs_3d.device) as defaults:
            keeps_cameras = not return_camera or given.camera is None
            batch = trainer.augment(self.adapter.decode(*given, skeleton), keeps_cameras)
            sources = batch.sources
            replaced = HostPoses(*(x.detach().index_select(0, sources) for x in given[:2]))
            made = self.adapter.encode(batch.joints, batch.keypoints, replaced, skeleton)
            for poses in made:
                if poses.dtype == torch.float16:  # which may have no room for them
                    fits = poses.isfinite().flatten(1).all(1)
                    batch = batch._replace(accepted=batch.accepted & fits)
            how = sources, batch.accepted, augmenter.appends
            inputs_2d = mix(given.inputs_2d, made[0], *how)
            inputs_3d = mix(given.inputs_3d, made[1], *how)
        self._reminders.augmented()
        self._pending = UpdateContext(batch, replaced, defaults)
        self._observer.expect(inputs_2d if trainer.learns_next else None)
        camera = mix_cameras(given.camera, batch.intrinsics, *how) if return_camera else None
        return HostBatch(inputs_2d, inputs_3d, camera)

    def observe(self, prediction: Tensor) -> None:
        """Tell the hook what the estimator said to the last augmented batch.

        Only needed where the hook cannot see it: an estimator that is not called as a module, or
        whose output is not the pose. ``prediction`` is what the adapter's `predicted_joints` takes,
        (B, T, J, 3) or flattened, and is detached at once. Raises `PoseAugError` for no tensor.
        """
        if not isinstance(prediction, Tensor):
            kind = type(prediction).__name__
            raise PoseAugError(f"PoseAugHook.observe: prediction must be a tensor, got {kind}.")
        self._observer.certain = prediction.detach()

    def step(self) -> None:
        """Train the hook's networks on the last augmented batch.

        Called by itself right before the optimizer steps (right after, where the step's closure
        augments). Call it before ``optimizer.step()`` only where that cannot be hooked, or with
        ``auto_step=False``. RuntimeError for a failure; the estimator's weights are as they were.
        """
        if self._stepping is None:
            self._train(skip=None)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Pass batches through unchanged and train nothing inside the block."""
        enabled, self.enabled = self.enabled, False
        try:
            yield
        finally:
            self.enabled = enabled

    def remove(self) -> None:
        """Detach from estimator and optimizer for good; batches then pass through unchanged."""
        self._handle.remove()
        self.enabled = self._is_attached = False
        self._forget()  # so that no optimizer's step finds anything to do

    @property
    def policy(self) -> Policy:
        """The policy; `PoseAugError` before the first batch, if no skeleton was given."""
        return self._existing_trainer().policy

    @property
    def losses(self) -> dict[str, Tensor]:
        """Losses of the last updates by name: the policy's, its terms' and the critics'.

        0-d tensors on the device, so that nothing waits for them; NaN before the first update.
        """
        return {name: loss.clone() for name, loss in self._existing_trainer().losses.items()}

    def diagnostics(self) -> Diagnostics:
        """Running figures as plain numbers (this syncs the device), with warnings where due."""
        return self._existing_trainer().diagnostics()

    def check_batch(self, inputs_2d: Tensor, inputs_3d: Tensor, camera: Any = None) -> BatchReport:
        """Say in words what looks wrong with a batch: unit, root, camera, joint order, 2D range.

        Reads values and changes nothing; arguments as for `augment`.
        """
        given = inputs_2d, inputs_3d, camera
        self._refuse_misfits("check_batch", *given)
        skeleton = self.skeleton or infer_skeleton(self.adapter, *given, "check_batch")
        target_frame = middle_frame if self._source is None else self._source.target_frame
        with library_defaults(inputs_3d.device):
            poses = self.adapter.decode(*given, skeleton)
            return check_batch(poses, skeleton, camera is not None, target_frame)

    def state_dict(self) -> dict[str, Any]:
        """Everything that changes during training, as tensors and plain values.

        Loads with ``weights_only=True``. Take it between an optimizer step and the next `augment`.
        """
        training = None if self._trainer is None else self._trainer.state_dict()
        return as_state(self.skeleton, training)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict`: on a CPU bit for bit, on a GPU but for rounding.

        Raises `PoseAugError` for a state that does not fit; nothing has changed then.
        """
        try:
            saved = from_state(state, self.skeleton)
            if saved is None:
                if self._trainer is not None and self._trainer.num_updates:
                    raise PoseAugError(
                        "it was saved before the first batch, and this hook has learned already; "
                        "to start anew make another."
                    )
                return
            skeleton, training = saved
            trainer = self._trainer or self._make_trainer(skeleton)
            trainer.load_state_dict(training)
        except PoseAugError as problem:
            raise PoseAugError(f"PoseAugHook.load_state_dict: {problem}") from problem
        self._trainer, self.skeleton = trainer, skeleton
        self._forget()

    def _make_trainer(self, skeleton: Skeleton) -> Trainer:
        device, source = attachment.device_of(self._estimator), self._source
        around = Surroundings(self._estimator, self.adapter, skeleton, torch.Generator(device))
        with library_defaults(device):
            windows = None if source is None else source.open(self.adapter, skeleton, device)
            return Trainer(self._preset, self.options, around, self._seed, windows, self._ranks)

    def _existing_trainer(self) -> Trainer:
        if self._trainer is None:
            raise PoseAugError(
                "PoseAugHook has no networks yet: call hook.augment(...) once, or pass skeleton=..."
            )
        return self._trainer

    def _refuse_misfits(self, call: str, inputs_2d: Tensor, inputs_3d: Tensor, camera: Any) -> None:
        """Raise for what `Adapter.check` says, and for frames that are missing."""
        count, known = 0, ""
        if self.skeleton is not None:
            count, known = self.skeleton.num_joints, f" for skeleton {self.skeleton.name!r}"
        elif isinstance(inputs_3d, Tensor) and not inputs_3d.is_nested:
            count = self.adapter.num_joints(inputs_3d)
        problem = self.adapter.check(inputs_2d, inputs_3d, camera, count)
        if not problem and self._source is None and inputs_2d.dim() == inputs_3d.dim() == 4:
            seen, given = tuple(inputs_2d.shape), tuple(inputs_3d.shape)
            if seen[1] != given[1]:
                problem = (
                    f"inputs_2d {seen} and inputs_3d {given} must have the same frames, since a "
                    "window is moved as a whole. Where the loop has 3D of the lifted frame only, "
                    "give the hook the training sequences: "
                    "PoseAugHook(model, source=PoseSource(poses_train, cameras_train))"
                )
        if problem:
            raise PoseAugError(f"PoseAugHook.{call}: {problem}{known}.")

    def _ready_trainer(self, given: HostBatch) -> Trainer:
        place = "under torch.inference_mode()" if torch.is_inference_mode_enabled() else ""
        if get_worker_info() is not None:
            place = "in a worker of a DataLoader"
        if place:
            raise PoseAugError(
                f"PoseAugHook.augment was called {place}, where nothing can be trained; call it in "
                "the training loop."
            )
        if self._id != id(self):
            raise PoseAugError(
                "PoseAugHook.augment: this hook is a copy, which no optimizer tells of its steps. "
                "Build PoseAugHook(the copied estimator) and load the state_dict() of this one."
            )
        if not self._has_looked:
            attachment.check_estimator(self._estimator)  # what it was wrapped in since
        if not self._estimator.training and not torch.is_grad_enabled():
            self._reminders.evaluating()
        self._refuse_misfits("augment", *given)
        trainer, device = self._trainer, given.inputs_3d.device
        home = trainer.generator.device if trainer else attachment.device_of(self._estimator)
        if device != home:
            raise PoseAugError(
                f"PoseAugHook.augment: the batch must be on {home}, where the estimator was when "
                f"the hook's networks were made, got {device}."
            )
        skeleton, report = self.skeleton or infer_skeleton(self.adapter, *given), None
        if not self._has_looked and len(given.inputs_3d):
            report = self.check_batch(*given)
            if report.focal_length <= 0:
                raise PoseAugError(f"PoseAugHook.augment: {report.problems[0]}.")
        if trainer is None:
            warn(
                f"PoseAugHook: took skeleton={skeleton.name!r} for poses with "
                f"{skeleton.num_joints} joints; pass it to be sure and to silence this."
            )
            trainer = self._trainer = self._make_trainer(skeleton)
            self.skeleton = skeleton
        if report is not None:
            self._tell(given, trainer, report.problems)
        return trainer

    def _tell(self, given: HostBatch, trainer: Trainer, problems: tuple[str, ...]) -> None:
        """Warn, once, of what looks wrong with the first batch and with the source."""
        self._has_looked = True
        found, windows = {"the first batch": problems}, trainer.windows
        if windows is not None:
            device, skeleton = given.inputs_3d.device, trainer.skeleton
            with library_defaults(device):
                sample = CanonicalPoses(*windows.sample(512, 1, torch.Generator(device))[:3])
                found["source"] = check_batch(sample, skeleton, True, middle_frame).problems
                poses = self.adapter.decode(*given, skeleton)
            if given.camera is not None and windows.has_other_cameras(poses):
                found["source"] += ("its cameras are not the batch's: are they in order?",)
        for what, words in found.items():
            if words:
                warn(
                    f"PoseAugHook: {what} looks wrong: {'; '.join(words)}. "
                    "print(hook.check_batch(inputs_2d, inputs_3d, camera)) shows the figures."
                )

    def _forget(self) -> None:
        self._pending = None
        self._observer.expect(None)

    def _on_forward(self, *call: Any) -> None:
        if self.enabled:
            self._observer.on_forward(*call)

    def _on_optimizer_step(self, optimizer: Optimizer, is_over: bool) -> None:
        """Train, if this is the estimator's optimizer; called before and after every step."""
        has_learned, self._stepping = is_over and self._stepping is optimizer, None
        if self._pending is None:
            return
        if has_learned:
            return self._forget()  # what the step's closure has augmented since
        own = self._optimizer
        if own is None and attachment.holds_parameters(optimizer, self._estimator):
            own = optimizer
        if optimizer is own:
            # With a fused optimizer, GradScaler lets the step happen and has the device undo it.
            self._train(skip=getattr(optimizer, "found_inf", None))
            self._stepping = None if is_over else optimizer

    def _train(self, skip: Tensor | None) -> None:
        pending, prediction, predicted = self._pending, self._observer.prediction, None
        self._forget()
        if not self.enabled or pending is None:
            return
        self._reminders.without_update = 0
        trainer = self._existing_trainer()
        try:
            with torch.enable_grad(), library_defaults(trainer.generator.device):
                if prediction is not None:
                    with suppress(RuntimeError, ValueError, IndexError):  # it cannot be read
                        predicted = self.adapter.predicted_joints(prediction, trainer.skeleton)
                trainer.update(pending, predicted, skip)
        except Exception as failure:
            raise RuntimeError(
                f"PoseAugHook.step failed ({type(failure).__name__}: {failure}). The estimator has "
                "not been changed by it. hook.enabled = False trains on without augmentation."
            ) from failure
