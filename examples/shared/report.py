"""Markdown tables from results files: no figure in README or docs is typed by hand.

    python examples/shared/report.py                     # rewrite the tables in README.md and docs/
    python examples/shared/report.py RESULTS.json        # print one

A page has its tables between `<!-- table: docs/results/NAME.json -->` and `<!-- end -->`; with
`NAME.json compact`, one line per estimator, with `both` one for each of two tests.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from poseaug_plugin import AugmentationPolicy, PoseAugHook

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # where it is run as a script
from shared.files import FileError, write_whole

Result = dict[str, Any]

_FACTORS = "pitch, roll, limb angle, bone angle, bone length: times"


def read_results(path: Path) -> list[Result]:
    """Read the runs of a results file; an empty list where there is none."""
    try:
        return json.loads(path.read_text()) if path.exists() else []
    except ValueError as problem:
        raise FileError(f"{path}: expected results as JSON ({problem}). Remove it.") from None


def write_results(path: Path, results: list[Result]) -> None:
    """Replace a results file in one move: after an interruption the old one is whole."""
    write_whole(path, lambda partial: partial.write_text(json.dumps(results, indent=1) + "\n"))


def of_hook(hook: PoseAugHook | None) -> Result:
    """What a hook has learned, as a part of a result."""
    policy = None if hook is None else hook.policy
    learned = isinstance(policy, AugmentationPolicy)
    return {
        "diagnostics": None if hook is None else hook.diagnostics()._asdict(),
        "spread_factors": policy.log_spread_factors().exp().tolist() if learned else None,
    }


def rows_of(results: list[Result]) -> list[str]:
    """Names of the rows, in order of first appearance."""
    return list(dict.fromkeys(r["row"] for r in results))


def values_of(results: list[Result], row: str, test: str, figure: str) -> list[float]:
    """Values of one metric of a row on a test set, one per seed."""
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
    """Make the table of `quickstart.py`: errors in mm, means over the seeds, and speed."""
    if not results:
        return "no finished runs"
    rows, (home, away) = rows_of(results), list(results[0]["tests"])[:2]
    groups = list(results[0]["tests"][away]["by camera"])
    lines = [
        f"{len({r['seed'] for r in results})} seed(s), {results[0]['epochs']} epochs of batches of "
        f"{results[0]['batch']}, last weights; mm.",
        "",
        f"| | {home}: MPJPE | {away}: MPJPE | P-MPJPE | "
        + "".join(f"{group} | " for group in groups)
        + f"MPJPE against {rows[0]} | samples/s |",
        "|---" * (6 + len(groups)) + "|",
    ]
    for row in rows:
        runs = [r for r in results if r["row"] == row]
        at_home, mpjpe, p_mpjpe = (
            values_of(results, row, test, figure)
            for test, figure in ((home, "MPJPE"), (away, "MPJPE"), (away, "P-MPJPE"))
        )
        by_group = (mean(r["tests"][away]["by camera"][group] for r in runs) for group in groups)
        change = _change(mean(mpjpe), mean(values_of(results, rows[0], away, "MPJPE")))
        speed = mean(r["samples_per_second"] for r in runs)
        lines.append(
            f"| {row} | {' | '.join(map(_spread, (at_home, mpjpe, p_mpjpe)))} | "
            f"{' | '.join(f'{error:.0f}' for error in by_group)} | {change} | {speed:,.0f} |"
        )
    return "\n".join(lines + _what_was_learned(results))


def _what_was_learned(results: list[Result]) -> list[str]:
    """What the first seed of each row says that it has learned."""
    learned = {r["row"]: r["diagnostics"]["learned"] for r in reversed(results) if r["diagnostics"]}
    return ["", *(f"* {row}: {learned[row]}." for row in rows_of(results) if row in learned)]


def format_generalisation(results: list[Result]) -> str:
    """Make a table per estimator from the file of `generalisation.py`.

    Errors in mm, means over the seeds, plus-minus their standard deviation; changes against the
    MPJPE of the first two rows. The last columns are the cross-dataset MPJPE by kind of camera.
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
    figures = ("MPJPE", "N-MPJPE", "P-MPJPE", *["MPJVE"] * moving)
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
    """Change of a row's MPJPE against another's, over the seeds that both have."""
    errors = {
        name: {r["seed"]: r["tests"][test]["MPJPE"] for r in results if r["row"] == name}
        for name in (row, reference)
    }
    both = errors[row].keys() & errors[reference].keys()
    if not both:
        return ""
    return _change(*(mean(errors[name][seed] for seed in both) for name in (row, reference)))


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines).replace("| --- ", "|---")


