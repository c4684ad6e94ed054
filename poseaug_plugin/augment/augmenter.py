"""`Augmenter`: from a batch to its augmented samples."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from ..body.camera import in_view, project_points, with_focal_ratio
from ..body.poses import CanonicalBatch, CanonicalPoses, canonical_batch
from ..body.skeleton import Skeleton
from ..runtime.isolation import saved_buffers, unchanged
from ..runtime.recorder import Recorder
from .policy import Policy
from .transforms import (
    AugmentationInputs,
    AugmentationParameters,
    GeneratedPoses,
    apply_augmentation,
    bone_angle_change,
    generated_poses,
    matching_frames,
    middle_frame,
    select_frame,
)

# Points (B, ..., 3) and intrinsics (B, 9) to normalised screen coordinates (B, ..., 2).
Projection = Callable[[Tensor, Tensor], Tensor]
# Points (B, ..., 3), their keypoints (B, ..., 2) and intrinsics (B, 9) to (B, ...) bool.
FrameCheck = Callable[[Tensor, Tensor, Tensor], Tensor]


class AugmentedBatch(NamedTuple):
    """The augmented samples of a batch, and what an update reads; nothing carries a graph."""

    joints: Tensor  # (k, T or 1, J, 3) augmented poses, in the frames where the host has 3D
    keypoints: Tensor  # (k, T, J, 2) likewise, all frames
    intrinsics: Tensor  # (k, 9) of the cameras that see them
    accepted: Tensor  # (k,) bool: the augmented pose replaces its original
    sources: Tensor  # (k,) which samples of the host's batch they stand for
    places: Tensor  # (k,) which samples of the output they are
    originals: Tensor  # (m,) which samples of the output are originals
    target: int  # the frame of the window that is lifted, where it is one of several
    batch: CanonicalBatch  # the host's whole batch
    inputs: AugmentationInputs  # those that an update learns from
    generated: GeneratedPoses | None  # of them, where the update needs no graph


class Windows(Protocol):
    """A stock of sequences from which windows are drawn."""

    def sample(self, count: int, frames: int, generator: torch.Generator) -> CanonicalBatch:
        """``count`` windows of ``frames`` frames."""

    def target_frame(self, frames: int) -> int:
        """Index of the frame that is lifted."""


def evenly_spaced(values: Any, available: int, wanted: int | None) -> Any:
    """``wanted`` of ``available`` samples out of every tensor of nested tuples; None for all."""
    if wanted is None or available <= wanted:
        return values

    def some(tensor: Tensor) -> Tensor:
        rows = torch.arange(wanted, device=tensor.device) * available // wanted
        return tensor.index_select(0, rows)

    return tree_map_only(Tensor, some, values)


class Augmenter:
    """Augments a share of a batch, or a copy of all of it.

    Args:
        policy: Draws the augmentations.
        skeleton: The tree.
        recorder: Does the arithmetic, and has the random stream.
        share: Share of the batch that is augmented.
        appends: The augmented samples go behind the batch, not into it.
        aspect_ratio: Image height / width.
        learn_from: Samples that an update learns from, at most; None for all.
        project: Projects poses.
        frame_check: Accepts points; by default `in_view`.
        windows: Where windows to augment come from, if not from the batch.
    """

    def __init__(
        self,
        policy: Policy,
        skeleton: Skeleton,
        recorder: Recorder,
        *,
        share: float,
        appends: bool,
        aspect_ratio: float = 1.0,
        learn_from: int | None = None,
        project: Projection = project_points,
        frame_check: FrameCheck | None = None,
        windows: Windows | None = None,
    ) -> None:
        self.policy, self.skeleton, self.generator = policy, skeleton, recorder.generator
        self.share, self.appends = share, appends
        self.aspect_ratio, self.learn_from, self.project = aspect_ratio, learn_from, project
        self.frame_check, self.windows = frame_check, windows
        self._statistics = saved_buffers(policy)
        self._samples = recorder.compiled(Augmenter.samples)

    def count_of(self, batch_size: int) -> int:
        """How many samples of a batch are augmented."""
        return batch_size if self.appends else round(self.share * batch_size)

    def target_frame(self, frames: int) -> int:
        """The frame of a window that is lifted, where that is one of several."""
        return middle_frame(frames) if self.windows is None else self.windows.target_frame(frames)

    def augment(
        self, poses: CanonicalPoses, keeps_cameras: bool = True, keeps_generated: bool = False
    ) -> AugmentedBatch:
        """Augment as many samples as the options say.

        ``keeps_cameras`` leaves focal lengths as they are, for a host who would not know, and
        ``keeps_generated`` what was generated, for an update in which no policy learns.
        """
        batch = canonical_batch(poses)
        size, frames = batch.keypoints.shape[:2]
        count, device = self.count_of(size), batch.joints.device
        order = torch.rand(size, device=device, generator=self.generator).argsort()
        everyone = torch.arange(size, device=device)
        sources, originals = (everyone, everyone) if self.appends else order.tensor_split([count])
        if self.windows is None:
            chosen = CanonicalBatch(*(field[sources] for field in batch))
        else:
            chosen = self.windows.sample(count, frames, self.generator)
        noise = torch.randn(count, self.policy.noise_size, device=device, generator=self.generator)
        judged = None
        if frames > 1:
            draws = torch.rand(count, device=device, generator=self.generator)
            judged = (draws * frames).long().clamp(max=frames - 1)
        inputs = AugmentationInputs(chosen, noise, judged, keeps_cameras)
        # Without a graph, which would be kept through the user's own forward and backward pass;
        # an update of the policy makes the same poses again with one. (Of fewer samples it has the
        # same bodies and views, but places are drawn from the poses that are left.)
        statistics = unchanged(self._statistics) if self._statistics else nullcontext()
        with torch.no_grad(), statistics:
            return self._samples(self, batch, sources, originals, inputs, keeps_generated)

    def samples(
        self,
        batch: CanonicalBatch,
        sources: Tensor,
        originals: Tensor,
        inputs: AugmentationInputs,
        keeps_generated: bool,
    ) -> AugmentedBatch:
        """What `augment` gives, once everything is drawn."""
        target = self.target_frame(batch.keypoints.shape[1])
        generated = self.generate(inputs)
        accepted = batch.usable[sources] & self._is_valid(generated)
        joints = matching_frames(generated.poses.moved, batch.joints.shape[1], target)
        kept = evenly_spaced(
            generated if keeps_generated else inputs, sources.shape[0], self.learn_from
        )
        return AugmentedBatch(
            *(joints, generated.keypoints, generated.intrinsics, accepted, sources),
            places=sources + len(batch.usable) if self.appends else sources,
            originals=originals,
            target=target,
            batch=batch,
            inputs=kept.inputs if keeps_generated else kept,
            generated=kept if keeps_generated else None,
        )

    def generate(self, inputs: AugmentationInputs) -> GeneratedPoses:
        """Augment every sample, in graph with the policy where gradients are enabled."""
        poses = inputs.poses
        # A new tuple: torch.compile, at least up to 2.11, cannot return what `_replace` made, as a
        # policy of the user's may have.
        parameters = AugmentationParameters(*self.policy(poses.joints, inputs.noise))
        augmented = apply_augmentation(poses.joints, parameters, self.skeleton)
        intrinsics = poses.intrinsics
        if not inputs.keeps_cameras:
            intrinsics = with_focal_ratio(intrinsics, parameters.focal_ratio)
        keypoints = self.project(augmented.moved, intrinsics)
        return generated_poses(inputs, parameters, augmented, keypoints, intrinsics)

    def readings(self, augmented: AugmentedBatch, generated: GeneratedPoses) -> dict[str, Tensor]:
        """What was done to the poses, by the names of `Diagnostics`."""
        inputs, weights = generated.inputs, generated.weights
        before = select_frame(inputs.poses.keypoints, inputs.judged_frame).std(0).mean()
        turned = bone_angle_change(generated.clean_pose, generated.bent_pose, self.skeleton)
        in_batch = augmented.batch.usable[augmented.sources]
        return {
            "unusable": (~augmented.batch.usable).sum(),
            "kept_share": augmented.accepted.sum() / in_batch.sum(),  # NaN without any
            "angle_change": (turned.mean(1) * weights).sum() / weights.sum(),
            "length_change": generated.parameters.bone_length_ratio.abs().mean(),
            "diversity": generated.seen_pose.std(0).mean() / before.clamp(min=1e-6),
        }

    def _is_valid(self, generated: GeneratedPoses) -> Tensor:
        """(B,): finite, positive bone lengths, in front of the camera and in every frame."""
        moved, keypoints = generated.poses.moved, generated.keypoints
        intrinsics, ratio = generated.intrinsics, generated.parameters.bone_length_ratio
        sums = moved.flatten(1).sum(1) + keypoints.flatten(1).sum(1)
        possible = sums.isfinite() & (ratio.flatten(1).amin(1) > -1)
        if self.frame_check is not None:
            seen = self.frame_check(moved, keypoints, intrinsics)
        else:
            seen = in_view(moved, intrinsics, self.aspect_ratio, keypoints)
        return possible & seen.flatten(1).all(1)
