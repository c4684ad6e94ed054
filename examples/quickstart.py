"""Train one estimator four ways, and test it on new people, new motions and new cameras.

    python examples/quickstart.py                     # procedural motion, three minutes
    python examples/quickstart.py --data FOLDER       # motion capture, see docs/examples.md
    python examples/quickstart.py --h36m data_3d_h36m.npz

No augmentation; random augmentation as one writes it in an afternoon; `PoseAugHook`; and the hook
that is given 2D poses of the target, without any 3D, as a detector finds them in one's own videos.
All have the same number of optimizer steps. Prints a table. Writes results, a figure and
checkpoints to `--out`; `--resume` goes on from there, bit for bit.
"""

from __future__ import annotations

import argparse
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from estimators import SimpleBaseline
from shared import checkpoints
from shared.domains import Batches, read_domains, training_data
from shared.models import SingleFrame
from shared.report import format_table, of_hook, read_results, write_results
from shared.training import positive
from tqdm import tqdm

from poseaug_plugin import PoseAugHook, Spread, metrics

# Turns about the vertical, bone lengths up to 15 % longer or shorter, half of the batch.
PLAIN = Spread(
    pitch=0,
    roll=0,
    depth=(1, 1),
    keep_view=0,
    limb_angle=0,
    bone_angle=0,
    torso_angle=0,
    torso_length=0.15,
)
KNOWN = "PoseAugHook, 2D of the target known"
ROWS: dict[str, dict[str, Any] | None] = {
    "no augmentation": None,
    "random augmentation": {"preset": "random", "spread": PLAIN, "share": 0.5},
    "PoseAugHook": {},
    KNOWN: {},
}


