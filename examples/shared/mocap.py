"""Motion capture and cameras, and the 2D-3D pairs that an estimator learns from.

Conventions of VideoPose3D: z-up world and camera space (x right, y down, z forward) in metres,
pixels normalised so that the image's width spans [-1, 1], and Human3.6M's lens model.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from .files import FileError, read_archive

Array: TypeAlias = NDArray[np.float64]
Numbers: TypeAlias = Sequence[float]
Joints: TypeAlias = NDArray[np.float32]
Motion: TypeAlias = dict[str, dict[str, Joints]]  # subject -> clip -> (T, J, 3)

TRAIN_SUBJECTS = ("S1", "S5", "S6", "S7", "S8")
TEST_SUBJECTS = ("S9", "S11")

# Of Human3.6M's 32 joints. The others are copies of these, or ends of feet and hands.
H36M_USED = (0, 1, 2, 3, 6, 7, 8, 12, 13, 14, 15, 17, 18, 19, 25, 26, 27)
NOSE = 9  # one of the 17 joints; the skeleton of 16 has none


@dataclass(frozen=True, eq=False)
class Camera:
    """A calibrated camera."""

    orientation: Array  # unit quaternion (w, x, y, z) from camera space to the world
    translation: Array  # (3,) position, metres
    intrinsics: Array  # (9,) screen focal length, principal point, radial, tangential distortion
    width: int  # pixels
    height: int
    group: str  # kind of position: "source", "chest", "knee", "ceiling"


class Rigs(NamedTuple):
    """Cameras of the domains "source" and "target", and the centres of their rooms, (3,) metres."""

    cameras: dict[str, list[Camera]]
    centres: dict[str, Array]


class Pairs(NamedTuple):
    """N poses, each seen by one camera: all frames of the first camera, then of the next."""

    keypoints_2d: Joints  # (N, J, 2) on the normalised screen
    joints_3d: Joints  # (N, J, 3) camera-space metres, absolute
    intrinsics: Joints  # (N, 9)
    camera_group: NDArray[np.str_]  # (N,)
    clip_name: NDArray[np.str_]  # (N,) "subject/clip"


def to_screen(pixels: Array, width: int, height: int) -> Array:
    """Pixels (..., 2) to the normalised screen: x in [-1, 1], y in [-height, height] / width."""
    return pixels / width * 2 - np.array([1, height / width])


def to_pixels(screen: Array, width: int, height: int) -> Array:
    """The normalised screen (..., 2) to pixels: the inverse of `to_screen`."""
    return (screen + np.array([1, height / width])) * width / 2


def world_to_camera(points: Array, camera: Camera) -> Array:
    """World points (..., 3) to camera space (..., 3), metres."""
    # Rotation by the inverse quaternion: v - 2 w (u x v) + 2 u x (u x v), with q = (w, u).
    w, axis = camera.orientation[0], camera.orientation[1:]
    offset = points - camera.translation
    once = np.cross(axis, offset)
    return offset + 2 * (np.cross(axis, once) - w * once)


def project(points: Array, intrinsics: Array) -> Array:
    """Camera-space points (..., 3) to the normalised screen (..., 2) through one lens (9,)."""
    focal, centre, radial, tangential = np.split(np.asarray(intrinsics, np.float64), [2, 4, 7])
    # Far outside the image the lens model folds back. Clamped there, as in VideoPose3D.
    flat = np.clip(points[..., :2] / points[..., 2:], -1, 1)
    r2 = np.sum(flat**2, axis=-1, keepdims=True)
    stretch = 1 + r2 * (radial[0] + r2 * (radial[1] + r2 * radial[2]))
    stretch = stretch + np.sum(tangential * flat, axis=-1, keepdims=True)
    return focal * (flat * stretch + tangential * r2) + centre


def with_joints(poses: Joints, joints: int) -> Joints:
    """(T, 17, 3) as they are, or (T, 16, 3) without the Neck/Nose.

    Raises:
        ValueError: ``joints`` is neither 16 nor 17.
    """
    if joints not in (16, 17):
        raise ValueError(f"joints must be 16 or 17, not {joints}")
    return poses if joints == 17 else np.delete(poses, NOSE, axis=1)


def pairs(
    motion: Mapping[str, Mapping[str, Joints]],
    cameras: Sequence[Camera],
    subjects: Iterable[str] | None = None,
    joints: int = 17,
    every: int = 1,
    shift: tuple[float, float] = (0.0, 0.0),
) -> Pairs:
    """2D-3D pairs of a motion that cameras see.

    Args:
        motion: Subject -> clip -> world joints (T, 17, 3) in metres.
        cameras: Each of them sees every frame.
        subjects: Subjects to take; all by default.
        joints: 17, or 16 without the Neck/Nose.
        every: Take every n-th frame of a clip.
        shift: (x, y) metres to move the motion first, as from one room's centre to another's.
    """
    chosen = motion if subjects is None else list(subjects)
    clips = {f"{s}/{name}": clip[::every] for s in chosen for name, clip in motion[s].items()}
    world = with_joints(np.concatenate(list(clips.values())), joints) + np.array([*shift, 0.0])
    seen = [world_to_camera(world, camera) for camera in cameras]
    screen = [project(p, c.intrinsics) for p, c in zip(seen, cameras, strict=True)]
    names = np.repeat(list(clips), [len(clip) for clip in clips.values()])
    return Pairs(
        np.concatenate(screen).astype(np.float32),
        np.concatenate(seen).astype(np.float32),
        np.repeat(np.array([c.intrinsics for c in cameras], np.float32), len(world), axis=0),
        np.repeat([c.group for c in cameras], len(world)),
        np.tile(names, len(cameras)),
    )


def read_motion(path: str | Path) -> Motion:
    """Read subject -> clip -> (T, J, 3) from an .npz with a `positions_3d` dictionary.

    Raises:
        FileError: It is not such a file, or has no number that is finite.
    """
    motion = read_archive(Path(path), "positions_3d")
    try:
        clips = [clip for clips in motion.values() for clip in clips.values()]
        usable = bool(clips) and all(x.ndim == 3 and np.isfinite(x).any() for x in clips)
    except (AttributeError, TypeError):
        usable = False
    if not usable:
        raise FileError(
            f"{path}: expected finite positions_3d by subject and clip, (frames, joints, 3) each. "
            "Make it again (docs/examples.md)."
        )
    return motion


def read_h36m(path: str | Path) -> Motion:
    """Read VideoPose3D's data_3d_h36m.npz: subject -> action -> world joints (T, 17, 3)."""
    motion = read_motion(path)
    if any(clip.shape[1] <= max(H36M_USED) for clips in motion.values() for clip in clips.values()):
        raise FileError(f"{path}: expected Human3.6M's 32 joints. Is it another data set's file?")
    return {s: {name: clip[:, H36M_USED] for name, clip in motion[s].items()} for s in motion}


