"""Sequences that cameras see, as tensors from which windows of frames are taken.

The folder has source_cmu.npz, target_bandai.npz and cameras.json (docs/examples.md). The estimator
trains on the people of the source, seen by the `source` cameras. The test is on others.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from shared.domains import Domains, read_domains
from shared.mocap import TEST_SUBJECTS, TRAIN_SUBJECTS, Motion, Pairs, Rigs, demo_cameras
from torch import Tensor

from poseaug_plugin.body.bones import (
    average_bone_lengths,
    joints_to_bones,
    per_bone,
    with_bone_lengths,
)
from poseaug_plugin.body.presets import H36M_17

HELD_OUT = ("signal", "directing")
"""Patterns of the clips that are held out for validation: signalling and directing traffic."""


class Sequences(NamedTuple):
    """F frames of many sequences, one after the other, each sequence seen by one camera."""

    keypoints: Tensor  # (F, J, 2) normalised screen
    joints: Tensor  # (F, J, 3) camera-space metres, absolute
    intrinsics: Tensor  # (F, 9)
    first: Tensor  # (F,) first frame of the frame's own sequence
    last: Tensor  # (F,) last frame of it
    groups: tuple[str, ...]  # (F,) kind of camera

    def windows(self, frames: Tensor, length: int) -> tuple[Tensor, Tensor, Tensor]:
        """Windows about ``frames`` (B,): 2D (B, T, J, 2), 3D (B, T, J, 3), intrinsics (B, 9).

        Beyond the ends of a sequence its first or last frame is repeated, as in VideoPose3D.
        """
        offsets = torch.arange(length, device=frames.device) - length // 2
        places = (frames[:, None] + offsets).clamp(
            self.first[frames, None], self.last[frames, None]
        )
        return self.keypoints[places], self.joints[places], self.intrinsics[frames]

    def parts(self, values: Tensor) -> list[Tensor]:
        """Values (F, ...) sequence by sequence."""
        return list(values.split((self.first.unique_consecutive(return_counts=True)[1]).tolist()))


Made = Callable[[], Sequences]  # few runs need them


class Benchmark(NamedTuple):
    """Sequences to train on, to test on, and whose 2D alone is known, by name."""

    train: Sequences
    tests: dict[str, Sequences]
    known_2d: dict[str, Made]
    told: dict[str, Made]  # the training set as someone would make it who knows the target


def as_sequences(seen: Pairs, device: torch.device, noise: float = 0.0) -> Sequences:
    """Cut pairs into sequences, where the clip or the camera changes.

    ``noise`` is a detector's, as the standard deviation of normalised coordinates.
    """
    names, lenses = seen.clip_name, seen.intrinsics
    changes = (names[1:] != names[:-1]) | (lenses[1:] != lenses[:-1]).any(1)
    starts = torch.tensor([0, *(changes.nonzero()[0] + 1).tolist()])
    ends = torch.cat([starts[1:], torch.tensor([len(names)])])
    lengths = ends - starts

    def per_frame(values: Tensor) -> Tensor:
        return values.repeat_interleave(lengths).to(device)

    keypoints = torch.from_numpy(seen.keypoints_2d)
    generator = torch.Generator().manual_seed(0)
    keypoints = keypoints + noise * torch.randn(keypoints.shape, generator=generator)
    return Sequences(
        *(x.to(device) for x in (keypoints, *map(torch.from_numpy, seen[1:3]))),
        per_frame(starts),
        per_frame(ends - 1),
        tuple(seen.camera_group.tolist()),
    )


def split(motion: Motion, held_out: Sequence[str] = HELD_OUT) -> tuple[Motion, Motion]:
    """Clips of the training subjects to train on, and those whose names match a pattern."""
    parts: tuple[Motion, Motion] = {}, {}
    for subject in TRAIN_SUBJECTS:
        for name, clip in motion[subject].items():
            is_held_out = any(re.search(pattern, name) for pattern in held_out)
            parts[is_held_out].setdefault(subject, {})[name] = clip
    return parts


def _every(motion: Motion, step: int, first: int = 0) -> Motion:
    """Every ``step``-th of all clips."""
    chosen: Motion = {}
    for subject, name in [(s, n) for s, clips in motion.items() for n in clips][first::step]:
        chosen.setdefault(subject, {})[name] = motion[subject][name]
    return chosen


def _with_bodies_of(motion: Motion, others: Motion) -> Motion:
    """The same movements of people whose bones are as long as the others' in the median."""

    def lengths(clips: Motion) -> Tensor:
        frames = [torch.from_numpy(c) for named in clips.values() for c in named.values()]
        return average_bone_lengths(torch.cat(frames), H36M_17).median(0).values

    ratios = per_bone(lengths(others) / lengths(motion), H36M_17)
    changed: Motion = {}
    for subject, clips in motion.items():
        changed[subject] = {}
        for name, clip in clips.items():
            joints = torch.from_numpy(clip)
            bones = joints_to_bones(joints, H36M_17).norm(dim=-1)
            changed[subject][name] = with_bone_lengths(joints, bones * ratios, H36M_17).numpy()
    return changed


