"""Windows of frames: moved as a whole, judged by their motion, supplied where a host has none."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from estimators import STGCN, SpatioTemporalTransformer, StridedTemporalModel, TemporalModel
from helpers import h36m_intrinsics, human_poses
from loops import (
    Batch,
    differences,
    frozen_state,
    make_batch,
    make_hook,
    make_lifter,
    mpjpe,
    recorded_steps,
    stream,
    train,
    with_trajectory,
    without_trajectory,
)
from test_layout import NoSync
from torch import Tensor, nn

from poseaug_plugin import (
    H36M_16,
    AugmentationPolicy,
    HardnessPredictor,
    MotionDiscriminator,
    PoseAdapter,
    PoseAugError,
    PoseAugHook,
    PoseSource,
    Spread,
    apply_augmentation,
    in_view,
    project_points,
)
from poseaug_plugin.augmentation import bone_angle_change
from poseaug_plugin.bones import bone_directions, bone_lengths, bones_to_joints, joints_to_bones
from poseaug_plugin.objectives import Generated
from poseaug_plugin.windows import (
    bone_motion,
    displacements,
    middle_frame,
    motion_features,
    num_motion_features,
)

SEQUENCES = (40, 7, 25)  # frames


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


def sequences() -> list[Tensor]:
    return [
        with_trajectory(human_poses(1, frames, H36M_16, torch.Generator().manual_seed(i))[0])
        for i, frames in enumerate(SEQUENCES)
    ]


def source(**options: Any) -> PoseSource:
    return PoseSource(sequences(), h36m_intrinsics(len(SEQUENCES)), **options)


def one_target_frame(frames: int = 9, size: int = 16, seed: int = 0, causal: bool = False) -> Batch:
    """What VideoPose3D's generator yields for a receptive field: 3D of the target frame only."""
    batch = make_batch(size, frames=frames, seed=seed)
    target = frames - 1 if causal else frames // 2
    return batch._replace(inputs_3d=batch.inputs_3d[:, target : target + 1].contiguous())


# -- what is seen of a window ----------------------------------------------------------------------


@pytest.mark.parametrize("frames", [2, 3, 5, 9, 243])
def test_displacements_have_one_width_and_see_both_ends(frames: int) -> None:
    points = torch.randn(4, frames, 16, 2, requires_grad=True)
    features = displacements(points)
    assert features.shape == (4, 4 * 16 * 2)
    (slopes,) = torch.autograd.grad(features.square().sum(), points)
    assert slopes[:, [0, -1]].abs().sum() > 0


def test_displacements_leave_out_where_a_pose_stands() -> None:
    points = torch.randn(4, 9, 16, 2)
    assert torch.allclose(displacements(points), displacements(points + 3.0), atol=1e-5)
    assert (displacements(points[:, :1].expand(-1, 9, -1, -1)) == 0).all()


def test_bone_motion_is_that_of_finite_differences() -> None:
    joints = walking().double()
    velocity, acceleration = bone_motion(joints, H36M_16).unflatten(1, (2, -1, 3)).unbind(1)
    directions = bone_directions(joints_to_bones(joints, H36M_16))
    assert torch.allclose(velocity, 12.5 * (directions[:, 5] - directions[:, 3]))
    expected = 50 * (directions[:, 5] + directions[:, 3] - 2 * directions[:, 4])
    assert torch.allclose(acceleration, expected)


def test_motion_critic_sees_jitter() -> None:
    joints = walking()
    keypoints = project_points(joints, h36m_intrinsics(32).float())
    shaken = joints + 0.06 * torch.randn(joints.shape, generator=torch.Generator().manual_seed(1))
    still, nervous = (motion_features(j, keypoints, H36M_16) for j in (joints, shaken))
    assert still.shape == (32, num_motion_features(H36M_16))
    assert nervous.abs().mean() > 2 * still.abs().mean()
    assert MotionDiscriminator("h36m_16")(still).shape == (32, 1)


def test_predictor_starts_as_for_the_middle_frame_alone() -> None:
    joints = walking()
    keypoints = project_points(joints, h36m_intrinsics(32).float())
    middle = middle_frame(9)
    torch.manual_seed(0)
    predictor = HardnessPredictor("h36m_16")
    alone, target = keypoints[:, middle : middle + 1], joints[:, middle]
    assert torch.equal(predictor(keypoints, target), predictor(alone, target))
    predictor.motion.data.normal_()
    assert not torch.allclose(predictor(keypoints, target), predictor(alone, target))


