"""Formats of known code bases: there and back again, where the pose is, what is refused."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from adapters.semgcn import SemGCNAdapter
from adapters.simple_baseline import SimpleBaselineAdapter, image_coordinates, keypoint_statistics
from adapters.stgcn import STGCNAdapter
from helpers import h36m_intrinsics, human_poses
from loops import NoSync, with_trajectory
from torch import Tensor, nn

from poseaug_plugin import (
    Adapter,
    CanonicalPoses,
    HostPoses,
    PoseAdapter,
    PoseAugError,
    PoseAugHook,
    PoseAugWarning,
    Skeleton,
    Spread,
    project_points,
    root_relative,
)
from poseaug_plugin.body.poses import DEFAULT_INTRINSICS, canonical_batch
from poseaug_plugin.body.presets import H36M_16, H36M_17, MPI_INF_3DHP_17
from poseaug_plugin.host.adapter import _warn_of_assumed_camera

BATCH = 6
NECK = H36M_17.joints.index("neck")


class Format(NamedTuple):
    """An adapter and how its host would have a canonical batch."""

    adapter: Adapter
    skeleton: Skeleton
    to_host: Callable[[CanonicalPoses], tuple[Tensor, Tensor, Any]]
    frames: int = 1


def canonical(skeleton: Skeleton, frames: int = 1) -> CanonicalPoses:
    """People in front of Human3.6M's cameras, in double precision."""
    joints = human_poses(BATCH, frames, skeleton, torch.Generator().manual_seed(0))
    camera = h36m_intrinsics(BATCH)
    return CanonicalPoses(joints, project_points(joints, camera), camera)


def joints_as(joints: Tensor, root: str, skeleton: Skeleton) -> Tensor:
    if root == "absolute":
        return joints
    if root == "zeroed":
        return root_relative(joints, skeleton)
    return with_trajectory(joints, skeleton)


def pose_format(
    root: str, unit: float = 1.0, skeleton: Skeleton = H36M_17, frames: int | None = 1
) -> Format:
    def to_host(batch: CanonicalPoses) -> tuple[Tensor, Tensor, Any]:
        joints = joints_as(batch.joints, root, skeleton) / unit
        pair = batch.keypoints, joints
        keypoints, joints = (t[:, 0] for t in pair) if frames is None else pair
        return keypoints, joints, batch.intrinsics

    adapter = PoseAdapter(root=root, metres_per_unit=unit)  # type: ignore[arg-type]
    return Format(adapter, skeleton, to_host, frames or 1)


def semgcn_format() -> Format:
    def to_host(batch: CanonicalPoses) -> tuple[Tensor, Tensor, Any]:
        return batch.keypoints[:, 0], root_relative(batch.joints, H36M_16)[:, 0], batch.intrinsics

    return Format(SemGCNAdapter(), H36M_16, to_host)


def stgcn_format(frames: int) -> Format:
    def to_host(batch: CanonicalPoses) -> tuple[Tensor, Tensor, Any]:
        scale = torch.ones(BATCH, dtype=torch.float64)
        joints = with_trajectory(batch.joints, H36M_17)
        return batch.keypoints, joints, (batch.intrinsics, scale)

    return Format(STGCNAdapter(), H36M_17, to_host, frames)


MEAN_3D, STD_3D = torch.linspace(-200, 300, 48), torch.linspace(40, 250, 48)
MEAN_2D, STD_2D = torch.linspace(400, 600, 32), torch.linspace(30, 120, 32)


def statistics(mean: Tensor, std: Tensor, unused: int) -> dict[str, np.ndarray]:
    """As the host keeps them: with dimensions in front that are not used."""
    front = torch.zeros(unused, dtype=torch.float64)
    return {
        "mean": torch.cat([front, mean.double()]).numpy(),
        "std": torch.cat([front, std.double()]).numpy(),
        "dim_use": np.arange(unused, unused + len(mean)),
    }


def simple_baseline(**size: float) -> SimpleBaselineAdapter:
    return SimpleBaselineAdapter(
        statistics(MEAN_3D, STD_3D, 3), statistics(MEAN_2D, STD_2D, 0), **size
    )


