"""Between a host's batch and the canonical form inside (`body.poses`)."""

from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, NamedTuple, Protocol, get_args

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from ..body.bones import root_relative, skeleton_tables
from ..body.camera import solve_root
from ..body.poses import DEFAULT_INTRINSICS, CanonicalPoses, constant
from ..body.skeleton import Skeleton
from ..errors import check_choice, check_number, warn

_TYPES = torch.float16, torch.bfloat16, torch.float32, torch.float64
_ARRAY_TYPES = np.float16, np.float32, np.float64


class HostPoses(NamedTuple):
    """Poses as the host has them."""

    inputs_2d: Tensor  # as `PoseAugHook.augment` takes and gives them
    inputs_3d: Tensor  # likewise


class Adapter(Protocol):
    """A host's format, as the hook reads and writes it. Shapes only, never values: no device sync.

    Called under torch's own default dtype and device, whatever the host has set. An attribute
    ``aspect_ratio``, image height / width, is taken for 1 where it is missing. A method
    ``estimator_inputs(inputs_2d)`` is needed only where the hook asks the estimator itself
    (``paper``, ``released``), and that takes its input in another shape than `encode` gives.
    """

    def check(self, inputs_2d: Tensor, inputs_3d: Tensor, camera: Any, num_joints: int) -> str:
        """What is wrong with the shapes, in words, or an empty string."""

    def num_joints(self, inputs_3d: Tensor) -> int:
        """Number of joints that the host's poses have."""

    def decode(
        self, inputs_2d: Tensor, inputs_3d: Tensor, camera: Any, skeleton: Skeleton
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
    then supplies the windows. `PoseAugError` for another root, or a number that is not positive.

    Args:
        root: Where the root's position is. ``"trajectory"``: in the root joint, the other joints
            root-relative, as VideoPose3D's loader has it. ``"absolute"``: every joint absolute.
            ``"zeroed"``: nowhere (SemGCN); it is then solved from 2D, 3D and camera.
        metres_per_unit: 1 for metres, 0.001 for millimetres.
        aspect_ratio: Image height / width; augmented poses stay inside that frame.
    """

    root: Root = "trajectory"
    metres_per_unit: float = 1.0
    aspect_ratio: float = 1.0

    def __post_init__(self) -> None:
        check_choice("PoseAdapter: root", self.root, get_args(Root))
        check_number("PoseAdapter: metres_per_unit", self.metres_per_unit, 1e-9)
        check_number("PoseAdapter: aspect_ratio", self.aspect_ratio, 1e-3)

    def num_joints(self, inputs_3d: Tensor) -> int:
        """J of (..., J, 3)."""
        return inputs_3d.shape[-2] if inputs_3d.dim() >= 2 else 0

    def check(self, inputs_2d: Tensor, inputs_3d: Tensor, camera: Any, num_joints: int) -> str:
        """Shapes, dtypes and devices."""
        for name, tensor, channels in (("inputs_3d", inputs_3d, 3), ("inputs_2d", inputs_2d, 2)):
            if problem := tensor_problem(name, tensor):
                return problem
            is_whole = tensor.dim() in (3, 4) and 0 not in tensor.shape[1:]
            if not is_whole or tensor.shape[-2:] != (num_joints, channels):
                return (
                    f"{name} must be (batch, frames, {num_joints}, {channels}) or "
                    f"(batch, {num_joints}, {channels}), got {tuple(tensor.shape)}"
                )
        seen, known = tuple(inputs_2d.shape), tuple(inputs_3d.shape)
        both = "inputs_2d and inputs_3d must"
        is_one_of_many = len(seen) == len(known) == 4 and known[1] == 1
        if seen[0] != known[0] or not (seen[1:-1] == known[1:-1] or is_one_of_many):
            remedy = " (give both an axis of frames, or neither)" if len(seen) != len(known) else ""
            return f"{both} have the same batch and frames, got {seen} and {known}{remedy}"
        if inputs_2d.device != inputs_3d.device:
            return f"{both} be on one device, got {inputs_2d.device} and {inputs_3d.device}"
        if is_one_of_many and seen[1] > 1 and self.root == "zeroed":
            return (
                f"inputs_3d must have all {seen[1]} frames of inputs_2d for root='zeroed', since "
                "the root is solved from both, got 1"
            )
        return camera_problem(camera, known[0])

    def decode(
        self, inputs_2d: Tensor, inputs_3d: Tensor, camera: Any, skeleton: Skeleton
    ) -> CanonicalPoses:
        """Absolute metres; a missing root is solved, a missing camera assumed (with a warning)."""
        given = (x.detach().float() for x in (inputs_2d, inputs_3d))
        keypoints, joints = (x if x.dim() == 4 else x.unsqueeze(1) for x in given)
        intrinsics = batch_intrinsics(camera, joints)
        if self.metres_per_unit != 1:
            joints = joints * self.metres_per_unit
        if self.root == "trajectory":
            joints = joints + _trajectory(joints, skeleton)
        elif self.root == "zeroed":
            relative = root_relative(joints, skeleton)
            # A root that is not found is not in front of the camera, or not finite.
            root, _ = solve_root(keypoints, relative, intrinsics)
            joints = relative + root.unsqueeze(-2)
        return CanonicalPoses(joints, keypoints, intrinsics)

    def encode(
        self, joints: Tensor, keypoints: Tensor, like: HostPoses, skeleton: Skeleton
    ) -> HostPoses:
        """Back to the host's root convention, unit, shape and dtype."""
        if self.root == "trajectory":
            joints = joints - _trajectory(joints, skeleton)
        elif self.root == "zeroed":
            joints = root_relative(joints, skeleton)
        if self.metres_per_unit != 1:
            joints = joints / self.metres_per_unit
        made = zip((keypoints, joints), like, strict=True)
        return HostPoses(*(poses.reshape(x.shape).to(x.dtype) for poses, x in made))

    def predicted_joints(self, prediction: Tensor, skeleton: Skeleton) -> Tensor:
        """(B, T, J, 3), (B, J, 3) or flattened (B, J * 3), in the host's unit."""
        joints = prediction.float().reshape(prediction.shape[0], -1, skeleton.num_joints, 3)
        return joints * self.metres_per_unit


def _trajectory(joints: Tensor, skeleton: Skeleton) -> Tensor:
    """The root's position at every other joint, zero at the root."""
    root = joints[..., skeleton.root : skeleton.root + 1, :]
    return root * skeleton_tables(skeleton, joints.device, joints.dtype).is_not_root


def tensor_problem(name: str, given: Any) -> str:
    """What keeps a tensor from being read, in words, or an empty string."""
    kind: Any = type(given).__name__
    if isinstance(given, Tensor):
        kind = "a nested one" if given.is_nested else given.layout
        if kind == torch.strided:
            kind = given.dtype
    return "" if kind in _TYPES else f"{name} must be a floating-point tensor, got {kind}"


def camera_problem(camera: Any, batch_size: int) -> str:
    """What is wrong with (B, 9) or (9,) intrinsics, in words, or an empty string; None is fine."""
    problem = "" if camera is None else tensor_problem("camera", camera)
    if isinstance(camera, np.ndarray):
        readable = camera.dtype in _ARRAY_TYPES
        problem = "" if readable else f"camera must be floating-point, got {camera.dtype}"
    if not problem and getattr(camera, "is_meta", False):
        problem = "camera must have values, got a tensor on meta"
    if problem or camera is None or camera.shape in ((9,), (batch_size, 9)):
        return problem
    return f"camera must be ({batch_size}, 9) or (9,) intrinsics, got {tuple(camera.shape)}"


def batch_intrinsics(camera: Any, joints: Tensor) -> Tensor:
    """(B, 9) intrinsics beside the joints; `DEFAULT_INTRINSICS` for None, with one warning."""
    if camera is None:
        _warn_of_assumed_camera()
        camera = constant(DEFAULT_INTRINSICS, joints.device)
    if isinstance(camera, np.ndarray):  # torch takes no negative strides, and minds read-only ones
        camera = np.array(camera, np.float32)
    camera = torch.as_tensor(camera, dtype=torch.float32, device=joints.device)
    return camera.expand(joints.shape[0], 9)


@cache
def _warn_of_assumed_camera() -> None:
    warn(
        "PoseAugHook.augment: no camera given; assuming Human3.6M's focal length "
        f"({DEFAULT_INTRINSICS[0]} in normalised units), centred, no distortion. Pass the batch's "
        "(B, 9) intrinsics as third argument where you have them."
    )


class HostBatch(NamedTuple):
    """A batch with its cameras."""

    inputs_2d: Tensor
    inputs_3d: Tensor
    camera: Any


def mix(
    original: Tensor, augmented: Tensor, sources: Tensor, accepted: Tensor, appends: bool
) -> Tensor:
    """The batch with augmented samples where they are accepted; everything else bit for bit.

    Of a batch (B, ...) the samples at ``sources`` (k,) are replaced by ``augmented`` ones (k, ...),
    where ``accepted`` (k,) says so; or these are put behind the batch.
    """
    original = original.detach()
    keep = accepted.reshape(-1, *[1] * (augmented.dim() - 1))
    samples = torch.where(keep, augmented, original.index_select(0, sources))
    if appends:
        return torch.cat([original, samples])
    return original.index_copy(0, sources, samples).contiguous()


def mix_cameras(
    camera: Any, augmented: Tensor, sources: Tensor, accepted: Tensor, appends: bool
) -> Any:
    """The cameras (N, 9) of a batch of `mix`, of the type and device that came in.

    ``camera`` is of `one_each`: (B, 9) intrinsics, tensor or array, None, or a tuple or list that
    begins with them; what else is in it comes back as it is.
    """
    (given, *others), structure = tree_flatten(camera)
    if given is None:
        return camera
    own = given if isinstance(given, Tensor) else torch.from_numpy(given.copy())
    how = sources.to(own.device), accepted.to(own.device), appends
    mixed = mix(own, augmented.to(own), *how)
    made = mixed if isinstance(given, Tensor) else np.asarray(mixed)
    return tree_unflatten([made, *others], structure)


def one_each(camera: Any, batch_size: int) -> Any:
    """Cameras in the host's form, the intrinsics (B, 9) also where they were (9,) for all."""
    (given, *others), structure = tree_flatten(camera)
    if getattr(given, "ndim", 0) == 1:
        is_tensor = isinstance(given, Tensor)
        given = given.repeat(batch_size, 1) if is_tensor else np.tile(given, (batch_size, 1))
    return tree_unflatten([given, *others], structure)
