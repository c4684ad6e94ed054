"""The critics: is this 3D pose human, is this 2D pose, does this window move like one?"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from .bones import bone_directions, joints_to_bones, kinematic_chain_space
from .grouped import GroupedLinear
from .skeleton import Skeleton
from .skeletons import find_skeleton
from .windows import num_motion_features


class PartKCSDiscriminator(nn.Module):
    """Scores of body parts from the Gram matrices of their unit bones (PoseAug section 3.3).

    It sees angles between bones and nothing else: neither size, nor place, nor viewpoint. All
    parts' networks are one stack of batched matrix products.

    Args:
        skeleton: A `Skeleton` or the name of a preset.
        scope: ``"parts"`` is part-aware, one score per part in the order of
            ``skeleton.part_bones``; ``"whole"`` judges the whole body by one network (the paper's
            ablation).
        width: Hidden width.
        last_width: Width of the last hidden layer.
    """

    part_masks: Tensor
    entries: Tensor
    entry_masks: Tensor

    def __init__(
        self,
        skeleton: Skeleton | str,
        *,
        scope: Literal["parts", "whole"] = "parts",
        width: int = 256,
        last_width: int = 100,
    ) -> None:
        super().__init__()
        self.skeleton = skeleton = find_skeleton(skeleton)
        bones = skeleton.num_bones
        every_bone = (("body", tuple(range(bones))),)
        parts = skeleton.part_bones if scope == "parts" else every_bone
        masks = torch.zeros(len(parts), bones)
        for mask, (_, members) in zip(masks, parts, strict=True):
            mask[list(members)] = 1.0
        pair_masks = (masks.unsqueeze(2) * masks.unsqueeze(1)).flatten(1)
        self.register_buffer("part_masks", pair_masks, persistent=False)
        # A part's own entries of the Gram matrix, filled up with others that are masked. Most of
        # the matrix is zero to a part; multiplying it all would be most of the critic's cost.
        own = pair_masks.sort(dim=1, descending=True, stable=True)
        most = int(pair_masks.sum(1).max())
        self.register_buffer("entries", own.indices[:, :most], persistent=False)
        self.register_buffer("entry_masks", own.values[:, :most], persistent=False)
        self.layer_1 = GroupedLinear(len(parts), bones * bones, width)
        self.layer_2 = GroupedLinear(len(parts), width, width)
        self.layer_3 = GroupedLinear(len(parts), width, width)
        self.layer_last = GroupedLinear(len(parts), width, last_width)
        self.score = GroupedLinear(len(parts), last_width, 1)

    def forward(self, joints: Tensor) -> Tensor:
        """Scores (B, parts), near 1 for human; joints (B, J, 3) in any unit and frame."""
        directions = bone_directions(joints_to_bones(joints, self.skeleton))
        gram = kinematic_chain_space(directions).flatten(1)
        activate = nn.functional.leaky_relu
        seen = gram.index_select(1, self.entries.flatten()).unflatten(1, self.entries.shape)
        features = activate(self.layer_1(seen * self.entry_masks, self.entries))
        deeper = self.layer_3(activate(self.layer_2(features))) + features
        return self.score(activate(self.layer_last(deeper))).squeeze(-1)


class KeypointDiscriminator(nn.Module):
    """Score of a 2D pose in normalised screen coordinates (PoseAug section 3.3).

    Args:
        skeleton: A `Skeleton` or the name of a preset.
        width: Hidden width.
    """

    def __init__(self, skeleton: Skeleton | str, *, width: int = 100) -> None:
        super().__init__()
        skeleton = find_skeleton(skeleton)
        self.layer_1 = nn.Linear(skeleton.num_joints * 2, width)
        self.layer_2 = nn.Linear(width, width)
        self.layer_3 = nn.Linear(width, width)
        self.layer_4 = nn.Linear(width, width)
        self.layer_last = nn.Linear(width, width)
        self.score = nn.Linear(width, 1)

    def forward(self, keypoints: Tensor) -> Tensor:
        """Scores (B, 1), near 1 for human; keypoints (B, J, 2)."""
        activate = nn.functional.leaky_relu
        first = activate(self.layer_1(keypoints.flatten(1)))
        second = activate(self.layer_2(first))
        third = activate(self.layer_3(second) + first)
        return self.score(activate(self.layer_last(self.layer_4(third))))


class MotionDiscriminator(nn.Module):
    """Score of how a window moves: `windows.motion_features`; ours, the paper has single frames.

    Args:
        skeleton: A `Skeleton` or the name of a preset.
        width: Hidden width.
    """

    def __init__(self, skeleton: Skeleton | str, *, width: int = 100) -> None:
        super().__init__()
        self.layer_1 = nn.Linear(num_motion_features(find_skeleton(skeleton)), width)
        self.layer_2 = nn.Linear(width, width)
        self.score = nn.Linear(width, 1)

    def forward(self, features: Tensor) -> Tensor:
        """Scores (B, 1), near 1 for human; features (B, num_motion_features)."""
        activate = nn.functional.leaky_relu
        return self.score(activate(self.layer_2(activate(self.layer_1(features)))))
