"""Rotations and rigid motion. Column vectors: a rotated point is ``R @ x``; right-handed."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .skeleton import Skeleton

_SMALLEST_ANGLE = 1e-12  # radians, for a sine that can be divided by its angle


def axis_angle_to_matrix(axis_angle: Tensor) -> Tensor:
    """Exact exponential map: axis times angle in radians to a rotation matrix.

    +0.6 about z sends the x axis to (0.825, 0.565, 0). Orthonormal to rounding, with a finite
    gradient at zero rotation.

    Args:
        axis_angle: (..., 3) radians.

    Returns:
        (..., 3, 3).
    """
    axes = torch.eye(3, dtype=axis_angle.dtype, device=axis_angle.device)
    turned = axes + turn_by(axis_angle.unsqueeze(-2), axes)
    return turned.transpose(-1, -2)  # where each axis goes is a column


def turn_by(axis_angle: Tensor, points: Tensor) -> Tensor:
    """By how much a rotation moves points: ``R x - x``.

    Args:
        axis_angle: (..., 3) axis times angle, radians.
        points: (..., 3), broadcast against it.

    Returns:
        (..., 3) in the unit of the points.
    """
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
    """Which way is down where people stand, as a unit vector (3,) in camera axes.

    The longest axis of root-relative poses (B, J, 3) all together: a standing body is some four
    times as high as wide, and turned every way in a training set. Two steps of power iteration from
    the camera's y, which it stays where poses have no longest axis; zero where all are points. One
    for the batch: where it mixes cameras that look level and steeply down, it lies between theirs.
    """
    points = poses.flatten(0, 1)
    spread = points.T @ points
    return nn.functional.normalize(spread @ spread[:, 1], dim=0)


def view_rotation(yaw: Tensor, pitch: Tensor, roll: Tensor, axis: Tensor) -> Tensor:
    """Turn (about ``axis``), tilt (about the camera's x), roll (about its viewing direction).

    ``R = R_z(roll) R_x(pitch) R_axis(yaw)`` in camera axes (x right, y down, z forward).

    Args:
        yaw: (...) radians.
        pitch: (...) radians.
        roll: (...) radians.
        axis: (3,) unit vector, as of `vertical`.

    Returns:
        (..., 3, 3).
    """
    (cp, cr), (sp, sr) = (torch.stack([f(pitch), f(roll)]).unbind() for f in (torch.cos, torch.sin))
    entries = [*(cr, -sr * cp, sr * sp), *(sr, cr * cp, -cr * sp), *(torch.zeros_like(cp), sp, cp)]
    tilt_and_roll = torch.stack(entries, -1).unflatten(-1, (3, 3))
    return tilt_and_roll @ axis_angle_to_matrix(yaw.unsqueeze(-1) * axis)


def root_relative(joints: Tensor, skeleton: Skeleton) -> Tensor:
    """Joints (..., J, 3) with the root joint at the origin."""
    return joints - joints[..., skeleton.root : skeleton.root + 1, :]


def transform_rigidly(points: Tensor, rotation: Tensor, centre: Tensor, moved_to: Tensor) -> Tensor:
    """Rotate about ``centre`` and put that centre at ``moved_to``: ``R (x - c) + m``.

    Args:
        points: (..., J, 3).
        rotation: (..., 3, 3).
        centre: (..., 3) in the unit of the points.
        moved_to: (..., 3) likewise.

    Returns:
        (..., J, 3).
    """
    return (points - centre.unsqueeze(-2)) @ rotation.transpose(-1, -2) + moved_to.unsqueeze(-2)


def rotate_by_quaternion(quaternion: Tensor, points: Tensor) -> Tensor:
    """Rotate points (..., 3) by unit quaternions (..., 4) in (w, x, y, z) order."""
    vector = quaternion[..., 1:].expand(points.shape)
    across = torch.cross(vector, points, dim=-1)
    return points + 2 * (quaternion[..., :1] * across + torch.cross(vector, across, dim=-1))


def _inverse(quaternion: Tensor) -> Tensor:
    return torch.cat([quaternion[..., :1], -quaternion[..., 1:]], -1)


def world_to_camera(points: Tensor, orientation: Tensor, translation: Tensor) -> Tensor:
    """World to camera space in VideoPose3D's convention.

    Args:
        points: (..., 3) metres.
        orientation: (..., 4) camera-to-world quaternion (w, x, y, z), broadcast to the points.
        translation: (..., 3) camera centre in the world, metres.

    Returns:
        (..., 3) metres, x right, y down, z forward.
    """
    return rotate_by_quaternion(_inverse(orientation), points - translation)


def camera_to_world(points: Tensor, orientation: Tensor, translation: Tensor) -> Tensor:
    """Inverse of `world_to_camera`; same arguments."""
    return rotate_by_quaternion(orientation, points) + translation
