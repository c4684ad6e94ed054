"""Nothing invalid gets out: augmented poses are finite, in front, in frame, with true bones.

What cannot be made so stays the original and is counted; what came in broken is skipped and counted
and never spreads.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import pytest
import torch
from loops import (
    ASKING,
    HOOKS,
    Batch,
    absolute_batch,
    adam,
    all_finite,
    augmented,
    changed,
    differences,
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

from poseaug_plugin import (
    PoseAdapter,
    PoseAugHook,
    PoseAugWarning,
    RandomPolicy,
    Spread,
    project_points,
)
from poseaug_plugin.augment.transforms import AugmentationParameters
from poseaug_plugin.body.bones import bone_lengths, joints_to_bones
from poseaug_plugin.body.camera import Z_NEAR
from poseaug_plugin.body.presets import H36M_16

WIDE = Spread(pitch=1.4, roll=0.7, depth=(0.1, 5.0), bone_angle=0.5, bone_length=0.5)
VALID: dict[str, dict[str, Any]] = {
    "default": {},
    "random": HOOKS["random"],
    "paper": HOOKS["paper"],
    "wide": {"spread": WIDE},
    "wide random": {"preset": "random", "spread": WIDE},
    "wide frame": {"spread": WIDE, "adapter": PoseAdapter(aspect_ratio=0.5625)},
    "high frame": {"spread": WIDE, "adapter": PoseAdapter(aspect_ratio=16 / 9)},
}


class Made(NamedTuple):
    """The augmented samples of a batch."""

    keypoints: Tensor
    joints: Tensor  # where they stand
    camera: Tensor
    aspect_ratio: float


# Batches are broken on purpose.
pytestmark = pytest.mark.filterwarnings("ignore:PoseAugHook. the first batch looks wrong")


@lru_cache
def made_poses(name: str) -> list[Made]:
    """What three batches became."""
    made = []
    estimator = make_lifter()
    hook = make_hook(estimator, share=1.0, **VALID[name])
    for batch in stream(3, 32):
        outputs = augmented(hook, batch)
        rows = changed(batch.inputs_2d, outputs.inputs_2d)
        joints = without_trajectory(outputs.inputs_3d)
        ratio = hook.adapter.aspect_ratio
        made.append(Made(outputs.inputs_2d[rows], joints[rows], batch.camera[rows], ratio))
        estimator(outputs.inputs_2d)
        hook.step()
    return made


each_valid = pytest.mark.parametrize("name", VALID)


@each_valid
def test_augmented_poses_are_finite(name: str) -> None:
    for keypoints, joints, _, _ in made_poses(name):
        assert keypoints.isfinite().all()
        assert joints.isfinite().all()


@each_valid
def test_augmented_poses_are_in_front_of_the_camera(name: str) -> None:
    for _, joints, _, _ in made_poses(name):
        assert (joints[..., 2] > Z_NEAR - 1e-6).all()


@each_valid
def test_augmented_poses_are_in_the_frame(name: str) -> None:
    for keypoints, _, _, aspect_ratio in made_poses(name):
        assert (keypoints[..., 0].abs() <= 1).all()
        assert (keypoints[..., 1].abs() <= aspect_ratio).all()


@each_valid
def test_augmented_keypoints_are_the_projection_of_the_augmented_poses(name: str) -> None:
    for keypoints, joints, camera, _ in made_poses(name):
        torch.testing.assert_close(project_points(joints, camera), keypoints, rtol=0, atol=1e-5)


@each_valid
def test_left_and_right_bones_stay_equally_long(name: str) -> None:
    for _, joints, _, _ in made_poses(name):
        lengths = bone_lengths(joints_to_bones(joints, H36M_16))
        assert (lengths > 0.01).all()
        mirrored = [H36M_16.bone_length_groups.index(g) for g in H36M_16.bone_length_groups]
        torch.testing.assert_close(lengths, lengths[..., mirrored], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["default", "wide", "wide random"])
def test_checks_of_validity_are_not_about_nothing(name: str) -> None:
    assert sum(len(keypoints) for keypoints, *_ in made_poses(name)) > 30


def test_what_cannot_be_made_valid_is_the_original_and_counted() -> None:
    estimator = make_lifter()
    hook = make_hook(estimator, share=1.0, spread=Spread(depth=(0.01, 0.02), keep_view=0))
    batch = make_batch()
    outputs = augmented(hook, batch)
    assert differences(list(outputs), [batch.inputs_2d, batch.inputs_3d]) == []
    estimator(outputs.inputs_2d)
    hook.step()
    assert hook.diagnostics().kept_share == 0


class Mischief(RandomPolicy):
    """A policy of one's own that makes half of the poses impossible."""

    def __init__(self, what: str) -> None:
        super().__init__("h36m_16", spread=Spread(keep_view=1))
        self.what = what

    def forward(self, joints: Tensor, noise: Tensor) -> AugmentationParameters:
        parameters = super().forward(joints, noise)
        half = (torch.arange(len(joints)) % 2 == 0).reshape(-1, 1, 1)
        if self.what == "bones":
            ratio = torch.where(half, -1.0, parameters.bone_length_ratio)
            return parameters._replace(bone_length_ratio=ratio)
        value = {"NaN": torch.nan, "Inf": torch.inf, "behind": -4.0, "outside": 4.0}[self.what]
        place = parameters.translation.clone()
        place[..., 0 if self.what == "outside" else 2] = value
        return parameters._replace(translation=torch.where(half, place, parameters.translation))


