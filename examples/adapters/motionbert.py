"""MotionBERT's batch: 2D with a confidence, 3D in "2.5D image space", no camera."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from poseaug_plugin import CanonicalPoses, HostPoses, PoseAdapter, Skeleton, project_points
from poseaug_plugin.body.bones import bone_lengths, joints_to_bones
from poseaug_plugin.body.poses import DEFAULT_INTRINSICS

BODY_SIZE = 4.15
"""Metres: sum of the 16 bone lengths of Human3.6M's 17 joints, subject S1."""

_SAME_DEPTH = 1e-3  # image units, half a pixel of 1000
_SMALLEST_BODY = 1e-3  # metres at a depth of one metre


@dataclass(frozen=True, kw_only=True)
class MotionBERTAdapter:
    """(B, T, J, 3) detections with a confidence, or (B, T, J, 2), and (B, T, J, 3) image space.

    In image space x and y are those of the projection, and z is the depth relative to the root of
    the same frame, at the scale of the root:

        x = f X / Z,    y = f Y / Z,    z = f (Z - Z_root) / Z_root.

    So Z = Z_root (1 + z / f), X = x Z / f and Y = y Z / f. The inverse is exact, except for Z_root:
    it scales the pose, and the projection stays the same. It is chosen so that the bone lengths add
    up to ``body_size``. Augmented poses go back the same way, with the confidence of the sample
    that they come from.

    Args:
        focal_length: Normalised like the screen; by default Human3.6M's. There is no principal
            point, since the data set mirrors poses about the middle.
        body_size: Sum of the bone lengths, metres.
        aspect_ratio: As in `PoseAdapter`.
    """

    focal_length: float = DEFAULT_INTRINSICS[0]
    body_size: float = BODY_SIZE
    aspect_ratio: float = 1.0

    def num_joints(self, inputs_3d: Tensor) -> int:
        """J of (..., J, 3)."""
        return PoseAdapter().num_joints(inputs_3d)

    def check(self, inputs_2d: Tensor, inputs_3d: Tensor, camera: Any, num_joints: int) -> str:
        """Shapes, dtypes and devices; a camera is refused."""
        if camera is not None:
            return "MotionBERT's batch has no camera; pass MotionBERTAdapter(focal_length=...)"
        shape = tuple(getattr(inputs_2d, "shape", ()))
        if len(shape) != 4 or shape[-1] not in (2, 3):
            return (
                f"inputs_2d must be (batch, frames, {num_joints}, 3), the last the confidence, or "
                f"(batch, frames, {num_joints}, 2), got {shape or type(inputs_2d).__name__}"
            )
        if inputs_2d.shape[:3] != inputs_3d.shape[:3]:
            return (
                "inputs_2d and inputs_3d must have the same batch and frames, got "
                f"{shape} and {tuple(inputs_3d.shape)}"
            )
        return PoseAdapter().check(inputs_2d[..., :2], inputs_3d, None, num_joints)

    def decode(
        self, inputs_2d: Tensor, inputs_3d: Tensor, camera: Any, skeleton: Skeleton
    ) -> CanonicalPoses:
        """Absolute metres. A window in which z of the root changes is unusable: another format."""
        image = inputs_3d.detach().float()
        root_z = image[..., skeleton.root, 2]
        in_format = ((root_z - root_z[:, :1]).abs() < _SAME_DEPTH).all(1)
        joints = self._camera_space(image, skeleton)
        joints = torch.where(in_format[:, None, None, None], joints, torch.nan)
        keypoints = inputs_2d.detach().float()[..., :2]
        return CanonicalPoses(joints, keypoints, self._intrinsics(joints))

    def encode(
        self, joints: Tensor, keypoints: Tensor, like: HostPoses, skeleton: Skeleton
    ) -> HostPoses:
        """Back to image space, with confidence and z of the root from the samples ``like``."""
        root = slice(skeleton.root, skeleton.root + 1)
        depth = joints[..., 2:]
        image = torch.cat(
            [
                project_points(joints, self._intrinsics(joints)),
                self.focal_length * (depth / depth[..., root, :] - 1)
                + like.inputs_3d[..., root, 2:],
            ],
            -1,
        )
        seen = torch.cat([keypoints.to(like.inputs_2d.dtype), like.inputs_2d[..., 2:]], -1)
        return HostPoses(seen, image.to(like.inputs_3d.dtype))

    def predicted_joints(self, prediction: Tensor, skeleton: Skeleton) -> Tensor:
        """(B, T, J, 3) image space to metres, every pose as large as a person.

        In image space poses that are further away are smaller. A root-relative prediction
        (``rootrel: True``) counts as one in the middle of the picture.
        """
        image = prediction.float().reshape(prediction.shape[0], -1, skeleton.num_joints, 3)
        return self._camera_space(image, skeleton)

    def _camera_space(self, image: Tensor, skeleton: Skeleton) -> Tensor:
        """Image space to absolute metres, both (B, T, J, 3)."""
        root = slice(skeleton.root, skeleton.root + 1)
        depth = 1 + (image[..., 2:] - image[..., root, 2:]) / self.focal_length
        unscaled = torch.cat([image[..., :2] / self.focal_length * depth, depth], -1)
        size = bone_lengths(joints_to_bones(unscaled, skeleton)).sum(-1).clamp(min=_SMALLEST_BODY)
        return unscaled * (self.body_size / size)[..., None, None]

    def _intrinsics(self, joints: Tensor) -> Tensor:
        """(B, 9) beside the joints."""
        intrinsics = joints.new_zeros(joints.shape[0], 9)
        intrinsics[:, :2] = self.focal_length
        return intrinsics
