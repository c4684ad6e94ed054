"""What the hook costs: a training step with it relative to the same step without it.

    python examples/benchmarks/step.py                       # all sections; some minutes on a CPU
    python examples/benchmarks/step.py --sections steps --estimators videopose3d --device cuda

Compared steps alternate in one process, and each ratio is that of a pair of them: a machine whose
speed drifts does not show as a difference. Prints medians and quartiles.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from itertools import accumulate
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from poseaug_plugin import (
    AugmentationPolicy,
    KeypointCritic,
    PartKCSCritic,
    PoseAdapter,
    PoseAugHook,
    metrics,
)

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from shared.files import write_whole
from shared.mocap import demo_cameras, pairs
from shared.models import build
from shared.motion import source_motion
from shared.report import format_steps

ESTIMATORS = ("simple_baseline", "semgcn", "stgcn", "videopose3d", "videopose3d-27")
FRAMES = {"videopose3d-27": 27}

# An iteration of the released code (PoseAug f469ce4) relative to a plain step of the estimator,
# measured with that code on two CPU cores and a batch of 1024.
RELEASED_ITERATION = {"simple_baseline": 5.0, "semgcn": 4.3, "stgcn": 3.55, "videopose3d": 3.9}
CASES: dict[str, tuple[int, dict[str, Any]]] = {
    # name: (times the batch that the plain step trains on, options of the hook)
    "replace (default)": (1, {}),
    "append, over 2B": (2, {"mix": "append"}),
    "random augmentation": (1, {"preset": "random"}),
}
WITH_RELEASED = {"mix": "append"}  # what the released code does, too
GPU_CASES: dict[str, tuple[int, dict[str, Any]]] = CASES | {
    "replace, cuda_graphs=False": (1, {"cuda_graphs": False})
}
# Of the hook: poses in a critic's pool, poses that an update learns from, steps per such update.
POOL, LEARNED_FROM, INTERVAL = 1024, 128, 8
SECTIONS = ("steps", "memory", "batches", "windows", "communication", "operators")
Row = dict[str, Any]


def cases_of(arguments: Any) -> dict[str, tuple[int, dict[str, Any]]]:
    """Cases of the command line; by default all for this kind of device."""
    usual = GPU_CASES if arguments.device.startswith("cuda") else CASES
    return {name: GPU_CASES[name] for name in arguments.cases or usual}


class Pooled(nn.Module):
    """An estimator that costs next to nothing, to time the hook alone."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(32, 48)

    def forward(self, keypoints: Tensor) -> Tensor:
        """(B, T, 16, 2) to (B, 1, 16, 3)."""
        return self.layer(keypoints.mean(1).flatten(1)).reshape(-1, 1, 16, 3)


def make_estimator(name: str, arguments: Any) -> nn.Module:
    """Build an estimator of `ESTIMATORS`, as published, or smaller."""
    size = "tiny" if arguments.smoke else arguments.size
    return build(name.partition("-")[0], size, FRAMES.get(name, 1))


