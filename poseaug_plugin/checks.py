"""Looking at a host's batch: which skeleton is it, and is it what the hook takes it for?"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .adapters import Adapter
from .bones import average_bone_lengths, bone_lengths, joints_to_bones, per_bone
from .camera import project_points
from .errors import PoseAugError
from .skeleton import SKELETONS, Skeleton

_ASYMMETRIC = 0.12


class BatchReport(NamedTuple):
    """What `check_batch` found; ``str(report)`` is meant to be read."""

    problems: tuple[str, ...]
    usable_share: float  # samples that are finite and in front of the camera
    root_depth: float  # median, metres
    body_size: float  # median sum of bone lengths, metres
    asymmetry: float  # median |left - right| / mean length of paired bones
    in_frame_share: float  # of 2D keypoints within [-1, 1]
    reprojection_error: float  # median distance of 2D and projected 3D, normalised units

    @property
    def ok(self) -> bool:
        """Nothing to complain of."""
        return not self.problems

    def __str__(self) -> str:
        figures = (
            f"usable samples {self.usable_share:.0%}, root depth {self.root_depth:.2f} m, bones "
            f"{self.body_size:.2f} m together, left/right difference {self.asymmetry:.1%}, "
            f"keypoints in frame {self.in_frame_share:.0%}, reprojection error "
            f"{self.reprojection_error:.4f} ({500 * self.reprojection_error:.1f} px at width 1000)"
        )
        verdict = "ok" if self.ok else "\n".join(f"- {p}" for p in self.problems)
        return f"{figures}\n{verdict}"


def infer_skeleton(
    adapter: Adapter,
    inputs_2d: Tensor,
    inputs_3d: Tensor,
    camera: Any,  # noqa: ANN401
) -> Skeleton:
    """The preset that a batch is in, from its joint count and, if need be, its symmetry.

    Human3.6M, MPI-INF-3DHP and COCO all have 17 joints: of the right one, left and right bones are
    equally long.

    Raises:
        PoseAugError: No preset has that many joints, or several fit.
    """
    count = adapter.num_joints(inputs_3d)
    presets = [s for s in SKELETONS.values() if s.num_joints == count]
    if not presets:
        raise PoseAugError(
            f"PoseAugHook.augment: no preset has {count} joints (inputs_3d is "
            f"{tuple(inputs_3d.shape)}); pass skeleton=Skeleton(...), see docs/conventions.md."
        )
    if len(presets) == 1:
        return presets[0]
    found = []
    for skeleton in presets:
        problem = adapter.check(inputs_2d, inputs_3d, camera, count)
        if problem:
            raise PoseAugError(f"PoseAugHook.augment: {problem}.")
        batch = adapter.decode(inputs_2d, inputs_3d, camera, skeleton)
        found.append((_asymmetry(batch.joints[batch.usable], skeleton), skeleton))
    found.sort(key=lambda pair: pair[0])
    (best, skeleton), (second, _) = found[:2]
    if best < _ASYMMETRIC and second > 2 * best:
        return skeleton
    raise PoseAugError(
        f"PoseAugHook.augment: {count} joints fit {', '.join(s.name for s in presets)}, and left "
        f"and right bones do not tell which (differences "
        f"{', '.join(f'{s.name} {a:.0%}' for a, s in found)}); pass skeleton='...'."
    )


def check_batch(
    adapter: Adapter,
    inputs_2d: Tensor,
    inputs_3d: Tensor,
    camera: Any,  # noqa: ANN401
    skeleton: Skeleton,
) -> BatchReport:
    """Read a batch's values (this syncs the device) and say in words what looks wrong."""
    problem = adapter.check(inputs_2d, inputs_3d, camera, skeleton.num_joints)
    if problem:
        raise PoseAugError(f"PoseAugHook.check_batch: {problem} (skeleton {skeleton.name!r}).")
    batch = adapter.decode(inputs_2d, inputs_3d, camera, skeleton)
    usable = batch.usable
    joints, keypoints = batch.joints[usable], batch.keypoints[usable]
    if not usable.any():
        return BatchReport(
            (
                "no sample is finite and in front of the camera: 3D must be in camera space, "
                "z forward, with the root's position where the adapter expects it",
            ),
            *[0.0] + [torch.nan] * 5,
        )
    projected = project_points(joints, batch.intrinsics[usable])
    report = BatchReport(
        (),
        usable.float().mean().item(),
        joints[:, :, skeleton.root, 2].median().item(),
        bone_lengths(joints_to_bones(joints, skeleton)).sum(-1).median().item(),
        _asymmetry(joints, skeleton),
        (keypoints.abs() <= 1).all(-1).float().mean().item(),
        (projected - keypoints).norm(dim=-1).median().item(),
    )
    return report._replace(problems=tuple(_problems(report, skeleton)))


def _problems(report: BatchReport, skeleton: Skeleton) -> list[str]:
    problems = []
    if report.usable_share < 1:
        problems.append(
            f"{1 - report.usable_share:.0%} of the samples are not finite or have joints behind "
            "the camera; they pass through unaugmented"
        )
    if report.body_size > 50:
        problems.append(
            f"bones are {report.body_size:.0f} m long together: these look like millimetres; pass "
            "adapter=PoseAdapter(metres_per_unit=0.001)"
        )
    elif not 1.5 < report.body_size < 15:
        problems.append(
            f"bones are {report.body_size:.2f} m long together, a person's are 3 to 6: wrong unit, "
            "or normalised poses"
        )
    if report.asymmetry > _ASYMMETRIC:
        problems.append(
            f"left and right bones differ by {report.asymmetry:.0%}: is the joint order that of "
            f"{skeleton.name!r} ({', '.join(skeleton.joints)})?"
        )
    if report.in_frame_share < 0.5:
        problems.append(
            f"only {report.in_frame_share:.0%} of the keypoints lie in [-1, 1]: are they pixels? "
            "Normalise them with normalize_screen_coordinates(pixels, width, height)"
        )
    elif report.reprojection_error > 0.05:
        problems.append(
            f"3D poses project {report.reprojection_error:.3f} away from their 2D (0.02 would be "
            "10 px of 1000): wrong camera for the sample, flipped 2D without flipped 3D, or the "
            "root's position is not where the adapter expects it (root='trajectory', 'absolute' "
            "or 'zeroed')"
        )
    return problems


def _asymmetry(joints: Tensor, skeleton: Skeleton) -> float:
    """Median over samples of the mean |length - mean of left and right| / that mean, times 2."""
    if not joints.shape[0]:
        return float("inf")
    lengths = bone_lengths(joints_to_bones(joints, skeleton))
    mean = per_bone(average_bone_lengths(joints, skeleton), skeleton)
    return (2 * (lengths - mean).abs() / mean).mean(-1).median().item()