def _strangers(motion: Motion, generator: np.random.Generator) -> Motion:
    """Move every clip by up to a metre, and give it a body of its own.

    Bodies are 0.8 to 1.1 times as large, and every bone length (left and right alike) differs by up
    to a fifth from that.
    """
    strange: Motion = {}
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
            changed = with_bone_lengths(joints, lengths.to(joints), H36M_17)
            # The lowest joint stays as low as it was.
            changed[..., 2] += joints[..., 2].min() - changed[..., 2].min()
            strange[subject][name] = changed.numpy() + offset
    return strange


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
    noise: float = 0.0,
) -> Benchmark:
    """Read the three files.

    Args:
        folder: Folder of the files.
        device: Device of the tensors.
        validate: Test on nothing of the target, for choosing options: on held-out motions of the
            training subjects, seen by the source cameras and by cameras of the example's own.
        held_out: Patterns of their clip names.
        subjects: Subjects to train on.
        every: Take every n-th frame of the training clips.
        clips: Take every n-th clip of the test sets.
        train_cameras: Cameras to train with: the source's, or a group of the target's. Its other
            groups test then.
        noise: Of all 2D, those of training and tests and what is known of the target: the standard
            deviation of normalised coordinates.
    """
    source, target, rigs = read_domains(folder)
    abroad = demo_cameras() if validate else rigs
    cameras = {"known": rigs.cameras["source"], "new": abroad.cameras["target"]}
    centres = rigs.centres | {"known": rigs.centres["source"], "new": abroad.centres["target"]}
    if train_cameras != "source":
        target_cameras, centres["known"] = cameras["new"], centres["new"]
        cameras = {
            "known": [camera for camera in target_cameras if camera.group == train_cameras],
            "new": [camera for camera in target_cameras if camera.group != train_cameras],
        }
    domains = Domains(source, target, Rigs(cameras, centres))

    def seen(motion: Motion, home: str, room: str, **options: Any) -> Sequences:
        return as_sequences(domains.pairs(motion, home, room, **options), device, noise)

    if validate:
        train, others = split(source, held_out)
        others = _every(others, clips)
        strangers = _strangers(others, np.random.default_rng(0))
        tests = {
            "same views": seen(others, "source", "known"),
            "new views": seen(strangers, "source", "new"),
        }
    else:
        train, others = source, _every(target, clips)
        in_domain = _every({s: source[s] for s in TEST_SUBJECTS}, clips)
        tests = {
            "in-domain": seen(in_domain, "source", "known"),
            "cross-dataset": seen(others, "target", "new"),
            "pose gap": seen(others, "target", "known"),
        }
    learned = seen(train, "source", "known", subjects=subjects, every=every)
    known_2d: dict[str, Made] = {"own": lambda: learned}
    told: dict[str, Made] = {}
    if clips > 1 and not validate:  # of other clips than those that are tested on
        rest = _every(target, clips, 1)
        second = {s: named for s, named in rest.items() if s.startswith("BN2")}

        def with_their_bodies(room: str) -> Sequences:
            theirs = _with_bodies_of({s: train[s] for s in subjects}, rest)
            return seen(theirs, "source", room, every=every)

        known_2d["target"] = partial(seen, rest, "target", "new")
        known_2d["other people"] = partial(seen, second, "target", "new")
        told["bodies"] = partial(with_their_bodies, "known")
        told["bodies and cameras"] = partial(with_their_bodies, "new")
    return Benchmark(learned, tests, known_2d, told)
