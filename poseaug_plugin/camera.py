"""Projection with VideoPose3D's nine intrinsics; what is in view; where a pose stands.

Intrinsics (..., 9): focal length / width * 2 (2), principal point normalised like pixels (2),
radial k1..k3, tangential p1, p2. Normalised screen coordinates: x in [-1, 1] over the image width,
y in [-h/w, h/w].
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

Z_NEAR = 0.1
"""Metres. Nearer points are not projected by 1/z but by its tangent, and are never in view."""

_UNDISTORTED_MARGIN = 1.5
_LENS_LIMIT = 2.0  # of (x/z)^2 + (y/z)^2; the reference clamps x/z and y/z to 1


def _rays(points: Tensor) -> Tensor:
    """x/z and y/z (..., 2), with 1/z continued linearly below `Z_NEAR`.

    So it is finite behind the camera, and its gradient is never zero.
    """
    z = points[..., 2:]
    safe = z.clamp(min=Z_NEAR)
    return points[..., :2] * torch.add(1 / safe, safe - z, alpha=1 / Z_NEAR**2)


def _per_point(intrinsics: Tensor, points: Tensor) -> Tensor:
    """(B, 9) -> (B, 1, ..., 9), to broadcast over whatever lies between batch and coordinates."""
    return intrinsics.reshape(
        *intrinsics.shape[:-1], *[1] * (points.dim() - intrinsics.dim()), intrinsics.shape[-1]
    )


def _distort(rays: Tensor, intrinsics: Tensor) -> Tensor:
    """Human3.6M's lens. Beyond 45 degrees on both axes its factor stays what it is there.

    The polynomial was fitted inside the frame. Further out it turns over and would send a point
    that moves right to the left, and its gradient with it.
    """
    tangential = intrinsics[..., 7:9]
    r2 = rays.square().sum(-1, keepdim=True)
    inside = rays * (_LENS_LIMIT / r2.clamp(min=_LENS_LIMIT)).sqrt()
    r2 = r2.clamp(max=_LENS_LIMIT)
    k1, k2, k3 = intrinsics[..., 4:7].split(1, -1)
    radial = 1 + r2 * torch.addcmul(k1, r2, torch.addcmul(k2, r2, k3))
    factor = radial + (tangential * inside).sum(-1, keepdim=True)
    return torch.addcmul(tangential * r2, rays, factor)


def _on_screen(slopes: Tensor, intrinsics: Tensor) -> Tensor:
    """Slopes that have passed the lens to normalised screen coordinates."""
    return torch.addcmul(intrinsics[..., 2:4], intrinsics[..., 0:2], slopes)


def project_points(
    points: Tensor, intrinsics: Tensor, *, distortion: bool = True, clamp_rays: bool = False
) -> Tensor:
    """Camera-space points to normalised screen coordinates (Human3.6M's lens model).

    Args:
        points: (B, ..., 3) metres.
        intrinsics: (B, 9), see the module's head.
        distortion: Apply the lens coefficients.
        clamp_rays: Cut x/z and y/z to [-1, 1] as the reference code does. It kills the gradient
            outside, which would pull a pose back, so it is only for reproducing numbers.

    Returns:
        (B, ..., 2).
    """
    intrinsics = _per_point(intrinsics, points)
    rays = (points[..., :2] / points[..., 2:]).clamp(-1, 1) if clamp_rays else _rays(points)
    return _on_screen(_distort(rays, intrinsics) if distortion else rays, intrinsics)


def with_focal_ratio(intrinsics: Tensor, ratio: Tensor) -> Tensor:
    """The same cameras (B, 9) with their focal lengths multiplied by ``ratio`` (B, 1)."""
    return torch.cat([intrinsics[:, :2] * ratio, intrinsics[:, 2:]], 1)


def in_view(
    points: Tensor,
    intrinsics: Tensor,
    aspect_ratio: float = 1.0,
    keypoints: Tensor | None = None,
) -> Tensor:
    """Which points are in front of the camera and inside the frame on all four sides.

    Lens polynomials can fold far-away rays back into the picture. So a point is out as well where
    the lens has turned over, or where it would be well outside without the lens.

    Args:
        points: (B, ..., 3) metres, camera space.
        intrinsics: (B, 9).
        aspect_ratio: Image height / width.
        keypoints: (B, ..., 2) what `project_points` makes of them, where that is known already.

    Returns:
        (B, ...) bool; False for NaN.
    """
    intrinsics, rays = _per_point(intrinsics, points), _rays(points)
    if keypoints is None:
        keypoints = _on_screen(_distort(rays, intrinsics), intrinsics)
    seen = _in_frame(keypoints, 1.0, aspect_ratio)
    margin = _UNDISTORTED_MARGIN
    pinhole = _in_frame(_on_screen(rays, intrinsics), margin, margin * aspect_ratio)
    return (points[..., 2] > Z_NEAR) & seen & pinhole & _grows_outwards(rays, intrinsics)


def _in_frame(keypoints: Tensor, x_limit: float, y_limit: float) -> Tensor:
    x, y = keypoints.abs().unbind(-1)
    return (x <= x_limit) & (y <= y_limit)


def _grows_outwards(rays: Tensor, intrinsics: Tensor) -> Tensor:
    """(B, ...) bool: the distorted radius still grows with the radius there."""
    r2 = rays.square().sum(-1)
    k1, k2, k3 = intrinsics[..., 4:7].unbind(-1)
    return 1 + r2 * torch.addcmul(3 * k1, r2, torch.addcmul(5 * k2, r2, k3, value=7)) > 0


def undistort_points(keypoints: Tensor, intrinsics: Tensor, iterations: int = 8) -> Tensor:
    """Normalised screen coordinates (B, ..., 2) to ray slopes (x/z, y/z), by fixed-point iteration.

    Exact to rounding inside the frame for lenses like Human3.6M's.
    """
    intrinsics = _per_point(intrinsics, keypoints)
    measured = (keypoints - intrinsics[..., 2:4]) / intrinsics[..., 0:2]
    rays = measured
    for _ in range(iterations):
        rays = rays + (measured - _distort(rays, intrinsics))
    return rays


class SolvedRoot(NamedTuple):
    """Result of `solve_root`."""

    root: Tensor  # (..., 3) metres
    found: Tensor  # (...) bool: in front of the camera and well conditioned


def solve_root(keypoints: Tensor, relative_joints: Tensor, intrinsics: Tensor) -> SolvedRoot:
    """Where a root-relative pose has to stand to be seen at its 2D keypoints.

    Every joint gives two equations linear in the root t: X + t_x = a (Z + t_z) and
    Y + t_y = b (Z + t_z), with ray slopes (a, b); solved by least squares in closed form.

    Args:
        keypoints: (B, ..., J, 2) normalised screen coordinates.
        relative_joints: (B, ..., J, 3) metres, root at the origin.
        intrinsics: (B, 9).

    Returns:
        `SolvedRoot` of (B, ..., 3) and (B, ...).
    """
    a, b = undistort_points(keypoints, intrinsics).unbind(-1)
    x, y, z = relative_joints.unbind(-1)
    # From the normal equations, with means over the joints: t_x = mean(a) t_z + mean(aZ - X).
    along_x, along_y = a * z - x, b * z - y
    mean_a, mean_b = a.mean(-1, keepdim=True), b.mean(-1, keepdim=True)
    mean_x, mean_y = along_x.mean(-1, keepdim=True), along_y.mean(-1, keepdim=True)
    spread = ((a - mean_a).square() + (b - mean_b).square()).sum(-1)
    pull = ((a - mean_a) * (along_x - mean_x) + (b - mean_b) * (along_y - mean_y)).sum(-1)
    conditioned = spread > 1e-8
    t_z = -pull / torch.where(conditioned, spread, 1.0)
    root = torch.stack(
        [mean_a[..., 0] * t_z + mean_x[..., 0], mean_b[..., 0] * t_z + mean_y[..., 0], t_z], -1
    )
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