@pytest.mark.parametrize("what", ["NaN", "Inf", "behind", "outside", "bones"])
def test_nothing_invalid_gets_out_of_a_policy_of_ones_own(what: str) -> None:
    estimator = make_lifter()
    hook = make_hook(estimator, policy=Mischief(what), share=1.0)
    batch = make_batch(32)
    outputs = augmented(hook, batch)
    assert changed(batch.inputs_2d, outputs.inputs_2d).sum() == 16
    estimator(outputs.inputs_2d)
    hook.step()
    assert hook.diagnostics().kept_share == pytest.approx(0.5)


def test_released_frame_check_lets_the_left_and_the_top_go() -> None:
    hook = make_hook(make_lifter(), share=1.0, **HOOKS["released"])
    batch = make_batch(512)
    outputs = augmented(hook, batch)
    rows = changed(batch.inputs_2d, outputs.inputs_2d)
    assert (outputs.inputs_2d[rows] <= 1).all()
    assert (outputs.inputs_2d[rows] < -1).any()


def test_released_frame_check_keeps_what_is_behind_the_camera_back() -> None:
    adapter = PoseAdapter(root="absolute")
    hook = make_hook(make_lifter(), adapter=adapter, share=1.0, **HOOKS["released"])
    batch = absolute_batch(2048)
    outputs = augmented(hook, batch)
    rows = changed(batch.inputs_2d, outputs.inputs_2d)
    assert rows.sum() > 10
    assert (outputs.inputs_3d[rows][..., 2] > Z_NEAR).all()


# -- samples that cannot be used -------------------------------------------------------------------


def broken_batch(kind: str) -> tuple[Batch, Tensor]:
    """A batch of 16 with some broken samples, and which these are."""
    camera, inputs_3d, inputs_2d = (tensor.clone() for tensor in make_batch())
    broken = torch.zeros(16, dtype=torch.bool)
    broken[[0, 3, 4, 11]] = True
    values = {"NaN": torch.nan, "Inf": torch.inf, "-Inf": -torch.inf}
    where, _, value = kind.partition(" ")
    if where == "2D":
        inputs_2d[broken, 0, 5, 1] = values[value]
    elif where == "3D":
        inputs_3d[broken, 0, 5, 1] = values[value]
    elif where == "root":
        inputs_3d[broken, 0, 0, 2] = values[value]
    elif where == "camera":
        camera[broken, 4] = values[value]
    else:  # behind the camera
        inputs_3d[broken, :, 0, 2] *= -1
    return Batch(camera, inputs_3d, inputs_2d), broken


BROKEN = ["2D NaN", "2D Inf", "3D NaN", "3D -Inf", "root NaN", "camera NaN", "behind"]
each_break = pytest.mark.parametrize("kind", BROKEN)


@each_break
@pytest.mark.parametrize("mix", ["replace", "append"])
def test_broken_samples_pass_through(kind: str, mix: str) -> None:
    batch, broken = broken_batch(kind)
    share = {"share": 1.0} if mix == "replace" else {}
    outputs = augmented(make_hook(make_lifter(), mix=mix, **share), batch)
    for given, returned in zip((batch.inputs_2d, batch.inputs_3d), outputs, strict=True):
        assert torch.equal(~changed(given, returned[-16:]), broken)


@each_break
def test_broken_samples_are_counted(kind: str) -> None:
    estimator = make_lifter()
    hook = make_hook(estimator)
    batch, broken = broken_batch(kind)
    for _ in range(2):
        outputs = augmented(hook, batch)
        estimator(outputs.inputs_2d)
        hook.step()
    assert hook.diagnostics().unusable_samples == 2 * broken.sum()


