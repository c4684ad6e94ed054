"""Quickstart and benchmarks: a resumed quickstart is the uninterrupted one; figures are right."""

from __future__ import annotations

import subprocess
import sys
import warnings
from argparse import Namespace
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import show_augmentations
import torch
from benchmarks.count_module_changes import Calls, count, record
from benchmarks.diversity import coverage
from benchmarks.generalisation import check_results, schedule
from benchmarks.step import peak_of_tensors
from loops import differences, make_batch
from shared.bodies import body_aligned, joint_angles, knees_backwards, viewpoints
from shared.report import read_results, table_of

from poseaug_plugin import PoseAugHook, PoseAugWarning, root_relative
from poseaug_plugin.body.presets import H36M_16

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT.parent / "shared" / "data"
EXAMPLES = ROOT / "examples"


def example(script: str, out: Path, *options: str) -> str:
    command = [sys.executable, str(EXAMPLES / script), "--smoke", "--out", str(out)]
    environment = {"MPLBACKEND": "Agg", "OMP_NUM_THREADS": "1", "PATH": ""}
    done = subprocess.run(
        [*command, *options], check=True, capture_output=True, text=True, env=environment
    )
    return done.stdout


def quickstart(out: Path, *options: str) -> str:
    return example("quickstart.py", out, *options)


def checkpoint(out: Path) -> Any:
    state = torch.load(out / "PoseAugHook_0.pt", weights_only=True)
    del state["seconds"]
    return state


def test_resumed_quickstart_is_the_uninterrupted_one(tmp_path: Path) -> None:
    rows = ("--rows", "PoseAugHook")
    quickstart(tmp_path / "whole", *rows)
    quickstart(tmp_path / "parts", *rows, "--stop-after", "1")
    halfway = checkpoint(tmp_path / "parts")
    assert halfway["epoch"] == 1
    printed = quickstart(tmp_path / "parts", *rows, "--resume")
    whole, parts = checkpoint(tmp_path / "whole"), checkpoint(tmp_path / "parts")
    assert differences(whole, parts) == []
    assert differences(whole["estimator"], halfway["estimator"]) != []
    assert "| PoseAugHook |" in printed
    assert (tmp_path / "parts" / "quickstart.png").stat().st_size > 10_000


# -- augmentations of one's own batch --------------------------------------------------------------


@pytest.mark.parametrize("has_camera", [True, False])
def test_augmentations_of_a_batch_are_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_camera: bool
) -> None:
    batch = make_batch(64)
    arrays = {"inputs_2d": batch.inputs_2d, "inputs_3d": batch.inputs_3d}
    if has_camera:
        arrays["camera"] = batch.camera
    np.savez(tmp_path / "batch.npz", **{name: x.numpy() for name, x in arrays.items()})
    given = ["--data", str(tmp_path / "batch.npz"), "--out", str(tmp_path / "picture.png")]
    monkeypatch.setattr(sys, "argv", ["show_augmentations.py", *given])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PoseAugWarning)  # of the camera that is assumed
        show_augmentations.main()
    assert (tmp_path / "picture.png").stat().st_size > 10_000
    camera = show_augmentations.read_batch(tmp_path / "batch.npz")[2]
    assert has_camera == (camera is not None and torch.equal(camera, batch.camera))


def test_eight_augmentations_of_one_sample_are_all_others() -> None:
    batch = make_batch(16)
    given = batch.inputs_2d, batch.inputs_3d, batch.camera
    hook = PoseAugHook(torch.nn.Linear(1, 1), skeleton="h36m_16", preset="random", share=1.0)
    poses = show_augmentations.augmentations(hook, given, 5)
    assert poses.shape == (8, 16, 2)
    assert len({tuple(p.flatten().tolist()) for p in [batch.inputs_2d[5, 0], *poses]}) == 9


def test_augmentations_of_a_batch_that_does_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.savez(tmp_path / "batch.npz", inputs_2d=np.zeros((4, 17, 2)), inputs_3d=np.zeros((4, 5, 3)))
    monkeypatch.setattr(sys, "argv", ["show", "--data", str(tmp_path / "batch.npz")])
    with pytest.raises(SystemExit, match="h36m_5"):
        show_augmentations.main()
    monkeypatch.setattr(sys, "argv", ["show", "--data", str(tmp_path / "none.npz")])
    with pytest.raises(SystemExit, match="there is no such file"):
        show_augmentations.main()


# -- diversity -------------------------------------------------------------------------------------


def test_diversity_compares_every_set(tmp_path: Path) -> None:
    if not DATA.is_dir():
        pytest.skip(f"no motion capture in {DATA}")
    out = tmp_path / "diversity.json"
    printed = example(
        "benchmarks/diversity.py", out, "--data", str(DATA), "--rows", "random, tuned"
    )
    assert [r["set"] for r in read_results(out)] == [
        "target",
        "held-out subjects",
        "original",
        "random, tuned",
    ]
    assert table_of(out) == printed.strip()
    assert out.with_suffix(".png").stat().st_size > 10_000


