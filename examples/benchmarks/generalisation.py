"""Does an estimator get better on data it has never seen? Estimators x rows x seeds.

    python examples/benchmarks/generalisation.py --data FOLDER --estimators simple_baseline
    python examples/benchmarks/generalisation.py --data FOLDER --estimators videopose3d --frames 27

All runs of an estimator have the same number of updates and the same schedule. Nothing is chosen on
a test set: the last weights are tested. Results go to --out after every run. Runs that are there
are not repeated, and an interrupted run goes on from its checkpoint. With `--validate` the test is
on held-out motions of the training subjects, for choosing options.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from poseaug_plugin import PoseAdapter, PoseAugHook, Spread, metrics
from poseaug_plugin.body.bones import average_bone_lengths
from poseaug_plugin.body.presets import H36M_16

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from shared import checkpoints
from shared.mocap import TRAIN_SUBJECTS
from shared.models import MODELS, build
from shared.report import format_generalisation, of_hook, read_results, write_results

from benchmarks.generalisation_data import HELD_OUT, Benchmark, Sequences, load
from benchmarks.generalisation_figure import draw_generalisation

# Random augmentation as a user would write it: single bones, bone lengths, viewpoints. Tuned on
# held-out motions: half of a batch is augmented, and half of that keeps its view.
TUNED = Spread(
    pitch=0.7,
    roll=0.3,
    limb_angle=0.0,
    bone_angle=0.2,
    torso_angle=0.2,
    torso_length=0.35,
    keep_view=0.5,
)


def times(factor: float) -> Spread:
    """Another start of the policy: all that it can widen or narrow, so many times as wide."""
    start = Spread()
    names = ("pitch", "roll", "limb_angle", "bone_angle", "torso_angle")
    names += ("bone_length", "torso_length")
    return replace(start, **{name: factor * getattr(start, name) for name in names})


ROWS: dict[str, dict[str, Any] | None] = {
    "none": None,
    "random, tuned": {"preset": "random", "spread": TUNED, "share": 0.5},
    "default": {},
    "released": {"preset": "released"},
    "paper": {"preset": "paper"},
    "append": {"mix": "append"},
    "nothing learned": {"preset": "random"},
    "default from 0.5": {"spread": times(0.5)},
    "default from 1.4": {"spread": times(1.4)},
    "default from 2": {"spread": times(2.0)},
    "nothing learned from 0.5": {"preset": "random", "spread": times(0.5)},
    "nothing learned from 1.4": {"preset": "random", "spread": times(1.4)},
    "nothing learned from 2": {"preset": "random", "spread": times(2.0)},
    "closed loop": {"target_2d": "target"},
    "closed loop, other people": {"target_2d": "other people"},
    "closed loop, own 2D": {"target_2d": "own"},
    "told the bodies": {"told": "bodies"},
    "told bodies and cameras": {"told": "bodies and cameras"},
    "without critics": {"critic_weight": 0.0},
    "without feedback": {"feedback": False},
    "bone angles only": {"operations": ("bone_angle",)},
    "bone lengths only": {"operations": ("bone_length",)},
    "rigid only": {"operations": ("rigid",)},
}

# Chosen without augmentation, on held-out motions of the source.
LEARNING_RATES = {
    "simple_baseline": 3e-3,
    "semgcn": 2e-2,
    "semgcn_non_local": 1e-2,
    "stgcn": 1e-2,
    "videopose3d": 3e-3,
}


def schedule(estimator: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Settings of training and test that all rows of one estimator in a table share."""
    return {
        "size": arguments.size,
        "updates": arguments.updates,
        "batch": arguments.batch,
        "lr": arguments.lr or LEARNING_RATES[estimator],
        "bf16": arguments.bf16,
        "subjects": list(arguments.subjects),
        "every": arguments.every,
        "clips": arguments.clips,
        "held_out": list(arguments.held_out) if arguments.validate else None,
        "train_cameras": arguments.train_cameras,
        "noise": arguments.noise,
    }


