"""Promises 5, 7 and 9: what gets out is valid and in the host's form; errors say what is wrong."""

from __future__ import annotations

import copy
import gc
import warnings
import weakref
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from loops import (
    HOOKS,
    SMALL,
    Batch,
    absolute_batch,
    differences,
    frozen_state,
    make_batch,
    make_hook,
    make_lifter,
    mpjpe,
    same_bits,
    stream,
    train,
    with_trajectory,
    without_trajectory,
)
from torch import Tensor, nn

from poseaug_plugin import (
    COCO_17,
    H36M_16,
    H36M_17,
    MPI_INF_3DHP_17,
    SMPL_24,
    HostPoses,
    PoseAdapter,
    PoseAugError,
    PoseAugHook,
    PoseAugWarning,
    Skeleton,
    Spread,
    in_view,
    project_points,
    root_relative,
    solve_root,
)
from poseaug_plugin.adapters import DEFAULT_INTRINSICS, _warn_of_assumed_camera
from poseaug_plugin.bones import bone_lengths, joints_to_bones
from poseaug_plugin.camera import Z_NEAR
from poseaug_plugin.mixing import mixed_cameras


def augmented(hook: PoseAugHook, batch: Batch) -> HostPoses:
    return hook.augment(batch.inputs_2d, batch.inputs_3d, batch.camera)


def changed(before: Tensor, after: Tensor) -> Tensor:
    """Which samples are not the same bits."""
    return torch.tensor(
        [not same_bits(a, b) for a, b in zip(before, after, strict=True)], dtype=torch.bool
    )


def train_once(hook: PoseAugHook, batch: Batch, estimator: nn.Module | None = None) -> None:
    estimator = estimator or hook._estimator
    train(hook, estimator, torch.optim.Adam(estimator.parameters(), lr=1e-3), [batch])


def all_finite(hook: PoseAugHook) -> bool:
    modules = hook.state_dict()["training"]["modules"].values()
    return all(v.isfinite().all() for v in modules if isinstance(v, Tensor))


# -- in the host's form ----------------------------------------------------------------------------

each_dtype = pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16]
)


@each_dtype
@pytest.mark.parametrize("mix", ["replace", "append"])
@pytest.mark.parametrize("frames", [None, 1, 5])
def test_shape_and_dtype(dtype: torch.dtype, mix: str, frames: int | None) -> None:
    camera, inputs_3d, inputs_2d = make_batch(frames=frames or 1)
    inputs_2d, inputs_3d = inputs_2d.to(dtype), inputs_3d.to(dtype)
    if frames is None:
        inputs_2d, inputs_3d = inputs_2d.squeeze(1), inputs_3d.squeeze(1)
    outputs = make_hook(make_lifter(), mix=mix).augment(inputs_2d, inputs_3d, camera)
    for given, returned in zip((inputs_2d, inputs_3d), outputs, strict=True):
        size = len(given) * (2 if mix == "append" else 1)
        assert returned.shape == (size, *given.shape[1:])
        assert returned.dtype == dtype


@pytest.mark.parametrize("mix", ["replace", "append"])
def test_outputs_are_detached(mix: str) -> None:
    camera, inputs_3d, inputs_2d = make_batch()
    hook = make_hook(make_lifter(), mix=mix)
    outputs = hook.augment(inputs_2d.requires_grad_(), inputs_3d.requires_grad_(), camera)
    assert not any(output.requires_grad for output in outputs)


@pytest.mark.parametrize("mix", ["replace", "append"])
def test_outputs_are_contiguous_whatever_the_inputs(mix: str) -> None:
    camera, inputs_3d, inputs_2d = make_batch(frames=3)
    inputs_2d, inputs_3d = (
        x.transpose(1, 2).contiguous().transpose(1, 2) for x in (inputs_2d, inputs_3d)
    )
    assert not inputs_2d.is_contiguous()
    outputs = make_hook(make_lifter(), mix=mix).augment(inputs_2d, inputs_3d, camera)
    assert all(output.is_contiguous() for output in outputs)


def test_inputs_in_another_memory_layout_give_the_same() -> None:
    batch = make_batch(frames=3)
    plain = augmented(make_hook(make_lifter()), batch)
    strided = Batch(*(torch.stack([x, x], -1)[..., 1] for x in batch))
    assert not strided.inputs_2d.is_contiguous()
    assert differences(plain, augmented(make_hook(make_lifter()), strided)) == []


def test_frames_or_none_give_the_same() -> None:
    camera, inputs_3d, inputs_2d = make_batch()
    with_frames = make_hook(make_lifter()).augment(inputs_2d, inputs_3d, camera)
    without = make_hook(make_lifter()).augment(inputs_2d.squeeze(1), inputs_3d.squeeze(1), camera)
    assert differences(without, HostPoses(*(x.squeeze(1) for x in with_frames))) == []


@pytest.mark.parametrize("mix", ["replace", "append"])
def test_augment_leaves_its_inputs(mix: str) -> None:
    batch = make_batch()
    before = copy.deepcopy(batch)
    augmented(make_hook(make_lifter(), mix=mix), batch)
    assert differences(before, batch) == []