# -- bending a window ------------------------------------------------------------------------------


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
    assert in_view(made, camera)[changed].all()


def test_repeated_frames_stay_repeated() -> None:
    joints, camera = walking(), h36m_intrinsics(32).float()
    joints = torch.cat([joints[:, :1].expand(-1, 3, -1, -1), joints], 1)
    hook = make_hook(make_lifter(frames=12), preset="random", share=1.0)
    made = hook.augment(project_points(joints, camera), with_trajectory(joints), camera)
    for poses in made:
        assert torch.allclose(poses[:, :3], poses[:, :1].expand_as(poses[:, :3]), atol=1e-6)


# -- a source of windows ---------------------------------------------------------------------------


def test_source_gives_windows_of_the_sequences() -> None:
    windows = source(flip=False).open(PoseAdapter(), H36M_16, torch.device("cpu"))
    drawn = windows.sample(500, 9, torch.Generator().manual_seed(0))
    assert drawn.joints.shape == (500, 9, 16, 3)
    assert torch.allclose(project_points(drawn.joints, drawn.intrinsics), drawn.keypoints)
    absolute = [without_trajectory(s).float() for s in sequences()]
    padded = [torch.cat([s[:1]] * 4 + [s] + [s[-1:]] * 4) for s in absolute]
    known = torch.cat([p.unfold(0, 9, 1).permute(0, 3, 1, 2) for p in padded])
    distance = torch.cdist(drawn.joints.flatten(1).double(), known.flatten(1).double())
    assert distance.min(1).values.max() < 1e-3
    # Every frame is as likely as any other, and comes with its own camera.
    nearest = distance.argmin(1)
    assert len(nearest.unique()) == sum(SEQUENCES)
    owner = torch.arange(len(SEQUENCES)).repeat_interleave(torch.tensor(SEQUENCES))[nearest]
    assert torch.equal(drawn.intrinsics, h36m_intrinsics(3).float()[owner])


def test_half_of_the_windows_are_mirrored_with_their_cameras() -> None:
    def drawn(flip: bool) -> Any:
        windows = source(flip=flip).open(PoseAdapter(), H36M_16, torch.device("cpu"))
        return windows.sample(400, 3, torch.Generator().manual_seed(0))

    plain, flipped = drawn(False), drawn(True)
    is_mirrored = (plain.intrinsics != flipped.intrinsics).any(1)
    assert 0.4 < is_mirrored.float().mean() < 0.6
    order = list(H36M_16.flip_permutation)
    mirrored = plain.keypoints[:, :, order] * torch.tensor([-1.0, 1.0])
    assert torch.allclose(flipped.keypoints[is_mirrored], mirrored[is_mirrored], atol=1e-5)
    assert torch.equal(flipped.keypoints[~is_mirrored], plain.keypoints[~is_mirrored])


def test_source_takes_the_hosts_dictionaries() -> None:
    keys = [("S1", "Walking", i) for i in range(len(SEQUENCES))]
    poses = {k: s.numpy() for k, s in zip(keys, sequences(), strict=True)}
    cameras = {k: c.numpy() for k, c in zip(keys, h36m_intrinsics(3), strict=True)}
    assert repr(PoseSource(poses, cameras)) == "PoseSource(3 sequences, 72 frames)"
    with pytest.raises(PoseAugError, match="intrinsics for each of the 3 sequences"):
        PoseSource(poses, {keys[0]: cameras[keys[0]]})
    with pytest.raises(PoseAugError, match=r"sequences \(frames, joints, 3\)"):
        PoseSource([torch.zeros(3, 16, 2)], torch.zeros(9))
    with pytest.raises(PoseAugError, match=r"sequences \(frames, joints, 3\)"):
        PoseSource([], torch.zeros(9))


def test_source_refuses_what_it_cannot_place() -> None:
    estimator = make_lifter()
    with pytest.raises(PoseAugError, match="must have 17 joints for skeleton 'h36m_17', got 16"):
        make_hook(estimator, skeleton="h36m_17", source=source())
    relative = [s - s[:, :1] for s in sequences()]
    with pytest.raises(PoseAugError, match="100% of the poses are not finite or not in front"):
        make_hook(estimator, source=PoseSource(relative, h36m_intrinsics(3)))
    with pytest.raises(PoseAugError, match="cannot be solved without 2D"):
        make_hook(estimator, source=source(), adapter=PoseAdapter(root="zeroed"))


