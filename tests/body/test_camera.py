"""Cameras: projection, what is in view, pixels, and where the camera stands in the world."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from helpers import agree, h36m_intrinsics
from hypothesis import given
from hypothesis import strategies as st
from random_bodies import normal, seeds, some_examples
from torch import Tensor, nn

from poseaug_plugin.body.camera import (
    Z_NEAR,
    in_view,
    normalize_screen_coordinates,
    project_points,
    undistort_points,
    world_to_camera,
)


def pinhole(batch: int = 1, focal: float = 2.0) -> Tensor:
    """No distortion, principal point in the middle."""
    intrinsics = torch.zeros(batch, 9, dtype=torch.float64)
    intrinsics[:, :2] = focal
    return intrinsics


# -- projection ------------------------------------------------------------------------------------


def any_cameras(batch: int, seed: int) -> Tensor:
    """About Human3.6M's, with other numbers for every coefficient."""
    scale = torch.tensor([0.3, 0.3, 0.1, 0.1, 0.1, 0.1, 0.02, 0.01, 0.01])
    return h36m_intrinsics(batch) + scale * normal(batch, 9, seed=seed).tanh()


def project_by_loop(points: Tensor, intrinsics: Tensor) -> Tensor:
    """Human3.6M's lens model, point by point."""
    seen = np.empty((*points.shape[:-1], 2))
    for index in np.ndindex(*points.shape[:-1]):
        x, y, z = points[index].tolist()
        fx, fy, cx, cy, k1, k2, k3, p1, p2 = intrinsics[index[0]].tolist()
        a, b = x / z, y / z
        r2 = a * a + b * b
        factor = 1 + k1 * r2 + k2 * r2**2 + k3 * r2**3 + p1 * a + p2 * b
        a, b = a * factor + p1 * r2, b * factor + p2 * r2
        seen[index] = fx * a + cx, fy * b + cy
    return torch.from_numpy(seen)


@some_examples
@given(st.sampled_from([(), (5,), (2, 5), (2, 1, 3)]), st.booleans(), seeds)
def test_projection_is_what_a_loop_finds(
    shape: tuple[int, ...], distortion: bool, seed: int
) -> None:
    points = normal(3, *shape, 3, seed=seed) + torch.tensor([0.0, 0.0, 6.0])
    points[..., 2].clamp_(min=2 * Z_NEAR)
    intrinsics = any_cameras(3, seed)
    if not distortion:
        intrinsics[:, 4:] = 0
    agree(project_points(points, intrinsics), project_by_loop(points, intrinsics))


def outside_or_behind() -> Tensor:
    """A grid of points from far left to far right and from behind the camera to far before it."""
    x, y = (torch.linspace(-3, 3, 7).double() + 0.05 for _ in range(2))
    z = torch.tensor([-5.0, -1.0, -Z_NEAR, 0.0, 0.5 * Z_NEAR, Z_NEAR, 0.2, 1.0, 4.0])
    return torch.cartesian_prod(x, y, z.double())[None]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("distortion", [False, True])
def test_projection_gradients_never_vanish_or_overflow(
    dtype: torch.dtype, distortion: bool
) -> None:
    points = outside_or_behind().to(dtype).requires_grad_()
    for intrinsics in h36m_intrinsics(4).to(dtype):
        if not distortion:
            intrinsics[4:] = 0
        seen = project_points(points, intrinsics[None])
        assert seen.isfinite().all()
        for coordinate in seen.unbind(-1):
            (slopes,) = torch.autograd.grad(coordinate.sum(), points, retain_graph=True)
            assert slopes.isfinite().all()
            assert (slopes.norm(dim=-1) > 0).all()


def test_a_step_to_the_right_is_one_to_the_right_everywhere() -> None:
    # Behind the camera 1/z would mirror the picture and push points the wrong way.
    points = outside_or_behind().requires_grad_()
    seen = project_points(points, pinhole())
    for axis in (0, 1):
        (slopes,) = torch.autograd.grad(seen[..., axis].sum(), points, retain_graph=True)
        assert (slopes[..., axis] > 0).all()


def test_a_step_to_the_right_is_one_to_the_right_through_a_real_lens_too() -> None:
    points = outside_or_behind().expand(4, -1, -1).clone().requires_grad_()
    seen = project_points(points, h36m_intrinsics(4))
    for axis in (0, 1):
        (slopes,) = torch.autograd.grad(seen[..., axis].sum(), points, retain_graph=True)
        assert (slopes[..., axis] > 0).all()


