"""The closed loop: people of the place where the estimator will work, as its answers show them."""

import logging
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ..body.bones import (
    average_bone_lengths,
    bone_directions,
    bone_lengths,
    bones_to_joints,
    joints_to_bones,
    per_bone,
    root_relative,
    skeleton_tables,
)
from ..body.camera import Z_NEAR, solve_root, undistort_points
from ..body.poses import CanonicalBatch
from ..body.skeleton import Skeleton
from ..errors import PoseAugError

_LOG = logging.getLogger("poseaug_plugin")

_FEWEST = 64  # frames that show a body
_CAPACITY = 4096  # frames of answers that are kept
_FEWEST_ANSWERS = 16  # that show a body's lengths
_GROWTH = 1.25  # of the number of updates, until answers are asked for again
_BODY_BOUND, _SIZE_BOUND = 0.4, 0.1  # of a bone's length, of the body's size
_CHANGE_BOUND = 0.06  # square metres, over all bones: answers that change by more are left out
_SCALES = (0.85, 0.9, 0.95, 1.0, 1.05, 1.1, 1.15)
# Shares of what is augmented: poses of the target, and its bones on other poses.
_POSED, _BODIED = 0.75, 0.7


def on_their_rays(answers: Tensor, keypoints: Tensor, intrinsics: Tensor) -> tuple[Tensor, Tensor]:
    """An estimator's depths, moved so that they are seen exactly at the keypoints.

    Root-relative answers (N, J, 3), metres, are put where they fit their keypoints (N, J, 2) best.
    Gives joints (N, J, 3) in camera space, and which are known (N,).
    """
    root, found = solve_root(keypoints, answers, intrinsics)
    depth = answers[..., 2:] + root[:, None, 2:]
    joints = torch.cat([undistort_points(keypoints, intrinsics) * depth, depth], -1)
    return joints, found & (depth > Z_NEAR).flatten(1).all(1) & joints.isfinite().flatten(1).all(1)


def lengths_across(joints: Tensor, skeleton: Skeleton) -> Tensor:
    """(groups,) bone lengths of one body, each from the quarter of poses in which it lies across.

    Across the view 2D shows how long a bone is, whatever an estimator says of its depth. Joints (N,
    J, 3) are of `on_their_rays`; all are brought to their median size.
    """
    bones = joints_to_bones(joints, skeleton)
    lengths = bone_lengths(bones)
    steepness, size = bones[..., 2].abs() / lengths, lengths.sum(-1, keepdim=True)
    lengths = lengths * (size.median() / size)
    groups, found = skeleton_tables(skeleton, joints.device, joints.dtype).groups, []
    for group in range(skeleton.num_bone_length_groups):
        of_group, steep = lengths[:, groups == group], steepness[:, groups == group]
        found.append(of_group[steep <= steep.quantile(0.25)].median())
    return torch.stack(found)


def with_lengths_on_rays(
    joints: Tensor, lengths: Tensor, skeleton: Skeleton
) -> tuple[Tensor, Tensor]:
    """The poses of a body with known bone ``lengths`` (bones,) that are seen in the same 2D.

    A bone of known length that is seen in 2D leaves two depths for its far end (Taylor, CVPR 2000).
    The given joints (N, T, J, 3) say which; and of some sizes that one is taken which changes them
    least, one for all T frames of a sequence. Gives joints (N, T, J, 3), and by how much they had
    to change, squared metres (N,).
    """
    size = lengths.sum() / bone_lengths(joints_to_bones(joints, skeleton)).sum(-1).mean(1)
    joints = joints * size[:, None, None, None]
    depths = joints_to_bones(joints, skeleton)[..., 2]
    best, least = joints, torch.full_like(size, torch.inf)
    for scale in _SCALES:
        made = _follow_rays(joints * scale, lengths, skeleton)
        bones = joints_to_bones(made, skeleton)
        missing = bone_lengths(bones) - lengths
        change = ((bones[..., 2] - depths).square() + 4 * missing.square()).sum(-1).mean(1)
        best = torch.where((change < least)[:, None, None, None], made, best)
        least = torch.minimum(change, least)
    return best, least


