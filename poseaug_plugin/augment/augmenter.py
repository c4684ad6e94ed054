"""`Augmenter`: from a batch to its augmented samples."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from ..body.camera import in_view, project_points
from ..body.poses import CanonicalBatch, CanonicalPoses, canonical_batch
from ..body.skeleton import Skeleton
from ..runtime.isolation import saved_buffers, unchanged
from .transforms import (
    AugmentationInputs,
    AugmentedBatch,
    GeneratedPoses,
    Policy,
    apply_augmentation,
    evenly_spaced,
    matching_frames,
    middle_frame,
    select_frame,
)

# Points (B, ..., 3) and intrinsics (B, 9) to normalised screen coordinates (B, ..., 2).
Projection = Callable[[Tensor, Tensor], Tensor]
# Points (B, ..., 3), keypoints (B, ..., 2), intrinsics (B, 9), height / width to (B, ...) bool.
FrameCheck = Callable[[Tensor, Tensor, Tensor, float], Tensor]


@dataclass(eq=False)
class Augmenter:
    """Augments a share of a batch, or a copy of all of it, with its own random stream."""

    policy: Policy
    skeleton: Skeleton
    generator: torch.Generator  # the hook's
    share: float  # of the batch that is augmented
    appends: bool  # a copy of the whole batch is augmented, and goes behind it
    aspect_ratio: float = 1.0  # image height / width
    learn_from: int | None = None  # samples that an update learns from, at most; None for all
    project: Projection = project_points
    frame_check: FrameCheck = in_view
    # Draws so many windows of so many frames to augment, where they are not the batch's.
    sample: Callable[[int, int, torch.Generator], CanonicalBatch] | None = None
    target_frame: Callable[[int], int] = middle_frame  # which of so many frames is lifted
    # Puts other poses in place of some; has no part in what an update learns from.
    exchange: Callable[[CanonicalBatch, torch.Generator], CanonicalBatch] | None = None

    def __post_init__(self) -> None:
        self._statistics = saved_buffers(self.policy)

    def count_of(self, batch_size: int) -> int:
        """How many samples of a batch are augmented."""
        return batch_size if self.appends else round(self.share * batch_size)

    def augment(
        self, poses: CanonicalPoses, keeps_cameras: bool = True, keeps_inputs: bool = False
    ) -> AugmentedBatch:
        """Augment; ``keeps_cameras`` leaves focal lengths alone, for a host who would not know."""
        batch = canonical_batch(poses)
        size, frames = batch.keypoints.shape[:2]
        count, device = self.count_of(size), batch.joints.device
        order = torch.rand(size, device=device, generator=self.generator).argsort()
        sources, originals = order.tensor_split([count])
        if self.appends:
            sources = originals = torch.arange(size, device=device)
        target = self.target_frame(frames)
        if self.sample is None:
            chosen = CanonicalBatch(*(field.index_select(0, sources) for field in batch))
        else:
            chosen = self.sample(count, frames, self.generator)
        if self.exchange is not None and not keeps_inputs:
            chosen = self.exchange(chosen, self.generator)
        noise = torch.randn(count, self.policy.noise_size, device=device, generator=self.generator)
        judged = None
        if frames > 1:
            judged = torch.randint(frames, (count,), device=device, generator=self.generator)
        inputs = AugmentationInputs(chosen, noise, judged, keeps_cameras)
        # Without a graph, which would be kept through the user's own forward and backward pass; an
        # update makes the poses again with one. (Of fewer it draws places from those alone.)
        statistics = unchanged(self._statistics) if self._statistics else nullcontext()
        with torch.no_grad(), statistics:
            generated = self.generate(inputs)
        return AugmentedBatch(
            joints=matching_frames(generated.poses.moved, batch.joints.shape[1], target),
            keypoints=generated.keypoints,
            intrinsics=generated.intrinsics,
            accepted=batch.usable[sources] & self._is_valid(generated),
            sources=sources,
            places=sources + size if self.appends else sources,
            originals=originals,
            target=target,
            batch=batch,
            inputs=evenly_spaced(inputs, count, self.learn_from) if keeps_inputs else None,
        )

    def generate(self, inputs: AugmentationInputs) -> GeneratedPoses:
        """Augment every sample, in graph with the policy where gradients are enabled."""
        poses = inputs.poses
        parameters = self.policy(poses.joints, inputs.noise)
        augmented = apply_augmentation(poses.joints, parameters, self.skeleton)
        intrinsics = poses.intrinsics
        if not inputs.keeps_cameras:
            focal_length, rest = intrinsics.split((2, 7), 1)
            intrinsics = torch.cat([focal_length * parameters.focal_ratio, rest], 1)
        keypoints = self.project(augmented.moved, intrinsics)
        return GeneratedPoses(inputs, parameters, augmented, keypoints, intrinsics, self.skeleton)

    def readings(self, augmented: AugmentedBatch, generated: GeneratedPoses) -> dict[str, Tensor]:
        """What was done to the poses, by the names of `Diagnostics`."""
        inputs, weights = generated.inputs, generated.weights
        before = select_frame(inputs.poses.keypoints, inputs.judged_frame).std(0).mean()
        in_batch = augmented.batch.usable[augmented.sources]
        return {
            "kept_share": augmented.accepted.sum() / in_batch.sum(),  # NaN without any
            "angle_change": generated.angle_change.mean(1).dot(weights) / weights.sum(),
            "length_change": generated.parameters.bone_length_ratio.abs().mean(),
            "diversity": generated.seen_pose.std(0).mean() / before.clamp(min=1e-6),
        }

    def _is_valid(self, generated: GeneratedPoses) -> Tensor:
        """(B,): finite, positive bone lengths, in front of the camera and in every frame."""
        moved, keypoints = generated.poses.moved, generated.keypoints
        sums = moved.sum((1, 2, 3)) + keypoints.sum((1, 2, 3))
        shortest = generated.parameters.bone_length_ratio.amin((1, 2))
        seen = self.frame_check(moved, keypoints, generated.intrinsics, self.aspect_ratio)
        return (sums.abs() < torch.inf) & (shortest > -1) & seen.flatten(1).all(1)