def simple_baseline_format(width: float, height: float) -> Format:
    def to_host(batch: CanonicalPoses) -> tuple[Tensor, Tensor, Any]:
        millimetres = 1000 * root_relative(batch.joints, H36M_17)[:, 0, 1:].flatten(1)
        pixels = image_coordinates(batch.keypoints[:, 0], width, height)
        pixels = pixels[:, [j for j in range(17) if j != NECK]].flatten(1)
        scored = (pixels - MEAN_2D) / STD_2D, (millimetres - MEAN_3D) / STD_3D
        return (*scored, batch.intrinsics)

    return Format(simple_baseline(width=width, height=height), H36M_17, to_host)


FORMATS = {
    "trajectory": pose_format("trajectory"),
    "absolute": pose_format("absolute"),
    "zeroed": pose_format("zeroed"),
    "trajectory, millimetres": pose_format("trajectory", 0.001),
    "zeroed, millimetres": pose_format("zeroed", 0.001),
    "trajectory, root is joint 14": pose_format("trajectory", skeleton=MPI_INF_3DHP_17),
    "zeroed, root is joint 14": pose_format("zeroed", skeleton=MPI_INF_3DHP_17),
    "trajectory, three frames": pose_format("trajectory", frames=3),
    "zeroed, three frames": pose_format("zeroed", frames=3),
    "no dimension for frames": pose_format("trajectory", frames=None),
    "SemGCN": semgcn_format(),
    "ST-GCN": stgcn_format(1),
    "ST-GCN, three frames": stgcn_format(3),
    "SimpleBaseline": simple_baseline_format(1000, 1000),
    "SimpleBaseline, portrait": simple_baseline_format(720, 1280),
}
each_format = pytest.mark.parametrize("name", FORMATS)


def host_batch(name: str, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Any]:
    form = FORMATS[name]
    inputs_2d, inputs_3d, camera = form.to_host(canonical(form.skeleton, form.frames))
    return inputs_2d.to(dtype), inputs_3d.to(dtype), camera


# -- there and back --------------------------------------------------------------------------------


@each_format
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_round_trip(name: str, dtype: torch.dtype) -> None:
    form = FORMATS[name]
    inputs_2d, inputs_3d, camera = host_batch(name, dtype)
    assert form.adapter.check(inputs_2d, inputs_3d, camera, form.skeleton.num_joints) == ""
    batch = form.adapter.decode(inputs_2d, inputs_3d, camera, form.skeleton)
    like = HostPoses(inputs_2d, inputs_3d)
    again = form.adapter.encode(batch.joints, batch.keypoints, like, form.skeleton)
    for before, after in zip(like, again, strict=True):
        assert after.dtype == before.dtype
        assert after.shape == before.shape
        # float32 inside, at some metres from the camera
        assert (after - before).abs().max() < 2e-6 * max(10.0, float(before.abs().max()))


@each_format
def test_decoded_batch_is_what_the_camera_saw(name: str) -> None:
    form = FORMATS[name]
    truth = canonical(form.skeleton, form.frames)
    batch = form.adapter.decode(*host_batch(name, torch.float64), form.skeleton)
    assert canonical_batch(batch).usable.all()
    assert {field.dtype for field in batch[:3]} == {torch.float32}
    assert (batch.joints - truth.joints).abs().max() < 5e-4  # a solved root is worse than the rest
    assert (batch.keypoints - truth.keypoints).abs().max() < 1e-5
    assert torch.equal(batch.intrinsics, truth.intrinsics.float())


@each_format
def test_encoding_is_differentiable(name: str) -> None:
    form = FORMATS[name]
    inputs_2d, inputs_3d, camera = host_batch(name)
    batch = form.adapter.decode(inputs_2d, inputs_3d, camera, form.skeleton)
    joints, keypoints = batch.joints.requires_grad_(), batch.keypoints.requires_grad_()
    made = form.adapter.encode(joints, keypoints, HostPoses(inputs_2d, inputs_3d), form.skeleton)
    gradients = torch.autograd.grad([t.square().sum() for t in made], [joints, keypoints])
    assert all(g.isfinite().all() and g.any() for g in gradients)


