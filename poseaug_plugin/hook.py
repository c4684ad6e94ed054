"""`PoseAugHook`: PoseAug attached to somebody else's training loop."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple, overload

import torch
from torch import Tensor, nn
from torch.optim.optimizer import (
    Optimizer,
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)
from torch.utils.data import get_worker_info

from .adapters import Adapter, HostPoses, PoseAdapter
from .attachment import (
    InertCallback,
    check_estimator,
    check_optimizer,
    device_of,
    holds_parameters,
)
from .checkpoint import as_state, from_state
from .checks import BatchReport, check_batch, infer_skeleton
from .config import PoseAugConfig, find_config
from .diagnostics import Diagnostics
from .errors import PoseAugError, PoseAugWarning
from .estimator_error import IsolatedError, observed_error
from .generation import Augmented
from .isolation import own_defaults
from .mixing import HostBatch, mixed, mixed_cameras, one_each
from .objectives import PolicyLosses
from .observation import PredictionObserver
from .policy import Policy
from .ranks import Ranks
from .reminders import Reminders
from .skeleton import Skeleton
from .skeletons import find_skeleton
from .source import PoseSource
from .training import Losses, PolicyTrainer
from .windows import middle_frame


class _Pending(NamedTuple):
    """An augmented batch that waits for the user's forward pass and optimizer step."""

    augmented: Augmented
    clean: HostPoses  # the host's own rows that were augmented


