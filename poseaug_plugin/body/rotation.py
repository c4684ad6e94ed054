"""Rotations. Column vectors: a rotated point is ``R @ x``; right-handed."""

import torch
from torch import Tensor, nn


def axis_angle_to_matrix(axis_angle: Tensor) -> Tensor:
    """Exact exponential map: axis times angle (..., 3), radians, to rotation matrices (..., 3, 3).

    +0.6 about z sends the x axis to (0.825, 0.565, 0). The gradient is finite at zero rotation.
    """
    axes = torch.eye(3, dtype=axis_angle.dtype, device=axis_angle.device)
    axes = axes.expand(*axis_angle.shape, 3)
    turned = axes + turn_by(axis_angle.unsqueeze(-2), axes)
    return turned.transpose(-1, -2)  # where each axis goes is a column


def turn_by(axis_angle: Tensor, points: Tensor) -> Tensor:
    """By how much rotations (axis times angle, (..., 3), radians) move points (..., 3): R x - x."""
    # By the unit quaternion (w, v): R x - x = 2 v × (w x + v × x). Nothing cancels.
    angle = torch.linalg.vector_norm(axis_angle, dim=-1, keepdim=True)
    half = (angle / 2).clamp(min=1e-12)  # a sine is divided by it
    twice = axis_angle * (half.sin() / half)
    across = torch.linalg.cross(twice, points)
    return torch.linalg.cross(twice, torch.add(half.cos() * points, across, alpha=0.5))


def vertical(poses: Tensor) -> Tensor:
    """The direction down where people stand, as a unit vector (3,) in camera axes.

    It is the longest axis of root-relative poses (B, J, 3) all together, since bodies are higher
    than wide and turned every way. Power iteration starts from the camera's y axis, and stays there
    where no axis is longest. One direction serves a batch; of joints in one point it is zero.
    """
    points = poses.flatten(0, 1)
    spread = points.T @ points
    return nn.functional.normalize(spread @ spread[:, 1], dim=0)


def view_rotation(angles: Tensor, axis: Tensor) -> Tensor:
    """Turn (about ``axis``), tilt (about the camera's x), roll (about its viewing direction).

    ``R = R_z(roll) R_x(pitch) R_axis(yaw)`` (B, 3, 3) in camera axes (x right, y down, z forward),
    of angles (B, 3), yaw, pitch and roll in radians, and a unit vector ``axis`` (3,).
    """
    # Rodrigues, about the three axes at once: 1 + sin(t) K + (1 - cos(t)) K², where K x = axis × x.
    one = torch.eye(3, dtype=axis.dtype, device=axis.device)
    axes = torch.stack([axis, one[0], one[2]])
    across = torch.linalg.cross(one.unsqueeze(0), axes.unsqueeze(1))
    angles = angles.reshape(-1, 3, 1, 1)
    by_sine = torch.addcmul(one, angles.sin(), across)
    each = torch.addcmul(by_sine, 1 - angles.cos(), torch.bmm(across, across))
    turn, tilt, roll = each.unbind(1)
    return torch.bmm(torch.bmm(roll, tilt), turn)
