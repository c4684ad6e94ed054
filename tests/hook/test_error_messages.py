"""Errors say what was expected and received and name the call; nothing has changed after one."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from loops import (
    SMALL,
    Batch,
    absolute_batch,
    adam,
    augmented,
    differences,
    frozen_state,
    make_batch,
    make_hook,
    make_lifter,
    stream,
    train,
)

from poseaug_plugin import (
    SKELETONS,
    HostPoses,
    PoseAdapter,
    PoseAugError,
    PoseAugHook,
    PoseAugWarning,
)


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
each_mistake = pytest.mark.parametrize("kind", MISTAKES)


@each_mistake
def test_error_says_expected_and_received(kind: str) -> None:
    hook = make_hook(make_lifter())
    with pytest.raises(PoseAugError, match=MISTAKES[kind]) as raised:
        hook.augment(*wrong(kind))
    assert str(raised.value).startswith("PoseAugHook.augment: ")


@pytest.mark.parametrize("kind", ["joints", "channels", "flattened"])
def test_error_names_the_skeleton(kind: str) -> None:
    with pytest.raises(PoseAugError, match="for skeleton 'h36m_16'"):
        make_hook(make_lifter()).augment(*wrong(kind))


@each_mistake
def test_error_changes_nothing(kind: str) -> None:
    estimator = make_lifter()
    hook = make_hook(estimator)
    train(hook, estimator, adam(estimator), stream(1))
    before = frozen_state(hook)
    with pytest.raises(PoseAugError):
        hook.augment(*wrong(kind))
    assert differences(before, hook.state_dict()) == []


@pytest.mark.filterwarnings("ignore:.*took skeleton")
@each_mistake
def test_error_in_the_first_batch_changes_nothing(kind: str) -> None:
    # With "joints", no preset has 15 of them.
    hook = make_hook(make_lifter(), skeleton=None)
    with pytest.raises(PoseAugError):
        hook.augment(*wrong(kind))
    assert hook.skeleton is None
    assert hook.state_dict()["training"] is None
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


@pytest.mark.parametrize("reading", ["losses", "policy"])
def test_looking_before_the_first_batch_says_what_to_do(reading: str) -> None:
    hook = make_hook(make_lifter(), skeleton=None)
    with pytest.raises(PoseAugError, match=r"call hook\.augment\(\.\.\.\) once, or pass skeleton"):
        getattr(hook, reading)


def test_diagnostics_before_the_first_batch_say_what_to_do() -> None:
    with pytest.raises(PoseAugError, match=r"call hook\.augment"):
        make_hook(make_lifter(), skeleton=None).diagnostics()


# -- where `augment` may be called -----------------------------------------------------------------


def test_inference_mode_is_refused() -> None:
    hook = make_hook(make_lifter())
    with torch.inference_mode(), pytest.raises(PoseAugError, match=r"torch\.inference_mode"):
        augmented(hook, make_batch())


def test_paused_hook_passes_batches_through_under_inference_mode() -> None:
    hook = make_hook(make_lifter())
    batch = make_batch()
    with torch.inference_mode(), hook.paused():
        assert augmented(hook, batch).inputs_2d is batch.inputs_2d


@pytest.mark.filterwarnings("ignore:.*took skeleton")
@pytest.mark.parametrize("skeleton", ["h36m_16", None])
def test_first_batch_under_no_grad(skeleton: str | None) -> None:
    estimator = make_lifter()
    hook = make_hook(estimator, skeleton=skeleton)
    with torch.no_grad():
        outputs = augmented(hook, make_batch())
    estimator(outputs.inputs_2d)
    with torch.no_grad():
        hook.step()
    assert hook.diagnostics().updates == 1


def test_augmenting_in_a_worker_is_refused() -> None:
    hook = make_hook(make_lifter())

    def collate(batches: list[Batch]) -> HostPoses:
        return augmented(hook, batches[0])

    loader = torch.utils.data.DataLoader(stream(1), num_workers=1, collate_fn=collate)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*fork", category=DeprecationWarning)
        batches = iter(loader)
        with pytest.raises(PoseAugError, match="in a worker of a DataLoader"):
            next(batches)
    batches._shutdown_workers()  # at once; later it takes five seconds


# -- which skeleton --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SKELETONS)
@pytest.mark.parametrize("root", ["trajectory", "absolute"])
def test_skeleton_is_told_from_the_batch(name: str, root: str) -> None:
    skeleton = SKELETONS[name]
    batch = (make_batch if root == "trajectory" else absolute_batch)(32, skeleton)
    hook = PoseAugHook(make_lifter(skeleton.num_joints), adapter=PoseAdapter(root=root), **SMALL)
    with pytest.warns(PoseAugWarning, match=f"took skeleton='{name}'.*pass it"):
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