def poses(size: int, frames: int, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """Windows of one procedural motion: 2D, absolute 3D, intrinsics."""
    seen = pairs(source_motion(), demo_cameras().cameras["source"], ["S1"], joints=16)
    generator = torch.Generator().manual_seed(0)
    starts = torch.randint(len(seen.joints_3d) // 8, (size,), generator=generator)
    places = starts[:, None] + torch.arange(frames)
    keypoints, joints = (torch.from_numpy(a)[places] for a in seen[:2])
    return (
        keypoints.to(device),
        joints.to(device),
        torch.from_numpy(seen.intrinsics)[starts].to(device),
    )


class Step:
    """One estimator and its optimizer, hooked or not, trained on the same poses again and again."""

    def __init__(
        self,
        make: Callable[[], nn.Module],
        batch: tuple[Tensor, Tensor, Tensor],
        options: dict[str, Any] | None,
    ) -> None:
        self.batch = batch
        torch.manual_seed(0)
        self.estimator = make().to(batch[0].device)
        self.optimizer = torch.optim.Adam(self.estimator.parameters(), lr=1e-3)
        self.hook = None
        if options is not None:
            self.hook = PoseAugHook(
                self.estimator,
                self.optimizer,
                skeleton="h36m_16",
                adapter=PoseAdapter(root="absolute"),
                **options,
            )

    def seconds(self, steps: int = 1) -> float:
        """Mean time of some steps, the wait for a GPU after the last included."""
        self._wait()
        started = time.perf_counter()
        for _ in range(steps):
            self.step()
        self._wait()
        return (time.perf_counter() - started) / steps

    def step(self) -> None:
        """Do one whole step."""
        inputs_2d, inputs_3d, cameras = self.batch
        if self.hook is not None:
            inputs_2d, inputs_3d = self.hook.augment(inputs_2d, inputs_3d, cameras)
        target = inputs_3d[:, inputs_3d.shape[1] // 2, None]
        self.optimizer.zero_grad()
        metrics.mpjpe(self.estimator(inputs_2d), target - target[:, :, :1]).backward()
        self.optimizer.step()

    def _wait(self) -> None:
        if self.batch[0].is_cuda:
            torch.cuda.synchronize()


def ratio(hooked: list[float], plain: list[float]) -> Row:
    """Median and quartiles of the ratios of pairs of times."""
    ratios = [h / p for h, p in zip(hooked, plain, strict=True)]
    low, _, high = quantiles(ratios, n=4)
    return {
        "ratio": median(ratios),
        "low": low,
        "high": high,
        "plain_ms": 1000 * median(plain),
        "hooked_ms": 1000 * median(hooked),
    }


def steps_until_recorded(batch: int) -> int:
    """Steps until the pools of the critics are full, and a GPU has recorded each kind of step."""
    updates = -(-POOL // min(batch // 2, LEARNED_FROM))
    return (updates + 4) * INTERVAL


def alternate(steps: list[Step], repeats: int) -> list[list[float]]:
    """Times of each step, measured in turn.

    Each is a mean over as many steps as there are from one update that learns to the next. On a GPU
    it is over many steps, so that the wait at the end, which no training loop has, does not count.
    """
    on_gpu = steps[0].batch[0].is_cuda
    for step in steps:
        step.seconds(steps_until_recorded(len(step.batch[0])) if on_gpu else INTERVAL)
    counted = 3 * INTERVAL if on_gpu else INTERVAL
    times = [[step.seconds(counted) for step in steps] for _ in range(repeats)]
    return [list(column) for column in zip(*times, strict=True)]


def measure_steps(name: str, arguments: Any) -> list[Row]:
    """Measure every case of one estimator."""
    make = partial(make_estimator, name, arguments)
    batch, device = arguments.batch, arguments.device
    single, double = (poses(n * batch, FRAMES.get(name, 1), device) for n in (1, 2))
    rows = []
    for case, (times, options) in cases_of(arguments).items():
        plain = Step(make, single, None)
        steps = [plain, Step(make, single, options)]
        if times == 2:
            steps.append(Step(make, double, None))
        columns = alternate(steps, arguments.repeats)
        row = {"section": "steps", "estimator": name, "case": case, "samples": times * batch}
        rows.append(row | ratio(columns[1], columns[0 if times == 1 else 2]))
        if options == WITH_RELEASED and name in RELEASED_ITERATION and device == "cpu":
            own = ratio(columns[1], columns[0])["ratio"]
            rows.append(
                {"section": "released", "estimator": name, "case": "released / append"}
                | {"ratio": RELEASED_ITERATION[name] / own, "append_over_plain": own}
            )
    return rows


def peak_memory(name: str, kind: str, arguments: Any) -> float:
    """Peak memory, MiB, of steps of ``kind``: "plain" on 2B, or a case that appends.

    On a GPU of what the process reserves, on a CPU of what tensors take.
    """
    make = partial(make_estimator, name, arguments)
    times, options = (2, None) if kind == "plain" else (1, GPU_CASES[kind][1])
    batch = poses(times * arguments.batch, FRAMES.get(name, 1), arguments.device)
    if batch[0].is_cuda:
        Step(make, batch, options).seconds(steps_until_recorded(arguments.batch))
        return torch.cuda.max_memory_reserved() / 2**20
    return peak_of_tensors(lambda: Step(make, batch, options).seconds(4)) / 2**20


def peak_of_tensors(work: Callable[[], object]) -> int:
    """Peak size, bytes, of the tensors that ``work`` makes on a CPU.

    From events of the allocator. The growth of the process says less: two calls differ by a tenth.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder, "trace.json")
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    changes = [event for event in events if event["name"] == "[memory]"]
    changes.sort(key=lambda event: event["ts"])  # stable: as they came
    return max(accumulate(event["args"]["Bytes"] for event in changes))


def measure_memory(name: str, arguments: Any) -> list[Row]:
    """Compare appending with the plain step on 2B."""

    def of(kind: str) -> float:
        command = [sys.executable, __file__, "--peak-memory", name, kind]
        command += ["--batch", str(arguments.batch), "--device", arguments.device]
        command += ["--smoke"] * arguments.smoke
        return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    plain, rows = of("plain"), []
    for case, (times, _) in cases_of(arguments).items():
        if times == 2:
            row = {"section": "memory", "estimator": name, "case": case, "plain_mib": plain}
            rows.append(row | {"ratio": (hooked := of(case)) / plain, "hooked_mib": hooked})
    return rows


def measure_communication(name: str, arguments: Any) -> list[Row]:
    """MiB of a rank in the all-reduce of a step: the hook's networks, and the estimator."""

    def mebibytes(*networks: nn.Module) -> float:
        return sum(4 * p.numel() for network in networks for p in network.parameters()) / 2**20

    policy = AugmentationPolicy("h36m_16")
    critics = PartKCSCritic("h36m_16"), KeypointCritic("h36m_16")
    row = {
        "section": "communication",
        "estimator": name,
        "hook_mib": mebibytes(policy),
        "hook_with_critics_mib": mebibytes(policy, *critics),
        "estimator_mib": mebibytes(make_estimator(name, arguments)),
    }
    return [row]


class OperatorCount(TorchDispatchMode):
    """Counts operators that compute something: about the number of kernels on a GPU."""

    total = 0

    def __torch_dispatch__(
        self, operator: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Count it and go on."""
        self.total += not operator.is_view
        return operator(*args, **(kwargs or {}))


def count_operators(name: str, arguments: Any) -> list[Row]:
    """Count the operators of a plain step, and those that the hook adds to it.

    Mean of two steps, in which critics learn once. It is the same on every machine.
    """
    batch = poses(arguments.batch, FRAMES.get(name, 1), arguments.device)

    def operators(options: dict[str, Any] | None) -> float:
        recorded = None if options is None else options | {"cuda_graphs": False}
        step = Step(partial(make_estimator, name, arguments), batch, recorded)
        step.seconds(4)
        with OperatorCount() as count:
            step.seconds(2)
        return count.total / 2

    plain = operators(None)
    cases: dict[str, Row] = {
        "hook": {},
        "without critics": {"critic_weight": 0.0},
        "without feedback": {"feedback": False},
        "random": {"preset": "random"},
    }
    added = {case: operators(options) - plain for case, options in cases.items()}
    return [{"section": "operators", "estimator": name, "plain": plain} | added]


def measure_growth(arguments: Any, section: str) -> list[Row]:
    """Measure the hook alone at several batch sizes or window lengths."""
    sizes = [64, 256, 1024, 4096, 16384] if section == "batches" else [1, 3, 9, 27, 81, 243]
    sizes = sizes[:2] if arguments.smoke else sizes
    rows = []
    for size in sizes:
        batch, frames = (size, 1) if section == "batches" else (256, size)
        given = poses(batch, frames, arguments.device)
        plain, hooked = alternate(
            [Step(Pooled, given, None), Step(Pooled, given, {})], max(3, arguments.repeats // 2)
        )
        milliseconds = 1000 * median(h - p for h, p in zip(hooked, plain, strict=True))
        rows.append(
            {"section": section, "batch": batch, "frames": frames, "hook_ms": milliseconds}
            | {"us_per_frame": 1000 * milliseconds / (batch * frames)}
        )
    return rows


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--estimators", nargs="+", choices=ESTIMATORS)
    parser.add_argument("--cases", nargs="+", choices=GPU_CASES, help="of steps and memory")
    parser.add_argument("--size", choices=("published", "small"), default="published")
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path, help="write the figures here as well")
    parser.add_argument("--smoke", action="store_true", help="the whole path in seconds")
    parser.add_argument("--peak-memory", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.estimators = arguments.estimators or list(ESTIMATORS)
    if arguments.smoke:
        arguments.batch, arguments.repeats = 32, 3
        arguments.estimators = arguments.estimators[-2:]
    return arguments


def main() -> None:
    """Measure the chosen sections, and print their tables."""
    arguments = parse_arguments()
    if arguments.peak_memory:
        print(peak_memory(*arguments.peak_memory, arguments))
        return
    rows: list[Row] = [
        {
            "section": "machine",
            "device": torch.cuda.get_device_name()
            if arguments.device.startswith("cuda")
            else f"{torch.get_num_threads()} CPU threads",
            "torch": torch.__version__,
            "batch": arguments.batch,
            "size": arguments.size,
        }
    ]
    work: list[Callable[[], list[Row]]] = []
    measured: dict[str, Callable[[str, Any], list[Row]]] = {
        "steps": measure_steps,
        "memory": measure_memory,
        "communication": measure_communication,
        "operators": count_operators,
    }
    for name in arguments.estimators:
        for section, measure in measured.items():
            if section in arguments.sections:
                work.append(partial(measure, name, arguments))
    for section in ("batches", "windows"):
        if section in arguments.sections:
            work.append(partial(measure_growth, arguments, section))
    for piece in work:
        made = piece()
        rows += made
        for row in made:
            print(json.dumps(row), file=sys.stderr, flush=True)
        if arguments.json:
            text = json.dumps({"steps": rows}, indent=1) + "\n"
            write_whole(arguments.json, lambda partial, text=text: partial.write_text(text))
    print(format_steps(rows))


if __name__ == "__main__":
    main()
