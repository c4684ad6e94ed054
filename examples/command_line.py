"""The command line that the training examples share, and the data that it names."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from h36m_files import Recording, read_recordings, write_files
from mocap import TEST_SUBJECTS, TRAIN_SUBJECTS, Joints
from motion import source_motion


def training_parser(
    name: str, documentation: str | None, **defaults: Any
) -> argparse.ArgumentParser:
    """The common options.

    Args:
        name: Of the folder for checkpoints.
        documentation: The script's own.
        **defaults: Of `epochs`, `batch_size` and `lr`, which are the hosts'.
    """
    parser = argparse.ArgumentParser(description=(documentation or "").split("\n")[0])
    parser.add_argument(
        "--data", type=Path, help="folder with data_3d_h36m.npz; without it, procedural motion"
    )
    parser.add_argument("--keypoints", default="gt", help="NAME of data_2d_h36m_NAME.npz")
    parser.add_argument("--downsample", type=int, default=1, help="take every n-th frame")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--batch-size", type=int)
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
    """Parse; with ``--smoke``, ``smoke`` are the defaults."""
    if parser.parse_args(arguments).smoke:
        parser.set_defaults(**smoke)
    return parser.parse_args(arguments)


class Sets(NamedTuple):
    """Human3.6M's split."""

    train: list[Recording]
    test: list[Recording]


def read_sets(
    arguments: argparse.Namespace, convention: Callable[[Joints], Joints], joints: int = 17
) -> Sets:
    """The data that the command line names; procedural motion takes the way over files, too.

    Args:
        arguments: Of `training_parser`.
        convention: What the host does with the root: absolute joints (T, J, 3) to its own.
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
