"""SemGCN's batch with a camera of one's own, and `main_linear.py`'s prediction without the hip."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from poseaug_plugin import CanonicalPoses, PoseAdapter, Skeleton
from poseaug_plugin.adapters import DEFAULT_INTRINSICS, Root


@dataclass(frozen=True, kw_only=True)
class SemGCNAdapter(PoseAdapter):
    """(B, 16, 2) normalised 2D with (B, 16, 3) metres whose root the loader has zeroed.

    The root is solved from 2D, 3D and the camera.

    Args:
        root: As in `PoseAdapter`.
        intrinsics: The nine numbers of every sample that comes without a camera; by default
            Human3.6M's focal length, centred, no lens. Stated here, they need no warning.
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
        """As `PoseAdapter`'s, with the stated camera where none is given."""
        if camera is None:
            camera = _on(inputs_3d.device, self.intrinsics)
        return super().decode(inputs_2d, inputs_3d, camera, skeleton)

    def predicted_joints(self, prediction: Tensor, skeleton: Skeleton) -> Tensor:
        """(B, 16, 3), or (B, 45) as `main_linear.py`'s network gives it: all joints but the hip."""
        joints = prediction.unflatten(1, (-1, 3)) if prediction.dim() == 2 else prediction
        if joints.shape[-2] == skeleton.num_joints - 1:
            joints = torch.nn.functional.pad(joints, (0, 0, 1, 0))
        return super().predicted_joints(joints, skeleton)


@cache
def _on(device: torch.device, intrinsics: tuple[float, ...]) -> Tensor:
    """Moved once: copying to a device in every step would wait for it."""
    with torch.inference_mode(False):
        return torch.tensor(intrinsics, device=device)
