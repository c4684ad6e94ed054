"""Results files to Markdown tables, so that no figure in README or docs is typed by hand.

    python examples/report.py                     # rewrite the tables in README.md and docs/
    python examples/report.py RESULTS.json        # print one

A page holds its tables between `<!-- table: docs/results/NAME.json -->` and `<!-- end -->`; with
`NAME.json compact`, one line per row; with `NAME.json motions`, errors by kind of motion.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from statistics import mean, stdev
from typing import Any

Result = dict[str, Any]

_FACTORS = "pitch, roll, limb angle, bone angle, bone length: times"


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


def _change(value: float, reference: float) -> str:
    return "" if value == reference else f"{100 * (value / reference - 1):+.1f} %"


def _factors(runs: list[Result]) -> str:
    """Means of the learned spread factors; a dash where a policy had no such spread."""
    columns = zip(*(r["spread_factors"] or [] for r in runs), strict=True)
    return ", ".join("-" if c[0] is None else f"{mean(c):.1f}" for c in columns)


def format_table(results: list[Result]) -> str:
    """A Markdown table: MPJPE and P-MPJPE in mm, PCK@150 in percent, changes against two rows.

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
            f"| {test} | MPJPE | P-MPJPE | PCK | "
            + "".join(f"MPJPE against {reference} | " for reference in rows[:2])
            + "samples/s |",
            "|---|---|---|---|" + "---|" * len(rows[:2]) + "---|",
        ]
        for row in rows:
            mpjpe, p_mpjpe, pck = (
                values_of(results, row, test, figure) for figure in ("MPJPE", "P-MPJPE", "PCK")
            )
            speed = mean([r["samples_per_second"] for r in results if r["row"] == row])
            changes = "".join(
                f"{_change(mean(mpjpe), mean(values_of(results, other, test, 'MPJPE')))} | "
                for other in rows[:2]
            )
            errors = f"{_spread(mpjpe)} | {_spread(p_mpjpe)} | {_spread(pck)}"
            lines.append(f"| {row} | {errors} | {changes}{speed:,.0f} |")
    return "\n".join(lines + _what_was_learned(results))


def _what_was_learned(results: list[Result]) -> list[str]:
    """How hard the poses were in the end, and what the spreads were multiplied by; means."""
    lines = []
    for row in rows_of(results):
        runs = [r for r in results if r["row"] == row and r["diagnostics"]]
        if runs:
            hardness = mean(r["diagnostics"]["hardness_ratio"] for r in runs)
            lines.append(f"| {row} | {hardness:.2f} | {_factors(runs) or 'as they are'} |")
    if not lines:
        return []
    return [
        "",
        f"| in the end | error on augmented / on original poses | spread of {_FACTORS} |",
        "|---|---|---|",
        *lines,
    ]


def format_compact(results: list[Result]) -> str:
    """A Markdown table with one line per row: MPJPE / P-MPJPE in mm, and the learned spreads."""
    tests = list(results[0]["tests"])
    lines = [
        f"| {len({r['seed'] for r in results})} seed(s), {results[0]['epochs']} epochs | "
        f"{' | '.join(tests)} | hardness | {_FACTORS} |",
        "|---" * (len(tests) + 3) + "|",
    ]
    for row in rows_of(results):
        runs = [r for r in results if r["row"] == row]
        errors = (
            " / ".join(f"{mean(values_of(results, row, t, f)):.1f}" for f in ("MPJPE", "P-MPJPE"))
            for t in tests
        )
        hardness = ""
        if runs[0]["diagnostics"]:
            hardness = f"{mean(r['diagnostics']['hardness_ratio'] for r in runs):.2f}"
        lines.append(f"| {row} | {' | '.join(errors)} | {hardness} | {_factors(runs)} |")
    return "\n".join(lines)


def format_generalisation(results: list[Result]) -> str:
    """A Markdown table per estimator of what `benchmark_generalisation.py` wrote.

    Errors in mm, mean over the seeds, plus-minus their standard deviation; the change against the
    first two rows' MPJPE. The last columns are the cross-dataset MPJPE by kind of camera.
    """
    if not results:
        return "no finished runs"
    kinds = dict.fromkeys((r["estimator"], r["frames"]) for r in results)
    tables = []
    for name, frames in kinds:
        chosen = [r for r in results if (r["estimator"], r["frames"]) == (name, frames)]
        tables.append(_generalisation_of(chosen, f"{name}, {frames} frame{'s'[: frames > 1]}"))
    return "\n\n".join(tables)