def test_joint_angles_and_viewpoint_of_a_standing_body() -> None:
    # Faces a camera 4 m away, at the height of its hips: x right, y down, so its left is +x.
    side = {"left": 1.0, "right": -1.0}
    height = {"hip": 0.0, "knee": 0.4, "ankle": 0.8, "shoulder": -0.5, "elbow": -0.5, "wrist": -0.5}
    reach = {"hip": 0.1, "knee": 0.1, "ankle": 0.1, "shoulder": 0.2, "elbow": 0.5, "wrist": 0.5}
    front = {"wrist": -0.3}
    middle = {"hip": 0.0, "spine": -0.25, "thorax": -0.5, "head": -0.8}
    body = torch.zeros(1, 16, 3)
    for i, name in enumerate(H36M_16.joints):
        which, _, part = name.partition("_")
        x = side[which] * reach[part] if part else 0.0
        y = height[part] if part else middle[name]
        body[0, i] = torch.tensor([x, y, 4.0 + front.get(part, 0.0)])
    angles = {name: values.mean().item() for name, values in joint_angles(body).items()}
    assert angles == pytest.approx(
        {"elbow flexion": 90.0, "knee flexion": 0.0, "upper-arm elevation": 90.0}, abs=0.1
    )
    assert torch.cat(viewpoints(body)).tolist() == pytest.approx([0.0, 0.0], abs=0.1)
    ankle = H36M_16.joints.index("left_ankle")
    for depth, backwards in ((0.3, False), (-0.3, True)):
        bent = body.clone()
        bent[:, ankle, 2] += depth
        assert knees_backwards(bent).tolist() == [backwards]
    # Alone, a pose is the same wherever it stands, turned or enlarged; as it is seen it is not.
    turned = body[..., [2, 1, 0]] * torch.tensor([-1.2, 1.2, 1.2])
    assert coverage(body_aligned(body), body_aligned(turned)) == pytest.approx(0.0, abs=0.1)
    assert coverage(body - body[:, :1], turned - turned[:, :1]) > 50


# -- what a step costs -----------------------------------------------------------------------------


def test_peak_memory_is_what_tensors_take_at_a_time() -> None:
    def make() -> torch.Tensor:
        return torch.zeros(64, 1024)

    def one_after_the_other() -> None:
        for _ in range(3):
            make()

    assert peak_of_tensors(lambda: [make() for _ in range(3)]) == 3 * 4 * 64 * 1024
    assert peak_of_tensors(one_after_the_other) == 4 * 64 * 1024


def test_module_changes_are_counted_between_neighbouring_calls() -> None:
    calls = Calls((("a.py", "f"), ("a.py", "g"), ("b.py", "h"), ("a.py", "f")))
    assert (calls.modules, calls.changes) == (2, 2)
    assert (Calls(()).modules, Calls(()).changes) == (0, 0)


def test_calls_of_the_package_alone_are_counted() -> None:
    joints = torch.zeros(2, 16, 3)
    centred, calls = record(root_relative, joints, H36M_16)
    assert torch.equal(centred, joints)
    assert calls.made == (("body/bones.py", "root_relative"),)


def test_a_step_of_the_hook_is_counted() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        calls = count()
    assert list(calls) == ["augment", "step"]
    assert calls["augment"].made[0] == ("hook.py", "augment")
    assert calls["step"].made[0] == ("host/attachment.py", "_tell_watchers")
    # Of a step in which the policy and its critics learn.
    learning = {
        ("adversary/critics.py", name) for name in ("lsgan_policy_loss", "lsgan_critic_loss")
    }
    assert learning < set(calls["step"].made)
    assert calls["step"].modules <= calls["step"].changes < len(calls["step"].made)


# -- the generalisation benchmark ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, None),
        ({"lr": 1e-3}, "stgcn with lr 0.01, asked for are lr 0.001"),
        ({"updates": 20}, "updates 10, asked for are updates 20"),
        ({"size": "published"}, "size small, asked for are size published"),
        ({"every": 10, "clips": 2}, "every 1, clips 1, asked for are every 10, clips 2"),
        ({"subjects": ["S1"]}, r"subjects \['S1', 'S5'\], asked for are subjects \['S1'\]"),
        ({"validate": True}, r"held_out None, asked for are held_out \['walk'\]"),
        ({"train_cameras": "ceiling"}, "train_cameras source, asked for are train_cameras ceiling"),
        ({"noise": 0.01}, "noise 0.0, asked for are noise 0.01"),
        ({"tests": ["same views"]}, r"tests \['in-domain'\], asked for are"),
        ({"updates": 20, "frames": 9}, None),  # a table of its own
        ({"updates": 20, "estimators": ["semgcn"]}, None),
    ],
)
def test_benchmark_adds_no_rows_to_those_of_another_schedule(
    change: dict[str, Any], message: str | None
) -> None:
    asked = {"size": "small", "updates": 10, "batch": 8, "lr": None, "frames": 1}
    asked |= {"subjects": ["S1", "S5"], "every": 1, "clips": 1, "bf16": False, "validate": False}
    asked |= {"estimators": ["stgcn"], "tests": ["in-domain"], "out": "runs.json"}
    asked |= {"held_out": ["walk"], "train_cameras": "source", "noise": 0.0}
    usual = schedule("stgcn", Namespace(**asked))
    result = {"estimator": "stgcn", "frames": 1, **usual, "tests": {"in-domain": {}}}
    before = {k: v for k, v in result.items() if k not in ("train_cameras", "noise")}
    asked |= change
    tests, arguments = asked.pop("tests"), Namespace(**asked)
    for results in ([result], [before]):  # a file of before, which does not tell
        with pytest.raises(SystemExit, match=message) if message else nullcontext():
            check_results(results, tests, arguments)
