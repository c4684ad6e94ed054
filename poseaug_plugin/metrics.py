"""The field's metrics of predicted poses, batched, on any device.

Every function takes ``predicted`` and ``target`` (..., J, 3) and answers in their unit.
``reduction="mean"`` gives a scalar, ``"none"`` one error per pose (...). Nothing is made
root-relative; do that first where a protocol asks for it. Half precision is evaluated and returned
in float32. NaN joints give NaN errors and count as wrong in `pck` and `auc`. Shapes, dtypes or a
reduction that do not fit raise `PoseAugError`.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from .errors import PoseAugError, check_choice

Reduce = Literal["mean", "none"]

AUC_THRESHOLDS = tuple(millimetres / 1000 for millimetres in range(0, 151, 5))
"""Metres. The 31 thresholds of MPI-INF-3DHP, 0 to 150 mm."""


def mpjpe(predicted: Tensor, target: Tensor, *, reduction: Reduce = "mean") -> Tensor:
    """Mean per-joint position error: Human3.6M protocol 1 (Ionescu et al. 2014).

    Usable as a loss: its gradient is 0, not NaN, where a joint is hit exactly.

    Examples:
        >>> target = torch.zeros(2, 17, 3)
        >>> mpjpe(target + torch.tensor([3.0, 0.0, 4.0]), target)
        tensor(5.)
    """
    predicted, target = _checked("mpjpe", predicted, target)
    return _reduce("mpjpe", (predicted - target).norm(dim=-1).mean(-1), reduction)


def p_mpjpe(predicted: Tensor, target: Tensor, *, reduction: Reduce = "mean") -> Tensor:
    """MPJPE after the best similarity transform: Human3.6M protocol 2 (Ionescu et al. 2014).

    Each prediction is moved, rotated and scaled to its target by least squares (Procrustes; Umeyama
    1991), but not mirrored: a left/right swap stays an error. Of joints in one point the centroid
    is aligned. No loss: the gradient is NaN where the best rotation is not unique.

    Examples:
        >>> target = torch.tensor([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 2.0, 0.0]])
        >>> turned = target[:, [1, 2, 0]]  # x, y, z renamed cyclically is a rotation
        >>> bool(p_mpjpe(3 * turned + 1, target) < 1e-5)
        True
    """
    predicted, target = _checked("p_mpjpe", predicted, target)
    predicted_shape, _ = _normalised(predicted)
    target_shape, target_size = _normalised(target)

    # The SVD raises on NaN. Replaced here only: the errors below are NaN all the same.
    covariance = _product(predicted_shape.mT, target_shape).nan_to_num()
    u, singular_values, vh = torch.linalg.svd(covariance)
    # Where the best orthogonal map is a mirroring, flipping its weakest axis gives the rotation.
    one = torch.ones_like(singular_values[..., 0])
    signs = torch.stack([one, one, torch.linalg.det(_product(u, vh)).sign()], -1)
    rotation = _product(u * signs.unsqueeze(-2), vh)
    scale = (singular_values * signs).sum(-1)[..., None, None]

    difference = scale * _product(predicted_shape, rotation) - target_shape
    return _reduce("p_mpjpe", (difference * target_size).norm(dim=-1).mean(-1), reduction)


def n_mpjpe(predicted: Tensor, target: Tensor, *, reduction: Reduce = "mean") -> Tensor:
    """MPJPE after the best scaling of each prediction about the origin (Rhodin et al. 2018)."""
    predicted, target = _checked("n_mpjpe", predicted, target)
    agreement = (predicted * target).sum((-2, -1), keepdim=True)
    # The floor only matters for an all-zero prediction, which any scale leaves where it is.
    squared_size = predicted.square().sum((-2, -1), keepdim=True)
    scale = agreement / squared_size.clamp(min=torch.finfo(predicted.dtype).tiny)
    return _reduce("n_mpjpe", (scale * predicted - target).norm(dim=-1).mean(-1), reduction)


def mpjve(predicted: Tensor, target: Tensor, *, reduction: Reduce = "mean") -> Tensor:
    """Mean per-joint velocity error of sequences (..., T, J, 3), T >= 2 (Pavllo et al. 2019).

    Velocities are differences of neighbouring frames, on axis -3 (the paper's code: on axis 0).
    """
    predicted, target = _checked("mpjve", predicted, target)
    if predicted.dim() < 3 or predicted.shape[-3] < 2:
        raise PoseAugError(
            "mpjve: predicted must be (..., frames, joints, 3) with two frames or more, "
            f"got {tuple(predicted.shape)}."
        )
    errors = (predicted - target).diff(dim=-3).norm(dim=-1)
    return _reduce("mpjve", errors.mean((-2, -1)), reduction)


def pck(predicted: Tensor, target: Tensor, *, threshold: float = 0.150) -> Tensor:
    """Percentage of correct keypoints in 3D, 3DPCK (Mehta et al. 2017): a scalar in [0, 100].

    An error below ``threshold``, in the unit of the poses, is correct; by default 150 mm. A root at
    the origin in both is always correct: drop it, or keep it to compare with released numbers.
    """
    predicted, target = _checked("pck", predicted, target)
    errors = (predicted - target).norm(dim=-1)
    return 100 * (errors < threshold).to(errors.dtype).mean()


def auc(
    predicted: Tensor, target: Tensor, *, thresholds: Sequence[float] = AUC_THRESHOLDS
) -> Tensor:
    """Area under the PCK curve: the mean of `pck` over thresholds (Mehta et al. 2017).

    The usual thresholds start at 0, below which no error lies: a perfect prediction gets 96.8.
    """
    predicted, target = _checked("auc", predicted, target)
    errors = (predicted - target).norm(dim=-1)
    if not len(thresholds):
        raise PoseAugError("auc: thresholds must not be empty.")
    edges = torch.tensor(sorted(thresholds), dtype=errors.dtype, device=errors.device)
    # Thresholds not above an error are those that it misses: no (..., J, thresholds) array needed.
    missed = torch.searchsorted(edges, errors, side="right")
    return 100 * (1 - missed.to(errors.dtype).mean() / len(edges))


def _checked(name: str, predicted: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Both poses in one dtype that can be computed with, or an error that begins with ``name``."""
    shape, wanted = tuple(predicted.shape), tuple(target.shape)
    kinds, both = (predicted.dtype, target.dtype), f"{name}: predicted and target must"
    if predicted.dim() < 2 or shape[-1] != 3:
        raise PoseAugError(f"{name}: predicted must be (..., joints, 3), got {shape}.")
    if shape != wanted:
        raise PoseAugError(f"{both} have the same shape, got {shape} and {wanted}.")
    if not all(kind.is_floating_point for kind in kinds):
        raise PoseAugError(f"{both} be floating point, got {kinds[0]} and {kinds[1]}.")
    # There is no SVD in half precision, and a sum over joints would lose millimetres.
    dtype = torch.promote_types(torch.promote_types(*kinds), torch.float32)
    return predicted.to(dtype), target.to(dtype)


def _normalised(pose: Tensor) -> tuple[Tensor, Tensor]:
    """A pose about its centroid at norm 1 (0 if it is one point), and its norm (..., 1, 1)."""
    centred = pose - pose.mean(-2, keepdim=True)
    size = centred.norm(dim=(-2, -1), keepdim=True)
    # Dividing by infinity makes 0 of a pose without size, and leaves NaN what is NaN.
    return centred / size.masked_fill(size == 0, torch.inf), size


def _product(left: Tensor, right: Tensor) -> Tensor:
    """``left @ right`` in full precision, which a matmul loses under autocast or TF32."""
    return (left.unsqueeze(-1) * right.unsqueeze(-3)).sum(-2)


def _reduce(name: str, values: Tensor, reduction: str) -> Tensor:
    check_choice(f"{name}: reduction", reduction, ("mean", "none"))
    return values.mean() if reduction == "mean" else values