@each_format
def test_number_of_joints(name: str) -> None:
    form = FORMATS[name]
    assert form.adapter.num_joints(host_batch(name)[1]) == form.skeleton.num_joints


@each_format
def test_broken_samples_are_marked(name: str) -> None:
    form = FORMATS[name]
    inputs_2d, inputs_3d, camera = host_batch(name)
    inputs_2d[1].flatten()[0], inputs_3d[2].flatten()[-1] = math.nan, math.inf
    batch = canonical_batch(form.adapter.decode(inputs_2d, inputs_3d, camera, form.skeleton))
    assert batch.usable.tolist() == [True, False, False, True, True, True]
    assert batch.joints.isfinite().all()
    assert batch.keypoints.isfinite().all()


@pytest.mark.parametrize("name", [name for name in FORMATS if "zeroed" in name] + ["SemGCN"])
def test_poses_whose_root_cannot_be_solved_are_marked(name: str) -> None:
    form = FORMATS[name]
    inputs_2d, inputs_3d, camera = host_batch(name)
    inputs_2d[1], inputs_3d[1] = 0.1, 0.0  # all joints in one point
    batch = canonical_batch(form.adapter.decode(inputs_2d, inputs_3d, camera, form.skeleton))
    assert batch.usable.tolist() == [True, False, True, True, True, True]


def test_one_frame_of_3d_may_go_with_many_of_2d() -> None:
    inputs_2d, inputs_3d, camera = host_batch("trajectory, three frames")
    adapter, one = PoseAdapter(), inputs_3d[:, 1:2]
    assert adapter.check(inputs_2d, one, camera, 17) == ""
    whole, batch = (adapter.decode(inputs_2d, x, camera, H36M_17) for x in (inputs_3d, one))
    assert torch.equal(batch.joints, whole.joints[:, 1:2])
    again = adapter.encode(batch.joints, batch.keypoints, HostPoses(inputs_2d, one), H36M_17)
    assert [t.shape for t in again] == [(BATCH, 3, 17, 2), (BATCH, 1, 17, 3)]


@each_format
def test_nothing_waits_for_the_device(name: str) -> None:
    """But for ST-GCN's scale, which is on the CPU by contract."""
    form = FORMATS[name]
    inputs_2d, inputs_3d, camera = host_batch(name)
    if isinstance(form.adapter, STGCNAdapter):
        camera = camera[0]
    with NoSync():
        assert form.adapter.check(inputs_2d, inputs_3d, camera, form.skeleton.num_joints) == ""
        batch = canonical_batch(form.adapter.decode(inputs_2d, inputs_3d, camera, form.skeleton))
        like = HostPoses(inputs_2d, inputs_3d)
        form.adapter.encode(batch.joints, batch.keypoints, like, form.skeleton)


# -- predictions -----------------------------------------------------------------------------------


def scored(relative: Tensor) -> Tensor:
    """What SimpleBaseline's network would say."""
    return (1000 * relative[:, 0, 1:].flatten(1) - MEAN_3D) / STD_3D


PREDICTIONS: dict[str, tuple[str, Callable[[Tensor], Tensor]]] = {
    "frames": ("trajectory, three frames", lambda relative: relative),
    "no frames": ("no dimension for frames", lambda relative: relative[:, 0]),
    "flattened": ("trajectory", lambda relative: relative.flatten(1)),
    "millimetres": ("trajectory, millimetres", lambda relative: 1000 * relative),
    "main_gcn": ("SemGCN", lambda relative: relative[:, 0]),
    "main_linear": ("SemGCN", lambda relative: relative[:, 0, 1:].flatten(1)),
    "main_graph": ("ST-GCN", lambda r: r.permute(0, 3, 1, 2).unsqueeze(-1)),
    "main_graph, all frames": (
        "ST-GCN, three frames",
        lambda r: r.permute(0, 3, 1, 2).unsqueeze(-1),
    ),
    "scores": ("SimpleBaseline", scored),
}


