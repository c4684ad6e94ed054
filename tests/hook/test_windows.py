"""Windows of frames are moved as a whole: one view, one body, bones that turn as fast as before."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from estimators import STGCN, SpatioTemporalTransformer, StridedTemporalModel, TemporalModel
from helpers import h36m_intrinsics, human_poses
from loops import (
    adam,
    augmented,
    changed,
    make_batch,
    make_hook,
    make_lifter,
    mpjpe,
    stream,
    train,
    with_trajectory,
    without_trajectory,
)
from torch import Tensor, nn

from poseaug_plugin import AugmentationPolicy, Spread, apply_augmentation, project_points
from poseaug_plugin.augment.transforms import bone_angle_change
from poseaug_plugin.body.bones import (
    bone_directions,
    bone_lengths,
    bones_to_joints,
    joints_to_bones,
)
from poseaug_plugin.body.camera import in_view
from poseaug_plugin.body.presets import H36M_16

WIDE = Spread(pitch=1.4, roll=0.7, depth=(0.1, 5.0), bone_angle=0.5, bone_length=0.5)


def walking(frames: int = 9, batch: int = 32) -> Tensor:
    """Smoothly moving people (B, T, 16, 3), camera space."""
    generator = torch.Generator().manual_seed(0)
    start, end = human_poses(2 * batch, 1, H36M_16, generator).float().split(batch)
    share = torch.linspace(0, 1, frames).reshape(1, -1, 1, 1)
    directions = nn.functional.normalize(
        torch.lerp(*(bone_directions(joints_to_bones(p, H36M_16)) for p in (start, end)), share),
        dim=-1,
    )
    lengths = bone_lengths(joints_to_bones(start, H36M_16)).unsqueeze(-1)
    path = start[:, :, 0] + 0.3 * share[..., 0]
    return bones_to_joints(directions * lengths, H36M_16, path)


def test_bones_of_a_bent_window_turn_as_fast_as_before() -> None:
    joints = walking().double()
    policy = AugmentationPolicy("h36m_16").double()
    parameters = policy(joints, torch.randn(32, policy.noise_size, dtype=torch.float64))
    parameters = parameters._replace(bone_direction_offset=5 * parameters.bone_direction_offset)
    bent = apply_augmentation(joints, parameters, H36M_16).bent
    before, after = (bone_directions(joints_to_bones(j, H36M_16)) for j in (joints, bent))
    assert torch.allclose(before.diff(dim=1).norm(dim=-1), after.diff(dim=1).norm(dim=-1))
    assert (before - after).abs().max() > 0.5


def test_augmented_windows_stay_human() -> None:
    """Lengths constant, accelerations like the source's, 2D the projection, all in view."""
    joints, camera = walking(27, 512), h36m_intrinsics(512).float()
    keypoints = project_points(joints, camera)
    hook = make_hook(make_lifter(frames=27), preset="random", share=1.0)
    made_2d, made_3d = hook.augment(keypoints, with_trajectory(joints), camera)
    made = without_trajectory(made_3d)
    changed = (made_2d != keypoints).flatten(1).any(1)
    assert changed.float().mean() > 0.5
    lengths = bone_lengths(joints_to_bones(made, H36M_16))
    assert (lengths / lengths[:, :1] - 1).abs().max() < 1e-5

    def fastest(poses: Tensor) -> Tensor:
        return poses.diff(n=2, dim=1).norm(dim=-1).flatten().quantile(0.99)

    assert fastest(made[changed][:64]) < 1.5 * fastest(joints[changed][:64])
    assert torch.allclose(project_points(made, camera)[changed], made_2d[changed], atol=1e-4)
    assert in_view(made, made_2d, camera)[changed].all()


def test_repeated_frames_stay_repeated() -> None:
    joints, camera = walking(), h36m_intrinsics(32).float()
    joints = torch.cat([joints[:, :1].expand(-1, 3, -1, -1), joints], 1)
    hook = make_hook(make_lifter(frames=12), preset="random", share=1.0)
    made = hook.augment(project_points(joints, camera), with_trajectory(joints), camera)
    for poses in made:
        assert torch.allclose(poses[:, :3], poses[:, :1].expand_as(poses[:, :3]), atol=1e-6)


def test_window_keeps_its_bone_lengths() -> None:
    batch = make_batch(16, frames=5)
    outputs = augmented(make_hook(make_lifter(frames=5), share=1.0), batch)
    lengths = bone_lengths(joints_to_bones(without_trajectory(outputs.inputs_3d), H36M_16))
    torch.testing.assert_close(lengths, lengths[:, :1].expand_as(lengths), rtol=0, atol=1e-4)


def test_window_is_in_view_in_every_frame() -> None:
    batch = make_batch(32, frames=5)
    hook = make_hook(make_lifter(frames=5), share=1.0, spread=WIDE)
    outputs = augmented(hook, batch)
    rows = changed(batch.inputs_2d, outputs.inputs_2d)
    assert rows.any()
    joints = without_trajectory(outputs.inputs_3d)
    assert (outputs.inputs_2d[rows].abs() <= 1).all()
    torch.testing.assert_close(
        project_points(joints, batch.camera)[rows], outputs.inputs_2d[rows], rtol=0, atol=1e-5
    )