@each_break
@pytest.mark.parametrize("hook", HOOKS)
def test_broken_samples_do_not_spread(kind: str, hook: str) -> None:
    estimator = make_lifter(batch_norm=False)  # which would spread them by itself
    attached = make_hook(estimator, share=1.0, **HOOKS[hook])
    for _ in range(2):
        batch, broken = broken_batch(kind)
        outputs = augmented(attached, batch)
        assert outputs.inputs_3d[~broken].isfinite().all()
        estimator(outputs.inputs_2d)
        attached.step()
    assert all_finite(attached)
    assert attached.diagnostics().skipped_steps == 0


@pytest.mark.parametrize("hook", HOOKS)
def test_batch_with_no_usable_sample(hook: str) -> None:
    estimator = make_lifter().eval()
    attached = make_hook(estimator, **HOOKS[hook])
    camera, inputs_3d, inputs_2d = make_batch()
    inputs_2d = inputs_2d * torch.nan
    with pytest.warns(PoseAugWarning, match=r"first batch looks wrong: no sample .*check_batch"):
        outputs = attached.augment(inputs_2d, inputs_3d, camera)
    assert differences(list(outputs), [inputs_2d, inputs_3d]) == []
    before = [p.detach().clone() for p in attached.policy.parameters()]
    estimator(outputs.inputs_2d)
    attached.step()
    assert differences(before, [p.detach() for p in attached.policy.parameters()]) == []
    assert all_finite(attached)
    read = attached.diagnostics()
    assert read.kept_share != read.kept_share  # of none
    assert read.skipped_steps == 0  # nothing was wrong with the gradients


@pytest.mark.parametrize("hook", HOOKS)
def test_zero_length_bones(hook: str) -> None:
    estimator = make_lifter()
    attached = make_hook(estimator, share=1.0, **HOOKS[hook])
    joints = absolute_batch().inputs_3d.clone()
    joints[:8] = joints[:8, :, :1]  # every bone
    joints[8:12, :, 3] = joints[8:12, :, 2]  # a shin
    camera = make_batch().camera
    batch = Batch(camera, with_trajectory(joints), project_points(joints, camera))
    train(attached, estimator, adam(estimator), [batch] * 2)
    assert all_finite(attached)
    assert attached.diagnostics().skipped_steps == 0


def estimator_gone_to_nan() -> nn.Module:
    estimator = make_lifter()
    nn.init.constant_(estimator[1].weight, torch.nan)
    return estimator


@pytest.mark.parametrize("hook", HOOKS)
def test_estimator_gone_to_nan_does_not_take_the_hook_along(hook: str) -> None:
    estimator = estimator_gone_to_nan()
    attached = make_hook(estimator, **HOOKS[hook])
    train(attached, estimator, adam(estimator), stream(2))
    assert all_finite(attached)
    assert augmented(attached, make_batch()).inputs_2d.isfinite().all()


@pytest.mark.parametrize("hook", ASKING)
def test_steps_left_out_are_counted(hook: str) -> None:
    estimator = estimator_gone_to_nan()
    attached = make_hook(estimator, **HOOKS[hook])
    train(attached, estimator, adam(estimator), stream(2))
    assert attached.diagnostics().skipped_steps == 2  # the policy's


def test_nan_in_the_estimators_gradients_stays_there() -> None:
    estimator = make_lifter()
    optimizer = torch.optim.SGD(estimator.parameters(), lr=0.1)
    hook: PoseAugHook = make_hook(estimator)
    inputs_2d, inputs_3d = augmented(hook, make_batch())
    (mpjpe(estimator(inputs_2d), inputs_3d) * torch.nan).backward()
    optimizer.step()
    assert estimator[1].weight.isnan().all()
    assert all_finite(hook)
    assert hook.diagnostics().skipped_steps == 0


def test_poses_that_half_precision_has_no_room_for_stay_the_originals() -> None:
    # In this unit 7.2 m are the most; augmented poses stand further away.
    unit = 1.1e-4
    adapter = PoseAdapter(root="absolute", metres_per_unit=unit)
    hook = make_hook(make_lifter(), adapter=adapter, share=1.0)
    camera, joints, inputs_2d = absolute_batch(256)
    inputs_3d = (joints / unit).half()
    assert inputs_3d.isfinite().all()
    made = hook.augment(inputs_2d, inputs_3d, camera)
    assert made.inputs_3d.isfinite().all()
    stayed = ~changed(inputs_3d, made.inputs_3d)
    assert stayed.sum() > 4
    assert torch.equal(made.inputs_2d[stayed], inputs_2d[stayed])
    assert (~stayed).sum() > 16
