"""Results files to Markdown tables, so that no figure in README or docs is typed by hand.

    python examples/report.py                     # rewrite the tables in README.md and docs/
    python examples/report.py RESULTS.json        # print one

A page holds its tables between `<!-- table: docs/results/NAME.json -->` and `<!-- end -->`.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from statistics import mean, stdev
from typing import Any

Result = dict[str, Any]


def read_results(path: Path) -> list[Result]:
    """The runs of a results file; none where there is no file."""
    return json.loads(path.read_text()) if path.exists() else []


def write_results(path: Path, results: list[Result]) -> None:
    """Replace a results file in one move, so that an interruption leaves the old one."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(results, indent=1) + "\n")
    partial.replace(path)


def rows_of(results: list[Result]) -> list[str]:
    """The rows' names in their first order."""
    return list(dict.fromkeys(r["row"] for r in results))


def values_of(results: list[Result], row: str, test: str, figure: str) -> list[float]:
    """One figure of a row on a test set, for every seed."""
    return [r["tests"][test][figure] for r in results if r["row"] == row]


def _spread(values: list[float], digits: int = 1) -> str:
    text = f"{mean(values):.{digits}f}"
    return f"{text} ± {stdev(values):.{digits}f}" if len(values) > 1 else text


def format_table(results: list[Result]) -> str:
    """A Markdown table: MPJPE and P-MPJPE in mm, PCK@150 in percent, change against the first row.

    Mean over the seeds, plus-minus their standard deviation.
    """
    if not results:
        return "no finished runs"
    rows = rows_of(results)
    tests = list(results[0]["tests"])
    lines = [
        f"{len({r['seed'] for r in results})} seed(s), {results[0]['epochs']} epochs, batch "
        f"{results[0]['batch']}, last weights; MPJPE and P-MPJPE in mm, PCK@150 mm in %.",
    ]
    for test in tests:
        lines += [
            "",
            f"| {test} | MPJPE | P-MPJPE | PCK | MPJPE against {rows[0]} | samples/s |",
            "|---|---|---|---|---|---|",
        ]
        reference = mean(values_of(results, rows[0], test, "MPJPE"))
        for row in rows:
            mpjpe, p_mpjpe, pck = (
                values_of(results, row, test, figure) for figure in ("MPJPE", "P-MPJPE", "PCK")
            )
            speed = mean([r["samples_per_second"] for r in results if r["row"] == row])
            change = "" if row == rows[0] else f"{100 * (mean(mpjpe) / reference - 1):+.1f} %"
            lines.append(
                f"| {row} | {_spread(mpjpe)} | {_spread(p_mpjpe)} | {_spread(pck)} | {change} "
                f"| {speed:,.0f} |"
            )
    return "\n".join(lines)


def format_steps(results: dict[str, dict[str, float]]) -> str:
    """A Markdown table of what `benchmark_step.py --json` wrote."""
    lines = ["| hooked step | hooked / plain (quartiles) |", "|---|---|"]
    for name, r in results.items():
        lines.append(
            f"| {name} | **{r['ratio']:.2f}** ({r['ratio_low']:.2f} to {r['ratio_high']:.2f}) |"
        )
    return "\n".join(lines)


def table_of(path: Path) -> str:
    """The table that belongs to a results file."""
    results = json.loads(path.read_text())
    return format_table(results) if isinstance(results, list) else format_steps(results)


def with_tables(text: str, root: Path) -> str:
    """A page with its tables made anew from the files that it names."""
    return re.sub(
        r"(<!-- table: (\S+) -->\n).*?(<!-- end -->)",
        lambda m: f"{m[1]}{table_of(root / m[2])}\n{m[3]}",
        text,
        flags=re.DOTALL,
    )


def main() -> None:
    """Print the tables of the files given, or rewrite the project's pages."""
    if len(sys.argv) > 1:
        print("\n\n".join(table_of(Path(name)) for name in sys.argv[1:]))
        return
    root = Path(__file__).resolve().parent.parent
    for page in (root / "README.md", *sorted((root / "docs").glob("*.md"))):
        page.write_text(with_tables(page.read_text(), root))


if __name__ == "__main__":
    main()
