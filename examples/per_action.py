"""Errors of a test set action by action, and their average as Human3.6M's protocols have it."""

from __future__ import annotations

from collections.abc import Mapping

Errors = Mapping[str, float]


class PerAction:
    """Collects mean errors of pieces of a test set."""

    def __init__(self) -> None:
        self._sums: dict[str, dict[str, float]] = {}
        self._frames: dict[str, int] = {}

    def add(self, action: str, frames: int, errors: Errors) -> None:
        """Add the means over so many frames, in mm, by the metric's name."""
        sums = self._sums.setdefault(action, dict.fromkeys(errors, 0.0))
        for name, error in errors.items():
            sums[name] += frames * error
        self._frames[action] = self._frames.get(action, 0) + frames

    def of_actions(self) -> dict[str, dict[str, float]]:
        """Action -> metric -> mean over the action's frames."""
        return {
            action: {name: total / self._frames[action] for name, total in sums.items()}
            for action, sums in self._sums.items()
        }

    def action_average(self) -> dict[str, float]:
        """Metric -> mean over the actions, however long each is: what papers print."""
        means = list(self.of_actions().values())
        return {name: sum(mean[name] for mean in means) / len(means) for name in means[0]}

    def frame_average(self) -> dict[str, float]:
        """Metric -> mean over all frames."""
        frames = sum(self._frames.values())
        totals = list(self._sums.values())
        return {name: sum(total[name] for total in totals) / frames for name in totals[0]}

    def table(self) -> str:
        """A Markdown table in mm."""
        rows = self.of_actions() | {"average of the actions": self.action_average()}
        names = list(self.action_average())
        lines = [f"| mm | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
        for row, errors in rows.items():
            lines.append(f"| {row} | {' | '.join(f'{errors[name]:.1f}' for name in names)} |")
        return "\n".join(lines)
