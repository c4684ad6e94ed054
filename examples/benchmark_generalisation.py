"""Does an estimator get better on data it has never seen? Estimators x rows x seeds.

    python examples/benchmark_generalisation.py --data FOLDER --estimators simple_baseline
    python examples/benchmark_generalisation.py --data FOLDER --estimators videopose3d --frames 27

Every run of an estimator has the same number of updates and the same schedule; nothing is picked on
a test set: the last weights are what is tested. Results go to --out after every run, and what is in
there is not run again; an interrupted run goes on from its checkpoint. `--validate` tests on
held-out motions of the training subjects instead, for choosing options.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from ablation import HELD_OUT
from checkpoints import random_state, set_random_state
from estimators.semgcn import SemGCN
from estimators.simple_baseline import SimpleBaseline
from estimators.stgcn import STGCN
from estimators.videopose3d import StridedTemporalModel
from figures import draw_generalisation
from generalisation_data import Benchmark, Sequences, load
from lifters import SingleFrame
from mocap import TRAIN_SUBJECTS
from report import format_generalisation, read_results, write_results
from torch import Tensor, nn
from tqdm import tqdm

from poseaug_plugin import AugmentationPolicy, PoseAdapter, PoseAugHook, Spread, metrics

# What a user would do instead of PoseAug: bones one by one, bone lengths, viewpoints. Best with
# half of a batch augmented, and half of that in its own view, and with lengths of torsos as they
# are in ours (docs/experiments.md, sections 34 and 38).
NARROW = Spread(
    pitch=0.35,
    roll=0.15,
    limb_angle=0.0,
    bone_angle=0.1,
    torso_angle=0.1,
    torso_length=0.15,
    own_view=0.5,
)
WIDE = replace(NARROW, pitch=0.7, roll=0.3)
TUNED = replace(WIDE, bone_angle=0.2, torso_angle=0.2, torso_length=0.35)
# Other bases of the policy.
NARROW_BASE = Spread(pitch=0.25, roll=0.1, limb_angle=0.15, bone_angle=0.05, torso_angle=0.1)
WIDE_BASE = Spread(
    pitch=0.7,
    roll=0.3,
    limb_angle=0.42,
    bone_angle=0.147,
    torso_angle=0.294,
    bone_length=0.21,
    torso_length=0.49,
)

NO_CRITICS = {"weight_3d": 0.0, "weight_2d": 0.0, "weight_motion": 0.0}

ROWS: dict[str, dict[str, Any] | None] = {
    "none": None,
    "random, narrow": {"preset": "random", "spread": NARROW, "share": 0.5},
    "random, wide": {"preset": "random", "spread": WIDE, "share": 0.5},
    "random, tuned": {"preset": "random", "spread": TUNED, "share": 0.5},
    "default": {},
    "default from narrow": {"spread": NARROW_BASE},
    "default from wide": {"spread": WIDE_BASE},
    "its base alone": {"preset": "random"},
    "its wide base alone": {"preset": "random", "spread": WIDE_BASE},
    "from wide, without critics": {"spread": WIDE_BASE, **NO_CRITICS},
    "released": {"preset": "released"},
    "paper": {"preset": "paper"},
    "without critics": NO_CRITICS,
    "without the 3D critic": {"weight_3d": 0.0},
    "without the 2D critic": {"weight_2d": 0.0},
    "without the motion critic": {"weight_motion": 0.0},
    "whole-body critic": {"kcs": "whole"},
    "bone angles only": {"operations": ("bone_angle",)},
    "bone lengths only": {"operations": ("bone_length",)},
    "rigid only": {"operations": ("rigid",)},
    "without limbs": {"spread": Spread(limb_angle=0.0)},
    "with focal lengths": {"spread": Spread(focal_length=0.5)},
    "append": {"mix": "append"},
    # Domain adaptation, so no rival of the others: 2D of the target is known, from other clips.
    "adapted: 2D critic": {},
    "adapted: 2D critic and places": {"placement": "real_poses_2d"},
    # How much is the bodies: bone lengths of the people who are tested on are given away.
    "told the bodies: none": None,
    "told the bodies: default": {},
}


# Those of them that learn, with the error's feedback on.
ROWS |= {
    f"{name}, with feedback": {**options, "feedback": "predicted"}
    for name, options in ROWS.items()
    if options is not None and "preset" not in options
}


def videopose3d(frames: int, **options: Any) -> nn.Module:
    """VideoPose3D's training form for a power of three of frames."""
    powers = {3**n: n for n in range(6)}
    if frames not in powers:
        raise SystemExit(f"--frames: videopose3d takes {', '.join(map(str, powers))}, not {frames}")
    widths = (3,) * powers[frames] or (1, 1, 1)
    return StridedTemporalModel(16, 16, filter_widths=widths, **options)