class Run:
    """One training: estimator, optimizer, and the hook where its row has one."""

    def __init__(self, row: str, seed: int, data: Batches, arguments: argparse.Namespace) -> None:
        torch.manual_seed(seed)
        self.row, self.seed, self.data, self.arguments = row, seed, data, arguments
        # Windows of one frame: (B, 1, 16, 2) normalised keypoints to (B, 1, 16, 3) metres.
        network = SimpleBaseline(width=256, dropout=0.1)
        self.estimator = SingleFrame(network, flat=True).to(data.inputs_2d.device)
        self.optimizer = torch.optim.Adam(self.estimator.parameters(), lr=arguments.lr)
        self.order = torch.Generator().manual_seed(seed)
        self.epoch, self.seconds = 0, 0.0
        self.hook = None
        options = ROWS[row]
        if row == KNOWN:
            options = {"target_2d": data.target_2d, "target_camera": data.target_cameras}
        if options is not None:
            self.hook = PoseAugHook(self.estimator, skeleton="h36m_16", seed=seed, **options)
        self._parts = {"estimator": self.estimator, "optimizer": self.optimizer}
        self._parts["poseaug"] = self.hook

    def train_epoch(self, bar: Any) -> None:
        """Train with an ordinary loop. The hook is one line of it."""
        self.estimator.train()
        for group in self.optimizer.param_groups:
            group["lr"] = self.arguments.lr * (1 - self.epoch / self.arguments.epochs)
        started = time.perf_counter()
        for rows in torch.randperm(len(self.data.inputs_2d), generator=self.order).split(
            self.arguments.batch
        ):
            rows = rows.to(self.data.inputs_2d.device)
            inputs_2d, inputs_3d = self.data.inputs_2d[rows], self.data.inputs_3d[rows]

            if self.hook is not None:
                inputs_2d, inputs_3d = self.hook.augment(
                    inputs_2d, inputs_3d, self.data.cameras[rows]
                )

            inputs_3d[:, :, 0] = 0
            self.optimizer.zero_grad()
            loss = metrics.mpjpe(self.estimator(inputs_2d), inputs_3d)
            loss.backward()
            self.optimizer.step()
            bar.update()
        if rows.is_cuda:
            torch.cuda.synchronize()
        self.seconds += time.perf_counter() - started
        self.epoch += 1

    @torch.no_grad()
    def evaluate(self) -> dict[str, dict[str, Any]]:
        """Compute MPJPE and P-MPJPE in mm of the last weights, MPJPE by kind of camera too."""
        self.estimator.eval()
        results = {}
        for name, (keypoints, joints, groups) in self.data.tests.items():
            predicted = torch.cat([self.estimator(chunk) for chunk in keypoints.split(8192)])
            predicted = predicted - predicted[:, :, :1]
            errors = 1000 * metrics.mpjpe(predicted, joints, reduction="none").squeeze(1).cpu()
            results[name] = {
                "MPJPE": errors.mean().item(),
                "P-MPJPE": 1000 * metrics.p_mpjpe(predicted, joints).item(),
                "by camera": {
                    str(group): errors[torch.from_numpy(groups == group)].mean().item()
                    for group in np.unique(groups)
                },
            }
        return results

    def result(self) -> dict[str, Any]:
        """Make an entry of the results file."""
        return {
            "row": self.row,
            "seed": self.seed,
            "epochs": self.epoch,
            "batch": self.arguments.batch,
            "samples_per_second": self.epoch * len(self.data.inputs_2d) / self.seconds,
            "tests": self.evaluate(),
            **of_hook(self.hook),
        }

    def state_dict(self) -> dict[str, Any]:
        """Everything that a bit-exact continuation needs."""
        epoch = {"epoch": self.epoch, "seconds": self.seconds}
        return epoch | checkpoints.states(self.order, **self._parts)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`."""
        self.epoch, self.seconds = state["epoch"], state["seconds"]
        checkpoints.restore(state, self.order, **self._parts)


def train(run: Run, checkpoint: Path, resume: bool) -> None:
    """Train a run to its end, and save a checkpoint after every epoch."""
    if resume and checkpoint.exists():
        run.load_state_dict(checkpoints.load(checkpoint))
    batches = -(-len(run.data.inputs_2d) // run.arguments.batch)
    stop = run.arguments.epochs if run.arguments.stop_after is None else run.arguments.stop_after
    with tqdm(
        total=batches * run.arguments.epochs,
        initial=batches * run.epoch,
        desc=f"{run.row}, seed {run.seed}",
        unit="step",
        mininterval=1,
    ) as bar:
        while run.epoch < min(stop, run.arguments.epochs):
            run.train_epoch(bar)
            checkpoints.save(run.state_dict(), checkpoint)


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, help="folder with source_cmu, target_bandai, cameras")
    parser.add_argument("--h36m", type=Path, help="VideoPose3D's data_3d_h36m.npz")
    parser.add_argument("--out", type=Path, default=Path("runs/quickstart"))
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--epochs", type=positive, default=28)
    parser.add_argument("--batch", type=positive, help="256; 512 with --data or --h36m")
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoints in --out")
    parser.add_argument("--stop-after", type=int, help="stop each run after this many epochs")
    parser.add_argument("--smoke", action="store_true", help="the whole path in seconds")
    arguments = parser.parse_args()
    real = arguments.data or arguments.h36m
    if arguments.smoke:
        arguments.epochs = 2
    arguments.batch = arguments.batch or (512 if real else 256)
    return arguments


def main() -> None:
    """Train, tabulate, draw."""
    arguments = parse_arguments()
    warnings.simplefilter("once")
    arguments.out.mkdir(parents=True, exist_ok=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    domains = read_domains(arguments.data, arguments.h36m)
    data = training_data(domains, device, every=40 if arguments.smoke else 1)
    print(f"{len(data.inputs_2d):,} training pairs, {device}")
    rows = [row for row in arguments.rows if row != KNOWN or data.target_2d is not None]
    results_file = arguments.out / "results.json"
    results = read_results(results_file) if arguments.resume else []
    done = {(r["row"], r["seed"]) for r in results}
    last: Run | None = None
    for seed in arguments.seeds:
        for row in rows:
            run = Run(row, seed, data, arguments)
            checkpoint = arguments.out / f"{row.replace(' ', '_')}_{seed}.pt"
            if (row, seed) not in done:
                train(run, checkpoint, arguments.resume)
                if run.epoch < arguments.epochs:
                    continue
                results.append(run.result())
                write_results(results_file, results)
            elif run.hook is not None:
                run.load_state_dict(checkpoints.load(checkpoint))
            last = run if run.hook is not None else last
    print(format_table(results))
    if last is not None and last.hook is not None and results:
        from shared.figures import draw_overview

        count = min(2048, len(data.inputs_2d))
        rows = np.random.default_rng(0).permutation(len(data.inputs_2d))[:count]
        figure = arguments.out / "quickstart.png"
        draw_overview(
            figure,
            results,
            last.hook,
            data.inputs_2d[rows],
            data.inputs_3d[rows],
            data.cameras[rows],
        )
        print(f"results: {results_file}, figure: {figure}")


if __name__ == "__main__":
    main()
