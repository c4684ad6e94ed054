"""Choose options without looking at the test set: train on some motions, validate on others.

    python examples/ablation.py --data FOLDER [--rows ...] [--seeds ...]

From the training subjects of source_cmu.npz, the clips of signalling and directing traffic are held
out; the rest trains. They are then seen through the source cameras ("same views") and through eight
cameras of the example's own, two of them from the ceiling ("new views"). Prints a table and writes
the results file that docs/experiments.md shows.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import quickstart
import torch
from mocap import TRAIN_SUBJECTS, Motion, demo_cameras, pairs, read_cameras, read_motion
from report import format_table, read_results, write_results

from poseaug_plugin import Spread

WIDE = Spread(pitch=0.7, roll=0.3)
ROWS: dict[str, dict[str, Any] | None] = {
    "no augmentation": None,
    "random augmentation": {"preset": "random"},
    "random, wide (pitch 0.7, roll 0.3)": {"preset": "random", "spread": WIDE},
    "default": {},
    "default without entropy": {"entropy_weight": 0.0},
    "default, with feedback": {"feedback": "predicted"},
    "default without critics": {"weight_3d": 0.0, "weight_2d": 0.0},
    "default from the wide base": {"spread": WIDE},
}
HELD_OUT = ("signal", "directing")


def split(motion: Motion, held_out: Sequence[str] = HELD_OUT) -> tuple[Motion, Motion]:
    """The training subjects' clips: those to train on, and those in whose names a pattern is."""

    def those(are_held_out: bool) -> Motion:
        return {
            subject: {
                name: clip
                for name, clip in motion[subject].items()
                if any(re.search(pattern, name) for pattern in held_out) == are_held_out
            }
            for subject in TRAIN_SUBJECTS
        }

    return those(False), {subject: clips for subject, clips in those(True).items() if clips}


def load_data(folder: Path, every: int) -> quickstart.Data:
    """Source data only."""
    rigs = read_cameras(folder / "cameras.json")
    train, held_out = split(read_motion(folder / "source_cmu.npz"))
    to_demo = tuple(-rigs.centres["source"][:2])
    source, demo = rigs.cameras["source"], demo_cameras().cameras["target"]
    return quickstart.as_data(
        pairs(train, source, joints=16, every=every),
        {
            "same views": pairs(held_out, source, joints=16, every=4 * every),
            "new views": pairs(held_out, demo, joints=16, every=4 * every, shift=to_demo),
        },
        torch.device("cuda" if torch.cuda.is_available() else "cpu"),
    )


def main() -> None:
    """Train what is not in the results file yet."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/ablation"))
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--smoke", action="store_true", help="the whole path in seconds")
    arguments = parser.parse_args()
    arguments.epochs, arguments.batch, arguments.lr = (1 if arguments.smoke else 20), 512, 1e-3
    arguments.stop_after = None
    arguments.out.mkdir(parents=True, exist_ok=True)
    data = load_data(arguments.data, every=40 if arguments.smoke else 1)
    results_file = arguments.out / "results.json"
    for seed in arguments.seeds:
        for row in arguments.rows:
            results = read_results(results_file)
            if (row, seed) in {(r["row"], r["seed"]) for r in results}:
                continue
            run = quickstart.Run(row, ROWS[row], seed, data, arguments)
            quickstart.train(run, arguments.out / f"{len(results)}.pt", resume=False)
            write_results(results_file, [*read_results(results_file), run.result()])
    print(format_table(read_results(results_file)))


if __name__ == "__main__":
    main()