@pytest.mark.parametrize("kind", PREDICTIONS)
def test_prediction_is_read(kind: str) -> None:
    name, say = PREDICTIONS[kind]
    form = FORMATS[name]
    relative = root_relative(canonical(form.skeleton, form.frames).joints, form.skeleton)
    joints = form.adapter.predicted_joints(say(relative).float(), form.skeleton)
    assert joints.shape == relative.shape
    assert (root_relative(joints, form.skeleton) - relative).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("trajectory", (BATCH, 3)),
        ("SemGCN", (BATCH, 14, 3)),
        ("ST-GCN", (BATCH, 17, 3)),
        ("SimpleBaseline", (BATCH, 45)),
    ],
)
def test_other_outputs_cannot_be_read(name: str, shape: tuple[int, ...]) -> None:
    """The hook takes these two errors for "not the pose" and says so."""
    form = FORMATS[name]
    with pytest.raises((RuntimeError, ValueError)):
        form.adapter.predicted_joints(torch.zeros(shape), form.skeleton)


# -- what is refused -------------------------------------------------------------------------------


def refused(name: str, **changed: Any) -> str:
    """What `check` says to a batch in which something is changed."""
    form = FORMATS[name]
    given = dict(zip(("inputs_2d", "inputs_3d", "camera"), host_batch(name), strict=True))
    given["num_joints"] = form.skeleton.num_joints
    for key, change in changed.items():
        given[key] = change(given[key]) if callable(change) else change
    return form.adapter.check(**given)


def elsewhere(tensor: Tensor) -> Tensor:
    return tensor.to("meta")


REFUSALS: list[tuple[str, dict[str, Any], str]] = [
    ("trajectory", {"inputs_3d": lambda x: x.numpy()}, "inputs_3d must be a floating-point tensor"),
    ("trajectory", {"inputs_2d": lambda x: x.int()}, "inputs_2d must be .* got torch.int32"),
    ("trajectory", {"num_joints": 16}, r"inputs_3d must be \(batch, frames, 16, 3\)"),
    ("trajectory", {"inputs_2d": lambda x: x[:3]}, "must have the same batch"),
    ("trajectory", {"inputs_2d": elsewhere}, "must be on one device, got meta and cpu"),
    ("trajectory", {"camera": lambda c: c[:, :4]}, r"camera must be \(6, 9\) or \(9,\)"),
    ("zeroed, three frames", {"inputs_3d": lambda x: x[:, :2]}, "must have the same batch"),
    ("zeroed, three frames", {"inputs_3d": lambda x: x[:, :1]}, "all 3 frames of .* got 1"),
    ("trajectory", {"inputs_2d": lambda x: x[:, 0]}, "give both an axis of frames, or neither"),
    ("SemGCN", {"num_joints": 17}, r"inputs_3d must be .*17, 3\), got \(6, 16, 3\)"),
    ("SemGCN", {"inputs_3d": lambda x: x[:, 1:]}, r"got \(6, 15, 3\)"),
    ("SemGCN", {"camera": "H36M"}, r"camera must be .* got str"),
    ("ST-GCN", {"camera": lambda c: (c[0][:2], c[1])}, r"camera must be \(6, 9\) .* got \(2, 9\)"),
    ("ST-GCN", {"camera": lambda c: (c[0], 1.5 * c[1])}, "scale must be 1, got 1.5 to 1.5"),
    ("ST-GCN", {"camera": lambda c: (c[0], [1, 1, 0.9])}, "scale must be 1, got 0.9 to 1:"),
    ("ST-GCN", {"camera": lambda c: (c[0], c[1] * math.nan)}, "scale must be 1, got nan"),
    ("ST-GCN", {"camera": lambda c: (c[0], elsewhere(c[1]))}, "the loader's own .* on meta"),
    ("ST-GCN", {"inputs_3d": lambda x: x[:, :, :16]}, r"got \(6, 1, 16, 3\)"),
    ("SimpleBaseline", {"inputs_3d": lambda x: x.numpy()}, "inputs_3d must be a floating-point"),
    ("SimpleBaseline", {"inputs_3d": None}, "inputs_3d must be .* got NoneType"),
    ("SimpleBaseline", {"inputs_2d": lambda x: x.long()}, "inputs_2d must be .* got torch.int64"),
    ("SimpleBaseline", {"inputs_3d": lambda x: x[:, :45]}, r"inputs_3d must be \(batch, 48\)"),
    ("SimpleBaseline", {"inputs_2d": lambda x: x[:3]}, r"inputs_2d must be \(batch, 32\)"),
    ("SimpleBaseline", {"inputs_2d": elsewhere}, "must be on one device, got meta and cpu"),
    ("SimpleBaseline", {"num_joints": 16}, "the skeleton must be 'h36m_17', got one of 16 joints"),
    ("SimpleBaseline", {"camera": lambda c: c[:, :4]}, r"camera must be \(6, 9\)"),
]


