"""What the training examples share: command line, data, learning rate, errors by action."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from torch.optim import Optimizer

from .h36m import Recording, read_recordings, write_files
from .mocap import TEST_SUBJECTS, TRAIN_SUBJECTS, Joints
from .motion import source_motion


def positive(text: str) -> int:
    """A whole number of one or more, of the command line."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected 1 or more, got {number}")
    return number


def training_parser(
    name: str, documentation: str | None, **defaults: Any
) -> argparse.ArgumentParser:
    """Make a parser with the common options.

    Args:
        name: Name of the folder for checkpoints.
        documentation: Docstring of the script.
        **defaults: Defaults of the host for `epochs`, `batch_size` and `lr`.
    """
    parser = argparse.ArgumentParser(description=(documentation or "").split("\n")[0])
    parser.add_argument(
        "--data", type=Path, help="folder with data_3d_h36m.npz; without it, procedural motion"
    )
    parser.add_argument("--keypoints", default="gt", help="NAME of data_2d_h36m_NAME.npz")
    parser.add_argument("--downsample", type=positive, default=1, help="take every n-th frame")
    parser.add_argument("--epochs", type=positive)
    parser.add_argument("--batch-size", type=positive)
    parser.add_argument("--lr", type=float)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--checkpoint", type=Path, default=Path("runs") / name, help="folder")
    parser.add_argument("--resume", type=Path, help="checkpoint to go on from, bit for bit")
    parser.add_argument("--poseaug", action="store_true", help="train with PoseAugHook")
    parser.add_argument("--smoke", action="store_true", help="the whole path in seconds")
    parser.set_defaults(**defaults)
    return parser


def parse(
    parser: argparse.ArgumentParser, arguments: Sequence[str] | None, **smoke: Any
) -> argparse.Namespace:
    """Parse, with ``smoke`` as defaults where ``--smoke`` is given."""
    if parser.parse_args(arguments).smoke:
        parser.set_defaults(**smoke)
    return parser.parse_args(arguments)


class Sets(NamedTuple):
    """Human3.6M's training and test subjects."""

    train: list[Recording]
    test: list[Recording]


def read_sets(
    arguments: argparse.Namespace, convention: Callable[[Joints], Joints], joints: int = 17
) -> Sets:
    """Read the data that the command line names, or procedural motion, by way of files too.

    Args:
        arguments: Result of `parse`.
        convention: The host's treatment of the root: absolute joints (T, J, 3) to its own.
        joints: 17, or 16 without the Neck/Nose.
    """
    with ExitStack() as stack:
        folder = arguments.data
        if folder is None:
            folder = Path(stack.enter_context(TemporaryDirectory()))
            write_files(folder, source_motion(), joints)
        train, test = (
            read_recordings(
                folder,
                subjects,
                keypoints=arguments.keypoints,
                joints=joints,
                every=arguments.downsample,
            )
            for subjects in (TRAIN_SUBJECTS, TEST_SUBJECTS)
        )
    return Sets(*([r._replace(joints=convention(r.joints)) for r in s] for s in (train, test)))


@dataclass
class StepDecay:
    """``initial * gamma ** (step / every)``, set at step 1 and at every multiple of ``every``."""

    initial: float
    every: int
    gamma: float
    step: int = 0  # steps so far
    lr: float = 0.0  # set by the first step

    def advance(self, optimizer: Optimizer) -> None:
        """Begin a step."""
        self.step += 1
        if self.step == 1 or self.step % self.every == 0:
            self.lr = self.initial * self.gamma ** (self.step / self.every)
            for group in optimizer.param_groups:
                group["lr"] = self.lr


class PerAction:
    """Errors of a test set by action, averaged as in Human3.6M's protocols."""

    def __init__(self) -> None:
        self._sums: dict[str, dict[str, float]] = {}
        self._frames: dict[str, int] = {}

    def add(self, action: str, frames: int, errors: Mapping[str, float]) -> None:
        """Add the means of some frames, in mm, by name of the metric."""
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
        """Metric -> mean over the actions, each of equal weight, as papers print it."""
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