def _follow_rays(joints: Tensor, lengths: Tensor, skeleton: Skeleton) -> Tensor:
    """From the root outwards, put every joint on its ray, a bone's length away from its parent."""
    rays, made = joints / joints[..., 2:], list(joints.unbind(-2))
    outwards = sorted(
        zip(skeleton.bone_children, skeleton.bone_parents, lengths, strict=True),
        key=lambda bone: len(skeleton.bones_to_root(bone[0])),
    )
    for child, parent, length in outwards:
        ray, start = rays[..., child, :], made[parent]
        # |depth * ray - start| = length; where the bone is too short for that, as near as it gets.
        squared, along = ray.square().sum(-1), (ray * start).sum(-1)
        inside = along.square() - squared * (start.square().sum(-1) - length.square())
        reach = inside.clamp(min=0).sqrt()
        nearer, further = (along - reach) / squared, (along + reach) / squared
        wanted = start[..., 2] + joints[..., child, 2] - joints[..., parent, 2]
        depth = torch.where(wanted < (nearer + further) / 2, nearer, further)
        made[child] = ray * depth.unsqueeze(-1)
    return torch.stack(made, -2)


def _smooth(joints: Tensor) -> Tensor:
    """Means over five frames of sequences (N, T, J, 3); a single frame as it is."""
    if joints.shape[1] == 1:
        return joints
    values = nn.functional.pad(joints.flatten(2).mT, (2, 2), mode="replicate")
    return nn.functional.avg_pool1d(values, 5, stride=1).mT.unflatten(2, joints.shape[2:])


class TargetKeypoints:
    """2D poses of the place where the estimator will work, without labels, frame after frame.

    Args:
        keypoints: (frames, J, 2), or a sequence of such, normalised as the estimator's inputs are.
            Frames that are not finite are left out.
        camera: (9,) intrinsics for all, or one each for every sequence or every frame; None for
            those of the training.

    Raises `PoseAugError` for other shapes, pixels, or fewer than 64 finite frames.
    """

    def __init__(self, keypoints: Any, camera: Any = None) -> None:
        is_one = getattr(keypoints, "ndim", 0) == 3
        try:
            given = [keypoints] if is_one else list(keypoints)
            sequences = [torch.as_tensor(x, dtype=torch.float32, device="cpu") for x in given]
        except (TypeError, ValueError, RuntimeError):
            sequences = []
        shapes = {tuple(s.shape[1:]) if s.dim() == 3 else () for s in sequences}
        joined = torch.cat(sequences).detach() if len(shapes) == 1 else torch.empty(0)
        if joined.dim() != 3 or joined.shape[2] != 2:
            got = [tuple(s.shape) for s in sequences[:3]] or f"{type(keypoints).__name__} of others"
            raise PoseAugError(
                "target_2d must be (frames, joints, 2) or a list of such sequences of one "
                f"skeleton, got {got}."
            )
        lengths = torch.tensor([len(s) for s in sequences])
        finite = joined.isfinite().flatten(1).all(1)
        # Where frames are missing, another sequence begins.
        begins = torch.zeros(len(joined), dtype=torch.bool)
        begins[lengths.cumsum(0)[:-1]] = True
        begins[1:] |= ~finite[:-1]
        self.keypoints, self.left_out = joined[finite], int((~finite).sum())
        self.intrinsics = None if camera is None else _per_frame(camera, lengths)[finite]
        counts = begins.cumsum(0)[finite].unique_consecutive(return_counts=True)[1]
        ends = counts.cumsum(0)
        self.first, self.last = (x.repeat_interleave(counts) for x in (ends - counts, ends - 1))
        if len(self.keypoints) < _FEWEST:
            raise PoseAugError(
                f"target_2d must have {_FEWEST} finite frames or more, got {len(self.keypoints)}."
            )
        outside = (self.keypoints.abs() > 1.5).any(-1).float().mean()
        if outside > 0.5:
            raise PoseAugError(
                "target_2d must be normalised like the estimator's inputs, within [-1, 1] over the "
                f"image width, got {outside:.0%} of the keypoints outside of +-1.5: pixels? "
                "Normalise them with normalize_screen_coordinates(pixels, width, height)."
            )


