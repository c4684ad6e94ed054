"""Between a host's batch and the canonical form inside.

Canonical: camera-space metres, absolute, (B, T, J, 3), x right, y down, z forward; normalised
screen 2D (B, T, J, 2); nine intrinsics (B, 9).
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, NamedTuple, Protocol, get_args

import numpy as np
import torch
from torch import Tensor

from .bones import skeleton_tables
from .camera import Z_NEAR, solve_root
from .errors import PoseAugError, PoseAugWarning
from .rigid import root_relative
from .skeleton import Skeleton

DEFAULT_INTRINSICS = (2.29, 2.29, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
"""Taken where a host has no camera: Human3.6M's focal length, centred, without a lens."""

_STAND_IN = (0.0, 0.0, 5.0)


class CanonicalPoses(NamedTuple):
    """Poses in canonical form, as they came."""

    joints: Tensor  # (B, T, J, 3) float32; or (B, 1, J, 3), where 3D of one frame alone is known
    keypoints: Tensor  # (B, T, J, 2) float32
    intrinsics: Tensor  # (B, 9) float32
    placed: Tensor | None = None  # (B,) bool: the root's position is known; None for all


class CanonicalBatch(NamedTuple):
    """Canonical poses that have been looked at; unusable samples hold a harmless stand-in."""

    joints: Tensor  # (B, T, J, 3) float32; or (B, 1, J, 3), where 3D of one frame alone is known
    keypoints: Tensor  # (B, T, J, 2) float32
    intrinsics: Tensor  # (B, 9) float32
    usable: Tensor  # (B,) bool: finite and in front of the camera


class HostPoses(NamedTuple):
    """Poses as the host has them."""

    inputs_2d: Tensor
    inputs_3d: Tensor


class Adapter(Protocol):
    """What the hook asks of a host's format. Shapes only, never values: no device sync.

    Called under torch's own default dtype and device, whatever the host has set.

    Where the estimator takes its input in another shape than `encode` gives, a method
    ``estimator_inputs(inputs_2d)`` makes it, for ``feedback="estimator"``.
    """

    def check(self, inputs_2d: Tensor, inputs_3d: Tensor, camera: Any, num_joints: int) -> str:  # noqa: ANN401
        """What is wrong with the shapes, in words, or an empty string."""

    def num_joints(self, inputs_3d: Tensor) -> int:
        """Number of joints that the host's poses have."""

    def decode(
        self,
        inputs_2d: Tensor,
        inputs_3d: Tensor,
        camera: Any,  # noqa: ANN401
        skeleton: Skeleton,
    ) -> CanonicalPoses:
        """Host to canonical. What is not finite, or behind the camera, is found afterwards."""

    def encode(
        self, joints: Tensor, keypoints: Tensor, like: HostPoses, skeleton: Skeleton
    ) -> HostPoses:
        """Canonical to host, differentiable, for the samples ``like`` that they were made from."""

    def predicted_joints(self, prediction: Tensor, skeleton: Skeleton) -> Tensor:
        """The estimator's output as (B, T, J, 3) metres; the root's place does not matter."""


Root = Literal["trajectory", "absolute", "zeroed"]


