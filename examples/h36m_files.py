"""VideoPose3D's files of Human3.6M, which SemGCN, ST-GCN and others took over: reading and writing.

data_3d_h36m.npz: `positions_3d`, subject -> action -> world joints (T, 32, 3) in metres, z up.
data_2d_h36m_NAME.npz: `positions_2d`, subject -> action -> joints (T, J, 2) in pixels, for each of
four cameras; NAME is "gt" or a detector. Actions are called "Walking", "Walking 1" and so on.

Such files hold pickled objects: read only those that you trust.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from h36m_cameras import cameras_of
from mocap import (
    H36M_USED,
    NOSE,
    Camera,
    Joints,
    project,
    read_h36m,
    to_pixels,
    to_screen,
    world_to_camera,
)

from poseaug_plugin.skeletons import SKELETONS

POSES = "data_3d_h36m.npz"
KEYPOINTS = "data_2d_h36m_{}.npz"
_RECORDED = 32


class Recording(NamedTuple):
    """A clip as one camera sees it, T frames."""

    action: str  # without the number that tells a subject's takes apart
    camera: Camera
    keypoints: Joints  # (T, J, 2) on the normalised screen
    joints: Joints  # (T, J, 3) in camera space, metres, each where it stands


def read_recordings(
    folder: Path,
    subjects: Iterable[str],
    *,
    keypoints: str = "gt",
    joints: int = 17,
    every: int = 1,
) -> list[Recording]:
    """Read both files and look at every clip through its subject's cameras.

    Args:
        folder: Where the files are.
        subjects: Whose clips.
        keypoints: NAME of the file with the 2D positions.
        joints: 17, or 16 without the Neck/Nose.
        every: Take every n-th frame.

    Raises:
        ValueError: The 2D file has another number of joints or cameras, or too few frames.
    """
    motion = read_h36m(folder / POSES)
    with np.load(folder / KEYPOINTS.format(keypoints), allow_pickle=True) as file:
        seen = file["positions_2d"].item()
    recordings = []
    for subject in subjects:
        for take, world in motion[subject].items():
            world = world if joints == len(H36M_USED) else np.delete(world, NOSE, axis=1)
            for camera, pixels in zip(cameras_of(subject), seen[subject][take], strict=True):
                if len(pixels) < len(world) or pixels.shape[1] != joints:
                    raise ValueError(
                        f"{folder / KEYPOINTS.format(keypoints)}: expected {len(world)} frames or "
                        f"more and {joints} joints for {subject}, {take}, received {pixels.shape}."
                    )
                # Some of Human3.6M's videos are a little longer than the motion capture.
                pixels = pixels[: len(world), :, :2]
                recordings.append(
                    Recording(
                        take.split(" ")[0],
                        camera,
                        to_screen(pixels, camera.width, camera.height)[::every].astype(np.float32),
                        world_to_camera(world, camera)[::every].astype(np.float32),
                    )
                )
    return recordings


def write_files(folder: Path, motion: Mapping[str, Mapping[str, Joints]], joints: int = 17) -> None:
    """Write both files, with true 2D positions ("gt").

    Args:
        folder: Where to.
        motion: Subject -> action -> world joints (T, 17, 3) in metres.
        joints: Of the 2D positions: 17, or 16 without the Neck/Nose.
    """
    recorded: dict[str, dict[str, Joints]] = {}
    seen: dict[str, dict[str, list[Joints]]] = {}
    for subject, takes in motion.items():
        recorded[subject], seen[subject] = {}, {}
        for take, world in takes.items():
            recorded[subject][take] = np.zeros((len(world), _RECORDED, 3), np.float32)
            recorded[subject][take][:, H36M_USED] = world
            shown = world if joints == len(H36M_USED) else np.delete(world, NOSE, axis=1)
            seen[subject][take] = [
                to_pixels(
                    project(world_to_camera(shown, camera), camera.intrinsics),
                    camera.width,
                    camera.height,
                ).astype(np.float32)
                for camera in cameras_of(subject)
            ]
    pairs = SKELETONS[f"h36m_{joints}"].pair_indices
    symmetry = [[left for left, _ in pairs], [right for _, right in pairs]]
    metadata = {"num_joints": joints, "keypoints_symmetry": symmetry}
    np.savez(folder / POSES, positions_3d=np.array(recorded, object))
    np.savez(
        folder / KEYPOINTS.format("gt"),
        positions_2d=np.array(seen, object),
        metadata=np.array(metadata, object),
    )


def relative_to_root(joints: Joints) -> Joints:
    """(..., J, 3) with the root, joint 0, at the origin; its place is lost."""
    return joints - joints[..., :1, :]


def with_trajectory(joints: Joints) -> Joints:
    """(..., J, 3) relative to the root, joint 0, which keeps its own place."""
    relative = relative_to_root(joints)
    relative[..., 0, :] = joints[..., 0, :]
    return relative
