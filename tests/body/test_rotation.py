"""Rotations: exact everywhere, about the axis that they say; the vertical."""

from __future__ import annotations

import math

import pytest
import torch
from helpers import agree
from hypothesis import given
from hypothesis import strategies as st
from random_bodies import normal, some_examples
from torch import Tensor, nn

from poseaug_plugin.body.rotation import axis_angle_to_matrix, vertical, view_rotation

# -- axis and angle --------------------------------------------------------------------------------


axis_angles = st.tuples(*[st.floats(-10, 10)] * 3).map(lambda v: torch.tensor(v).double())


def cross_matrix(v: Tensor) -> Tensor:
    x, y, z = v.unbind(-1)
    zero = torch.zeros_like(x)
    return torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).unflatten(-1, (3, 3))


def test_a_turn_about_z_takes_x_towards_y() -> None:
    turned = axis_angle_to_matrix(torch.tensor([0.0, 0.0, 0.6])) @ torch.tensor([1.0, 0.0, 0.0])
    torch.testing.assert_close(turned, torch.tensor([0.825, 0.565, 0.0]), atol=5e-4, rtol=0)


@some_examples
@given(axis_angles)
def test_rotation_matrices_are_rotations(axis_angle: Tensor) -> None:
    matrix = axis_angle_to_matrix(axis_angle)
    agree(matrix @ matrix.T, torch.eye(3, dtype=torch.float64), 1e-14)
    agree(torch.linalg.det(matrix), torch.ones((), dtype=torch.float64), 1e-14)


@some_examples
@given(axis_angles)
def test_axis_angles_are_exponentiated(axis_angle: Tensor) -> None:
    expected = torch.linalg.matrix_exp(cross_matrix(axis_angle))
    agree(axis_angle_to_matrix(axis_angle), expected)


# About the smallest angle that a sine is divided by, and far from it.
ANGLES = [0.0, 1e-13, 1e-12, 1e-9, 1e-4, 0.01, 0.1, math.pi]


@pytest.mark.parametrize("angle", ANGLES)
def test_small_angles_are_exact_too(angle: float) -> None:
    axis_angle = angle * nn.functional.normalize(normal(5, 3), dim=-1)
    expected = torch.linalg.matrix_exp(cross_matrix(axis_angle))
    torch.testing.assert_close(axis_angle_to_matrix(axis_angle), expected, rtol=0, atol=2e-15)


@pytest.mark.parametrize("angle", ANGLES)
def test_rotation_gradients(angle: float) -> None:
    axis_angle = angle * nn.functional.normalize(normal(2, 3), dim=-1)
    assert torch.autograd.gradcheck(axis_angle_to_matrix, axis_angle.requires_grad_())


def test_the_rotation_gradient_at_zero_is_exact() -> None:
    zero = torch.zeros(3, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(axis_angle_to_matrix, zero)
    axes = cross_matrix(torch.eye(3, dtype=torch.float64))
    assert torch.equal(jacobian, axes.permute(1, 2, 0))


def test_float32_rotations_are_rotations() -> None:
    angles = torch.logspace(-8, 1, 100)
    axes = nn.functional.normalize(normal(100, 3).float(), dim=-1)
    matrices = axis_angle_to_matrix(angles[:, None] * axes)
    torch.testing.assert_close(
        matrices @ matrices.mT, torch.eye(3).expand(100, 3, 3), atol=1e-6, rtol=0
    )


# -- views -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("which", "moved", "to"), [("yaw", "z", "x"), ("pitch", "y", "z"), ("roll", "x", "y")]
)
def test_each_view_angle_turns_its_own_way(which: str, moved: str, to: str) -> None:
    # The camera's axes: x right, y down, z forward.
    axes = dict(zip("xyz", torch.eye(3, dtype=torch.float64), strict=True))
    angles = 0.6 * torch.tensor([[name == which for name in ("yaw", "pitch", "roll")]]).double()
    expected = math.cos(0.6) * axes[moved] + math.sin(0.6) * axes[to]
    agree(view_rotation(angles, axes["y"])[0] @ axes[moved], expected)


@some_examples
@given(st.floats(-4, 4), st.floats(-4, 4), st.floats(-4, 4))
def test_view_rotation_turns_then_tilts_then_rolls(yaw: float, pitch: float, roll: float) -> None:
    angles, axis = torch.tensor([[yaw, pitch, roll], [0.0, 0.6, 0.8]], dtype=torch.float64)
    x, _, z = torch.eye(3, dtype=torch.float64)
    turns = zip(angles, (axis, x, z), strict=True)
    turn, tilt, lean = (axis_angle_to_matrix(angle * about) for angle, about in turns)
    agree(view_rotation(angles[None], axis)[0], lean @ tilt @ turn)


# -- the vertical ----------------------------------------------------------------------------------


@pytest.mark.parametrize("degrees", [-50.0, 0.0, 7.0, 50.0])
def test_people_stand_on_their_vertical_however_the_camera_looks(degrees: float) -> None:
    # Bodies of 16 joints, three times as high as wide.
    poses = normal(256, 16, 3) * torch.tensor([0.15, 0.45, 0.15], dtype=torch.float64)
    tilt = axis_angle_to_matrix(torch.tensor([math.radians(degrees), 0.0, 0.0]).double())
    cosine = vertical(poses @ tilt.T) @ (tilt @ torch.tensor([0.0, 1.0, 0.0]).double())
    assert torch.rad2deg(cosine.clamp(-1, 1).acos()) < 2


def test_poses_without_a_longest_axis_leave_the_cameras() -> None:
    agree(vertical(torch.eye(3).unsqueeze(0)), torch.tensor([0.0, 1.0, 0.0]))


def test_points_have_no_vertical() -> None:
    assert torch.equal(vertical(torch.zeros(4, 16, 3)), torch.zeros(3))
