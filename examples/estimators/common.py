"""What the estimators share: the shape check, and pooling over groups of joints."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


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
    """Maximum over the members of every group: (..., J) -> (..., groups)."""
    return features[..., table].amax(-1)
