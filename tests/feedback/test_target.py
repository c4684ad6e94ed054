"""The closed loop: what 2D of the target and an estimator's answers to it tell of people there.

2D shows how long bones are, and bones of known length show how deep they reach. In a training: when
the loop asks, what it believes, what it puts into a batch.
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
import torch
from helpers import h36m_intrinsics, human_poses
from loops import (
    SmallDefault,
    absolute_batch,
    adam,
    differences,
    make_hook,
    make_lifter,
    stream,
    train,
)
from torch import Tensor, nn

from poseaug_plugin import (
    PoseAdapter,
    PoseAugError,
    PoseAugHook,
    Spread,
    project_points,
    root_relative,
)
from poseaug_plugin.body.bones import (
    average_bone_lengths,
    bone_directions,
    bone_lengths,
    joints_to_bones,
    per_bone,
    with_bone_lengths,
)
from poseaug_plugin.body.poses import CanonicalBatch
from poseaug_plugin.body.presets import H36M_16
from poseaug_plugin.feedback.target import (
    ClosedLoop,
    TargetKeypoints,
    lengths_across,
    on_their_rays,
    with_lengths_on_rays,
)

GROUPS = H36M_16.num_bone_length_groups
# Of a target's people to the training's.
BODY = torch.tensor([0.9, 1.05, 0.95, 1.1, 0.95, 1.0, 0.8, 1.1, 1.0])


def people(count: int, body: Tensor | None = None, seed: int = 0, frames: int = 1) -> Tensor:
    """Poses (N, T, 16, 3) of one person, absolute, with lengths times ``body`` (groups,)."""
    poses = human_poses(count, frames, H36M_16, torch.Generator().manual_seed(seed)).float()
    lengths = torch.linspace(0.2, 0.4, GROUPS) * (1.0 if body is None else body)
    return with_bone_lengths(poses, per_bone(lengths, H36M_16), H36M_16)


def seen(poses: Tensor) -> tuple[Tensor, Tensor]:
    """Keypoints (N, T, 16, 2) and intrinsics (N, 9)."""
    cameras = h36m_intrinsics(len(poses)).float()
    return project_points(poses, cameras), cameras


# -- geometry --------------------------------------------------------------------------------------


def test_a_right_answer_is_put_where_the_pose_stands() -> None:
    poses = people(32)[:, 0]
    keypoints, cameras = (x.squeeze(1) for x in seen(poses[:, None]))
    joints, found = on_their_rays(root_relative(poses, H36M_16), keypoints, cameras)
    assert found.all()
    torch.testing.assert_close(joints, poses, rtol=0, atol=2e-3)


def test_a_wrong_answer_is_seen_at_its_keypoints_all_the_same() -> None:
    poses = people(32)[:, 0]
    keypoints, cameras = (x.squeeze(1) for x in seen(poses[:, None]))
    answers = root_relative(poses, H36M_16) + 0.1 * torch.randn_like(poses)
    joints, found = on_their_rays(root_relative(answers, H36M_16), keypoints, cameras)
    assert found.float().mean() > 0.9
    projected = project_points(joints, cameras)
    torch.testing.assert_close(projected[found], keypoints[found], rtol=0, atol=1e-3)


@pytest.mark.parametrize("broken", [torch.nan, torch.inf, -20.0])
def test_an_answer_that_stands_nowhere_is_not_found(broken: float) -> None:
    poses = people(8)[:, 0]
    keypoints, cameras = (x.squeeze(1) for x in seen(poses[:, None]))
    answers = root_relative(poses, H36M_16)
    answers[3, 5, 2] = broken
    _, found = on_their_rays(answers, keypoints, cameras)
    assert found.tolist() == [i != 3 for i in range(8)]


def test_lengths_are_seen_though_the_answers_have_other_ones() -> None:
    """The estimator answers with the training's bodies; across the view 2D knows better."""
    ratios = []
    for body in (BODY, None):
        poses = people(4000, body)[:, 0]
        keypoints, cameras = (x.squeeze(1) for x in seen(poses[:, None]))
        answers = with_bone_lengths(
            poses, bone_lengths(joints_to_bones(people(1)[0, 0], H36M_16)), H36M_16
        )
        joints, found = on_their_rays(root_relative(answers, H36M_16), keypoints, cameras)
        ratios.append(lengths_across(joints[found], H36M_16))
    believed = ratios[0] / ratios[1]
    assert ((believed / BODY).log() - (believed / BODY).log().mean()).abs().max() < 0.03


