"""From a batch to its augmented samples: which, seen how, and what an update makes again."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from helpers import agree
from loops import absolute_batch, differences
from random_bodies import generator
from torch import Tensor
from typing_extensions import override

from poseaug_plugin.augment.augmenter import AugmentedBatch, Augmenter, evenly_spaced
from poseaug_plugin.augment.policy import AugmentationPolicy, Policy, RandomPolicy, Spread
from poseaug_plugin.augment.transforms import (
    AugmentationParameters,
    apply_augmentation,
    identity_parameters,
)
from poseaug_plugin.body.camera import in_view, project_points
from poseaug_plugin.body.poses import CanonicalBatch, CanonicalPoses, canonical_batch
from poseaug_plugin.body.presets import H36M_16
from poseaug_plugin.reference.regressors import RegressorPolicy


class Given(Policy):
    """Makes the same changes to every pose."""

    noise_size = 3

    def __init__(self, **changes: Any) -> None:
        super().__init__()
        self.changes = changes

    @override
    def forward(self, joints: Tensor, noise: Tensor) -> AugmentationParameters:
        same = identity_parameters(joints, H36M_16)
        return same._replace(**{k: f(getattr(same, k)) for k, f in self.changes.items()})


def augmenter(policy: Policy | None = None, seed: int = 0, **options: Any) -> Augmenter:
    policy = RandomPolicy(H36M_16, spread=Spread(focal_length=0.3)) if policy is None else policy
    usual: dict[str, Any] = {"share": 0.75, "appends": False}
    return Augmenter(policy, H36M_16, generator(seed), **{**usual, **options})


def poses(size: int = 16, frames: int = 1) -> CanonicalPoses:
    camera, joints, keypoints = absolute_batch(size, frames=frames)
    return CanonicalPoses(joints, keypoints, camera)


# -- which samples ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("share", "count"), [(0.0, 0), (0.25, 4), (0.75, 12), (1.0, 16)])
def test_a_share_is_replaced(share: float, count: int) -> None:
    own = augmenter(share=share)
    batch = own.augment(poses())
    assert own.count_of(16) == len(batch.joints) == len(batch.places) == count
    assert torch.equal(batch.places, batch.sources)
    everyone = torch.cat([batch.sources, batch.originals])
    assert everyone.sort().values.tolist() == list(range(16))


def test_every_sample_has_its_turn() -> None:
    own = augmenter(share=0.5)
    chosen = torch.stack([own.augment(poses()).sources.sort().values for _ in range(40)])
    assert set(chosen.flatten().tolist()) == set(range(16))
    assert len({tuple(row.tolist()) for row in chosen}) > 30


def test_a_copy_of_the_whole_batch_is_appended() -> None:
    own = augmenter(appends=True, share=0.1)
    batch = own.augment(poses())
    assert own.count_of(16) == 16
    assert batch.sources.tolist() == batch.originals.tolist() == list(range(16))
    assert batch.places.tolist() == list(range(16, 32))


def test_the_same_stream_gives_the_same_batch() -> None:
    batches = [augmenter(seed=seed).augment(poses()) for seed in (3, 3, 4)]
    assert differences(batches[0], batches[1]) == []
    assert differences(batches[0].joints, batches[2].joints) != []


@pytest.mark.parametrize(("available", "wanted"), [(10, 3), (10, 10), (7, None), (100, 7)])
def test_evenly_spaced_samples_are_spread_over_all(available: int, wanted: int | None) -> None:
    values = torch.arange(available), (2 * torch.arange(available), "as it is", None)
    first, (second, text, nothing) = evenly_spaced(values, available, wanted)
    assert torch.equal(second, 2 * first)
    assert (text, nothing) == ("as it is", None)
    assert len(first) == min(available, wanted or available)
    steps = first.diff()
    assert steps.min() >= 1
    assert steps.max() - steps.min() <= 1
    assert first[0] == 0


# -- what is made ----------------------------------------------------------------------------------


@pytest.mark.parametrize("keeps_cameras", [True, False])
@pytest.mark.parametrize("frames", [1, 5])
def test_poses_are_the_policys_and_seen_by_their_cameras(frames: int, keeps_cameras: bool) -> None:
    own = augmenter(learn_from=None)
    given = poses(frames=frames)
    batch = own.augment(given, keeps_cameras, True)
    originals, noise, judged, _ = batch.inputs
    for field, whole in zip(originals[:3], given[:3], strict=True):
        assert torch.equal(field, whole[batch.sources])
    parameters = own.policy(originals.joints, noise)
    moved = apply_augmentation(originals.joints, parameters, H36M_16).moved
    cameras = originals.intrinsics
    if not keeps_cameras:
        cameras = torch.cat([cameras[:, :2] * parameters.focal_ratio, cameras[:, 2:]], 1)
        assert (cameras[:, :2] != originals.intrinsics[:, :2]).all()
    assert torch.equal(batch.joints, moved)
    assert torch.equal(batch.intrinsics, cameras)
    assert torch.equal(batch.keypoints, project_points(moved, cameras))
    seen = in_view(moved, batch.keypoints, cameras).flatten(1).all(1)
    assert torch.equal(batch.accepted, seen)
    assert (judged is None) == (frames == 1)
    if judged is not None:
        assert ((judged >= 0) & (judged < frames)).all()


@pytest.mark.parametrize("learn_from", [None, 5])
def test_an_update_makes_the_same_poses_again(learn_from: int | None) -> None:
    """With a graph; of fewer poses places may be drawn from others."""
    spread = Spread(keep_view=1.0)
    policy = AugmentationPolicy(H36M_16, spread=spread)
    own = augmenter(policy, learn_from=learn_from)
    batch = own.augment(poses(), True, True)
    made = own.generate(batch.inputs)
    rows = torch.arange(12) if learn_from is None else torch.arange(5) * 12 // 5
    agree(made.poses.moved.detach(), batch.joints[rows], 1e-6)
    agree(made.keypoints.detach(), batch.keypoints[rows], 1e-6)
    assert made.poses.moved.requires_grad
    tensors = [x for x in batch if isinstance(x, Tensor)]
    assert not any(x.requires_grad for x in tensors)


def test_an_update_finds_what_it_asked_for() -> None:
    nothing, kept = (
        augmenter(learn_from=5).augment(poses(), True, keeps) for keeps in (False, True)
    )
    assert nothing.inputs is None
    assert len(augmenter().generate(kept.inputs).keypoints) == 5


def test_another_projection_is_used_for_all() -> None:
    def squashed(points: Tensor, intrinsics: Tensor) -> Tensor:
        return 0.5 * project_points(points, intrinsics)

    plain = augmenter().augment(poses())
    own = augmenter(project=squashed)
    batch = own.augment(poses(), True, True)
    assert torch.equal(batch.keypoints, 0.5 * plain.keypoints)
    assert torch.equal(own.generate(batch.inputs).keypoints, batch.keypoints)


def test_batch_statistics_do_not_move_while_a_batch_is_augmented() -> None:
    policy = RegressorPolicy(H36M_16, width=8)
    own = augmenter(policy.train())
    before = {name: buffer.clone() for name, buffer in policy.named_buffers()}
    batch = own.augment(poses(), True, True)
    assert differences(before, dict(policy.named_buffers())) == []
    own.generate(batch.inputs)
    assert differences(before, dict(policy.named_buffers())) != []


# -- what is accepted ------------------------------------------------------------------------------


def rejected(policy: Policy, **options: Any) -> list[bool]:
    batch = augmenter(policy, appends=True, **options).augment(poses(4))
    return (~batch.accepted).tolist()


def only_third(change: float) -> Any:
    def spoil(value: Tensor) -> Tensor:
        value = value.clone()
        value[2].view(-1)[-1] = change
        return value

    return spoil


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("bone_direction_offset", torch.nan),
        ("bone_length_ratio", -1.0),
        ("bone_length_ratio", torch.inf),
        ("rotation", torch.nan),
        ("translation", torch.inf),
        ("translation", -4.0),  # behind the camera
        ("translation", 0.3),  # too near
    ],
)
def test_impossible_poses_are_not_accepted(field: str, change: float) -> None:
    assert rejected(Given(**{field: only_third(change)})) == [False, False, True, False]


def test_unusable_samples_are_not_accepted() -> None:
    given = poses(4)
    joints = given.joints.clone()
    joints[1, 0, 3, 0] = torch.nan
    batch = augmenter(Given(), appends=True).augment(given._replace(joints=joints))
    assert batch.accepted.tolist() == [True, False, True, True]
    assert batch.batch.usable.tolist() == [True, False, True, True]
    assert batch.joints.isfinite().all()


def test_the_aspect_ratio_limits_what_is_in_frame() -> None:
    given = poses(64)
    highest = given.keypoints[..., 1].abs().amax((1, 2))
    limit = float(highest.median())
    batch = augmenter(Given(), appends=True, aspect_ratio=limit).augment(given)
    assert 0 < batch.accepted.sum() < 64
    assert torch.equal(batch.accepted, highest <= limit)


def test_a_window_is_accepted_as_a_whole() -> None:
    given = poses(4, frames=3)
    joints = given.joints.clone()
    joints[2, 2, :, 0] += 10.0  # out of view in the last frame
    keypoints = project_points(joints, given.intrinsics)
    given = given._replace(joints=joints, keypoints=keypoints)
    batch = augmenter(Given(), appends=True).augment(given)
    assert batch.accepted.tolist() == [True, True, False, True]


def test_another_check_decides() -> None:
    asked = []

    def check(points: Tensor, keypoints: Tensor, intrinsics: Tensor, aspect: float) -> Tensor:
        asked.append((points, keypoints, intrinsics, aspect))
        return points[..., 2] > points[..., 2].mean()

    batch = augmenter(Given(), appends=True, frame_check=check, aspect_ratio=0.7).augment(poses(4))
    points, keypoints, intrinsics, aspect = asked[0]
    assert aspect == 0.7
    assert torch.equal(points, batch.joints)
    assert torch.equal(keypoints, batch.keypoints)
    assert torch.equal(intrinsics, batch.intrinsics)
    expected = (points[..., 2] > points[..., 2].mean()).flatten(1).all(1)
    assert torch.equal(batch.accepted, expected)


# -- windows from elsewhere ------------------------------------------------------------------------


class Stock(NamedTuple):
    """Gives the same windows, and writes down how many were asked for."""

    windows: CanonicalBatch
    asked: list[tuple[int, int]]

    def sample(self, count: int, frames: int, generator: torch.Generator) -> CanonicalBatch:
        self.asked.append((count, frames))
        return CanonicalBatch(*(field[:count] for field in self.windows))


def test_windows_come_from_a_stock() -> None:
    stock = Stock(canonical_batch(poses(40, frames=5)), [])
    own = augmenter(Given(), sample=stock.sample, target_frame=lambda frames: frames - 1)
    given = poses(16, frames=5)
    batch = own.augment(given._replace(joints=given.joints[:, 4:]))
    assert stock.asked == [(12, 5)]
    assert batch.target == 4
    assert batch.joints.shape == (12, 1, 16, 3)
    assert batch.keypoints.shape == (12, 5, 16, 2)
    agree(batch.joints[:, 0], stock.windows.joints[:12, 4], 1e-5)
    agree(batch.keypoints, stock.windows.keypoints[:12], 1e-5)


def test_without_a_stock_the_middle_frame_is_lifted() -> None:
    own = augmenter(Given())
    targets = [own.augment(poses(4, frames=frames)).target for frames in (1, 2, 9)]
    assert targets == [0, 1, 4]


# -- readings --------------------------------------------------------------------------------------


def readings_of(own: Augmenter, given: CanonicalPoses) -> tuple[dict[str, Tensor], AugmentedBatch]:
    batch = own.augment(given, True, True)
    assert batch.inputs is not None
    return own.readings(batch, own.generate(batch.inputs)), batch


def test_readings_of_poses_that_stay_what_they_are() -> None:
    readings, batch = readings_of(augmenter(Given(), appends=True), poses())
    assert readings["kept_share"] == batch.accepted.float().mean()
    assert readings["angle_change"].abs() < 1e-6
    assert readings["length_change"] == 0
    assert readings["diversity"].item() == pytest.approx(1.0, abs=1e-4)


def test_readings_are_of_usable_samples() -> None:
    given = poses()
    joints = given.joints.clone()
    joints[::4] = torch.inf
    policy = Given(bone_length_ratio=lambda ratio: ratio + 0.1)
    own = augmenter(policy, appends=True, frame_check=lambda points, *_: points[..., 0] < torch.inf)
    readings, batch = readings_of(own, given._replace(joints=joints))
    assert (~batch.batch.usable).sum() == 4
    assert readings["kept_share"] == 1.0
    assert readings["length_change"].item() == pytest.approx(0.1)
    assert all(value.isfinite() for value in readings.values())


def test_diversity_is_told_from_its_loss() -> None:
    class Collapsed(Given):
        """Makes one pose of all."""

        @override
        def forward(self, joints: Tensor, noise: Tensor) -> AugmentationParameters:
            parameters = super().forward(joints, noise)
            place = parameters.translation[:1].expand_as(parameters.translation)
            offset = torch.linspace(-9, 9, 45).view(1, 1, 15, 3).expand(len(joints), 1, 15, 3)
            return parameters._replace(bone_direction_offset=99 * offset, translation=place)

    readings, _ = readings_of(augmenter(Collapsed(), appends=True), poses())
    assert readings["diversity"] < 0.2
