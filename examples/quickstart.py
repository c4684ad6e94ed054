"""Train one 2D-to-3D lifter three ways; see how it does on people and cameras it never saw.

    python examples/quickstart.py                     # procedural motion, about three minutes
    python examples/quickstart.py --data FOLDER       # motion capture, see docs/examples.md
    python examples/quickstart.py --h36m data_3d_h36m.npz

No augmentation, random augmentation (`preset="random"`) and PoseAug's loop (`PoseAugHook`), each
with the same number of optimizer steps. Prints a table; writes results, a figure and checkpoints to
`--out`; `--resume` goes on from there, bit for bit.
"""

from __future__ import annotations

import argparse
import time
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from mocap import (
    TEST_SUBJECTS,
    TRAIN_SUBJECTS,
    Pairs,
    demo_cameras,
    pairs,
    read_cameras,
    read_h36m,
    read_motion,
)
from motion import source_motion, target_motion
from report import format_table, read_results, write_results
from torch import Tensor, nn
from tqdm import tqdm

from poseaug_plugin import AugmentationPolicy, PoseAugHook, metrics

ROWS: dict[str, dict[str, Any] | None] = {
    "no augmentation": None,
    "random augmentation": {"preset": "random"},
    "PoseAugHook": {"preset": "default"},
}


class Block(nn.Module):
    """Residual block of SimpleBaseline (Martinez et al., ICCV 2017)."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(2):
            layers += [
                nn.Linear(width, width),
                nn.BatchNorm1d(width),
                nn.ReLU(),
                nn.Dropout(dropout),
            ]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """(B, width) -> (B, width)."""
        return x + self.layers(x)


class Lifter(nn.Module):
    """A 2D-to-3D lifter: (B, 1, J, 2) normalised keypoints to (B, 1, J, 3) metres."""

    def __init__(self, joints: int, width: int = 512, dropout: float = 0.1) -> None:
        super().__init__()
        self.joints = joints
        self.layers = nn.Sequential(
            nn.Linear(2 * joints, width),
            nn.BatchNorm1d(width),
            nn.ReLU(),
            nn.Dropout(dropout),
            Block(width, dropout),
            Block(width, dropout),
            nn.Linear(width, 3 * joints),
        )

    def forward(self, keypoints: Tensor) -> Tensor:
        """Lift."""
        return self.layers(keypoints.flatten(1)).reshape(-1, 1, self.joints, 3)


class Data(NamedTuple):
    """Training pairs in VideoPose3D's convention, and the test sets by name."""

    inputs_2d: Tensor  # (N, 1, J, 2)
    inputs_3d: Tensor  # (N, 1, J, 3) root-relative, the trajectory in joint 0
    cameras: Tensor  # (N, 9)
    tests: dict[str, tuple[Tensor, Tensor]]  # keypoints (N, 1, J, 2), root-relative (N, 1, J, 3)


def load_data(arguments: argparse.Namespace, device: torch.device) -> Data:
    """Motion, seen through the source cameras to train and through both to test."""
    every = 40 if arguments.smoke else 1
    rigs = demo_cameras()
    if arguments.data:
        rigs = read_cameras(arguments.data / "cameras.json")
        source = read_motion(arguments.data / "source_cmu.npz")
        target = read_motion(arguments.data / "target_bandai.npz")
    elif arguments.h36m:
        source, target = read_h36m(arguments.h36m), None
    else:
        source, target = source_motion(), target_motion()
    to_target = rigs.centres["target"] - rigs.centres["source"]

    def seen(
        motion: Any, rig: str, subjects: Any = None, shift: Any = (0, 0), step: int = 1
    ) -> Pairs:
        return pairs(
            motion, rigs.cameras[rig], subjects, joints=16, every=every * step, shift=shift
        )

    in_domain = seen(source, "source", TEST_SUBJECTS)
    tests = {"in-domain": in_domain}
    if target is None:  # the same people through cameras they were not seen by
        tests["cross-dataset"] = seen(source, "target", TEST_SUBJECTS, to_target[:2])
    else:
        tests["cross-dataset"] = seen(target, "target")
        tests["other motions, same cameras"] = seen(target, "source", None, -to_target[:2], step=2)
    return as_data(seen(source, "source", TRAIN_SUBJECTS), tests, device)


def as_data(train: Pairs, tests: dict[str, Pairs], device: torch.device) -> Data:
    """Pairs in the convention of VideoPose3D's loop."""

    def tensors(p: Pairs) -> tuple[Tensor, Tensor]:
        keypoints, joints = (torch.from_numpy(a).to(device)[:, None] for a in p[:2])
        return keypoints, joints

    inputs_2d, inputs_3d = tensors(train)
    inputs_3d[:, :, 1:] -= inputs_3d[:, :, :1]
    cameras = torch.from_numpy(train.intrinsics).to(device)
    return Data(
        inputs_2d,
        inputs_3d,
        cameras,
        {
            name: (k, j - j[:, :, :1])
            for name, (k, j) in ((n, tensors(p)) for n, p in tests.items())
        },
    )


