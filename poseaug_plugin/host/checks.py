"""Checks of a host's batch: which skeleton it is, and whether it is what the hook takes it for."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..augment.transforms import evenly_spaced, matching_frames, middle_frame
from ..body.bones import average_bone_lengths, bone_lengths, joints_to_bones, per_bone
from ..body.camera import project_points
from ..body.poses import CanonicalPoses, canonical_batch
from ..body.presets import SKELETONS
from ..body.skeleton import Skeleton
from ..errors import PoseAugError
from .adapter import Adapter

_ASYMMETRIC = 0.12  # difference of left and right bones that speaks against a joint order
_ENOUGH = 512  # samples that are looked at, at most


class BatchReport(NamedTuple):
    """The findings of `check_batch`; ``print(report)`` shows them."""

    problems: tuple[str, ...]  # in words; none where all is well
    camera_is_assumed: bool  # since none was given
    focal_length: float  # in use, normalised units
    usable_share: float = 0.0  # samples that are finite and in front of the camera
    root_depth: float = torch.nan  # median, metres
    body_size: float = torch.nan  # median sum of bone lengths, metres
    asymmetry: float = torch.nan  # median |left - right| / mean length of paired bones
    length_variation: float = torch.nan  # standard deviation / mean of the most variable bone
    detour: float = torch.nan  # bones together / shortest tree through the joints; 1 is a body
    knees_forward_share: float = torch.nan  # of bent knees
    upright_share: float = torch.nan  # of poses, the torso above the feet
    off_screen: str = ""  # what speaks against normalised screen coordinates, in words
    reprojection_error: float = torch.nan  # of projected 3D, normalised units, upper quartile
    fitting_focal_length: float = torch.nan  # with which 3D would project onto 2D best

    def __str__(self) -> str:
        assumed = " (assumed)" if self.camera_is_assumed else ""
        figures = (
            f"usable samples {self.usable_share:.0%}, root depth {self.root_depth:.2f} m\n"
            f"bones {self.body_size:.2f} m together, left/right difference {self.asymmetry:.1%}, "
            f"most variable bone {self.length_variation:.0%}, detour {self.detour:.2f}, "
            f"knees bend forward {self.knees_forward_share:.0%}\n"
            f"upright {self.upright_share:.0%}, reprojection error {self.reprojection_error:.4f} "
            f"({500 * self.reprojection_error:.1f} px at width 1000), "
            f"focal length {self.focal_length:.2f}{assumed}, "
            f"2D and 3D fit {self.fitting_focal_length:.2f}"
        )
        verdict = "\n".join(f"- {problem}" for problem in self.problems) or "ok"
        return f"{figures}\n{verdict}"


def infer_skeleton(
    adapter: Adapter, inputs_2d: Tensor, inputs_3d: Tensor, camera: Any, call: str = "augment"
) -> Skeleton:
    """The preset that a batch is in, from its joint count and, if need be, its symmetry.

    Of the right one, left and right bones are equally long. `PoseAugError` for none, or several.
    """
    count = adapter.num_joints(inputs_3d)
    presets = [s for s in SKELETONS.values() if s.num_joints == count]
    if not presets:
        raise PoseAugError(
            f"PoseAugHook.{call}: no preset has {count} joints (inputs_3d is "
            f"{tuple(inputs_3d.shape)}); pass skeleton=Skeleton(...), see docs/conventions.md."
        )
    if len(presets) == 1:
        return presets[0]
    found = []
    for skeleton in presets:
        batch = canonical_batch(adapter.decode(inputs_2d, inputs_3d, camera, skeleton))
        found.append((asymmetry(batch.joints[batch.usable], skeleton), skeleton))
    found.sort(key=lambda pair: pair[0])
    (best, skeleton), (second, _) = found[:2]
    if best < _ASYMMETRIC and second > 2 * best:
        return skeleton
    raise PoseAugError(
        f"PoseAugHook.{call}: {count} joints fit {', '.join(s.name for s in presets)}, and left "
        f"and right bones do not tell which (differences "
        f"{', '.join(f'{s.name} {a:.0%}' for a, s in found)}); pass skeleton='...'."
    )


def check_batch(
    poses: CanonicalPoses, skeleton: Skeleton, has_camera: bool, target_frame: Callable[[int], int]
) -> BatchReport:
    """Read a batch's values (this syncs the device) and say in words what looks wrong."""
    batch = canonical_batch(evenly_spaced(poses, len(poses.joints), _ENOUGH))
    usable = batch.usable
    joints, keypoints, intrinsics = (field[usable] for field in batch[:3])
    keypoints = matching_frames(keypoints, joints.shape[1], target_frame(keypoints.shape[1]))
    shortest = poses.intrinsics[:, :2].min().item()
    if shortest <= 0 or not usable.any():
        problem = (
            "no sample is finite and in front of the camera: 3D must be in camera space, z "
            "forward, with the root's position where the adapter expects it; 2D not in pixels"
        )
        if shortest <= 0:
            problem = f"focal lengths must be above 0 (for no camera give None), got {shortest:g}"
        return BatchReport((problem,), not has_camera, shortest)
    errors = (project_points(joints, intrinsics) - keypoints).norm(dim=-1).flatten(1)
    bones = bone_lengths(joints_to_bones(joints, skeleton))
    # By least squares, the lens left out.
    rays, offsets = joints[..., :2] / joints[..., 2:], keypoints - intrinsics[:, None, None, 2:4]
    fits = (offsets * rays).sum((1, 2, 3)) / rays.square().sum((1, 2, 3)).clamp(min=1e-12)
    report = BatchReport(
        problems=(),
        camera_is_assumed=not has_camera,
        usable_share=usable.float().mean().item(),
        root_depth=joints[:, :, skeleton.root, 2].median().item(),
        body_size=bones.sum(-1).median().item(),
        asymmetry=asymmetry(joints, skeleton),
        length_variation=length_variation(joints, skeleton),
        detour=detour(joints, skeleton) if len(joints) >= 16 else torch.nan,
        knees_forward_share=knees_forward_share(joints, skeleton),
        upright_share=upright_share(joints, skeleton),
        off_screen=_off_screen(keypoints, skeleton),
        reprojection_error=errors.median(1).values.quantile(0.75).item(),
        focal_length=intrinsics[:, :2].mean().item(),
        fitting_focal_length=fits.median().item(),
    )
    return report._replace(problems=tuple(_problems(report, skeleton)))


