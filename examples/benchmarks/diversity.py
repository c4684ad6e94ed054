"""Are augmented poses more diverse, and are they still human?

    python examples/benchmarks/diversity.py --data FOLDER

Trains a small estimator with rows of the generalisation benchmark, draws poses with each trained
hook, and compares them and the training poses with the poses of another data set.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from poseaug_plugin import PartKCSCritic
from poseaug_plugin.body.presets import H36M_16

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from shared.bodies import body_aligned, joint_angles, knees_backwards, viewpoints
from shared.figures import plt
from shared.mocap import TRAIN_SUBJECTS
from shared.report import format_diversity, write_results

from benchmarks.generalisation import ROWS, Run
from benchmarks.generalisation_data import Benchmark, load

AGAINST = "random, tuned"  # the poses that the critic learns to tell from real ones
_COLOURS = {"original": "#1f77b4", AGAINST: "#e08e0b", "default": "#d1495b", "target": "black"}


def coverage(targets: Tensor, poses: Tensor) -> float:
    """Mean joint distance, mm, of targets (N, J, 3) to the nearest pose of (M, J, 3)."""
    by_joint, exact, nearest = poses.transpose(0, 1), "donot_use_mm_for_euclid_dist", []
    for chunk in targets.split(128):
        distances = torch.cdist(chunk.transpose(0, 1), by_joint, compute_mode=exact)
        nearest.append(distances.mean(0).amin(1))
    return 1000 * torch.cat(nearest).mean().item()


def spreads(joints: Tensor) -> dict[str, float]:
    """Standard deviations over poses (N, J, 3) in camera space: degrees, and metres of depth.

    That of azimuth is sqrt(2 (1 - R)), with the mean resultant length R: 81 degrees at most.
    """
    azimuth, elevation = viewpoints(joints)
    resultant = torch.polar(torch.ones_like(azimuth), azimuth.deg2rad()).mean().abs().item()
    others = {"elevation": elevation, "depth": joints[:, 0, 2]} | joint_angles(joints)
    deviations = {name: values.std().item() for name, values in others.items()}
    return {"azimuth": math.degrees(math.sqrt(2 - 2 * resultant)), **deviations}


def train_critic(real: Tensor, fake: Tensor, steps: int, batch: int = 512) -> PartKCSCritic:
    """Train a part-aware critic to score real poses (N, J, 3) 1 and others (M, J, 3) 0."""
    torch.manual_seed(0)
    critic = PartKCSCritic(H36M_16).to(real.device)
    optimizer = torch.optim.Adam(critic.parameters(), lr=1e-3)
    for _ in tqdm(range(steps), desc="critic", unit="step", mininterval=5):
        chosen = [p[torch.randint(len(p), (batch,), device=p.device)] for p in (real, fake)]
        real_scores, fake_scores = critic(torch.cat(chosen)).split(batch)
        optimizer.zero_grad()
        ((real_scores - 1).square().mean() + fake_scores.square().mean()).backward()
        optimizer.step()
    return critic


def augmented(row: str, data: Benchmark, arguments: argparse.Namespace) -> Tensor:
    """Train an estimator with a row, and let its hook make poses (N, J, 3) of training poses."""
    run = Run("simple_baseline", row, 0, data, arguments)
    with tqdm(total=arguments.updates, desc=row, unit="step", mininterval=5) as bar:
        run.train(bar, until=arguments.updates)
    made: list[Tensor] = []
    while sum(map(len, made)) < arguments.poses:
        # Batches as in training: a pose takes the position of another pose of its batch.
        batch = data.train.windows(torch.randint(len(data.train.joints), (arguments.batch,)), 1)
        _, joints, _ = run.hook.augment(*batch, return_camera=True)  # type: ignore[union-attr]
        made.append(joints[(joints != batch[1]).flatten(1).any(1), 0])
    run.hook.remove()  # type: ignore[union-attr]
    return torch.cat(made)[: arguments.poses]


@torch.no_grad()
def measure(sets: dict[str, Tensor], critic: PartKCSCritic) -> list[dict[str, Any]]:
    """Measure every set of poses (N, J, 3). The critic has seen the first halves of two sets."""
    target, half = sets["target"], len(sets["original"]) // 2
    real = joint_angles(torch.cat([target, sets["original"]]))
    limits = {n: a.quantile(torch.tensor([1e-3, 0.999])) for n, a in real.items() if "flexion" in n}
    results = []
    for name, poses in sets.items():
        angles, backwards = joint_angles(poses), knees_backwards(poses)
        outside = backwards
        for joint, (low, high) in limits.items():
            outside = outside | ((angles[joint] < low) | (angles[joint] > high)).any(1)
        result = {
            "set": name,
            "poses": len(poses),
            "spread": spreads(poses),
            "knees backwards": 100 * backwards.float().mean().item(),
            "implausible": 100 * outside.float().mean().item(),
            "critic score": critic(poses[half:]).mean().item(),
        }
        if name != "target":
            pair = [p[:4096] for p in (target, poses)]
            result["as seen"] = coverage(*(p - p[:, :1] for p in pair))
            result["pose alone"] = coverage(*(body_aligned(p) for p in pair))
        results.append(result)
    return results


def draw(path: Path, sets: dict[str, Tensor]) -> None:
    """Draw viewpoints of the sets of poses (N, J, 3), histograms of depth and joint angles."""
    shown = {name: sets[name] for name in _COLOURS if name in sets}
    figure, panels = plt.subplots(2, 4, figsize=(14, 6.4), layout="constrained")
    sides = [torch.linspace(-180, 180, 49).numpy(), torch.linspace(-90, 90, 37).numpy()]
    for axes, (name, poses) in zip(panels[0], shown.items(), strict=False):
        axes.hist2d(*viewpoints(poses), bins=sides, cmap="Blues", vmax=len(poses) / 400)
        axes.set(title=name, xticks=range(-90, 91, 90), yticks=range(-90, 91, 45))
        axes.set_xlabel("azimuth of the camera, degrees")
        values = {"depth of the root, metres": poses[:, 0, 2]}
        values |= {f"{key}, degrees": angles for key, angles in joint_angles(poses).items()}
        style = {"bins": 60, "histtype": "step", "density": True, "color": _COLOURS[name]}
        for below, (label, value) in zip(panels[1], values.items(), strict=True):
            highest = 180 if "degrees" in label else 10
            below.hist(value.flatten(), range=(0, highest), label=name, linewidth=1.4, **style)
            below.set(xlabel=label, yticks=[], xlim=(0, highest))
    panels[0, 0].set_ylabel("elevation of the camera, degrees")
    panels[1, 0].set_ylabel("density")
    panels[1, 0].legend(frameon=False, fontsize=9)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    """Train, draw, compare."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="source_cmu, target_bandai, ...")
    parser.add_argument("--out", type=Path, default=Path("runs/diversity.json"))
    parser.add_argument("--picture", type=Path, help="PNG; beside --out by default")
    rows = [AGAINST, "nothing learned", "default"]
    parser.add_argument(
        "--rows", nargs="+", choices=sorted(r for r in ROWS if ROWS[r] is not None), default=rows
    )
    parser.add_argument("--updates", type=int, default=1500)
    parser.add_argument("--poses", type=int, default=8192, help="of every set")
    parser.add_argument("--smoke", action="store_true", help="the whole path in seconds")
    arguments = parser.parse_args()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    if arguments.smoke:
        arguments.updates, arguments.poses = 5, 256
    every, clips, steps = (20, 40, 5) if arguments.smoke else (1, 1, 300)
    vars(arguments).update(size="small", frames=1, lr=None, batch=256, bf16=False)
    vars(arguments).update(subjects=TRAIN_SUBJECTS, every=every, clips=clips, validate=False)
    vars(arguments).update(train_cameras="source", noise=0.0)
    data = load(arguments.data, torch.device("cpu"), every=every, clips=clips)

    def some(poses: Tensor) -> Tensor:
        random = torch.Generator().manual_seed(0)
        return poses[torch.randint(len(poses), (arguments.poses,), generator=random)]

    real = (data.tests["cross-dataset"], data.tests["in-domain"], data.train)
    names = ("target", "held-out subjects", "original")
    sets = {name: some(poses.joints) for name, poses in zip(names, real, strict=True)}
    sets |= {row: augmented(row, data, arguments) for row in arguments.rows}
    against = AGAINST if AGAINST in sets else arguments.rows[0]
    critic = train_critic(*(sets[s][: arguments.poses // 2] for s in ("original", against)), steps)
    results = measure(sets, critic)
    write_results(arguments.out, results)
    print(format_diversity(results))
    draw(arguments.picture or arguments.out.with_suffix(".png"), sets)


if __name__ == "__main__":
    main()