def _per_frame(camera: Any, lengths: Tensor) -> Tensor:
    """(frames, 9) intrinsics; `PoseAugError` for what is none."""
    frames = int(lengths.sum())
    try:
        given = camera if isinstance(camera, Tensor) else np.asarray(camera, np.float32)
        rows = torch.as_tensor(given, dtype=torch.float32, device="cpu").detach()
    except (TypeError, ValueError):
        rows = torch.empty(0)
    if rows.shape == (len(lengths), 9):
        rows = rows.repeat_interleave(lengths, 0)
    if rows.shape not in ((9,), (frames, 9)) or not (rows[..., :2] > 0).all():
        raise PoseAugError(
            f"target_camera must be (9,) intrinsics, or one each for the {len(lengths)} sequences "
            f"or the {frames} frames, with focal lengths above 0, got {tuple(rows.shape)}."
        )
    return rows.expand(frames, 9)


class Answers(NamedTuple):
    """An estimator's answers about the target, in runs of frames out of one sequence each."""

    lengths: Tensor  # (2, groups): bone lengths there / those of training; and these, metres
    joints: Tensor  # (N, T, J, 3) of `on_their_rays`
    intrinsics: Tensor  # (N, T, 9)
    found: Tensor  # (N, T)


def _run_length(frames: int) -> int:
    """How many frames of a sequence the answers are of, for windows of some frames."""
    return 1 if frames == 1 else 4 * frames


