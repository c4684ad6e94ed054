"""`Monitor`: what happens inside the hook, kept on the device until somebody reads it."""

import math
from typing import NamedTuple, get_type_hints

import torch
from torch import Tensor, nn

from ..errors import warn


class Diagnostics(NamedTuple):
    """Means over about the last fifty updates, NaN where they do not apply, and counts of all."""

    updates: int  # one before every step of the optimizer
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
    learned: str  # in a line, what the loop has changed


_MEANS = tuple(name for name, kind in get_type_hints(Diagnostics).items() if kind is float)


def _remedies(d: Diagnostics, learned: float, reads_spread: bool) -> dict[str, str]:
    """What is wrong and what to do, by the figure that says so, after ``learned`` readings."""
    found = {}
    further_away = ", or put them further away: spread=Spread(depth=(0.9, 1.5))"
    if d.diversity < 0.2:
        found["diversity"] = (
            f"the augmented poses of a batch have become nearly the same ({d.diversity:.2f} of the "
            "originals' spread): the policy is collapsing. Start over with another seed."
        )
    if d.kept_share < 0.5:
        found["kept_share"] = (
            f"only {d.kept_share:.0%} of the augmented poses are in front of the camera and in "
            "frame; the others fall back to the originals. Check hook.check_batch(...) and the "
            f"adapter's aspect_ratio{further_away if reads_spread else ''}."
        )
    if d.skipped_steps > 0.1 * learned:
        found["skipped_steps"] = (
            f"{d.skipped_steps} updates were left out because their gradients were not finite. "
            "Check hook.check_batch(...)."
        )
    return found


class Monitor(nn.Module):
    """Running means and counters as buffers: saved with the rest, and never forcing a sync."""

    means: Tensor
    seen: Tensor
    counts: Tensor  # unusable samples, skipped steps

    def __init__(self, critics: tuple[str, ...], reads_spread: bool) -> None:
        super().__init__()
        self.critics = critics
        self.reads_spread = reads_spread  # the policy draws from one, so a remedy may name it
        self.names = (*_MEANS, *critics)
        self.register_buffer("means", torch.zeros(len(self.names)))
        self.register_buffer("seen", torch.zeros(len(self.names)))
        self.register_buffer("counts", torch.zeros(2, dtype=torch.int64))
        self._warned: set[str] = set()

    @torch.no_grad()
    def record(self, skipped: Tensor, **values: Tensor) -> None:
        """Take 0-d tensors by name; what is not finite is left out."""
        missing = torch.full((), math.nan, device=self.means.device)
        latest = torch.stack([values.get(n, missing).to(self.means.dtype) for n in self.names])
        known = latest.isfinite()
        self.seen += known
        # A plain mean at first, an exponential one of fifty later.
        rate = torch.where(known, (1 / self.seen.clamp(min=1)).clamp(min=0.02), 0.0)
        self.means += rate * (torch.where(known, latest, 0.0) - self.means)
        self.counts[1].add_(skipped)

    def read(self, updates: int, learned: str = "") -> Diagnostics:
        """Bring the values to the host, and warn, once each, of what they say."""
        values = torch.where(self.seen > 0, self.means, math.nan).tolist()
        means = dict(zip(self.names, values, strict=True))
        cosine = min(max(1 - means["angle_change"], -1.0), 1.0)  # NaN stays NaN
        means["angle_change"] = math.degrees(math.acos(cosine))
        unusable, skipped = self.counts.tolist()
        result = Diagnostics(
            updates=updates,
            critic_accuracy={name: means.pop(name) for name in self.critics},
            unusable_samples=unusable,
            skipped_steps=skipped,
            learned=learned,
            **means,
        )
        if updates >= 100:  # before, a running mean is not worth a warning
            found = _remedies(result, self.seen.max().item(), self.reads_spread)
            for name, remedy in found.items():
                if name not in self._warned:
                    self._warned.add(name)
                    warn(f"PoseAugHook: {remedy}")
        return result