@pytest.mark.parametrize("mix", ["replace", "append"])
@pytest.mark.parametrize("share", [0.5, 1.0])
def test_changing_outputs_in_place_leaves_the_inputs(mix: str, share: float) -> None:
    batch = make_batch()
    before = copy.deepcopy(batch)
    for output in augmented(make_hook(make_lifter(), mix=mix, share=share), batch):
        output.zero_()
    assert differences(before, batch) == []


@pytest.mark.parametrize("mix", ["replace", "append"])
def test_changing_inputs_in_place_leaves_the_outputs(mix: str) -> None:
    batch = make_batch()
    outputs = augmented(make_hook(make_lifter(), mix=mix), batch)
    before = copy.deepcopy(outputs)
    batch.inputs_2d.zero_()
    batch.inputs_3d.zero_()
    assert differences(before, outputs) == []


@pytest.mark.parametrize("which", ["inputs", "outputs"])
@pytest.mark.parametrize("hook", ["default", "predicted", "estimator, frozen"])
@pytest.mark.parametrize("root", ["trajectory", "absolute"])
def test_changes_in_place_do_not_reach_what_the_hook_learns(
    which: str, hook: str, root: str
) -> None:
    states = []
    for changes in (False, True):
        estimator = make_lifter(dropout=0.0)
        attached = make_hook(estimator, adapter=PoseAdapter(root=root), **HOOKS[hook])
        batch = make_batch() if root == "trajectory" else absolute_batch()
        outputs = augmented(attached, batch)
        estimator(outputs.inputs_2d)
        if changes:
            for tensor in batch if which == "inputs" else outputs:
                tensor.fill_(7.0)
        attached.step()
        states.append(frozen_state(attached))
    assert differences(*states) == []


