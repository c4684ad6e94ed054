"""PoseAug for the pose lifters of mmpose 1.x: a hook of mmengine's runner.

The file must not be called mmpose.py: beside a script it would be imported in place of mmpose.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from poseaug_plugin import (
    CanonicalPoses,
    HostPoses,
    PoseAdapter,
    PoseAugError,
    PoseAugHook,
    Skeleton,
)
from poseaug_plugin.host.attachment import InertCallback, device_of
from poseaug_plugin.runtime.isolation import unwrap_module

try:
    from mmengine.hooks import Hook
    from mmengine.registry import HOOKS
except ImportError:  # in tests
    Hook, HOOKS = object, None


class LiftingBatch(NamedTuple):
    """A batch of `PoseLifter`, stacked."""

    inputs_2d: Tensor  # (B, 2J, T) normalised screen
    inputs_3d: Tensor  # (B, T, J, 3) metres, root-relative, the trajectory in the root joint
    camera: Tensor  # (B, 9)


class LiftingAdapter(PoseAdapter):
    """2D (B, 2J, T) as `PoseLifter` takes it, 3D (B, T, J, 3) with the trajectory in the root."""

    def check(self, inputs_2d: Tensor, inputs_3d: Tensor, camera: Any, num_joints: int) -> str:
        """Shapes, dtypes and devices, in the configuration's terms."""
        shape, frames = tuple(inputs_2d.shape), inputs_3d.shape[1]
        if len(shape) != 3 or shape[1] != 2 * num_joints:
            return (
                f"inputs must be (2 * {num_joints}, frames), as VideoPoseLifting makes them with "
                f"reshape_keypoints=True and concat_vis=False, got {shape[1:]}"
            )
        if shape[2] != frames:
            return (
                f"inputs have {shape[2]} frames and lifting_target_label has {frames}: the other "
                "frames' joints are not packed, so they cannot be moved along. Train an estimator "
                "of one frame (seq_len=1, kernel sizes of 1), or, with a head that predicts every "
                "frame, let the data set pack every frame's target (multiple_target)"
            )
        return super().check(by_frame(inputs_2d), inputs_3d, camera, num_joints)

    def decode(
        self, inputs_2d: Tensor, inputs_3d: Tensor, camera: Any, skeleton: Skeleton
    ) -> CanonicalPoses:
        """Absolute metres."""
        return super().decode(by_frame(inputs_2d), inputs_3d, camera, skeleton)

    def encode(
        self, joints: Tensor, keypoints: Tensor, like: HostPoses, skeleton: Skeleton
    ) -> HostPoses:
        """Back to the host's format."""
        like = like._replace(inputs_2d=by_frame(like.inputs_2d))
        made = super().encode(joints, keypoints, like, skeleton)
        return made._replace(inputs_2d=made.inputs_2d.permute(0, 2, 3, 1).flatten(1, 2))


class PoseAugMMHook(Hook):  # type: ignore[misc]
    """Augments every training batch before the model sees it, in place.

    Args:
        normalize_camera: As in the codec of the configuration: ``camera_param`` is normalised.
        skeleton: A `Skeleton` or the name of a preset.
        **options: Further arguments of `PoseAugHook`, except ``mix="append"``: a batch keeps its
            size.

    Attributes:
        hook: The `PoseAugHook`; None until the training begins.

    Raises:
        PoseAugError: ``mix="append"``; while training, a model, a codec or a batch that does not
            fit.
    """

    def __init__(
        self, normalize_camera: bool = False, skeleton: Skeleton | str = "h36m_17", **options: Any
    ) -> None:
        if options.get("mix", "replace") != "replace":
            raise PoseAugError("PoseAugMMHook: mix must be 'replace', a batch keeps its size.")
        self.normalize_camera = normalize_camera
        self.hook: PoseAugHook | None = None
        self._options = {"adapter": LiftingAdapter(), "skeleton": skeleton, **options}
        self._device = torch.device("cpu")
        self._saved: dict[str, Any] | None = None

    def before_train(self, runner: Any) -> None:
        """Attach to the model, which has its weights and its device now."""
        model = runner.model
        self._device = device_of(model)
        # The model returns losses, and calls the forward of the head without its hooks.
        last_layer(unwrap_module(model)).register_forward_hook(
            InertCallback(self, PoseAugMMHook._on_prediction)
        )
        # Not unwrapped: with several processes it is in DistributedDataParallel.
        self.hook = PoseAugHook(model, **self._options)
        # With load_from a new training begins.
        if self._saved is not None and runner.iter > 0:
            self.hook.load_state_dict(self._saved)

    def before_train_iter(
        self, runner: Any, batch_idx: int, data_batch: dict[str, Any] | None = None
    ) -> None:
        """Augment ``data_batch``: inputs, lifting_target_label and target_root."""
        hook = self.hook
        if hook is None or not hook.enabled or data_batch is None:
            return
        assert hook.skeleton is not None
        root = hook.skeleton.root
        batch = read_batch(data_batch, root, normalized=self.normalize_camera)
        made = hook.augment(*(tensor.to(self._device) for tensor in batch))
        write_batch(data_batch, HostPoses(*(tensor.cpu() for tensor in made)), root)

    def before_save_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        """Put the hook's state beside the model's."""
        if self.hook is not None:
            checkpoint["poseaug"] = self.hook.state_dict()

    def after_load_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        """Keep the hook's state until the training begins."""
        self._saved = checkpoint.get("poseaug")

    def _on_prediction(self, _layer: nn.Module, _inputs: Any, output: Tensor) -> None:
        """Take (B, 3J, T) from the last layer of the head."""
        if self.hook is not None:
            self.hook.observe(output.transpose(1, 2))


