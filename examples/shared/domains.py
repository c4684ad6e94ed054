"""A source domain to train in and a target domain to test in: people who move, and cameras."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .mocap import (
    TEST_SUBJECTS,
    TRAIN_SUBJECTS,
    Motion,
    Pairs,
    Rigs,
    demo_cameras,
    pairs,
    read_cameras,
    read_h36m,
    read_motion,
)
from .motion import source_motion, target_motion


class Domains(NamedTuple):
    """Motion of both domains, and rigs whose names are "source", "target" and others."""

    source: Motion
    target: Motion | None  # None: the people of the source, seen by other cameras
    rigs: Rigs

    def pairs(self, motion: Motion, home: str, room: str, **options: Any) -> Pairs:
        """Pairs of 16 joints from a motion of the room ``home``, moved to the cameras of ``room``.

        Args:
            motion: World joints.
            home: Room of the motion, a name of ``rigs.centres``.
            room: Cameras, a name of ``rigs.cameras``.
            **options: Of `shared.mocap.pairs`.
        """
        x, y = (self.rigs.centres[room] - self.rigs.centres[home])[:2]
        return pairs(motion, self.rigs.cameras[room], joints=16, shift=(x, y), **options)


def read_domains(data: Path | None = None, h36m: Path | None = None) -> Domains:
    """Read motion capture, or make procedural motion where none is given.

    Args:
        data: Folder with source_cmu.npz, target_bandai.npz and cameras.json.
        h36m: VideoPose3D's data_3d_h36m.npz.
    """
    if data:
        source, target = (read_motion(data / f"{n}.npz") for n in ("source_cmu", "target_bandai"))
        return Domains(source, target, read_cameras(data / "cameras.json"))
    if h36m:
        return Domains(read_h36m(h36m), None, demo_cameras())
    return Domains(source_motion(), target_motion(), demo_cameras())


class Test(NamedTuple):
    """Frames to test on."""

    keypoints: Tensor  # (N, 1, J, 2)
    joints: Tensor  # (N, 1, J, 3) root-relative
    groups: NDArray[np.str_]  # (N,) kind of camera


class Batches(NamedTuple):
    """Training pairs in VideoPose3D's convention, and test sets by name."""

    inputs_2d: Tensor  # (N, 1, J, 2)
    inputs_3d: Tensor  # (N, 1, J, 3) root-relative, the trajectory in joint 0
    cameras: Tensor  # (N, 9)
    tests: dict[str, Test]
    target_2d: Tensor | None  # (N, J, 2) of the target, without 3D, of clips that are not tested
    target_cameras: Tensor | None  # (N, 9)


def training_data(domains: Domains, device: torch.device, every: int = 1) -> Batches:
    """Pairs of the source to train on, and of both domains to test on.

    Args:
        domains: Motion and cameras.
        device: Device of the tensors.
        every: Take every n-th frame.
    """
    source, target = domains.source, domains.target
    train = domains.pairs(source, "source", "source", subjects=TRAIN_SUBJECTS, every=every)
    of_tests: dict[str, Any] = {"subjects": TEST_SUBJECTS, "every": every}
    tests = {"in-domain": domains.pairs(source, "source", "source", **of_tests)}
    known = None
    if target is None:
        tests["target"] = domains.pairs(source, "source", "target", **of_tests)
    else:
        # Of every other clip the 2D alone is known, as of one's own videos; the rest is for tests.
        seen, tested = (
            {s: dict(list(clips.items())[first::2]) for s, clips in target.items()}
            for first in (0, 1)
        )
        known = domains.pairs(seen, "target", "target", every=every)
        tests["target"] = domains.pairs(tested, "target", "target", every=every)

    def tensors(seen: Pairs) -> list[Tensor]:
        return [torch.from_numpy(array).to(device)[:, None] for array in seen[:2]]

    def test(seen: Pairs) -> Test:
        keypoints, joints = tensors(seen)
        return Test(keypoints, joints - joints[:, :, :1], seen.camera_group)

    inputs_2d, inputs_3d = tensors(train)
    inputs_3d[:, :, 1:] -= inputs_3d[:, :, :1]
    return Batches(
        inputs_2d,
        inputs_3d,
        torch.from_numpy(train.intrinsics).to(device),
        {name: test(seen) for name, seen in tests.items()},
        None if known is None else torch.from_numpy(known.keypoints_2d),
        None if known is None else torch.from_numpy(known.intrinsics),
    )
