"""Human3.6M in the files of VideoPose3D, which SemGCN, ST-GCN and others use; its cameras.

data_3d_h36m.npz: `positions_3d`, subject -> action -> world joints (T, 32, 3) in metres, z up.
data_2d_h36m_NAME.npz: `positions_2d`, subject -> action -> joints (T, J, 2) in pixels, for each of
four cameras; NAME is "gt" or a detector. Actions are called "Walking", "Walking 1" and so on. The
files do not hold the cameras: these are the calibration of Ionescu et al. (2014).

The files hold pickled objects: read only those that you trust.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from poseaug_plugin import SKELETONS

from .files import FileError, read_archive
from .mocap import (
    H36M_USED,
    Camera,
    Joints,
    lens_from_pixels,
    project,
    read_h36m,
    to_pixels,
    to_screen,
    with_joints,
    world_to_camera,
)

POSES = "data_3d_h36m.npz"
KEYPOINTS = "data_2d_h36m_{}.npz"
_RECORDED = 32

# Focal length and principal point in pixels, radial and tangential distortion, width, height
_LENSES = (
    (
        (1145.0494, 1143.7811),
        (512.5415, 515.4515),
        (-0.20709892, 0.24777518, -0.0030751503, -0.0009756989, -0.0014244716),
        (1000, 1002),
    ),
    (
        (1149.6757, 1147.5917),
        (508.84863, 508.0649),
        (-0.19421363, 0.24040854, 0.0068199756, -0.0016190266, -0.0027408944),
        (1000, 1000),
    ),
    (
        (1149.1407, 1148.799),
        (519.81586, 501.40265),
        (-0.20833819, 0.255488, -0.0024604974, 0.001484387, -0.0007599993),
        (1000, 1000),
    ),
    (
        (1145.5114, 1144.7739),
        (514.9682, 501.88202),
        (-0.19838409, 0.21832368, -0.008947807, -0.0005872056, -0.001813362),
        (1000, 1002),
    ),
)
# Quaternion (w, x, y, z) from camera space to the world and position in mm, for each camera
_PLACES = {
    "S1": (
        ((0.14070565, -0.15007018, -0.7552408, 0.62232804), (1841.107, 4955.2847, 1563.4454)),
        ((0.6157188, -0.7648363, -0.14833826, 0.11794741), (1761.2786, -5078.007, 1606.265)),
        ((0.14651473, -0.14647852, 0.76530236, -0.60941756), (-1846.7777, 5215.0464, 1491.9724)),
        ((0.58340085, -0.7853162, 0.14548823, -0.14749594), (-1794.7897, -3722.699, 1574.8927)),
    ),
    "S5": (
        ((0.14673772, -0.16237096, -0.7551893, 0.6178939), (2097.3916, 4880.945, 1605.7324)),
        ((0.61597586, -0.7626792, -0.15728192, 0.1189815), (2031.7008, -5167.933, 1612.9231)),
        ((0.14291371, -0.12907842, 0.7678385, -0.6110143), (-1620.5948, 5171.6587, 1496.437)),
        ((0.592048, -0.7814218, 0.12747486, -0.15036418), (-1637.1737, -3867.3174, 1547.0332)),
    ),
    "S6": (
        ((0.13378978, -0.15692396, -0.75710905, 0.61988795), (1935.4518, 4950.2456, 1618.0839)),
        ((0.61471975, -0.7628813, -0.16174768, 0.11819245), (1969.804, -5128.739, 1632.7788)),
        ((0.15299481, -0.13529131, 0.76460963, -0.6112781), (-1769.5964, 5185.3613, 1476.9934)),
        ((0.59161013, -0.7804774, 0.1283227, -0.15615939), (-1721.6687, -3884.1313, 1540.4879)),
    ),
    "S7": (
        ((0.14352418, -0.16313368, -0.75483286, 0.6188825), (1974.513, 4926.3545, 1597.8326)),
        ((0.6141673, -0.76382625, -0.15966456, 0.117792994), (1937.0585, -5119.79, 1631.5665)),
        ((0.1455006, -0.12874816, 0.76605165, -0.61271393), (-1741.8112, 5208.2495, 1464.8246)),
        ((0.5912848, -0.78217643, 0.12445474, -0.15196487), (-1734.7106, -3832.4214, 1548.583)),
    ),
    "S8": (
        ((0.14110588, -0.15589868, -0.75619173, 0.61964405), (2150.6519, 4896.161, 1611.9047)),
        ((0.61696017, -0.7647668, -0.1484635, 0.11158158), (2219.9656, -5148.453, 1613.0441)),
        ((0.1471444, -0.1337712, 0.76701283, -0.61003697), (-1571.2216, 5137.0186, 1498.1761)),
        ((0.59278244, -0.78258705, 0.12147816, -0.14631996), (-1476.9133, -3896.7412, 1547.9722)),
    ),
    "S9": (
        ((0.15540588, -0.15548216, -0.75320953, 0.6199595), (2044.4585, 4935.117, 1481.2275)),
        ((0.6187845, -0.7634735, -0.14132239, 0.11933968), (1990.9597, -5123.8105, 1568.8048)),
        ((0.13357827, -0.13671005, 0.76894546, -0.61007386), (-1670.9922, 5211.986, 1528.388)),
        ((0.5879399, -0.7823407, 0.14276144, -0.1479487), (-1696.0435, -3827.0999, 1591.4127)),
    ),
    "S11": (
        ((0.15232472, -0.1544232, -0.75475633, 0.619107), (2098.4402, 4926.5547, 1500.2786)),
        ((0.61894494, -0.7600917, -0.15300633, 0.12552583), (2083.1824, -4912.173, 1561.0786)),
        ((0.14943229, -0.15650228, 0.7681234, -0.60263044), (-1609.8153, 5177.336, 1537.8967)),
        ((0.58942515, -0.7818877, 0.13991211, -0.14715362), (-1590.738, -3854.169, 1578.0176)),
    ),
}


def cameras_of(subject: str) -> list[Camera]:
    """The four cameras around a subject, in the order of the files.

    Raises:
        ValueError: A subject without calibrated cameras.
    """
    if subject not in _PLACES:
        raise ValueError(f"subject: expected one of {', '.join(_PLACES)}, received {subject!r}.")
    return [
        Camera(
            np.array(orientation),
            np.array(translation) / 1000,
            lens_from_pixels(*lens, *size),
            *size,
            "source",
        )
        for (*lens, size), (orientation, translation) in zip(_LENSES, _PLACES[subject], strict=True)
    ]


class Recording(NamedTuple):
    """T frames of a clip, as one camera sees it."""

    action: str  # without the number of the take
    camera: Camera
    keypoints: Joints  # (T, J, 2) on the normalised screen
    joints: Joints  # (T, J, 3) in camera space, metres, absolute


def read_recordings(
    folder: Path,
    subjects: Iterable[str],
    *,
    keypoints: str = "gt",
    joints: int = 17,
    every: int = 1,
) -> list[Recording]:
    """Read both files: every clip, seen by each camera of its subject.

    Args:
        folder: Folder of the files.
        subjects: Subjects to read.
        keypoints: NAME of the 2D file.
        joints: 17, or 16 without the Neck/Nose.
        every: Take every n-th frame.

    Raises:
        ValueError: The 2D file has another number of joints or cameras, or too few frames.
    """
    motion = read_h36m(folder / POSES)
    seen = read_archive(folder / KEYPOINTS.format(keypoints), "positions_2d")
    recordings = []
    for subject in subjects:
        for name, content in ((POSES, motion), (KEYPOINTS.format(keypoints), seen)):
            if subject not in content or set(motion.get(subject, ())) - set(content[subject]):
                raise FileError(
                    f"{folder / name}: expected all clips of {subject}, received subjects "
                    f"{', '.join(map(str, content))}. Make both files again (docs/examples.md)."
                )
        for take, world in motion[subject].items():
            world = with_joints(world, joints)
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
        folder: Folder to write to.
        motion: Subject -> action -> world joints (T, 17, 3) in metres.
        joints: Joints in the 2D file: 17, or 16 without the Neck/Nose.
    """
    recorded: dict[str, dict[str, Joints]] = {}
    seen: dict[str, dict[str, list[Joints]]] = {}
    for subject, takes in motion.items():
        recorded[subject], seen[subject] = {}, {}
        for take, world in takes.items():
            recorded[subject][take] = np.zeros((len(world), _RECORDED, 3), np.float32)
            recorded[subject][take][:, H36M_USED] = world
            shown = with_joints(world, joints)
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
    """Put the root, joint 0, at the origin: (..., J, 3) to the same shape. Its position is lost."""
    return joints - joints[..., :1, :]


def with_trajectory(joints: Joints) -> Joints:
    """Make joints relative to joint 0, the root, which keeps its position: (..., J, 3)."""
    relative = relative_to_root(joints)
    relative[..., 0, :] = joints[..., 0, :]
    return relative
