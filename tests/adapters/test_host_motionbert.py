"""MotionBERT's adapter, and a loop in the shape of its `train_epoch`."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import pytest
import torch
from adapters.motionbert import BODY_SIZE, MotionBERTAdapter
from helpers import agree, human_poses
from loops import SMALL, make_lifter, same_bits
from stand_ins import Kind, Run, attach, check_active, check_paused
from torch import Tensor, nn

from poseaug_plugin import HostPoses, PoseAugError, PoseAugHook, project_points, root_relative
from poseaug_plugin.body.bones import bone_lengths, joints_to_bones
from poseaug_plugin.body.poses import canonical_batch
from poseaug_plugin.body.presets import H36M_17

FRAMES = 9
ADAPTER = MotionBERTAdapter()


def camera_space(size: int = 16, seed: int = 0) -> Tensor:
    """Walking bodies of the adapter's size, (B, T, 17, 3) float64 metres."""
    poses = human_poses(size, FRAMES, H36M_17, torch.Generator().manual_seed(seed))
    return poses * (BODY_SIZE / sizes(poses)[..., None, None])


def sizes(joints: Tensor) -> Tensor:
    """(B, T) sums of bone lengths."""
    return bone_lengths(joints_to_bones(joints, H36M_17)).sum(-1)


def image_space(joints: Tensor) -> Tensor:
    """The host's preparation of its data: where joints are seen, depths as seen at the root."""
    focal_length = 2.29
    depth = joints[..., 2:]
    root = depth[:, :, :1]
    seen = focal_length * joints[..., :2] / depth
    return torch.cat([seen, focal_length * (depth - root) / root], -1).float()


def make_batch(size: int = 16, seed: int = 0) -> HostPoses:
    """Detections with a confidence, and targets."""
    target = image_space(camera_space(size, seed))
    noise = torch.Generator().manual_seed(seed)
    detections = target[..., :2] + 0.01 * torch.randn(target[..., :2].shape, generator=noise)
    confidence = torch.rand(*target.shape[:3], 1, generator=noise)
    return HostPoses(torch.cat([detections, confidence], -1), target)


# -- the adapter -----------------------------------------------------------------------------------


def test_decoding_finds_the_pose_in_camera_space() -> None:
    joints = camera_space()
    batch = make_batch()
    decoded = ADAPTER.decode(*batch, None, H36M_17)
    assert canonical_batch(decoded).usable.all()
    agree(decoded.joints, joints.float(), 1e-5)
    assert same_bits(decoded.keypoints, batch.inputs_2d[..., :2])
    agree(project_points(decoded.joints, decoded.intrinsics), batch.inputs_3d[..., :2], 1e-5)


def test_a_larger_body_looks_the_same_and_is_decoded_alike() -> None:
    larger = image_space(1.3 * camera_space())
    agree(
        ADAPTER.decode(larger[..., :2], larger, None, H36M_17).joints, camera_space().float(), 1e-5
    )


@pytest.mark.parametrize("channels", [3, 2], ids=["confidence", "no confidence"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_round_trip(channels: int, dtype: torch.dtype) -> None:
    detections, target = make_batch()
    target[..., 2] -= 1  # as `crop_scale_3d` leaves it: the root is not at 0
    batch = HostPoses(detections[..., :channels].to(dtype), target.to(dtype))
    decoded = ADAPTER.decode(*batch, None, H36M_17)
    encoded = ADAPTER.encode(decoded.joints, decoded.keypoints, batch, H36M_17)
    assert (encoded.inputs_2d.dtype, encoded.inputs_3d.dtype) == (dtype, dtype)
    agree(encoded.inputs_2d, batch.inputs_2d, 1e-6)
    agree(encoded.inputs_3d, batch.inputs_3d, 1e-6)
    assert same_bits(encoded.inputs_2d[..., 2:], batch.inputs_2d[..., 2:])


def test_a_window_in_which_the_root_changes_depth_is_not_this_format() -> None:
    detections, target = make_batch()
    target[3, 4:, :, 2] += 0.05
    usable = canonical_batch(ADAPTER.decode(detections, target, None, H36M_17)).usable
    assert usable.logical_not().nonzero() == 3


def test_a_perfect_prediction_has_hardly_an_error() -> None:
    _, target = make_batch(64)
    joints = root_relative(camera_space(64).float(), H36M_17)

    def error(prediction: Tensor) -> float:
        predicted = ADAPTER.predicted_joints(prediction, H36M_17)
        return (root_relative(predicted, H36M_17) - joints).norm(dim=-1).mean().item()

    assert error(target) < 1e-5
    assert error(target - target[:, :, :1]) < 0.02
    assert error(target.flatten(2)) < 1e-5
    assert 0.2 < error(torch.randn(target.shape, generator=torch.Generator().manual_seed(0))) < 1
    assert error(torch.zeros_like(target)) < 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda b: (*b, torch.ones(9)), r"has no camera; pass MotionBERTAdapter\(focal_length"),
        (lambda b: (b[0].repeat(1, 1, 1, 2), b[1]), r"inputs_2d must be \(batch, frames, 17, 3\)"),
        (lambda b: (b[0][:, 0], b[1][:, 0]), r"inputs_2d must be \(batch, frames, 17, 3\)"),
        (lambda b: (b[0], b[1][:, :1]), r"same batch and frames, got .*9, 17, 3\) and .*1, 17, 3"),
        (lambda b: (b[0][:, :, 1:], b[1][:, :, 1:]), r"\(batch, frames, 17, 3\).* got .*16, 3"),
        (lambda b: (b[0], b[1].long()), r"inputs_3d must be a floating-point tensor"),
    ],
)
def test_refusals(change: Any, message: str) -> None:
    hook = PoseAugHook(nn.Linear(1, 1), skeleton="h36m_17", adapter=ADAPTER, **SMALL)
    with pytest.raises(PoseAugError, match=message):
        hook.augment(*change(tuple(make_batch())))
    hook.remove()


