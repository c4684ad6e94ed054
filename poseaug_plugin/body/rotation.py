"""Rotations and rigid motion. Column vectors: a rotated point is ``R @ x``; right-handed."""

import torch
from einops import rearrange
from torch import Tensor, nn

_SMALLEST_ANGLE = 1e-12  # radians, for a sine that can be divided by its angle


def axis_angle_to_matrix(axis_angle: Tensor) -> Tensor:
    """Exact exponential map: axis times angle (..., 3), radians, to rotation matrices (..., 3, 3).

    +0.6 about z sends the x axis to (0.825, 0.565, 0). Orthonormal to rounding, with a finite
    gradient at zero rotation.
    """
    axes = torch.eye(3, dtype=axis_angle.dtype, device=axis_angle.device)
    turned = axes + turn_by(axis_angle.unsqueeze(-2), axes)
    return turned.transpose(-1, -2)  # where each axis goes is a column


def turn_by(axis_angle: Tensor, points: Tensor) -> Tensor:
    """By how much rotations (axis times angle, (..., 3), radians) move points (..., 3): R x - x."""
    # Rodrigues for the angle t of a: R x - x = sin(t)/t (a × x) + (1 - cos(t))/t² (a × (a × x)), by
    # half of t, so that nothing cancels.
    angle = torch.linalg.vector_norm(axis_angle, dim=-1, keepdim=True)
    half = angle.clamp(min=_SMALLEST_ANGLE) / 2
    ratio = half.sin() / half
    axis_angle, points = torch.broadcast_tensors(axis_angle, points)
    across = torch.linalg.cross(axis_angle, points)
    twice = torch.linalg.cross(axis_angle, across)
    return torch.addcmul(ratio * half.cos() * across, ratio.square() / 2, twice)


def vertical(poses: Tensor) -> Tensor:
    """The direction down where people stand, as a unit vector (3,) in camera axes.

    It is the longest axis of root-relative poses (B, J, 3) all together: a standing body is some
    four times as high as wide, and turned every way in a training set. Power iteration starts from
    the camera's y axis, which it stays where no axis is longest. One direction serves a batch,
    whatever cameras are mixed in it; of joints in one point it is zero.
    """
    points = rearrange(poses, "poses joints xyz -> (poses joints) xyz")
    spread = points.T @ points
    return nn.functional.normalize(spread @ spread[:, 1], dim=0)


def view_rotation(yaw: Tensor, pitch: Tensor, roll: Tensor, axis: Tensor) -> Tensor:
    """Turn (about ``axis``), tilt (about the camera's x), roll (about its viewing direction).

    ``R = R_z(roll) R_x(pitch) R_axis(yaw)`` (..., 3, 3) in camera axes (x right, y down, z
    forward), of angles (...) in radians and a unit vector ``axis`` (3,), as of `vertical`.
    """
    angles = torch.stack([pitch, roll], -1)
    (cp, cr), (sp, sr) = (f(angles).unbind(-1) for f in (torch.cos, torch.sin))
    entries = [*(cr, -sr * cp, sr * sp), *(sr, cr * cp, -cr * sp), *(torch.zeros_like(cp), sp, cp)]
    tilt_and_roll = torch.stack(entries, -1).unflatten(-1, (3, 3))
    return tilt_and_roll @ axis_angle_to_matrix(yaw.unsqueeze(-1) * axis)


def transform_rigidly(points: Tensor, rotation: Tensor, centre: Tensor, moved_to: Tensor) -> Tensor:
    """Rotate (..., J, 3) about ``centre`` (..., 3), which goes to ``moved_to``: R (x - c) + m."""
    return (points - centre.unsqueeze(-2)) @ rotation.transpose(-1, -2) + moved_to.unsqueeze(-2)


def rotate_by_quaternion(quaternion: Tensor, points: Tensor) -> Tensor:
    """Rotate points (..., 3) by unit quaternions (..., 4) in (w, x, y, z) order."""
    vector = quaternion[..., 1:].expand(points.shape)
    across = torch.cross(vector, points, dim=-1)
    return points + 2 * (quaternion[..., :1] * across + torch.cross(vector, across, dim=-1))