def test_depths_follow_from_bones_of_known_length() -> None:
    poses = people(500, BODY)[:, 0]
    keypoints, cameras = (x.squeeze(1) for x in seen(poses[:, None]))
    answers = root_relative(poses, H36M_16)
    answers = answers + 0.05 * torch.randn(
        answers.shape, generator=torch.Generator().manual_seed(1)
    )
    joints, found = on_their_rays(root_relative(answers, H36M_16), keypoints, cameras)
    lengths = bone_lengths(joints_to_bones(poses[0], H36M_16))
    made, change = with_lengths_on_rays(joints[:, None], lengths, H36M_16)
    made = made[:, 0]

    def error(of: Tensor, chosen: Tensor) -> float:
        return (
            (root_relative(of, H36M_16) - root_relative(poses, H36M_16))[chosen]
            .norm(dim=-1)
            .mean()
            .item()
        )

    assert error(made, found) < 0.8 * error(joints, found)
    calm = change < change.quantile(0.25)
    assert error(made, calm) < 0.8 * error(made, change > change.quantile(0.75))
    projected = project_points(made, cameras)
    torch.testing.assert_close(projected[found], keypoints[found], rtol=0, atol=1e-3)


def test_the_true_pose_needs_no_change() -> None:
    poses = people(50)[:, 0]
    lengths = bone_lengths(joints_to_bones(poses[0], H36M_16))
    made, change = with_lengths_on_rays(poses[:, None], lengths, H36M_16)
    torch.testing.assert_close(made[:, 0], poses, rtol=0, atol=5e-3)
    assert change.max() < 1e-3


# -- the target's 2D -------------------------------------------------------------------------------


def keypoints_2d(frames: int = 100) -> Tensor:
    return absolute_batch(frames, seed=3).inputs_2d[:, 0]


@pytest.mark.parametrize(
    ("given", "camera", "message"),
    [
        (lambda: torch.rand(100, 16), None, r"target_2d must be .*sequences"),
        (lambda: [torch.rand(50, 16, 2), torch.rand(50, 17, 2)], None, "of one skeleton"),
        (lambda: "video", None, "target_2d must be"),
        (lambda: [], None, "target_2d must be"),
        (lambda: keypoints_2d(63), None, "64 finite frames or more, got 63"),
        (
            lambda: keypoints_2d().where(torch.arange(100)[:, None, None] < 60, torch.nan),
            None,
            "got 60",
        ),
        (lambda: 500 * (keypoints_2d() + 1), None, "pixels.*normalize_screen_coordinates"),
        (keypoints_2d, torch.ones(8), r"target_camera must be \(9,\) intrinsics"),
        (keypoints_2d, torch.ones(7, 9), "the 100 frames"),
        (keypoints_2d, np.zeros(9), "focal lengths above 0"),
        (keypoints_2d, "none", "target_camera must be"),
    ],
)
def test_what_is_no_target_is_refused(given: Any, camera: Any, message: str) -> None:
    with pytest.raises(PoseAugError, match=f"(?s){message}"):
        make_hook(make_lifter(), target_2d=given(), target_camera=camera)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target_camera": torch.ones(9)}, "target_camera has no effect without target_2d"),
        (
            {"preset": "random", "target_2d": keypoints_2d()},
            "target_2d has no effect with preset='random'",
        ),
        (
            {"preset": "paper", "total_updates": 9, "target_2d": keypoints_2d()},
            "target_2d has no effect",
        ),
        ({"target_2d": torch.rand(100, 17, 2)}, "16 joints for skeleton 'h36m_16', got 17"),
    ],
)
def test_a_target_without_effect_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(PoseAugError, match=message):
        PoseAugHook(make_lifter(), skeleton="h36m_16", **options)


