"""What happens inside the hook, kept on the device until somebody reads it."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .errors import PoseAugWarning


class Diagnostics(NamedTuple):
    """Running means over about the last fifty updates, and counts since the start.

    A mean is NaN where it does not apply.
    """

    updates: int
    hardness_ratio: float  # the estimator's error on augmented poses / on original ones
    guessing_ratio: float  # that error / the one of always answering with the mean augmented pose
    predictor_r_squared: float  # of the log error; 1 is perfect, 0 is no better than its mean
    accuracy_3d: float  # of the 3D critic, 0 to 1; 0.5 is a draw
    accuracy_2d: float  # of the 2D critic
    accuracy_motion: float  # of the critic of windows
    kept_share: float  # augmented poses that were valid, 0 to 1
    angle_change: float  # degrees by which a bone was turned
    length_change: float  # mean |bone length ratio|
    diversity: float  # spread of augmented 2D poses inside a batch / that of original ones
    unusable_samples: int  # samples that were not finite or stood behind the camera
    skipped_steps: int  # updates in which a network was left out, its gradient not being finite


_MEANS = Diagnostics._fields[1:11]
_FORGET = 0.02
_SETTLED = 100  # updates before a running mean is worth a warning

_REMEDIES: dict[str, tuple[Callable[[Diagnostics], bool], str]] = {
    "diversity": (
        lambda d: d.diversity < 0.2,
        "the augmented poses of a batch have become nearly the same ({diversity:.2f} of the "
        "originals' spread): the policy is collapsing. Lower learning_rate, or start over "
        "with another seed.",
    ),
    "kept_share": (
        lambda d: d.kept_share < 0.5,
        "only {kept_share:.0%} of the augmented poses are in front of the camera and in frame; the "
        "others fall back to the originals. Check hook.check_batch(...) and aspect_ratio, or put "
        "them further away: spread=Spread(depth=(0.9, 1.5)).",
    ),
    "accuracy_3d": (
        lambda d: d.accuracy_3d > 0.99,  # 0.97 is usual, after some ten thousand updates
        "the 3D critic tells {accuracy_3d:.0%} of the poses apart, so the augmented poses do not "
        "look human to it. Raise weight_3d.",
    ),
    "skipped_steps": (
        lambda d: d.skipped_steps > 0.1 * d.updates,
        "{skipped_steps} updates were left out because their gradients were not finite. Check "
        "hook.check_batch(...); lower learning_rate.",
    ),
}


class Monitor(nn.Module):
    """Running means and counters as buffers: saved with the rest, and never forcing a sync."""

    means: Tensor
    seen: Tensor
    counts: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("means", torch.zeros(len(_MEANS)))
        self.register_buffer("seen", torch.zeros(len(_MEANS)))
        self.register_buffer("counts", torch.zeros(2, dtype=torch.int64))
        self._warned: set[str] = set()

    @torch.no_grad()
    def record(self, unusable: Tensor, skipped: Tensor, **values: Tensor) -> None:
        """Take 0-d tensors by the names of `Diagnostics`; what is not finite is left out."""
        missing = torch.full((), math.nan, device=self.means.device)
        latest = torch.stack([values.get(name, missing).to(self.means.dtype) for name in _MEANS])
        known = latest.isfinite()
        self.seen += known
        # A plain mean at first, an exponential one later.
        rate = torch.where(known, (1 / self.seen.clamp(min=1)).clamp(min=_FORGET), 0.0)
        self.means += rate * (torch.where(known, latest, 0.0) - self.means)
        self.counts += torch.stack([unusable, skipped]).to(torch.int64)

    def read(self, updates: int) -> Diagnostics:
        """Bring the values to the host, and warn, once each, of what they say."""
        means = dict(
            zip(_MEANS, torch.where(self.seen > 0, self.means, math.nan).tolist(), strict=True)
        )
        cosine = 1 - means["angle_change"]
        if cosine == cosine:
            means["angle_change"] = math.degrees(math.acos(min(max(cosine, -1.0), 1.0)))
        unusable, skipped = self.counts.tolist()
        result = Diagnostics(
            updates=updates, unusable_samples=unusable, skipped_steps=skipped, **means
        )
        if updates >= _SETTLED:
            for name, (is_bad, remedy) in _REMEDIES.items():
                if name not in self._warned and is_bad(result):
                    self._warned.add(name)
                    warnings.warn(
                        f"PoseAugHook: {remedy.format(**result._asdict())}",
                        PoseAugWarning,
                        stacklevel=3,
                    )
        return result
