"""Augmented poses put where given 2D poses are seen."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from helpers import h36m_intrinsics, human_poses
from loops import make_batch, make_hook, make_lifter, mpjpe

from poseaug_plugin import H36M_16, PoseAugError
from poseaug_plugin.camera import project_points
from poseaug_plugin.placement import place_as_seen
from poseaug_plugin.rigid import root_relative

ROOT = H36M_16.root


def size(keypoints: torch.Tensor) -> torch.Tensor:
    """(B,) spread of 2D joints (B, J, 2)."""
    return (keypoints - keypoints.mean(1, keepdim=True)).square().sum(-1).mean(1).sqrt()


@pytest.mark.parametrize("frames", [1, 5])
def test_a_placed_pose_is_seen_like_the_picture(frames: int) -> None:
    joints = human_poses(64, frames, H36M_16, torch.Generator().manual_seed(0)).float()
    others = human_poses(64, 1, H36M_16, torch.Generator().manual_seed(1)).float()
    camera = h36m_intrinsics(64).float()
    pictures = project_points(others, camera)[:, 0]
    place = place_as_seen(joints, pictures, camera, H36M_16)
    placed = root_relative(joints, H36M_16) + place.unsqueeze(2)
    seen = project_points(placed, camera)[:, frames // 2]
    assert torch.allclose(seen[:, ROOT], pictures[:, ROOT], atol=1e-4)
    # Perspective and lens are left out of the size.
    ratios = size(seen) / size(pictures)
    assert (ratios.log().abs() < 0.15).all()
    assert ratios.log().mean().abs() < 0.03


def test_where_the_pose_stood_does_not_matter() -> None:
    joints = human_poses(8, 1, H36M_16, torch.Generator().manual_seed(0))
    camera = h36m_intrinsics(8).double()
    pictures = project_points(joints.flip(0), camera)[:, 0]
    here, there = (place_as_seen(j, pictures, camera, H36M_16) for j in (joints, joints + 3.0))
    assert torch.allclose(here, there)


@pytest.mark.parametrize("preset", ["default", "random"])
def test_augmented_poses_stand_where_the_given_2d_poses_do(preset: str) -> None:
    given = make_batch(64, seed=5).inputs_2d[:, 0]
    hook = make_hook(
        make_lifter(), preset=preset, placement="real_poses_2d", real_poses_2d=given, share=1.0
    )
    batch = make_batch(64)
    for returns in (False, True):
        made, *_ = hook.augment(
            batch.inputs_2d, batch.inputs_3d, batch.camera, return_camera=returns
        )
        augmented = made[(made != batch.inputs_2d).flatten(1).any(1), 0]
        assert len(augmented) > 32
        distances = torch.cdist(augmented[:, ROOT], given[:, ROOT])
        assert (distances.min(1).values < 1e-3).all()
        assert len(set(distances.argmin(1).tolist())) > 16


def test_placed_poses_are_learned_from() -> None:
    given = make_batch(64, seed=5).inputs_2d[:, 0]
    estimator = make_lifter()
    hook = make_hook(estimator, placement="real_poses_2d", real_poses_2d=given)
    before = [p.clone() for p in hook.policy.parameters()]
    optimizer = torch.optim.SGD(estimator.parameters(), lr=1e-3)
    batch = make_batch(64)
    made_2d, made_3d = hook.augment(batch.inputs_2d, batch.inputs_3d, batch.camera)
    mpjpe(estimator(made_2d), made_3d).backward()
    optimizer.step()
    assert any((p != b).any() for p, b in zip(hook.policy.parameters(), before, strict=True))
    assert hook.diagnostics().skipped_steps == 0


def test_it_needs_2d_poses() -> None:
    with pytest.raises(PoseAugError, match=r"pass real_poses_2d, \(N, 16, 2\)"):
        make_hook(make_lifter(), placement="real_poses_2d")


@pytest.mark.parametrize("name", ["real_poses_2d", "real_poses_3d"])
@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda poses: poses.numpy(), "must be a tensor, got ndarray"),
        (lambda poses: poses[:, :15], "must be .poses, 16, "),
        (lambda poses: poses[:0], "must be .poses, 16, "),
        (lambda poses: poses * torch.nan, "must be finite"),
    ],
    ids=["array", "joints", "none", "NaN"],
)
def test_real_poses_that_cannot_be_used(
    name: str, change: Callable[[torch.Tensor], object], problem: str
) -> None:
    poses = torch.zeros(4, 16, 2 if name.endswith("2d") else 3)
    with pytest.raises(PoseAugError, match=f"{name} {problem}"):
        make_hook(make_lifter(), **{name: change(poses)})
