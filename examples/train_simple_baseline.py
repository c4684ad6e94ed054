"""SimpleBaseline's training in PyTorch, written anew, with PoseAugHook in it.

    python examples/train_simple_baseline.py --poseaug                 # procedural motion
    python examples/train_simple_baseline.py --poseaug --data FOLDER   # the files of VideoPose3D

Of weigq/3d_pose_baseline_pytorch's main.py it keeps flattened, z-scored poses in pixels and
millimetres, without the neck in 2D and without the hip in 3D, the squared error of the scores, the
gradient clipped to norm 1, the learning rate that decays by step, Kaiming's initialisation, the
checkpoint's keys, and the error over 17 joints with the hip put back. The host reads scores that
were computed beforehand; here they are computed from the files that the other hosts read.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import NamedTuple

import checkpoints
import numpy as np
import torch
from adapters.simple_baseline import NECK, SimpleBaselineAdapter, keypoint_statistics
from command_line import parse, read_sets, training_parser
from estimators import SimpleBaseline
from h36m_files import Recording, relative_to_root
from mocap import Array, to_pixels
from per_action import PerAction
from schedules import StepDecay
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
    """One epoch; returns the mean loss."""
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
    """Errors over 17 joints, the hip among them, which is right in all."""
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
    """The host's stat_3d.pth.tar: mean and std of all 51 numbers, and which of them are used."""
    values = np.concatenate([millimetres_of(r).reshape(-1, 51) for r in recordings])
    return {"mean": values.mean(0), "std": values.std(0), "dim_use": np.arange(3, 51)}


def scored(recordings: Sequence[Recording], stat_2d: Statistics, stat_3d: Statistics) -> Scores:
    """The poses as the host has them on disk."""

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
    """Train, test every epoch, and in the end action by action."""
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

    epoch, schedule = 0, StepDecay(arguments.lr, arguments.lr_decay, arguments.lr_gamma)
    if arguments.resume:
        checkpoint = checkpoints.load(arguments.resume)
        epoch = checkpoint["epoch"]
        schedule.step, schedule.lr = checkpoint["step"], checkpoint["lr"]
        model.load_state_dict(checkpoint["state_dict"])
        optimizer.load_state_dict(checkpoint["optimizer"])
        hook.load_state_dict(checkpoint["poseaug"])
        order.set_state(checkpoint["order"])
        checkpoints.set_random_state(checkpoint["torch_random_state"])

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
                "state_dict": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "poseaug": hook.state_dict(),
                "order": order.get_state(),
                "torch_random_state": checkpoints.random_state(),
            },
            arguments.checkpoint / "ckpt_last.pth.tar",
        )

    print(test(model, test_set, stat_2d, stat_3d, arguments.batch_size, device).table())


if __name__ == "__main__":
    main()