def _generalisation_of(results: list[Result], title: str) -> str:
    tests, first = list(results[0]["tests"]), results[0]
    hardest = tests[min(1, len(tests) - 1)]
    groups = list(first["tests"][hardest]["by camera"])
    moving = first["frames"] > 1
    # N-MPJPE came later: old files have none.
    known = all("N-MPJPE" in test for r in results for test in r["tests"].values())
    figures = ("MPJPE", *["N-MPJPE"] * known, "P-MPJPE", *["MPJVE"] * moving)
    references = rows_of(results)[:2]
    most = max(len([r for r in results if r["row"] == row]) for row in rows_of(results))
    head = [f"{test}: {' / '.join(figures)}" for test in tests]
    cameras = first.get("train_cameras", "source")
    trained_through = "" if cameras == "source" else f", trained through {cameras} cameras"
    lines = [
        f"{title} ({first['size']} size), {len({r['seed'] for r in results})} seed(s), "
        f"{first['updates']} updates of {first['batch']}{trained_through}; mm.",
        "",
        f"| | {' | '.join(head)} | {hardest}, against {' / '.join(references)} | "
        f"{' | '.join(groups)} | {_FACTORS} |",
        "|---" * (len(tests) + len(groups) + 3) + "|",
    ]
    for row in rows_of(results):
        cells = []
        for test in tests:
            columns = (values_of(results, row, test, figure) for figure in figures)
            cells.append(" / ".join(_spread(values) for values in columns))
        change = " / ".join(_paired_change(results, row, o, hardest) or "-" for o in references)
        runs = [r for r in results if r["row"] == row]
        by_group = (
            f"{mean(r['tests'][hardest]['by camera'][g] for r in runs):.0f}" for g in groups
        )
        told = len(runs) in range(1, max(2, most))
        seeds = f" ({len(runs)} seed{'s'[: len(runs) > 1]})" if told else ""
        lines.append(
            f"| {row}{seeds} | {' | '.join(cells)} | {change} | {' | '.join(by_group)} | "
            f"{_factors(runs)} |"
        )
    return "\n".join(lines)


def _paired_change(results: list[Result], row: str, reference: str, test: str) -> str:
    """Of a row's MPJPE against another's, over the seeds that both have: seeds differ."""
    errors = {
        name: {r["seed"]: r["tests"][test]["MPJPE"] for r in results if r["row"] == name}
        for name in (row, reference)
    }
    both = errors[row].keys() & errors[reference].keys()
    if not both:
        return ""
    return _change(*(mean(errors[name][seed] for seed in both) for name in (row, reference)))


def format_steps_compact(rows: list[Result]) -> str:
    """The default and append alone, one line per estimator."""
    steps = [r for r in rows if r["section"] == "steps"]
    cases = list(dict.fromkeys(r["case"] for r in steps))[:2]
    lines = [
        f"| hooked step / plain step | {' | '.join(cases)} |",
        "|---" * (len(cases) + 1) + "|",
    ]
    for name in dict.fromkeys(r["estimator"] for r in steps):
        found = {r["case"]: r["ratio"] for r in steps if r["estimator"] == name}
        lines.append(f"| {name} | {' | '.join(f'{found[c]:.2f}' for c in cases)} |")
    return "\n".join(lines)


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines).replace("| --- ", "|---")


