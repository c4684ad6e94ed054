"""Pictures of the results of `generalisation.py`: errors by kind of camera, bodies found out.

python examples/benchmarks/generalisation_figure.py docs/results/generalisation.json PICTURE.png
python examples/benchmarks/generalisation_figure.py docs/results/generalisation.json B.png bodies
"""

from __future__ import annotations

import sys
from pathlib import Path
from statistics import mean

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from shared.figures import AFTER, plt
from shared.report import Result, read_results, rows_of

from poseaug_plugin.body.presets import H36M_16

_COLOURS = {
    "none": "#c9ced2",
    "random, tuned": "#7d8b95",
    "default": "#e7a3ac",
    "closed loop": AFTER,
    "told bodies and cameras": "#2f2f2f",
}


def draw_generalisation(path: Path, results: list[Result]) -> None:
    """Draw the MPJPE of the second test, of all frames and by kind of camera.

    A panel per estimator. A dot is the mean of the seeds, its line their range.

    Args:
        path: PNG to write.
        results: Finished runs.
    """
    test = list(results[0]["tests"])[1]
    groups = ["all", *results[0]["tests"][test]["by camera"]]
    kinds = list(dict.fromkeys((r["estimator"], r["frames"]) for r in results))
    rows = [row for row in rows_of(results) if row in _COLOURS] or rows_of(results)[:4]
    size = (3.2 * len(kinds) + 1, 0.8 * len(groups) + 1)
    figure, panels = plt.subplots(1, len(kinds), figsize=size, sharey=True, squeeze=False)
    for axes, (name, frames) in zip(panels[0], kinds, strict=True):
        for i, row in enumerate(rows):
            chosen = [r for r in results if (r["estimator"], r["frames"]) == (name, frames)]
            tests = [r["tests"][test] for r in chosen if r["row"] == row]
            columns = [[t["MPJPE"], *t["by camera"].values()] for t in tests]
            for place, errors in enumerate(zip(*columns, strict=True)):
                style = {"color": _COLOURS.get(row, AFTER), "label": row if place == 0 else None}
                height = place + (i - (len(rows) - 1) / 2) * 0.6 / len(rows)
                axes.plot([min(errors), max(errors)], [height] * 2, color=style["color"])
                axes.plot(mean(errors), height, "o", **style)
        axes.set(title=f"{name}, {frames} frame{'s'[: frames > 1]}", xlabel="MPJPE, mm")
        axes.set_yticks(range(len(groups)), groups)
        axes.grid(axis="x", alpha=0.3)
    panels[0][0].invert_yaxis()
    panels[0][0].set_ylabel(f"{test}, camera")
    found = [axes.get_legend_handles_labels() for axes in panels[0]]
    handles = {label: h for hs, labels in found for h, label in zip(hs, labels, strict=True)}
    shown = [row for row in rows if row in handles]  # no estimator has to have all
    figure.legend(
        [handles[row] for row in shown], shown, loc="upper center", ncols=len(rows), frameon=False
    )
    figure.tight_layout(rect=(0, 0, 1, 0.93))
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw_bodies(path: Path, results: list[Result]) -> None:
    """Draw what closed loops believe of the bones there, over the training, and what is true.

    Args:
        path: PNG to write.
        results: Finished runs; of each estimator the first with a closed loop is drawn.
    """
    runs = {r["estimator"]: r for r in reversed(results) if "bone_ratios" in r}
    names = dict(zip(H36M_16.bone_length_groups, H36M_16.bone_children, strict=True))
    figure, panels = plt.subplots(
        1, len(runs), figsize=(4.6 * len(runs), 4), sharey=True, squeeze=False
    )
    for axes, (estimator, run) in zip(panels[0], sorted(runs.items()), strict=True):
        *found, true = run["bone_ratios"]
        updates = [0, *(f["updates"] for f in found)]
        for group, child in sorted(names.items()):
            name = H36M_16.joints[child].removeprefix("right_").removeprefix("left_")
            believed = [1.0, *(f["ratios"][group] for f in found)]
            (line,) = axes.plot(updates, believed, label=name)
            axes.plot(updates[-1] * 1.04, true["ratios"][group], "<", color=line.get_color())
        axes.set(title=estimator, xlabel="updates (at the right: true)")
        axes.grid(axis="y", alpha=0.3)
    panels[0][0].set_ylabel("bone length there / of the training's people")
    panels[0][-1].legend(
        title="bone that leads to", loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False
    )
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    draw = draw_bodies if "bodies" in sys.argv[3:] else draw_generalisation
    draw(Path(sys.argv[2]), read_results(Path(sys.argv[1])))