if HOOKS is not None:
    HOOKS.register_module(module=PoseAugMMHook)


def last_layer(model: nn.Module) -> nn.Module:
    """Find the convolution whose output is the pose.

    Raises:
        PoseAugError: The head has none, so it is no `TemporalRegressionHead`.
    """
    head = getattr(model, "head", None)
    convolutions = [m for m in (head or nn.Module()).modules() if isinstance(m, nn.Conv1d)]
    if not convolutions:
        raise PoseAugError(
            "PoseAugMMHook: expected a PoseLifter with a TemporalRegressionHead, got "
            f"{type(model).__name__} with head {type(head).__name__}."
        )
    return convolutions[-1]


def by_frame(inputs_2d: Tensor) -> Tensor:
    """(B, 2J, T) to (B, T, J, 2)."""
    return inputs_2d.unflatten(1, (-1, 2)).permute(0, 3, 1, 2)


def read_batch(data_batch: Mapping[str, Any], root: int, *, normalized: bool) -> LiftingBatch:
    """Stack a batch of the data loader.

    Args:
        data_batch: ``inputs`` and ``data_samples``, lists of B.
        root: Index of the joint that gets the trajectory.
        normalized: Whether ``camera_param`` is normalised.

    Raises:
        PoseAugError: The samples have no camera or no root.
    """
    samples = data_batch["data_samples"]
    for key in ("camera_param", "target_root"):
        if any(key not in sample.metainfo for sample in samples):
            raise PoseAugError(
                f"PoseAugMMHook: the data samples carry no {key!r}. Have the train pipeline pack "
                "it: dict(type='PackPoseInputs', meta_keys=(..., 'target_root', 'camera_param')); "
                "it comes from the data set's camera_param_file, or the codec's zero_center=True."
            )
    label = torch.stack([s.gt_instance_labels.lifting_target_label for s in samples])
    label[:, :, root] = torch.from_numpy(np.stack([s.metainfo["target_root"] for s in samples])).to(
        label.dtype
    )
    cameras = np.stack([intrinsics(s.metainfo["camera_param"], normalized) for s in samples])
    return LiftingBatch(torch.stack(list(data_batch["inputs"])), label, torch.from_numpy(cameras))


def write_batch(data_batch: dict[str, Any], made: HostPoses, root: int) -> None:
    """Put poses back where `read_batch` found theirs."""
    data_batch["inputs"] = list(made.inputs_2d)
    trajectory = made.inputs_3d[:, :, root].numpy()
    label = made.inputs_3d.clone()
    label[:, :, root] = 0
    for sample, own, place in zip(data_batch["data_samples"], label, trajectory, strict=True):
        sample.gt_instance_labels.lifting_target_label = own
        before = sample.metainfo["target_root"]
        sample.set_metainfo({"target_root": place.astype(before.dtype)})


def intrinsics(camera: Mapping[str, Any], normalized: bool) -> np.ndarray:
    """Nine intrinsics, float32, of an mmpose ``camera_param``.

    Its tangential coefficients have the order of Human3.6M's metadata, y before x.

    Raises:
        PoseAugError: No focal length, principal point or image size; a rational lens.
    """
    missing = {"f", "c", "w", "h"} - set(camera)
    if missing:
        raise PoseAugError(
            "PoseAugMMHook: camera_param must have f, c, w and h, lacks "
            f"{', '.join(sorted(missing))}."
        )
    focal, centre, radial, tangential = (
        np.asarray(camera.get(key, np.zeros(size)), np.float64).reshape(-1)
        for key, size in (("f", 2), ("c", 2), ("k", 3), ("p", 2))
    )
    if len(radial) != 3:
        raise PoseAugError(
            f"PoseAugMMHook: camera_param's k must be three coefficients, got {len(radial)}."
        )
    if not normalized:
        width, height = camera["w"], camera["h"]
        focal, centre = focal * 2 / width, centre * 2 / width - [1, height / width]
    return np.concatenate([focal, centre, radial, tangential[::-1]]).astype(np.float32)
