"""Windows of frames, as VideoPose3D's and ST-GCN's loops take them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from h36m_files import Recording
from mirroring import mirrored, mirrored_camera
from mocap import Joints
from numpy.typing import NDArray
from torch import Tensor


class Chunk(NamedTuple):
    """B windows: 2D of W frames, 3D of all of them or of the one that they are about."""

    cameras: Joints  # (B, 9)
    joints: Joints  # (B, W or 1, J, 3)
    keypoints: Joints  # (B, W, J, 2)


class Windows:
    """One window for every frame of every recording, and perhaps each mirrored.

    Where a window reaches beyond its recording, the first or last frame is repeated.

    Args:
        recordings: Clips, each seen by one camera.
        padding: Frames of a window before and after the one that it is about.
        whole_targets: 3D of all frames of the window, not of the one that it is about.
        flip: The skeleton's flip permutation; every window is then there once more, mirrored.
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
        # Where each window begins: the recordings before its own brought their padding along.
        self._start = np.arange(lengths.sum()) + (before + after) * self._recording
        self._seen = np.arange(before + after + 1)
        self._targets = self._seen if whole_targets else self._seen[before : before + 1]
        self._flip = flip

    @property
    def frames(self) -> int:
        """How many frames there are, unmirrored."""
        return len(self._start)

    def __len__(self) -> int:
        return self.frames * (1 if self._flip is None else 2)

    def __getitem__(self, rows: Sequence[int] | NDArray[np.int64]) -> Chunk:
        """The windows of these numbers; the second half of all numbers are the mirrored ones."""
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
    """Batches of windows in an order of its own, another one every epoch."""

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
        """For a checkpoint."""
        return self._random.get_state()

    def set_random_state(self, state: Tensor) -> None:
        """Go on from `random_state`."""
        self._random.set_state(state)


def padded(frames: Joints, padding: tuple[int, int]) -> Joints:
    """(T, J, C) with the first and last frame repeated: (before + T + after, J, C)."""
    return np.pad(frames, (padding, (0, 0), (0, 0)), "edge")
