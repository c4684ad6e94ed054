"""SimpleBaseline in PyTorch: `main.py`, on z-scored files made from Human3.6M's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from adapters.simple_baseline import keypoint_statistics
from shared.h36m import read_recordings
from shared.mocap import H36M_USED, TEST_SUBJECTS, TRAIN_SUBJECTS, to_pixels

from .runner import Edit, Host

EVERY = 10  # frames


def write_scored_data(source: Path, folder: Path) -> None:
    """Clips by (subject, action, name), and the training set's statistics."""
    targets: dict[tuple[int, str, str], np.ndarray] = {}
    pixels: dict[tuple[int, str, str], np.ndarray] = {}
    for subject in (*TRAIN_SUBJECTS, *TEST_SUBJECTS):
        for i, clip in enumerate(read_recordings(source, [subject], every=EVERY)):
            key = (int(subject[1:]), clip.action, f"{i}.h5")
            relative = 1000 * (clip.joints[:, 1:] - clip.joints[:, :1])
            targets[key] = relative.reshape(len(relative), -1)
            pixels[key] = to_pixels(clip.keypoints, clip.camera.width, clip.camera.height)
    train = [key for key in targets if f"S{key[0]}" in TRAIN_SUBJECTS]
    seen = np.concatenate([targets[key] for key in train])
    # The host keeps statistics of all 32 joints that were recorded, and which dimensions are used.
    used = np.array([3 * joint + i for joint in H36M_USED[1:] for i in range(3)])
    stat_3d = {"mean": np.zeros(96), "std": np.zeros(96), "dim_use": used}
    stat_3d["mean"][used], stat_3d["std"][used] = seen.mean(0), seen.std(0)
    stat_2d = keypoint_statistics(np.concatenate([pixels[key] for key in train]))
    scored_3d = {k: (v - seen.mean(0)) / seen.std(0) for k, v in targets.items()}
    scored_2d = {
        k: (np.delete(v, 9, 1).reshape(len(v), -1) - stat_2d["mean"]) / stat_2d["std"]
        for k, v in pixels.items()
    }
    files = {"stat_3d": stat_3d, "stat_2d": stat_2d}
    for name, scored in (("3d", scored_3d), ("2d", scored_2d)):
        files[f"train_{name}"] = {k: v for k, v in scored.items() if k in train}
        files[f"test_{name}"] = {k: v for k, v in scored.items() if k not in train}
    for name, content in files.items():
        torch.save(content, folder / "data" / f"{name}.pth.tar")


HOST = Host(
    name="SimpleBaseline",
    page="simple_baseline",
    script="main.py",
    data="h36m17",
    arguments=("--epochs", "2", "--job", "0"),
    evaluate=("--job", "0", "--test", "--load", "checkpoint/{checkpoint}"),
    evaluated=r"^ERRORS: \d",
    checkpoint="checkpoint/test/ckpt_*.pth.tar",
    log="checkpoint/test/log.txt",
    losses=r"^\d+\t\S+\t(\S+)",
    adapter="simple_baseline.py",
    prepare_data=write_scored_data,
    hook=(
        Edit(
            "main.py",
            r"^import torch$",
            (
                "...",
                "from poseaug_plugin import PoseAugHook",
                "from simple_baseline import SimpleBaselineAdapter",
            ),
        ),
        Edit(
            "main.py",
            r"^    stat_3d = torch\.load\(",
            (
                "...",
                "stat_2d = torch.load(os.path.join(opt.data_dir, 'stat_2d.pth.tar'))",
                "train.hook = PoseAugHook(model, skeleton='h36m_17', "
                "adapter=SimpleBaselineAdapter(stat_3d, stat_2d))",
            ),
        ),
        Edit(
            "main.py",
            r"^        targets = Variable\(tars\.cuda\(",
            ("...", "inputs, targets = train.hook.augment(inputs, targets)"),
            after=r"^def train\(",
        ),
    ),
    runs_at_all=(
        # A keyword of Python 3, and names of early torch.
        Edit("main.py", r"\.cuda\(async=True\)", ((r"async=True", ""),), 2),
        Edit("main.py", r"clip_grad_norm\(", ((r"norm\(", "norm_("),)),
        Edit("src/model.py", r"kaiming_normal\(", ((r"normal\(", "normal_("),)),
    ),
    needs=("progress",),
)