def test_a_window_out_of_view_in_one_frame_falls_back() -> None:
    batch = make_batch(32, frames=9)
    absolute = without_trajectory(batch.inputs_3d)
    # In the last frame everybody jumps out of the picture; the middle frame is what it was.
    absolute[:, -1] += torch.tensor([20.0, 0.0, 0.0])
    camera = batch.camera
    hook = make_hook(make_lifter(frames=9), preset="random", share=1.0, operations=("bone_length",))
    keypoints = project_points(absolute, camera)
    made = hook.augment(keypoints, with_trajectory(absolute), camera)
    assert torch.equal(made.inputs_2d, keypoints)


def test_critics_see_every_frame_in_turn() -> None:
    hook = make_hook(make_lifter(frames=9))
    seen: set[int] = set()
    for batch in stream(8, frames=9):
        augmented(hook, batch)
        inputs = hook._pending.batch.inputs
        generated = hook._trainer.augmenter.generate(inputs)
        seen |= set(inputs.judged_frame.tolist())
        frame, clean = inputs.judged_frame[3], inputs.poses.joints
        assert torch.equal(generated.clean_pose[3], clean[3, frame])
        assert torch.equal(generated.bent_pose[3], generated.poses.bent[3, frame])
        assert torch.equal(generated.seen_pose[3], generated.keypoints[3, frame])
        turned = bone_angle_change(clean, generated.poses.bent, H36M_16)
        judged = bone_angle_change(generated.clean_pose, generated.bent_pose, H36M_16)
        assert torch.allclose(judged[3], turned[3, frame], atol=1e-6)
    assert seen == set(range(9))


def test_windows_of_another_length_may_follow() -> None:
    estimators = [make_lifter(frames=frames) for frames in (3, 1, 9)]
    hook = make_hook(nn.ModuleList(estimators))
    for estimator, frames in zip(estimators, (3, 1, 9), strict=True):
        train(hook, estimator, adam(estimator), stream(2, frames=frames))
    assert hook.diagnostics().updates == 6
    assert hook.diagnostics().skipped_steps == 0


# -- estimators of windows -------------------------------------------------------------------------


def lifting_one_frame(estimator: nn.Module, keypoints: Tensor, joints: Tensor) -> Tensor:
    return mpjpe(estimator(keypoints), joints[:, joints.shape[1] // 2, None])


def lifting_every_frame(estimator: nn.Module, keypoints: Tensor, joints: Tensor) -> Tensor:
    return mpjpe(estimator(keypoints), joints)


def lifting_the_last_frame(estimator: nn.Module, keypoints: Tensor, joints: Tensor) -> Tensor:
    return mpjpe(estimator(keypoints)[:, -1:], joints[:, -1:])


WINDOWED: dict[str, tuple[Any, Any]] = {
    "strided": (
        lambda: StridedTemporalModel(16, 16, filter_widths=(3, 3), channels=16),
        lifting_one_frame,
    ),
    "dense": (lambda: TemporalModel(16, 16, filter_widths=(3, 3), channels=16), lifting_one_frame),
    "ST-GCN": (
        lambda: STGCN("h36m_16", frames=9, widths=(8, 8, 16), part_width=16),
        lifting_one_frame,
    ),
    "transformer": (lambda: SpatioTemporalTransformer(16, 9, width=16), lifting_every_frame),
    "causal transformer": (
        lambda: SpatioTemporalTransformer(16, 9, width=16, causal=True),
        lifting_the_last_frame,
    ),
}


@pytest.mark.parametrize("name", WINDOWED)
def test_estimators_of_windows_train_and_are_seen(name: str) -> None:
    make, loss_of = WINDOWED[name]
    torch.manual_seed(0)
    estimator = make()
    hook = make_hook(estimator)
    optimizer = adam(estimator)
    losses = []
    for _ in range(8):
        inputs_2d, inputs_3d = augmented(hook, make_batch(16, frames=9))
        inputs_3d[:, :, 0] = 0
        optimizer.zero_grad()
        loss = loss_of(estimator, inputs_2d, inputs_3d)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    found = hook.diagnostics()
    assert found.hardness_ratio > 0
    assert math.isfinite(found.mean_pose_ratio)
    assert found.kept_share > 0.5


def test_causal_transformer_sees_no_frame_to_come() -> None:
    torch.manual_seed(0)
    keypoints = torch.randn(2, 9, 16, 2, requires_grad=True)
    for causal in (False, True):
        lifted = SpatioTemporalTransformer(16, 9, width=16, causal=causal)(keypoints)
        assert lifted.shape == (2, 9, 16, 3)
        (slopes,) = torch.autograd.grad(lifted[:, 4].sum(), keypoints)
        assert bool(slopes[:, 5:].any()) == (not causal)
        assert slopes[:, :5].flatten(2).any(2).all()
