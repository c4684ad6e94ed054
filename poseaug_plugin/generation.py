"""`BatchAugmenter`: from a batch to an augmented one."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .adapters import CanonicalBatch, CanonicalPoses, canonical_batch
from .augmentation import (
    AugmentationParameters,
    AugmentedPoses,
    apply_augmentation,
    bone_angle_change,
)
from .camera import Z_NEAR, in_view, project_points, with_focal_ratio
from .config import PoseAugConfig
from .execution import Execution
from .hardness import HardnessPredictor
from .isolation import unchanged_buffers
from .objectives import Generated
from .placement import place_as_seen
from .policy import Policy
from .skeleton import Skeleton
from .source import PoseWindows
from .windows import middle_frame, one_frame


def evenly_spaced(available: int, wanted: int | None, device: torch.device) -> Tensor | None:
    """Indices (wanted,) of so many samples out of a batch; None if that is all of them."""
    if wanted is None or available <= wanted:
        return None
    return torch.arange(wanted, device=device) * available // wanted


class Draft(NamedTuple):
    """What an augmentation is made of: the same draft gives the same poses."""

    poses: CanonicalBatch  # (B, ...) what is augmented
    noise: Tensor  # (B, noise_size) the policy's
    keeps_cameras: bool  # whatever the focal ratio is
    judged_frame: Tensor | None  # (B,) which frame the critics see; None for T = 1
    pictures: Tensor | None  # (B, J, 2) 2D poses to be placed like; None: as the policy says


class Made(NamedTuple):
    """What a draft becomes."""

    parameters: AugmentationParameters
    poses: AugmentedPoses
    keypoints: Tensor  # (B, T, J, 2) projection of the moved poses
    seen_by: Tensor  # (B, 9) their cameras' intrinsics


class Augmented(NamedTuple):
    """An augmented batch: what gets out, and what the update needs; nothing carries a graph."""

    joints: Tensor  # (N, T or 1, J, 3) whole batch as it gets out, where 3D is known
    keypoints: Tensor  # (N, T, J, 2) likewise, all frames
    target: int  # the frame of the window that ``joints`` is, where it is one of several
    rows: Tensor  # (k,) which samples of the original batch were augmented
    places: Tensor  # (k,) where they are in this one
    valid: Tensor  # (k,) bool: the augmented pose got out; else the original did
    intrinsics: Tensor  # (k, 9) of the cameras that see the augmented poses
    is_augmented: Tensor  # (N,) bool
    usable: Tensor  # (N,) bool
    draft: Draft  # of those that the update learns from, at most ``update_batch``
    made: Made | None  # likewise, where the update needs no graph; else it makes them again


def _samples(values: Any, rows: Tensor | None) -> Any:  # noqa: ANN401
    """Some samples out of every tensor of a (nested) tuple; None for all of them."""
    if rows is None:
        return values
    if isinstance(values, Tensor):
        return values.index_select(0, rows)
    if isinstance(values, tuple):
        return type(values)(*(_samples(value, rows) for value in values))
    return values


def detached(values: Any) -> Any:  # noqa: ANN401
    """A (nested) tuple with every tensor of it cut off its graph."""
    if isinstance(values, Tensor):
        return values.detach()
    if isinstance(values, tuple):
        return type(values)(*(detached(value) for value in values))
    return values


def matching_frames(poses: Tensor, frames: int, target: int) -> Tensor:
    """Of (B, T, ...) the one target frame, where only that is asked for; else all of them."""
    return poses[:, target : target + 1] if frames == 1 < poses.shape[1] else poses


class BatchAugmenter:
    """Augments a share of a batch, or appends an augmented copy of all of it.

    Args:
        policy: Draws the augmentations.
        predictor: Predicts how hard a pose is; None where nobody asks.
        skeleton: The tree.
        config: Options.
        execution: Does the arithmetic, and has the random stream, on the device of the batches.
        windows: Where windows to augment come from, if not from the batch.
        pictures: (N, J, 2) 2D poses whose places are taken; None leaves that to the policy.
    """

    def __init__(
        self,
        policy: Policy,
        predictor: HardnessPredictor | None,
        skeleton: Skeleton,
        config: PoseAugConfig,
        execution: Execution,
        windows: PoseWindows | None = None,
        pictures: Tensor | None = None,
    ) -> None:
        self.policy = policy
        self.predictor = predictor
        self.skeleton = skeleton
        self.config = config
        self.execution, self.generator = execution, execution.generator
        self.windows = windows
        self.pictures = pictures
        self.replaces = config.mix == "replace"

    def count_of(self, batch_size: int) -> int:
        """How many samples of a batch are augmented."""
        return round(self.config.share * batch_size) if self.replaces else batch_size

    def augment(
        self, poses: CanonicalPoses, keeps_cameras: bool = True, keeps_made: bool = False
    ) -> Augmented:
        """Replace a share of the batch, or append an augmented copy, as the options say.

        Args:
            poses: The host's.
            keeps_cameras: Leave focal lengths as they are, for a host who would not know.
            keeps_made: Keep the poses for an update in which the policy does not learn.
        """
        batch = canonical_batch(poses)
        size, frames = batch.keypoints.shape[:2]
        count = self.count_of(size)
        device = batch.joints.device
        order = torch.rand(size, device=device, generator=self.generator).argsort()
        rows = order[:count] if self.replaces else torch.arange(size, device=device)
        if self.windows is None:
            chosen = CanonicalBatch(*(field[rows] for field in batch))
        else:
            chosen = self.windows.sample(count, frames, self.generator)
        # Without a graph, which would be kept through the user's own forward and backward pass;
        # the update makes the same poses again with one. (Thinned, a draft keeps its bodies and
        # views, but places are drawn from the poses that are left.)
        with torch.no_grad(), unchanged_buffers(self.policy):
            draft = self.draw(chosen, keeps_cameras)
            return self.execution.compute(self._augmented, batch, rows, draft, keeps_made)

    def _augmented(
        self, batch: CanonicalBatch, rows: Tensor, draft: Draft, keeps_made: bool
    ) -> Augmented:
        size, frames = batch.keypoints.shape[:2]
        target = self.target_frame(frames)
        made = self.make(draft)
        valid = batch.usable[rows] & self._valid(
            made.poses.moved, made.keypoints, made.parameters, made.seen_by
        )
        keep = valid[:, None, None, None]
        moved = matching_frames(made.poses.moved, batch.joints.shape[1], target)
        joints = torch.where(keep, moved, batch.joints[rows])
        keypoints = torch.where(keep, made.keypoints, batch.keypoints[rows])
        if self.replaces:
            places = rows
            joints = batch.joints.index_copy(0, rows, joints)
            keypoints = batch.keypoints.index_copy(0, rows, keypoints)
            is_augmented = torch.zeros_like(batch.usable).index_copy(0, rows, valid)
            usable = batch.usable
        else:
            places = rows + size
            joints = torch.cat([batch.joints, joints])
            keypoints = torch.cat([batch.keypoints, keypoints])
            is_augmented = torch.cat([torch.zeros_like(valid), valid])
            usable = batch.usable.repeat(2)
        learned_from = evenly_spaced(rows.shape[0], self.config.update_batch, rows.device)
        return Augmented(
            *(joints, keypoints, target, rows, places, valid, made.seen_by),
            *(is_augmented, usable, _samples(draft, learned_from)),
            _samples(made, learned_from) if keeps_made else None,
        )

    def target_frame(self, frames: int) -> int:
        """The frame of a window that stands for it: the one to lift, where it is one."""
        if self.windows is None:
            return middle_frame(frames)
        return self.windows.source.target_frame(frames)

    def draw(self, batch: CanonicalBatch, keeps_cameras: bool = True) -> Draft:
        """Draw the noise of an augmentation."""
        device = batch.joints.device
        size, frames = batch.joints.shape[:2]
        noise = torch.randn(size, self.policy.noise_size, device=device, generator=self.generator)
        judged = None
        if frames > 1:
            draws = torch.rand(size, device=device, generator=self.generator)
            judged = (draws * frames).long().clamp(max=frames - 1)
        pictures = None
        if self.pictures is not None:
            draws = torch.rand(size, device=device, generator=self.generator)
            available = self.pictures.shape[0]
            pictures = self.pictures[(draws * available).long().clamp(max=available - 1)]
        return Draft(batch, noise, keeps_cameras, judged, pictures)

    def make(self, draft: Draft) -> Made:
        """Augment every sample, attached to the policy's graph where gradients are enabled."""
        batch = draft.poses
        # As new tuples, here and below: torch.compile, at least up to 2.11, cannot return what
        # `_replace` made, as a policy of the user's may have.
        parameters = AugmentationParameters(*self.policy(batch.joints, draft.noise))
        poses = apply_augmentation(batch.joints, parameters, self.skeleton)
        seen_by = batch.intrinsics
        if not draft.keeps_cameras:
            seen_by = with_focal_ratio(seen_by, parameters.focal_ratio)
        if draft.pictures is not None:
            parameters, poses = self._placed(parameters, poses, draft.pictures, seen_by)
        keypoints = project_points(poses.moved, seen_by, clamp_rays=self.config.clamp_rays)
        return Made(parameters, poses, keypoints, seen_by)

    def _placed(
        self,
        parameters: AugmentationParameters,
        poses: AugmentedPoses,
        pictures: Tensor,
        seen_by: Tensor,
    ) -> tuple[AugmentationParameters, AugmentedPoses]:
        """Put where the pictures' people are."""
        offset, ratio, rotation, translation, focal_ratio = parameters
        bent, scaled, moved = poses
        place = place_as_seen(moved, pictures, seen_by, self.skeleton)
        moved = moved + (place - translation).unsqueeze(2)
        placed = AugmentationParameters(offset, ratio, rotation, place, focal_ratio)
        return placed, AugmentedPoses(bent, scaled, moved)

    def generate(self, draft: Draft, made: Made | None = None) -> Generated:
        """What a draft becomes beside what it is made from, for those who learn from it.

        Args:
            draft: Poses and noise.
            made: What it became before; None makes it again, attached to the policy's graph.
        """
        clean, _, intrinsics, usable = draft.poses
        if made is None:
            made = self.make(draft)
        clean_keypoints = project_points(clean, intrinsics, clamp_rays=self.config.clamp_rays)
        before, bent = (one_frame(x, draft.judged_frame) for x in (clean, made.poses.bent))
        return Generated(
            *(clean, clean_keypoints, made.parameters, made.poses, made.keypoints),
            *(intrinsics, made.seen_by, usable.to(clean.dtype)),
            *(bone_angle_change(before, bent, self.skeleton), draft.judged_frame),
        )

    def _valid(
        self,
        moved: Tensor,
        keypoints: Tensor,
        parameters: AugmentationParameters,
        intrinsics: Tensor,
    ) -> Tensor:
        """(B,): finite, positive bone lengths, in front of the camera and in every frame."""
        possible = moved.isfinite().flatten(1).all(1) & keypoints.isfinite().flatten(1).all(1)
        possible &= (parameters.bone_length_ratio > -1).flatten(1).all(1)
        if self.config.frame_check == "released":
            in_front = (moved[..., 2] > Z_NEAR).flatten(1).all(1)
            return possible & in_front & (keypoints <= 1).flatten(1).all(1)
        known = None if self.config.clamp_rays else keypoints
        seen = in_view(moved, intrinsics, self.config.aspect_ratio, known)
        return possible & seen.flatten(1).all(1)

    def predict(self, keypoints: Tensor, joints: Tensor) -> Tensor:
        """Predicted log error (B,) for (B, T, J, 2) and (B, T or 1, J, 3)."""
        assert self.predictor is not None
        target = self.target_frame(keypoints.shape[1])
        return self.predictor(keypoints, matching_frames(joints, 1, target)[:, 0])
