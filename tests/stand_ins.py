"""What the stand-ins for known training loops share, and what has to come of each of them."""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import torch
from loops import SMALL
from torch import Tensor, nn

from poseaug_plugin import HostPoses, PoseAugHook, project_points
from poseaug_plugin.body.poses import canonical_batch

Kind = Literal["plain", "paused", "active"]
"""A loop without the hook, with it paused, and with it."""


class Call(NamedTuple):
    """A batch as it went into `PoseAugHook.augment` and as it came out."""

    given: HostPoses
    returned: HostPoses
    camera: Any


class Run(NamedTuple):
    """What a loop left."""

    losses: list[float]  # one a step
    hook: PoseAugHook | None
    calls: list[Call]


def attach(kind: Kind, estimator: nn.Module, **options: Any) -> tuple[PoseAugHook | None, list]:
    """A small hook as ``kind`` says, and the list that its calls are written down in."""
    calls: list[Call] = []
    if kind == "plain":
        return None, calls
    hook = PoseAugHook(estimator, **SMALL, **options)
    hook.enabled = kind == "active"
    augment = hook.augment

    def written_down(inputs_2d: Tensor, inputs_3d: Tensor, camera: Any = None, **options: Any):
        given = HostPoses(inputs_2d.clone(), inputs_3d.clone())
        returned = augment(inputs_2d, inputs_3d, camera, **options)
        # Hosts go on to change what they got in place.
        calls.append(Call(given, HostPoses(*(t.clone() for t in returned[:2])), camera))
        return returned

    hook.augment = written_down
    return hook, calls


def check_paused(plain: Run, paused: Run) -> None:
    """A paused hook changes nothing, to the last bit."""
    assert len(set(plain.losses)) > 5
    assert plain.losses == paused.losses
    assert paused.hook.diagnostics().updates == 0


def check_batches(run: Run, *, is_true_camera: bool) -> None:
    """Every batch keeps its form; about three quarters are replaced; 2D is where the 3D projects.

    Where the camera is only assumed, that holds for what the hook has made.
    """
    hook = run.hook
    shares = []
    for given, returned, camera in run.calls:
        for before, after in zip(given, returned, strict=True):
            assert after.shape == before.shape
            assert after.dtype == before.dtype
        changed = (given.inputs_3d != returned.inputs_3d).flatten(1).any(1)
        same_2d = (given.inputs_2d == returned.inputs_2d).flatten(1).all(1)
        assert (changed == ~same_2d).all()
        batch = canonical_batch(hook.adapter.decode(*returned, camera, hook.skeleton))
        seen = project_points(batch.joints, batch.intrinsics)
        assert batch.usable.all()
        assert (seen - batch.keypoints)[changed | is_true_camera].abs().max() < 1e-5
        shares.append(changed.float().mean())
    assert 0.5 < torch.stack(shares).mean() <= 0.8


def check_learned(run: Run) -> None:
    """The hook saw every prediction and every step, and its policy has moved."""
    found = run.hook.diagnostics()
    assert found.updates == len(run.losses)
    assert math.isfinite(found.hardness_ratio)
    assert math.isfinite(found.mean_pose_ratio)
    assert all(map(math.isfinite, found.critic_accuracy.values()))
    assert list(found.critic_accuracy) == ["critic_3d", "critic_2d"]
    assert found.unusable_samples == found.skipped_steps == 0
    assert (run.hook.policy.widening != 0).any()  # where it starts


def check_active(plain: Run, active: Run, *, is_true_camera: bool = True) -> None:
    """The loop goes on as it did, and everything above holds."""
    assert len(active.losses) == len(plain.losses)
    assert active.losses != plain.losses
    assert all(map(math.isfinite, active.losses))
    check_batches(active, is_true_camera=is_true_camera)
    check_learned(active)
