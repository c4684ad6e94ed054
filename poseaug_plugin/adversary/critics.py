"""What keeps poses human: critics, and the terms of the policy's loss."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import leaky_relu
from typing_extensions import override

from ..augment.transforms import GeneratedPoses, Policy
from ..body.bones import bone_directions, joints_to_bones
from ..body.camera import project_points
from ..body.presets import find_skeleton
from ..body.skeleton import Skeleton

# Terms of the policy's loss by name, each weighted, 0-d.
Terms = dict[str, Callable[[GeneratedPoses], Tensor]]


def weighted_mean(values: Tensor, weights: Tensor) -> Tensor:
    """Mean of ``values`` (B, ...) over everything, samples weighted by ``weights`` (B,)."""
    per_sample = values.flatten(1).mean(1) if values.dim() > 1 else values
    return per_sample.dot(weights) / weights.sum().clamp(min=1e-12)


def lsgan_critic_loss(real_scores: Tensor, fake_scores: Tensor, weights: Tensor) -> Tensor:
    """1/2 [(D(real) - 1)^2 + D(fake)^2], for scores (B, parts) (PoseAug equations 7 and 8)."""
    return 0.5 * (weighted_mean((real_scores - 1).square(), weights) + fake_scores.square().mean())


def lsgan_policy_loss(fake_scores: Tensor, weights: Tensor) -> Tensor:
    """1/2 (D(fake) - 1)^2, for scores (B, parts)."""
    return 0.5 * weighted_mean((fake_scores - 1).square(), weights)


def critic_accuracy(scores: Tensor, is_real: bool) -> Tensor:
    """Share of scores (any shape) within 1/2 of their label, as the released code counts."""
    return ((scores - float(is_real)).abs() <= 0.5).mean(dtype=torch.float32)


def rectified_mean(values: Tensor, threshold: float) -> Tensor:
    """mean(gamma)^2, but 0 below a mean of ``threshold`` (PoseAug equation 4): (B, n) -> (B,)."""
    mean = values.mean(-1)
    return torch.where(mean >= threshold, mean.square(), 0.0)


class GroupedLinear(nn.Module):
    """``groups`` linear layers side by side: (groups, inputs, B) -> (groups, outputs, B).

    With the batch last no product of matrices, forwards or backwards, has to copy one.
    """

    def __init__(self, groups: int, inputs: int, outputs: int) -> None:
        super().__init__()
        # Each group starts like a layer of its own.
        layers = [nn.Linear(inputs, outputs) for _ in range(groups)]
        self.weight = nn.Parameter(torch.stack([layer.weight.detach() for layer in layers]))
        self.bias = nn.Parameter(torch.stack([layer.bias.detach() for layer in layers]))

    def forward(self, x: Tensor) -> Tensor:
        """Apply every group's layer to its own features."""
        return torch.baddbmm(self.bias.unsqueeze(2), self.weight, x)


class Critic(nn.Module):
    """A network that scores poses, near 1 for human ones; override `forward`, `real` and `fake`."""

    name: str  # in losses, diagnostics and checkpoints
    weight: float = 0.1  # of its term in the policy's loss
    interval: int = 1  # it learns in one out of so many updates in which something is learned
    shape: tuple[int, ...]  # of one sample that it scores

    def real(self, generated: GeneratedPoses) -> Tensor:
        """(B, *shape): what the poses look like to it that were augmented."""
        raise TypeError(f"{type(self).__name__} must define real(generated).")

    def fake(self, generated: GeneratedPoses) -> Tensor:
        """(B, *shape): what the augmented poses look like to it."""
        raise TypeError(f"{type(self).__name__} must define fake(generated).")