def format_steps(rows: list[Result]) -> str:
    """Markdown tables of what `benchmark_step.py --json` wrote."""
    machine = next(r for r in rows if r["section"] == "machine")

    def of(section: str) -> list[Result]:
        return [r for r in rows if r["section"] == section]

    tables = [f"{machine['device']}, batch {machine['batch']}, torch {machine['torch']}."]
    if of("steps"):
        tables.append(_step_ratios(of("steps"), of("released")))
    if of("steps") and "CPU" not in machine["device"]:
        tables.append(_samples_per_second(of("steps")))
    if of("memory"):
        tables.append(_peak_memory(of("memory")))
    if of("communication"):
        head = "all-reduced per step and rank, MiB", "the hook's, with critics / without"
        cells = [
            [
                r["estimator"],
                f"{r['hook_with_critics_mib']:.1f} / {r['hook_mib']:.1f}",
                f"{r['estimator_mib']:.1f}",
            ]
            for r in of("communication")
        ]
        tables.append(_table([*head, "the estimator's own"], cells))
    if of("operators"):
        head = "operators of a step", "the estimator's, its loss and optimizer", "the hook's"
        columns = ("plain", "hook", "predicted", "in_turn", "random")
        cells = [[r["estimator"], *(f"{r[key]:.0f}" for key in columns)] for r in of("operators")]
        added = "with predicted feedback", "with `policy_interval=2`", "random augmentation's"
        tables.append(_table([*head, *added], cells))
    if of("shared"):
        head = "gradient taken from the user's own backward pass", "cosine with an isolated pass's"
        cells = [[r["estimator"], f"{r['cosine']:.2f}", f"{r['ratio']:.2f}"] for r in of("shared")]
        tables.append(_table([*head, "step that asks for it / plain step"], cells))
    for section, label in (("batches", "batch"), ("windows", "frames")):
        chosen = of(section)
        if chosen:
            times = ["hook alone, ms", *(f"{r['hook_ms']:.3g}" for r in chosen)]
            shares = ["µs per frame", *(f"{r['us_per_frame']:.1f}" for r in chosen)]
            tables.append(_table([label, *(str(r[label]) for r in chosen)], [times, shares]))
    return "\n\n".join(tables)


def _step_ratios(steps: list[Result], released: list[Result]) -> str:
    """The hooked step over the plain one, and beside it what is known of `released`."""
    cases = list(dict.fromkeys(r["case"] for r in steps))
    over_ours = {r["estimator"]: f"{r['ratio']:.2f}" for r in released}
    lines = []
    for name in dict.fromkeys(r["estimator"] for r in steps):
        found = {r["case"]: r for r in steps if r["estimator"] == name}
        cells = [
            f"**{found[c]['ratio']:.2f}** ({found[c]['low']:.2f} to {found[c]['high']:.2f})"
            for c in cases
        ]
        lines.append([name, *cells, *([over_ours.get(name, "")] if released else [])])
    beside = ["released iteration / append"] if released else []
    return _table(["hooked step / plain step (quartiles)", *cases, *beside], lines)


def _peak_memory(rows: list[Result]) -> str:
    """The plain step's on 2B, and how much of it appending takes."""
    cases = list(dict.fromkeys(r["case"] for r in rows))
    lines = []
    for name in dict.fromkeys(r["estimator"] for r in rows):
        found = {r["case"]: r for r in rows if r["estimator"] == name}
        cells = [f"**{found[c]['ratio']:.2f}** ({found[c]['hooked_mib']:,.0f})" for c in cases]
        lines.append([name, f"{found[cases[0]]['plain_mib']:,.0f}", *cells])
    head = "peak memory, over the plain step's on 2B (MiB)", "plain step on 2B, MiB"
    return _table([*head, *cases], lines)


def _samples_per_second(steps: list[Result]) -> str:
    """Thousands of samples that the estimator learns from, augmented ones included."""
    cases = list(dict.fromkeys(r["case"] for r in steps))
    lines = []
    for name in dict.fromkeys(r["estimator"] for r in steps):
        found = {r["case"]: r for r in steps if r["estimator"] == name}
        cells = [
            f"{found[c]['samples'] / found[c]['plain_ms']:.0f} / "
            f"{found[c]['samples'] / found[c]['hooked_ms']:.0f}"
            for c in cases
        ]
        lines.append([name, *cells])
    return _table(["thousand samples/s, plain / hooked", *cases], lines)


