"""Draw one pose of a batch and eight of its augmentations, as the camera sees them.

    python examples/show_augmentations.py                        # procedural motion
    python examples/show_augmentations.py --data batch.npz       # one of your own batches

For your own, save a batch where your loop would augment it: `numpy.savez("batch.npz",
inputs_2d=..., inputs_3d=..., camera=...)`, without a camera where there is none. It is checked
first, in words.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import torch
from shared.domains import read_domains
from shared.figures import draw_pose_2d, plt
from shared.files import read_archive
from shared.mocap import pairs
from torch import Tensor, nn

from poseaug_plugin import SKELETONS, PoseAdapter, PoseAugError, PoseAugHook

SHOWN = 8


def read_batch(path: Path | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """2D, 3D and camera of an .npz file; of procedural motion, absolute, for None."""
    if path is None:
        motion, _, rigs = read_domains()
        seen = pairs({"S1": motion["S1"]}, rigs.cameras["source"][:1], joints=16)
        keypoints, joints, cameras = (torch.from_numpy(a[::10]) for a in seen[:3])
        return keypoints, joints, cameras

    def read(name: str) -> Tensor:
        return torch.as_tensor(np.asarray(read_archive(path, name), np.float32))

    keypoints, joints = read("inputs_2d"), read("inputs_3d")
    with ZipFile(path) as archive:
        has_camera = "camera.npy" in archive.namelist()
    return keypoints, joints, read("camera") if has_camera else None


def augmentations(
    hook: PoseAugHook, batch: tuple[Tensor, Tensor, Tensor | None], index: int
) -> Tensor:
    """(8, J, 2) of one sample, the middle frame where it is a window.

    Raises:
        SystemExit: Hardly any augmentation of it stays in the picture.
    """
    made: list[Tensor] = []
    for _ in range(10 * SHOWN):
        keypoints, joints = hook.augment(*batch)
        if not torch.equal(joints[index], batch[1][index]):
            made.append(keypoints[index])
        if len(made) == SHOWN:
            poses = torch.stack(made)
            return poses[:, poses.shape[1] // 2] if poses.dim() == 4 else poses
    raise SystemExit("hardly any augmentation stays in the picture; try another --index")


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, help=".npz with inputs_2d, inputs_3d, perhaps camera")
    parser.add_argument("--out", type=Path, default=Path("runs/augmentations.png"))
    parser.add_argument("--skeleton", choices=sorted(SKELETONS), help="of --data")
    parser.add_argument("--root", default="trajectory", help="of --data: or absolute, or zeroed")
    parser.add_argument("--metres-per-unit", type=float, default=1.0, help="0.001 for millimetres")
    parser.add_argument("--index", type=int, default=60, help="which sample of the batch")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> None:
    """Check a batch, augment it again and again, draw one sample of it."""
    arguments = parse_arguments()
    batch = read_batch(arguments.data)
    index = arguments.index % max(1, len(batch[0]))
    own = arguments.data is not None
    name = (arguments.skeleton or f"h36m_{batch[1].shape[-2]}") if own else "h36m_16"
    try:
        adapter = PoseAdapter(
            root=arguments.root if own else "absolute", metres_per_unit=arguments.metres_per_unit
        )
        hook = PoseAugHook(
            nn.Linear(1, 1),
            skeleton=name,
            adapter=adapter,
            preset="random",
            share=1.0,
            seed=arguments.seed,
        )
        print(hook.check_batch(*batch))
        poses = augmentations(hook, batch, index)
    except PoseAugError as problem:
        raise SystemExit(str(problem)) from problem
    original = batch[0][index]
    original = original[len(original) // 2] if original.dim() == 3 else original
    figure, axes = plt.subplots(2, 5, figsize=(11, 4.6), layout="constrained")
    panels = [axes[0, 0], *axes[:, 1:].flat]
    largest = max((p.amax(0) - p.amin(0)).max().item() for p in [original, *poses])
    for number, (panel, pose) in enumerate(zip(panels, [original, *poses], strict=True)):
        draw_pose_2d(panel, pose.numpy(), "original" if number == 0 else "", hook.skeleton)
        x, y = ((pose.amax(0) + pose.amin(0)) / 2).tolist()
        half = 0.55 * largest
        panel.set(xlim=(x - half, x + half), ylim=(y + half, y - half))
    whole = axes[1, 0]
    draw_pose_2d(whole, original.numpy(), "where they stand in the picture", hook.skeleton)
    for pose in poses:
        whole.plot(*pose.mean(0).tolist(), "o", color="#d1495b", alpha=0.6)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(arguments.out, dpi=100)
    print(f"wrote {arguments.out}")


if __name__ == "__main__":
    main()
