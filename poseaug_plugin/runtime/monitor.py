"""`Monitor`: what happens inside the hook, kept on the device until somebody reads it."""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..errors import warn


class Diagnostics(NamedTuple):
    """Running means over about the last fifty updates, and counts since the start.

    A mean is NaN where it does not apply.
    """

    updates: int
    strength: float  # of all spreads, 0 to 1: what feedback leaves of them
    hardness_ratio: float  # the estimator's error on augmented poses / on original ones
    mean_pose_ratio: float  # that error / the error of always answering with the mean pose
    critic_accuracy: dict[str, float]  # by critic, 0 to 1; 0.5 is a draw
    kept_share: float  # augmented poses that replaced their originals, 0 to 1
    angle_change: float  # degrees by which a bone was turned
    length_change: float  # mean |bone length ratio|
    diversity: float  # spread of augmented 2D poses inside a batch / that of original ones
    unusable_samples: int  # samples that were not finite or stood behind the camera
    skipped_steps: int  # updates in which a network was left out, its gradient not being finite


_MEANS = (
    *("strength", "hardness_ratio", "mean_pose_ratio"),
    *("kept_share", "angle_change", "length_change", "diversity"),
)
_FORGET = 0.02
_SETTLED = 100  # updates before a running mean is worth a warning

_FURTHER_AWAY = ", or put them further away: spread=Spread(depth=(0.9, 1.5))"


def _remedies(d: Diagnostics, further_away: str) -> dict[str, str]:
    """What is wrong and what to do, by the name of the figure that says so."""
    found = {}
    if d.diversity < 0.2:
        found["diversity"] = (
            f"the augmented poses of a batch have become nearly the same ({d.diversity:.2f} of the "
            "originals' spread): the policy is collapsing. Start over with another seed."
        )
    if d.kept_share < 0.5:
        found["kept_share"] = (
            f"only {d.kept_share:.0%} of the augmented poses are in front of the camera and in "
            "frame; the others fall back to the originals. Check hook.check_batch(...) and the "
            f"adapter's aspect_ratio{further_away}."
        )
    if d.skipped_steps > 0.1 * d.updates:
        found["skipped_steps"] = (
            f"{d.skipped_steps} updates were left out because their gradients were not finite. "
            "Check hook.check_batch(...)."
        )
    return found


class Monitor(nn.Module):
    """Running means and counters as buffers: saved with the rest, and never forcing a sync.

    ``reads_spread`` says that the policy draws from a `Spread`, which a remedy may name.
    """

    means: Tensor
    seen: Tensor
    counts: Tensor

    def __init__(self, critics: tuple[str, ...], reads_spread: bool) -> None:
        super().__init__()
        self.critics, self.reads_spread = critics, reads_spread
        self.names = (*_MEANS, *critics)
        self.register_buffer("means", torch.zeros(len(self.names)))
        self.register_buffer("seen", torch.zeros(len(self.names)))
        self.register_buffer("counts", torch.zeros(2, dtype=torch.int64))
        self._warned: set[str] = set()

    def count(self, unusable: Tensor) -> None:
        """Add up the unusable samples (N,) bool of a batch."""
        self.counts[0] += unusable.sum()

    @torch.no_grad()
    def record(self, skipped: Tensor, **values: Tensor) -> None:
        """Take 0-d tensors by name; what is not finite is left out."""
        missing = torch.full((), math.nan, device=self.means.device)
        latest = torch.stack([values.get(n, missing).to(self.means.dtype) for n in self.names])
        known = latest.isfinite()
        self.seen += known
        # A plain mean at first, an exponential one later.
        rate = torch.where(known, (1 / self.seen.clamp(min=1)).clamp(min=_FORGET), 0.0)
        self.means += rate * (torch.where(known, latest, 0.0) - self.means)
        self.counts[1] += skipped.to(torch.int64)

    def read(self, updates: int) -> Diagnostics:
        """Bring the values to the host, and warn, once each, of what they say."""
        values = torch.where(self.seen > 0, self.means, math.nan).tolist()
        means = dict(zip(self.names, values, strict=True))
        cosine = 1 - means["angle_change"]
        if cosine == cosine:
            means["angle_change"] = math.degrees(math.acos(min(max(cosine, -1.0), 1.0)))
        unusable, skipped = self.counts.tolist()
        result = Diagnostics(
            updates=updates,
            critic_accuracy={name: means.pop(name) for name in self.critics},
            unusable_samples=unusable,
            skipped_steps=skipped,
            **means,
        )
        found = _remedies(result, _FURTHER_AWAY if self.reads_spread else "")
        for name in found.keys() - self._warned if updates >= _SETTLED else ():
            self._warned.add(name)
            warn(f"PoseAugHook: {found[name]}")
        return result