def test_a_step_forward_is_one_towards_the_middle_everywhere() -> None:
    points = outside_or_behind().requires_grad_()
    distance = project_points(points, pinhole()).norm(dim=-1)
    (slopes,) = torch.autograd.grad(distance.sum(), points)
    assert (slopes[..., 2] < 0).all()


def test_projection_is_smooth_where_one_over_z_ends() -> None:
    depths = torch.tensor([Z_NEAR - 1e-9, Z_NEAR + 1e-9], dtype=torch.float64, requires_grad=True)
    points = torch.stack([torch.ones(2).double(), torch.ones(2).double(), depths], -1)
    seen = project_points(points[None], pinhole())[0]
    agree(seen[0], seen[1], 1e-6)
    (slopes,) = torch.autograd.grad(seen.sum(), depths)
    agree(slopes[0], slopes[1], 1e-6)


def test_undistortion_is_exact_up_to_the_corners() -> None:
    slopes = torch.cartesian_prod(*[torch.linspace(-0.42, 0.42, 9).double()] * 2).expand(4, -1, 2)
    points = torch.cat([slopes, torch.ones_like(slopes[..., :1])], -1)
    intrinsics = h36m_intrinsics(4)
    agree(undistort_points(project_points(points, intrinsics), intrinsics), slopes)


# -- pixels ----------------------------------------------------------------------------------------


@some_examples
@given(st.integers(1, 5000), st.integers(1, 5000), seeds)
def test_pixels_to_the_screen_and_back(width: int, height: int, seed: int) -> None:
    pixels = 1000 * normal(7, 2, seed=seed)
    normalized = normalize_screen_coordinates(pixels, width, height)
    agree((normalized + normalized.new_tensor([1.0, height / width])) * width / 2, pixels)


def test_corners_of_the_screen() -> None:
    corners = torch.tensor([[0.0, 0.0], [1920, 1080], [960, 540]], dtype=torch.float64)
    expected = torch.tensor([[-1.0, -0.5625], [1, 0.5625], [0, 0]], dtype=torch.float64)
    agree(normalize_screen_coordinates(corners, 1920, 1080), expected)
    agree(normalize_screen_coordinates(corners.long(), 1920, 1080), expected.float())


# -- what is in view -------------------------------------------------------------------------------


def is_in_view(x: float, y: float, z: float, intrinsics: Tensor, **options: float) -> bool:
    point = torch.tensor([[x, y, z]], dtype=torch.float64)
    return bool(in_view(point, project_points(point, intrinsics), intrinsics, **options))


SIDES = {"left": (-1, 0), "right": (1, 0), "top": (0, -1), "bottom": (0, 1)}


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("aspect_ratio", [1.0, 0.5625, 1.5])
def test_the_frame_ends_on_each_side(side: str, aspect_ratio: float) -> None:
    # Half a metre per metre of depth is the frame's edge at focal length 2.
    edge = 0.5 * 4.0 * (1.0 if side in ("left", "right") else aspect_ratio)
    for distance, expected in ((0.99, True), (1.01, False)):
        x, y = (distance * edge * c for c in SIDES[side])
        assert is_in_view(x, y, 4.0, pinhole(), aspect_ratio=aspect_ratio) is expected


@pytest.mark.parametrize("side", SIDES)
def test_the_principal_point_shifts_what_is_in_view(side: str) -> None:
    intrinsics = pinhole()
    intrinsics[:, 2:4] = 0.2 * torch.tensor(SIDES[side])
    x, y = (0.9 * 2.0 * c for c in SIDES[side])
    assert not is_in_view(x, y, 4.0, intrinsics)
    assert is_in_view(-x, -y, 4.0, intrinsics)


@pytest.mark.parametrize("depth", [-4.0, -0.01, 0.0, 0.5 * Z_NEAR, Z_NEAR])
def test_nothing_behind_or_at_the_camera_is_in_view(depth: float) -> None:
    assert not is_in_view(0.0, 0.0, depth, pinhole())
    assert is_in_view(0.0, 0.0, Z_NEAR + 0.01, pinhole())


