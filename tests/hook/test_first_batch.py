"""The first batch is looked at by itself: what is wrong with it is said once, what is right is not.

The people here are the examples' own, seen by their cameras: those of `loops` have no knees.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from loops import NoSync, differences, frozen_state, make_lifter
from shared.domains import read_domains, training_data
from torch import Tensor

from poseaug_plugin import PoseAdapter, PoseAugError, PoseAugHook, PoseAugWarning, PoseSource
from poseaug_plugin.body.poses import DEFAULT_INTRINSICS
from poseaug_plugin.body.presets import H36M_16

FLIP = list(H36M_16.flip_permutation)
LOOK = r"the first batch looks wrong: .*"


class People(NamedTuple):
    """Poses in VideoPose3D's convention, as one batch."""

    inputs_2d: Tensor
    inputs_3d: Tensor
    camera: Any


@pytest.fixture(scope="module")
def people() -> People:
    data = training_data(read_domains(), torch.device("cpu"), every=40)
    rows = torch.randperm(len(data.inputs_2d), generator=torch.Generator().manual_seed(0))[:256]
    return People(data.inputs_2d[rows], data.inputs_3d[rows], data.cameras[rows])


def hook_for(root: str = "trajectory", **options: Any) -> PoseAugHook:
    adapter = PoseAdapter(root=root)
    return PoseAugHook(make_lifter(), skeleton="h36m_16", adapter=adapter, **options)


def said_of(batch: People, root: str = "trajectory", **options: Any) -> str:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", PoseAugWarning)
        hook = hook_for(root, **options)
        hook.augment(*batch)
        once = len(caught)
        hook.augment(*batch)
    assert len(caught) == once
    return "\n".join(str(w.message) for w in caught if "looks wrong" in str(w.message))


def absolute(inputs_3d: Tensor) -> Tensor:
    joints = inputs_3d + inputs_3d[:, :, :1]
    joints[:, :, 0] = inputs_3d[:, :, 0]
    return joints


def relative(inputs_3d: Tensor) -> Tensor:
    joints = inputs_3d.clone()
    joints[:, :, 0] = 0
    return joints


MIRROR = torch.tensor([-1.0, 1.0, 1.0])
UP = torch.tensor([1.0, -1.0, 1.0])


def flipped(people: People, with_camera: bool) -> People:
    """Every second pose mirrored."""
    inputs_2d, inputs_3d, camera = (x.clone() for x in people)
    inputs_2d[::2] = inputs_2d[::2][:, :, FLIP] * MIRROR[:2]
    inputs_3d[::2] = inputs_3d[::2][:, :, FLIP] * MIRROR
    # Like Human3.6M's, whose principal points are up to 20 pixels off the centre.
    if with_camera:
        camera[::2] *= torch.tensor([1.0, 1, -1, 1, 1, 1, 1, -1, 1])
    return People(inputs_2d, inputs_3d, camera)


def off_centre(people: People) -> People:
    shift = torch.zeros(9)
    shift[2] = 0.04
    return People(people.inputs_2d + shift[2:4], people.inputs_3d, people.camera + shift)


def noisy(people: People, scale: float) -> Tensor:
    noise = torch.randn(people.inputs_2d.shape, generator=torch.Generator().manual_seed(1))
    return people.inputs_2d + scale * noise


def boxed(inputs_2d: Tensor) -> Tensor:
    low, high = inputs_2d.amin(2, keepdim=True), inputs_2d.amax(2, keepdim=True)
    return 2 * (inputs_2d - low) / (high - low).amax(-1, keepdim=True) - 1


def mixed(people: People) -> Tensor:
    """A quarter of the batch in pixels."""
    inputs_2d = people.inputs_2d.clone()
    inputs_2d[::4] = 500 * (inputs_2d[::4] + 1)
    return inputs_2d