@pytest.mark.parametrize("kind", [list, tuple, np.asarray])
def test_sequences_keep_to_themselves(kind: Any) -> None:
    parts = [np.asarray(x) for x in keypoints_2d(90).split(30)]
    target = TargetKeypoints(kind(parts), h36m_intrinsics(3))
    assert target.first.unique().tolist() == [0, 30, 60]
    assert target.last.unique().tolist() == [29, 59, 89]
    assert torch.equal(target.intrinsics[::30].double(), h36m_intrinsics(3).float().double())


@pytest.mark.parametrize("change", [Tensor.bfloat16, Tensor.requires_grad_, Tensor.double])
def test_tensors_of_any_kind_are_taken(change: Any) -> None:
    target = TargetKeypoints(change(keypoints_2d()), change(h36m_intrinsics(1)[0]))
    for made in (target.keypoints, target.intrinsics):
        assert made.dtype == torch.float32
        assert not made.requires_grad


def test_missing_frames_are_left_out_and_end_a_sequence() -> None:
    keypoints = keypoints_2d(100)
    keypoints[40:45] = torch.nan
    target = TargetKeypoints(keypoints, h36m_intrinsics(100))
    assert (len(target.keypoints), target.left_out) == (95, 5)
    assert target.first.unique().tolist() == [0, 40]
    assert target.last.unique().tolist() == [39, 94]
    assert torch.equal(
        target.intrinsics, h36m_intrinsics(100)[[*range(40), *range(45, 100)]].float()
    )


# -- what the loop believes ------------------------------------------------------------------------