# By name and size, for T frames: as published, and narrower, for a CPU. SemGCN as the code of
# PoseAug builds it, without non-local blocks; small, it needs dropout, as the others have, or it
# can explode on single frames (docs/experiments.md, sections 19 and 27).
ESTIMATORS: dict[str, dict[str, Callable[[int], nn.Module]]] = {
    "simple_baseline": {
        "published": lambda _: SingleFrame(SimpleBaseline(), flat=True),
        "small": lambda _: SingleFrame(SimpleBaseline(width=384, dropout=0.1), flat=True),
    },
    "semgcn": {
        "published": lambda _: SingleFrame(SemGCN("h36m_16"), flat=False),
        "small": lambda _: SingleFrame(SemGCN("h36m_16", width=64, dropout=0.1), flat=False),
    },
    "semgcn_non_local": {
        "published": lambda _: SingleFrame(SemGCN("h36m_16", non_local=True), flat=False),
        "small": lambda _: SingleFrame(SemGCN("h36m_16", width=64, non_local=True), flat=False),
    },
    "stgcn": {
        "published": lambda frames: STGCN("h36m_16", frames=frames),
        "small": lambda frames: STGCN("h36m_16", frames=frames, widths=(16, 16, 32), part_width=64),
    },
    "videopose3d": {
        "published": videopose3d,
        "small": partial(videopose3d, channels=192, dropout=0.1),
    },
}

# Chosen without augmentation on held-out source motions (docs/experiments.md, sections 9 and 19).
LEARNING_RATES = {
    "simple_baseline": 3e-3,
    "semgcn": 2e-2,
    "semgcn_non_local": 1e-2,
    "stgcn": 1e-2,
    "videopose3d": 3e-3,
}


def schedule(estimator: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """How a run is trained and tested: what rows of one estimator must share in a table."""
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
    }