WRONG: dict[str, tuple[Callable[[People], People], str]] = {
    "pixels": (lambda p: p._replace(inputs_2d=500 * (p.inputs_2d + 1)), "are they pixels"),
    "some in pixels": (lambda p: p._replace(inputs_2d=mixed(p)), "are they pixels"),
    "2D from 0 to 1": (lambda p: p._replace(inputs_2d=(p.inputs_2d + 1) / 2), "which is 0"),
    "2D in a box": (lambda p: p._replace(inputs_2d=boxed(p.inputs_2d)), "of one size"),
    "2D about the root": (
        lambda p: p._replace(inputs_2d=p.inputs_2d - p.inputs_2d[:, :, :1]),
        "at one place",
    ),
    "millimetres": (lambda p: p._replace(inputs_3d=1000 * p.inputs_3d), "look like millimetres"),
    "2.5D": (
        lambda p: p._replace(
            inputs_3d=torch.cat([p.inputs_3d[:, :, :1], 0.4 * p.inputs_3d[:, :, 1:]], 2)
        ),
        "a person's are 3 to 6",
    ),
    "absolute joints": (lambda p: p._replace(inputs_3d=absolute(p.inputs_3d)), "bones are"),
    "no trajectory": (lambda p: p._replace(inputs_3d=relative(p.inputs_3d)), "no sample is finite"),
    "sides swapped": (
        lambda p: p._replace(inputs_2d=p.inputs_2d[:, :, FLIP], inputs_3d=p.inputs_3d[:, :, FLIP]),
        "left and right joints are swapped",
    ),
    "flips without the camera's": (lambda p: flipped(off_centre(p), False), "3D poses project"),
    "y up": (
        lambda p: People(
            p.inputs_2d * UP[:2],
            p.inputs_3d * UP,
            p.camera * torch.tensor([1.0, 1, 1, -1, 1, 1, 1, 1, -1]),
        ),
        "y must point down",
    ),
    "y up in 2D": (lambda p: p._replace(inputs_2d=p.inputs_2d * UP[:2]), "3D poses project"),
    "intrinsics in pixels": (
        lambda p: p._replace(camera=p.camera * torch.tensor([500.0] * 4 + [1.0] * 5)),
        "looks like pixels",
    ),
    "no camera": (
        lambda p: p._replace(inputs_2d=p.inputs_2d * 0.7, camera=None),
        r"a focal length of 2.29 is assumed",
    ),
}


@pytest.mark.filterwarnings("ignore:PoseAugHook.augment. no camera given")
@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_first_batch_is_told(kind: str, people: People) -> None:
    change, words = WRONG[kind]
    assert words in said_of(change(people))


@pytest.mark.parametrize("kind", ["2D from 0 to 1", "2D in a box", "2D about the root"])
def test_wrong_2d_is_told_where_the_root_is_solved_from_it(kind: str, people: People) -> None:
    change, words = WRONG[kind]
    without_root = people._replace(inputs_3d=relative(people.inputs_3d))
    assert words in said_of(change(without_root), "zeroed")


RIGHT: dict[str, Callable[[People], People]] = {
    "as it is": lambda p: p,
    "flipped": lambda p: flipped(off_centre(p), True),
    "5 px of noise": lambda p: p._replace(inputs_2d=noisy(p, 0.01)),
    "10 px of noise": lambda p: p._replace(inputs_2d=noisy(p, 0.02)),
    "one pose": lambda p: People(*(x[:1].expand(32, *x.shape[1:]) for x in p)),
    "two poses": lambda p: People(*(x[:2] for x in p)),
    "in half": lambda p: p._replace(inputs_2d=p.inputs_2d.half(), inputs_3d=p.inputs_3d.half()),
    "with a broken one": lambda p: p._replace(
        inputs_2d=torch.cat([p.inputs_2d[:255], p.inputs_2d[:1] * torch.nan])
    ),
}


@pytest.mark.parametrize("kind", RIGHT)
def test_a_right_first_batch_is_not_told(kind: str, people: People) -> None:
    assert said_of(RIGHT[kind](people)) == ""


@pytest.mark.filterwarnings("ignore:PoseAugHook.augment. no camera given")
@pytest.mark.parametrize("scale", [0.0, 0.01, 0.02])
def test_noise_is_not_taken_for_another_camera(scale: float, people: People) -> None:
    lens = torch.tensor(DEFAULT_INTRINSICS)
    depth = absolute(people.inputs_3d)
    seen = people._replace(inputs_2d=lens[0] * depth[..., :2] / depth[..., 2:])
    assert said_of(people._replace(inputs_2d=noisy(seen, scale), camera=None)) == ""