class PoseAugHook:
    """Adds PoseAug to a training loop that already exists.

    ``hook.augment`` gives back a batch like the one it got, with a share of its poses augmented.
    When the user's optimizer steps, the hook first trains its own networks: policy and critics, and
    with ``feedback="predicted"`` a predictor of the estimator's error. The estimator, its
    gradients, BatchNorm statistics, optimizer and the global random streams are never touched.

    Args:
        estimator: The user's 2D-to-3D network, after ``.to(device)``, DDP or ``torch.compile``.
        optimizer: Its optimizer. By default whichever steps with the estimator's parameters.
        skeleton: A `Skeleton` or the name of a preset. By default the preset that fits the batch.
        adapter: The host's format; by default VideoPose3D's (`PoseAdapter`).
        preset: ``"default"``, ``"paper"``, ``"released"``, ``"random"``, or a `PoseAugConfig`.
        source: Whole sequences, for a loop that has 2D of a window of frames and 3D of one.
        policy: A policy of one's own, instead of the one that the options describe; is put on the
            estimator's device, in float32.
        real_poses_3d: (N, J, 3) poses that the 3D critic takes for real, instead of the batch's;
            metres, every joint where it is (no trajectory in place of the root).
        real_poses_2d: (N, J, 2) likewise for the 2D critic; need not belong to the 3D poses. With
            ``placement="real_poses_2d"`` augmented poses are also put where these are seen.
        seed: Of the hook's own weights and noise.
        auto_step: Train when the optimizer steps. Without, only when `step` is called: for a step
            that is captured in a CUDA graph, in which Python does not run, or for several
            optimizers per batch.
        **options: Any field of `PoseAugConfig`.

    Raises:
        PoseAugError: An optimizer that cannot be hooked or holds other parameters, an unknown
            option, an estimator under FSDP.

    Example:
        >>> hook = PoseAugHook(estimator)  # doctest: +SKIP
        >>> for cam, batch_3d, batch_2d in loader:  # doctest: +SKIP
        ...     inputs_2d, inputs_3d = hook.augment(inputs_2d, inputs_3d, cam)
        ...     loss = mpjpe(estimator(inputs_2d), root_relative(inputs_3d))
        ...     loss.backward()
        ...     optimizer.step()
    """

    def __init__(
        self,
        estimator: nn.Module,
        optimizer: Optimizer | None = None,
        *,
        skeleton: Skeleton | str | None = None,
        adapter: Adapter | None = None,
        preset: str | PoseAugConfig = "default",
        source: PoseSource | None = None,
        policy: Policy | None = None,
        real_poses_3d: Tensor | None = None,
        real_poses_2d: Tensor | None = None,
        seed: int = 0,
        auto_step: bool = True,
        **options: Any,  # noqa: ANN401
    ) -> None:
        check_estimator(estimator)
        if optimizer is not None:
            check_optimizer(optimizer, estimator)
        self.config = find_config(preset, options)
        self.skeleton = None if skeleton is None else find_skeleton(skeleton)
        self.adapter: Adapter = adapter if adapter is not None else PoseAdapter()
        self.enabled = True
        self._estimator = estimator
        self._optimizer = optimizer
        self._ranks = Ranks.of(estimator)
        if Ranks.are_missed(estimator):
            warnings.warn(
                "PoseAugHook: several processes run, but the estimator is not in "
                "DistributedDataParallel, so that every process trains a policy of its own. Build "
                "the hook on the wrapped estimator.",
                PoseAugWarning,
                stacklevel=2,
            )
        if self._ranks is not None and skeleton is None:
            raise PoseAugError(
                "PoseAugHook: with several processes every one needs the hook's networks from the "
                "first step on, so pass skeleton='h36m_17' (or another, or a Skeleton)."
            )
        self._source = source
        # Nothing here may lead back to the hook: it has to go when the last reference does, since a
        # collector that takes its callbacks away in the middle of a step would break that step.
        config, its_adapter, ranks = self.config, self.adapter, self._ranks

        def make_trainer(skeleton: Skeleton, device: torch.device) -> PolicyTrainer:
            with own_defaults(device):
                return PolicyTrainer(
                    *(skeleton, config, device, seed, None if policy is None else policy.float()),
                    *(real_poses_3d, real_poses_2d),
                    None if source is None else source.open(its_adapter, skeleton, device),
                    ranks,
                )

        self._make_trainer = make_trainer
        self._trainer: PolicyTrainer | None = None
        self._pending: _Pending | None = None
        # With several processes also where nothing is pending: the others may have something.
        self._owes_update = False
        self._observer = PredictionObserver()
        self._reminders = Reminders(optimizer is not None)
        if self.skeleton is not None:
            self._trainer = self._make_trainer(self.skeleton, device_of(estimator))
        self._handles = [
            estimator.register_forward_hook(
                InertCallback(self, PoseAugHook._on_forward), with_kwargs=True
            ),
        ]
        if auto_step:
            # For every optimizer: which one trains the estimator shows when it steps.
            call = InertCallback(self, PoseAugHook._on_optimizer_step)
            self._handles.append(register_optimizer_step_pre_hook(call))
            # Nothing waits any more then, but for what the step's own closure has augmented.
            self._handles.append(register_optimizer_step_post_hook(call))
        for handle in self._handles:
            weakref.finalize(self, handle.remove)

    def __repr__(self) -> str:
        skeleton = self.skeleton.name if self.skeleton else "not known yet"
        updates = self._trainer.num_updates if self._trainer else 0
        return f"PoseAugHook(skeleton={skeleton}, updates={updates}, enabled={self.enabled})"

    # -- the user's loop -------------------------------------------------------------------------

    @overload
    def augment(
        self,
        inputs_2d: Tensor,
        inputs_3d: Tensor,
        camera: Any = None,  # noqa: ANN401
        *,
        return_camera: Literal[False] = False,
    ) -> HostPoses: ...

    @overload
    def augment(
        self,
        inputs_2d: Tensor,
        inputs_3d: Tensor,
        camera: Any = None,  # noqa: ANN401
        *,
        return_camera: Literal[True],
    ) -> HostBatch: ...

    def augment(
        self,
        inputs_2d: Tensor,
        inputs_3d: Tensor,
        camera: Any = None,
        *,
        return_camera: bool = False,
    ) -> HostPoses | HostBatch:
        """Augment a batch; call it before the root's trajectory is thrown away.

        Args:
            inputs_2d: (B, T, J, 2) or (B, J, 2) normalised screen coordinates.
            inputs_3d: (B, T, J, 3) or (B, J, 3) camera space, in the adapter's root convention and
                unit (VideoPose3D: metres, root-relative, the trajectory in the root joint). With a
                ``source`` also (B, 1, J, 3), the frame that is lifted.
            camera: (B, 9) or (9,) intrinsics, tensor or array.
            return_camera: Return the cameras that belong to the batch as a third, (N, 9), for a
                loop that uses them afterwards. Only then are augmented samples also seen with other
                focal lengths, if ``Spread.focal_length`` asks for them; else such a loop would not
                know.

        Returns:
            ``inputs_2d, inputs_3d`` with the same dtypes, devices and conventions (and shapes,
            unless ``mix="append"``): detached, contiguous, safe to change in place. Samples that
            were not augmented are bit-identical; with the hook off, or where less than two samples
            are to be augmented (half of a last batch of two), the very tensors that came in.

        Raises:
            PoseAugError: Wrong shapes, dtypes or devices; nothing has changed then.
        """
        batch = self._augmented(inputs_2d, inputs_3d, camera, keeps_cameras=not return_camera)
        return batch if return_camera else HostPoses(batch.inputs_2d, batch.inputs_3d)

    def _augmented(
        self,
        inputs_2d: Tensor,
        inputs_3d: Tensor,
        camera: Any,  # noqa: ANN401
        *,
        keeps_cameras: bool,
    ) -> HostBatch:
        if not self._is_on:
            return _untouched(inputs_2d, inputs_3d, camera, keeps_cameras)
        if torch.is_inference_mode_enabled():
            raise PoseAugError(
                "PoseAugHook.augment was called under torch.inference_mode(), where nothing can be "
                "trained; call it in the training loop only, or use torch.no_grad()."
            )
        if get_worker_info() is not None:
            raise PoseAugError(
                "PoseAugHook.augment was called in a worker of a DataLoader, from where nothing "
                "gets back to be trained; call it in the training loop."
            )
        trainer = self._ready_trainer(inputs_2d, inputs_3d, camera)
        if trainer.augmenter.count_of(inputs_3d.shape[0]) < 2:
            self._forget()
            self._owes_update = self._ranks is not None
            self._reminders.too_small(inputs_3d.shape[0], self.config.share)
            return _untouched(inputs_2d, inputs_3d, camera, keeps_cameras)
        self._reminders.augmenting()
        skeleton = trainer.skeleton
        with torch.no_grad(), own_defaults(inputs_3d.device):
            poses = self.adapter.decode(inputs_2d, inputs_3d, camera, skeleton)
            augmented = trainer.augment(poses, keeps_cameras or camera is None)
            rows, places = augmented.rows, augmented.places
            clean = HostPoses(inputs_2d.detach()[rows], inputs_3d.detach()[rows])
            made = self.adapter.encode(
                augmented.joints[places], augmented.keypoints[places], clean, skeleton
            )
            returned = HostPoses(
                *(
                    mixed(original, new, old, rows, augmented.valid, self.config.mix)
                    for original, new, old in zip((inputs_2d, inputs_3d), made, clean, strict=True)
                )
            )
        self._reminders.augmented(augmented.usable)
        self._pending, self._owes_update = _Pending(augmented, clean), True
        self._observer.expect(returned.inputs_2d)
        if keeps_cameras:
            return HostBatch(*returned, camera)
        cameras = mixed_cameras(
            camera,
            *(augmented.intrinsics, rows, augmented.valid),
            *(inputs_3d.shape[0], self.config.mix),
        )
        return HostBatch(*returned, cameras)

    def observe(self, prediction: Tensor) -> None:
        """Tell the hook what the estimator said to the last augmented batch.

        Only needed where the hook cannot see it: an estimator that is not called as a module, or
        whose output is not the pose. Detached at once.

        Args:
            prediction: As the adapter's `predicted_joints` takes it: (B, T, J, 3) or flattened.

        Raises:
            PoseAugError: Not a tensor.
        """
        if not isinstance(prediction, Tensor):
            kind = type(prediction).__name__
            raise PoseAugError(f"PoseAugHook.observe: prediction must be a tensor, got {kind}.")
        self._observer.take(prediction)

    def step(self) -> None:
        """Train the hook's networks on the last augmented batch.

        Called by itself right before the optimizer steps (right after, where the step's closure
        augments); only where the optimizer cannot be hooked, or with ``auto_step=False``, it has to
        be called by hand before ``optimizer.step()``. Does nothing when there is nothing new, so
        calling it twice is safe.

        Raises:
            RuntimeError: Something failed. The estimator's weights are as they were.
        """
        self._train(skip=None)

    # -- control ---------------------------------------------------------------------------------

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
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self.enabled = False
        self._forget()

    @property
    def _is_on(self) -> bool:
        return self.enabled and bool(self._handles)

    # -- looking inside --------------------------------------------------------------------------

    @property
    def policy(self) -> Policy:
        """The policy.

        Raises:
            PoseAugError: No batch has come and no skeleton was given, so there is none yet.
        """
        return self._existing_trainer().policy

    @property
    def losses(self) -> Losses:
        """Losses of every network's last update: tensors on the device, nothing waits for them."""
        policy, *others = self._existing_trainer().losses
        return Losses(PolicyLosses(*(x.clone() for x in policy)), *(x.clone() for x in others))

    def diagnostics(self) -> Diagnostics:
        """Running figures as plain numbers (this syncs the device), with warnings where due."""
        trainer = self._existing_trainer()
        return trainer.monitor.read(trainer.num_updates)

    def check_batch(
        self,
        inputs_2d: Tensor,
        inputs_3d: Tensor,
        camera: Any = None,  # noqa: ANN401
    ) -> BatchReport:
        """Say in words what looks wrong with a batch: unit, root, camera, joint order, 2D range.

        Reads values and changes nothing; arguments as for `augment`.
        """
        self._refuse_misfits("check_batch", inputs_2d, inputs_3d, camera)
        skeleton = self.skeleton or infer_skeleton(
            self.adapter, inputs_2d, inputs_3d, camera, "check_batch"
        )
        target_frame = middle_frame if self._source is None else self._source.target_frame
        return check_batch(self.adapter, inputs_2d, inputs_3d, camera, skeleton, target_frame)

    # -- checkpoints -----------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Everything that changes during training, as tensors and plain values.

        Loads with ``torch.load(..., weights_only=True)``. Take it between an optimizer step and the
        next `augment`.
        """
        trainer = self._trainer
        if trainer is None:
            return as_state(None, None)
        return as_state(trainer.skeleton, trainer.state_dict())

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict`: on a CPU bit for bit, on a GPU but for rounding.

        Raises:
            PoseAugError: The state does not fit; nothing has changed then.
        """
        try:
            saved = from_state(state, self.skeleton)
            trainer = self._trainer
            if saved is None:
                if trainer is not None and trainer.num_updates:
                    raise PoseAugError(
                        "it was saved before the first batch, and this hook has learned already; "
                        "to start anew make another."
                    )
                return
            if trainer is None:
                trainer = self._make_trainer(saved.skeleton, device_of(self._estimator))
            trainer.load_state_dict(saved.training)
        except PoseAugError as problem:
            raise PoseAugError(f"PoseAugHook.load_state_dict: {problem}") from problem
        self._trainer, self.skeleton = trainer, saved.skeleton
        self._forget()

    # -- behind the scenes -----------------------------------------------------------------------

    def _existing_trainer(self) -> PolicyTrainer:
        if self._trainer is None:
            raise PoseAugError(
                "PoseAugHook has no networks yet: call hook.augment(...) once, or pass skeleton=..."
            )
        return self._trainer

    def _refuse_misfits(self, call: str, inputs_2d: Tensor, inputs_3d: Tensor, camera: Any) -> int:  # noqa: ANN401
        """Number of joints, after `Adapter.check` and a look at the frames."""
        skeleton = self.skeleton
        count = skeleton.num_joints if skeleton else None
        if count is None:
            count = self.adapter.num_joints(inputs_3d) if isinstance(inputs_3d, Tensor) else 0
        problem = self.adapter.check(inputs_2d, inputs_3d, camera, count)
        problem = problem or self._missing_frames(inputs_2d, inputs_3d)
        if problem:
            known = f" for skeleton {skeleton.name!r}" if skeleton else ""
            raise PoseAugError(f"PoseAugHook.{call}: {problem}{known}.")
        return count

    def _ready_trainer(self, inputs_2d: Tensor, inputs_3d: Tensor, camera: Any) -> PolicyTrainer:  # noqa: ANN401
        count = self._refuse_misfits("augment", inputs_2d, inputs_3d, camera)
        trainer, device = self._trainer, inputs_3d.device
        home = device_of(self._estimator) if trainer is None else trainer.generator.device
        if device != home:
            raise PoseAugError(
                f"PoseAugHook.augment: the batch must be on {home}, where the estimator was when "
                f"the hook's networks were made, got {device}."
            )
        if trainer is None:
            skeleton = infer_skeleton(self.adapter, inputs_2d, inputs_3d, camera)
            warnings.warn(
                f"PoseAugHook: took skeleton={skeleton.name!r} for poses with {count} joints; pass "
                "it to be sure and to silence this.",
                PoseAugWarning,
                stacklevel=4,
            )
            trainer = self._make_trainer(skeleton, device)
            self.skeleton, self._trainer = skeleton, trainer
        return trainer

    def _missing_frames(self, inputs_2d: Tensor, inputs_3d: Tensor) -> str:
        """What is wrong where 3D lacks frames that 2D has, and there is no source of them."""
        shapes = tuple(inputs_2d.shape), tuple(inputs_3d.shape)
        windows = all(len(shape) == 4 for shape in shapes)
        if self._source is not None or not windows or shapes[0][1] == shapes[1][1]:
            return ""
        return (
            f"inputs_2d {shapes[0]} and inputs_3d {shapes[1]} must have the same frames, since a "
            "window is moved as a whole. Where the loop has 3D of the lifted frame only, give the "
            "hook the training sequences: PoseAugHook(model, source=PoseSource(poses_train, "
            "cameras_train))"
        )

    def _forget(self) -> None:
        self._pending, self._owes_update = None, False
        self._observer.forget()

    def _on_forward(self, *call: Any) -> None:  # noqa: ANN401
        if self._pending is not None and self._is_on:
            self._observer.on_forward(*call)

    def _on_optimizer_step(self, optimizer: Optimizer, *_: Any) -> None:  # noqa: ANN401
        if not self._owes_update:
            return
        named = self._optimizer
        if optimizer is named or (named is None and holds_parameters(optimizer, self._estimator)):
            # With a fused optimizer, GradScaler lets the step happen and has the device undo it.
            self._train(skip=getattr(optimizer, "found_inf", None))

    def _train(self, skip: Tensor | None) -> None:
        pending, prediction, is_due = self._pending, self._observer.prediction, self._owes_update
        self._forget()
        if not self._is_on or not is_due:
            return
        self._reminders.updating()
        trainer, adapter = self._existing_trainer(), self.adapter
        ask = None
        try:
            with torch.enable_grad(), own_defaults(trainer.generator.device) as defaults:
                if pending is None:
                    trainer.update(None, skip=skip)  # the other ranks may have something to learn
                    return
                seen = observed_error(prediction, pending.augmented, adapter, trainer.skeleton)
                if seen is None and self.config.feedback == "predicted":
                    self._reminders.blind(prediction, trainer.skeleton.num_joints)
                if self.config.feedback == "estimator":
                    ask = IsolatedError(
                        self._estimator,
                        pending.clean,
                        pending.augmented,
                        adapter,
                        trainer.skeleton,
                        self.config,
                        trainer.generator,
                        defaults,
                    )
                trainer.update(pending.augmented, seen, ask, skip)
        except Exception as failure:
            raise RuntimeError(
                f"PoseAugHook.step failed ({type(failure).__name__}: {failure}). The estimator has "
                "not been changed by it. hook.enabled = False trains on without augmentation."
            ) from failure


def _untouched(
    inputs_2d: Tensor,
    inputs_3d: Tensor,
    camera: Any,  # noqa: ANN401
    keeps_cameras: bool,
) -> HostBatch:
    """The very tensors; cameras that go out are one each, as those of an augmented batch."""
    if not keeps_cameras:
        camera = one_each(camera, len(inputs_3d))
    return HostBatch(inputs_2d, inputs_3d, camera)