@dataclass(frozen=True, kw_only=True)
class PoseAdapter:
    """(B, T, J, 2) or (B, J, 2) normalised 2D with (B, T, J, 3) or (B, J, 3) camera-space 3D.

    The 3D may be of one frame, the one that is lifted, when the 2D is of several; a `PoseSource`
    then supplies the windows.

    Args:
        root: Where the root's position is. ``"trajectory"``: in the root joint, the other joints
            root-relative, as VideoPose3D's loader has it. ``"absolute"``: every joint absolute.
            ``"zeroed"``: nowhere (SemGCN); it is then solved from 2D, 3D and camera.
        metres_per_unit: 1 for metres, 0.001 for millimetres.
    """

    root: Root = "trajectory"
    metres_per_unit: float = 1.0

    def __post_init__(self) -> None:
        if self.root not in get_args(Root):
            raise PoseAugError(
                f"root must be one of {', '.join(get_args(Root))}, got {self.root!r}."
            )

    def num_joints(self, inputs_3d: Tensor) -> int:
        """J of (..., J, 3)."""
        return inputs_3d.shape[-2] if inputs_3d.dim() >= 2 else 0

    def check(self, inputs_2d: Tensor, inputs_3d: Tensor, camera: Any, num_joints: int) -> str:  # noqa: ANN401
        """Shapes, dtypes and devices."""
        for name, tensor, channels in (("inputs_3d", inputs_3d, 3), ("inputs_2d", inputs_2d, 2)):
            if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
                kind = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
                return f"{name} must be a floating-point tensor, got {kind}"
            if tensor.dim() not in (3, 4) or tensor.shape[-2:] != (num_joints, channels):
                return (
                    f"{name} must be (batch, frames, {num_joints}, {channels}) or "
                    f"(batch, {num_joints}, {channels}), got {tuple(tensor.shape)}"
                )
        is_one_of_many = inputs_2d.dim() == inputs_3d.dim() == 4 and inputs_3d.shape[1] == 1
        if inputs_2d.shape[0] != inputs_3d.shape[0] or (
            inputs_2d.shape[1:-1] != inputs_3d.shape[1:-1] and not is_one_of_many
        ):
            remedy = " (give both an axis of frames, or neither)"
            return (
                "inputs_2d and inputs_3d must have the same batch and frames, got "
                f"{tuple(inputs_2d.shape)} and {tuple(inputs_3d.shape)}"
                f"{remedy if inputs_2d.dim() != inputs_3d.dim() else ''}"
            )
        if inputs_2d.device != inputs_3d.device:
            return (
                f"inputs_2d and inputs_3d must be on one device, got {inputs_2d.device} and "
                f"{inputs_3d.device}"
            )
        if is_one_of_many and inputs_2d.shape[1] > 1 and self.root == "zeroed":
            return (
                f"inputs_3d must have all {inputs_2d.shape[1]} frames of inputs_2d for "
                "root='zeroed', since the root is solved from both, got 1"
            )
        return camera_problem(camera, inputs_3d.shape[0])

    def decode(
        self,
        inputs_2d: Tensor,
        inputs_3d: Tensor,
        camera: Any,  # noqa: ANN401
        skeleton: Skeleton,
    ) -> CanonicalPoses:
        """Absolute metres; a missing root is solved, a missing camera assumed (with a warning)."""
        keypoints, joints = (
            (x if x.dim() == 4 else x.unsqueeze(1)).detach().float() for x in (inputs_2d, inputs_3d)
        )
        intrinsics = batch_intrinsics(camera, joints)
        joints = joints * self.metres_per_unit
        placed = None
        if self.root == "trajectory":
            trajectory = joints[..., skeleton.root : skeleton.root + 1, :]
            joints = (
                joints
                + trajectory * skeleton_tables(skeleton, joints.device, joints.dtype).is_not_root
            )
        elif self.root == "zeroed":
            solved = solve_root(keypoints, root_relative(joints, skeleton), intrinsics)
            joints = root_relative(joints, skeleton) + solved.root.unsqueeze(-2)
            placed = solved.found.all(-1)
        return CanonicalPoses(joints, keypoints, intrinsics, placed)

    def encode(
        self, joints: Tensor, keypoints: Tensor, like: HostPoses, skeleton: Skeleton
    ) -> HostPoses:
        """Back to the host's root convention, unit, shape and dtype."""
        if self.root == "trajectory":
            root = joints[..., skeleton.root : skeleton.root + 1, :]
            joints = (
                joints - root * skeleton_tables(skeleton, joints.device, joints.dtype).is_not_root
            )
        elif self.root == "zeroed":
            joints = root_relative(joints, skeleton)
        return HostPoses(
            keypoints.reshape(like.inputs_2d.shape).to(like.inputs_2d.dtype),
            (joints / self.metres_per_unit).reshape(like.inputs_3d.shape).to(like.inputs_3d.dtype),
        )

    def estimator_inputs(self, inputs_2d: Tensor) -> Tensor:
        """What the estimator takes for ``inputs_2d``: the same."""
        return inputs_2d

    def predicted_joints(self, prediction: Tensor, skeleton: Skeleton) -> Tensor:
        """(B, T, J, 3), (B, J, 3) or flattened (B, J * 3), in the host's unit."""
        batch = prediction.shape[0]
        joints = prediction.float().reshape(batch, -1, skeleton.num_joints, 3)
        return joints * self.metres_per_unit


def camera_problem(camera: Any, batch_size: int) -> str:  # noqa: ANN401
    """What is wrong with (B, 9) or (9,) intrinsics, in words, or an empty string; None is fine."""
    if camera is None:
        return ""
    is_array = isinstance(camera, (Tensor, np.ndarray))
    got = tuple(camera.shape) if is_array else type(camera).__name__
    if got in ((9,), (batch_size, 9)):
        return ""
    return f"camera must be ({batch_size}, 9) or (9,) intrinsics, got {got}"


def batch_intrinsics(camera: Any, joints: Tensor) -> Tensor:  # noqa: ANN401
    """(B, 9) intrinsics beside the joints; `DEFAULT_INTRINSICS` for None, with one warning."""
    if camera is None:
        _warn_of_assumed_camera()
        camera = _constant(DEFAULT_INTRINSICS, joints.device)
    if isinstance(camera, np.ndarray):
        camera = np.ascontiguousarray(camera, dtype=np.float32)  # torch takes no negative strides
    camera = torch.as_tensor(camera, dtype=torch.float32, device=joints.device)
    return camera.expand(joints.shape[0], 9)


@cache
def _constant(values: tuple[float, ...], device: torch.device) -> Tensor:
    """A vector on a device; made once."""
    with torch.inference_mode(False):
        return torch.tensor(values, device=device, dtype=torch.float32)


@cache
def _warn_of_assumed_camera() -> None:
    warnings.warn(
        "PoseAugHook.augment: no camera given; assuming Human3.6M's focal length "
        f"({DEFAULT_INTRINSICS[0]} in normalised units), centred, no distortion. Pass the batch's "
        "(B, 9) intrinsics as third argument where you have them.",
        PoseAugWarning,
        stacklevel=6,
    )


def canonical_batch(poses: CanonicalPoses) -> CanonicalBatch:
    """Mark samples that cannot be augmented, and make them harmless."""
    joints, keypoints, intrinsics, placed = poses
    usable = joints.isfinite().flatten(1).all(1) & keypoints.isfinite().flatten(1).all(1)
    usable = usable & (joints[..., 2] > Z_NEAR).flatten(1).all(1) & intrinsics.isfinite().all(1)
    if placed is not None:
        usable = usable & placed
    keep, device = usable[:, None, None, None], joints.device
    return CanonicalBatch(
        torch.where(keep, joints, _constant(_STAND_IN, device)),
        torch.where(keep, keypoints, 0.0),
        torch.where(usable[:, None], intrinsics, _constant(DEFAULT_INTRINSICS, device)),
        usable,
    )