# -- cameras without a focal length ----------------------------------------------------------------


@pytest.mark.parametrize("camera", [np.zeros(9), torch.zeros(9), -torch.ones(256, 9)], ids=str)
def test_a_camera_without_a_focal_length_is_refused(camera: Any, people: People) -> None:
    hook = hook_for()
    before = frozen_state(hook)
    with pytest.raises(PoseAugError, match=r"augment: focal lengths must be above 0"):
        hook.augment(people.inputs_2d, people.inputs_3d, camera)
    assert differences(before, hook.state_dict()) == []
    hook.augment(*people)  # the next one is the first


def test_networks_are_not_made_for_a_batch_that_is_refused(people: People) -> None:
    hook = PoseAugHook(make_lifter())
    with pytest.raises(PoseAugError, match="focal lengths"):
        hook.augment(people.inputs_2d, people.inputs_3d, np.zeros(9))
    assert hook.skeleton is None
    assert hook.state_dict()["training"] is None


def test_later_samples_without_a_focal_length_pass_and_are_counted(people: People) -> None:
    hook = hook_for(share=1.0)
    hook.augment(*people)
    camera = people.camera.clone()
    camera[:100, 1] = 0
    with NoSync():
        inputs_2d, inputs_3d = hook.augment(people.inputs_2d, people.inputs_3d, camera)
    hook.step()
    assert torch.equal(inputs_2d[:100], people.inputs_2d[:100])
    assert torch.equal(inputs_3d[:100], people.inputs_3d[:100])
    assert not torch.equal(inputs_3d[100:], people.inputs_3d[100:])
    assert hook.diagnostics().unusable_samples == 100


# -- the source of windows -------------------------------------------------------------------------


def sequences_of(people: People, count: int = 4) -> list[Tensor]:
    return [x[:, 0] for x in people.inputs_3d.chunk(count)]


def source_of(change: Callable[[Tensor], Tensor], people: People, cameras: Any) -> PoseSource:
    changed = [change(x.unsqueeze(1)).squeeze(1) for x in sequences_of(people)]
    return PoseSource(changed, cameras)


def windows_of(people: People, cameras: Tensor) -> People:
    """A batch whose poses are the source's, with its cameras, and 2D of three frames."""
    chosen = people._replace(camera=cameras.repeat_interleave(64, 0))
    return chosen._replace(inputs_2d=people.inputs_2d.expand(-1, 3, -1, -1))


CAMERAS = torch.tensor([[f, f, *[0.0] * 7] for f in (1.5, 2.0, 2.5, 3.0)])


def seen_by(people: People) -> People:
    batch = windows_of(people, CAMERAS)
    joints = absolute(batch.inputs_3d)
    seen = batch.camera[:, None, None, :2] * joints[..., :2] / joints[..., 2:]
    return batch._replace(inputs_2d=seen.expand(-1, 3, -1, -1))


@pytest.mark.parametrize(
    ("change", "cameras", "words"),
    [
        (lambda x: x, CAMERAS, ""),
        (absolute, CAMERAS, "source looks wrong: bones are"),
        (lambda x: 1000 * x, CAMERAS, "source looks wrong: bones are 4"),
        (lambda x: x, CAMERAS.flip(0), "cameras are not the batch's: are they in order?"),
        (lambda x: x[:, :, FLIP], CAMERAS, "source looks wrong: only"),
    ],
    ids=["right", "absolute", "millimetres", "cameras in another order", "sides swapped"],
)
def test_windows_of_a_source_are_looked_at(
    change: Callable[[Tensor], Tensor], cameras: Tensor, words: str, people: People
) -> None:
    batch = seen_by(people)
    said = said_of(batch, source=source_of(change, people, cameras))
    assert words in said if words else not said


def test_a_source_without_focal_lengths_is_refused(people: People) -> None:
    with pytest.raises(PoseAugError, match="focal lengths above 0"):
        PoseSource(sequences_of(people), torch.zeros(9))
