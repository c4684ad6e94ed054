"""Projection with VideoPose3D's nine intrinsics; what is in view; where a pose stands.

Intrinsics (..., 9): focal length / width * 2 (2), principal point normalised like pixels (2),
radial k1..k3, tangential p1, p2. Normalised screen coordinates: x in [-1, 1] over the image width,
y in [-h/w, h/w].
"""

from typing import NamedTuple

import torch
from torch import Tensor

from .rotation import rotate_by_quaternion

Z_NEAR = 0.1
"""Metres. Nearer points are not projected by 1/z but by its tangent, and are never in view."""

_LENS_LIMIT = 2.0  # of (x/z)^2 + (y/z)^2; the reference clamps x/z and y/z to 1


def _rays(points: Tensor) -> Tensor:
    """x/z and y/z (..., 2), with 1/z continued linearly below `Z_NEAR`."""
    # So it is finite behind the camera, and its gradient is never zero.
    z = points[..., 2:]
    safe = z.clamp(min=Z_NEAR)
    return points[..., :2] * torch.add(safe.reciprocal(), safe - z, alpha=1 / Z_NEAR**2)


def _per_point(intrinsics: Tensor, points: Tensor) -> Tensor:
    """(B, 9) -> (B, 1, ..., 9), to broadcast over whatever lies between batch and coordinates."""
    between = [1] * (points.dim() - intrinsics.dim())
    return intrinsics.reshape(*intrinsics.shape[:-1], *between, intrinsics.shape[-1])


def _distort(rays: Tensor, intrinsics: Tensor) -> Tensor:
    """Human3.6M's lens. Beyond 45 degrees on both axes its factor stays what it is there.

    The polynomial was fitted inside the frame. Further out it turns over and would send a point
    that moves right to the left, and its gradient with it.
    """
    k1, k2, k3, tangential = intrinsics[..., 4:].split((1, 1, 1, 2), -1)
    r2 = rays.square().sum(-1, keepdim=True)
    inside = rays * (r2.clamp(min=_LENS_LIMIT) / _LENS_LIMIT).rsqrt()
    r2 = r2.clamp(max=_LENS_LIMIT)
    radial = r2 * torch.addcmul(k1, r2, torch.addcmul(k2, r2, k3))
    factor = radial + (tangential * inside).sum(-1, keepdim=True)
    return rays + torch.addcmul(tangential * r2, rays, factor)


def _on_screen(slopes: Tensor, intrinsics: Tensor) -> Tensor:
    """Slopes that have passed the lens to normalised screen coordinates."""
    return torch.addcmul(intrinsics[..., 2:4], intrinsics[..., 0:2], slopes)


def project_points(points: Tensor, intrinsics: Tensor, *, distortion: bool = True) -> Tensor:
    """Camera-space points (B, ..., 3), metres, to normalised screen coordinates (B, ..., 2).

    Human3.6M's lens model with intrinsics (B, 9); ``distortion=False`` leaves the lens out.
    """
    intrinsics, rays = _per_point(intrinsics, points), _rays(points)
    return _on_screen(_distort(rays, intrinsics) if distortion else rays, intrinsics)


def project_rays(rays: Tensor, intrinsics: Tensor) -> Tensor:
    """Ray slopes (B, ..., 2), x/z and y/z, through the lens to normalised screen coordinates."""
    intrinsics = _per_point(intrinsics, rays)
    return _on_screen(_distort(rays, intrinsics), intrinsics)


def with_focal_ratio(intrinsics: Tensor, ratio: Tensor) -> Tensor:
    """The same cameras (B, 9) with their focal lengths multiplied by ``ratio`` (B, 1)."""
    return torch.cat([intrinsics[:, :2] * ratio, intrinsics[:, 2:]], 1)


