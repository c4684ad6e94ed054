"""`PoseSource`: whole sequences, for hosts that give the 3D of a window's target frame only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..augment.transforms import middle_frame
from ..body.camera import project_points
from ..body.poses import CanonicalBatch, CanonicalPoses, canonical_batch
from ..body.skeleton import Skeleton
from ..errors import PoseAugError, check_flag
from .adapter import Adapter


class PoseSource:
    """The training sequences, from which windows to augment are drawn.

    VideoPose3D and others give 2D over the estimator's receptive field, and 3D for one frame of it.
    The other frames cannot be moved along then, so the windows come from here: every frame is as
    likely, sequence ends are repeated, and half of the windows are mirrored, as those hosts do it.

    Args:
        poses_3d: Sequences (frames, J, 3), camera space, in the adapter's root convention and unit:
            a list, or a dictionary such as VideoPose3D's ``poses_train``.
        cameras: (9,) intrinsics of each sequence, likewise; or one (9,) for all.
        causal: The target frame is a window's last, not its middle one.
        flip: Mirror half of the windows.

    Raises `PoseAugError` for no sequences, other shapes, or cameras that do not belong to them.
    """

    def __init__(
        self,
        poses_3d: Sequence[Any] | Mapping[Any, Any],
        cameras: Any,
        *,
        causal: bool = False,
        flip: bool = True,
    ) -> None:
        names = list(poses_3d) if isinstance(poses_3d, Mapping) else range(len(poses_3d))
        given = [poses_3d[name] for name in names]
        arrays = [x.copy() if isinstance(x, np.ndarray) else x for x in given]
        sequences = [torch.as_tensor(array, device="cpu") for array in arrays]
        joints = {s.shape[1] if s.dim() == 3 and s.shape[2] == 3 else 0 for s in sequences}
        if len(joints) != 1 or not all(joints) or not all(map(len, sequences)):
            got = [tuple(s.shape) for s in sequences[:3]]
            raise PoseAugError(
                f"PoseSource: poses_3d must be sequences (frames, joints, 3) of one skeleton, got "
                f"{len(sequences)} with shapes {got}."
            )
        if np.shape(cameras) == (9,):
            cameras = dict.fromkeys(names, cameras)
        try:
            rows = [torch.as_tensor(cameras[n], dtype=torch.float32, device="cpu") for n in names]
            self.cameras = torch.stack(rows)
        except (KeyError, IndexError, TypeError, RuntimeError, ValueError):
            self.cameras = torch.empty(0)
        if self.cameras.shape != (len(sequences), 9) or not (self.cameras[:, :2] > 0).all():
            raise PoseAugError(
                f"PoseSource: cameras must give (9,) intrinsics, focal lengths above 0, for each "
                f"of the {len(sequences)} sequences, under the same keys (or in the same order), "
                "or one (9,) for all."
            )
        check_flag("PoseSource: causal", causal)
        check_flag("PoseSource: flip", flip)
        self.sequences, self.causal, self.flip = sequences, causal, flip

    def target_frame(self, frames: int) -> int:
        """Which frame of a window the estimator is to lift."""
        return frames - 1 if self.causal else middle_frame(frames)

    def open(self, adapter: Adapter, skeleton: Skeleton, device: torch.device) -> PoseWindows:
        """Bring the sequences into canonical form and onto the device; `PoseAugError` if unfit."""
        joints = torch.cat(self.sequences)
        if joints.shape[1] != skeleton.num_joints:
            raise PoseAugError(
                f"PoseSource: poses_3d must have {skeleton.num_joints} joints for skeleton "
                f"{skeleton.name!r}, got {joints.shape[1]}."
            )
        lengths = torch.tensor([len(s) for s in self.sequences])
        intrinsics = self.cameras.repeat_interleave(lengths, 0)
        no_keypoints = torch.zeros(*joints.shape[:2], 2)
        decoded = canonical_batch(adapter.decode(no_keypoints, joints, intrinsics, skeleton))
        if not decoded.usable.all():
            share = 1 - decoded.usable.float().mean().item()
            raise PoseAugError(
                f"PoseSource: {share:.0%} of the poses are not finite or not in front of the "
                "camera. They must be in camera space, with the root's path where the adapter "
                f"({adapter}) expects it; a root that is zeroed cannot be solved without 2D."
            )
        ends = lengths.cumsum(0)
        first, last = (x.repeat_interleave(lengths) for x in (ends - lengths, ends - 1))
        frames = [x.to(device) for x in (decoded.joints[:, 0], intrinsics, first, last)]
        return PoseWindows(self, skeleton, *frames)


class PoseWindows:
    """A `PoseSource` on a device: of all frames (F,) joints, intrinsics, ends of the sequence."""

    def __init__(self, source: PoseSource, skeleton: Skeleton, *frames: Tensor) -> None:
        self.joints, self.intrinsics, self.first, self.last = frames
        self.flips, self.target_frame = source.flip, source.target_frame
        device = self.joints.device
        self.mirrored_joints = torch.tensor(skeleton.flip_permutation, device=device)
        self.mirror = torch.tensor([-1.0, 1.0, 1.0], device=device)
        # The principal point's x and the first tangential coefficient of the lens change sign.
        self.mirrored_camera = torch.tensor([1.0, 1, -1, 1, 1, 1, 1, -1, 1], device=device)

    def sample(self, count: int, frames: int, generator: torch.Generator) -> CanonicalBatch:
        """``count`` windows of ``frames`` frames, drawn with ``generator`` (on their device)."""
        device = self.joints.device
        draws = torch.rand(2, count, device=device, generator=generator)
        target = (draws[0] * len(self.joints)).long().clamp(max=len(self.joints) - 1)
        offsets = torch.arange(frames, device=device) - self.target_frame(frames)
        first, last = self.first[target, None], self.last[target, None]
        places = (target[:, None] + offsets).clamp(first, last)
        joints, intrinsics = self.joints[places], self.intrinsics[target]
        if self.flips:
            flip = draws[1] < 0.5
            mirrored = joints.index_select(2, self.mirrored_joints) * self.mirror
            joints = torch.where(flip[:, None, None, None], mirrored, joints)
            intrinsics = torch.where(flip[:, None], intrinsics * self.mirrored_camera, intrinsics)
        usable = torch.ones(count, dtype=torch.bool, device=device)
        return CanonicalBatch(joints, project_points(joints, intrinsics), intrinsics, usable)

    def has_other_cameras(self, poses: CanonicalPoses) -> bool:
        """Whether most frames that a batch shares with the sequences have another camera here."""
        joints, intrinsics = poses.joints[:32], poses.intrinsics[:32]
        joints = joints[:, self.target_frame(joints.shape[1])]
        nearest = torch.stack([(self.joints[:, 0] - x[0]).norm(dim=1).argmin() for x in joints])
        shared = (self.joints[nearest] - joints).abs().amax((1, 2)) < 1e-3
        differ = (self.intrinsics[nearest] - intrinsics).abs().amax(1) > 1e-3
        return bool((shared & differ).sum() > shared.sum() / 2)
