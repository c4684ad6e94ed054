"""MotionBERT: `train.py`, windows of 27 frames and a small network."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from shared.h36m import Recording, read_recordings
from shared.mocap import TEST_SUBJECTS, TRAIN_SUBJECTS, to_pixels

from .runner import Edit, Host

FRAMES = 27
EVERY = 5  # frames of the files
CAMERAS = ("54138969", "55011271", "58860488", "60457274")  # in the files' order
CONFIG = "configs/pose3d/MB_train_h36m.yaml"
SMALL = {
    "epochs": 2,
    "batch_size": 16,
    "learning_rate": 2e-3,  # so that two short epochs show that it learns
    "maxlen": FRAMES,
    "clip_len": FRAMES,
    "data_stride": FRAMES,
    "dim_feat": 32,
    "dim_rep": 32,
    "depth": 2,
    "num_heads": 4,
}


def write_clips(source: Path, folder: Path) -> None:
    """Human3.6M as the host wants it, cut into clips by its own tool."""
    content = {}
    for name, subjects in (("train", TRAIN_SUBJECTS), ("test", TEST_SUBJECTS)):
        clips = [
            in_image_space(recording, CAMERAS[i % 4], f"{subject}_{i:04d}_ca_{i % 4:02d}")
            for subject in subjects
            for i, recording in enumerate(read_recordings(source, [subject], every=EVERY))
            if len(recording.joints) >= FRAMES  # the host would stretch shorter ones at random
        ]
        content[name] = {key: np.concatenate([clip[key] for clip in clips]) for key in clips[0]}
    motion = folder / "data" / "motion3d"
    motion.mkdir()
    (motion / "h36m_sh_conf_cam_source_final.pkl").write_bytes(pickle.dumps(content))
    tool = "tools/convert_h36m.py"
    shorter = (
        (r"n_frames=243, (.*)=81, (.*)=243", rf"n_frames={FRAMES}, \1={FRAMES}, \2={FRAMES}"),
    )
    Edit(tool, "^datareader = DataReaderH36M", shorter).apply(folder, "MotionBERT")
    subprocess.run([sys.executable, tool], cwd=folder, check=True, capture_output=True)


def in_image_space(recording: Recording, camera_name: str, source: str) -> dict[str, Any]:
    """A clip with the host's keys: pixels, depth as seen at the root, millimetres per pixel."""
    joints, camera = recording.joints, recording.camera
    focal, centre = camera.intrinsics[:2], camera.intrinsics[2:4]
    seen = focal * joints[..., :2] / joints[..., 2:] + centre
    pixels_per_metre = focal[0] * camera.width / 2 / joints[:, :1, 2]
    image = np.concatenate(
        [
            to_pixels(seen, camera.width, camera.height),
            (pixels_per_metre * (joints[..., 2] - joints[:, :1, 2]))[..., None],
        ],
        -1,
    )
    frames = len(joints)
    return {
        "joint_2d": to_pixels(recording.keypoints, camera.width, camera.height),
        "confidence": np.ones((frames, 17), np.float32),
        "joint3d_image": image,
        "2.5d_factor": 1000 / pixels_per_metre[:, 0],
        "joints_2.5d_image": image * (1000 / pixels_per_metre)[..., None],
        "camera_name": np.full(frames, camera_name),
        "action": np.full(frames, recording.action),
        "source": np.full(frames, source),
    }


HOST = Host(
    name="MotionBERT",
    page="motionbert",
    script="train.py",
    data="h36m17",
    arguments=("--config", CONFIG),
    evaluate=("--config", CONFIG, "--evaluate", "checkpoint/{checkpoint}"),
    evaluated=r"Protocol #1 Error \(MPJPE\): \d",
    checkpoint="checkpoint/latest_epoch.bin",
    losses=r"^\[\d+\] time \S+ lr \S+ 3d_train (\S+)",
    adapter="motionbert.py",
    prepare_data=write_clips,
    hook=(
        Edit(
            "train.py",
            r"^import torch$",
            (
                "...",
                "from motionbert import MotionBERTAdapter",
                "from poseaug_plugin import PoseAugHook",
            ),
        ),
        Edit(
            "train.py",
            r"^        optimizer = optim\.AdamW\(",
            (
                "...",
                "train_epoch.hook = PoseAugHook("
                "model_pos, skeleton='h36m_17', adapter=MotionBERTAdapter())",
            ),
        ),
        Edit(
            "train.py",
            r"^        with torch\.no_grad\(\):$",
            (
                "if has_3d:",
                "    batch_input, batch_gt = train_epoch.hook.augment(batch_input, batch_gt)",
                "...",
            ),
            after="^def train_epoch",
        ),
    ),
    runs_at_all=(
        *(Edit(CONFIG, f"^{key}: ", ((":.*", f": {value}"),)) for key, value in SMALL.items()),
        # Twelve workers for either loader are more than a small machine has.
        Edit("train.py", r"'num_workers': 12", (("12", "0"),), 2),
        Edit("train.py", r"'prefetch_factor': 4", (("4", "None"),), 2),
        Edit("train.py", r"'persistent_workers': True", (("True", "False"),), 2),
        Edit("train.py", r"'pin_memory': True", (("True", "False"),), 2),
    ),
    needs=("easydict", "prettytable", "tensorboardX", "tqdm", "yaml"),
)
