"""Cameras go in in any form and come back with the batch where asked for; a missing one is told."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from loops import (
    augmented,
    changed,
    differences,
    frozen_state,
    make_batch,
    make_hook,
    make_lifter,
    without_trajectory,
)
from torch import Tensor

from poseaug_plugin import PoseAdapter, PoseAugError, PoseAugWarning, Spread, project_points
from poseaug_plugin.host.adapter import _warn_of_assumed_camera

LENSES = Spread(focal_length=0.5)


def seen_by(camera: Any, inputs_3d: Tensor) -> Tensor:
    """Where cameras see a batch."""
    return project_points(without_trajectory(inputs_3d), torch.as_tensor(camera))


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


def test_cameras_may_be_an_array_that_torch_does_not_read() -> None:
    batch = make_batch()
    cameras = batch.camera.numpy()
    backwards = cameras[::-1].copy()[::-1]
    backwards.flags.writeable = False
    expected, received = (
        augmented(make_hook(make_lifter()), batch._replace(camera=camera))
        for camera in (cameras, backwards)
    )
    assert differences(list(expected), list(received)) == []


@pytest.mark.parametrize("kind", ["O", "i8", "U9", ">f4", "c8", "g"])
def test_cameras_of_other_numbers_are_refused_before_anything_is_drawn(kind: str) -> None:
    """Whole numbers too: a focal length that comes back in them is not the one that was used."""
    batch, hook = make_batch(), make_hook(make_lifter())
    before = frozen_state(hook)
    camera = batch.camera.numpy().astype(kind)
    for wrong in (camera, torch.ones(16, 9, dtype=torch.int64), batch.camera.to("meta")):
        with pytest.raises(PoseAugError, match=r"augment: camera must"):
            hook.augment(batch.inputs_2d, batch.inputs_3d, wrong, return_camera=True)
    assert differences(before, hook.state_dict()) == []


# -- cameras that come back ------------------------------------------------------------------------


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
    made = augmented(hook, batch)
    assert torch.allclose(seen_by(batch.camera, made.inputs_3d), made.inputs_2d, atol=1e-4)


def test_what_falls_back_keeps_its_camera() -> None:
    batch = make_batch()
    # So near that nobody fits into the picture.
    near = Spread(depth=(0.05, 0.1), keep_view=0, focal_length=0.1)
    hook = make_hook(make_lifter(), spread=near)
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


class CamerasAndMore(PoseAdapter):
    """A host whose cameras come with other things, in a tuple."""

    def check(self, inputs_2d: Tensor, inputs_3d: Tensor, camera: Any, num_joints: int) -> str:
        return super().check(inputs_2d, inputs_3d, camera[0], num_joints)

    def decode(self, inputs_2d: Tensor, inputs_3d: Tensor, camera: Any, skeleton: Any) -> Any:
        return super().decode(inputs_2d, inputs_3d, camera[0], skeleton)


def test_what_stands_beside_cameras_comes_back() -> None:
    camera, inputs_3d, inputs_2d = make_batch()
    scale = torch.arange(len(camera))
    hook = make_hook(make_lifter(), adapter=CamerasAndMore())
    for batch_size in (len(camera), 1):
        given = [camera[:batch_size], scale[:batch_size]]
        poses = inputs_2d[:batch_size], inputs_3d[:batch_size]
        made = hook.augment(*poses, given, return_camera=True).camera
        assert type(made) is list
        assert torch.equal(made[0], given[0])
        assert torch.equal(made[1], given[1])


def test_without_a_camera_none_comes_back() -> None:
    batch = make_batch()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the assumed one, once a process
        made = make_hook(make_lifter(), spread=LENSES).augment(
            batch.inputs_2d, batch.inputs_3d, return_camera=True
        )
    assert made.camera is None