def check_results(
    results: list[dict[str, Any]], tests: Collection[str], arguments: argparse.Namespace
) -> None:
    """Refuse a results file of other runs, whose rows would pass for those that are asked for.

    Raises:
        SystemExit: One of its runs was trained by another schedule, or tested on something else.
    """
    for result in results:
        name = result["estimator"]
        if name not in arguments.estimators or result["frames"] != arguments.frames:
            continue
        asked = {**schedule(name, arguments), "tests": sorted(tests)}
        # Old ones lack some.
        known = {key: value for key, value in result.items() if key in asked}
        known.setdefault("train_cameras", "source")
        has = {**asked, **known, "tests": sorted(result["tests"])}
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
    """One training: an estimator, its optimizer, and perhaps the hook."""

    def __init__(
        self, name: str, row: str, seed: int, data: Benchmark, arguments: argparse.Namespace
    ) -> None:
        torch.manual_seed(seed)
        self.name, self.row, self.seed, self.arguments = name, row, seed, arguments
        self.data, device = data, data.train.joints.device
        self.estimator = ESTIMATORS[name][arguments.size](arguments.frames).to(device)
        self.schedule = schedule(name, arguments)
        self.lr = self.schedule["lr"]
        self.optimizer = torch.optim.Adam(self.estimator.parameters(), lr=self.lr)
        self.order = torch.Generator().manual_seed(seed)
        self.updates, self.seconds = 0, 0.0
        self.hook: PoseAugHook | None = None
        self.train_on = data.told_bodies if row.startswith("told the bodies") else data.train
        if self.train_on is None:
            raise SystemExit(f"{row!r} takes the test set's people: not with --validate")
        options = ROWS[row]
        if row.startswith("adapted"):
            if data.unlabelled is None:
                raise SystemExit(f"{row!r} takes 2D from clips that are not tested on: --clips 2")
            options = {**(options or {}), "real_poses_2d": data.unlabelled}
        if options is not None:
            self.hook = PoseAugHook(
                self.estimator,
                skeleton="h36m_16",
                adapter=PoseAdapter(root="absolute"),
                seed=seed,
                total_updates=arguments.updates,
                **options,
            )

    def train(self, bar: Any, until: int) -> None:
        """Updates up to ``until``, with a learning rate that falls linearly to zero."""
        self.estimator.train()
        train, arguments = self.train_on, self.arguments
        assert train is not None
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

    def lifted(self, test: Sequences) -> Iterator[tuple[Tensor, Tensor]]:
        """Predicted and true root-relative joints, some thousand frames at a time."""
        for frames in torch.arange(len(test.joints), device=test.joints.device).split(4096):
            keypoints, joints, _ = test.windows(frames, self.arguments.frames)
            target = joints[:, self.arguments.frames // 2]
            predicted = self.estimator(keypoints)[:, 0]
            yield predicted - predicted[:, :1], target - target[:, :1]

    @torch.no_grad()
    def evaluate(self) -> dict[str, dict[str, Any]]:
        """Errors in mm of the last weights, in all, by camera group and by kind of motion."""
        self.estimator.eval()
        results = {}
        for name, test in self.data.tests.items():
            predicted, target = (torch.cat(parts) for parts in zip(*self.lifted(test), strict=True))
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
                "by motion": _means_by(test.families, errors),
            }
        return results

    def result(self) -> dict[str, Any]:
        """What goes into the results file."""
        policy = self.hook.policy if self.hook else None
        learned = isinstance(policy, AugmentationPolicy)
        return {
            "estimator": self.name,
            "frames": self.arguments.frames,
            "row": self.row,
            "seed": self.seed,
            **self.schedule,
            "seconds": round(self.seconds),
            "tests": self.evaluate(),
            "diagnostics": self.hook.diagnostics()._asdict() if self.hook else None,
            "spread_factors": policy.log_spread_factors().exp().tolist() if learned else None,  # type: ignore[union-attr]
        }

    def state_dict(self) -> dict[str, Any]:
        """Everything that a bit-exact continuation needs."""
        return {
            "schedule": self.schedule,
            "updates": self.updates,
            "seconds": self.seconds,
            "estimator": self.estimator.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "poseaug": None if self.hook is None else self.hook.state_dict(),
            "order": self.order.get_state(),
            "random": random_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`."""
        self.updates, self.seconds = state["updates"], state["seconds"]
        self.estimator.load_state_dict(state["estimator"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.hook is not None:
            self.hook.load_state_dict(state["poseaug"])
        self.order.set_state(state["order"])
        set_random_state(state["random"])


def _means_by(labels: tuple[str, ...], errors: Tensor) -> dict[str, float]:
    names = sorted(set(labels))
    index = {name: i for i, name in enumerate(names)}
    which = torch.tensor([index[label] for label in labels], device=errors.device)
    sums = torch.zeros(len(names), device=errors.device).index_add(0, which, errors)
    return dict(zip(names, (sums / which.bincount()).tolist(), strict=True))


def complete(run: Run, checkpoint: Path) -> None:
    """Train a run to its end, from its checkpoint if there is one; save now and then."""
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True, map_location="cpu")
        _check_same(f"{checkpoint} is half of a run", state["schedule"], run.schedule)
        run.load_state_dict(state)
    total = run.arguments.updates
    label = f"{run.name}, {run.row}, seed {run.seed}"
    with tqdm(total=total, initial=run.updates, desc=label, unit="step", mininterval=5) as bar:
        while run.updates < total:
            run.train(bar, until=min(total, run.updates + max(1, total // 10)))
            partial_file = checkpoint.with_suffix(".partial")
            torch.save(run.state_dict(), partial_file)
            partial_file.replace(checkpoint)


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="source_cmu, target_bandai, ...")
    parser.add_argument("--out", type=Path, default=Path("runs/generalisation.json"))
    parser.add_argument("--estimators", nargs="+", choices=ESTIMATORS, default=["simple_baseline"])
    parser.add_argument("--size", choices=("published", "small"), default="small")
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
        help="the source's, or a group of the target's, whose others test then",
    )
    parser.add_argument("--validate", action="store_true", help="held-out source motions only")
    parser.add_argument(
        "--held-out", nargs="+", default=list(HELD_OUT), help="patterns of the motions for that"
    )
    parser.add_argument("--budget-minutes", type=float, help="start no run after that")
    parser.add_argument("--bf16", action="store_true", help="the estimator under autocast")
    parser.add_argument("--smoke", action="store_true", help="the whole path in seconds")
    arguments = parser.parse_args()
    if arguments.smoke:
        arguments.updates, arguments.batch, arguments.seeds = 5, 64, [0]
        arguments.every, arguments.clips = 20, 40
    return arguments


def main() -> None:
    """Run what is not in the results file yet."""
    arguments = parse_arguments()
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
    )
    check_results(read_results(arguments.out), data.tests, arguments)
    print(f"{len(data.train.joints):,} training frames, {device}", flush=True)
    started = time.monotonic()
    # Seeds outside, so that an early end leaves whole tables of fewer seeds.
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