class Strided(nn.Module):
    """2D of nine frames to 3D of one, like VideoPose3D's training model."""

    def __init__(self, frames: int = 9) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(
            nn.Linear(frames * 32, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 48)
        )

    def forward(self, keypoints: Tensor) -> Tensor:
        return self.layers(keypoints.flatten(1)).reshape(-1, 1, 16, 3)


def drafted(hook: PoseAugHook) -> Generated:
    """What the hook's pending augmentation is, once more."""
    return hook._trainer.augmenter.generate(hook._pending.augmented.draft)


@pytest.mark.parametrize("causal", [False, True])
def test_window_of_2d_with_one_3d_frame(causal: bool) -> None:
    hook = make_hook(Strided(), source=source(causal=causal), share=0.75)
    batch = one_target_frame(causal=causal)
    made_2d, made_3d = hook.augment(batch.inputs_2d, batch.inputs_3d, batch.camera)
    assert made_2d.shape == batch.inputs_2d.shape
    assert made_3d.shape == batch.inputs_3d.shape
    generated = drafted(hook)
    target = 8 if causal else 4
    rows, valid = hook._pending.augmented.rows, hook._pending.augmented.valid
    assert valid.sum() > 6
    moved = with_trajectory(generated.poses.moved[:, target : target + 1])
    assert torch.allclose(made_3d[rows][valid], moved[valid], atol=1e-6)
    assert torch.equal(made_2d[rows][valid], generated.keypoints[valid])
    assert torch.equal(made_2d[rows][~valid], batch.inputs_2d[rows][~valid])


@pytest.mark.parametrize("mix", ["replace", "append"])
def test_cameras_of_windows_from_a_source_come_back(mix: str) -> None:
    spread = Spread(focal_length=0.5)
    hook = make_hook(Strided(), source=source(), share=0.75, mix=mix, spread=spread)
    batch = one_target_frame()
    made_2d, made_3d, camera = hook.augment(
        batch.inputs_2d, batch.inputs_3d, batch.camera, return_camera=True
    )
    projected = project_points(without_trajectory(made_3d), camera)
    assert torch.allclose(projected, made_2d[:, 4:5], atol=1e-4)
    augmented = hook._pending.augmented.is_augmented
    assert augmented.sum() > 6
    originals = made_2d[: len(batch.camera)] if mix == "append" else made_2d
    assert (
        (camera[: len(batch.camera)] == batch.camera)
        .all(1)[(originals == batch.inputs_2d).flatten(1).all(1)]
        .all()
    )


@pytest.mark.parametrize("causal", [False, True])
def test_check_batch_compares_the_target_frame(causal: bool) -> None:
    hook = make_hook(Strided(), source=source(causal=causal))
    batch = one_target_frame(size=32, causal=causal)
    report = hook.check_batch(batch.inputs_2d, batch.inputs_3d, batch.camera)
    assert report.ok
    assert report.reprojection_error < 1e-4
    other = one_target_frame(size=32, causal=not causal)
    moved = hook.check_batch(batch.inputs_2d, other.inputs_3d, batch.camera)
    assert moved.reprojection_error > 1e-3


@pytest.mark.parametrize("feedback", ["predicted", "estimator"])
@pytest.mark.parametrize("mix", ["replace", "append"])
def test_one_target_frame_is_learned_from(feedback: str, mix: str) -> None:
    estimator = Strided()
    hook = make_hook(estimator, source=source(), feedback=feedback, mix=mix)
    optimizer = torch.optim.Adam(estimator.parameters())
    before = frozen_state(hook)
    for seed in range(3):
        camera, inputs_3d, inputs_2d = one_target_frame(seed=seed)
        inputs_2d, inputs_3d = hook.augment(inputs_2d, inputs_3d, camera)
        inputs_3d[:, :, 0] = 0
        mpjpe(estimator(inputs_2d), inputs_3d).backward()
        optimizer.step()
    assert hook.diagnostics().hardness_ratio > 0
    assert hook.losses.policy.feedback.isfinite()
    assert hook.losses.critic_motion.isfinite()
    changed = differences(before, hook.state_dict())
    for part in ("policy.widening", "critic_motion", "pool_motion"):
        assert any(part in name for name in changed)
    if feedback == "predicted":
        assert any("predictor.motion" in name for name in changed)


def test_windows_from_a_source_never_wait_for_the_device() -> None:
    estimator = Strided()
    hook = make_hook(estimator, source=source())
    for seed in range(3):  # with critics and without
        camera, inputs_3d, inputs_2d = one_target_frame(seed=seed)
        with NoSync() if seed else nullcontext():
            made_2d, _ = hook.augment(inputs_2d, inputs_3d, camera)
        estimator(made_2d)
        with NoSync():
            hook.step()
    assert hook.losses.predictor.isfinite()