@pytest.mark.parametrize(("name", "changed", "words"), REFUSALS)
def test_refused_in_words(name: str, changed: dict[str, Any], words: str) -> None:
    assert re.search(words, refused(name, **changed))


def test_refusals_reach_the_user() -> None:
    inputs_2d, inputs_3d, (camera, scale) = host_batch("ST-GCN")
    hook = PoseAugHook(nn.Linear(34, 51), skeleton="h36m_17", adapter=STGCNAdapter())
    with pytest.raises(PoseAugError, match=r"PoseAugHook.augment: scale must be 1.*hook.paused"):
        hook.augment(inputs_2d, inputs_3d, (camera, 2 * scale), return_camera=True)
    with hook.paused():
        again = hook.augment(inputs_2d, inputs_3d, (camera, 2 * scale), return_camera=True)
    assert again.inputs_3d is inputs_3d


# -- SemGCN ----------------------------------------------------------------------------------------


def test_stated_camera_needs_no_warning() -> None:
    _warn_of_assumed_camera.cache_clear()
    inputs_2d, inputs_3d, _ = host_batch("SemGCN")
    batch = SemGCNAdapter().decode(inputs_2d, inputs_3d, None, H36M_16)
    assert torch.equal(batch.intrinsics, torch.tensor([DEFAULT_INTRINSICS]).expand(BATCH, 9))


def test_stated_camera_is_taken() -> None:
    _, inputs_3d, camera = host_batch("SemGCN")
    truth = canonical(H36M_16)
    one = tuple(camera[0].tolist())
    inputs_2d = project_points(truth.joints, camera[:1])[:, 0].float()
    batch = SemGCNAdapter(intrinsics=one).decode(inputs_2d, inputs_3d, None, H36M_16)
    assert (batch.joints - truth.joints).abs().max() < 5e-4
    assert torch.equal(batch.intrinsics, camera[:1].float().expand(BATCH, 9))


def test_camera_of_the_batch_goes_before_the_stated_one() -> None:
    batch = SemGCNAdapter(intrinsics=(1.0,) * 9).decode(*host_batch("SemGCN"), H36M_16)
    assert torch.equal(batch.intrinsics, h36m_intrinsics(BATCH).float())


def test_stated_camera_has_nine_numbers() -> None:
    inputs_2d, inputs_3d, _ = host_batch("SemGCN")
    adapter = SemGCNAdapter(intrinsics=(2.29, 2.29, 0.0, 0.0))
    assert "nine numbers, got 4" in adapter.check(inputs_2d, inputs_3d, None, 16)


# -- ST-GCN ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("crop_uv", [1, True])
def test_cropped_keypoints_are_refused(crop_uv: int) -> None:
    with pytest.raises(PoseAugError, match=r"crop_uv must be 0, got .*--crop_uv 0"):
        STGCNAdapter(crop_uv=crop_uv)


def test_camera_without_a_scale() -> None:
    inputs_2d, inputs_3d, (camera, scale) = host_batch("ST-GCN")
    batches = [
        canonical_batch(STGCNAdapter(crop_uv=0).decode(inputs_2d, inputs_3d, given, H36M_17))
        for given in (camera, (camera, scale), (camera, None), [camera, np.ones(BATCH)])
    ]
    for batch in batches[1:]:
        assert all(torch.equal(a, b) for a, b in zip(batch, batches[0], strict=True))


def test_scale_is_not_read_on_a_device() -> None:
    inputs_2d, inputs_3d, (camera, scale) = host_batch("ST-GCN")
    with NoSync():
        problem = STGCNAdapter().check(inputs_2d, inputs_3d, (camera, elsewhere(scale)), 17)
    assert "data[5]" in problem


