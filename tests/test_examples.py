"""The examples: a resumed quickstart is the uninterrupted one; no table is typed by hand."""

from __future__ import annotations

import re
import subprocess
import sys
from argparse import Namespace
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from loops import differences

from poseaug_plugin import H36M_16, Spread

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT.parent / "shared" / "data"
EXAMPLES = ROOT / "examples"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.fixture(autouse=True)
def _examples_are_importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))


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


def test_diversity_compares_every_set(tmp_path: Path) -> None:
    from report import read_results, table_of

    if not DATA.is_dir():
        pytest.skip(f"no motion capture in {DATA}")
    out = tmp_path / "diversity.json"
    printed = example("diversity.py", out, "--data", str(DATA), "--rows", "random, tuned")
    assert [r["set"] for r in read_results(out)] == [
        "target",
        "held-out subjects",
        "original",
        "random, tuned",
    ]
    assert table_of(out) == printed.strip()
    assert out.with_suffix(".png").stat().st_size > 10_000


def test_joint_angles_and_viewpoint_of_a_standing_body() -> None:
    from diversity import body_aligned, coverage, joint_angles, knees_backwards, viewpoints

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


def test_peak_memory_is_what_tensors_take_at_a_time() -> None:
    from benchmark_step import peak_of_tensors

    def make() -> torch.Tensor:
        return torch.zeros(64, 1024)

    def one_after_the_other() -> None:
        for _ in range(3):
            make()

    assert peak_of_tensors(lambda: [make() for _ in range(3)]) == 3 * 4 * 64 * 1024
    assert peak_of_tensors(one_after_the_other) == 4 * 64 * 1024


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_tables_are_those_of_the_results_files(page: Path) -> None:
    from report import with_tables

    text = page.read_text()
    assert with_tables(text, ROOT) == text


def result(row: str, seed: int, mpjpe: float) -> dict[str, Any]:
    figures = {"MPJPE": mpjpe, "P-MPJPE": mpjpe / 2, "PCK": 90.0}
    return {
        "row": row,
        "seed": seed,
        "epochs": 3,
        "batch": 8,
        "samples_per_second": 1000.0,
        "tests": {"in-domain": figures},
        "diagnostics": None,
        "spread_factors": None,
    }


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
        ({"tests": ["same views"]}, r"tests \['in-domain'\], asked for are"),
        ({"updates": 20, "frames": 9}, None),  # a table of its own
        ({"updates": 20, "estimators": ["semgcn"]}, None),
    ],
)
def test_benchmark_adds_no_rows_to_those_of_another_schedule(
    change: dict[str, Any], message: str | None
) -> None:
    from benchmark_generalisation import check_results, schedule

    asked = {"size": "small", "updates": 10, "batch": 8, "lr": None, "frames": 1}
    asked |= {"subjects": ["S1", "S5"], "every": 1, "clips": 1, "bf16": False, "validate": False}
    asked |= {"estimators": ["stgcn"], "tests": ["in-domain"], "out": "runs.json"}
    asked |= {"held_out": ["walk"], "train_cameras": "source"}
    usual = schedule("stgcn", Namespace(**asked))
    result = {"estimator": "stgcn", "frames": 1, **usual, "tests": {"in-domain": {}}}
    before = {key: value for key, value in result.items() if key != "train_cameras"}
    asked |= change
    tests, arguments = asked.pop("tests"), Namespace(**asked)
    for results in ([result], [before]):  # a file of before, which says nothing of the cameras
        with pytest.raises(SystemExit, match=message) if message else nullcontext():
            check_results(results, tests, arguments)


def test_readme_says_how_the_opponent_is_made() -> None:
    from benchmark_generalisation import ROWS

    said = re.search(r'`(preset="random", .*?\))`', (ROOT / "README.md").read_text())
    assert said is not None
    assert eval(f"dict({said[1]})", {"Spread": Spread}) == ROWS["random, tuned"]


def test_compact_table_tells_who_has_fewer_seeds() -> None:
    from report import format_generalisation_compact

    runs = (("a", "none", 0, 100.0), ("a", "none", 1, 120.0), ("a", "hook", 1, 60.0))
    kinds = (*runs, ("b", "none", 0, 50.0), ("b", "hook", 0, 40.0))
    results = [
        {
            **{"estimator": name, "frames": 1, "row": row, "seed": seed},
            "tests": {test: {"MPJPE": error} for test in ("in-domain", "cross-dataset")},
        }
        for name, row, seed, error in kinds
    ]
    assert format_generalisation_compact(results).splitlines()[2:] == [
        "| a, 1 frame | 110.0 | 60.0 (-50.0 %; 1 seed) |",
        "| b, 1 frame | 50.0 (1 seed) | 40.0 (-20.0 %; 1 seed) |",
    ]


def test_table_of_results() -> None:
    from report import format_table

    results = [result("none", 0, 90.0), result("none", 1, 110.0), result("hook", 0, 80.0)]
    table = format_table(results)
    assert "| none | 100.0 ± 14.1 | 50.0 ± 7.1 | 90.0 ± 0.0 |" in table
    assert "| hook | 80.0 | 40.0 | 90.0 | -20.0 % |  | 1,000 |" in table


def test_changes_are_over_the_seeds_that_both_rows_have() -> None:
    from report import format_generalisation

    def run(row: str, seed: int, mpjpe: float) -> dict[str, Any]:
        errors = {"MPJPE": mpjpe, "N-MPJPE": mpjpe, "P-MPJPE": mpjpe, "by camera": {"knee": mpjpe}}
        made = {"estimator": "net", "frames": 1, "size": "small", "updates": 3}
        tests = {"in-domain": errors, "cross-dataset": errors}
        return result(row, seed, mpjpe) | made | {"tests": tests}

    runs = [run("none", 0, 100.0), run("none", 1, 200.0), run("hook", 0, 80.0)]
    runs.append(run("other", 2, 50.0))
    table = format_generalisation(runs)
    assert "| none | 150.0 ± 70.7 / " in table
    (hook,) = (line for line in table.splitlines() if line.startswith("| hook (1 seed)"))
    assert "| -20.0 % / - | 80 |" in hook
    (other,) = (line for line in table.splitlines() if line.startswith("| other (1 seed)"))
    assert "| - / - | 50 |" in other


def test_table_tells_what_was_learned() -> None:
    from report import format_table

    hooked = result("hook", 0, 80.0) | {
        "diagnostics": {"hardness_ratio": 1.9},
        "spread_factors": [2.0, 1.5, None, 1.0, 1.25],
    }
    assert "| hook | 1.90 | 2.0, 1.5, -, 1.0, 1.2 |" in format_table([hooked])


def test_page_gets_its_table_and_keeps_the_rest(tmp_path: Path) -> None:
    from report import with_tables, write_results

    write_results(tmp_path / "r.json", [result("none", 0, 90.0)])
    page = "before\n<!-- table: r.json -->\nold\n<!-- end -->\nafter"
    made = with_tables(page, tmp_path)
    assert "old" not in made
    assert made.startswith("before\n<!-- table: r.json -->\n1 seed(s)")
    assert made.endswith("<!-- end -->\nafter")
    assert with_tables(made, tmp_path) == made