# -- the loop --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Options:
    """Of the host's configuration, and whether there is a device to wrap the model for."""

    rootrel: bool = True
    no_conf: bool = False
    mask: bool = False
    parallel: bool = False


class Estimator(nn.Module):
    """(B, T, 17, C) to (B, T, 17, 3)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = make_lifter(17, FRAMES)
        self.layers[1] = nn.Linear(channels * 17 * FRAMES, 32)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.layers(inputs)


def train_epoch(
    options: Options,
    model: nn.Module,
    batches: list[HostPoses],
    optimizer: torch.optim.Optimizer,
    hook: PoseAugHook | None,
    has_3d: bool,
) -> list[float]:
    """Order and kind of the host's steps: augment, make root-relative, mask, predict, learn."""
    model.train()
    losses = []
    for inputs, target in batches:
        if has_3d and hook is not None:
            inputs, target = hook.augment(inputs, target)
        with torch.no_grad():
            if options.no_conf:
                inputs = inputs[:, :, :, :2]
            if not has_3d:
                confidence = deepcopy(inputs[:, :, :, 2:])
            if options.rootrel:
                target = target - target[:, :, 0:1, :]
            else:
                target[:, :, :, 2] = target[:, :, :, 2] - target[:, 0:1, 0:1, 2]
            if options.mask:
                inputs = inputs * (torch.rand(*inputs.shape[:3], 1) > 0.05)
        predicted = model(inputs)
        optimizer.zero_grad()
        if has_3d:
            loss = (predicted - target).norm(dim=-1).mean()
            motion = predicted.diff(dim=1) - target.diff(dim=1)
            loss = loss + 20 * motion.norm(dim=-1).mean()
        else:
            loss = ((predicted - target)[..., :2].norm(dim=-1) * confidence[..., 0]).mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@lru_cache
def run(options: Options, kind: Kind) -> Run:
    """Two epochs of 3D batches."""
    torch.manual_seed(0)
    model: nn.Module = Estimator(2 if options.no_conf else 3)
    if options.parallel:
        model = nn.DataParallel(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    hook, calls = attach(kind, model, skeleton="h36m_17", adapter=ADAPTER)
    batches = [make_batch(32, seed=i) for i in range(4)]
    losses = []
    for _ in range(2):
        losses += train_epoch(options, model, batches, optimizer, hook, has_3d=True)
    return Run(losses, hook, calls)


WAYS = (Options(), Options(rootrel=False, mask=True), Options(no_conf=True), Options(parallel=True))


@pytest.mark.parametrize("options", WAYS, ids=str)
def test_paused_hook_changes_nothing(options: Options) -> None:
    check_paused(run(options, "plain"), run(options, "paused"))


@pytest.mark.parametrize("options", WAYS, ids=str)
def test_loop_with_the_hook(options: Options) -> None:
    # The 2D of originals is detected.
    check_active(run(options, "plain"), run(options, "active"), is_true_camera=False)


def test_batches_without_3d_are_left_alone() -> None:
    model = Estimator(3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    hook, calls = attach("active", model, skeleton="h36m_17", adapter=ADAPTER)
    for has_3d in (True, False):
        train_epoch(Options(), model, [make_batch()] * 2, optimizer, hook, has_3d)
    assert len(calls) == hook.diagnostics().updates == 2


def test_what_augment_returns_is_in_the_hosts_format() -> None:
    batch = make_batch(64)
    hook = PoseAugHook(Estimator(3), skeleton="h36m_17", adapter=ADAPTER, **SMALL)
    made = hook.augment(*batch)
    hook.remove()
    assert (made.inputs_2d.shape, made.inputs_3d.shape) == (batch[0].shape, batch[1].shape)
    assert (made.inputs_2d.dtype, made.inputs_3d.dtype) == (torch.float32, torch.float32)
    assert same_bits(made.inputs_2d[..., 2], batch.inputs_2d[..., 2])
    changed = (made.inputs_3d != batch.inputs_3d).flatten(1).any(1)
    assert 40 < changed.sum() <= 48
    new = made.inputs_3d[changed]
    agree(made.inputs_2d[changed][..., :2], new[..., :2], 1e-6)
    assert (new[:, :, 0, 2] == 0).all()
    decoded = ADAPTER.decode(made.inputs_2d, made.inputs_3d, None, H36M_17)
    agree(project_points(decoded.joints, decoded.intrinsics)[changed], new[..., :2], 1e-5)
    # Whose bones keep their lengths through the window.
    lengths = bone_lengths(joints_to_bones(decoded.joints[changed], H36M_17))
    agree(lengths, lengths[:, :1].expand_as(lengths), 1e-5)
    assert same_bits(made.inputs_3d[~changed], batch.inputs_3d[~changed])