class Answers(nn.Module):
    """An estimator that knows every pose it was shown, and answers with the training's body."""

    def __init__(self, *known: Tensor, frames: int = 1, lifts_all: bool = True) -> None:
        super().__init__()
        self.poses = torch.cat([root_relative(x, H36M_16).flatten(0, 1) for x in known])
        self.keypoints = torch.cat([seen(x)[0].flatten(0, 1) for x in known])
        self.body = bone_lengths(joints_to_bones(people(1)[0, 0], H36M_16))
        self.nothing = nn.Parameter(torch.zeros(1))
        self.frames, self.lifts_all, self.calls = frames, lifts_all, 0

    def forward(self, keypoints: Tensor) -> Tensor:
        self.calls += 1
        if not self.lifts_all:
            keypoints = keypoints[:, self.frames // 2, None]
        flat = keypoints.flatten(0, 1)
        nearest = torch.cdist(flat.flatten(1), self.keypoints.flatten(1)).argmin(1)
        answer = with_bone_lengths(self.poses[nearest], self.body, H36M_16)
        return answer.unflatten(0, keypoints.shape[:2]) + self.nothing


def closed_loop(hook: PoseAugHook) -> ClosedLoop:
    return hook._trainer.closed_loop  # type: ignore[union-attr,return-value]


def asked(
    body: Tensor | None, frames: int = 1, lifts_all: bool = True, **options: Any
) -> tuple[PoseAugHook, Tensor, Tensor]:
    """A hook whose estimator was asked once, the target's poses and the training's."""
    there, here = (
        people(400 if frames == 1 else 60, b, s, frames) for b, s in ((body, 1), (None, 2))
    )
    keypoints, cameras = seen(there)
    estimator = Answers(there, here, frames=frames, lifts_all=lifts_all)
    options = {"preset": SmallDefault(interval=2), **options}
    hook = make_hook(
        estimator,
        adapter=PoseAdapter(root="absolute"),
        target_2d=list(keypoints),
        target_camera=cameras,
        **options,
    )
    assert not closed_loop(hook).asked
    closed_loop(hook).first_update = 1000
    hook._trainer.num_updates = 1000  # type: ignore[union-attr]
    hook.augment(seen(here)[0], here, seen(here)[1])
    hook.step()
    assert closed_loop(hook).asked == 1
    return hook, there, here


@pytest.mark.parametrize(("frames", "lifts_all"), [(1, True), (5, True), (5, False)])
def test_the_targets_body_is_found(frames: int, lifts_all: bool) -> None:
    hook, _, _ = asked(BODY, frames, lifts_all)
    ratio = closed_loop(hook).ratios / BODY
    assert (ratio.log() - ratio.log().mean()).abs().max() < 0.06
    assert closed_loop(hook).share > 0.5


def test_people_like_the_trainings_change_no_body() -> None:
    hook, _, _ = asked(None)
    assert (closed_loop(hook).ratios - 1).abs().max() < 0.04


def test_bodies_and_size_are_bounded() -> None:
    hook, _, _ = asked(torch.tensor([0.3, 2.0, 1, 1, 1, 1, 0.3, 1, 1]))
    loop = closed_loop(hook)
    assert 0.6 <= loop.ratios.min() < 0.65
    assert 1.2 < loop.ratios.max() <= 1.4
    assert 0.9 <= loop.size <= 1.1


def test_kept_poses_are_the_targets() -> None:
    hook, there, _ = asked(BODY)
    loop = closed_loop(hook)
    kept = loop.poses[: int(loop.known)]
    assert kept.isfinite().all()
    directions = bone_directions(joints_to_bones(kept, H36M_16))
    true = bone_directions(joints_to_bones(there[:, 0], H36M_16))
    off = torch.cdist(directions.flatten(1), true.flatten(1)).min(1).values
    assert off.median() < 0.6  # of 15 unit vectors
    keypoints = project_points(kept, loop.intrinsics[: len(kept)])
    distance = torch.cdist(keypoints.flatten(1), seen(there)[0].flatten(1)).min(1).values
    assert distance.max() < 0.01  # it is seen in the target's own 2D


def test_windows_are_of_neighbouring_frames() -> None:
    hook, _, here = asked(BODY, frames=5)
    outputs = hook.augment(*[seen(here)[0], here], seen(here)[1], return_camera=True)
    projected = project_points(outputs[1], outputs[2])
    torch.testing.assert_close(projected, outputs[0], rtol=0, atol=1e-4)
    steps = bone_directions(joints_to_bones(outputs[1], H36M_16)).diff(dim=1).norm(dim=-1)
    assert steps.median() < 0.5


def test_a_share_of_the_batch_is_of_the_target() -> None:
    still = Spread(
        yaw=0, pitch=0, roll=0, limb_angle=0, bone_angle=0, torso_angle=0, bone_length=0,
        torso_length=0, keep_view=1,
    )  # fmt: skip
    hook, there, here = asked(BODY, share=1.0, spread=still)
    keypoints, cameras = seen(here)
    inputs_2d, inputs_3d, mixed = hook.augment(keypoints, here, cameras, return_camera=True)
    torch.testing.assert_close(project_points(inputs_3d, mixed), inputs_2d, rtol=0, atol=1e-4)
    distance = torch.cdist(inputs_2d.flatten(1), seen(there)[0].flatten(1)).min(1).values
    posed = (distance < 0.03).float().mean().item()
    assert posed == pytest.approx(0.75 * closed_loop(hook).share.item(), abs=0.1)
    lengths = average_bone_lengths(inputs_3d[:, 0], H36M_16).median(0).values
    own = average_bone_lengths(here[:, 0], H36M_16).median(0).values
    slope = (lengths / own).log() @ closed_loop(hook).ratios.log()
    assert slope > 0.5 * closed_loop(hook).ratios.log().square().sum()


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_no_more_poses_are_exchanged_than_answers_are_known(share: float) -> None:
    loop = ClosedLoop(TargetKeypoints(keypoints_2d()), H36M_16)
    loop.share.fill_(share)
    loop.ratios.fill_(1.2)
    poses = people(2000)
    chosen = CanonicalBatch(poses, *seen(poses), torch.ones(2000, dtype=torch.bool))
    mixed = loop.mix_in(chosen, torch.Generator().manual_seed(0))
    posed = (mixed.intrinsics == 0).all(1)  # none are kept, so their cameras are zero
    assert posed.float().mean().item() == pytest.approx(0.75 * share, abs=0.04)
    own = (mixed.joints - poses).flatten(1).abs().amax(1) < 1e-4
    assert own.float().mean().item() == pytest.approx(
        (1 - 0.75 * share) * (0.3 if share else 1), abs=0.04
    )


def test_an_update_that_learns_sees_the_batchs_own_poses_alone() -> None:
    hook, _, here = asked(BODY)
    keypoints, cameras = seen(here)
    for learns in (False, True):
        assert hook._trainer.learns_next == learns  # type: ignore[union-attr]
        hook.augment(keypoints, here, cameras)
        inputs = hook._pending.batch.inputs  # type: ignore[union-attr]
        assert (inputs is not None) == learns
        if inputs is not None:
            assert torch.isin(inputs.poses.joints, here).all()
        hook.step()


# -- when, and what it leaves ----------------------------------------------------------------------


def test_it_asks_after_a_thousand_updates_and_ever_less_often() -> None:
    loop = ClosedLoop(TargetKeypoints(keypoints_2d()), H36M_16)
    due = [n for n in range(10_001) if loop.is_due(n)]
    assert due == [1000, 1250, 1562, 1953, 2441, 3052, 3815, 4768, 5960, 7451, 9313]


def test_what_it_believes_is_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "poseaug_plugin"):
        hook, _, _ = asked(BODY)
    said = hook.diagnostics().learned
    assert "shoulder 0.8" in said
    assert "of the estimator's answers" in said
    assert [record.getMessage() for record in caplog.records] == [f"PoseAugHook: {said}"]


