"""What comes back has the host's form: shapes, dtypes, root convention, unit, share of a batch."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from loops import (
    HOOKS,
    Batch,
    absolute_batch,
    adam,
    all_finite,
    augmented,
    changed,
    differences,
    frozen_state,
    make_batch,
    make_hook,
    make_lifter,
    same_bits,
    train,
    with_trajectory,
    without_trajectory,
)

from poseaug_plugin import HostPoses, PoseAdapter, PoseAugError, Spread, project_points, solve_root
from poseaug_plugin.body.bones import root_relative
from poseaug_plugin.body.camera import in_view
from poseaug_plugin.body.presets import H36M_16

each_mix = pytest.mark.parametrize("mix", ["replace", "append"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@each_mix
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


@each_mix
def test_outputs_are_detached(mix: str) -> None:
    camera, inputs_3d, inputs_2d = make_batch()
    hook = make_hook(make_lifter(), mix=mix)
    outputs = hook.augment(inputs_2d.requires_grad_(), inputs_3d.requires_grad_(), camera)
    assert not any(output.requires_grad for output in outputs)


@each_mix
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


@each_mix
def test_augment_leaves_its_inputs(mix: str) -> None:
    batch = make_batch()
    before = copy.deepcopy(batch)
    augmented(make_hook(make_lifter(), mix=mix), batch)
    assert differences(before, batch) == []


@pytest.mark.parametrize(
    "options", [{"share": 0.5}, {"share": 1.0}, {"mix": "append"}], ids=["half", "all", "append"]
)
def test_changing_outputs_in_place_leaves_the_inputs(options: dict[str, float]) -> None:
    batch = make_batch()
    before = copy.deepcopy(batch)
    for output in augmented(make_hook(make_lifter(), **options), batch):
        output.zero_()
    assert differences(before, batch) == []


@each_mix
def test_changing_inputs_in_place_leaves_the_outputs(mix: str) -> None:
    batch = make_batch()
    outputs = augmented(make_hook(make_lifter(), mix=mix), batch)
    before = copy.deepcopy(outputs)
    batch.inputs_2d.zero_()
    batch.inputs_3d.zero_()
    assert differences(before, outputs) == []


@pytest.mark.parametrize("which", ["inputs", "outputs"])
@pytest.mark.parametrize("hook", ["default", "paper", "released"])
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
    train(make_hook(estimator), estimator, adam(estimator), [batch])
    assert differences(list(make_batch()), [torch.tensor(array) for array in arrays]) == []


# -- which samples ---------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
def test_share_of_the_batch_is_replaced(share: float) -> None:
    batch = make_batch(32)
    in_place = Spread(keep_view=1)  # so that none falls out of the frame
    outputs = augmented(make_hook(make_lifter(), share=share, spread=in_place), batch)
    assert changed(batch.inputs_2d, outputs.inputs_2d).sum() == round(share * 32)


@pytest.mark.parametrize("hook", HOOKS)
def test_share_left_to_the_preset(hook: str) -> None:
    attached = make_hook(make_lifter(), **HOOKS[hook])
    augmented(attached, make_batch(32))
    share = 0.5 if hook in ("paper", "released") else 0.75
    assert len(attached._pending.batch.sources) == share * 32


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
    train(attached, estimator, adam(estimator), [make_batch(size)])
    assert attached.diagnostics().updates == (size > 2)


@pytest.mark.parametrize("hook", HOOKS)
def test_share_too_small_for_a_single_sample(hook: str) -> None:
    estimator = make_lifter()
    attached = make_hook(estimator, share=0.1, **HOOKS[hook])
    batch = make_batch(4)
    outputs = augmented(attached, batch)
    assert not changed(batch.inputs_2d, outputs.inputs_2d).any()
    estimator(outputs.inputs_2d)
    attached.step()
    assert all_finite(attached)


# -- root conventions and units --------------------------------------------------------------------


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
        joints = joints + solve_root(outputs.inputs_2d, joints, camera)[0].unsqueeze(-2)
    elif root == "trajectory":
        joints = without_trajectory(joints)
    assert in_view(joints, outputs.inputs_2d, camera).float().mean() > 0.99
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
