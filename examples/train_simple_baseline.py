"""SimpleBaseline's training in PyTorch, written anew, with PoseAugHook in it.

    python examples/train_simple_baseline.py --poseaug                 # procedural motion
    python examples/train_simple_baseline.py --poseaug --data FOLDER   # the files of VideoPose3D

Kept of main.py of weigq/3d_pose_baseline_pytorch: flattened, z-scored poses in pixels and
millimetres, without the neck in 2D and the hip in 3D, the squared error of the scores, gradients
clipped to norm 1, a learning rate that decays by step, Kaiming's initialisation, the keys of the
checkpoint, and the error over 17 joints, the hip included. The host reads ready scores. Here they
come from the files of the other hosts.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from adapters.simple_baseline import NECK, SimpleBaselineAdapter, keypoint_statistics
from estimators import SimpleBaseline
from shared import checkpoints
from shared.h36m import Recording, relative_to_root
from shared.mocap import Array, to_pixels
from shared.training import PerAction, StepDecay, parse, read_sets, training_parser
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from tqdm import tqdm

from poseaug_plugin import PoseAugHook, metrics

Statistics = dict[str, Array]


class Scores(NamedTuple):
    """Z-scored poses."""

    inputs: Tensor  # (N, 32)
    targets: Tensor  # (N, 48)


def train(
    train_loader: DataLoader,
    model: nn.Module,
    criterion: nn.Module,
    optimizer: torch.optim.Optimizer,
    schedule: StepDecay,
    hook: PoseAugHook,
    device: torch.device,
) -> float:
    """Train for one epoch; return the mean loss."""
    model.train()
    total, poses = 0.0, 0
    for inps, tars in tqdm(train_loader, desc="train", leave=False):
        schedule.advance(optimizer)
        inputs, targets = inps.to(device), tars.to(device)
        inputs, targets = hook.augment(inputs, targets)
        outputs = model(inputs)

        optimizer.zero_grad()
        loss = criterion(outputs, targets)
        total += inputs.size(0) * loss.item()
        poses += inputs.size(0)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), max_norm=1)
        optimizer.step()
    return total / poses


@torch.no_grad()
def test(
    model: nn.Module,
    recordings: Sequence[Recording],
    stat_2d: Statistics,
    stat_3d: Statistics,
    batch_size: int,
    device: torch.device,
) -> PerAction:
    """Compute errors over 17 joints. The hip is one of them, and always right."""
    model.eval()
    errors = PerAction()
    for recording in tqdm(recordings, desc="test", leave=False):
        scores = scored([recording], stat_2d, stat_3d)
        for inps, tars in DataLoader(TensorDataset(*scores), batch_size):
            outputs = model(inps.to(device)).cpu()
            predicted, target = in_mm(outputs, stat_3d), in_mm(tars, stat_3d)
            errors.add(
                recording.action,
                len(target),
                {
                    "error": metrics.mpjpe(predicted, target).item(),
                    "error, Procrustes": metrics.p_mpjpe(predicted, target).item(),
                },
            )
    return errors


def pixels_of(recording: Recording) -> Array:
    """(T, 16, 2) without the neck."""
    camera = recording.camera
    return np.delete(to_pixels(recording.keypoints, camera.width, camera.height), NECK, axis=1)


def millimetres_of(recording: Recording) -> Array:
    """(T, 17, 3) relative to the hip."""
    return 1000 * recording.joints.astype(np.float64)


def pose_statistics(recordings: Sequence[Recording]) -> Statistics:
    """Make the host's stat_3d.pth.tar: mean and std of 51 numbers, indices of the used ones."""
    values = np.concatenate([millimetres_of(r).reshape(-1, 51) for r in recordings])
    return {"mean": values.mean(0), "std": values.std(0), "dim_use": np.arange(3, 51)}


