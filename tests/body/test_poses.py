"""Batches in canonical form: what cannot be augmented is marked, and made harmless."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from helpers import h36m_intrinsics, human_poses
from loops import NoSync
from random_bodies import generator

from poseaug_plugin.body.camera import Z_NEAR, in_view, project_points
from poseaug_plugin.body.poses import DEFAULT_INTRINSICS, CanonicalPoses, canonical_batch, constant
from poseaug_plugin.body.presets import H36M_16

BROKEN = 2  # the sample that is broken below


def poses(frames: int = 3) -> CanonicalPoses:
    """Four people in front of Human3.6M's cameras."""
    joints = human_poses(4, frames, H36M_16, generator(0)).float()
    camera = h36m_intrinsics(4).float()
    return CanonicalPoses(joints, project_points(joints, camera), camera)


def change(field: str, place: tuple[int, ...], value: float) -> Callable[[CanonicalPoses], None]:
    """Puts a value into the broken sample."""

    def apply(batch: CanonicalPoses) -> None:
        getattr(batch, field)[(BROKEN, *place)] = value

    return apply


REASONS = {
    "joint is NaN": change("joints", (1, 5, 0), math.nan),
    "joint is infinite": change("joints", (2, 0, 2), math.inf),
    "keypoint is NaN": change("keypoints", (0, 3, 1), math.nan),
    "keypoint is infinite": change("keypoints", (2, 15, 0), -math.inf),
    "camera is NaN": change("intrinsics", (6,), math.nan),
    "camera is infinite": change("intrinsics", (0,), math.inf),
    "infinities cancel": lambda batch: (
        change("joints", (0, 0, 0), math.inf)(batch),
        change("keypoints", (0, 0, 0), -math.inf)(batch),
    ),
    "joint is behind the camera": change("joints", (1, 7, 2), -3.0),
    "joint is at the camera": change("joints", (1, 7, 2), Z_NEAR),
}


@pytest.mark.parametrize("frames", [1, 3])
def test_sound_poses_stay_as_they_are(frames: int) -> None:
    given = poses(frames)
    batch = canonical_batch(given)
    assert batch.usable.all()
    assert all(torch.equal(a, b) for a, b in zip(batch[:3], given[:3], strict=True))


@pytest.mark.parametrize("reason", REASONS)
def test_what_cannot_be_augmented_is_marked_and_harmless(reason: str) -> None:
    given = poses()
    REASONS[reason](given)
    batch = canonical_batch(given)
    assert (~batch.usable).nonzero().tolist() == [[BROKEN]]
    joints, keypoints, intrinsics = (field[[BROKEN]] for field in batch[:3])
    assert in_view(joints, project_points(joints, intrinsics), intrinsics).all()
    assert (keypoints == 0).all()
    assert torch.equal(intrinsics, torch.tensor([DEFAULT_INTRINSICS]))


@pytest.mark.parametrize("reason", REASONS)
def test_the_other_samples_stay_as_they_are(reason: str) -> None:
    given = poses()
    REASONS[reason](given)
    batch = canonical_batch(given)
    others = [i for i in range(4) if i != BROKEN]
    for before, after in zip(given[:3], batch[:3], strict=True):
        assert torch.equal(after[others], before[others])


def test_one_frame_of_joints_may_go_with_many_of_keypoints() -> None:
    given = poses()
    given = given._replace(joints=given.joints[:, 1:2].clone())
    given.keypoints[BROKEN, 2, 4, 0] = math.nan
    batch = canonical_batch(given)
    assert (~batch.usable).nonzero().tolist() == [[BROKEN]]
    assert batch.joints.shape == (4, 1, 16, 3)
    assert batch.keypoints.shape == (4, 3, 16, 2)


def test_nothing_waits_for_the_device_to_mark_poses() -> None:
    given = poses()
    with NoSync():
        canonical_batch(given)


def test_constants_made_in_inference_mode_serve_training_later() -> None:
    cpu = torch.device("cpu")
    with torch.inference_mode():
        made = constant((1.5, -2.5), cpu)
    assert constant((1.5, -2.5), cpu) is made
    weight = torch.ones(2, requires_grad=True)
    (weight * made).sum().backward()
    assert weight.grad is not None
    assert torch.equal(weight.grad, torch.tensor([1.5, -2.5]))
