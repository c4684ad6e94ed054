"""Draw an original and an augmented clip with their 2D, as a picture and an animation.

python examples/draw_clip.py                       # writes runs/clip/clip.png and clip.gif
python examples/draw_clip.py --data FOLDER --out FOLDER --seed 3
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from matplotlib.animation import FuncAnimation, PillowWriter
from shared.domains import read_domains
from shared.figures import draw_pose_2d, draw_pose_3d, plt
from shared.mocap import pairs
from torch import Tensor, nn

from poseaug_plugin import PoseAdapter, PoseAugHook
from poseaug_plugin.body.bones import bone_lengths, joints_to_bones
from poseaug_plugin.body.presets import H36M_16


def augmented_clip(
    keypoints: Tensor, joints: Tensor, camera: Tensor, seed: int
) -> tuple[Tensor, Tensor]:
    """Augment a clip (T, J, 2), (T, J, 3) as one window that stays in view."""
    frames = len(joints)
    hook = PoseAugHook(
        nn.Linear(1, 1),
        skeleton="h36m_16",
        preset="random",
        share=1.0,
        adapter=PoseAdapter(root="absolute"),
        seed=seed,
    )
    # Several copies: those that leave the picture fall back to the original.
    given = (x.expand(16, frames, -1, -1) for x in (keypoints, joints))
    made_2d, made_3d = hook.augment(*given, camera.expand(16, 9))
    changed = (made_3d != joints).flatten(1).any(1)
    if not changed.any():
        raise SystemExit("no augmented window stays in view; take another --seed or a shorter clip")
    first = int(changed.int().argmax())
    return made_2d[first], made_3d[first]


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, help="folder with source_cmu, target_bandai, cameras")
    parser.add_argument("--out", type=Path, default=Path("runs/clip"))
    parser.add_argument("--frames", type=int, default=81)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke", action="store_true", help="a few frames")
    arguments = parser.parse_args()
    if arguments.smoke:
        arguments.frames = 9
    return arguments


def main() -> None:
    """Augment one clip, print how rigid and smooth it is, and draw it."""
    arguments = parse_arguments()
    motion, _, rigs = read_domains(arguments.data)
    clips = {name: clip for name, clip in motion["S1"].items() if len(clip) >= arguments.frames}
    name, clip = next(iter(clips.items()))
    seen = pairs({"S1": {name: clip[: arguments.frames]}}, rigs.cameras["source"][:1], joints=16)
    keypoints, joints = (torch.from_numpy(a) for a in seen[:2])
    made = augmented_clip(keypoints, joints, torch.from_numpy(seen.intrinsics[0]), arguments.seed)

    # Relative to the original lengths: trunks of motion capture are not quite rigid.
    lengths, own = (bone_lengths(joints_to_bones(j, H36M_16)) for j in (made[1], joints))
    ratio = lengths / own
    drift = (ratio / ratio[:1] - 1).abs().max()
    fast = [j.diff(n=2, dim=0).norm(dim=-1).quantile(0.99) for j in (made[1], joints)]
    print(
        f"{name}: bone length ratios drift by {drift:.1e} over the clip; the 99th percentile of "
        f"joint accelerations is {fast[0] / fast[1]:.2f} times the original's"
    )

    columns = ((keypoints, joints, "original"), (*made, "augmented"))
    arrays = [(k.numpy(), j.numpy(), title) for k, j, title in columns]
    figure = plt.figure(figsize=(8.4, 2.6), layout="constrained")
    axes = [figure.add_subplot(1, 4, i + 1, projection=["3d", None][i % 2]) for i in range(4)]

    def draw(frame: int) -> None:
        for (seen_2d, seen_3d, title), a3, a2 in zip(arrays, axes[::2], axes[1::2], strict=True):
            a3.clear()
            a2.clear()
            draw_pose_3d(a3, seen_3d[frame], title)
            draw_pose_2d(a2, seen_2d[frame], f"{title}, as seen")

    step = max(1, arguments.frames // 27)
    animation = FuncAnimation(figure, draw, frames=range(0, arguments.frames, step), interval=60)
    arguments.out.mkdir(parents=True, exist_ok=True)
    animation.save(arguments.out / "clip.gif", PillowWriter(fps=12), dpi=100)

    shown = np.linspace(0, arguments.frames - 1, 6).astype(int)
    still = plt.figure(figsize=(10, 6.8), layout="constrained")
    rows = [(k, j, title, kind) for k, j, title in arrays for kind in ("3d", "2d")]
    for row, (seen_2d, seen_3d, title, kind) in enumerate(rows):
        for column, frame in enumerate(shown):
            place = row * len(shown) + column + 1
            projection = "3d" if kind == "3d" else None
            panel = still.add_subplot(len(rows), len(shown), place, projection=projection)
            label = f"{title}, frame {frame}" if column == 0 else f"{frame}"
            draw = draw_pose_3d if kind == "3d" else draw_pose_2d
            draw(panel, (seen_3d if kind == "3d" else seen_2d)[frame], label)
    still.savefig(arguments.out / "clip.png", dpi=80)
    print(f"wrote {arguments.out / 'clip.gif'} and {arguments.out / 'clip.png'}")


if __name__ == "__main__":
    main()