class PartKCSCritic(Critic):
    """Scores of body parts from the Gram matrices B B^T of their unit bones (PoseAug section 3.3).

    In this kinematic chain space (Wandt & Rosenhahn, CVPR 2019) bent poses, each in one frame, are
    angles between bones: neither size, nor place, nor viewpoint. ``scope="parts"`` gives one score
    per part in the order of ``skeleton.part_bones``; ``"whole"`` is one part (paper's ablation).
    """

    name = "critic_3d"
    entries: Tensor
    entry_masks: Tensor

    def __init__(
        self,
        skeleton: Skeleton | str,
        *,
        scope: Literal["parts", "whole"] = "parts",
        width: int = 64,
        last_width: int = 64,
    ) -> None:
        super().__init__()
        self.skeleton = skeleton = find_skeleton(skeleton)
        self.shape = (skeleton.num_joints, 3)
        bones = skeleton.num_bones
        parts = skeleton.part_bones if scope == "parts" else (("body", tuple(range(bones))),)
        masks = torch.tensor([[float(b in seen) for b in range(bones)] for _, seen in parts])
        pairs = (masks.unsqueeze(2) * masks.unsqueeze(1)).flatten(1)
        # A part's own entries of the Gram matrix, filled up with others that are masked.
        own = pairs.sort(dim=1, descending=True, stable=True)
        most = int(pairs.sum(1).max())
        self.register_buffer("entries", own.indices[:, :most].contiguous(), persistent=False)
        self.register_buffer("entry_masks", own.values[:, :most], persistent=False)
        self.layer_1 = GroupedLinear(len(parts), bones * bones, width)
        # The rest of the matrix is zero to a part, so its weights would never be used.
        kept = self.entries.unsqueeze(1).expand(-1, width, -1)
        self.layer_1.weight = nn.Parameter(self.layer_1.weight.detach().gather(2, kept))
        self.layer_2 = GroupedLinear(len(parts), width, width)
        self.layer_3 = GroupedLinear(len(parts), width, width)
        self.layer_last = GroupedLinear(len(parts), width, last_width)
        self.score = GroupedLinear(len(parts), last_width, 1)

    @override
    def real(self, generated: GeneratedPoses) -> Tensor:
        return generated.clean_pose

    @override
    def fake(self, generated: GeneratedPoses) -> Tensor:
        return generated.bent_pose

    def forward(self, joints: Tensor) -> Tensor:
        """Scores (B, parts); joints (B, J, 3) in any unit and frame."""
        directions = bone_directions(joints_to_bones(joints, self.skeleton))
        gram = (directions @ directions.mT).flatten(1)
        seen = gram.index_select(1, self.entries.flatten()).unflatten(1, self.entries.shape)
        features = leaky_relu(self.layer_1((seen * self.entry_masks).permute(1, 2, 0)))
        deeper = self.layer_3(leaky_relu(self.layer_2(features))) + features
        return self.score(leaky_relu(self.layer_last(deeper))).squeeze(1).T


class KeypointCritic(Critic):
    """Score of a 2D pose in normalised screen coordinates (PoseAug section 3.3).

    Of one frame. Real ones are projections, so that it does not learn a detector's noise.
    """

    name = "critic_2d"

    def __init__(self, skeleton: Skeleton | str, *, width: int = 64) -> None:
        super().__init__()
        skeleton = find_skeleton(skeleton)
        self.shape = (skeleton.num_joints, 2)
        self.layer_1 = nn.Linear(skeleton.num_joints * 2, width)
        self.layer_2 = nn.Linear(width, width)
        self.layer_3 = nn.Linear(width, width)
        self.layer_4 = nn.Linear(width, width)
        self.layer_last = nn.Linear(width, width)
        self.score = nn.Linear(width, 1)

    @override
    def real(self, generated: GeneratedPoses) -> Tensor:
        return project_points(generated.clean_pose, generated.inputs.poses.intrinsics)

    @override
    def fake(self, generated: GeneratedPoses) -> Tensor:
        return generated.seen_pose

    def forward(self, keypoints: Tensor) -> Tensor:
        """Scores (B, 1); keypoints (B, J, 2)."""
        first = leaky_relu(self.layer_1(keypoints.flatten(1)))
        second = leaky_relu(self.layer_2(first))
        third = leaky_relu(self.layer_3(second) + first)
        return self.score(leaky_relu(self.layer_last(self.layer_4(third))))


def critic_loss(
    critic: Critic, real: Tensor, fake: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor]:
    """LSGAN loss with ``weights`` (B,) of the real poses, and the share of poses told right."""
    real_scores, fake_scores = critic(torch.cat([real, fake])).split(len(real))
    accuracy = 0.5 * (critic_accuracy(real_scores, True) + critic_accuracy(fake_scores, False))
    return lsgan_critic_loss(real_scores, fake_scores, weights), accuracy.detach()


def adversarial_term(generated: GeneratedPoses, critic: Critic) -> Tensor:
    """Reward of poses that a critic takes for human (LSGAN), 0-d."""
    return critic.weight * lsgan_policy_loss(critic(critic.fake(generated)), generated.weights)


def range_term(
    generated: GeneratedPoses,
    weight: float = 3.0,
    angle_limit: float = 0.205,
    length_limit: float = 0.15,
) -> Tensor:
    """Keeps bone angles and lengths near the source's (PoseAug equation 4), 0-d.

    A mean of 1 - cos(bone angle), or of |bone length ratio|, below its limit is free.
    """
    weights, ratios = generated.weights, generated.length_ratios.abs()
    angle = weighted_mean(rectified_mean(generated.angle_change, angle_limit), weights)
    return (angle + weighted_mean(rectified_mean(ratios, length_limit), weights)) * weight


def frame_term(generated: GeneratedPoses, aspect_ratio: float) -> Tensor:
    """Mean squared distance of keypoints outside the frame, 0-d; its gradient pulls them back."""
    x, y = generated.keypoints.abs().unbind(-1)
    outside = (x - 1).relu().square() + (y - aspect_ratio).relu().square()
    # Bounded, so that a pose far outside does not drown the others, and never without gradient.
    return weighted_mean(outside / (1 + outside), generated.weights)


def entropy_term(generated: GeneratedPoses, policy: Policy, weight: float) -> Tensor:
    """Reward of wide draws, 0-d; 0 for a policy that does not tell its entropy."""
    entropy = policy.entropy()
    return generated.keypoints.new_zeros(()) if entropy is None else -weight * entropy