def test_read_only_arrays() -> None:
    arrays = [tensor.numpy().copy() for tensor in make_batch()]
    for array in arrays:
        array.setflags(write=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of torch, that they cannot be written to
        batch = Batch(*map(torch.from_numpy, arrays))
    estimator = make_lifter()
    train_once(make_hook(estimator), batch, estimator)
    assert differences(list(make_batch()), [torch.tensor(array) for array in arrays]) == []


# -- which samples ---------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
def test_share_of_the_batch_is_replaced(share: float) -> None:
    batch = make_batch(32)
    in_place = Spread(own_view=1)  # so that none falls out of the frame
    outputs = augmented(make_hook(make_lifter(), share=share, spread=in_place), batch)
    assert changed(batch.inputs_2d, outputs.inputs_2d).sum() == round(share * 32)


def test_untouched_samples_are_bit_identical() -> None:
    batch = make_batch(32)
    outputs = augmented(make_hook(make_lifter()), batch)
    touched_2d = changed(batch.inputs_2d, outputs.inputs_2d)
    touched_3d = changed(batch.inputs_3d, outputs.inputs_3d)
    assert torch.equal(touched_2d, touched_3d)
    assert 0 < touched_2d.sum() < 32


def test_other_samples_every_time() -> None:
    batch, hook = make_batch(32), make_hook(make_lifter())
    first, second = (changed(batch.inputs_2d, augmented(hook, batch)[0]) for _ in range(2))
    assert not torch.equal(first, second)


def test_append_keeps_the_originals_first() -> None:
    batch = make_batch()
    outputs = augmented(make_hook(make_lifter(), mix="append"), batch)
    assert same_bits(outputs.inputs_2d[:16], batch.inputs_2d)
    assert same_bits(outputs.inputs_3d[:16], batch.inputs_3d)


def test_append_augments_every_sample() -> None:
    batch = make_batch()
    outputs = augmented(make_hook(make_lifter(), mix="append"), batch)
    assert changed(batch.inputs_2d, outputs.inputs_2d[16:]).all()
    assert changed(batch.inputs_3d, outputs.inputs_3d[16:]).all()


def test_augment_is_the_same_for_the_same_seed() -> None:
    batch = make_batch()
    first, again, other = (
        augmented(make_hook(make_lifter(), seed=seed), batch) for seed in (0, 0, 1)
    )
    assert differences(first, again) == []
    assert differences(first, other) != []


@pytest.mark.parametrize("size", [0, 1])
@pytest.mark.parametrize("hook", HOOKS)
def test_batch_of_one_or_none_passes_through(hook: str, size: int) -> None:
    camera, inputs_3d, inputs_2d = make_batch(2)
    inputs_2d, inputs_3d = inputs_2d[:size], inputs_3d[:size]
    outputs = make_hook(make_lifter(), **HOOKS[hook]).augment(inputs_2d, inputs_3d, camera[:size])
    assert outputs[0] is inputs_2d
    assert outputs[1] is inputs_3d


@pytest.mark.parametrize("size", [0, 1])
def test_after_a_batch_that_passed_through_there_is_nothing_to_learn(size: int) -> None:
    hook = make_hook(make_lifter())
    augmented(hook, make_batch())
    before = frozen_state(hook)
    augmented(hook, Batch(*(tensor[:size] for tensor in make_batch(2))))
    hook.step()
    assert differences(before, hook.state_dict()) == []


@pytest.mark.parametrize("size", [2, 3, 4])
@pytest.mark.parametrize("hook", HOOKS)
def test_small_batches(hook: str, size: int) -> None:
    # The last batch of an epoch can have any size; half of two is too few to learn from.
    estimator = make_lifter()
    attached = make_hook(estimator, **{**HOOKS[hook], "share": 0.5})
    train_once(attached, make_batch(size), estimator)
    assert attached.diagnostics().updates == (size > 2)


@pytest.mark.parametrize("hook", ["default", "predicted", "released", "random"])
def test_share_too_small_for_a_single_sample(hook: str) -> None:
    estimator = make_lifter()
    attached = make_hook(estimator, share=0.1, **HOOKS[hook])
    batch = make_batch(4)
    outputs = augmented(attached, batch)
    assert not changed(batch.inputs_2d, outputs.inputs_2d).any()
    estimator(outputs.inputs_2d)
    attached.step()
    assert all_finite(attached)


def test_augmenting_twice_without_a_step() -> None:
    estimator = make_lifter()
    hook = make_hook(estimator)
    augmented(hook, make_batch(seed=1))
    train_once(hook, make_batch(), estimator)
    assert hook.diagnostics().updates == 1


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
    with pytest.warns(PoseAugWarning, match=r"no sample of the first batch .*check_batch"):
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
    for _ in range(2):
        train_once(attached, batch, estimator)
    assert all_finite(attached)
    assert attached.diagnostics().skipped_steps == 0


@pytest.mark.parametrize("hook", HOOKS)
def test_estimator_gone_to_nan_does_not_take_the_hook_along(hook: str) -> None:
    estimator = make_lifter()
    nn.init.constant_(estimator[1].weight, torch.nan)
    attached = make_hook(estimator, **HOOKS[hook])
    for batch in stream(2):
        train_once(attached, batch, estimator)
    assert all_finite(attached)
    assert augmented(attached, make_batch()).inputs_2d.isfinite().all()


@pytest.mark.parametrize("mode", ["frozen", "as_found"])
def test_steps_left_out_are_counted(mode: str) -> None:
    estimator = make_lifter()
    nn.init.constant_(estimator[1].weight, torch.nan)
    hook = make_hook(estimator, feedback="estimator", estimator_mode=mode)
    for batch in stream(2):
        train_once(hook, batch, estimator)
    assert hook.diagnostics().skipped_steps == 2  # the policy's


def test_nan_in_the_estimators_gradients_stays_there() -> None:
    estimator = make_lifter()
    optimizer = torch.optim.SGD(estimator.parameters(), lr=0.1)
    hook = make_hook(estimator)
    camera, inputs_3d, inputs_2d = make_batch()
    inputs_2d, inputs_3d = hook.augment(inputs_2d, inputs_3d, camera)
    (mpjpe(estimator(inputs_2d), inputs_3d) * torch.nan).backward()
    optimizer.step()
    assert estimator[1].weight.isnan().all()
    assert all_finite(hook)
    assert hook.diagnostics().skipped_steps == 0


# -- what gets out is valid ------------------------------------------------------------------------

WIDE = Spread(pitch=1.4, roll=0.7, depth=(0.1, 5.0), bone_angle=0.5, bone_length=0.5)
VALID: dict[str, dict[str, Any]] = {
    "default": {},
    "random": {"preset": "random"},
    "paper": {"preset": "paper", "total_updates": 20},
    "wide": {"spread": WIDE},
    "wide random": {"preset": "random", "spread": WIDE},
    "wide frame": {"spread": WIDE, "aspect_ratio": 0.5625},
    "high frame": {"spread": WIDE, "aspect_ratio": 16 / 9},
}


class Made(NamedTuple):
    """The augmented samples of a batch."""

    keypoints: Tensor
    joints: Tensor  # where they stand
    camera: Tensor
    aspect_ratio: float


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
        ratio = hook.config.aspect_ratio
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
    hook = make_hook(estimator, share=1.0, spread=Spread(depth=(0.01, 0.02), own_view=0))
    batch = make_batch()
    outputs = augmented(hook, batch)
    assert differences(list(outputs), [batch.inputs_2d, batch.inputs_3d]) == []
    estimator(outputs.inputs_2d)
    hook.step()
    assert hook.diagnostics().kept_share == 0


def test_released_frame_check_lets_the_left_and_the_top_go() -> None:
    hook = make_hook(make_lifter(), preset="released", total_updates=20, share=1.0)
    batch = make_batch(512)
    outputs = augmented(hook, batch)
    rows = changed(batch.inputs_2d, outputs.inputs_2d)
    assert (outputs.inputs_2d[rows] <= 1).all()
    assert (outputs.inputs_2d[rows] < -1).any()


def test_released_frame_check_keeps_what_is_behind_the_camera_back() -> None:
    hook = make_hook(
        make_lifter(),
        preset="released",
        adapter=PoseAdapter(root="absolute"),
        total_updates=20,
        share=1.0,
    )
    camera, absolute, keypoints = absolute_batch(2048)
    outputs = hook.augment(keypoints, absolute, camera)
    rows = changed(keypoints, outputs.inputs_2d)
    assert rows.sum() > 10
    assert (outputs.inputs_3d[rows][..., 2] > Z_NEAR).all()


@pytest.mark.parametrize("unit", [1.0, 0.001])
@pytest.mark.parametrize("root", ["trajectory", "absolute", "zeroed"])
def test_root_conventions_and_units(root: str, unit: float) -> None:
    camera, absolute, keypoints = absolute_batch(32)
    host = {
        "trajectory": with_trajectory(absolute),
        "absolute": absolute,
        "zeroed": root_relative(absolute, H36M_16),
    }[root] / unit
    adapter = PoseAdapter(root=root, metres_per_unit=unit)
    hook = make_hook(make_lifter(), adapter=adapter, share=1.0)
    outputs = hook.augment(keypoints, host, camera)
    assert changed(keypoints, outputs.inputs_2d).sum() > 16
    joints = outputs.inputs_3d * unit
    if root == "zeroed":
        assert (joints[:, :, 0] == 0).all()
        joints = joints + solve_root(outputs.inputs_2d, joints, camera).root.unsqueeze(-2)
    elif root == "trajectory":
        joints = without_trajectory(joints)
    assert in_view(joints, camera).float().mean() > 0.99
    error = (project_points(joints, camera) - outputs.inputs_2d).norm(dim=-1)
    assert error.max() < (1e-3 if root == "zeroed" else 1e-5)


def test_root_conventions_give_the_same_poses() -> None:
    camera, absolute, keypoints = absolute_batch()
    made = {
        root: make_hook(make_lifter(), adapter=PoseAdapter(root=root)).augment(
            keypoints, inputs_3d, camera
        )
        for root, inputs_3d in (
            ("trajectory", with_trajectory(absolute)),
            ("absolute", absolute),
            ("zeroed", root_relative(absolute, H36M_16)),
        )
    }
    expected = made["absolute"].inputs_2d
    torch.testing.assert_close(made["trajectory"].inputs_2d, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(made["zeroed"].inputs_2d, expected, rtol=0, atol=1e-2)


def test_unknown_root_convention_is_refused() -> None:
    with pytest.raises(PoseAugError, match="root must be one of trajectory, absolute, zeroed"):
        PoseAdapter(root="pelvis")  # type: ignore[arg-type]


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


# -- errors ----------------------------------------------------------------------------------------


def wrong(kind: str) -> tuple[Any, Any, Any]:
    """Arguments of `augment` with one mistake."""
    camera, inputs_3d, inputs_2d = make_batch()
    return {
        "joints": lambda: (inputs_2d[:, :, :15], inputs_3d[:, :, :15], camera),
        "channels": lambda: (inputs_2d, inputs_3d[..., :2], camera),
        "confidence": lambda: (torch.cat([inputs_2d, inputs_2d[..., :1]], -1), inputs_3d, camera),
        "flattened": lambda: (inputs_2d.flatten(1), inputs_3d.flatten(1), camera),
        "swapped": lambda: (inputs_3d, inputs_2d, camera),
        "batch": lambda: (inputs_2d[:8], inputs_3d, camera),
        "frames": lambda: (inputs_2d.expand(-1, 9, -1, -1), inputs_3d, camera),
        "axis": lambda: (inputs_2d, inputs_3d[:, 0], camera),
        "integers": lambda: (inputs_2d.long(), inputs_3d, camera),
        "array": lambda: (inputs_2d, inputs_3d.numpy(), camera),
        "nothing": lambda: (None, inputs_3d, camera),
        "devices": lambda: (inputs_2d.to("meta"), inputs_3d, camera),
        "device": lambda: (inputs_2d.to("meta"), inputs_3d.to("meta"), camera),
        "camera of another batch": lambda: (inputs_2d, inputs_3d, camera[:8]),
        "camera matrix": lambda: (inputs_2d, inputs_3d, torch.eye(3)),
        "camera as a list": lambda: (inputs_2d, inputs_3d, camera.tolist()),
    }[kind]()


# What the message has to say: what is expected, and what came.
MISTAKES = {
    "joints": r"inputs_3d must be \(batch, frames, 16, 3\).*got \(16, 1, 15, 3\)",
    "channels": r"inputs_3d must be \(batch, frames, 16, 3\).*got \(16, 1, 16, 2\)",
    "confidence": r"inputs_2d must be \(batch, frames, 16, 2\).*got \(16, 1, 16, 3\)",
    "flattened": r"inputs_3d must be .* got \(16, 48\)",
    "swapped": r"inputs_3d must be \(batch, frames, 16, 3\).*got \(16, 1, 16, 2\)",
    "batch": r"same batch and frames, got \(8, 1, 16, 2\) and \(16, 1, 16, 3\)",
    "axis": r"got \(16, 1, 16, 2\) and \(16, 16, 3\) \(give both an axis of frames, or neither",
    "frames": r"inputs_2d \(16, 9, 16, 2\) and inputs_3d \(16, 1, 16, 3\) must have the same frames"
    r".*source=PoseSource\(poses_train, cameras_train\)",
    "integers": r"inputs_2d must be a floating-point tensor, got torch\.int64",
    "array": r"inputs_3d must be a floating-point tensor, got ndarray",
    "nothing": r"inputs_2d must be a floating-point tensor, got NoneType",
    "devices": r"must be on one device, got meta and cpu",
    "device": r"must be on cpu.*got meta",
    "camera of another batch": r"camera must be \(16, 9\) or \(9,\) intrinsics, got \(8, 9\)",
    "camera matrix": r"camera must be \(16, 9\) or \(9,\) intrinsics, got \(3, 3\)",
    "camera as a list": r"camera must be .*got list",
}


@pytest.mark.parametrize("kind", MISTAKES)
def test_error_says_expected_and_received(kind: str) -> None:
    hook = make_hook(make_lifter())
    with pytest.raises(PoseAugError, match=MISTAKES[kind]) as raised:
        hook.augment(*wrong(kind))
    assert str(raised.value).startswith("PoseAugHook.augment: ")


@pytest.mark.parametrize("kind", ["joints", "channels", "flattened"])
def test_error_names_the_skeleton(kind: str) -> None:
    with pytest.raises(PoseAugError, match="for skeleton 'h36m_16'"):
        make_hook(make_lifter()).augment(*wrong(kind))


@pytest.mark.parametrize("kind", MISTAKES)
def test_error_changes_nothing(kind: str) -> None:
    estimator = make_lifter()
    hook = make_hook(estimator)
    train_once(hook, make_batch(), estimator)
    before = frozen_state(hook)
    with pytest.raises(PoseAugError):
        hook.augment(*wrong(kind))
    assert differences(before, hook.state_dict()) == []


@pytest.mark.filterwarnings("ignore:.*took skeleton")
@pytest.mark.parametrize("kind", MISTAKES)
def test_error_in_the_first_batch_changes_nothing(kind: str) -> None:
    # With "joints", no preset has 15 of them.
    hook = make_hook(make_lifter(), skeleton=None)
    with pytest.raises(PoseAugError):
        hook.augment(*wrong(kind))
    assert hook.skeleton is None
    with pytest.warns(PoseAugWarning, match="took skeleton='h36m_16'"):
        augmented(hook, make_batch())


def test_batch_before_an_error_can_still_be_learned_from() -> None:
    states = []
    for errs in (False, True):
        estimator = make_lifter(dropout=0.0)
        hook = make_hook(estimator)
        outputs = augmented(hook, make_batch())
        if errs:
            with pytest.raises(PoseAugError):
                hook.augment(*wrong("channels"))
        estimator(outputs.inputs_2d)
        hook.step()
        states.append(frozen_state(hook))
    assert differences(*states) == []


def test_inference_mode_is_refused() -> None:
    hook = make_hook(make_lifter())
    with torch.inference_mode(), pytest.raises(PoseAugError, match=r"torch\.inference_mode"):
        augmented(hook, make_batch())


def test_paused_hook_passes_batches_through_under_inference_mode() -> None:
    hook = make_hook(make_lifter())
    batch = make_batch()
    with torch.inference_mode(), hook.paused():
        assert augmented(hook, batch).inputs_2d is batch.inputs_2d


def test_first_batch_under_no_grad() -> None:
    estimator = make_lifter()
    hook = make_hook(estimator)
    with torch.no_grad():
        outputs = augmented(hook, make_batch())
    estimator(outputs.inputs_2d)
    with torch.no_grad():
        hook.step()
    assert hook.diagnostics().updates == 1


# -- which skeleton --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "skeleton", [H36M_16, H36M_17, MPI_INF_3DHP_17, COCO_17, SMPL_24], ids=lambda s: s.name
)
@pytest.mark.parametrize("root", ["trajectory", "absolute"])
def test_skeleton_is_told_from_the_batch(skeleton: Skeleton, root: str) -> None:
    batch = (make_batch if root == "trajectory" else absolute_batch)(32, skeleton)
    hook = PoseAugHook(make_lifter(skeleton.num_joints), adapter=PoseAdapter(root=root), **SMALL)
    with pytest.warns(PoseAugWarning, match=f"took skeleton='{skeleton.name}'.*pass it"):
        augmented(hook, batch)
    assert hook.skeleton == skeleton


def test_skeleton_that_is_given_needs_no_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        augmented(make_hook(make_lifter()), make_batch())


def test_unknown_number_of_joints() -> None:
    hook = make_hook(make_lifter(), skeleton=None)
    inputs_2d, inputs_3d = torch.zeros(4, 1, 20, 2), torch.ones(4, 1, 20, 3)
    with pytest.raises(PoseAugError, match=r"no preset has 20 joints.*skeleton=Skeleton\(\.\.\.\)"):
        hook.augment(inputs_2d, inputs_3d, torch.ones(9))


def test_seventeen_joints_that_fit_no_preset() -> None:
    hook = make_hook(make_lifter(), skeleton=None)
    generator = torch.Generator().manual_seed(0)
    joints = torch.randn(32, 1, 17, 3, generator=generator) * 0.3
    joints[..., 2] += 5
    adapter = PoseAdapter(root="absolute")
    hook = make_hook(make_lifter(), skeleton=None, adapter=adapter)
    with pytest.raises(PoseAugError, match=r"17 joints fit h36m_17, .* pass skeleton='\.\.\.'"):
        hook.augment(joints[..., :2] / 5, joints, torch.ones(9))


def test_seventeen_joints_without_a_usable_sample() -> None:
    hook = make_hook(make_lifter(), skeleton=None)
    with pytest.raises(PoseAugError, match="17 joints fit"):
        hook.augment(torch.full((4, 1, 17, 2), torch.nan), torch.ones(4, 1, 17, 3), torch.ones(9))


# -- cameras ---------------------------------------------------------------------------------------


def test_camera_as_an_array() -> None:
    batch = make_batch()
    plain = augmented(make_hook(make_lifter()), batch)
    for camera in (batch.camera.numpy(), batch.camera.double().numpy()):
        hook = make_hook(make_lifter())
        outputs = hook.augment(batch.inputs_2d, batch.inputs_3d, camera)
        assert differences(plain, outputs) == []


def test_one_camera_for_all() -> None:
    batch = make_batch()
    camera = batch.camera[1]
    one, each = (
        make_hook(make_lifter()).augment(batch.inputs_2d, batch.inputs_3d, c)
        for c in (camera, camera.expand(16, 9))
    )
    assert differences(one, each) == []


def test_missing_camera_is_warned_of_once() -> None:
    _warn_of_assumed_camera.cache_clear()
    hook = make_hook(make_lifter())
    batch = make_batch()
    with pytest.warns(PoseAugWarning, match=r"no camera given; assuming Human3\.6M's") as caught:
        outputs = hook.augment(batch.inputs_2d, batch.inputs_3d)
    assert len(caught) == 1
    assert changed(batch.inputs_2d, outputs.inputs_2d).any()
    hook.augment(batch.inputs_2d, batch.inputs_3d)


# -- check_batch -----------------------------------------------------------------------------------


def report_of(inputs_2d: Tensor, inputs_3d: Tensor, camera: Any, root: str = "trajectory") -> Any:
    hook = make_hook(make_lifter(), adapter=PoseAdapter(root=root))
    return hook.check_batch(inputs_2d, inputs_3d, camera)


def test_good_batch_is_ok() -> None:
    camera, inputs_3d, inputs_2d = make_batch(64)
    report = report_of(inputs_2d, inputs_3d, camera)
    assert report.ok
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
    assert report.ok
    assert "focal length 2.29 (assumed)" in str(report)


def test_check_batch_changes_nothing() -> None:
    estimator = make_lifter()
    hook = make_hook(estimator)
    train_once(hook, make_batch(), estimator)
    before, batch = frozen_state(hook), make_batch()
    given = copy.deepcopy(batch)
    hook.check_batch(batch.inputs_2d, batch.inputs_3d, batch.camera)
    assert differences(before, hook.state_dict()) == []
    assert differences(given, batch) == []


def test_check_batch_before_the_first_batch_builds_nothing() -> None:
    hook = make_hook(make_lifter(), skeleton=None)
    batch = make_batch()
    assert hook.check_batch(batch.inputs_2d, batch.inputs_3d, batch.camera).ok
    assert hook.skeleton is None


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
    with pytest.raises(PoseAugError, match=r"^PoseAugHook\.check_batch: inputs_3d must be"):
        make_hook(make_lifter()).check_batch(*wrong("channels"))


# -- warnings and observe --------------------------------------------------------------------------


def test_hundred_batches_without_a_step_are_warned_of() -> None:
    hook = make_hook(make_lifter(), preset="random")
    batch = make_batch(4)
    for _ in range(99):
        augmented(hook, batch)
    with pytest.warns(PoseAugWarning, match=r"100 batches were augmented.*call hook\.step\(\)"):
        augmented(hook, batch)
    for _ in range(101):
        augmented(hook, batch)


def test_hundred_batches_without_a_step_of_the_named_optimizer_are_warned_of() -> None:
    estimator, batch = make_lifter(), make_batch(4)
    hook = make_hook(estimator, torch.optim.SGD(estimator.parameters(), 0.1), preset="random")
    another = torch.optim.SGD(estimator.parameters(), 0.1)
    for _ in range(99):
        augmented(hook, batch)
        another.step()
    with pytest.warns(PoseAugWarning, match=r"the hook was given has not stepped.*Leave it out"):
        augmented(hook, batch)


def test_augmenting_in_a_worker_is_refused() -> None:
    hook = make_hook(make_lifter())

    def collate(batches: list[Batch]) -> HostPoses:
        return augmented(hook, batches[0])

    loader = torch.utils.data.DataLoader(stream(1), num_workers=1, collate_fn=collate)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*fork", category=DeprecationWarning)
        with pytest.raises(PoseAugError, match="in a worker of a DataLoader"):
            next(iter(loader))


def test_what_is_no_tensor_is_no_prediction() -> None:
    with pytest.raises(PoseAugError, match=r"observe: prediction must be a tensor, got ndarray"):
        make_hook(make_lifter()).observe(np.zeros((4, 1, 16, 3)))  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["backwards", "objects"])