def _by_case(head: str, rows: list[Result], cell: Callable[[Result], str]) -> str:
    """A line per estimator and a column per case."""
    cases = list(dict.fromkeys(r["case"] for r in rows))
    cells: dict[str, dict[str, str]] = {}
    for r in rows:
        cells.setdefault(r["estimator"], {})[r["case"]] = cell(r)
    lines = [[name, *(found.get(case, "") for case in cases)] for name, found in cells.items()]
    return _table([head, *cases], lines)


def format_steps_compact(rows: list[Result]) -> str:
    """Make a table of the first two cases of `step.py`."""
    steps = [r for r in rows if r["section"] == "steps"]
    cases = list(dict.fromkeys(r["case"] for r in steps))[:2]
    chosen = [r for r in steps if r["case"] in cases]
    return _by_case("hooked step / plain step", chosen, lambda r: f"{r['ratio']:.2f}")


def format_steps(rows: list[Result]) -> str:
    """Make the tables of `step.py`."""
    machine = next(r for r in rows if r["section"] == "machine")

    def of(section: str) -> list[Result]:
        return [r for r in rows if r["section"] == section]

    size = machine.get("size", "published")
    tables = [
        f"{machine['device']}, {size} size, batch {machine['batch']}, torch {machine['torch']}."
    ]
    if of("steps"):
        head = "hooked step / plain step (quartiles)"
        tables.append(_by_case(head, of("steps") + of("released"), _step_ratio))
    if of("steps") and "CPU" not in machine["device"]:
        head = "thousand samples/s, plain / hooked"
        tables.append(_by_case(head, of("steps"), _samples_per_second))
    if of("memory"):
        head = "peak memory / the plain step's on 2B (MiB)"
        tables.append(_by_case(head, of("memory"), _peak_memory))
    if of("communication"):
        titles = "all-reduced per step and rank, MiB", "the hook's, with critics / without"
        cells = [
            [
                r["estimator"],
                f"{r['hook_with_critics_mib']:.1f} / {r['hook_mib']:.1f}",
                f"{r['estimator_mib']:.1f}",
            ]
            for r in of("communication")
        ]
        tables.append(_table([*titles, "the estimator's own"], cells))
    if of("operators"):
        added = [key for key in of("operators")[0] if key not in ("section", "estimator", "plain")]
        titles = "operators of a step", "estimator, loss, optimizer"
        cells = [
            [r["estimator"], *(f"{r[key]:.0f}" for key in ("plain", *added))]
            for r in of("operators")
        ]
        tables.append(_table([*titles, *(f"+ {key}" for key in added)], cells))
    for section, label in (("batches", "batch"), ("windows", "frames")):
        chosen = of(section)
        if chosen:
            times = ["hook alone, ms", *(f"{r['hook_ms']:.3g}" for r in chosen)]
            shares = ["µs per frame", *(f"{r['us_per_frame']:.1f}" for r in chosen)]
            tables.append(_table([label, *(str(r[label]) for r in chosen)], [times, shares]))
    return "\n\n".join(tables)


def _step_ratio(r: Result) -> str:
    if "low" not in r:  # of the released code
        return f"{r['ratio']:.2f}"
    return f"**{r['ratio']:.2f}** ({r['low']:.2f} to {r['high']:.2f})"


