"""Pictures: poses before and after with where they are seen from; errors by kind of camera.

    python examples/figures.py docs/results/generalisation.json docs/generalisation.png

draws what `benchmark_generalisation.py` wrote; the quickstart draws its own.
"""

from __future__ import annotations

import sys
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import matplotlib
import numpy as np
import torch
from numpy.typing import NDArray
from report import Result, read_results, rows_of, values_of
from torch import Tensor

from poseaug_plugin import H36M_16, PoseAugHook

matplotlib.use("Agg")
from matplotlib import pyplot as plt

Array = NDArray[np.float64]

BEFORE, AFTER = "#5b6770", "#d1495b"
_COLOURS = {
    "none": "#c9ced2",
    "released": "#8fb3cf",
    "random, tuned": "#7d8b95",
    "default": AFTER,
}
_SIDES = {"left": "#1f77b4", "right": "#e08e0b", "": "#5b6770"}


def _absolute(inputs_3d: Tensor) -> Array:
    """(N, 1, J, 3) with the trajectory in joint 0 to (N, J, 3) absolute metres."""
    joints = inputs_3d[:, 0].double().cpu().numpy().copy()
    joints[:, 1:] += joints[:, :1]
    return joints


def _viewpoints(joints: Array) -> tuple[Array, Array]:
    """Azimuth and elevation, degrees, from which the camera sees each body; 0, 0 is frontal."""
    index = {name: i for i, name in enumerate(H36M_16.joints)}

    def unit(v: Array) -> Array:
        return v / np.linalg.norm(v, axis=-1, keepdims=True)

    up = unit(joints[:, index["thorax"]] - joints[:, index["hip"]])
    left = joints[:, index["left_hip"]] - joints[:, index["right_hip"]]
    left = unit(left - (left * up).sum(-1, keepdims=True) * up)
    front = np.cross(left, up)
    to_camera = unit(-joints[:, index["hip"]])
    azimuth = np.arctan2((to_camera * left).sum(-1), (to_camera * front).sum(-1))
    elevation = np.arcsin(np.clip((to_camera * up).sum(-1), -1, 1))
    return np.degrees(azimuth), np.degrees(elevation)


def _bones() -> list[tuple[int, int, str]]:
    bones = []
    for child, parent in zip(H36M_16.bone_children, H36M_16.bone_parents, strict=True):
        side = H36M_16.joints[child].partition("_")[0]
        bones.append((child, parent, _SIDES.get(side, _SIDES[""])))
    return bones


def draw_pose_3d(axes: Any, joints: Array, title: str) -> None:
    """(J, 3) camera-space metres, about the root."""
    # Camera space has y down and z forward; matplotlib wants z up.
    points = (joints - joints[0])[:, [0, 2, 1]] * [1, 1, -1]
    for child, parent, colour in _bones():
        axes.plot(*points[[child, parent]].T, color=colour, linewidth=2)
    axes.set(xlim=(-0.8, 0.8), ylim=(-0.8, 0.8), zlim=(-1, 0.8))
    axes.set_box_aspect((1.6, 1.6, 1.8))
    axes.view_init(elev=12, azim=-70)
    axes.set_xticklabels([])
    axes.set_yticklabels([])
    axes.set_zticklabels([])
    axes.set_title(title, fontsize=9)


def draw_pose_2d(axes: Any, keypoints: Array, title: str) -> None:
    """(J, 2) in the frame of the normalised screen."""
    for child, parent, colour in _bones():
        axes.plot(*keypoints[[child, parent]].T, color=colour, linewidth=2)
    axes.set(xlim=(-1, 1), ylim=(1, -1), aspect="equal", xticks=[], yticks=[])
    axes.set_title(title, fontsize=9)


def _draw_errors(axes: Any, results: list[Result]) -> None:
    rows, tests = rows_of(results), list(results[0]["tests"])
    width = 0.8 / len(rows)
    for i, row in enumerate(rows):
        values = [values_of(results, row, test, "MPJPE") for test in tests]
        axes.bar(
            np.arange(len(tests)) + (i - (len(rows) - 1) / 2) * width,
            [mean(v) for v in values],
            width,
            yerr=[stdev(v) if len(v) > 1 else 0 for v in values],
            capsize=3 if len(values[0]) > 1 else 0,
            label=row,
            color=("#c9ced2", "#7d8b95", AFTER)[i % 3],
        )
    axes.set_xticks(range(len(tests)), [t.replace(", ", ",\n") for t in tests], fontsize=8)
    axes.set_ylabel("MPJPE, mm")
    seeds = len({r["seed"] for r in results})
    axes.set_title(f"error, mean of {seeds} seeds" if seeds > 1 else "error, one seed", fontsize=9)
    axes.set_ylim(0, 1.3 * axes.get_ylim()[1])
    axes.legend(fontsize=7, frameon=False, loc="upper left")