def test_camera_and_scale_come_back() -> None:
    inputs_2d, inputs_3d, camera = host_batch("ST-GCN")
    hook = PoseAugHook(
        nn.Linear(34, 51),
        skeleton="h36m_17",
        adapter=STGCNAdapter(),
        spread=Spread(focal_length=0.5),
    )
    made = hook.augment(inputs_2d, inputs_3d, camera, return_camera=True)
    assert made.camera[1] is camera[1]
    moved = made.inputs_3d.clone()
    moved[..., 0, :] = 0
    moved += made.inputs_3d[..., :1, :]
    projected = project_points(moved, made.camera[0]).to(made.inputs_2d)
    assert torch.allclose(projected, made.inputs_2d, atol=1e-4)
    assert not torch.equal(made.camera[0], camera[0])


# -- SimpleBaseline --------------------------------------------------------------------------------


def test_neck_is_seen_where_it_projects() -> None:
    batch = simple_baseline().decode(*host_batch("SimpleBaseline"), H36M_17)
    expected = project_points(batch.joints, batch.intrinsics)[:, :, NECK]
    assert torch.equal(batch.keypoints[:, :, NECK], expected)


def test_missing_camera_is_assumed_with_a_warning() -> None:
    inputs_2d, inputs_3d, _ = host_batch("SimpleBaseline")
    _warn_of_assumed_camera.cache_clear()
    with pytest.warns(PoseAugWarning, match="no camera given"):
        batch = simple_baseline().decode(inputs_2d, inputs_3d, None, H36M_17)
    assert torch.equal(batch.intrinsics[0], torch.tensor(DEFAULT_INTRINSICS))


@pytest.mark.parametrize("joints", [17, 16])
def test_statistics_of_keypoints(joints: int) -> None:
    pixels = image_coordinates(canonical(H36M_17, 3).keypoints.flatten(0, 1), 1000, 1000).numpy()
    seen = np.delete(pixels, NECK, 1)
    found = keypoint_statistics(pixels if joints == 17 else seen)
    z_scores = (seen.reshape(len(seen), 32) - found["mean"]) / found["std"]
    assert np.allclose(z_scores.mean(0), 0)
    assert np.allclose(z_scores.std(0), 1)
    assert found["dim_use"].tolist() == list(range(32))


@pytest.mark.parametrize("shape", [(5, 32), (5, 15, 2), (5, 16, 3)])
def test_statistics_need_joints_in_pixels(shape: tuple[int, ...]) -> None:
    with pytest.raises(PoseAugError, match=r"pixels must be \(frames, 17, 2\)"):
        keypoint_statistics(np.zeros(shape))


def test_wrong_statistics_are_refused() -> None:
    good_3d, good_2d = statistics(MEAN_3D, STD_3D, 3), statistics(MEAN_2D, STD_2D, 0)
    with pytest.raises(PoseAugError, match="stat_3d must have 48 dimensions in use, got 32"):
        SimpleBaselineAdapter(good_2d, good_3d)
    constant = good_3d | {"std": np.zeros(51)}
    with pytest.raises(PoseAugError, match=r"not positive, in dimensions \[3, 4, 5"):
        SimpleBaselineAdapter(constant, good_2d)
    with pytest.raises(PoseAugError, match="stat_2d has standard deviations that are not positive"):
        SimpleBaselineAdapter(good_3d, good_2d | {"std": np.full(32, math.nan)})


def test_batches_are_told_apart_by_check_batch() -> None:
    """Statistics that are not the batch's show as poses that are not seen where they stand."""
    inputs_2d, inputs_3d, camera = host_batch("SimpleBaseline")
    right = PoseAugHook(nn.Linear(32, 48), skeleton="h36m_17", adapter=simple_baseline())
    assert right.check_batch(inputs_2d, inputs_3d, camera).reprojection_error < 1e-5
    wrong = SimpleBaselineAdapter(
        statistics(MEAN_3D, STD_3D, 3), statistics(MEAN_2D, STD_2D.flip(0), 0)
    )
    hook = PoseAugHook(nn.Linear(32, 48), skeleton="h36m_17", adapter=wrong)
    assert hook.check_batch(inputs_2d, inputs_3d, camera).problems