def check_results(
    results: list[dict[str, Any]], tests: Collection[str], arguments: argparse.Namespace
) -> None:
    """Refuse a results file with runs of another schedule.

    Raises:
        SystemExit: The training or the test of a run differs from the one asked for.
    """
    for result in results:
        name = result["estimator"]
        if name not in arguments.estimators or result["frames"] != arguments.frames:
            continue
        asked = {**schedule(name, arguments), "tests": sorted(tests)}
        has = {**asked, "train_cameras": "source", "noise": 0.0, **result}
        has["tests"] = sorted(result["tests"])
        _check_same(f"--out {arguments.out} has runs of {name}", has, asked)


def _check_same(what: str, has: dict[str, Any], asked: dict[str, Any]) -> None:
    other = [key for key in asked if has[key] != asked[key]]
    if other:
        received, expected = (
            ", ".join(f"{key} {values[key]}" for key in other) for values in (has, asked)
        )
        raise SystemExit(
            f"{what} with {received}, asked for are {expected}: name another --out, or remove that."
        )


class Run:
    """One training: estimator, optimizer, and the hook where its row has one."""

    def __init__(
        self, name: str, row: str, seed: int, data: Benchmark, arguments: argparse.Namespace
    ) -> None:
        torch.manual_seed(seed)
        self.name, self.row, self.seed, self.arguments = name, row, seed, arguments
        self.data, device = data, data.train.joints.device
        self.estimator = build(name, arguments.size, arguments.frames).to(device)
        self.schedule = schedule(name, arguments)
        self.lr = self.schedule["lr"]
        self.optimizer = torch.optim.Adam(self.estimator.parameters(), lr=self.lr)
        self.order = torch.Generator().manual_seed(seed)
        self.updates, self.seconds = 0, 0.0
        self.ratios: list[dict[str, Any]] = []  # of bone lengths there, as the hook believes
        self.hook: PoseAugHook | None = None
        options = ROWS[row]
        self.train_set = data.train
        if options is not None:
            options = dict(options)
            if told := options.pop("told", None):
                self.train_set = data.told[told]()
            if known := options.get("target_2d"):
                target = data.known_2d[known]()
                options["target_2d"] = target.parts(target.keypoints)
                options["target_camera"] = target.intrinsics
            if options.get("preset") in ("released", "paper"):
                options = options | {"total_updates": arguments.updates}
            self.hook = PoseAugHook(
                self.estimator,
                skeleton="h36m_16",
                adapter=PoseAdapter(root="absolute"),
                seed=seed,
                **options,
            )
        self._parts = {"estimator": self.estimator, "optimizer": self.optimizer}
        self._parts["poseaug"] = self.hook

    def train(self, bar: Any, until: int) -> None:
        """Update up to ``until`` times, with a learning rate that falls linearly to zero."""
        self.estimator.train()
        train, arguments = self.train_set, self.arguments
        started = time.perf_counter()
        while self.updates < until:
            for group in self.optimizer.param_groups:
                group["lr"] = self.lr * (1 - self.updates / arguments.updates)
            chosen = torch.randint(len(train.joints), (arguments.batch,), generator=self.order)
            keypoints, joints, cameras = train.windows(
                chosen.to(train.joints.device), arguments.frames
            )
            if self.hook is not None:
                keypoints, joints, cameras = self.hook.augment(
                    keypoints, joints, cameras, return_camera=True
                )
            target = joints[:, arguments.frames // 2, None]
            self.optimizer.zero_grad()
            with torch.autocast(target.device.type, torch.bfloat16, enabled=arguments.bf16):
                predicted = self.estimator(keypoints)
            metrics.mpjpe(predicted.float(), target - target[:, :, :1]).backward()
            self.optimizer.step()
            self.updates += 1
            bar.update()
        self.seconds += time.perf_counter() - started

    def estimates(self, test: Sequences) -> Iterator[tuple[Tensor, Tensor]]:
        """Give predicted and true root-relative joints, some thousand frames at a time."""
        for frames in torch.arange(len(test.joints), device=test.joints.device).split(4096):
            keypoints, joints, _ = test.windows(frames, self.arguments.frames)
            target = joints[:, self.arguments.frames // 2]
            predicted = self.estimator(keypoints)[:, 0]
            yield predicted - predicted[:, :1], target - target[:, :1]

    @torch.no_grad()
    def evaluate(self) -> dict[str, dict[str, Any]]:
        """Compute errors in mm of the last weights, of all frames and by kind of camera."""
        self.estimator.eval()
        results = {}
        for name, test in self.data.tests.items():
            predicted, target = map(torch.cat, zip(*self.estimates(test), strict=True))
            errors = 1000 * (predicted - target).norm(dim=-1).mean(1)
            inside = torch.arange(len(errors), device=errors.device) != test.last
            velocity = 1000 * (predicted.diff(dim=0) - target.diff(dim=0)).norm(dim=-1).mean(1)
            results[name] = {
                "MPJPE": errors.mean().item(),
                "N-MPJPE": 1000 * metrics.n_mpjpe(predicted, target).item(),
                "P-MPJPE": 1000 * metrics.p_mpjpe(predicted, target).item(),
                "PCK": metrics.pck(predicted, target).item(),
                "MPJVE": velocity[inside[:-1]].mean().item(),
                "by camera": _means_by(test.groups, errors),
            }
        return results

    def result(self) -> dict[str, Any]:
        """Make an entry of the results file."""
        return {
            "estimator": self.name,
            "frames": self.arguments.frames,
            "row": self.row,
            "seed": self.seed,
            **self.schedule,
            "seconds": round(self.seconds),
            "tests": self.evaluate(),
            **of_hook(self.hook),
            **({"bone_ratios": [*self.ratios, self._true_ratios()]} if self.ratios else {}),
        }

    def note_ratios(self) -> None:
        """Keep what a closed loop believes now of the bones there."""
        state = {} if self.hook is None else self.hook.state_dict()["training"]["modules"]
        if "closed_loop.ratios" in state:
            ratios = state["closed_loop.ratios"].tolist()
            self.ratios.append({"updates": self.updates, "ratios": ratios})

    def _true_ratios(self) -> dict[str, Any]:
        """What there is to be found out."""
        there = self.data.known_2d[(ROWS[self.row] or {})["target_2d"]]()
        theirs, ours = (
            average_bone_lengths(s.joints, H36M_16).median(0).values
            for s in (there, self.train_set)
        )
        return {"updates": None, "ratios": (theirs / ours).tolist()}

    def state_dict(self) -> dict[str, Any]:
        """Everything that a bit-exact continuation needs."""
        run = {"schedule": self.schedule, "updates": self.updates, "seconds": self.seconds}
        run["ratios"] = self.ratios
        return run | checkpoints.states(self.order, **self._parts)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`."""
        self.updates, self.seconds = state["updates"], state["seconds"]
        self.ratios = state["ratios"]
        checkpoints.restore(state, self.order, **self._parts)


def _means_by(labels: tuple[str, ...], errors: Tensor) -> dict[str, float]:
    names = sorted(set(labels))
    index = {name: i for i, name in enumerate(names)}
    which = torch.tensor([index[label] for label in labels], device=errors.device)
    sums = torch.zeros(len(names), device=errors.device).index_add(0, which, errors)
    return dict(zip(names, (sums / which.bincount()).tolist(), strict=True))


def complete(run: Run, checkpoint: Path) -> None:
    """Train a run to its end, from its checkpoint if there is one; save ten times."""
    if checkpoint.exists():
        state = checkpoints.load(checkpoint)
        _check_same(f"{checkpoint} is half of a run", state["schedule"], run.schedule)
        run.load_state_dict(state)
    total = run.arguments.updates
    label = f"{run.name}, {run.row}, seed {run.seed}"
    with tqdm(total=total, initial=run.updates, desc=label, unit="step", mininterval=5) as bar:
        while run.updates < total:
            run.train(bar, until=min(total, run.updates + max(1, total // 10)))
            run.note_ratios()
            checkpoints.save(run.state_dict(), checkpoint)


def parse_arguments(given: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="source_cmu, target_bandai, ...")
    parser.add_argument("--out", type=Path, default=Path("runs/generalisation.json"))
    parser.add_argument("--estimators", nargs="+", choices=MODELS, default=["simple_baseline"])
    parser.add_argument("--size", choices=("published", "small", "tiny"), default="small")
    parser.add_argument("--frames", type=int, default=1, help="receptive field")
    parser.add_argument(
        "--rows", nargs="+", choices=ROWS, default=["none", "random, tuned", "default"]
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--updates", type=int, default=10000)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--lr", type=float, help="of the estimator; by default its own")
    parser.add_argument("--subjects", nargs="+", default=list(TRAIN_SUBJECTS))
    parser.add_argument("--every", type=int, default=1, help="train on every n-th frame")
    parser.add_argument("--clips", type=int, default=1, help="test on every n-th clip")
    parser.add_argument(
        "--train-cameras",
        choices=("source", "ceiling", "chest", "knee"),
        default="source",
        help="the source's, or a group of the target's; its other groups test then",
    )
    parser.add_argument(
        "--noise", type=float, default=0.0, help="of all 2D; 0.01 is 5 px of a picture 1,000 wide"
    )
    parser.add_argument("--validate", action="store_true", help="held-out source motions only")
    parser.add_argument(
        "--held-out", nargs="+", default=list(HELD_OUT), help="patterns of the motions for that"
    )
    parser.add_argument("--budget-minutes", type=float, help="start no run after that")
    parser.add_argument("--bf16", action="store_true", help="the estimator under autocast")
    parser.add_argument("--smoke", action="store_true", help="the whole path in seconds")
    arguments = parser.parse_args(given)
    if arguments.smoke:
        arguments.updates, arguments.batch, arguments.seeds = 5, 64, [0]
        arguments.every, arguments.clips = 20, 40
    return arguments


def main(given: Sequence[str] | None = None) -> None:
    """Run what is not in the results file yet."""
    arguments = parse_arguments(given)
    warnings.simplefilter("once")
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    data = load(
        arguments.data,
        device,
        validate=arguments.validate,
        held_out=arguments.held_out,
        subjects=tuple(arguments.subjects),
        every=arguments.every,
        clips=arguments.clips,
        train_cameras=arguments.train_cameras,
        noise=arguments.noise,
    )
    check_results(read_results(arguments.out), data.tests, arguments)
    print(f"{len(data.train.joints):,} training frames, {device}", flush=True)
    started = time.monotonic()
    # Seeds are the outer loop: an early end leaves whole tables of fewer seeds.
    for seed in arguments.seeds:
        for name in arguments.estimators:
            for row in arguments.rows:
                results = read_results(arguments.out)
                key = (name, arguments.frames, row, seed)
                if key in {(r["estimator"], r["frames"], r["row"], r["seed"]) for r in results}:
                    continue
                minutes = (time.monotonic() - started) / 60
                if arguments.budget_minutes and minutes > arguments.budget_minutes:
                    continue
                run = Run(name, row, seed, data, arguments)
                label = "-".join(str(part).replace(" ", "_") for part in key)
                checkpoint = arguments.out.with_name(f"{arguments.out.stem}-{label}.pt")
                complete(run, checkpoint)
                # Read again: another process may have added to it.
                write_results(arguments.out, [*read_results(arguments.out), run.result()])
                checkpoint.unlink()
    results = read_results(arguments.out)
    print(format_generalisation(results))
    if results:
        draw_generalisation(arguments.out.with_suffix(".png"), results)


if __name__ == "__main__":
    main()