def format_generalisation_compact(results: list[Result]) -> str:
    """One line per estimator: the second test's MPJPE and its change against the first row.

    Of the rows that every estimator has; the change is over the seeds that both rows have. Who has
    fewer seeds than the table's most says so.
    """
    test = list(results[0]["tests"])[1]
    most = len({r["seed"] for r in results})
    kinds = {(r["estimator"], r["frames"]) for r in results}
    rows = [
        row
        for row in rows_of(results)
        if {(r["estimator"], r["frames"]) for r in results if r["row"] == row} == kinds
    ]
    lines = [
        f"| {test} MPJPE, mm, mean of seeds | {' | '.join(rows)} |",
        "|---" * (len(rows) + 1) + "|",
    ]
    for name, frames in dict.fromkeys((r["estimator"], r["frames"]) for r in results):
        chosen = [r for r in results if (r["estimator"], r["frames"]) == (name, frames)]
        cells = []
        for row in rows:
            errors = values_of(chosen, row, test, "MPJPE")
            told = f"{len(errors)} seed{'s'[: len(errors) > 1]}" if len(errors) < most else ""
            notes = "; ".join(filter(None, (_paired_change(chosen, row, rows[0], test), told)))
            cells.append(f"{mean(errors):.1f} ({notes})" if notes else f"{mean(errors):.1f}")
        lines.append(f"| {name}, {frames} frame{'s'[: frames > 1]} | {' | '.join(cells)} |")
    return "\n".join(lines)


def format_motions(results: list[Result]) -> str:
    """Errors by kind of motion on the last two tests: the first three rows, mean of seeds."""
    tables = []
    rows = rows_of(results)[:3]
    names = list(dict.fromkeys(r["estimator"] for r in results))
    for test in list(results[0]["tests"])[1:]:
        kinds = list(results[0]["tests"][test]["by motion"])
        lines = [
            f"{test}, MPJPE in mm: {' / '.join(rows)}",
            "",
            f"| | {' | '.join(names)} |",
            "|---" * (len(names) + 1) + "|",
        ]
        for kind in kinds:
            cells = []
            for name in names:
                runs = [r for r in results if r["estimator"] == name]
                errors = (
                    [r["tests"][test]["by motion"][kind] for r in runs if r["row"] == row]
                    for row in rows
                )
                cells.append(" / ".join(f"{mean(e):.0f}" if e else "" for e in errors))
            lines.append(f"| {kind} | {' | '.join(cells)} |")
        tables.append("\n".join(lines))
    return "\n\n".join(tables)


def format_diversity(results: list[Result]) -> str:
    """Two Markdown tables of what `diversity.py` wrote: how diverse the poses are, and how human.

    Coverage in mm, spreads as standard deviations.
    """
    units = {"depth": "m"}
    spread = [f"{name}, {units.get(name, 'degrees')}" for name in results[0]["spread"]]
    diverse = [
        "| | nearest to a target pose as seen, mm | pose alone, mm | "
        f"spread of {' | '.join(spread)} |",
        "|---" * (len(spread) + 3) + "|",
    ]
    human = [
        "| | outside what real joints do, % | of that knees backwards, % | critic's score |",
        "|---|---|---|---|",
    ]
    for r in results:
        near = (f"{r[kind]:.1f}" if kind in r else "-" for kind in ("as seen", "pose alone"))
        widths = (f"{r['spread'][name]:.{2 if name in units else 1}f}" for name in r["spread"])
        diverse.append(f"| {r['set']} | {' | '.join(near)} | {' | '.join(widths)} |")
        human.append(
            f"| {r['set']} | {r['implausible']:.1f} | {r['knees backwards']:.1f} | "
            f"{r['critic score']:.2f} |"
        )
    return "\n".join([f"{results[0]['poses']:,} poses of every set.", "", *diverse, "", *human])


def table_of(path: Path, kind: str = "") -> str:
    """The table that belongs to a results file; ``kind`` is empty, "compact" or "motions"."""
    results = json.loads(path.read_text())
    compact = kind == "compact"
    if not isinstance(results, list):
        return (format_steps_compact if compact else format_steps)(results["steps"])
    if kind == "motions":
        return format_motions(results)
    if results and "set" in results[0]:
        return format_diversity(results)
    if results and "estimator" in results[0]:
        return (format_generalisation_compact if compact else format_generalisation)(results)
    return format_compact(results) if compact else format_table(results)


def with_tables(text: str, root: Path) -> str:
    """A page with its tables made anew from the files that it names."""
    return re.sub(
        r"(<!-- table: (\S+)(?: (compact|motions))? -->\n).*?(<!-- end -->)",
        lambda m: f"{m[1]}{table_of(root / m[2], m[3] or '')}\n{m[4]}",
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
