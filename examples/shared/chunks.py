"""Windows of frames, as in the loops of VideoPose3D and ST-GCN, and their mirror images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .h36m import Recording
from .mocap import Joints

# Intrinsics that change their sign: x of the principal point, and p1.
_MIRRORED_INTRINSICS = (2, 7)


class Chunk(NamedTuple):
    """B windows: 2D of W frames, 3D of all of them or of their own frame alone."""

    cameras: Joints  # (B, 9)
    joints: Joints  # (B, W or 1, J, 3)
    keypoints: Joints  # (B, W, J, 2)


class Windows:
    """One window for every frame of every recording, and on request each mirrored.

    Beyond the ends of a recording the first or last frame is repeated.

    Args:
        recordings: Clips, each seen by one camera.
        padding: Frames of a window before and after its own frame.
        whole_targets: Whether to give 3D of all frames of the window, not of its own alone.
        flip: Flip permutation of the skeleton. Adds a mirrored copy of every window.
    """

    def __init__(
        self,
        recordings: Sequence[Recording],
        padding: tuple[int, int] = (0, 0),
        *,
        whole_targets: bool = False,
        flip: Sequence[int] | None = None,
    ) -> None:
        before, after = padding
        lengths = np.array([len(r.joints) for r in recordings])
        self._keypoints = np.concatenate([padded(r.keypoints, padding) for r in recordings])
        self._joints = np.concatenate([padded(r.joints, padding) for r in recordings])
        self._cameras = np.array([r.camera.intrinsics for r in recordings], np.float32)
        self._recording = np.repeat(np.arange(len(recordings)), lengths)
        # The start of each window. Each earlier recording has its padding, too.
        self._start = np.arange(lengths.sum()) + (before + after) * self._recording
        self._seen = np.arange(before + after + 1)
        self._targets = self._seen if whole_targets else self._seen[before : before + 1]
        self._flip = flip

    @property
    def frames(self) -> int:
        """Number of frames, without mirrored ones."""
        return len(self._start)

    def __len__(self) -> int:
        return self.frames * (1 if self._flip is None else 2)

    def __getitem__(self, rows: Sequence[int] | NDArray[np.int64]) -> Chunk:
        """Windows by number; the mirrored ones are the second half."""
        turned, frames = np.divmod(np.asarray(rows), self.frames)
        starts = self._start[frames, None]
        chunk = Chunk(
            self._cameras[self._recording[frames]],
            self._joints[starts + self._targets],
            self._keypoints[starts + self._seen],
        )
        if self._flip is not None:
            turned = turned.astype(bool)
            chunk.cameras[turned] = mirrored_camera(chunk.cameras[turned])
            for poses in (chunk.joints, chunk.keypoints):
                poses[turned] = mirrored(poses[turned], self._flip)
        return chunk

    def in_order(self, batch_size: int) -> Iterator[Chunk]:
        """All windows, unshuffled."""
        for start in range(0, len(self), batch_size):
            yield self[np.arange(start, min(start + batch_size, len(self)))]


class ChunkedGenerator:
    """Batches of windows, in a new random order every epoch."""

    def __init__(self, windows: Windows, batch_size: int, seed: int = 1234) -> None:
        self.windows, self.batch_size = windows, batch_size
        self._random = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return -(-len(self.windows) // self.batch_size)

    def next_epoch(self) -> Iterator[Chunk]:
        """Every window once; the last batch may be smaller."""
        order = torch.randperm(len(self.windows), generator=self._random)
        for rows in order.split(self.batch_size):
            yield self.windows[rows.numpy()]

    def random_state(self) -> Tensor:
        """State of the order, for a checkpoint."""
        return self._random.get_state()

    def set_random_state(self, state: Tensor) -> None:
        """Go on from `random_state`."""
        self._random.set_state(state)


def padded(frames: Joints, padding: tuple[int, int]) -> Joints:
    """(T, J, C) with the first and last frame repeated: (before + T + after, J, C)."""
    return np.pad(frames, (padding, (0, 0), (0, 0)), "edge")


def mirrored(poses: Any, permutation: Sequence[int]) -> Any:
    """Mirror poses left to right, as a copy.

    Args:
        poses: Array or tensor (..., J, 2) or (..., J, 3), x first, centred on x = 0.
        permutation: Index of each joint's mirror image, `Skeleton.flip_permutation`.
    """
    poses = poses[..., list(permutation), :]
    poses[..., 0] *= -1
    return poses


def mirrored_camera(intrinsics: Any) -> Any:
    """Mirror cameras (..., 9), as a copy: they see mirrored poses as the mirrored image."""
    intrinsics = intrinsics + 0
    intrinsics[..., _MIRRORED_INTRINSICS] *= -1
    return intrinsics