def test_rays_that_the_lens_folds_back_are_not_in_view() -> None:
    # Barrel distortion: from slope 1.05 on the polynomial returns towards the middle.
    intrinsics = pinhole()
    intrinsics[:, :2] = 1.0
    intrinsics[:, 4] = -0.3
    point = torch.tensor([[[1.4, 0.0, 1.0]]], dtype=torch.float64)
    assert project_points(point, intrinsics).abs().max() < 0.7
    assert not is_in_view(1.4, 0.0, 1.0, intrinsics)
    assert is_in_view(0.4, 0.0, 1.0, intrinsics)


# A slope of 0.8 along x, at focal length 2, or along y, at 1 in a picture half as high as wide.
LENS_EDGE = [(0.8, 0.0, 2.0, 1.0), (0.0, 0.8, 1.0, 0.5)]


@pytest.mark.parametrize("coefficient", [4, 5, 6])
def test_a_lens_turns_over_where_its_radius_no_longer_grows(coefficient: int) -> None:
    # r (1 + k r^n) grows up to r^n = -1 / (k (n + 1)).
    intrinsics = pinhole()
    intrinsics[:, :2], intrinsics[:, coefficient] = 0.5, -0.2
    power = 2 * (coefficient - 3)
    turn = (1 / (0.2 * (power + 1))) ** (1 / power)
    assert is_in_view(turn - 0.01, 0.0, 1.0, intrinsics)
    assert not is_in_view(turn + 0.01, 0.0, 1.0, intrinsics)


@pytest.mark.parametrize(("x", "y", "focal_length", "aspect_ratio"), LENS_EDGE)
def test_what_only_the_lens_brings_into_the_frame_is_not_in_view(
    x: float, y: float, focal_length: float, aspect_ratio: float
) -> None:
    # A slope of 0.8 is seen as 0.496, and the lens does not turn over before 0.84.
    intrinsics = pinhole()
    intrinsics[:, :2], intrinsics[:, 4], intrinsics[:, 5] = focal_length, -0.742, 0.232
    point = torch.tensor([[[x, y, 1.0]]], dtype=torch.float64)
    limits = torch.tensor([1.0, aspect_ratio], dtype=torch.float64)
    assert (project_points(point, intrinsics).abs() <= limits).all()
    assert not is_in_view(x, y, 1.0, intrinsics, aspect_ratio=aspect_ratio)
    assert is_in_view(0.8 * x, 0.8 * y, 1.0, intrinsics, aspect_ratio=aspect_ratio)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_what_is_not_a_number_is_not_in_view(axis: int) -> None:
    point = [0.0, 0.0, 4.0]
    point[axis] = math.nan
    assert not is_in_view(*point, pinhole())


def test_points_are_in_view_one_by_one() -> None:
    points = torch.tensor([0.0, 0.0, 4.0]).double().expand(2, 3, 5, 3).clone()
    points[1, 2, 3, 0] = 9.0
    seen = in_view(points, project_points(points, pinhole(2)), pinhole(2))
    assert seen.shape == (2, 3, 5)
    assert (~seen).nonzero().tolist() == [[1, 2, 3]]


# -- the world -------------------------------------------------------------------------------------


def test_a_quaternion_about_z_takes_x_towards_y() -> None:
    quaternion = torch.tensor([math.cos(0.3), 0.0, 0.0, math.sin(0.3)])
    turned = world_to_camera(torch.tensor([0.825, 0.565, 0.0]), quaternion, torch.zeros(3))
    torch.testing.assert_close(turned, torch.tensor([1.0, 0.0, 0.0]), atol=5e-4, rtol=0)


@some_examples
@given(seeds)
def test_to_the_camera_and_back(seed: int) -> None:
    points = normal(4, 9, 3, seed=seed)
    orientation = nn.functional.normalize(normal(4, 1, 4, seed=seed), dim=-1)
    translation, nowhere = normal(4, 1, 3, seed=seed), torch.zeros(3).double()
    seen = world_to_camera(points, orientation, translation)
    # The conjugate turns back.
    conjugate = orientation * torch.tensor([1.0, -1, -1, -1])
    agree(world_to_camera(seen, conjugate, nowhere) + translation, points)


def test_the_camera_is_at_its_own_origin() -> None:
    orientation = nn.functional.normalize(normal(4, 4), dim=-1)
    translation = normal(4, 3)
    agree(world_to_camera(translation, orientation, translation), torch.zeros_like(translation))
