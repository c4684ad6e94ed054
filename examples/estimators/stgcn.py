"""ST-GCN: the pose of the middle frame, by graph convolutions over joints and time."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor, nn

from poseaug_plugin import Skeleton
from poseaug_plugin.body.presets import find_skeleton

from .common import NodeNorm, check_shape, graph_convolution, group_table, max_pool_groups

Links = Sequence[tuple[int, int]]


def graph_kernels(bones: Links, mirrored: Links, distance: Sequence[int], frames: int) -> Tensor:
    """Normalised adjacency by kind of neighbour, (K, N, N); N nodes are frames times joints.

    Entry ``[k, source, target]``: a target takes the mean of its neighbours' features, and each
    kind of neighbour has a matrix of its own (section 3): itself; farther from the body's centre;
    nearer to it; its mirror image; and with several frames itself one frame before and after.

    Args:
        bones: Joints that a bone links.
        mirrored: Left and right joints.
        distance: Links between each joint and the body's centre.
        frames: Frames in a sequence, T.
    """

    def symmetric(links: Links) -> Tensor:
        matrix = torch.zeros(len(distance), len(distance))
        for a, b in links:
            matrix[a, b] = matrix[b, a] = 1.0
        return matrix

    mirror = symmetric(mirrored)
    bone = symmetric(bones) * (1 - mirror)
    steps = torch.tensor(distance)
    farther = bone * (steps.unsqueeze(1) > steps)
    every_frame, every_joint = torch.eye(frames), torch.eye(len(distance))
    within = (every_joint, farther, bone - farther, mirror)
    kernels = [torch.kron(every_frame, kernel) for kernel in within]
    if frames > 1:
        forwards = torch.kron(torch.ones(frames - 1).diag(1), every_joint)
        kernels += [forwards, forwards.T]
    stacked = torch.stack(kernels)
    return stacked / stacked.sum((0, 1))


def joint_kernels(skeleton: Skeleton, frames: int) -> Tensor:
    """Kernels of a skeleton; its centre is the joint whose farthest joint is nearest."""
    bones = list(zip(skeleton.bone_children, skeleton.bone_parents, strict=True))

    def distances(start: int) -> list[int]:
        found = {start: 0}
        while len(found) < skeleton.num_joints:
            for a, b in bones:
                for known, new in ((a, b), (b, a)):
                    if known in found and new not in found:
                        found[new] = found[known] + 1
        return [found[joint] for joint in range(skeleton.num_joints)]

    distance = min((distances(joint) for joint in range(skeleton.num_joints)), key=max)
    return graph_kernels(bones, skeleton.pair_indices, distance, frames)


def part_kernels(skeleton: Skeleton, frames: int) -> Tensor:
    """Kernels of the pooled graph: one node a body part, the torso in the middle."""
    parts = [set(joints) for _, joints in skeleton.part_joints]
    torso = next(i for i, joints in enumerate(parts) if skeleton.root in joints)
    mirrored = [
        (a, b)
        for a, left in enumerate(parts)
        for b, right in enumerate(parts[:a])
        if {skeleton.flip_permutation[joint] for joint in left} == right
    ]
    bones = [(part, torso) for part in range(len(parts)) if part != torso]
    distance = [int(part != torso) for part in range(len(parts))]
    return graph_kernels(bones, mirrored, distance, frames)


class GraphConv(nn.Module):
    """Graph convolution with a matrix per kind of neighbour: (N, B, inputs) -> (N, B, outputs)."""

    kernels: Tensor

    def __init__(self, inputs: int, outputs: int, kernels: Tensor) -> None:
        super().__init__()
        self.register_buffer("kernels", kernels.transpose(1, 2), persistent=False)
        self.project = nn.Linear(inputs, len(kernels) * outputs)

    def forward(self, features: Tensor) -> Tensor:
        """Convolve."""
        weights, biases = (
            parameter.unflatten(0, (len(self.kernels), -1))
            for parameter in (self.project.weight, self.project.bias)
        )
        bias = self.kernels.sum(2).T @ biases  # (N, outputs): of as much as a node takes in
        return graph_convolution(features, self.kernels, weights) + bias.unsqueeze(1)


class GraphBlock(nn.Module):
    """Graph convolution, a layer on each node, a way around: (N, B, inputs) -> (N, B, outputs)."""

    def __init__(
        self, inputs: int, outputs: int, kernels: Tensor, *, dropout: float, residual: bool = True
    ) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            GraphConv(inputs, outputs, kernels),
            NodeNorm(outputs),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(outputs, outputs),
            NodeNorm(outputs),
            nn.Dropout(dropout),
        )
        self.around: nn.Module | None = None
        if residual and inputs == outputs:
            self.around = nn.Identity()
        elif residual:
            self.around = nn.Sequential(nn.Linear(inputs, outputs), NodeNorm(outputs))

    def forward(self, features: Tensor) -> Tensor:
        """Convolve and add."""
        deeper = self.layers(features)
        if self.around is not None:
            deeper = deeper + self.around(features)
        return deeper.relu()


class Hourglass(nn.Module):
    """Context of the body parts and of the whole body (section 3).

    Joints are pooled to parts, parts to the body; the body's features go back to the parts, and the
    parts' to their joints: (T J, B, inputs) -> (T J, B, outputs).
    """

    members: Tensor
    part_of_joint: Tensor

    def __init__(
        self, skeleton: Skeleton, frames: int, inputs: int, width: int, outputs: int, dropout: float
    ) -> None:
        super().__init__()
        self.frames = frames
        parts = [
            [frame * skeleton.num_joints + joint for joint in joints]
            for frame in range(frames)
            for _, joints in skeleton.part_joints
        ]
        owner = [
            next(i for i, part in enumerate(parts) if node in part)
            for node in range(frames * skeleton.num_joints)
        ]
        self.register_buffer("members", group_table(parts), persistent=False)
        self.register_buffer("part_of_joint", torch.tensor(owner), persistent=False)
        kernels = part_kernels(skeleton, frames)
        self.of_parts = nn.Sequential(
            GraphBlock(inputs, width, kernels, dropout=dropout),
            GraphBlock(width, width, kernels, dropout=dropout),
        )
        window = 3 if frames > 1 else 1
        self.of_body = nn.Sequential(
            nn.Conv1d(width, width, window, padding=window // 2),  # over time: (B, width, T)
            nn.BatchNorm1d(width),
            nn.ReLU(),
            nn.Dropout(5 * dropout),
        )
        self.back_to_parts = nn.Sequential(
            nn.Linear(2 * width, outputs), NodeNorm(outputs), nn.ReLU(), nn.Dropout(2 * dropout)
        )

    def forward(self, features: Tensor) -> Tensor:
        """Pool, convolve, and spread."""
        parts = self.of_parts(max_pool_groups(features, self.members))
        by_frame = parts.unflatten(0, (self.frames, -1))
        body = self.of_body(rearrange(by_frame.amax(1), "t b c -> b c t"))
        of_its_body = rearrange(body, "b c t -> t 1 b c").expand_as(by_frame).flatten(0, 1)
        return self.back_to_parts(torch.cat((of_its_body, parts), -1))[self.part_of_joint]


class NonLocal(nn.Module):
    """Every node looks at every node by an embedded Gaussian: (N, B, width) -> the same.

    From Wang et al., CVPR 2018. Its last normalisation starts at zero: the block begins as the
    identity.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query = nn.Linear(width, width // 2)
        self.key = nn.Linear(width, width // 2)
        self.value = nn.Linear(width, width // 2)
        self.merge = nn.Linear(width // 2, width)
        self.norm = NodeNorm(width)
        nn.init.zeros_(self.norm.weight)

    def forward(self, features: Tensor) -> Tensor:
        """Look and add."""
        scores = torch.einsum("nbc,mbc->bnm", self.query(features), self.key(features))
        seen = torch.einsum("bnm,mbc->nbc", scores.softmax(-1), self.value(features))
        return features + self.norm(self.merge(seen))


class STGCN(nn.Module):
    """Spatial-temporal graph network of Cai et al., ICCV 2019 (section 3).

    From "Exploiting Spatial-temporal Relationships for 3D Pose Estimation via Graph Convolutional
    Networks", without the pose refinement, which is a network of its own.

    Args:
        skeleton: A `Skeleton` or the name of a preset.
        frames: Frames that come in, T, odd; the paper has 1, 3 and 7.
        widths: Widths of the three graph blocks on the joints.
        part_width: Width of the pooled graph.
        dropout: Probability of dropping a feature in the graph blocks; twice that on the way back
            from the parts and before the last layer, five times that at the bottom.

    Raises:
        ValueError: ``frames`` is even or less than one.
    """

    def __init__(
        self,
        skeleton: Skeleton | str = "h36m_17",
        *,
        frames: int = 1,
        widths: tuple[int, int, int] = (128, 128, 256),
        part_width: int = 512,
        dropout: float = 0.05,
    ) -> None:
        super().__init__()
        if frames < 1 or frames % 2 == 0:
            raise ValueError(f"frames: expected an odd number from 1 on, received {frames}.")
        self.skeleton = skeleton = find_skeleton(skeleton)
        self.frames = frames
        first, second, last = widths
        kernels = joint_kernels(skeleton, frames)
        self.normalise = nn.BatchNorm1d(2 * skeleton.num_joints)
        self.of_joints = nn.Sequential(
            GraphBlock(2, first, kernels, dropout=dropout, residual=False),
            GraphBlock(first, second, kernels, dropout=dropout),
            GraphBlock(second, last, kernels, dropout=dropout),
        )
        self.hourglass = Hourglass(skeleton, frames, last, part_width, last, dropout)
        self.non_local = NonLocal(2 * last)
        self.to_joints = nn.Sequential(nn.Dropout(2 * dropout), nn.Linear(2 * last, 3))

    def forward(self, keypoints: Tensor, *, all_frames: bool = False) -> Tensor:
        """Estimate.

        Args:
            keypoints: (B, T, J, 2).
            all_frames: Whether to give every frame, as the released code does for its training
                loss.

        Returns:
            The middle frame's joints (B, 1, J, 3), or all frames' (B, T, J, 3).
        """
        check_shape(keypoints, ("B", self.frames, self.skeleton.num_joints, 2))
        normal = self.normalise(rearrange(keypoints, "b t j c -> b (j c) t"))
        features = self.of_joints(rearrange(normal, "b (j c) t -> (t j) b c", c=2))
        joints = self.to_joints(self.non_local(torch.cat((features, self.hourglass(features)), -1)))
        every_frame = rearrange(joints, "(t j) b c -> b t j c", t=self.frames)
        middle = self.frames // 2
        return every_frame if all_frames else every_frame[:, middle : middle + 1]