class ClosedLoop(nn.Module):
    """Gives a share of the poses to augment the bodies, poses and views of the target.

    From time to time the estimator is asked for poses of the target's 2D. Its answers are put on
    the rays of their keypoints. Then bones that lie across the view show how long they are, and
    bones of known length show how deep they reach. What comes out is better than the answers; what
    had to change much is left out. All of it is bent and turned like any pose: taught as it stands
    it let estimators teach themselves their own mistakes (docs/experiments.md, 44).

    Critics and controller see nothing of this: an update that learns has the batch's own poses.
    """

    first_update = 1000  # in which answers are asked for
    ratios: Tensor  # (groups,) bone lengths of the target / the training's
    size: Tensor  # 0-d, of the target's body / the training's; guessed once
    poses: Tensor  # (frames, J, 3) camera space, metres; runs that are known come first
    intrinsics: Tensor  # (frames, 9) of the cameras that see them
    known: Tensor  # 0-d, how many runs are known
    share: Tensor  # 0-d, how many are known of those that were asked for; 0 before the first
    asked: Tensor  # 0-d, how often answers were asked for

    def __init__(self, target: TargetKeypoints, skeleton: Skeleton) -> None:
        super().__init__()
        if target.keypoints.shape[1] != skeleton.num_joints:
            raise PoseAugError(
                f"target_2d must have {skeleton.num_joints} joints for skeleton "
                f"{skeleton.name!r}, got {target.keypoints.shape[1]}."
            )
        self.target, self.skeleton = target, skeleton
        self.register_buffer("ratios", torch.ones(skeleton.num_bone_length_groups))
        self.register_buffer("poses", torch.zeros(_CAPACITY, skeleton.num_joints, 3))
        self.register_buffer("intrinsics", torch.zeros(_CAPACITY, 9))
        for name in ("size", "known", "share", "asked"):
            self.register_buffer(name, torch.zeros(()))

    def is_due(self, num_updates: int) -> bool:
        """Whether to ask: after the first update for that, and each time a quarter later."""
        step = round(math.log(max(num_updates, 1) / self.first_update, _GROWTH))
        return step >= 0 and round(self.first_update * _GROWTH**step) == num_updates

    @torch.no_grad()
    def look(
        self,
        ask: Callable[[Tensor], Tensor],
        batch: CanonicalBatch,
        target_frame: int,
        generator: torch.Generator,
    ) -> Answers | None:
        """Ask the estimator about the target; None where its answers show nothing.

        ``ask`` gives its poses (N, T or 1, J, 3), metres, to keypoints (N, T, J, 2). ``batch`` is
        the training's, before augmentation; of several frames that at ``target_frame`` is lifted.
        """
        skeleton, device = self.skeleton, generator.device
        batch = CanonicalBatch(*(field[batch.usable] for field in batch))
        size, frames = batch.keypoints.shape[:2]
        if not size or _run_length(frames) > _CAPACITY:
            return None
        runs = self._runs(frames, generator)
        camera = self._cameras(runs, batch.intrinsics)
        everything, lifted = self.target.keypoints.to(device), slice(None)
        windows = runs.reshape(-1, frames)
        if frames > 1 and ask(everything[windows[:1]]).shape[1] == 1:
            offsets = torch.arange(frames, device=device) - target_frame
            windows = self._within_sequence(runs.reshape(-1, 1), offsets)
            lifted = slice(target_frame, target_frame + 1)

        def seen(keypoints: Tensor, intrinsics: Tensor) -> tuple[Tensor, Tensor]:
            answers = torch.cat([ask(part) for part in keypoints.split(size)]).flatten(0, 1)
            keypoints = keypoints[:, lifted].flatten(0, 1)
            intrinsics = intrinsics.repeat_interleave(len(keypoints) // len(intrinsics), 0)
            return on_their_rays(root_relative(answers, skeleton), keypoints, intrinsics)

        theirs, found = seen(everything[windows], camera)
        ours, known = seen(batch.keypoints, batch.intrinsics)
        if min(int(found.sum()), int(known.sum())) < _FEWEST_ANSWERS:
            return None
        own = average_bone_lengths(batch.joints, skeleton).flatten(0, -2).median(0).values
        ratios = lengths_across(theirs[found], skeleton) / lengths_across(ours[known], skeleton)
        theirs, camera = theirs.unflatten(0, runs.shape), camera.unflatten(0, runs.shape)
        return Answers(torch.stack([ratios, own]), theirs, camera, found.unflatten(0, runs.shape))

    def figures(self, answers: Answers | None) -> tuple[Tensor, Tensor]:
        """What processes average, logarithms (2, groups), and of how many answers that is."""
        if answers is None:
            return torch.zeros_like(self.ratios).expand(2, -1), self.asked.new_zeros(())
        return answers.lengths.log(), answers.found.sum().to(self.asked.dtype)

    @torch.no_grad()
    def take(self, figures: Tensor, weight: Tensor, answers: Answers | None) -> None:
        """Take over averaged `figures`, and this process's answers; nothing of weight 0."""
        if not weight:
            return
        measured, source = figures.exp()
        lengths = per_bone(source, self.skeleton)
        size = per_bone(measured, self.skeleton) @ lengths / lengths.sum()
        # The estimator is right about size more often than not; asked again, it would answer what
        # it was taught.
        guess = size.clamp(1 - _SIZE_BOUND, 1 + _SIZE_BOUND)
        self.size.copy_(torch.where(self.asked == 0, guess, self.size))
        ratios = measured * (self.size / size)
        self.ratios.copy_(ratios.clamp(1 - _BODY_BOUND, 1 + _BODY_BOUND))
        if answers is not None:
            lengths = per_bone(source * self.ratios, self.skeleton)
            poses, change = with_lengths_on_rays(answers.joints, lengths, self.skeleton)
            is_known = answers.found.all(1) & (change < _CHANGE_BOUND)
            self._keep(_smooth(poses), answers.intrinsics, is_known)
        self.asked += 1
        _LOG.info("PoseAugHook: %s", self)

    def _keep(self, poses: Tensor, intrinsics: Tensor, is_known: Tensor) -> None:
        """Keep runs (N, T, J, 3) and their frames' cameras; those that are known (N,) first."""
        order = is_known.to(torch.uint8).argsort(descending=True, stable=True)
        poses, camera = (x[order].flatten(0, 1) for x in (poses, intrinsics))
        self.poses[: len(poses)], self.intrinsics[: len(poses)] = poses.nan_to_num(), camera
        self.known.copy_(is_known.sum())
        self.share.copy_(is_known.float().mean())

    def _runs(self, frames: int, generator: torch.Generator) -> Tensor:
        """(runs, length) places of target frames, each run out of one sequence."""
        device, length = generator.device, _run_length(frames)
        draws = torch.rand(_CAPACITY // length, 1, device=device, generator=generator)
        places = (draws * len(self.target.keypoints)).long()
        return self._within_sequence(places, torch.arange(length, device=device))

    def _within_sequence(self, places: Tensor, offsets: Tensor) -> Tensor:
        """(N, k) places around ``places`` (N, 1); beyond its ends a sequence stands still."""
        first, last = (x.to(places.device)[places] for x in (self.target.first, self.target.last))
        return (places + offsets).clamp(first, last)

    def _cameras(self, runs: Tensor, own: Tensor) -> Tensor:
        """(frames, 9) intrinsics of the frames of all runs; the training's where none are known."""
        places = runs.flatten()
        if self.target.intrinsics is None:
            return own[torch.arange(len(places), device=own.device) // runs.shape[1] % len(own)]
        return self.target.intrinsics.to(own.device)[places]

    def mix_in(self, chosen: CanonicalBatch, generator: torch.Generator) -> CanonicalBatch:
        """Exchange poses and bodies of a share of ``chosen``."""
        joints, skeleton = chosen.joints, self.skeleton
        size, frames = joints.shape[:2]
        which, when, *draws = torch.rand(4, size, device=joints.device, generator=generator)
        length = _run_length(frames)
        first = (which * self.known).long() * length + (when * (length - frames + 1)).long()
        first = first.clamp(0, _CAPACITY - frames)
        theirs = self.poses[first[:, None] + torch.arange(frames, device=joints.device)]
        is_posed = draws[0] < _POSED * self.share
        is_bodied = is_posed | (draws[1] < _BODIED * (self.share > 0))
        bones, posed = joints_to_bones(joints, skeleton), is_posed[:, None, None, None]
        lengths = bone_lengths(bones).unsqueeze(-1)
        others = bone_directions(joints_to_bones(theirs, skeleton))
        directions = torch.where(posed, others, bones / lengths)
        ratios = per_bone(self.ratios, skeleton).where(is_bodied[:, None], 1.0)
        root = torch.where(posed, theirs, joints)[:, :, skeleton.root]
        bones = directions * lengths * ratios[:, None, :, None]
        camera = torch.where(is_posed[:, None], self.intrinsics[first], chosen.intrinsics)
        return chosen._replace(joints=bones_to_joints(bones, skeleton, root), intrinsics=camera)

    def __str__(self) -> str:
        if not self.asked:
            return "the target is not known yet"
        names = [self.skeleton.joints[c].split("_")[-1] for c in self.skeleton.bone_children]
        ratios = dict(zip(names, per_bone(self.ratios, self.skeleton).tolist(), strict=True))
        lengths = ", ".join(f"{name} {ratio:.2f}" for name, ratio in ratios.items())
        left_out = f" ({self.target.left_out} frames are not finite)" * bool(self.target.left_out)
        return (
            f"bones of the people there, by the joint they lead to: {lengths} of yours; "
            f"{self.share:.0%} of the estimator's answers there can be learned from{left_out}"
        )
