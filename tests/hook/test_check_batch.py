"""`check_batch` says in words what looks wrong with a batch, and changes nothing."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from loops import (
    absolute_batch,
    adam,
    differences,
    frozen_state,
    make_batch,
    make_hook,
    make_lifter,
    stream,
    train,
    with_trajectory,
    without_trajectory,
)
from torch import Tensor

from poseaug_plugin import PoseAdapter, PoseAugError, PoseAugHook, project_points
from poseaug_plugin.body.bones import root_relative
from poseaug_plugin.body.poses import DEFAULT_INTRINSICS
from poseaug_plugin.body.presets import H36M_16


def report_of(inputs_2d: Tensor, inputs_3d: Tensor, camera: Any, root: str = "trajectory") -> Any:
    hook = make_hook(make_lifter(), adapter=PoseAdapter(root=root))
    return hook.check_batch(inputs_2d, inputs_3d, camera)


def test_good_batch_is_ok() -> None:
    camera, inputs_3d, inputs_2d = make_batch(64)
    report = report_of(inputs_2d, inputs_3d, camera)
    assert not report.problems
    assert str(report).endswith("\nok")
    assert report.usable_share == 1
    assert 3 < report.root_depth < 6
    assert 3 < report.body_size < 7
    assert report.asymmetry < 0.01
    assert report.reprojection_error < 1e-4


def complaint(kind: str) -> tuple[str, ...]:
    """What is said of a batch with one mistake."""
    camera, inputs_3d, inputs_2d = make_batch(64)
    absolute = without_trajectory(inputs_3d)
    relative = root_relative(absolute, H36M_16)
    order = torch.tensor([0, 4, 5, 6, 1, 2, 8, 3, 7, 9, 11, 10, 12, 13, 15, 14])
    upside_down = inputs_2d * torch.tensor([1.0, -1.0])
    return {
        "millimetres": lambda: report_of(inputs_2d, inputs_3d * 1000, camera),
        "pixels": lambda: report_of((inputs_2d + 1) * 500, inputs_3d, camera),
        "joint order": lambda: report_of(inputs_2d[:, :, order], inputs_3d[:, :, order], camera),
        "missing root": lambda: report_of(inputs_2d, relative, camera),
        "absolute": lambda: report_of(inputs_2d, absolute, camera),
        "missing camera": lambda: report_of(inputs_2d * 1.5 / 2.29, inputs_3d, None),
        "another camera": lambda: report_of(inputs_2d, inputs_3d, camera * 1.5),
        "upside down": lambda: report_of(upside_down, inputs_3d, camera),
        "z-scored": lambda: report_of(inputs_2d, inputs_3d * 0.1, camera),
        "some broken": lambda: report_of(
            inputs_2d, torch.cat([inputs_3d[:16] * torch.nan, inputs_3d[16:]]), camera
        ),
    }[kind]().problems


@pytest.mark.filterwarnings("ignore::poseaug_plugin.PoseAugWarning")
@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("millimetres", "look like millimetres; pass adapter=PoseAdapter(metres_per_unit=0.001)"),
        ("pixels", "are they pixels? Normalise them with normalize_screen_coordinates"),
        ("joint order", "is the joint order that of 'h36m_16' (hip, right_hip, "),
        ("missing root", "with the root's position where the adapter expects it"),
        ("absolute", "(root='trajectory', 'absolute' or 'zeroed')"),
        ("missing camera", "no camera was given, so a focal length of 2.29 is assumed, but"),
        ("another camera", "wrong camera for the sample"),
        ("upside down", "3D poses project"),
        ("z-scored", "wrong unit, or normalised poses"),
        ("some broken", "25% of the samples are not finite or have joints behind the camera"),
    ],
)
def test_check_batch_says_what_looks_wrong(kind: str, words: str) -> None:
    assert words in "\n".join(complaint(kind))


@pytest.mark.filterwarnings("ignore::poseaug_plugin.PoseAugWarning")
def test_missing_camera_is_told_with_the_focal_length_that_fits() -> None:
    _, inputs_3d, inputs_2d = make_batch(64)
    fitting = report_of(inputs_2d * 1.5 / 2.29, inputs_3d, None).fitting_focal_length
    assert fitting == pytest.approx(1.5, abs=0.05)


@pytest.mark.filterwarnings("ignore::poseaug_plugin.PoseAugWarning")
def test_assumed_camera_that_fits_is_no_problem() -> None:
    batch = absolute_batch(64)
    lens = torch.tensor(DEFAULT_INTRINSICS)
    keypoints = project_points(batch.inputs_3d, lens.expand(64, 9))
    report = report_of(keypoints, with_trajectory(batch.inputs_3d), None)
    assert not report.problems
    assert "focal length 2.29 (assumed)" in str(report)


def test_check_batch_changes_nothing() -> None:
    estimator = make_lifter()
    hook = make_hook(estimator)
    train(hook, estimator, adam(estimator), stream(1))
    before, batch = frozen_state(hook), make_batch()
    given = copy.deepcopy(batch)
    hook.check_batch(batch.inputs_2d, batch.inputs_3d, batch.camera)
    assert differences(before, hook.state_dict()) == []
    assert differences(given, batch) == []


def test_check_batch_before_the_first_batch_builds_nothing() -> None:
    hook = make_hook(make_lifter(), skeleton=None)
    batch = make_batch()
    assert not hook.check_batch(batch.inputs_2d, batch.inputs_3d, batch.camera).problems
    assert hook.skeleton is None
    assert hook.state_dict()["training"] is None


def test_check_batch_refuses_what_augment_refuses() -> None:
    batch = make_batch(frames=9)
    hook = make_hook(make_lifter())
    with pytest.raises(PoseAugError, match=r"^PoseAugHook\.check_batch: .*source=PoseSource"):
        hook.check_batch(batch.inputs_2d, batch.inputs_3d[:, 4:5], batch.camera)
    unknown = PoseAugHook(make_lifter())
    with pytest.raises(PoseAugError, match=r"^PoseAugHook\.check_batch: inputs_3d must be"):
        unknown.check_batch(*(x.numpy() for x in (batch.inputs_2d, batch.inputs_3d)), batch.camera)
    with pytest.raises(PoseAugError, match=r"^PoseAugHook\.check_batch: no preset has 12 joints"):
        unknown.check_batch(batch.inputs_2d[:, :, :12], batch.inputs_3d[:, :, :12], batch.camera)


def test_check_batch_refuses_wrong_shapes_by_its_own_name() -> None:
    camera, inputs_3d, inputs_2d = make_batch()
    with pytest.raises(PoseAugError, match=r"^PoseAugHook\.check_batch: inputs_3d must be"):
        make_hook(make_lifter()).check_batch(inputs_2d, inputs_3d[..., :2], camera)