def test_cameras_may_be_any_array_of_numbers(kind: str) -> None:
    batch = make_batch()
    cameras = batch.camera.numpy()
    odd = {
        "backwards": cameras[::-1].copy()[::-1],
        "objects": cameras.astype(object),
    }[kind]
    expected, received = (
        augmented(make_hook(make_lifter()), batch._replace(camera=camera))
        for camera in (cameras, odd)
    )
    assert differences(list(expected), list(received)) == []


def test_batches_with_steps_are_not_warned_of() -> None:
    hook = make_hook(make_lifter(), preset="random")
    batch = make_batch(4)
    for _ in range(60):
        augmented(hook, batch)
    hook._estimator(batch.inputs_2d)
    hook.step()
    for _ in range(60):
        augmented(hook, batch)


def test_hidden_estimator_is_warned_of() -> None:
    hook = make_hook(make_lifter())
    augmented(hook, make_batch())
    with pytest.warns(PoseAugWarning, match=r"not seen to take.*Call hook\.observe\(prediction\)"):
        hook.step()
    augmented(hook, make_batch())
    hook.step()  # once is enough


def test_nobody_is_warned_where_no_feedback_needs_the_prediction() -> None:
    hook = make_hook(make_lifter(), preset="default")
    augmented(hook, make_batch())
    hook.step()  # a warning would be an error here
    assert hook.diagnostics().updates == 1


