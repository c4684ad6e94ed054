"""What the hook costs: a training step with it over the same step without it.

    python examples/benchmark_step.py [--batch 1024] [--width 1024] [--device cuda] [--json FILE]

Plain and hooked steps alternate in one process, and the ratio is taken pair by pair, so that a
machine whose speed drifts does not show as a difference. Prints medians and the quartiles.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch
from mocap import demo_cameras, pairs
from motion import source_motion
from quickstart import Lifter
from torch import Tensor

from poseaug_plugin import PoseAugHook, metrics

CASES: dict[str, tuple[int, dict[str, Any]]] = {
    # name: (times the batch that the plain step trains on, options of the hook)
    "random augmentation": (1, {"preset": "random"}),
    "replace (default)": (1, {}),
    "append, over a plain step on 2B": (2, {"mix": "append"}),
    "replace, feedback through the estimator": (
        1,
        {"feedback": "estimator", "moved_weight": 0.1},
    ),
}


class Step:
    """One estimator with its optimizer, perhaps hooked, fed from the same poses again and again."""

    def __init__(
        self, batch: tuple[Tensor, ...], width: int, options: dict[str, Any] | None
    ) -> None:
        self.batch = batch
        torch.manual_seed(0)
        self.estimator = Lifter(16, width).to(batch[0].device)
        self.optimizer = torch.optim.Adam(self.estimator.parameters(), lr=1e-3)
        self.hook = None
        if options is not None:
            self.hook = PoseAugHook(self.estimator, self.optimizer, skeleton="h36m_16", **options)

    def seconds(self) -> float:
        """Time one whole step."""
        self._wait()
        started = time.perf_counter()
        inputs_2d, inputs_3d, cameras = self.batch
        inputs_3d = inputs_3d.clone()
        if self.hook is not None:
            inputs_2d, inputs_3d = self.hook.augment(inputs_2d, inputs_3d, cameras)
        inputs_3d[:, :, 0] = 0
        self.optimizer.zero_grad()
        metrics.mpjpe(self.estimator(inputs_2d), inputs_3d).backward()
        self.optimizer.step()
        self._wait()
        return time.perf_counter() - started

    def _wait(self) -> None:
        if self.batch[0].is_cuda:
            torch.cuda.synchronize()


def measure(plain: Step, hooked: Step, repeats: int) -> dict[str, float]:
    """Medians of both steps in ms, and of their ratio."""
    for _ in range(3):
        plain.seconds(), hooked.seconds()
    times = [(plain.seconds(), hooked.seconds()) for _ in range(repeats)]
    ratios = [h / p for p, h in times]
    low, _, high = quantiles(ratios, n=4)
    return {
        "plain_ms": 1000 * median(p for p, _ in times),
        "hooked_ms": 1000 * median(h for _, h in times),
        "ratio": median(ratios),
        "ratio_low": low,
        "ratio_high": high,
    }


def main() -> None:
    """Measure every case and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--width", type=int, default=1024, help="hidden width of the estimator")
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path, help="write the figures here as well")
    parser.add_argument("--smoke", action="store_true", help="the whole path in seconds")
    arguments = parser.parse_args()
    if arguments.smoke:
        arguments.batch, arguments.width, arguments.repeats = 64, 64, 3

    data = pairs(source_motion(), demo_cameras().cameras["source"], ["S1"], joints=16)
    rows = torch.randperm(len(data.joints_3d), generator=torch.Generator().manual_seed(0))

    def batch(times: int) -> tuple[Tensor, ...]:
        chosen = rows[torch.arange(times * arguments.batch) % len(rows)]
        keypoints, joints, cameras = (torch.from_numpy(a)[chosen] for a in data[:3])
        joints = joints.clone()
        joints[:, 1:] -= joints[:, :1]
        return tuple(t.to(arguments.device) for t in (keypoints[:, None], joints[:, None], cameras))

    print(
        f"MLP {arguments.width} wide, batch {arguments.batch}, {arguments.device}, "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}, {arguments.repeats} pairs\n"
    )
    print(
        "| hooked step | plain, ms | hooked, ms | hooked / plain (quartiles) |\n|---|---|---|---|"
    )
    results = {}
    for name, (times, options) in CASES.items():
        plain = Step(batch(times), arguments.width, None)
        hooked = Step(batch(1), arguments.width, options)
        result = results[name] = measure(plain, hooked, arguments.repeats)
        print(
            f"| {name} | {result['plain_ms']:.1f} | {result['hooked_ms']:.1f} | "
            f"**{result['ratio']:.2f}** ({result['ratio_low']:.2f} to {result['ratio_high']:.2f}) |"
        )
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
