"""mmpose 1.x: `tools/train.py` with the shipped configuration of one frame, made small."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
from shared.h36m import read_recordings
from shared.mocap import TEST_SUBJECTS, TRAIN_SUBJECTS, Camera, to_pixels

from .runner import Edit, Host

EVERY = 20  # frames of the files
CAMERAS = ("54138969", "55011271", "58860488", "60457274")  # in the files' order
CONFIG = (
    "configs/body_3d_keypoint/video_pose_lift/h36m/"
    "video-pose-lift_tcn-1frm-supv-cpn-ft_8xb128-160e_h36m.py"
)


def write_annotations(source: Path, folder: Path) -> None:
    """Human3.6M as mmpose's data set reads it."""
    data = folder / "data" / "h36m"
    annotations, detections = data / "annotation_body3d", data / "joint_2d_det_files"
    (annotations / "fps50").mkdir(parents=True)
    detections.mkdir()
    cameras = {}
    for name, subjects in (("train", TRAIN_SUBJECTS), ("test", TEST_SUBJECTS)):
        names, joints, keypoints = [], [], []
        for subject in subjects:
            for i, clip in enumerate(read_recordings(source, [subject], every=EVERY)):
                camera = CAMERAS[i % 4]
                cameras[subject, camera] = camera_param(clip.camera)
                names += [
                    f"{subject}_{clip.action}_{i // 4}.{camera}_{frame:06d}.jpg"
                    for frame in range(len(clip.joints))
                ]
                joints.append(clip.joints)
                keypoints.append(to_pixels(clip.keypoints, clip.camera.width, clip.camera.height))
        poses, seen = (visible(np.concatenate(x)) for x in (joints, keypoints))
        file = annotations / "fps50" / f"h36m_{name}.npz"
        np.savez(file, imgname=np.array(names), S=poses, part=seen)
        np.save(detections / f"cpn_ft_h36m_dbb_{name}.npy", seen)
    (annotations / "cameras.pkl").write_bytes(pickle.dumps(cameras))


def visible(points: np.ndarray) -> np.ndarray:
    """(N, 17, D) with a visibility of 1 behind, (N, 17, D + 1)."""
    return np.concatenate([points, np.ones((*points.shape[:2], 1))], -1)


def camera_param(camera: Camera) -> dict[str, Any]:
    """In pixels and as columns; tangential coefficients y before x, as in Human3.6M's metadata."""
    focal, centre, radial, tangential = np.split(np.asarray(camera.intrinsics), [2, 4, 7])
    width, height = camera.width, camera.height
    columns = {
        "f": focal * width / 2,
        "c": to_pixels(centre, width, height),
        "k": radial,
        "p": tangential[::-1],
    }
    return {key: value[:, None] for key, value in columns.items()} | {"w": width, "h": height}


OPTIONS = (
    *("--cfg-options", "randomness.seed=0", "train_cfg.max_epochs=2", "train_cfg.val_interval=2"),
    *("model.backbone.stem_channels=256", "model.head.in_channels=256"),
    *("optim_wrapper.optimizer.lr=0.001", "default_hooks.checkpoint.interval=1"),
    *(
        f"{loader}_dataloader.{option}"
        for loader in ("train", "val", "test")
        for option in ("num_workers=0", "persistent_workers=False")
    ),
)

HOST = Host(
    name="mmpose",
    page="mmpose",
    script="tools/train.py",
    data="h36m17",
    arguments=(CONFIG, "--work-dir", "checkpoint", *OPTIONS),
    evaluation_script="tools/test.py",
    evaluate=(CONFIG, "checkpoint/{checkpoint}", "--work-dir", "checkpoint", *OPTIONS),
    evaluated=r"MPJPE: 0\.\d",
    checkpoint="checkpoint/epoch_2.pth",
    losses=r"Epoch\(train\) +\[\d\]\[40/\d+\].* loss: (\S+)",
    adapter="mmpose_hook.py",
    prepare_data=write_annotations,
    hook=(
        Edit(
            CONFIG,
            r"^# codec settings$",
            (
                "custom_imports = dict(imports=['mmpose_hook'])",
                "custom_hooks = [dict(type='SyncBuffersHook'), dict(type='PoseAugMMHook')]",
                "...",
            ),
        ),
        Edit(
            CONFIG,
            r"'target_root'\)\)$",
            ((r"'target_root'", "'target_root', 'camera_param'"),),
            after="^train_pipeline",
        ),
    ),
    runs_at_all=(
        # Modules with compiled parts or for other tasks, imported by the way.
        *(
            Edit(file, rf"^from (\S+) import {names}$", ((r"^.*import (.*)", r"\1 = None"),))
            for file, names in (
                (
                    "mmpose/models/heads/transformer_heads/edpose_head.py",
                    "MultiScaleDeformableAttention",
                ),
                (
                    "mmpose/models/heads/transformer_heads/transformers/deformable_detr_layers.py",
                    "MultiScaleDeformableAttention",
                ),
                ("mmpose/visualization/simcc_vis.py", "ToPILImage"),
            )
        ),
        Edit(
            "mmpose/models/heads/hybrid_heads/rtmo_head.py",
            r"^from mmdet\.utils import",
            ("ConfigType = reduce_mean = None",),
        ),
        # Where it is installed, by a module that setuptools has no more.
        Edit(
            "mmpose/apis/inferencers/utils/default_det_models.py",
            r"^mmpose_path = ",
            ("mmpose_path = '.'",),
        ),
        # Not installed: the scripts have to find it.
        *(
            Edit(
                f"tools/{script}.py",
                r"^import argparse$",
                ("import sys", "sys.path.insert(0, '.')", "..."),
            )
            for script in ("train", "test")
        ),
        # As shipped, 2D is mirrored about pixel 0.5, out of the frame.
        Edit(CONFIG, r"keypoints_flip_cfg=dict\(\)", ((r"dict\(\)", "dict(center_x=500.)"),)),
        Edit(CONFIG, r"target_flip_cfg=dict\(\)", ((r"dict\(\)", "dict(center_x=0.)"),)),
    ),
    needs=("mmengine", "mmcv", "cv2", "json_tricks", "munkres", "scipy", "xtcocotools"),
)
