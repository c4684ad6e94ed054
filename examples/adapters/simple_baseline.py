"""SimpleBaseline's batch in PyTorch: flattened, z-scored millimetres and pixels, no hip."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from poseaug_plugin import (
    CanonicalPoses,
    HostPoses,
    PoseAugError,
    Skeleton,
    normalize_screen_coordinates,
    project_points,
    solve_root,
)
from poseaug_plugin.host.adapter import batch_intrinsics, camera_problem, tensor_problem

JOINTS = 17
NECK = 9  # neck/nose: in the targets but not in the inputs
METRES_PER_UNIT = 0.001

Statistics = Mapping[str, Any]
"""``mean`` and ``std`` (D,) and which of the D dimensions are used, ``dim_use``."""


class SimpleBaselineAdapter:
    """(B, 32) and (B, 48), z-scored with the training set's statistics.

    Inputs are 16 joints in pixels: Human3.6M's 17 without the neck/nose. Targets are 16 joints in
    camera-space millimetres relative to the hip: the 17 without the hip. Inside, the hip is back at
    zero, the keypoint of the neck is the projection of its 3D, and the root is solved from the hip
    and the 15 joints that both have. The skeleton is ``"h36m_17"``.

    Args:
        stat_3d: The host's ``stat_3d.pth.tar``.
        stat_2d: Statistics of the inputs in the same form, which the host does not keep: see
            `keypoint_statistics`.
        width: Image width, pixels.
        height: Image height, pixels.

    Raises:
        PoseAugError: Statistics of other sizes, or a standard deviation that is not positive.
    """

    def __init__(
        self,
        stat_3d: Statistics,
        stat_2d: Statistics,
        *,
        width: float = 1000.0,
        height: float = 1000.0,
    ) -> None:
        self._targets = _z_score("stat_3d", stat_3d, 3 * (JOINTS - 1))
        self._inputs = _z_score("stat_2d", stat_2d, 2 * (JOINTS - 1))
        self.width, self.height = width, height
        self.aspect_ratio = height / width

    def num_joints(self, inputs_3d: Tensor) -> int:
        """17, with the hip."""
        return JOINTS

    def check(self, inputs_2d: Tensor, inputs_3d: Tensor, camera: Any, num_joints: int) -> str:
        """Shapes, dtypes and devices."""
        batch_size = inputs_3d.shape[0] if isinstance(inputs_3d, Tensor) else 0
        for name, tensor, channels in (("inputs_3d", inputs_3d, 3), ("inputs_2d", inputs_2d, 2)):
            if problem := tensor_problem(name, tensor):
                return problem
            size = channels * (JOINTS - 1)
            if tensor.shape != (batch_size, size):
                return (
                    f"{name} must be (batch, {size}), with one batch size for both, got "
                    f"{tuple(tensor.shape)}"
                )
        if inputs_2d.device != inputs_3d.device:
            return (
                f"inputs_2d and inputs_3d must be on one device, got {inputs_2d.device} and "
                f"{inputs_3d.device}"
            )
        if num_joints != JOINTS:
            return f"the skeleton must be 'h36m_17', got one of {num_joints} joints"
        return camera_problem(camera, batch_size)

    def decode(
        self, inputs_2d: Tensor, inputs_3d: Tensor, camera: Any, skeleton: Skeleton
    ) -> CanonicalPoses:
        """Absolute metres with the solved root; a missing camera is assumed, with a warning."""
        device = inputs_3d.device
        relative = self._relative_joints(inputs_3d.detach().float())
        pixels = _on(device, self._inputs).undo(inputs_2d.detach().float()).unflatten(1, (1, -1, 2))
        seen = normalize_screen_coordinates(pixels, self.width, self.height)
        intrinsics = batch_intrinsics(camera, relative)
        root, _ = solve_root(seen, _without_neck(relative), intrinsics)
        joints = relative + root.unsqueeze(-2)
        neck = project_points(joints[:, :, NECK : NECK + 1], intrinsics)
        keypoints = torch.cat([seen[:, :, :NECK], neck, seen[:, :, NECK:]], -2)
        return CanonicalPoses(joints, keypoints, intrinsics)

    def encode(
        self, joints: Tensor, keypoints: Tensor, like: HostPoses, skeleton: Skeleton
    ) -> HostPoses:
        """Relative to the hip and without it, flattened, scored with the same statistics."""
        millimetres = (joints[:, :, 1:] - joints[:, :, :1]) / METRES_PER_UNIT
        pixels = image_coordinates(_without_neck(keypoints), self.width, self.height)
        inputs, targets = (_on(joints.device, scores) for scores in (self._inputs, self._targets))
        return HostPoses(
            inputs.apply(pixels.flatten(1)).to(like.inputs_2d.dtype),
            targets.apply(millimetres.flatten(1)).to(like.inputs_3d.dtype),
        )

    def predicted_joints(self, prediction: Tensor, skeleton: Skeleton) -> Tensor:
        """(B, 48) scores to (B, 1, 17, 3) metres."""
        return self._relative_joints(prediction.float())

    def _relative_joints(self, targets: Tensor) -> Tensor:
        """(B, 48) scores to (B, 1, 17, 3) metres with the hip at zero."""
        millimetres = _on(targets.device, self._targets).undo(targets).unflatten(1, (1, -1, 3))
        return torch.nn.functional.pad(millimetres * METRES_PER_UNIT, (0, 0, 1, 0))


def image_coordinates(normalized: Tensor, width: float, height: float) -> Tensor:
    """Inverse of `normalize_screen_coordinates`."""
    return (normalized + normalized.new_tensor([1.0, height / width])) * width / 2


def keypoint_statistics(pixels: Tensor | np.ndarray) -> dict[str, np.ndarray]:
    """Statistics of the inputs, over the same frames that the host trains on.

    Args:
        pixels: (N, 17, 2) Human3.6M's joints, or (N, 16, 2) without the neck/nose.

    Returns:
        As in the host's ``stat_3d.pth.tar``: ``mean`` (32,), ``std`` (32,), ``dim_use``.

    Raises:
        PoseAugError: Another shape.
    """
    values = np.asarray(pixels, np.float64)
    if values.ndim != 3 or values.shape[1:] not in ((JOINTS, 2), (JOINTS - 1, 2)):
        raise PoseAugError(
            f"keypoint_statistics: pixels must be (frames, 17, 2) or (frames, 16, 2), got "
            f"{values.shape}."
        )
    if values.shape[1] == JOINTS:
        values = np.delete(values, NECK, 1)
    values = values.reshape(len(values), -1)
    return {"mean": values.mean(0), "std": values.std(0), "dim_use": np.arange(values.shape[1])}


@dataclass(frozen=True, eq=False)
class _ZScore:
    """Mean and standard deviation of every dimension."""

    mean: Tensor  # (D,)
    std: Tensor  # (D,)

    def apply(self, values: Tensor) -> Tensor:
        """(B, D) values to scores."""
        return (values - self.mean) / self.std

    def undo(self, scores: Tensor) -> Tensor:
        """(B, D) scores to values."""
        return scores * self.std + self.mean


@cache
def _on(device: torch.device, scores: _ZScore) -> _ZScore:
    """Move to a device, once: a copy in every step would wait for the device."""
    with torch.inference_mode(False):
        return _ZScore(scores.mean.to(device), scores.std.to(device))


def _without_neck(points: Tensor) -> Tensor:
    """(B, T, 17, .) to (B, T, 16, .)."""
    return torch.cat([points[:, :, :NECK], points[:, :, NECK + 1 :]], -2)


def _z_score(name: str, statistics: Statistics, size: int) -> _ZScore:
    """Read the used dimensions of the host's statistics.

    Raises:
        PoseAugError: Another number than ``size``, or a standard deviation that is not positive.
    """
    used = np.asarray(statistics["dim_use"])
    mean, std = (np.asarray(statistics[key], np.float64)[used] for key in ("mean", "std"))
    if mean.shape != (size,):
        raise PoseAugError(
            f"SimpleBaselineAdapter: {name} must have {size} dimensions in use, got {mean.size}."
        )
    if not (std > 0).all():
        raise PoseAugError(
            f"SimpleBaselineAdapter: {name} has standard deviations that are not positive, in "
            f"dimensions {used[~(std > 0)].tolist()}."
        )
    return _ZScore(torch.from_numpy(mean).float(), torch.from_numpy(std).float())
