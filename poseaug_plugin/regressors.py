"""The networks of `RegressorPolicy`: from a pose and noise to raw, unbounded parameters."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from .bones import bone_lengths, joints_to_bones
from .grouped import GroupedLinear
from .skeleton import Skeleton


class RawParameters(NamedTuple):
    """What the networks put out, before it is bounded."""

    bone_angle: Tensor  # (B, bones, 3)
    bone_length: Tensor  # (B, groups)
    rotation: Tensor  # (B, 3)
    translation: Tensor  # (B, 3)


class RegressorNetwork(nn.Module):
    """The regressors' MLPs as one stack of batched matrix products.

    Branches in order: bone angle, bone length, rotation, translation. Only the second also sees the
    bone lengths (`released` gan_generator.BLGenerator).
    """

    LENGTH_BRANCH = 1
    STAGES = 2
    NOISE = 48  # that each branch takes

    def __init__(self, skeleton: Skeleton, branches: int, width: int) -> None:
        super().__init__()
        self.skeleton = skeleton
        self.branches = branches
        self.noise_size = branches * self.NOISE
        self.inputs = GroupedLinear(branches, 3 * skeleton.num_joints + self.NOISE, width)
        self.lengths = nn.Linear(skeleton.num_bones, width, bias=False)
        self.hidden = nn.ModuleList(
            [GroupedLinear(branches, width, width) for _ in range(2 * self.STAGES)]
        )
        self.norms = nn.ModuleList(
            [_BranchNorm(branches * width) for _ in range(2 * self.STAGES + 1)]
        )
        sizes = (3 * skeleton.num_bones, skeleton.num_bone_length_groups, 3, 3)
        self.heads = nn.ModuleList([nn.Linear(width, size) for size in sizes])

    def forward(self, relative_joints: Tensor, noise: Tensor) -> RawParameters:
        """(B, J, 3) metres and (B, noise_size) to raw parameters."""
        batch = relative_joints.shape[0]
        pose = relative_joints.flatten(1).unsqueeze(1).expand(-1, self.branches, -1)
        features = self.inputs(torch.cat([pose, noise.reshape(batch, self.branches, -1)], -1))
        lengths = self.lengths(bone_lengths(joints_to_bones(relative_joints, self.skeleton)))
        branch = min(self.LENGTH_BRANCH, self.branches - 1)
        before, own, after = features.split([branch, 1, self.branches - branch - 1], 1)
        features = torch.cat([before, own + lengths.unsqueeze(1), after], 1)
        activate = nn.functional.leaky_relu
        features = activate(self.norms[0](features))
        for layer, norm in zip(self.hidden, self.norms[1:], strict=True):
            features = activate(norm(layer(features)))
        angle, length, rotation, translation = (
            head(features[:, min(i, self.branches - 1)]) for i, head in enumerate(self.heads)
        )
        return RawParameters(angle.unflatten(1, (-1, 3)), length, rotation, translation)


class _BranchNorm(nn.BatchNorm1d):
    """Batch normalisation of every feature of every branch: (B, branches, width)."""

    def forward(self, features: Tensor) -> Tensor:
        return super().forward(features.flatten(1)).view_as(features)