def _problems(report: BatchReport, skeleton: Skeleton) -> Iterator[str]:
    if report.usable_share < 0.9:
        yield (
            f"{1 - report.usable_share:.0%} of the samples are not finite or have joints behind "
            "the camera; they pass through unaugmented"
        )
    if report.body_size > 50:
        yield (
            f"bones are {report.body_size:.0f} m long together: these look like millimetres; pass "
            "adapter=PoseAdapter(metres_per_unit=0.001)"
        )
    elif skeleton in SKELETONS.values() and not 2.5 < report.body_size < 8:
        yield (
            f"bones are {report.body_size:.2f} m long together, a person's are 3 to 6: wrong unit, "
            "or normalised poses"
        )
    disorder = ""
    if report.asymmetry > _ASYMMETRIC:
        disorder = f"left and right bones differ by {report.asymmetry:.0%}"
    # People differ in a bone's length by less; joints that no bone connects, by more.
    elif report.length_variation > 0.35:
        disorder = f"a bone's length varies by {report.length_variation:.0%} over the batch"
    elif report.detour > 1.2:  # Human3.6M's own joints come to 1.1
        times = f"{report.detour:.2f} times"
        disorder = f"bones are {times} as long as the shortest tree through the joints"
    if disorder:
        order = f"{skeleton.name!r} ({', '.join(skeleton.joints)})"
        yield f"{disorder}: is the joint order that of {order}?"
    elif report.knees_forward_share < 0.2:
        yield (
            f"only {report.knees_forward_share:.0%} of the bent knees bend forward: left and right "
            "joints are swapped, or 3D poses mirrored without swapping them"
        )
    if report.upright_share < 0.2:
        yield f"only {report.upright_share:.0%} of the poses stand upright: y must point down"
    error, focal, fit = report.reprojection_error, report.focal_length, report.fitting_focal_length
    if report.off_screen:
        yield (
            f"2D poses {report.off_screen}: are they pixels? Normalise them with "
            "normalize_screen_coordinates(pixels, width, height)"
        )
    elif focal > 20:
        yield f"a focal length of {focal:.0f} looks like pixels; divide by the width, times 2"
    elif report.camera_is_assumed and error > 0.01 and abs(fit / focal - 1) > 0.03:
        yield (
            f"no camera was given, so a focal length of {focal:.2f} is assumed, but 2D and 3D fit "
            f"{fit:.2f} (3D projects {error:.3f} away from 2D): pass the batch's (B, 9) intrinsics"
        )
    elif error > (0.05 if report.camera_is_assumed else 0.03):
        yield (
            f"3D poses project {error:.3f} away from their 2D (0.02 would be 10 px of 1000): wrong "
            "camera for the sample, flips without the camera's, 2D cut out by a box, or the root's "
            "position is not where the adapter expects it (root='trajectory', 'absolute' or "
            "'zeroed')"
        )


