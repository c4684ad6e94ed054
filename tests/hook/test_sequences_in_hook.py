"""A host with 2D of a window and 3D of one frame gives sequences, from which windows are drawn."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from helpers import h36m_intrinsics, human_poses
from loops import (
    HOOKS,
    Batch,
    NoSync,
    adam,
    augmented,
    changed,
    differences,
    frozen_state,
    make_batch,
    make_hook,
    make_lifter,
    mpjpe,
    with_trajectory,
    without_trajectory,
)
from torch import Tensor, nn

from poseaug_plugin import (
    PoseAdapter,
    PoseAugError,
    PoseAugHook,
    PoseSource,
    Spread,
    project_points,
)
from poseaug_plugin.body.presets import H36M_16

SEQUENCES = (40, 7, 25)  # frames


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


# -- a source of windows ---------------------------------------------------------------------------


def drawn(count: int, frames: int, **options: Any) -> Any:
    windows = source(**options).open(PoseAdapter(), H36M_16, torch.device("cpu"))
    return windows.sample(count, frames, torch.Generator().manual_seed(0))


def test_source_gives_windows_of_the_sequences() -> None:
    windows = drawn(500, 9, flip=False)
    assert windows.joints.shape == (500, 9, 16, 3)
    assert torch.allclose(project_points(windows.joints, windows.intrinsics), windows.keypoints)
    absolute = [without_trajectory(s).float() for s in sequences()]
    padded = [torch.cat([s[:1]] * 4 + [s] + [s[-1:]] * 4) for s in absolute]
    known = torch.cat([p.unfold(0, 9, 1).permute(0, 3, 1, 2) for p in padded])
    distance = torch.cdist(windows.joints.flatten(1).double(), known.flatten(1).double())
    assert distance.min(1).values.max() < 1e-3
    # Every frame is as likely as any other, and comes with its own camera.
    nearest = distance.argmin(1)
    assert len(nearest.unique()) == sum(SEQUENCES)
    owner = torch.arange(len(SEQUENCES)).repeat_interleave(torch.tensor(SEQUENCES))[nearest]
    assert torch.equal(windows.intrinsics, h36m_intrinsics(3).float()[owner])


def test_half_of_the_windows_are_mirrored_with_their_cameras() -> None:
    plain, flipped = drawn(400, 3, flip=False), drawn(400, 3, flip=True)
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
    assert sum(map(len, PoseSource(poses, cameras).sequences)) == 72
    with pytest.raises(
        PoseAugError, match="intrinsics, focal lengths above 0, for each of the 3 sequences"
    ):
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


# -- in the hook -----------------------------------------------------------------------------------


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


@pytest.mark.parametrize("causal", [False, True])
def test_window_of_2d_with_one_3d_frame(causal: bool) -> None:
    hook = make_hook(Strided(), source=source(causal=causal), share=0.75)
    batch = one_target_frame(causal=causal)
    made_2d, made_3d = augmented(hook, batch)
    assert made_2d.shape == batch.inputs_2d.shape
    assert made_3d.shape == batch.inputs_3d.shape
    pending = hook._pending.batch
    generated = hook._trainer.augmenter.generate(pending.inputs)  # the same, once more
    target = 8 if causal else 4
    rows, accepted = pending.places, pending.accepted
    assert accepted.sum() > 6
    moved = with_trajectory(generated.poses.moved[:, target : target + 1])
    assert torch.allclose(made_3d[rows][accepted], moved[accepted], atol=1e-6)
    assert torch.equal(made_2d[rows][accepted], generated.keypoints[accepted])
    assert torch.equal(made_2d[rows][~accepted], batch.inputs_2d[rows][~accepted])


@pytest.mark.parametrize("mix", ["replace", "append"])
def test_cameras_of_windows_from_a_source_come_back(mix: str) -> None:
    hook = make_hook(Strided(), source=source(), mix=mix, spread=Spread(focal_length=0.5))
    batch = one_target_frame()
    size = len(batch.camera)
    made_2d, made_3d, camera = hook.augment(
        batch.inputs_2d, batch.inputs_3d, batch.camera, return_camera=True
    )
    projected = project_points(without_trajectory(made_3d), camera)
    assert torch.allclose(projected, made_2d[:, 4:5], atol=1e-4)
    originals = batch.inputs_2d.repeat(2, 1, 1, 1)[: len(made_2d)]
    assert changed(originals, made_2d).sum() > 6
    untouched = (made_2d[:size] == batch.inputs_2d).flatten(1).all(1)
    assert (camera[:size] == batch.camera).all(1)[untouched].all()


@pytest.mark.parametrize("causal", [False, True])
def test_check_batch_compares_the_target_frame(causal: bool) -> None:
    hook = make_hook(Strided(), source=source(causal=causal))
    batch = one_target_frame(size=32, causal=causal)
    report = hook.check_batch(batch.inputs_2d, batch.inputs_3d, batch.camera)
    assert not report.problems
    assert report.reprojection_error < 1e-4
    other = one_target_frame(size=32, causal=not causal)
    moved = hook.check_batch(batch.inputs_2d, other.inputs_3d, batch.camera)
    assert moved.reprojection_error > 1e-3


def run(hook: PoseAugHook, estimator: nn.Module, optimizer: Any, seeds: range) -> None:
    for seed in seeds:
        inputs_2d, inputs_3d = augmented(hook, one_target_frame(seed=seed))
        inputs_3d[:, :, 0] = 0
        optimizer.zero_grad()
        mpjpe(estimator(inputs_2d), inputs_3d).backward()
        optimizer.step()


@pytest.mark.parametrize("hook", ["default", "paper", "released"])
@pytest.mark.parametrize("mix", ["replace", "append"])
def test_one_target_frame_is_learned_from(hook: str, mix: str) -> None:
    estimator = Strided()
    attached = make_hook(estimator, source=source(), mix=mix, **HOOKS[hook])
    before = frozen_state(attached)
    run(attached, estimator, adam(estimator), range(3))
    # Good answers: an estimator that has hardly begun tells the controller nothing.
    answers = without_trajectory(augmented(attached, one_target_frame(seed=3)).inputs_3d)
    attached.observe(answers + torch.linspace(-0.05, 0.05, 16)[:, None])
    attached.step()
    found = attached.diagnostics()
    assert found.updates == 4
    assert found.skipped_steps == 0
    assert all(loss.isfinite() for loss in attached.losses.values())
    parts = {
        name.split("/")[3].split(".")[0]
        for name in differences(before, frozen_state(attached))
        if "/modules/" in name
    }
    assert {"policy", "critic_3d", "critic_2d", "critic_3d_pool", "critic_2d_pool"} <= parts
    if hook == "default":
        assert found.hardness_ratio > 0
        assert found.mean_pose_ratio > 0
        assert "controller" in parts


def test_windows_from_a_source_never_wait_for_the_device() -> None:
    estimator = Strided()
    hook = make_hook(estimator, source=source())
    for seed in range(3):  # with critics and without
        batch = one_target_frame(seed=seed)
        with NoSync() if seed else nullcontext():
            made_2d, _ = augmented(hook, batch)
        estimator(made_2d)
        with NoSync():
            hook.step()
    assert hook.diagnostics().hardness_ratio > 0


def test_resumed_windows_go_on_bit_for_bit() -> None:
    def start() -> tuple[PoseAugHook, nn.Module, Any]:
        estimator = Strided()
        optimizer = torch.optim.SGD(estimator.parameters(), lr=0.01)
        return make_hook(estimator, source=source()), estimator, optimizer

    whole, parts, resumed = start(), start(), start()
    run(*whole, range(6))
    run(*parts, range(3))
    resumed[1].load_state_dict(parts[1].state_dict())
    resumed[0].load_state_dict(frozen_state(parts[0]))
    run(*resumed, range(3, 6))
    assert differences(whole[0].state_dict(), resumed[0].state_dict()) == []
    assert differences(whole[1].state_dict(), resumed[1].state_dict()) == []


@pytest.mark.filterwarnings("ignore:.*took skeleton")
def test_source_of_a_hook_that_does_not_know_its_skeleton_yet() -> None:
    hook = make_hook(make_lifter(), skeleton=None, source=source())
    batch = make_batch(32)
    outputs = augmented(hook, batch)
    assert changed(batch.inputs_2d, outputs.inputs_2d).any()
    other = make_lifter(17)
    wrong = make_hook(other, skeleton=None, source=source(), preset="random")
    h36m_17 = make_batch(32, PoseAugHook(other, skeleton="h36m_17").skeleton)
    with pytest.raises(PoseAugError, match="must have 17 joints for skeleton 'h36m_17', got 16"):
        augmented(wrong, h36m_17)
    assert wrong.skeleton is None