class Run:
    """One training: the estimator, its optimizer, and perhaps the hook."""

    def __init__(
        self,
        row: str,
        options: dict[str, Any] | None,
        seed: int,
        data: Data,
        arguments: argparse.Namespace,
    ) -> None:
        torch.manual_seed(seed)
        self.row, self.seed, self.data, self.arguments = row, seed, data, arguments
        self.estimator = Lifter(data.inputs_2d.shape[2]).to(data.inputs_2d.device)
        self.optimizer = torch.optim.Adam(self.estimator.parameters(), lr=arguments.lr)
        self.order = torch.Generator().manual_seed(seed)
        self.epoch, self.seconds = 0, 0.0
        self.hook = None
        if options is not None:
            self.hook = PoseAugHook(self.estimator, skeleton="h36m_16", seed=seed, **options)

    def train_epoch(self, bar: Any) -> None:
        """A training loop as everybody has it; the hook is one line of it."""
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
    def evaluate(self) -> dict[str, dict[str, float]]:
        """MPJPE and P-MPJPE in mm, PCK at 150 mm in percent, of the last weights."""
        self.estimator.eval()
        results = {}
        for name, (keypoints, joints) in self.data.tests.items():
            predicted = torch.cat([self.estimator(chunk) for chunk in keypoints.split(8192)])
            predicted = predicted - predicted[:, :, :1]
            results[name] = {
                "MPJPE": 1000 * metrics.mpjpe(predicted, joints).item(),
                "P-MPJPE": 1000 * metrics.p_mpjpe(predicted, joints).item(),
                "PCK": metrics.pck(predicted, joints).item(),
            }
        return results

    def result(self) -> dict[str, Any]:
        """What goes into the results file."""
        policy = self.hook.policy if self.hook else None
        learned = isinstance(policy, AugmentationPolicy)
        factors = policy.log_spread_factors().exp().tolist() if learned else None
        return {
            "row": self.row,
            "seed": self.seed,
            "epochs": self.epoch,
            "batch": self.arguments.batch,
            "samples_per_second": self.epoch * len(self.data.inputs_2d) / self.seconds,
            "tests": self.evaluate(),
            "diagnostics": self.hook.diagnostics()._asdict() if self.hook else None,
            "spread_factors": factors,  # in the order of SpreadFactors
        }

    def state_dict(self) -> dict[str, Any]:
        """Everything that a bit-exact continuation needs."""
        device = self.data.inputs_2d.device
        return {
            "epoch": self.epoch,
            "seconds": self.seconds,
            "estimator": self.estimator.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "poseaug": None if self.hook is None else self.hook.state_dict(),
            "order": self.order.get_state(),
            "random": torch.get_rng_state(),
            "random_cuda": torch.cuda.get_rng_state() if device.type == "cuda" else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`."""
        self.epoch, self.seconds = state["epoch"], state["seconds"]
        self.estimator.load_state_dict(state["estimator"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.hook is not None:
            self.hook.load_state_dict(state["poseaug"])
        self.order.set_state(state["order"])
        torch.set_rng_state(state["random"])
        if state["random_cuda"] is not None:
            torch.cuda.set_rng_state(state["random_cuda"])


def train(run: Run, checkpoint: Path, resume: bool) -> None:
    """All epochs of a run; after each, a checkpoint that replaces the last in one move."""
    if resume and checkpoint.exists():
        run.load_state_dict(torch.load(checkpoint, weights_only=True, map_location="cpu"))
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
            partial = checkpoint.with_suffix(".partial")
            torch.save(run.state_dict(), partial)
            partial.replace(checkpoint)


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, help="folder with source_cmu, target_bandai, cameras")
    parser.add_argument("--h36m", type=Path, help="VideoPose3D's data_3d_h36m.npz")
    parser.add_argument("--out", type=Path, default=Path("runs/quickstart"))
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--epochs", type=int, help="default: 16, or 20 with --data and --h36m")
    parser.add_argument("--batch", type=int, help="default: 256, or 512 with --data and --h36m")
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoints in --out")
    parser.add_argument("--stop-after", type=int, help="stop each run after this many epochs")
    parser.add_argument("--smoke", action="store_true", help="the whole path in seconds")
    arguments = parser.parse_args()
    real = arguments.data or arguments.h36m
    arguments.epochs = arguments.epochs or (2 if arguments.smoke else 20 if real else 16)
    arguments.batch = arguments.batch or (512 if real else 256)
    return arguments


def main() -> None:
    """Train, tabulate, draw."""
    arguments = parse_arguments()
    warnings.simplefilter("once")
    arguments.out.mkdir(parents=True, exist_ok=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    data = load_data(arguments, device)
    print(f"{len(data.inputs_2d):,} training pairs, {device}")
    results_file = arguments.out / "results.json"
    results = read_results(results_file) if arguments.resume else []
    done = {(r["row"], r["seed"]) for r in results}
    last: Run | None = None
    for seed in arguments.seeds:
        for row in arguments.rows:
            run = Run(row, ROWS[row], seed, data, arguments)
            checkpoint = arguments.out / f"{row.replace(' ', '_')}_{seed}.pt"
            if (row, seed) not in done:
                train(run, checkpoint, arguments.resume)
                if run.epoch < arguments.epochs:
                    continue
                results.append(run.result())
                write_results(results_file, results)
            elif run.hook is not None:
                run.load_state_dict(torch.load(checkpoint, weights_only=True, map_location="cpu"))
            last = run if run.hook is not None else last
    print(format_table(results))
    if last is not None and last.hook is not None and results:
        from figures import draw_overview

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