def _samples_per_second(r: Result) -> str:
    """Samples that the estimator learns from, augmented ones included."""
    return f"{r['samples'] / r['plain_ms']:.0f} / {r['samples'] / r['hooked_ms']:.0f}"


def _peak_memory(r: Result) -> str:
    return f"**{r['ratio']:.2f}** ({r['hooked_mib']:,.0f} / {r['plain_mib']:,.0f})"


def format_generalisation_compact(results: list[Result], in_domain: bool = False) -> str:
    """Make a line per estimator: MPJPE of the second test, and its change against the first row.

    With ``in_domain`` also a line of the first test, and rows that are told what nobody knows.
    Changes over the seeds that both rows have. A cell with fewer seeds than the others says so, one
    with none is a dash.
    """
    tests = list(results[0]["tests"])[0 if in_domain else 1 : 2]
    most = len({r["seed"] for r in results})
    rows = [row for row in rows_of(results) if in_domain or not row.startswith("told")]

    def kind_of(r: Result) -> tuple[Any, ...]:
        return r["estimator"], r["frames"], r["size"], r["updates"], r.get("noise", 0.0)

    kinds = list(dict.fromkeys(map(kind_of, results)))
    varies = len({kind[2:4] for kind in kinds}) > 1
    head = "" if in_domain else f"{tests[0]} "
    lines = [
        f"| {head}MPJPE, mm, mean of seeds | {' | '.join(rows)} |",
        "|---" * (len(rows) + 1) + "|",
    ]
    for kind, test in [(kind, test) for kind in kinds for test in reversed(tests)]:
        chosen = [r for r in results if kind_of(r) == kind]
        cells = []
        for row in rows:
            errors = values_of(chosen, row, test, "MPJPE")
            if not errors:
                cells.append("-")
                continue
            told = f"{len(errors)} seed{'s'[: len(errors) > 1]}" if len(errors) < most else ""
            notes = "; ".join(filter(None, (_paired_change(chosen, row, rows[0], test), told)))
            cells.append(f"{mean(errors):.1f} ({notes})" if notes else f"{mean(errors):.1f}")
        name, frames, size, updates, noise = kind
        label = f"{name}, {frames} frame{'s'[: frames > 1]}"
        label += f", {size}, {updates:,} updates" if varies else ""
        label += f", noise {noise:g}" if noise else ""
        label += f": {test}" if in_domain else ""
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(lines)


def format_diversity(results: list[Result]) -> str:
    """Make the tables of `diversity.py`: how diverse the poses are, and how human.

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
    """Make the table of a results file, or a short one, ``"compact"`` or ``"both"`` tests."""
    results = json.loads(path.read_text())
    if not isinstance(results, list):
        return (format_steps_compact if kind else format_steps)(results["steps"])
    if results and "set" in results[0]:
        return format_diversity(results)
    if results and "estimator" in results[0]:
        if kind:
            return format_generalisation_compact(results, in_domain=kind == "both")
        return format_generalisation(results)
    return format_table(results)


def with_tables(text: str, root: Path) -> str:
    """Make the tables of a page anew, from the files that it names."""
    return re.sub(
        r"(<!-- table: (\S+) ?(compact|both)? -->\n).*?(<!-- end -->)",
        lambda m: f"{m[1]}{table_of(root / m[2], m[3] or '')}\n{m[4]}",
        text,
        flags=re.DOTALL,
    )


def main() -> None:
    """Print the tables of the files given, or rewrite the project's pages."""
    if len(sys.argv) > 1:
        print("\n\n".join(table_of(Path(name)) for name in sys.argv[1:]))
        return
    root = Path(__file__).resolve().parents[2]
    for page in (root / "README.md", *sorted((root / "docs").glob("*.md"))):
        page.write_text(with_tables(page.read_text(), root))


if __name__ == "__main__":
    main()