def test_before_the_first_answers_the_batch_is_augmented_as_ever() -> None:
    hook = make_hook(make_lifter(), target_2d=keypoints_2d())
    train(hook, make_lifter(), adam(make_lifter()), stream(1))
    assert "not known yet" in hook.diagnostics().learned
    assert closed_loop(hook).asked == 0


def test_an_estimator_that_answers_nonsense_changes_nothing() -> None:
    estimator = make_lifter()
    nn.init.constant_(estimator[-2].weight, torch.nan)
    hook = make_hook(estimator, target_2d=keypoints_2d())
    closed_loop(hook).first_update = 1
    before = {k: v.clone() for k, v in closed_loop(hook).state_dict().items()}
    train(hook, estimator, adam(estimator), stream(3))
    assert differences(before, dict(closed_loop(hook).state_dict())) == []


def test_a_state_with_a_target_needs_one_again() -> None:
    hook = make_hook(make_lifter(), target_2d=keypoints_2d())
    with pytest.raises(PoseAugError, match="not known here: closed_loop"):
        make_hook(make_lifter()).load_state_dict(hook.state_dict())


def test_without_cameras_the_trainings_are_taken() -> None:
    there, here = people(100, BODY, 1), people(40, None, 2)
    estimator = Answers(there, here)
    hook = make_hook(
        estimator, adapter=PoseAdapter(root="absolute"), target_2d=seen(there)[0][:, 0]
    )
    closed_loop(hook).first_update = 1
    keypoints, cameras = seen(here)
    for _ in range(2):
        hook.augment(keypoints, here, cameras)
        hook.step()
    used = closed_loop(hook).intrinsics
    assert torch.equal(used.unique(dim=0), cameras.unique(dim=0))
