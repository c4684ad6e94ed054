"""Pictures of poses before and after augmentation, their viewpoints, and errors."""

from __future__ import annotations

from pathlib import Path
from statistics import mean, stdev
from typing import Any

import matplotlib
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from poseaug_plugin import PoseAugHook, Skeleton
from poseaug_plugin.body.presets import H36M_16

from .bodies import viewpoints
from .report import Result, rows_of, values_of

matplotlib.use("Agg")
from matplotlib import pyplot as plt

Array = NDArray[np.floating[Any]]

BEFORE, AFTER = "#5b6770", "#d1495b"
_SIDES = {"left": "#1f77b4", "right": "#e08e0b", "": "#5b6770"}


def _absolute(inputs_3d: Tensor) -> Tensor:
    """(N, 1, J, 3) with the trajectory in joint 0 to (N, J, 3) absolute metres, on the CPU."""
    joints = inputs_3d[:, 0].cpu().clone()
    joints[:, 1:] += joints[:, :1]
    return joints


def _bones(skeleton: Skeleton = H36M_16) -> list[tuple[int, int, str]]:
    bones = []
    for child, parent in zip(skeleton.bone_children, skeleton.bone_parents, strict=True):
        side = skeleton.joints[child].partition("_")[0]
        bones.append((child, parent, _SIDES.get(side, _SIDES[""])))
    return bones


def draw_pose_3d(axes: Any, joints: Array, title: str) -> None:
    """Draw a pose (J, 3), camera-space metres, about its root."""
    # Camera space has y down and z forward; matplotlib has z up.
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


def draw_pose_2d(axes: Any, keypoints: Array, title: str, skeleton: Skeleton = H36M_16) -> None:
    """Draw keypoints (J, 2) in the frame of the normalised screen."""
    for child, parent, colour in _bones(skeleton):
        axes.plot(*keypoints[[child, parent]].T, color=colour, linewidth=2)
    axes.set(xlim=(-1, 1), ylim=(1, -1), aspect="equal", xticks=[], yticks=[])
    axes.set_title(title, fontsize=9)


_COLOURS = ("#c9ced2", "#7d8b95", "#e7a3ac", AFTER)


def _draw_errors(axes: Any, results: list[Result]) -> None:
    rows, tests = rows_of(results), list(results[0]["tests"])
    groups = list(results[0]["tests"][tests[1]]["by camera"])
    width = 0.8 / len(rows)
    for i, row in enumerate(rows):
        values = [values_of(results, row, test, "MPJPE") for test in tests]
        runs = [r["tests"][tests[1]]["by camera"] for r in results if r["row"] == row]
        values += [[run[group] for run in runs] for group in groups]
        axes.bar(
            np.arange(len(values)) + (i - (len(rows) - 1) / 2) * width,
            [mean(v) for v in values],
            width,
            yerr=[stdev(v) if len(v) > 1 else 0 for v in values],
            capsize=3 if len(values[0]) > 1 else 0,
            label=row,
            color=_COLOURS[i % 4],
        )
    axes.set_xticks(range(2 + len(groups)), [*tests, *groups], fontsize=8)
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
    """Augment a batch, and draw it beside the original, together with the results.

    Args:
        path: PNG to write.
        results: Finished runs.
        hook: A trained hook.
        inputs_2d: (N, 1, J, 2).
        inputs_3d: (N, 1, J, 3), the trajectory in joint 0.
        cameras: (N, 9).
    """
    with torch.enable_grad():  # without, the hook takes it for an evaluation and warns
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
                _absolute(joints[index : index + 1])[0].numpy(),
                f"{name}, 3D",
            )
            draw_pose_2d(
                figure.add_subplot(grid[row, 4 * column + 2 : 4 * column + 4]),
                keypoints[index, 0].cpu().numpy(),
                f"{name}, 2D",
            )
    views = figure.add_subplot(grid[2, :4])
    for joints, colour, name in ((before, BEFORE, "original"), (after, AFTER, "augmented")):
        views.scatter(*viewpoints(joints), s=4, color=colour, alpha=0.5, label=name, linewidths=0)
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
