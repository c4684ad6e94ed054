"""`RegressorPolicy`: PoseAug's augmentor as its code and paper have it."""

import torch
from einops import rearrange, repeat
from torch import Tensor, nn
from typing_extensions import override

from ..adversary.critics import GroupedLinear
from ..augment.policy import Operation, check_operations
from ..augment.transforms import AugmentationParameters, Policy, identity_parameters, middle_frame
from ..body.bones import bone_lengths, joints_to_bones, per_bone, root_relative
from ..body.presets import find_skeleton
from ..body.rotation import axis_angle_to_matrix
from ..body.skeleton import Skeleton


class RegressorNetwork(nn.Module):
    """The regressors' MLPs as one stack of batched matrix products."""

    NOISE = 48  # that each branch takes

    def __init__(self, skeleton: Skeleton, branches: int, width: int) -> None:
        super().__init__()
        self.skeleton, self.branches = skeleton, branches
        self.noise_size = branches * self.NOISE
        self.inputs = GroupedLinear(branches, 3 * skeleton.num_joints + self.NOISE, width)
        self.lengths = nn.Linear(skeleton.num_bones, width, bias=False)
        self.hidden = nn.ModuleList([GroupedLinear(branches, width, width) for _ in range(4)])
        self.norms = nn.ModuleList([nn.BatchNorm1d(branches * width) for _ in range(5)])
        sizes = (3 * skeleton.num_bones, skeleton.num_bone_length_groups, 3, 3)
        self.heads = nn.ModuleList([nn.Linear(width, size) for size in sizes])

    def forward(self, relative_joints: Tensor, noise: Tensor) -> tuple[Tensor, ...]:
        """(B, J, 3) metres and (B, noise_size) to parameters that are not bounded yet.

        Of bone angle (B, bones, 3), bone length (B, groups), rotation and translation (B, 3).
        """
        pose = repeat(relative_joints, "batch j xyz -> branch (j xyz) batch", branch=self.branches)
        noise = rearrange(noise, "batch (branch n) -> branch n batch", branch=self.branches)
        features = self.inputs(torch.cat([pose, noise], 1))
        lengths = bone_lengths(joints_to_bones(relative_joints, self.skeleton))
        # Branches are in the order of what they regress; that of bone length sees lengths, too.
        features[min(1, self.branches - 1)] += self.lengths(lengths).T
        for layer, norm in zip((None, *self.hidden), self.norms, strict=True):
            if layer is not None:
                features = layer(features)
            # Every feature of every branch is normalised over the batch.
            normed = norm(features.flatten(0, 1).T).T.reshape(features.shape)
            features = nn.functional.leaky_relu(normed)
        angle, *others = (
            head(features[min(i, self.branches - 1)].T) for i, head in enumerate(self.heads)
        )
        return rearrange(angle, "batch (bones xyz) -> batch bones xyz", xyz=3), *others


class RegressorPolicy(Policy):
    """The pose augmentor of PoseAug (section 3.2), for any skeleton, by the released formulas.

    The networks see the root-relative pose of the window's middle frame.

    Args:
        skeleton: A `Skeleton` or the name of a preset.
        operations: Which of ``bone_angle``, ``bone_length`` and ``rigid`` to do; by default all.
        fixed_trunk: Keep `trunk_bones` unbent and the anchor's length unchanged (released code).
        shared_extractor: One feature extractor for all regressors (paper), not four networks.
        width: Of all hidden layers.
    """

    free_bones: Tensor  # (bones, 1) 0 for bones that must not bend
    free_lengths: Tensor  # (groups,) 0 for the length that keeps the scale

    def __init__(
        self,
        skeleton: Skeleton | str,
        *,
        operations: tuple[Operation, ...] | None = None,
        fixed_trunk: bool = False,
        shared_extractor: bool = False,
        width: int = 256,
    ) -> None:
        super().__init__()
        self.skeleton = find_skeleton(skeleton)
        self.operations = check_operations(operations)
        self.network = RegressorNetwork(self.skeleton, 1 if shared_extractor else 4, width)
        self.noise_size = self.network.noise_size
        bones = torch.ones(self.skeleton.num_bones, 1)
        lengths = torch.ones(self.skeleton.num_bone_length_groups)
        if fixed_trunk:
            bones[list(trunk_bones(self.skeleton))] = 0.0
            anchor = anchor_length_group(self.skeleton)
            if anchor is not None:
                lengths[anchor] = 0.0
        self.register_buffer("free_bones", bones, persistent=False)
        self.register_buffer("free_lengths", lengths, persistent=False)

    def bound(self, joints: Tensor, regressed: tuple[Tensor, ...]) -> AugmentationParameters:
        """The parameters that the networks' outputs mean."""
        angle, length, rotation, place = regressed
        bounded = identity_parameters(joints, self.skeleton)
        if "bone_angle" in self.operations:
            bounded = bounded._replace(bone_direction_offset=angle.unsqueeze(1) * self.free_bones)
        if "bone_length" in self.operations:
            ratios = per_bone(0.2 * (length * self.free_lengths).tanh(), self.skeleton)
            bounded = bounded._replace(bone_length_ratio=ratios.unsqueeze(1))
        if "rigid" in self.operations:
            # Highest per component, as released.
            turn = axis_angle_to_matrix(3.1415 * rotation.tanh()).unsqueeze(1)
            place = torch.cat([place[:, :2], place[:, 2:].square()], 1).unsqueeze(1)
            bounded = bounded._replace(rotation=turn, translation=place)
        return bounded

    @override
    def forward(self, joints: Tensor, noise: Tensor) -> AugmentationParameters:
        middle = root_relative(joints[:, middle_frame(joints.shape[1])], self.skeleton)
        return self.bound(joints, self.network(middle, noise))


def trunk_bones(skeleton: Skeleton) -> tuple[int, ...]:
    """Bones between the root and the limbs' attachments (rigid in the released code)."""
    return tuple(sorted({bone for path in _paths_of_limbs(skeleton) for bone in path}))


def anchor_length_group(skeleton: Skeleton) -> int | None:
    """Group of the outermost trunk bone with most limbs, whose length never changes; or None."""
    paths = _paths_of_limbs(skeleton)

    def rank(bone: int) -> tuple[int, int]:
        depth = len(skeleton.bones_to_root(skeleton.bone_children[bone]))
        return sum(bone in path for path in paths), depth

    anchor = max(trunk_bones(skeleton), key=rank, default=None)
    return None if anchor is None else skeleton.bone_length_groups[anchor]


def _paths_of_limbs(skeleton: Skeleton) -> list[tuple[int, ...]]:
    return [skeleton.bones_to_root(skeleton.parent_indices[js[0]]) for _, js in skeleton.limbs]
