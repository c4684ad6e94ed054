"""What the hook costs: a training step with it over the same step without it.

    python examples/benchmark_step.py                       # every section; some minutes on a CPU
    python examples/benchmark_step.py --sections steps --estimators videopose3d --device cuda

Steps that are compared alternate in one process, and the ratio is taken pair by pair, so that a
machine whose speed drifts does not show as a difference. Prints medians and quartiles.
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
from estimators.semgcn import SemGCN
from estimators.simple_baseline import SimpleBaseline
from estimators.stgcn import STGCN
from estimators.videopose3d import StridedTemporalModel
from lifters import SingleFrame
from mocap import demo_cameras, pairs
from motion import source_motion
from report import format_steps
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from poseaug_plugin import H36M_16, PoseAdapter, PoseAugConfig, PoseAugHook, metrics
from poseaug_plugin.isolation import isolated_call
from poseaug_plugin.rigid import root_relative

ESTIMATORS: dict[str, Callable[[], nn.Module]] = {
    "simple_baseline": lambda: SingleFrame(SimpleBaseline(), flat=True),
    "semgcn": lambda: SingleFrame(SemGCN("h36m_16"), flat=False),
    "stgcn": lambda: STGCN("h36m_16"),
    "videopose3d": lambda: StridedTemporalModel(16, 16, filter_widths=(1, 1, 1)),
    "videopose3d-27": lambda: StridedTemporalModel(16, 16, filter_widths=(3, 3, 3)),
}
SMALL: dict[str, Callable[[], nn.Module]] = {
    "simple_baseline": lambda: SingleFrame(SimpleBaseline(width=32), flat=True),
    "semgcn": lambda: SingleFrame(SemGCN("h36m_16", width=16, blocks=1), flat=False),
    "stgcn": lambda: STGCN("h36m_16", widths=(8, 8, 8), part_width=8),
    "videopose3d": lambda: StridedTemporalModel(16, 16, filter_widths=(1, 1), channels=16),
    "videopose3d-27": lambda: StridedTemporalModel(16, 16, filter_widths=(3, 3, 3), channels=16),
}
FRAMES = {"videopose3d-27": 27}

# An iteration of the released code (PoseAug f469ce4) over a plain estimator step: measured by
# running that code on two CPU cores with a batch of 1024.
RELEASED_ITERATION = {
    "simple_baseline": 5.0,
    "semgcn": 4.3,
    "stgcn": 3.55,
    "videopose3d": 3.9,
}
CASES: dict[str, tuple[int, dict[str, Any]]] = {
    # name: (times the batch that the plain step trains on, options of the hook)
    "replace (default)": (1, {}),
    "append, over 2B": (2, {"mix": "append"}),
    "random augmentation": (1, {"preset": "random"}),
    "replace, predicted feedback": (1, {"feedback": "predicted"}),
    "append, predicted feedback, over 2B": (2, {"mix": "append", "feedback": "predicted"}),
    "replace, feedback through the estimator": (1, {"feedback": "estimator"}),
}
# Compared with the released code, which has feedback too.
WITH_RELEASED = {"mix": "append", "feedback": "predicted"}
GPU_CASES: dict[str, tuple[int, dict[str, Any]]] = CASES | {
    "replace, compile=True": (1, {"compile": True}),
    "append, compile=True, over 2B": (2, {"mix": "append", "compile": True}),
    "replace, cuda_graphs=False": (1, {"cuda_graphs": False}),
}
SECTIONS = ("steps", "memory", "batches", "windows", "communication", "operators", "shared")
Row = dict[str, Any]


def cases_of(arguments: Any) -> dict[str, tuple[int, dict[str, Any]]]:
    """Those that are asked for; by default all that are measured on this kind of device."""
    usual = GPU_CASES if arguments.device.startswith("cuda") else CASES
    return {name: GPU_CASES[name] for name in arguments.cases or usual}


class Pooled(nn.Module):
    """A lifter that costs next to nothing, so that what is timed is the hook."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(32, 48)

    def forward(self, keypoints: Tensor) -> Tensor:
        """(B, T, 16, 2) to (B, 1, 16, 3)."""
        return self.layer(keypoints.mean(1).flatten(1)).reshape(-1, 1, 16, 3)


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
    """One estimator with its optimizer, perhaps hooked, fed from the same poses again and again."""

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
        """Time of a step, on average over so many; a GPU is waited for after the last."""
        self._wait()
        started = time.perf_counter()
        for _ in range(steps):
            self.step()
        self._wait()
        return (time.perf_counter() - started) / steps

    def step(self) -> None:
        """One whole step."""
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
    """Median and quartiles of the ratios of pairs."""
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
    """Until the critics' pools are full, and each kind of step was seen as often as it takes."""
    defaults = PoseAugConfig()
    learned_from = min(batch // 2, defaults.update_batch or batch)
    updates = -(-defaults.pool_capacity // learned_from)
    return updates * defaults.critic_interval + 12


def alternate(steps: list[Step], repeats: int) -> list[list[float]]:
    """Times of each step, taken in turn.

    Means of an even number, since critics learn at every second step; on a GPU of so many that
    waiting for it, which no training loop does, does not count.
    """
    on_gpu = steps[0].batch[0].is_cuda
    for step in steps:
        step.seconds(steps_until_recorded(len(step.batch[0])) if on_gpu else 2)
    times = [[step.seconds(20 if on_gpu else 2) for step in steps] for _ in range(repeats)]
    return [list(column) for column in zip(*times, strict=True)]


def measure_steps(name: str, make: Callable[[], nn.Module], arguments: Any) -> list[Row]:
    """Every case of one estimator."""
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
    """MiB that steps of ``kind`` ("plain" on 2B, or a case that appends) take at most.

    On a GPU what is reserved there, by a process of its own; on a CPU what tensors take.
    """
    make = (SMALL if arguments.smoke else ESTIMATORS)[name]
    times, options = (2, None) if kind == "plain" else (1, GPU_CASES[kind][1])
    batch = poses(times * arguments.batch, FRAMES.get(name, 1), arguments.device)
    if batch[0].is_cuda:
        Step(make, batch, options).seconds(steps_until_recorded(arguments.batch))
        return torch.cuda.max_memory_reserved() / 2**20
    return peak_of_tensors(lambda: Step(make, batch, options).seconds(4)) / 2**20


def peak_of_tensors(work: Callable[[], object]) -> int:
    """Bytes that tensors which ``work`` makes take at most at a time, on a CPU.

    From the allocator's own events. What a process grows by says less: freed blocks stay with it or
    go back as they happen to lie, and two calls differ by a tenth.
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
    """Append against the plain step on 2B."""

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


def measure_shared(name: str, make: Callable[[], nn.Module], arguments: Any) -> Row:
    """Could the feedback's gradient come out of the user's own backward pass?

    The gradient of a mean loss at the estimator's input, times the batch size, is that of every
    sample's own error, unless batch normalisation couples the samples or dropout blurs them.
    Returns the cosine between it and what an isolated pass gives, and what asking for it costs.
    """
    keypoints, joints, _ = poses(arguments.batch, FRAMES.get(name, 1), arguments.device)
    target = root_relative(joints[:, joints.shape[1] // 2, None], H36M_16)
    torch.manual_seed(0)
    estimator = make().to(keypoints.device)
    optimizer = torch.optim.Adam(estimator.parameters(), lr=1e-3)

    def seconds(inputs: Tensor) -> float:
        started = time.perf_counter()
        optimizer.zero_grad()
        metrics.mpjpe(estimator(inputs), target).backward()
        optimizer.step()
        if inputs.is_cuda:
            torch.cuda.synchronize()
        return time.perf_counter() - started

    leaf = keypoints.clone().requires_grad_()
    for _ in range(20):
        seconds(keypoints)
    times = [(seconds(leaf), seconds(keypoints)) for _ in range(arguments.repeats)]
    leaf.grad = None
    optimizer.zero_grad()
    metrics.mpjpe(estimator(leaf), target).backward()
    shared = arguments.batch * leaf.grad
    predicted = isolated_call(estimator, leaf, torch.Generator())
    error = (predicted - target).norm(dim=-1).mean((1, 2)).sum()
    isolated = torch.autograd.grad(error, leaf)[0]
    cosine = torch.cosine_similarity(shared.flatten(1), isolated.flatten(1)).mean().item()
    row = {"section": "shared", "estimator": name, "cosine": cosine}
    return row | ratio([a for a, _ in times], [b for _, b in times])


def communication(name: str, make: Callable[[], nn.Module]) -> Row:
    """MiB that a rank gives to the all-reduces of a step: the hook's one, and the estimator's."""
    estimator = make()
    modules = PoseAugHook(estimator, skeleton="h36m_16").state_dict()["training"]["modules"]
    learned = ("policy", "critic_3d", "critic_2d", "critic_motion", "predictor")

    def mebibytes(*networks: str) -> float:
        chosen = (v for k, v in modules.items() if k.split(".")[0] in networks)
        return sum(4 * v.numel() for v in chosen if isinstance(v, Tensor)) / 2**20

    return {
        "section": "communication",
        "estimator": name,
        "hook_mib": mebibytes("policy", "predictor"),
        "hook_with_critics_mib": mebibytes(*learned),
        "estimator_mib": sum(4 * p.numel() for p in estimator.parameters()) / 2**20,
    }


class OperatorCount(TorchDispatchMode):
    """Counts operators that compute something: on a GPU, about as many kernels are launched."""

    total = 0

    def __torch_dispatch__(
        self, operator: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Count it and go on."""
        self.total += not operator.is_view
        return operator(*args, **(kwargs or {}))


def count_operators(name: str, make: Callable[[], nn.Module], arguments: Any) -> Row:
    """Operators of a plain step, and what the hook adds to it.

    Mean of two steps, in which critics learn once. Unlike a time it is the same on every machine.
    """
    batch = poses(arguments.batch, FRAMES.get(name, 1), arguments.device)

    def operators(options: dict[str, Any] | None) -> float:
        written = None if options is None else options | {"cuda_graphs": False}
        step = Step(make, batch, written)
        step.seconds(4)
        with OperatorCount() as count:
            step.seconds(2)
        return count.total / 2

    plain = operators(None)
    cases: dict[str, Row] = {
        "hook": {},
        "predicted": {"feedback": "predicted"},
        "in_turn": {"policy_interval": 2},
        "random": {"preset": "random"},
    }
    added = {case: operators(options) - plain for case, options in cases.items()}
    return {"section": "operators", "estimator": name, "plain": plain} | added


def measure_growth(arguments: Any, section: str) -> list[Row]:
    """Time of the hook alone, against batch size or window length."""
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
    parser.add_argument("--estimators", nargs="+", choices=ESTIMATORS, default=list(ESTIMATORS))
    parser.add_argument("--cases", nargs="+", choices=GPU_CASES, help="of steps and memory")
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path, help="write the figures here as well")
    parser.add_argument("--smoke", action="store_true", help="the whole path in seconds")
    parser.add_argument("--peak-memory", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.smoke:
        arguments.batch, arguments.repeats = 32, 3
    return arguments


def main() -> None:
    """Measure what is asked for and print the tables."""
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
        }
    ]
    work: list[Callable[[], list[Row]]] = []
    for name in arguments.estimators:
        make = (SMALL if arguments.smoke else ESTIMATORS)[name]
        if "steps" in arguments.sections:
            work.append(partial(measure_steps, name, make, arguments))
        if "memory" in arguments.sections:
            work.append(partial(measure_memory, name, arguments))
        if "shared" in arguments.sections:
            work.append(lambda name=name, make=make: [measure_shared(name, make, arguments)])
        if "communication" in arguments.sections:
            work.append(lambda name=name, make=make: [communication(name, make)])
        if "operators" in arguments.sections:
            work.append(lambda name=name, make=make: [count_operators(name, make, arguments)])
    for section in ("batches", "windows"):
        if section in arguments.sections:
            work.append(partial(measure_growth, arguments, section))
    for piece in work:
        made = piece()
        rows += made
        for row in made:
            print(json.dumps(row), file=sys.stderr, flush=True)
        if arguments.json:
            arguments.json.write_text(json.dumps({"steps": rows}, indent=1) + "\n")
    print(format_steps(rows))


if __name__ == "__main__":
    main()