def test_resumed_windows_go_on_bit_for_bit() -> None:
    def run(hook: PoseAugHook, estimator: nn.Module, optimizer: Any, seeds: range) -> None:
        for seed in seeds:
            camera, inputs_3d, inputs_2d = one_target_frame(seed=seed)
            inputs_2d, inputs_3d = hook.augment(inputs_2d, inputs_3d, camera)
            inputs_3d[:, :, 0] = 0
            optimizer.zero_grad()
            mpjpe(estimator(inputs_2d), inputs_3d).backward()
            optimizer.step()

    def start() -> tuple[PoseAugHook, nn.Module, Any]:
        estimator = Strided()
        return (
            make_hook(estimator, source=source()),
            estimator,
            torch.optim.SGD(estimator.parameters(), lr=0.01),
        )

    whole, parts, resumed = start(), start(), start()
    run(*whole, range(6))
    run(*parts, range(3))
    resumed[1].load_state_dict(parts[1].state_dict())
    resumed[0].load_state_dict(frozen_state(parts[0]))
    run(*resumed, range(3, 6))
    assert differences(whole[0].state_dict(), resumed[0].state_dict()) == []
    assert differences(whole[1].state_dict(), resumed[1].state_dict()) == []


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
    "dense": (
        lambda: TemporalModel(16, 16, filter_widths=(3, 3), channels=16),
        lifting_one_frame,
    ),
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
    optimizer = torch.optim.Adam(estimator.parameters(), lr=1e-3)
    losses = []
    for _ in range(8):
        camera, inputs_3d, inputs_2d = make_batch(16, frames=9)
        inputs_2d, inputs_3d = hook.augment(inputs_2d, inputs_3d, camera)
        inputs_3d[:, :, 0] = 0
        optimizer.zero_grad()
        loss = loss_of(estimator, inputs_2d, inputs_3d)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert hook.losses.predictor.isfinite()
    assert hook.diagnostics().hardness_ratio > 0
    assert hook.diagnostics().kept_share > 0.5


def test_causal_transformer_sees_no_frame_to_come() -> None:
    torch.manual_seed(0)
    keypoints = torch.randn(2, 9, 16, 2, requires_grad=True)
    for causal in (False, True):
        lifted = SpatioTemporalTransformer(16, 9, width=16, causal=causal)(keypoints)
        assert lifted.shape == (2, 9, 16, 3)
        (slopes,) = torch.autograd.grad(lifted[:, 4].sum(), keypoints)
        assert bool(slopes[:, 5:].any()) == (not causal)
        assert slopes[:, :5].flatten(2).any(2).all()


# -- training on whole windows ---------------------------------------------------------------------


def test_motion_critic_is_for_windows_of_three_frames_or_more() -> None:
    for frames in (1, 2, 3):
        estimator = make_lifter(frames=frames)
        hook = make_hook(estimator)
        optimizer = torch.optim.Adam(estimator.parameters())
        train(hook, estimator, optimizer, stream(1, frames=frames))
        assert bool(hook.losses.critic_motion.isfinite()) == (frames == 3)
        accuracy = hook.diagnostics().accuracy_motion
        assert (accuracy == accuracy) == (frames == 3)


def test_order_on_windows() -> None:
    estimator = make_lifter(frames=3)
    hook = make_hook(estimator)
    optimizer = torch.optim.Adam(estimator.parameters())
    with recorded_steps(hook, estimator) as order:
        train(hook, estimator, optimizer, stream(1, frames=3))
    critics = ["critic_3d", "critic_2d", "critic_motion"]
    assert order == ["policy", *critics, "predictor", "estimator"]


def test_critics_see_every_frame_in_turn() -> None:
    hook = make_hook(make_lifter(frames=9))
    seen: set[int] = set()
    for batch in stream(8, frames=9):
        hook.augment(batch.inputs_2d, batch.inputs_3d, batch.camera)
        generated = drafted(hook)
        seen |= set(generated.judged_frame.tolist())
        frame = generated.judged_frame[3]
        assert torch.equal(generated.judged(generated.clean)[3], generated.clean[3, frame])
        turned = bone_angle_change(generated.clean, generated.poses.bent, H36M_16)
        assert torch.allclose(generated.bone_angle_change[3], turned[3, frame], atol=1e-6)
    assert seen == set(range(9))


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
