"""Sequences seen through cameras, as tensors from which windows of frames are taken.

The folder holds source_cmu.npz, target_bandai.npz and cameras.json (see docs/examples.md): the
lifter trains on the source's people through the `source` cameras, and is tested on others.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from ablation import HELD_OUT, split
from mocap import (
    TEST_SUBJECTS,
    TRAIN_SUBJECTS,
    Camera,
    Motion,
    Pairs,
    demo_cameras,
    pairs,
    read_cameras,
    read_motion,
)
from torch import Tensor

from poseaug_plugin import H36M_17
from poseaug_plugin.bones import joints_to_bones, per_bone, with_bone_lengths


class Sequences(NamedTuple):
    """F frames of many sequences, one after the other, each seen by one camera."""

    keypoints: Tensor  # (F, J, 2) normalised screen
    joints: Tensor  # (F, J, 3) camera-space metres, absolute
    intrinsics: Tensor  # (F, 9)
    first: Tensor  # (F,) where the frame's own sequence begins
    last: Tensor  # (F,) and its last frame
    groups: tuple[str, ...]  # (F,) kind of camera
    families: tuple[str, ...]  # (F,) kind of motion

    def windows(self, frames: Tensor, length: int) -> tuple[Tensor, Tensor, Tensor]:
        """Windows about ``frames`` (B,): 2D (B, T, J, 2), 3D (B, T, J, 3), intrinsics (B, 9).

        At a sequence's ends its first or last frame is repeated, as VideoPose3D's loader does.
        """
        offsets = torch.arange(length, device=frames.device) - length // 2
        places = (frames[:, None] + offsets).clamp(
            self.first[frames, None], self.last[frames, None]
        )
        return self.keypoints[places], self.joints[places], self.intrinsics[frames]


class Benchmark(NamedTuple):
    """What is trained on, and the test sets by name."""

    train: Sequences
    tests: dict[str, Sequences]
    unlabelled: Tensor | None = None  # (N, J, 2) of the target, from clips that are not tested on
    told_bodies: Sequences | None = None  # the training motions, by the people who are tested on


def as_sequences(seen: Pairs, device: torch.device) -> Sequences:
    """All frames of a camera, then those of the next, cut where the clip changes."""
    names = seen.clip_name
    starts = (names[1:] != names[:-1]).nonzero()[0] + 1
    # The same clip through the next camera begins a sequence too.
    cameras = (seen.intrinsics[1:] != seen.intrinsics[:-1]).any(1).nonzero()[0] + 1
    starts = torch.tensor(sorted({0, *starts.tolist(), *cameras.tolist()}))
    ends = torch.cat([starts[1:], torch.tensor([len(names)])])
    lengths = ends - starts

    def per_frame(values: Tensor) -> Tensor:
        return values.repeat_interleave(lengths).to(device)

    return Sequences(
        *(torch.from_numpy(a).to(device) for a in seen[:3]),
        per_frame(starts),
        per_frame(ends - 1),
        tuple(seen.camera_group.tolist()),
        tuple(family(name) for name in names.tolist()),
    )


def family(clip: str) -> str:
    """Kind of motion: "S9/walking_1_test.1" is walking."""
    return clip.split("/")[-1].split("_")[0]


def _every(motion: Motion, step: int, *, others: bool = False) -> Motion:
    """Every ``step``-th of all clips, or the others."""
    clips = [(subject, name) for subject in motion for name in motion[subject]]
    clips = [clip for i, clip in enumerate(clips) if (i % step != 0) == others]
    subjects = dict.fromkeys(subject for subject, _ in clips)
    return {s: {n: motion[s][n] for subject, n in clips if subject == s} for s in subjects}


def _strangers(motion: Motion, generator: np.random.Generator) -> Motion:
    """Every clip up to a metre from where it was, and by a body of its own.

    Nobody stands in the middle all the time; sizes are 0.8 to 1.1 of what they were, and every bone
    length (left and right alike) up to a fifth more or less than that.
    """
    strange: dict[str, dict[str, Any]] = {}
    for subject, clips in motion.items():
        strange[subject] = {}
        for name, clip in clips.items():
            joints = torch.from_numpy(clip)
            ratios = generator.uniform(0.8, 1.1) * generator.uniform(
                0.8, 1.2, H36M_17.num_bone_length_groups
            )
            bones = joints_to_bones(joints, H36M_17).norm(dim=-1)
            lengths = bones * per_bone(torch.from_numpy(ratios).to(bones), H36M_17)
            offset = np.append(generator.uniform(-1, 1, 2), 0).astype(clip.dtype)
            strange[subject][name] = _on_the_floor(joints, lengths) + offset
    return strange


def _in_bodies_of(motion: Motion, people: Motion) -> Motion:
    """The same motions by other people, who take turns: each clip by one of them."""
    bodies = [
        joints_to_bones(torch.from_numpy(np.concatenate(list(clips.values()))), H36M_17)
        .norm(dim=-1)
        .mean(0)
        for clips in people.values()
    ]
    turns = itertools.cycle(bodies)
    return {
        subject: {
            name: _on_the_floor(torch.from_numpy(clip), next(turns)) for name, clip in clips.items()
        }
        for subject, clips in motion.items()
    }


def _on_the_floor(joints: Tensor, lengths: Tensor) -> np.ndarray:
    """World positions with other bone lengths, the lowest joint as low as before."""
    changed = with_bone_lengths(joints, lengths.to(joints), H36M_17)
    changed[..., 2] += joints[..., 2].min() - changed[..., 2].min()
    return changed.numpy()


def load(
    folder: Path,
    device: torch.device,
    *,
    validate: bool = False,
    held_out: Sequence[str] = HELD_OUT,
    subjects: tuple[str, ...] = TRAIN_SUBJECTS,
    every: int = 1,
    clips: int = 1,
    train_cameras: str = "source",
) -> Benchmark:
    """Read the three files.

    Args:
        folder: Where they are.
        device: Where the tensors go.
        validate: Nothing of the target: motions of the training subjects are held out, and seen
            through the source cameras and through cameras of the example's own. For choosing.
        held_out: Which motions: patterns of clip names.
        subjects: Who is trained on.
        every: Take every n-th frame of the training clips.
        clips: Take every n-th clip of the test sets.
        train_cameras: Through which to train: the source's, or one group of the rig that otherwise
            tests. Its other cameras test then.
    """
    rigs = read_cameras(folder / "cameras.json")
    source = read_motion(folder / "source_cmu.npz")
    new_rig = demo_cameras() if validate else rigs
    known, new = rigs.cameras["source"], new_rig.cameras["target"]
    known_centre, new_centre = rigs.centres["source"], new_rig.centres["target"]
    if train_cameras != "source":
        known = tuple(camera for camera in new if camera.group == train_cameras)
        new = tuple(camera for camera in new if camera.group != train_cameras)
        known_centre = new_centre

    def seen(
        motion: Motion, cameras: Sequence[Camera], centre: np.ndarray, home: str, **options: Any
    ) -> Sequences:
        """A motion from the room ``home``, moved to where the cameras look."""
        x, y = (centre - rigs.centres[home])[:2]
        return as_sequences(pairs(motion, cameras, joints=16, shift=(x, y), **options), device)

    if validate:
        train, others = split(source, held_out)
        others = _every(others, clips)
        strangers = _strangers(others, np.random.default_rng(0))
        train = {s: train[s] for s in subjects}
        return Benchmark(
            seen(train, known, known_centre, "source", every=every),
            {
                "same views": seen(others, known, known_centre, "source"),
                "new views": seen(strangers, new, new_centre, "source"),
            },
        )
    everyone = read_motion(folder / "target_bandai.npz")
    target, untested = _every(everyone, clips), _every(everyone, clips, others=True)
    in_domain = _every({s: source[s] for s in TEST_SUBJECTS}, clips)
    train_on: dict[str, Any] = {"subjects": subjects, "every": every}
    return Benchmark(
        seen(source, known, known_centre, "source", **train_on),
        {
            "in-domain": seen(in_domain, known, known_centre, "source"),
            "cross-dataset": seen(target, new, new_centre, "target"),
            "pose gap": seen(target, known, known_centre, "target"),
        },
        seen(untested, new, new_centre, "target").keypoints if untested else None,
        seen(_in_bodies_of(source, target), known, known_centre, "source", **train_on),
    )