def in_view(
    points: Tensor, intrinsics: Tensor, aspect_ratio: float = 1.0, keypoints: Tensor | None = None
) -> Tensor:
    """Which points (B, ..., 3) are in front of the camera and in the frame: (B, ...) bool.

    Lens polynomials can fold far-away rays back into the picture. So a point is out as well where
    the lens has turned over, or where it would be well outside without the lens. False for NaN.
    ``aspect_ratio`` is height / width; ``keypoints`` are the projections, where those are known.
    """
    if keypoints is None:
        keypoints = project_points(points, intrinsics)
    intrinsics = _per_point(intrinsics, points)
    rays, z = points[..., :2] / points[..., 2:], points[..., 2]
    # At most 1 in the frame: by the lens, and with a margin of one half without it.
    pinhole = _on_screen(rays, intrinsics).abs()
    x, y = torch.maximum(keypoints.abs(), pinhole / 1.5).unbind(-1)
    # The slope of the distorted radius, less 1: it still grows with the radius there.
    r2 = rays.square().sum(-1)
    k1, k2, k3 = intrinsics[..., 4:7].unbind(-1)
    slope = r2 * torch.addcmul(3 * k1, r2, torch.addcmul(5 * k2, r2, k3, value=7))
    return (z > Z_NEAR) & (x <= 1.0) & (y <= aspect_ratio) & (slope > -1)


def undistort_points(keypoints: Tensor, intrinsics: Tensor, iterations: int = 8) -> Tensor:
    """Normalised screen coordinates (B, ..., 2) to ray slopes (x/z, y/z), by fixed-point iteration.

    Exact to rounding inside the frame for lenses like Human3.6M's.
    """
    intrinsics = _per_point(intrinsics, keypoints)
    rays = measured = (keypoints - intrinsics[..., 2:4]) / intrinsics[..., 0:2]
    for _ in range(iterations):
        rays = rays + (measured - _distort(rays, intrinsics))
    return rays


class SolvedRoot(NamedTuple):
    """Result of `solve_root`."""

    root: Tensor  # (..., 3) metres
    found: Tensor  # (...) bool: in front of the camera and well conditioned


def solve_root(keypoints: Tensor, relative_joints: Tensor, intrinsics: Tensor) -> SolvedRoot:
    """Where a root-relative pose has to stand to be seen at its 2D keypoints.

    Keypoints (B, ..., J, 2), joints (B, ..., J, 3) in metres with the root at the origin and
    intrinsics (B, 9) give a root (B, ..., 3). Every joint gives two equations linear in the root t:
    X + t_x = a (Z + t_z) and Y + t_y = b (Z + t_z), with ray slopes (a, b); least squares.
    """
    slopes, z = undistort_points(keypoints, intrinsics), relative_joints[..., 2:]
    # From the normal equations, with means over the joints: t_x = mean(a) t_z + mean(aZ - X).
    along = slopes * z - relative_joints[..., :2]
    mean_slope, mean_along = slopes.mean(-2), along.mean(-2)
    off = slopes - mean_slope.unsqueeze(-2)
    spread = off.square().sum((-2, -1))
    pull = (off * (along - mean_along.unsqueeze(-2))).sum((-2, -1))
    conditioned = spread > 1e-8
    t_z = -pull / torch.where(conditioned, spread, 1.0)
    root = torch.cat([mean_slope * t_z.unsqueeze(-1) + mean_along, t_z.unsqueeze(-1)], -1)
    return SolvedRoot(root, conditioned & (t_z > Z_NEAR) & root.isfinite().all(-1))


def normalize_screen_coordinates(pixels: Tensor, width: float, height: float) -> Tensor:
    """Pixels (..., 2) to [-1, 1] over the width, aspect ratio kept (VideoPose3D's convention).

    Whole-numbered pixels become the default floating-point type.
    """
    normalized = pixels / width * 2
    return normalized - normalized.new_tensor([1.0, height / width])


def image_coordinates(normalized: Tensor, width: float, height: float) -> Tensor:
    """Inverse of `normalize_screen_coordinates`."""
    return (normalized + normalized.new_tensor([1.0, height / width])) * width / 2


def world_to_camera(points: Tensor, orientation: Tensor, translation: Tensor) -> Tensor:
    """World to camera space, x right, y down, z forward, in VideoPose3D's convention.

    Points (..., 3) and ``translation``, the camera's centre (..., 3), in metres; ``orientation`` is
    the camera-to-world quaternion (..., 4) in (w, x, y, z) order.
    """
    inverse = torch.cat([orientation[..., :1], -orientation[..., 1:]], -1)
    return rotate_by_quaternion(inverse, points - translation)


def camera_to_world(points: Tensor, orientation: Tensor, translation: Tensor) -> Tensor:
    """Inverse of `world_to_camera`; same arguments."""
    return rotate_by_quaternion(orientation, points) + translation
