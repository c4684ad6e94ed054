"""What the estimators share: the shape check, and layers on the nodes of a graph.

Graph networks have features of shape (nodes, B, channels) here. So every layer is one large matrix
product: of channels for all nodes and samples, or of nodes for all samples and channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def check_shape(keypoints: Tensor, expected: Sequence[int | str]) -> None:
    """Compare a shape; names in ``expected`` stand for sizes that are free.

    Raises:
        ValueError: Another number of dimensions, or another size where one is given.
    """
    received = tuple(keypoints.shape)
    if len(received) != len(expected) or any(
        isinstance(size, int) and size != came
        for size, came in zip(expected, received, strict=True)
    ):
        sizes = ", ".join(str(size) for size in expected)
        raise ValueError(f"keypoints: expected shape ({sizes}), received {received}.")


def group_table(groups: Sequence[Sequence[int]]) -> Tensor:
    """Members of every group, (groups, largest group).

    A smaller group repeats its first member, which changes no maximum.
    """
    largest = max(len(group) for group in groups)
    return torch.tensor([[*group, *[group[0]] * (largest - len(group))] for group in groups])


def max_pool_groups(features: Tensor, table: Tensor) -> Tensor:
    """Maximum over the members of every group: (N, B, C) -> (groups, B, C)."""
    return features[table].amax(1)


def graph_convolution(features: Tensor, kernels: Tensor, weights: Tensor) -> Tensor:
    """Sum over kinds of neighbours, each with a matrix of its own: (N, B, C) -> (N, B, outputs).

    Args:
        features: (N, B, C).
        kernels: How much of each source a target takes, (K, targets, sources).
        weights: Of every kind, (K, outputs, C).
    """
    total = features.new_zeros(())
    for kernel, weight in zip(kernels, weights, strict=True):
        gathered = (kernel @ features.flatten(1)).view(-1, features.shape[-1])
        total = torch.addmm(total, gathered, weight.T)
    return total.view(*features.shape[:2], -1)


class NodeNorm(nn.BatchNorm1d):
    """Batch normalisation of each channel over all nodes and samples: (N, B, C) -> the same."""

    def forward(self, features: Tensor) -> Tensor:
        """Normalise."""
        return super().forward(features.flatten(0, 1)).view_as(features)