def scored(recordings: Sequence[Recording], stat_2d: Statistics, stat_3d: Statistics) -> Scores:
    """Make the scores that the host has on disk."""

    def score(poses: Array, statistics: Statistics) -> Tensor:
        used = statistics["dim_use"]
        values = poses.reshape(len(poses), -1)[:, used]
        scores = (values - statistics["mean"][used]) / statistics["std"][used]
        return torch.from_numpy(scores).float()

    return Scores(
        score(np.concatenate([pixels_of(r) for r in recordings]), stat_2d),
        score(np.concatenate([millimetres_of(r) for r in recordings]), stat_3d),
    )


def in_mm(scores: Tensor, stat_3d: Statistics) -> Tensor:
    """(N, 48) scores to (N, 17, 3) with the hip in the origin."""
    used = stat_3d["dim_use"]
    mean, std = (torch.from_numpy(stat_3d[name][used]).float() for name in ("mean", "std"))
    return nn.functional.pad((scores * std + mean).unflatten(1, (16, 3)), (0, 0, 1, 0))


def parse_arguments(given: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = training_parser("simple_baseline", __doc__, epochs=200, batch_size=64, lr=1e-3)
    parser.add_argument("--linear-size", type=int, default=1024)
    parser.add_argument("--num-stage", type=int, default=2)
    parser.add_argument("--dropout", type=float, default=0.5)
    parser.add_argument("--lr-decay", type=int, default=100_000, help="every so many steps")
    parser.add_argument("--lr-gamma", type=float, default=0.96, help="by this factor")
    return parse(parser, given, epochs=2, linear_size=32, downsample=20, lr_decay=20)


def main(given: Sequence[str] | None = None) -> None:
    """Train, test after every epoch, and print errors by action in the end."""
    arguments = parse_arguments(given)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(arguments.seed)
    train_set, test_set = read_sets(arguments, relative_to_root)
    stat_2d = keypoint_statistics(np.concatenate([pixels_of(r) for r in train_set]))
    stat_3d = pose_statistics(train_set)
    order = torch.Generator().manual_seed(arguments.seed)
    train_loader = DataLoader(
        TensorDataset(*scored(train_set, stat_2d, stat_3d)),
        arguments.batch_size,
        shuffle=True,
        generator=order,
    )

    model = SimpleBaseline(
        width=arguments.linear_size, stages=arguments.num_stage, dropout=arguments.dropout
    ).to(device)
    print(f">>> total params: {sum(p.numel() for p in model.parameters()) / 1e6:.3f}M")
    criterion = nn.MSELoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=arguments.lr)
    hook = PoseAugHook(model, skeleton="h36m_17", adapter=SimpleBaselineAdapter(stat_3d, stat_2d))
    hook.enabled = arguments.poseaug

    parts = {"state_dict": model, "optimizer": optimizer}
    epoch, schedule = 0, StepDecay(arguments.lr, arguments.lr_decay, arguments.lr_gamma)
    if arguments.resume:
        checkpoint = checkpoints.load(arguments.resume)
        epoch = checkpoint["epoch"]
        schedule.step, schedule.lr = checkpoint["step"], checkpoint["lr"]
        checkpoints.restore(checkpoint, order, **parts)
        hook.load_state_dict(checkpoint["poseaug"])

    while epoch < arguments.epochs:
        loss = train(train_loader, model, criterion, optimizer, schedule, hook, device)
        epoch += 1
        errors = test(model, test_set, stat_2d, stat_3d, arguments.batch_size, device)
        err_test = errors.frame_average()["error"]
        print(
            f">>> epoch: {epoch} | lr: {schedule.lr:.5f} | loss: {loss:.4f} | error: {err_test:.4f}"
        )
        checkpoints.save(
            {
                "epoch": epoch,
                "lr": schedule.lr,
                "step": schedule.step,
                "err": err_test,
                "poseaug": hook.state_dict(),
                **checkpoints.states(order, **parts),
            },
            arguments.checkpoint / "ckpt_last.pth.tar",
        )

    print(test(model, test_set, stat_2d, stat_3d, arguments.batch_size, device).table())


if __name__ == "__main__":
    main()
