"""Tables from results files: means, changes against other rows, what was learned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from shared.report import (
    format_generalisation,
    format_generalisation_compact,
    format_table,
    with_tables,
    write_results,
)


def result(row: str, seed: int, mpjpe: float) -> dict[str, Any]:
    figures = {"MPJPE": mpjpe, "P-MPJPE": mpjpe / 2, "by camera": {"knee": 2 * mpjpe}}
    return {
        "row": row,
        "seed": seed,
        "epochs": 3,
        "batch": 8,
        "samples_per_second": 1000.0,
        "tests": {"in-domain": figures, "target": figures},
        "diagnostics": None,
        "spread_factors": None,
    }


def test_compact_table_tells_who_has_fewer_seeds() -> None:
    runs = (("a", "none", 0, 100.0), ("a", "none", 1, 120.0), ("a", "hook", 1, 60.0))
    kinds = (*runs, ("b", "none", 0, 50.0), ("b", "hook", 0, 40.0), ("c", "none", 0, 30.0))
    results = [
        {
            **{"estimator": name, "frames": 1, "row": row, "seed": seed},
            **{"size": "small", "updates": 10},
            "tests": {"in-domain": {"MPJPE": error / 2}, "cross-dataset": {"MPJPE": error}},
        }
        for name, row, seed, error in kinds
    ]
    assert format_generalisation_compact(results).splitlines()[2:] == [
        "| a, 1 frame | 110.0 | 60.0 (-50.0 %; 1 seed) |",
        "| b, 1 frame | 50.0 (1 seed) | 40.0 (-20.0 %; 1 seed) |",
        "| c, 1 frame | 30.0 (1 seed) | - |",
    ]
    both = format_generalisation_compact(results, in_domain=True).splitlines()[2:]
    assert both[:2] == [
        "| a, 1 frame: cross-dataset | 110.0 | 60.0 (-50.0 %; 1 seed) |",
        "| a, 1 frame: in-domain | 55.0 | 30.0 (-50.0 %; 1 seed) |",
    ]
    shorter = format_generalisation_compact([*results, results[0] | {"updates": 1000}])
    assert shorter.splitlines()[-1] == "| a, 1 frame, small, 1,000 updates | 100.0 (1 seed) | - |"
    noisy = format_generalisation_compact([*results, results[0] | {"noise": 0.01}])
    assert noisy.splitlines()[-1] == "| a, 1 frame, noise 0.01 | 100.0 (1 seed) | - |"


def test_table_of_results() -> None:
    results = [result("none", 0, 90.0), result("none", 1, 110.0), result("hook", 0, 80.0)]
    table = format_table(results)
    assert "| none | 100.0 ± 14.1 | 100.0 ± 14.1 | 50.0 ± 7.1 | 200 |  | 1,000 |" in table
    assert "| hook | 80.0 | 80.0 | 40.0 | 160 | -20.0 % | 1,000 |" in table


def test_changes_are_over_the_seeds_that_both_rows_have() -> None:
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
    hooked = result("hook", 0, 80.0) | {"diagnostics": {"learned": "pitch x 0.71"}}
    assert "* hook: pitch x 0.71." in format_table([hooked]).splitlines()


def test_page_gets_its_table_and_keeps_the_rest(tmp_path: Path) -> None:
    write_results(tmp_path / "r.json", [result("none", 0, 90.0)])
    page = "before\n<!-- table: r.json -->\nold\n<!-- end -->\nafter"
    made = with_tables(page, tmp_path)
    assert "old" not in made
    assert made.startswith("before\n<!-- table: r.json -->\n1 seed(s)")
    assert made.endswith("<!-- end -->\nafter")
    assert with_tables(made, tmp_path) == made