def lens_from_pixels(focal: Numbers, centre: Numbers, distortion: Numbers, w: int, h: int) -> Array:
    """Intrinsics (9,) from focal length (2) and principal point (2) in pixels, distortion (5)."""
    return np.concatenate([np.array(focal) / w * 2, to_screen(np.array(centre), w, h), distortion])


def read_cameras(path: str | Path) -> Rigs:
    """Read a .json file with `centre` and the camera lists `source` and `target`, in pixels."""
    try:
        return _rigs(json.loads(Path(path).read_text()))
    except (OSError, ValueError, KeyError, TypeError, IndexError) as problem:
        raise FileError(
            f"{path}: expected cameras of the rooms source and target "
            f"({type(problem).__name__}: {problem}). Make it again (docs/examples.md)."
        ) from None


def _rigs(content: dict[str, Any]) -> Rigs:
    cameras: dict[str, list[Camera]] = {"source": [], "target": []}
    for domain, rig in cameras.items():
        for c in content[domain]:
            size = c["res_w"], c["res_h"]
            distortion = c["radial_distortion"] + c["tangential_distortion"]
            lens = lens_from_pixels(c["focal_length"], c["center"], distortion, *size)
            place = np.array(c["orientation"]), np.array(c["translation"])
            group = domain if domain == "source" else c["id"].split("_")[0]
            rig.append(Camera(*place, lens, *size, group))
    return Rigs(cameras, {domain: np.array(content["centre"][domain]) for domain in cameras})


# Group, azimuth (degrees), distance and height (metres), roll (degrees), focal length (pixels)
_RIGS = {
    "source": (
        ("source", 68, 5.1, 1.50, -1.2, 1143),
        ("source", 113, 5.3, 1.45, 2.1, 1147),
        ("source", -73, 5.2, 1.60, 0.4, 1149),
        ("source", -110, 4.7, 1.55, -2.6, 1144),
    ),
    "target": (
        ("chest", 20, 3.5, 1.30, 0.5, 1502),
        ("chest", 100, 3.7, 1.25, -0.8, 1495),
        ("chest", 170, 3.4, 1.40, 0.2, 1498),
        ("chest", 275, 3.8, 1.35, -0.4, 1490),
        ("knee", 55, 3.5, 0.40, 0.9, 1505),
        ("knee", 230, 3.6, 0.50, -0.6, 1492),
        ("ceiling", 140, 2.4, 3.70, 1.0, 1500),
        ("ceiling", 320, 2.1, 3.80, -1.4, 1494),
    ),
}
_AIM = 0.9  # metres above the centre of the floor: what all of them look at
_DISTORTION = (-0.2, 0.24, -0.002, -0.0008, -0.0016)  # of the source cameras


def demo_cameras() -> Rigs:
    """Rigs like those of Human3.6M and MPI-INF-3DHP, around the origin."""

    def camera(
        group: str, azimuth: float, distance: float, height: float, roll: float, focal: float
    ) -> Camera:
        size, distortion = (1000, _DISTORTION) if group == "source" else (2048, (0.0,) * 5)
        lens = lens_from_pixels((focal, focal), (size * 0.51, size * 0.505), distortion, size, size)
        x, y = distance * np.cos(np.radians(azimuth)), distance * np.sin(np.radians(azimuth))
        # A turn about z, one about x from the zenith down to the hips, and the roll: R_z R_x R_z.
        tip = np.arctan2(_AIM - height, distance) / 2 - np.pi / 4
        plus, minus = np.radians(azimuth + 90 + roll) / 2, np.radians(azimuth + 90 - roll) / 2
        w, k = np.cos(tip) * np.array([np.cos(plus), np.sin(plus)])
        i, j = np.sin(tip) * np.array([np.cos(minus), np.sin(minus)])
        return Camera(np.array([w, i, j, k]), np.array([x, y, height]), lens, size, size, group)

    cameras = {domain: [camera(*row) for row in rig] for domain, rig in _RIGS.items()}
    return Rigs(cameras, {domain: np.array([0.0, 0.0, 1.0]) for domain in cameras})