def _off_screen(keypoints: Tensor, skeleton: Skeleton) -> str:
    """What speaks against 2D (N, T, J, 2) being normalised to the picture; empty for nothing."""
    poses = keypoints[:, middle_frame(keypoints.shape[1])]
    if (poses.mean(1).abs() > 1).any(1).float().mean() > 0.1:
        return "lie outside of [-1, 1]"
    if len(poses) < 16 or (poses - poses[:, :1]).std(0).max() < 0.01:  # they do not vary
        return ""
    if poses.min() >= 0:
        return "have nothing left of the picture's centre or above it, which is 0"
    size = (poses.amax(1) - poses.amin(1)).amax(1)
    variety = torch.stack([size.std() / size.mean(), poses[:, skeleton.root].std(0).max()])
    return "are all of one size or at one place, as if cut out" if variety.min() < 1e-3 else ""


def asymmetry(joints: Tensor, skeleton: Skeleton) -> float:
    """Mean |left - right| / mean length of paired bones, median over (N, T, J, 3); Inf for none."""
    if not joints.shape[0]:
        return float("inf")
    lengths = bone_lengths(joints_to_bones(joints, skeleton))
    mean = per_bone(average_bone_lengths(joints, skeleton), skeleton)
    return (2 * (lengths - mean).abs() / mean).mean(-1).median().item()


def length_variation(joints: Tensor, skeleton: Skeleton) -> float:
    """Standard deviation / mean of the most variable bone of (N, T, J, 3); NaN for N below 16."""
    if joints.shape[0] < 16:
        return torch.nan
    lengths = bone_lengths(joints_to_bones(joints[:, middle_frame(joints.shape[1])], skeleton))
    return (lengths.std(0) / lengths.mean(0)).max().item()


def detour(joints: Tensor, skeleton: Skeleton) -> float:
    """Length of the skeleton / length of the shortest tree through its joints (N, T, J, 3).

    A body's bones are nearly that tree; an order that mistakes shoulders for hips runs to and fro.
    """
    distances = torch.cdist(joints, joints).flatten(0, 1).median(0).values.tolist()
    bones = zip(skeleton.bone_children, skeleton.bone_parents, strict=True)
    own = sum(distances[child][parent] for child, parent in bones)
    tree, shortest = [skeleton.root], 0.0
    while len(tree) < len(distances):  # Prim's algorithm; J is two dozen
        outside = set(range(len(distances))).difference(tree)
        length, nearest = min((distances[a][b], b) for a in tree for b in outside)
        shortest += length
        tree.append(nearest)
    return own / max(shortest, 1e-9)


def knees_forward_share(joints: Tensor, skeleton: Skeleton) -> float:
    """Of bent knees, the share that bends to the front; 1 - that of a mirrored body.

    To the front is left x up, with parts named left_leg and right_leg from the hip down, and up
    from the hips to the other joints. NaN for skeletons without such parts, or without bent knees.
    """
    parts = dict(skeleton.part_joints)
    legs = [parts.get(f"{side}_leg", ()) for side in ("left", "right")]
    if any(len(leg) < 3 for leg in legs):
        return torch.nan
    hips, knees, ankles = (joints[..., [leg[i] for leg in legs], :] for i in range(3))
    above = [j for j in range(skeleton.num_joints) if j not in (*legs[0], *legs[1])]
    left, right = hips.unbind(-2)
    front = torch.linalg.cross(left - right, joints[..., above, :].mean(-2) - (left + right) / 2)
    bend = knees - (hips + ankles) / 2
    bent = bend.norm(dim=-1) > 0.05 * (hips - ankles).norm(dim=-1)  # straighter it does not tell
    return ((bend * front.unsqueeze(-2)).sum(-1) > 0)[bent].float().mean().item()


def upright_share(joints: Tensor, skeleton: Skeleton) -> float:
    """Of poses, the share whose other joints are above the legs' ends; NaN without legs."""
    legs = [part for name, part in skeleton.part_joints if name.endswith("_leg")]
    above = [j for j in range(skeleton.num_joints) if not any(j in leg for leg in legs)]
    if not legs or not above:
        return torch.nan
    feet = joints[..., [leg[-1] for leg in legs], 1]
    return (feet.mean(-1) > joints[..., above, 1].mean(-1)).float().mean().item()