def test_unreadable_output_is_warned_of() -> None:
    estimator = nn.Sequential(nn.Flatten(1), nn.Linear(32, 7))
    hook = make_hook(estimator)
    outputs = augmented(hook, make_batch())
    estimator(outputs.inputs_2d)
    with pytest.warns(PoseAugWarning, match=r"output \(16, 7\).*Call hook\.observe\(prediction\)"):
        hook.step()


def test_observe_is_as_good_as_seeing() -> None:
    states = []
    for observes in (False, True):
        estimator = make_lifter(dropout=0.0)
        hook = make_hook(estimator)
        outputs = augmented(hook, make_batch())
        if observes:
            hidden = copy.deepcopy(estimator)
            hook.observe(hidden(outputs.inputs_2d))
        else:
            estimator(outputs.inputs_2d)
        hook.step()
        states.append(frozen_state(hook))
    assert differences(*states) == []


def test_observe_wins_over_seeing() -> None:
    states = []
    for is_seen in (False, True):
        estimator = make_lifter(dropout=0.0)
        hook = make_hook(estimator)
        outputs = augmented(hook, make_batch())
        hook.observe(outputs.inputs_3d * 0.9)
        if is_seen:
            estimator(outputs.inputs_2d)
        hook.step()
        states.append(frozen_state(hook))
    assert differences(*states) == []


