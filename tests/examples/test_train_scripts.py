"""The training examples: their loops resume bit for bit, and what they train on is right."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from adapters.simple_baseline import keypoint_statistics
from loops import differences
from shared import checkpoints
from shared.chunks import ChunkedGenerator, Windows, mirrored, mirrored_camera
from shared.h36m import Recording, cameras_of, read_recordings, write_files
from shared.mocap import TEST_SUBJECTS, TRAIN_SUBJECTS, world_to_camera
from shared.training import PerAction, StepDecay
from train_simple_baseline import in_mm, pixels_of, pose_statistics, scored
from train_stgcn import uvd_to_xyz

from poseaug_plugin import SKELETONS, PoseAugHook, metrics, project_points
from poseaug_plugin.body.presets import H36M_17
from poseaug_plugin.host.checks import BatchReport

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT.parent / "shared" / "data"
FLIP = H36M_17.flip_permutation

# Script: its last checkpoint of a run over two epochs, and of one over a single epoch
SCRIPTS = {
    "train_videopose3d": ("epoch_2.bin", "epoch_1.bin"),
    "train_semgcn": ("ckpt_epoch_0002.pth.tar", "ckpt_epoch_0001.pth.tar"),
    "train_stgcn": ("training_2.pth", "training_1.pth"),
    "train_simple_baseline": ("ckpt_last.pth.tar", "ckpt_last.pth.tar"),
}
each_script = pytest.mark.parametrize("script", SCRIPTS)
# SemGCN and SimpleBaseline have no camera; that one is assumed is said once.
pytestmark = pytest.mark.filterwarnings("ignore:PoseAugHook.augment")


@pytest.fixture(autouse=True)
def _random_stream_is_left_alone() -> Iterator[None]:
    with torch.random.fork_rng():
        yield


def run(script: str, folder: Path, *options: str) -> None:
    importlib.import_module(script).main(["--smoke", "--checkpoint", str(folder), *options])


def figures(printed: str) -> list[float]:
    """What stands in the last row of the table."""
    (row,) = re.findall(r"^\| average of the actions \|(.*)\|$", printed, flags=re.MULTILINE)
    return [float(cell) for cell in row.split("|")]


@pytest.fixture
def reports(monkeypatch: pytest.MonkeyPatch) -> list[BatchReport]:
    """What `check_batch` says to every batch that is augmented."""
    said: list[BatchReport] = []
    augment = PoseAugHook.augment

    def checked(hook: PoseAugHook, *arguments: Any, **options: Any) -> Any:
        if hook.enabled and not said:
            said.append(hook.check_batch(*arguments))
        return augment(hook, *arguments, **options)

    monkeypatch.setattr(PoseAugHook, "augment", checked)
    return said


@each_script
def test_interrupted_and_resumed_is_uninterrupted(
    script: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    reports: list[BatchReport],
) -> None:
    last, first = SCRIPTS[script]
    run(script, tmp_path / "whole", "--poseaug")
    printed = figures(capsys.readouterr().out)
    assert np.isfinite(printed).all()
    assert len(printed) >= 2
    assert not reports[0].problems, str(reports[0])

    save = checkpoints.save

    def interrupt(state: dict[str, Any], path: Path) -> None:
        save(state, path)
        if path.name == first:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(checkpoints, "save", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(script, tmp_path / "parts", "--poseaug")
    halfway = checkpoints.load(tmp_path / "parts" / first)
    assert halfway["epoch"] == 1
    run(script, tmp_path / "parts", "--poseaug", "--resume", str(tmp_path / "parts" / first))
    whole, parts = (checkpoints.load(tmp_path / name / last) for name in ("whole", "parts"))
    assert differences(whole, parts) == []
    assert differences(whole["optimizer"], halfway["optimizer"]) != []
    assert figures(capsys.readouterr().out) == printed


@each_script
def test_without_the_hook(
    script: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], reports: list[BatchReport]
) -> None:
    run(script, tmp_path)
    assert np.isfinite(figures(capsys.readouterr().out)).all()
    assert reports == []


@pytest.mark.parametrize(
    ("script", "options"),
    [
        ("train_videopose3d", ("--architecture", "3,3")),
        ("train_videopose3d", ("--architecture", "3,3", "--causal")),
        ("train_stgcn", ("--pad", "1")),
    ],
)
def test_windows_of_frames(
    script: str, options: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(script, tmp_path, *options, "--epochs", "1", "--poseaug")
    assert np.isfinite(figures(capsys.readouterr().out)).all()


@pytest.mark.parametrize("script", ["train_videopose3d", "train_stgcn"])
def test_the_trajectory_is_no_target(
    script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mpjpe, roots = metrics.mpjpe, []

    def spy(predicted: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        roots.append(target[..., 0, :].abs().max().item())
        return mpjpe(predicted, target)

    monkeypatch.setattr(metrics, "mpjpe", spy)
    run(script, tmp_path, "--epochs", "1", "--poseaug")
    assert len(roots) >= 10
    assert max(roots) == 0.0


def test_weights_of_stgcn_alone(tmp_path: Path) -> None:
    run("train_stgcn", tmp_path, "--epochs", "1")
    weights = checkpoints.load(tmp_path / "model_st_gcn_1.pth")
    assert differences(weights, checkpoints.load(tmp_path / "training_1.pth")["st_gcn"]) == []


# -- the files -------------------------------------------------------------------------------------


@pytest.mark.parametrize("joints", [17, 16])
def test_written_files_are_read(joints: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    motion = {
        subject: {
            "Walking": rng.uniform(-0.5, 1.5, (5, 17, 3)).astype(np.float32),
            "Walking 1": rng.uniform(-0.5, 1.5, (4, 17, 3)).astype(np.float32),
        }
        for subject in ("S1", "S9")
    }
    write_files(tmp_path, motion, joints)
    recordings = read_recordings(tmp_path, ["S9"], joints=joints, every=2)
    assert [len(r.joints) for r in recordings] == [3] * 4 + [2] * 4
    assert {r.action for r in recordings} == {"Walking"}
    for recording, camera in zip(recordings, 2 * cameras_of("S9"), strict=True):
        take = "Walking" if len(recording.joints) == 3 else "Walking 1"
        world = motion["S9"][take][::2]
        if joints == 16:
            world = world[:, [*range(9), *range(10, 17)]]
        assert np.allclose(recording.joints, world_to_camera(world, camera), atol=1e-6)
        assert np.allclose(recording.keypoints, seen_by(recording), atol=1e-6)


def seen_by(recording: Recording) -> np.ndarray:
    """The library's projection of a recording's joints, for none of which the lens folds back."""
    intrinsics = torch.from_numpy(recording.camera.intrinsics)[None]
    return project_points(torch.from_numpy(recording.joints)[None].double(), intrinsics)[0].numpy()


def test_other_joints_than_expected_are_refused(tmp_path: Path) -> None:
    write_files(tmp_path, {"S1": {"Eating": np.ones((2, 17, 3), np.float32)}}, joints=17)
    with pytest.raises(ValueError, match=r"2 frames or more and 16 joints for S1, Eating.*\(2, 17"):
        read_recordings(tmp_path, ["S1"], joints=16)


def test_frames_without_motion_capture_are_dropped(tmp_path: Path) -> None:
    motion = {"S1": {"Eating": np.ones((3, 17, 3), np.float32)}}
    write_files(tmp_path, motion)
    longer = (tmp_path / "data_2d_h36m_gt.npz").read_bytes()
    write_files(tmp_path, {"S1": {"Eating": motion["S1"]["Eating"][:2]}})
    (tmp_path / "data_2d_h36m_gt.npz").write_bytes(longer)
    assert [len(r.keypoints) for r in read_recordings(tmp_path, ["S1"])] == [2] * 4


def test_unknown_subject() -> None:
    with pytest.raises(ValueError, match=r"one of S1, S5.*'S2'"):
        cameras_of("S2")


@pytest.mark.parametrize("joints", [17, 16])
def test_real_files_project_onto_themselves(joints: int) -> None:
    folder = DATA / f"h36m{joints}"
    if not folder.is_dir():
        pytest.skip(f"no motion capture in {folder}")
    subjects = TRAIN_SUBJECTS + TEST_SUBJECTS
    recordings = read_recordings(folder, subjects, joints=joints, every=10)
    assert len(recordings) > 700
    for recording in recordings:
        off = np.abs(recording.keypoints - seen_by(recording)) * recording.camera.width / 2
        assert off.max() < 1e-3


# -- windows, mirroring, averages ------------------------------------------------------------------


def some_recordings() -> list[Recording]:
    rng = np.random.default_rng(0)
    return [
        Recording(
            "Eating",
            camera,
            rng.normal(size=(frames, 17, 2)).astype(np.float32),
            rng.normal(size=(frames, 17, 3)).astype(np.float32),
        )
        for frames, camera in zip((4, 1, 3), cameras_of("S1")[:3], strict=True)
    ]


@pytest.mark.parametrize("whole_targets", [False, True])
@pytest.mark.parametrize("padding", [(0, 0), (2, 2), (4, 0)])
def test_windows_are_those_of_a_slow_loop(padding: tuple[int, int], whole_targets: bool) -> None:
    recordings = some_recordings()
    windows = Windows(recordings, padding, whole_targets=whole_targets, flip=FLIP)
    expected = []
    for recording in recordings:
        for frame in range(len(recording.joints)):
            window = range(frame - padding[0], frame + padding[1] + 1)
            seen = [min(max(f, 0), len(recording.joints) - 1) for f in window]
            targets = seen if whole_targets else [frame]
            intrinsics = recording.camera.intrinsics.astype(np.float32)
            expected.append((intrinsics, recording.joints[targets], recording.keypoints[seen]))
    expected += [(mirrored_camera(c), mirrored(x, FLIP), mirrored(k, FLIP)) for c, x, k in expected]
    assert len(windows) == len(expected) == 2 * windows.frames == 16
    order = np.random.default_rng(1).permutation(16)
    for found, parts in zip(windows[order], zip(*expected, strict=True), strict=True):
        assert np.array_equal(found, np.stack(parts)[order])
    assert [len(chunk.cameras) for chunk in windows.in_order(6)] == [6, 6, 4]


def test_generator_takes_every_window_once_and_goes_on() -> None:
    windows = Windows(some_recordings())
    generator = ChunkedGenerator(windows, 3)
    epochs = [[chunk.keypoints for chunk in generator.next_epoch()] for _ in range(2)]
    assert [len(keypoints) for keypoints in epochs[0]] == [3, 3, 2]
    assert len(generator) == 3
    first, second = (np.concatenate(epoch) for epoch in epochs)
    assert not np.array_equal(first, second)
    in_order = next(windows.in_order(8)).keypoints
    assert np.array_equal(np.sort(first[:, 0, 0, 0]), np.sort(in_order[:, 0, 0, 0]))
    state = generator.random_state()
    third = np.concatenate([chunk.keypoints for chunk in generator.next_epoch()])
    other = ChunkedGenerator(windows, 3)
    other.set_random_state(state)
    again = np.concatenate([chunk.keypoints for chunk in other.next_epoch()])
    assert np.array_equal(third, again)


@pytest.mark.parametrize("skeleton", ["h36m_16", "h36m_17"])
def test_the_mirrored_camera_sees_the_mirrored_pose(skeleton: str) -> None:
    flip = SKELETONS[skeleton].flip_permutation
    joints = torch.randn(4, len(flip), 3, generator=torch.Generator().manual_seed(0)).double()
    joints[..., 2] = joints[..., 2].abs() + 4
    cameras = torch.tensor(np.array([camera.intrinsics for camera in cameras_of("S5")]))
    kept = cameras.clone()
    seen = project_points(mirrored(joints, flip), mirrored_camera(cameras))
    assert torch.allclose(seen, mirrored(project_points(joints, cameras), flip))
    assert torch.equal(mirrored(mirrored(joints, flip), flip), joints)
    assert torch.equal(cameras, kept)


def test_averages_of_actions_and_of_frames() -> None:
    errors = PerAction()
    errors.add("Eating", 1, {"MPJPE": 10.0, "P-MPJPE": 1.0})
    errors.add("Eating", 3, {"MPJPE": 50.0, "P-MPJPE": 2.0})
    errors.add("Posing", 4, {"MPJPE": 80.0, "P-MPJPE": 3.0})
    errors.add("Walking", 8, {"MPJPE": 90.0, "P-MPJPE": 4.0})
    assert errors.of_actions()["Eating"] == {"MPJPE": 40.0, "P-MPJPE": 1.75}
    assert errors.action_average()["MPJPE"] == 70.0
    assert errors.frame_average()["MPJPE"] == 75.0
    assert "| average of the actions | 70.0 | 2.9 |" in errors.table()


def test_learning_rate_by_step() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    schedule = StepDecay(initial=0.1, every=4, gamma=0.5)
    rates = []
    for _ in range(9):
        schedule.advance(optimizer)
        rates.append(optimizer.param_groups[0]["lr"])
    first = 0.1 * 0.5**0.25
    assert rates == pytest.approx([first] * 3 + [0.05] * 4 + [0.025] * 2)


def test_depth_and_2d_make_the_pose_again() -> None:
    joints = torch.randn(3, 1, 17, 3, generator=torch.Generator().manual_seed(0)).double()
    joints[..., 2] += 5
    camera = torch.tensor([[2.2, 2.3, 0.1, -0.2, 0, 0, 0, 0, 0]]).double().expand(3, 9)
    relative = joints - joints[:, :, :1]
    depth = relative[..., 2].clone()
    depth[:, :, 0] = 7.0  # whatever the network says of the root
    xyz = uvd_to_xyz(project_points(joints, camera), depth, joints[:, :, :1], camera)
    assert torch.allclose(xyz, relative)


def test_scores_of_simple_baseline_and_back() -> None:
    recordings = [r._replace(joints=r.joints - r.joints[:, :1]) for r in some_recordings()]
    pixels = np.concatenate([pixels_of(r) for r in recordings])
    stat_2d, stat_3d = keypoint_statistics(pixels), pose_statistics(recordings)
    scores = scored(recordings, stat_2d, stat_3d)
    for values in scores:
        assert torch.allclose(values.mean(0), torch.zeros(values.shape[1]), atol=1e-5)
        assert torch.allclose(values.std(0, correction=0), torch.ones(values.shape[1]))
    millimetres = 1000 * np.concatenate([r.joints for r in recordings])
    assert np.allclose(in_mm(scores.targets, stat_3d), millimetres, atol=1e-2)
    first = recordings[0]
    x = (first.keypoints[0, 0, 0] + 1) * 500
    assert scores.inputs[0, 0].item() == pytest.approx(
        (x - pixels[:, 0, 0].mean()) / pixels[:, 0, 0].std(), rel=1e-4
    )
