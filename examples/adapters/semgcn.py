"""SemGCN's batch with your own camera, and the prediction of `main_linear.py` without the hip."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from poseaug_plugin import CanonicalPoses, PoseAdapter, Skeleton
from poseaug_plugin.body.poses import DEFAULT_INTRINSICS
from poseaug_plugin.host.adapter import Root


@dataclass(frozen=True, kw_only=True)
class SemGCNAdapter(PoseAdapter):
    """(B, 16, 2) normalised 2D with (B, 16, 3) metres, whose root the loader sets to zero.

    The root is solved from 2D, 3D and the camera.

    Args:
        root: As in `PoseAdapter`.
        intrinsics: Nine intrinsics for samples without a camera, used without a warning. By
            default Human3.6M's focal length, centred, without distortion.
    """

    root: Root = "zeroed"
    intrinsics: tuple[float, ...] = DEFAULT_INTRINSICS

    def check(self, inputs_2d: Tensor, inputs_3d: Tensor, camera: Any, num_joints: int) -> str:
        """Shapes, dtypes, devices, and the number of intrinsics."""
        if len(self.intrinsics) != 9:
            return f"intrinsics must be nine numbers, got {len(self.intrinsics)}"
        return super().check(inputs_2d, inputs_3d, camera, num_joints)

    def decode(
        self, inputs_2d: Tensor, inputs_3d: Tensor, camera: Any, skeleton: Skeleton
    ) -> CanonicalPoses:
        """Absolute metres, with ``intrinsics`` where no camera is given."""
        if camera is None:
            camera = _on(inputs_3d.device, self.intrinsics)
        return super().decode(inputs_2d, inputs_3d, camera, skeleton)

    def predicted_joints(self, prediction: Tensor, skeleton: Skeleton) -> Tensor:
        """(B, 16, 3), or (B, 45) from `main_linear.py`: all joints but the hip."""
        joints = prediction.unflatten(1, (-1, 3)) if prediction.dim() == 2 else prediction
        if joints.shape[-2] == skeleton.num_joints - 1:
            joints = torch.nn.functional.pad(joints, (0, 0, 1, 0))
        return super().predicted_joints(joints, skeleton)


@cache
def _on(device: torch.device, intrinsics: tuple[float, ...]) -> Tensor:
    """Move to a device, once: a copy in every step would wait for the device."""
    with torch.inference_mode(False):
        return torch.tensor(intrinsics, device=device)