@pytest.mark.parametrize("mix", ["replace", "append"])
@pytest.mark.parametrize("frames", [1, 3])
def test_hardness_ratio_is_that_of_the_host(mix: str, frames: int) -> None:
    batch = make_batch(frames=frames)
    hook = make_hook(make_lifter(), mix=mix)
    outputs = augmented(hook, batch)
    originals = batch.inputs_2d.repeat(2 if mix == "append" else 1, 1, 1, 1)
    harder = changed(originals, outputs.inputs_2d)[:, None, None, None]
    off = torch.where(harder, 0.3, 0.1) * torch.tensor([0.6, 0.0, 0.8])
    predicted = root_relative(outputs.inputs_3d, H36M_16)
    predicted[:, :, 1:] = outputs.inputs_3d[:, :, 1:] + off
    hook.observe(predicted)
    hook.step()
    diagnostics = hook.diagnostics()
    assert diagnostics.hardness_ratio == pytest.approx(3.0, rel=1e-3)
    middle = outputs.inputs_3d[harder.flatten(), frames // 2]
    middle[:, 0] = 0  # the trajectory
    guessing = (middle - middle.mean(0)).norm(dim=-1).mean()
    error = 0.3 * (H36M_16.num_joints - 1) / H36M_16.num_joints
    assert diagnostics.guessing_ratio == pytest.approx(error / guessing.item(), rel=1e-3)


def test_random_preset_needs_no_prediction() -> None:
    hook = make_hook(make_lifter(), preset="random")
    augmented(hook, make_batch())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        hook.step()


# -- memory ----------------------------------------------------------------------------------------


def test_a_dropped_hook_goes_at_once() -> None:
    # Left to the garbage collector, its callbacks could be taken away in the middle of a step.
    estimator, batch = make_lifter(), make_batch()
    optimizer = torch.optim.SGD(estimator.parameters(), lr=1e-3)
    gc.collect()
    gc.disable()
    try:
        hook = make_hook(estimator)
        train(hook, estimator, optimizer, [batch])
        hook.augment(batch.inputs_2d, batch.inputs_3d, batch.camera)
        dropped = weakref.ref(hook)
        del hook
        assert dropped() is None
    finally:
        gc.enable()


def test_tensors_do_not_pile_up() -> None:
    estimator = make_lifter()
    optimizer = torch.optim.Adam(estimator.parameters())
    hook = make_hook(estimator)
    batches = stream(4, 4)

    def living() -> int:
        gc.collect()
        return sum(issubclass(type(thing), Tensor) for thing in gc.get_objects())

    train(hook, estimator, optimizer, batches * 3)
    before = living()
    train(hook, estimator, optimizer, batches * 50)
    assert living() <= before


# -- cameras that come back ------------------------------------------------------------------------


LENSES = Spread(focal_length=0.5)


def seen_by(camera: Any, inputs_3d: Tensor) -> Tensor:
    """Where cameras see a batch."""
    return project_points(without_trajectory(inputs_3d), torch.as_tensor(camera))


def test_cameras_come_back_with_the_batch() -> None:
    batch = make_batch()
    given = batch.camera.clone()
    hook = make_hook(make_lifter(), spread=LENSES)
    made = hook.augment(batch.inputs_2d, batch.inputs_3d, batch.camera, return_camera=True)
    assert torch.allclose(seen_by(made.camera, made.inputs_3d), made.inputs_2d, atol=1e-4)
    assert torch.equal(batch.camera, given)
    augmented = (made.inputs_3d != batch.inputs_3d).flatten(1).any(1)
    assert torch.equal(made.camera[~augmented], given[~augmented])
    ratios = made.camera[augmented, :2] / given[augmented, :2]
    assert ((ratios[:, 0].log().abs() <= 0.5 + 1e-6) & (ratios[:, 0] != 1)).all()
    assert torch.allclose(ratios[:, 0], ratios[:, 1])
    assert torch.equal(made.camera[:, 2:], given[:, 2:])
    with hook.paused():
        assert hook.augment(*made, return_camera=True).camera is made.camera


def test_cameras_that_do_not_come_back_stay_as_they_are() -> None:
    batch = make_batch()
    hook = make_hook(make_lifter(), spread=LENSES)
    made = hook.augment(batch.inputs_2d, batch.inputs_3d, batch.camera)
    assert torch.allclose(seen_by(batch.camera, made.inputs_3d), made.inputs_2d, atol=1e-4)


def test_what_falls_back_keeps_its_camera() -> None:
    batch = make_batch()
    # So near that nobody fits into the picture.
    hook = make_hook(make_lifter(), spread=Spread(depth=(0.05, 0.1), own_view=0, focal_length=0.1))
    made = hook.augment(batch.inputs_2d, batch.inputs_3d, batch.camera, return_camera=True)
    assert torch.equal(made.inputs_2d, batch.inputs_2d)
    assert torch.equal(made.camera, batch.camera)


@pytest.mark.parametrize("as_array", [False, True])
def test_appended_batch_has_twice_the_cameras(as_array: bool) -> None:
    batch = make_batch()
    camera = batch.camera.numpy() if as_array else batch.camera
    hook = make_hook(make_lifter(), mix="append", spread=LENSES)
    for given in (camera, camera[0]):
        made = hook.augment(batch.inputs_2d, batch.inputs_3d, given, return_camera=True)
        assert type(made.camera) is type(given)
        assert made.camera.dtype == given.dtype
        projected = seen_by(made.camera, made.inputs_3d)
        assert torch.allclose(projected, made.inputs_2d, atol=1e-4) == (given is camera)
        size = len(batch.inputs_2d)
        assert torch.equal(torch.as_tensor(made.camera[:size]), batch.camera) == (given is camera)


@pytest.mark.parametrize("as_array", [False, True])
def test_untouched_batch_has_as_many_cameras_as_an_augmented_one(as_array: bool) -> None:
    batch = make_batch()
    camera = batch.camera[0].numpy() if as_array else batch.camera[0]
    hook = make_hook(make_lifter())
    for size in (8, 3, 1):
        made = hook.augment(
            batch.inputs_2d[:size], batch.inputs_3d[:size], camera, return_camera=True
        )
        assert type(made.camera) is type(camera)
        assert torch.equal(torch.as_tensor(made.camera), batch.camera[:1].expand(size, -1))
    with hook.paused():
        made = hook.augment(batch.inputs_2d, batch.inputs_3d, camera, return_camera=True)
    assert made.camera.shape == (len(batch.inputs_2d), 9)


def test_appended_batch_has_twice_of_whatever_has_a_row_per_sample() -> None:
    class Cameras(NamedTuple):
        intrinsics: Tensor
        scale: Tensor
        extrinsics: np.ndarray
        name: str

    camera = make_batch().camera
    size = len(camera)
    given = Cameras(camera, torch.arange(size), np.zeros((size, 3, 3)), "lab")
    everyone, all_valid = torch.arange(size), torch.ones(size, dtype=torch.bool)
    made = mixed_cameras(given, camera, everyone, all_valid, size, "append")
    assert isinstance(made, Cameras)
    assert made.intrinsics.shape == (2 * size, 9)
    assert torch.equal(made.scale, torch.arange(size).repeat(2))
    assert made.extrinsics.shape == (2 * size, 3, 3)
    assert made.name == "lab"


def test_batches_that_are_always_too_small_are_told() -> None:
    hook = make_hook(make_lifter(), share=0.5)
    batch = Batch(*(x[:2] for x in make_batch()))
    for _ in range(99):
        augmented(hook, batch)
    augmented(hook, make_batch())  # a larger one in between: it does learn
    for _ in range(99):
        augmented(hook, batch)
    with pytest.warns(PoseAugWarning, match=r"100 batches in a row .* share=0\.5 of 2 samples"):
        augmented(hook, batch)


def test_without_a_camera_none_comes_back() -> None:
    batch = make_batch()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the assumed one, once a process
        made = make_hook(make_lifter(), spread=LENSES).augment(
            batch.inputs_2d, batch.inputs_3d, return_camera=True
        )
    assert made.camera is None
