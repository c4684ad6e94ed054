"""Projection, extrinsics and screen coordinates against the numbers of the reference code.

See tests/golden/README.md. Nothing here depends on the numbers themselves: another set with the
same keys serves as well.
"""

from __future__ import annotations

import pytest
import torch
from adapters.simple_baseline import image_coordinates
from helpers import agree, below, golden, gradient, leaf
from torch import Tensor

from poseaug_plugin.body.camera import (
    Z_NEAR,
    normalize_screen_coordinates,
    project_points,
    world_to_camera,
)
from poseaug_plugin.reference.recipes import project_clamped

CAMERA = golden("camera")

each_reference = pytest.mark.parametrize("reference", ["videopose3d", "poseaug"])
each_lens = pytest.mark.parametrize(
    ("lens", "distortion"), [("project_to_2d", True), ("project_to_2d_linear", False)]
)
WITHOUT_LENS = torch.tensor([1.0, 1, 1, 1, 0, 0, 0, 0, 0])


def per_sample_intrinsics() -> Tensor:
    return CAMERA["intrinsics"][CAMERA["camera_index"]]


@each_reference
@each_lens
def test_clamped_projection(reference: str, lens: str, distortion: bool) -> None:
    expected = below(CAMERA, f"{reference}/{lens}/")
    points, intrinsics = leaf(CAMERA["points"]), leaf(per_sample_intrinsics())
    lenses = intrinsics if distortion else intrinsics * WITHOUT_LENS
    seen = project_clamped(points, lenses)
    agree(seen, expected["out"])
    agree(gradient(seen, points, CAMERA["grad_w"]), expected["grad_points"])
    agree(gradient(seen, intrinsics, CAMERA["grad_w"]), expected["grad_intrinsics"])


@each_reference
@each_lens
def test_projection_where_the_reference_does_not_clamp(
    reference: str, lens: str, distortion: bool
) -> None:
    expected = below(CAMERA, f"{reference}/{lens}/")
    points, intrinsics = leaf(CAMERA["points"]), per_sample_intrinsics()
    seen = project_points(points, intrinsics if distortion else intrinsics * WITHOUT_LENS)
    plain = ~CAMERA["clamped"].any(-1) & (CAMERA["points"][..., 2] > Z_NEAR)
    assert plain.any()
    agree(seen[plain], expected["out"][plain])
    slopes = gradient(seen, points, CAMERA["grad_w"])
    agree(slopes[plain], expected["grad_points"][plain])


def test_screen_normalisation() -> None:
    for i, (width, height) in enumerate(CAMERA["screen/wh"].tolist()):
        normalized = normalize_screen_coordinates(CAMERA["screen/pixels"][i], width, height)
        agree(normalized, CAMERA["screen/normalized"][i])


def test_image_coordinates() -> None:
    for i, (width, height) in enumerate(CAMERA["screen/wh"].tolist()):
        pixels = image_coordinates(CAMERA["screen/normalized_in"][i], width, height)
        agree(pixels, CAMERA["screen/image_coordinates"][i])


def test_principal_points_are_normalised_like_pixels() -> None:
    for i, (width, height) in enumerate(CAMERA["resolution"].tolist()):
        centre = normalize_screen_coordinates(CAMERA["raw_center_px"][i], width, height)
        # The loaders round to float32.
        torch.testing.assert_close(centre, CAMERA["intrinsics"][i, 2:4], rtol=0, atol=1e-6)


def test_extrinsics() -> None:
    orientation, translation = (
        CAMERA[f"extrinsics/{k}"][:, None, None] for k in ("quaternion", "translation")
    )
    seen = world_to_camera(CAMERA["world_to_camera/in"], orientation, translation)
    agree(seen, CAMERA["world_to_camera/out"])
    # The reference's inverse turns by the conjugate.
    conjugate, nowhere = orientation * torch.tensor([1.0, -1, -1, -1]), torch.zeros(3).double()
    turned = world_to_camera(CAMERA["camera_to_world/in"], conjugate, nowhere)
    agree(turned + translation, CAMERA["camera_to_world/out"])
