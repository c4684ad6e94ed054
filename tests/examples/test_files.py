"""Bad files and arguments of the examples end in one clear line, and no file runs code."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from shared import checkpoints
from shared.files import FileError, read_archive, write_whole
from shared.h36m import KEYPOINTS, POSES, read_recordings, write_files
from shared.mocap import read_cameras, read_h36m, read_motion
from shared.motion import source_motion
from shared.report import read_results, write_results

EXAMPLES = Path(__file__).parents[2] / "examples"


class Hostile:
    """Runs code where it is unpickled without care."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.trace),)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    motion = source_motion()
    write_files(tmp_path, {s: {k: v[:20] for k, v in clips.items()} for s, clips in motion.items()})
    return tmp_path


def test_objects_of_arrays_are_read(folder: Path) -> None:
    motion = read_archive(folder / POSES, "positions_3d")
    with np.load(folder / POSES, allow_pickle=True) as file:
        expected = file["positions_3d"].item()
    assert list(motion) == list(expected)
    for subject, clips in expected.items():
        assert all(np.array_equal(clip, motion[subject][name]) for name, clip in clips.items())
    np.savez(folder / "plain.npz", x=np.arange(3.0))
    assert read_archive(folder / "plain.npz", "x").tolist() == [0, 1, 2]


def test_a_hostile_file_runs_nothing(tmp_path: Path) -> None:
    path, trace = tmp_path / "bad.npz", tmp_path / "was_here"
    content = {"S1": {"Walk": np.zeros((3, 32, 3)), "Trap": Hostile(trace)}}
    np.savez(path, positions_3d=np.array(content, object))
    with pytest.raises(FileError, match=r"bad\.npz: .*it wants to import \w+\.mkdir"):
        read_motion(path)
    assert not trace.exists()
    with np.load(path, allow_pickle=True) as file:
        file["positions_3d"]
    assert trace.exists()  # it would have


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-2000])


def with_motion(path: Path, change: Any) -> None:
    motion = read_archive(path, "positions_3d")
    change(motion)
    np.savez(path, positions_3d=np.array(motion, object))


def all_nan(motion: Any) -> None:
    for clips in motion.values():
        for clip in clips.values():
            clip[:] = np.nan


SPOIL: dict[str, Any] = {
    "missing": lambda path: path.unlink(),
    "cut off": cut,
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("hello"),
    "a picture": lambda path: path.write_bytes(b"\x89PNG" + bytes(1000)),
    "a pickle": lambda path: path.write_bytes(pickle.dumps({"a": 1})),
    "another array": lambda path: np.savez(path, other=np.zeros(3)),
    "an array of another kind": lambda path: np.savez(path, positions_3d=np.zeros(3)),
    "a checkpoint": lambda path: torch.save({"x": torch.zeros(3)}, path),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "without a subject": lambda path: with_motion(path, lambda m: m.pop("S9")),
    "without anything": lambda path: with_motion(path, lambda m: m.clear()),
    "of 17 joints": lambda path: with_motion(
        path, lambda m: m.update({s: {k: v[:, :17] for k, v in c.items()} for s, c in m.items()})
    ),
    "all NaN": lambda path: with_motion(path, all_nan),
}


@pytest.mark.parametrize("kind", SPOIL)
def test_a_bad_file_is_told_in_a_line_with_its_name(kind: str, folder: Path) -> None:
    path = folder / POSES
    SPOIL[kind](path)
    with pytest.raises(FileError, match=r"data_3d_h36m\.npz: ") as raised:
        read_recordings(folder, ["S9"])
    assert "\n" not in str(raised.value)
    assert "again" in str(raised.value) or "another data set" in str(raised.value)


@pytest.mark.parametrize("kind", ["missing", "cut off", "text", "another array"])
def test_bad_keypoints_cameras_and_results_are_told(kind: str, folder: Path) -> None:
    SPOIL[kind](folder / KEYPOINTS.format("gt"))
    with pytest.raises(FileError, match=r"data_2d_h36m_gt\.npz"):
        read_recordings(folder, ["S9"])
    other = folder / "some.json"
    for content in ("", "{}", "[1, 2]", '{"centre": 3, "source": [4]}'):
        other.write_text(content)
        with pytest.raises(FileError, match=r"some\.json"):
            read_cameras(other)
    other.write_text("{")
    with pytest.raises(FileError, match=r"some\.json"):
        read_results(other)
    with pytest.raises(FileError, match="no such file"):
        read_h36m(folder / "nowhere.npz")


def test_a_bad_checkpoint_is_told(tmp_path: Path) -> None:
    path = tmp_path / "run.pt"
    for content in (b"", b"hello", b"PK" + bytes(100), pickle.dumps(Hostile(tmp_path / "x"))):
        path.write_bytes(content)
        with pytest.raises(FileError, match=r"run\.pt: expected a checkpoint") as raised:
            checkpoints.load(path)
        assert "\n" not in str(raised.value)
    assert not (tmp_path / "x").exists()


def test_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    def full(partial: Path) -> None:
        partial.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    path = tmp_path / "run.pt"
    checkpoints.save({"epoch": 1}, path)
    with pytest.raises(OSError, match="No space"):
        write_whole(path, full)
    assert checkpoints.load(path) == {"epoch": 1}
    assert [x.name for x in tmp_path.iterdir()] == ["run.pt"]
    results = tmp_path / "results.json"
    write_results(results, [{"row": "x"}])
    with pytest.raises(TypeError):
        write_results(results, [{"row": object()}])
    assert read_results(results) == [{"row": "x"}]


@pytest.mark.parametrize(
    ("script", "arguments", "words"),
    [
        ("train_semgcn.py", ["--batch-size", "0"], "expected 1 or more, got 0"),
        ("train_videopose3d.py", ["--data", "nowhere"], "data_3d_h36m.npz: there is no such file"),
        ("train_ddp.py", ["--batch", "-1"], "expected 1 or more, got -1"),
        ("quickstart.py", ["--data", "nowhere"], "source_cmu.npz: there is no such file"),
    ],
)
def test_a_script_ends_with_that_line(script: str, arguments: list[str], words: str) -> None:
    command = [sys.executable, str(EXAMPLES / script), *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode != 0
    assert words in done.stderr.strip().splitlines()[-1]
    assert "Traceback" not in done.stderr
