"""The examples: a resumed quickstart is the uninterrupted one; no table is typed by hand."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from loops import differences

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.fixture(autouse=True)
def _examples_are_importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))


def quickstart(out: Path, *options: str) -> str:
    command = [sys.executable, str(EXAMPLES / "quickstart.py"), "--smoke", "--out", str(out)]
    environment = {"MPLBACKEND": "Agg", "OMP_NUM_THREADS": "1", "PATH": ""}
    done = subprocess.run(
        [*command, *options], check=True, capture_output=True, text=True, env=environment
    )
    return done.stdout


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


def test_table_of_results() -> None:
    from report import format_table

    results = [result("none", 0, 90.0), result("none", 1, 110.0), result("hook", 0, 80.0)]
    table = format_table(results)
    assert "| none | 100.0 ± 14.1 | 50.0 ± 7.1 | 90.0 ± 0.0 |" in table
    assert "| hook | 80.0 | 40.0 | 90.0 | -20.0 % |  | 1,000 |" in table


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
