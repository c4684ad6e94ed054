"""Projection with VideoPose3D's nine intrinsics; what is in view; where a pose stands.

Intrinsics (..., 9): focal length / width * 2 (2), principal point normalised like pixels (2),
radial k1..k3, tangential p1, p2. Normalised screen coordinates: x in [-1, 1], y in [-h/w, h/w].
"""

import torch
from torch import Tensor

Z_NEAR = 0.1
"""Metres. Nearer points are not projected by 1/z but by its tangent, and are never in view."""

_LENS_LIMIT = 2.0  # of (x/z)^2 + (y/z)^2; the reference clamps x/z and y/z to 1


def _per_point(intrinsics: Tensor, points: Tensor) -> Tensor:
    """(B, 9) -> (B, 1, ..., 9), to broadcast over whatever lies between batch and coordinates."""
    between = [1] * (points.dim() - intrinsics.dim())
    return intrinsics.reshape(*intrinsics.shape[:-1], *between, intrinsics.shape[-1])


def _distort(rays: Tensor, intrinsics: Tensor) -> Tensor:
    """Human3.6M's lens. Beyond 45 degrees on both axes, where it turns over, its factor stays."""
    k1, k2, k3, tangential = intrinsics[..., 4:].split((1, 1, 1, 2), -1)
    r2 = rays.square().sum(-1, keepdim=True)
    inside = rays * (r2.clamp(min=_LENS_LIMIT) / _LENS_LIMIT).rsqrt()
    r2 = r2.clamp(max=_LENS_LIMIT)
    radial = r2 * torch.addcmul(k1, r2, torch.addcmul(k2, r2, k3))
    factor = radial + (tangential * inside).sum(-1, keepdim=True)
    return rays + torch.addcmul(tangential * r2, rays, factor)


def project_points(points: Tensor, intrinsics: Tensor) -> Tensor:
    """Camera-space points (B, ..., 3), metres, to normalised screen coordinates (B, ..., 2).

    Human3.6M's lens model with intrinsics (B, 9).
    """
    z = points[..., 2:]
    # Below Z_NEAR 1/z goes on as a line: finite behind the camera, and its gradient never zero.
    safe = z.clamp(min=Z_NEAR)
    inverse = torch.add(safe.reciprocal(), safe - z, alpha=1 / Z_NEAR**2)
    return project_rays(points[..., :2] * inverse, intrinsics)


def project_rays(rays: Tensor, intrinsics: Tensor) -> Tensor:
    """Ray slopes (B, ..., 2), x/z and y/z, through the lens to normalised screen coordinates."""
    intrinsics = _per_point(intrinsics, rays)
    return torch.addcmul(intrinsics[..., 2:4], intrinsics[..., :2], _distort(rays, intrinsics))


def in_view(
    points: Tensor, keypoints: Tensor, intrinsics: Tensor, aspect_ratio: float = 1.0
) -> Tensor:
    """Which points (B, ..., 3) are in front of the camera and in the frame: (B, ...) bool.

    Lens polynomials can fold far-away rays back into the picture, to ``keypoints`` (B, ..., 2). So
    a point is out as well where the lens has turned over, or where it would be well outside without
    the lens. False for NaN. ``aspect_ratio`` is height / width.
    """
    intrinsics = _per_point(intrinsics, points)
    rays, z = points[..., :2] / points[..., 2:], points[..., 2]
    # At most 1 in the frame: by the lens, and with a margin of one half without it.
    pinhole = torch.addcmul(intrinsics[..., 2:4], intrinsics[..., :2], rays).abs()
    x, y = torch.maximum(keypoints.abs(), pinhole / 1.5).unbind(-1)
    # The slope of the distorted radius, less 1: it still grows with the radius there.
    r2 = rays.square().sum(-1)
    k1, k2, k3 = intrinsics[..., 4:7].unbind(-1)
    slope = r2 * torch.addcmul(3 * k1, r2, torch.addcmul(5 * k2, r2, k3, value=7))
    return (z > Z_NEAR) & (x <= 1.0) & (y <= aspect_ratio) & (slope > -1)


def undistort_points(keypoints: Tensor, intrinsics: Tensor) -> Tensor:
    """Normalised screen coordinates (B, ..., 2) to ray slopes (x/z, y/z), by fixed-point iteration.

    Exact to rounding inside the frame for lenses like Human3.6M's.
    """
    intrinsics = _per_point(intrinsics, keypoints)
    rays = measured = (keypoints - intrinsics[..., 2:4]) / intrinsics[..., 0:2]
    for _ in range(8):
        rays = rays + (measured - _distort(rays, intrinsics))
    return rays


def solve_root(
    keypoints: Tensor, relative_joints: Tensor, intrinsics: Tensor
) -> tuple[Tensor, Tensor]:
    """Where a root-relative pose has to stand to be seen at its 2D keypoints.

    Keypoints (B, ..., J, 2), joints (B, ..., J, 3) in metres with the root at the origin and
    intrinsics (B, 9) give a root (B, ..., 3), and whether it was found (B, ...): in front of the
    camera and well conditioned. Every joint gives two equations linear in the root t, with ray
    slopes (a, b): X + t_x = a (Z + t_z) and Y + t_y = b (Z + t_z). Least squares.
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
    return root, conditioned & (t_z > Z_NEAR) & root.isfinite().all(-1)


def normalize_screen_coordinates(pixels: Tensor, width: float, height: float) -> Tensor:
    """Pixels (..., 2) to [-1, 1] over the width, aspect ratio kept (VideoPose3D's convention).

    Whole-numbered pixels become the default floating-point type.
    """
    normalized = pixels / width * 2
    return normalized - normalized.new_tensor([1.0, height / width])


def world_to_camera(points: Tensor, orientation: Tensor, translation: Tensor) -> Tensor:
    """World to camera space, x right, y down, z forward, in VideoPose3D's convention.

    Points (..., 3) and ``translation``, the camera's centre (..., 3), in metres; ``orientation`` is
    the camera-to-world quaternion (..., 4) in (w, x, y, z) order.
    """
    from_camera = points - translation
    axis = -orientation[..., 1:].expand(from_camera.shape)
    across = torch.cross(axis, from_camera, dim=-1)
    return from_camera + 2 * (orientation[..., :1] * across + torch.cross(axis, across, dim=-1))