@torch.no_grad()
def draw_overview(
    path: Path,
    results: list[Result],
    hook: PoseAugHook,
    inputs_2d: Tensor,
    inputs_3d: Tensor,
    cameras: Tensor,
) -> None:
    """Augment a batch with a trained hook and draw it beside the original, with the results.

    Args:
        path: PNG to write.
        results: Finished runs.
        hook: Its policy draws.
        inputs_2d: (N, 1, J, 2).
        inputs_3d: (N, 1, J, 3), the trajectory in joint 0.
        cameras: (N, 9).
    """
    new_2d, new_3d = hook.augment(inputs_2d, inputs_3d, cameras)
    changed = (new_3d != inputs_3d).flatten(1).any(1).nonzero().flatten()
    shown = changed[torch.linspace(0, len(changed) - 1, 3).long()]
    before, after = _absolute(inputs_3d[changed]), _absolute(new_3d[changed])

    figure = plt.figure(figsize=(13, 8.2), layout="constrained")
    grid = figure.add_gridspec(3, 12, height_ratios=[1, 1, 1.15])
    for column, index in enumerate(shown.tolist()):
        for row, (keypoints, joints, name) in enumerate(
            ((inputs_2d, inputs_3d, "original"), (new_2d, new_3d, "augmented"))
        ):
            draw_pose_3d(
                figure.add_subplot(grid[row, 4 * column : 4 * column + 2], projection="3d"),
                _absolute(joints[index : index + 1])[0],
                f"{name}, 3D",
            )
            draw_pose_2d(
                figure.add_subplot(grid[row, 4 * column + 2 : 4 * column + 4]),
                keypoints[index, 0].cpu().numpy(),
                f"{name}, 2D",
            )
    views = figure.add_subplot(grid[2, :4])
    for joints, colour, name in ((before, BEFORE, "original"), (after, AFTER, "augmented")):
        views.scatter(*_viewpoints(joints), s=4, color=colour, alpha=0.5, label=name, linewidths=0)
    views.set(
        xlim=(-180, 180), ylim=(-90, 90), xlabel="azimuth, degrees", ylabel="elevation, degrees"
    )
    views.set_xticks([-180, -90, 0, 90, 180])
    views.set_title("where the camera stands, seen from the body", fontsize=9)
    views.legend(fontsize=7, frameon=False, markerscale=3)
    places = figure.add_subplot(grid[2, 4:8])
    for joints, colour in ((before, BEFORE), (after, AFTER)):
        places.scatter(joints[:, 0, 0], joints[:, 0, 2], s=4, color=colour, alpha=0.5, linewidths=0)
    places.set(xlabel="x, metres", ylabel="depth, metres")
    places.set_title("where the root stands, seen from above", fontsize=9)
    _draw_errors(figure.add_subplot(grid[2, 8:]), results)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw_generalisation(path: Path, results: list[Result]) -> None:
    """MPJPE on the second test, in all and by kind of camera; a panel per estimator.

    A bar taller than any of the first row by a fifth is cut there, with its height written on it.

    Args:
        path: PNG to write.
        results: Finished runs.
    """
    test = list(results[0]["tests"])[1]
    groups = list(results[0]["tests"][test]["by camera"])
    kinds = list(dict.fromkeys((r["estimator"], r["frames"]) for r in results))
    rows = [row for row in rows_of(results) if row in _COLOURS] or rows_of(results)[:4]
    figure, panels = plt.subplots(
        1, len(kinds), figsize=(3.4 * len(kinds) + 0.6, 3.4), sharey=True, squeeze=False
    )
    first = [r["tests"][test]["by camera"].values() for r in results if r["row"] == rows[0]]
    highest = 1.2 * max(max(values) for values in first)
    panels[0][0].set_ylim(0, highest)
    width = 0.8 / len(rows)
    for axes, (name, frames) in zip(panels[0], kinds, strict=True):
        for i, row in enumerate(rows):
            runs = [
                r["tests"][test]
                for r in results
                if (r["estimator"], r["frames"], r["row"]) == (name, frames, row)
            ]
            if not runs:
                continue
            columns = [[t["MPJPE"] for t in runs]]
            columns += [[t["by camera"][group] for t in runs] for group in groups]
            places = np.arange(len(columns)) + (i - (len(rows) - 1) / 2) * width
            heights = [mean(column) for column in columns]
            for place, height in zip(places, heights, strict=True):
                if height > highest:
                    axes.text(place, highest, f"{height:.0f}", ha="center", va="bottom", fontsize=8)
            axes.bar(
                places,
                heights,
                width,
                yerr=[
                    stdev(column) if len(column) > 1 and height <= highest else 0
                    for column, height in zip(columns, heights, strict=True)
                ],
                label=row,
                color=_COLOURS.get(row, "#7d8b95"),
            )
        axes.set_xticks(range(len(groups) + 1), ["all", *groups], fontsize=9)
        axes.set_title(f"{name}, {frames} frame{'s'[: frames > 1]}", fontsize=10, pad=14)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0][0].set_ylabel(f"{test}: MPJPE, mm")
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="upper center", ncols=len(rows), frameon=False, fontsize=9)
    figure.tight_layout(rect=(0, 0, 1, 0.93))
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    draw_generalisation(Path(sys.argv[2]), read_results(Path(sys.argv[1])))
