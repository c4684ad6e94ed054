"""ST-GCN's batch: the format of VideoPose3D, with a scale beside the camera and other axes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from poseaug_plugin import CanonicalPoses, PoseAdapter, PoseAugError, Skeleton


@dataclass(frozen=True, kw_only=True)
class STGCNAdapter(PoseAdapter):
    """(N, T, J, 2) with (N, T, J, 3), the trajectory in joint 0; the camera may have a scale.

    The camera argument is ``batch_cam`` (N, 9) or ``(batch_cam, scale)``, with the ``scale`` of the
    loader, still on the CPU.

    Args:
        root: As in `PoseAdapter`.
        metres_per_unit: As in `PoseAdapter`.
        aspect_ratio: As in `PoseAdapter`.
        crop_uv: Option of the host.

    Raises:
        PoseAugError: ``crop_uv`` is set.
    """

    crop_uv: bool | int = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.crop_uv:
            raise PoseAugError(
                f"STGCNAdapter: crop_uv must be 0, got {self.crop_uv}: 2D is then relative to each "
                "person's box and the camera in pixels, so augmented 3D cannot be projected. Train "
                "with --crop_uv 0."
            )

    def check(self, inputs_2d: Tensor, inputs_3d: Tensor, camera: Any, num_joints: int) -> str:
        """Shapes, dtypes, devices; a scale must be on the CPU, and 1."""
        intrinsics, scale = _camera_and_scale(camera)
        problem = super().check(inputs_2d, inputs_3d, intrinsics, num_joints)
        return problem or _scale_problem(scale)

    def decode(
        self, inputs_2d: Tensor, inputs_3d: Tensor, camera: Any, skeleton: Skeleton
    ) -> CanonicalPoses:
        """Absolute metres, without the scale."""
        return super().decode(inputs_2d, inputs_3d, _camera_and_scale(camera)[0], skeleton)

    def estimator_inputs(self, inputs_2d: Tensor) -> Tensor:
        """(N, 2, T, J, 1), the axes of the host's network."""
        return inputs_2d.permute(0, 3, 1, 2).unsqueeze(-1).contiguous()

    def predicted_joints(self, prediction: Tensor, skeleton: Skeleton) -> Tensor:
        """(N, 3, T, J, 1), as the network gives it."""
        return super().predicted_joints(prediction.permute(0, 2, 3, 4, 1), skeleton)


def _camera_and_scale(camera: Any) -> tuple[Any, Any]:
    if isinstance(camera, (tuple, list)) and len(camera) == 2:
        return camera[0], camera[1]
    return camera, None


def _scale_problem(scale: Any) -> str:
    """The problem with (N,) scales, in words, or an empty string; None is fine."""
    if scale is None:
        return ""
    if isinstance(scale, Tensor) and scale.device.type != "cpu":
        return (
            f"scale must be the loader's own tensor on the CPU (data[5]), got one on "
            f"{scale.device}, where reading it would wait for the device"
        )
    values = np.asarray(scale)
    if (values == 1).all():
        return ""
    return (
        f"scale must be 1, got {values.min():g} to {values.max():g}: the loop multiplies the "
        "predictions by it, so the network learns poses in a unit of each sample's own, and an "
        "augmented pose has none. Let the data set give 1 (data/load_data_hm36.py does), or pass "
        "such batches through: with hook.paused()"
    )
