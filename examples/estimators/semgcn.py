"""SemGCN: one pose, by graph convolutions that learn how strongly joints are linked."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor, nn

from poseaug_plugin import Skeleton
from poseaug_plugin.body.presets import find_skeleton

from .common import NodeNorm, check_shape, graph_convolution, group_table, max_pool_groups


def adjacency(skeleton: Skeleton) -> Tensor:
    """Which joints see which, (J, J) bool: a joint sees itself, its parent and its children."""
    linked = torch.eye(skeleton.num_joints, dtype=torch.bool)
    children, parents = list(skeleton.bone_children), list(skeleton.bone_parents)
    linked[children, parents] = linked[parents, children] = True
    return linked


def joint_groups(skeleton: Skeleton) -> tuple[tuple[int, ...], ...]:
    """Groups of up to two joints that non-local blocks pool over.

    The first joints of mirrored limbs (both hips, both shoulders) make a group; the rest of each
    limb, and the torso, go two by two from the root outwards. On Human3.6M's 16 joints these are
    the eight pairs of the published model.
    """
    firsts = {joints[0] for _, joints in skeleton.limbs}
    groups: set[tuple[int, ...]] = set()
    for _, joints in skeleton.part_joints:
        rest = joints
        first, mirrored = joints[0], skeleton.flip_permutation[joints[0]]
        if first != mirrored and {first, mirrored} <= firsts:
            groups.add(tuple(sorted((first, mirrored))))
            rest = joints[1:]
        groups.update(rest[start : start + 2] for start in range(0, len(rest), 2))
    return tuple(sorted(groups))


class SemGraphConv(nn.Module):
    """Semantic graph convolution (section 3): (J, B, inputs) -> (J, B, outputs).

    What a joint receives is weighted by a softmax over its neighbours of one learned number per
    link. A joint's own features and its neighbours' pass through different matrices.
    """

    links: Tensor

    def __init__(self, inputs: int, outputs: int, linked: Tensor) -> None:
        super().__init__()
        self.num_joints = len(linked)
        self.register_buffer("links", linked.nonzero().T, persistent=False)
        self.link_strength = nn.Parameter(torch.ones(self.links.shape[1]))
        self.weight = nn.Parameter(torch.empty(2, outputs, inputs))
        self.bias = nn.Parameter(torch.zeros(outputs))
        for matrix in self.weight:
            nn.init.xavier_uniform_(matrix, gain=nn.init.calculate_gain("relu"))

    def attention(self) -> Tensor:
        """How much each joint (row) takes from each joint (column), (J, J); rows sum to one."""
        joints, neighbours = self.links
        nowhere = self.link_strength.new_full((self.num_joints, self.num_joints), -torch.inf)
        return nowhere.index_put((joints, neighbours), self.link_strength).softmax(-1)

    def forward(self, features: Tensor) -> Tensor:
        """Convolve."""
        attention = self.attention()
        own = attention.diagonal().diag()
        kernels = torch.stack((own, attention - own))
        return graph_convolution(features, kernels, self.weight) + self.bias


class GraphLayer(nn.Sequential):
    """Semantic graph convolution, batch normalisation, ReLU, dropout."""

    def __init__(self, inputs: int, outputs: int, linked: Tensor, dropout: float) -> None:
        super().__init__(
            SemGraphConv(inputs, outputs, linked), NodeNorm(outputs), nn.ReLU(), nn.Dropout(dropout)
        )


class Residual(nn.Module):
    """Two graph layers and a way around them (section 3): (J, B, width) -> the same."""

    def __init__(self, width: int, linked: Tensor, dropout: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            GraphLayer(width, width, linked, dropout), GraphLayer(width, width, linked, dropout)
        )

    def forward(self, features: Tensor) -> Tensor:
        """Convolve and add."""
        return features + self.layers(features)


class NonLocal(nn.Module):
    """Every joint looks at every group of joints (section 3): (J, B, width) -> the same.

    The concatenation form of Wang et al., CVPR 2018: a pair scores the ReLU of a linear function of
    both. That function of the two concatenated is the sum of one of each, and so it is computed.
    Its last normalisation starts at zero: the block begins as the identity.
    """

    members: Tensor

    def __init__(self, width: int, groups: Sequence[Sequence[int]]) -> None:
        super().__init__()
        self.register_buffer("members", group_table(groups), persistent=False)
        self.query = nn.Linear(width, width // 2)
        self.key = nn.Linear(width, width // 2)
        self.value = nn.Linear(width, width // 2)
        self.score_query = nn.Linear(width // 2, 1, bias=False)
        self.score_key = nn.Linear(width // 2, 1, bias=False)
        self.merge = nn.Linear(width // 2, width)
        self.norm = NodeNorm(width)
        nn.init.zeros_(self.norm.weight)

    def forward(self, features: Tensor) -> Tensor:
        """Look and add."""
        keys = max_pool_groups(self.key(features), self.members)  # (groups, B, width / 2)
        values = max_pool_groups(self.value(features), self.members)
        of_joints = rearrange(self.score_query(self.query(features)), "j b 1 -> b j 1")
        of_groups = rearrange(self.score_key(keys), "g b 1 -> b 1 g")
        scores = (of_joints + of_groups).relu() / len(self.members)
        seen = torch.einsum("bjg,gbc->jbc", scores, values)
        return features + self.norm(self.merge(seen))


class SemGCN(nn.Module):
    """Semantic graph convolutional network of Zhao et al., CVPR 2019 (section 3).

    From "Semantic Graph Convolutional Networks for 3D Human Pose Regression".

    Args:
        skeleton: A `Skeleton` or the name of a preset.
        width: Hidden width.
        blocks: Residual blocks, of two graph layers each.
        non_local: Whether a non-local block follows the first layer and each residual block.
        groups: Joint names in the groups that non-local blocks pool over, each joint in exactly
            one. By default those of `joint_groups`.
        dropout: Probability of dropping a feature; the published model drops none.

    Raises:
        ValueError: ``groups`` miss a joint, name one twice, or name one that is none.
    """

    def __init__(
        self,
        skeleton: Skeleton | str = "h36m_16",
        *,
        width: int = 128,
        blocks: int = 4,
        non_local: bool = False,
        groups: Sequence[Sequence[str]] | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.skeleton = skeleton = find_skeleton(skeleton)
        linked = adjacency(skeleton)
        members = joint_groups(skeleton) if groups is None else _indices(groups, skeleton)
        layers: list[nn.Module] = [GraphLayer(2, width, linked, dropout)]
        for block in range(blocks + 1):
            if block > 0:
                layers.append(Residual(width, linked, dropout))
            if non_local:
                layers.append(NonLocal(width, members))
        self.layers = nn.Sequential(*layers, SemGraphConv(width, 3, linked))

    def forward(self, keypoints: Tensor) -> Tensor:
        """Estimate: (B, J, 2) -> (B, J, 3)."""
        check_shape(keypoints, ("B", self.skeleton.num_joints, 2))
        return self.layers(keypoints.transpose(0, 1)).transpose(0, 1)


def _indices(groups: Sequence[Sequence[str]], skeleton: Skeleton) -> tuple[tuple[int, ...], ...]:
    named = sorted(joint for group in groups for joint in group)
    if named != sorted(skeleton.joints) or not all(groups):
        raise ValueError(
            f"groups: expected each of {', '.join(skeleton.joints)} in exactly one group and no "
            f"empty group, received {[list(group) for group in groups]}."
        )
    return tuple(tuple(skeleton.joints.index(joint) for joint in group) for group in groups)
