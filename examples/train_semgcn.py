"""SemGCN's training, written anew, with PoseAugHook in it.

    python examples/train_semgcn.py --poseaug                 # procedural motion
    python examples/train_semgcn.py --poseaug --data FOLDER   # the files of SemGCN, 16 joints

Kept of main_gcn.py of garyzhao/SemGCN: 16 joints with a zeroed root, a loader without cameras, the
squared error, clipped gradients, a learning rate that decays by step, the keys of the checkpoint,
and the printed text.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
from estimators import SemGCN
from shared import checkpoints
from shared.h36m import Recording, relative_to_root
from shared.training import PerAction, StepDecay, parse, read_sets, training_parser
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from tqdm import tqdm

from poseaug_plugin import PoseAdapter, PoseAugHook, metrics


def train(
    data_loader: DataLoader,
    model_pos: nn.Module,
    criterion: nn.Module,
    optimizer: torch.optim.Optimizer,
    schedule: StepDecay,
    hook: PoseAugHook,
    device: torch.device,
) -> float:
    """Train for one epoch; return the mean loss."""
    model_pos.train()
    epoch_loss, poses = 0.0, 0
    for targets_3d, inputs_2d in tqdm(data_loader, desc="train", leave=False):
        num_poses = targets_3d.size(0)
        schedule.advance(optimizer)
        targets_3d, inputs_2d = targets_3d.to(device), inputs_2d.to(device)
        inputs_2d, targets_3d = hook.augment(inputs_2d, targets_3d)
        outputs_3d = model_pos(inputs_2d)

        optimizer.zero_grad()
        loss_3d_pos = criterion(outputs_3d, targets_3d)
        loss_3d_pos.backward()
        nn.utils.clip_grad_norm_(model_pos.parameters(), max_norm=1)
        optimizer.step()
        epoch_loss += num_poses * loss_3d_pos.item()
        poses += num_poses
    return epoch_loss / poses


@torch.no_grad()
def evaluate(
    model_pos: nn.Module, recordings: Sequence[Recording], batch_size: int, device: torch.device
) -> PerAction:
    """Compute the errors of both protocols, with the predicted root in the origin."""
    model_pos.eval()
    errors = PerAction()
    for recording in tqdm(recordings, desc="evaluate", leave=False):
        pairs = TensorDataset(*map(torch.from_numpy, (recording.joints, recording.keypoints)))
        for targets_3d, inputs_2d in DataLoader(pairs, batch_size):
            outputs_3d = model_pos(inputs_2d.to(device)).cpu()
            outputs_3d -= outputs_3d[:, :1].clone()
            errors.add(
                recording.action,
                len(targets_3d),
                {
                    "MPJPE": 1000 * metrics.mpjpe(outputs_3d, targets_3d).item(),
                    "P-MPJPE": 1000 * metrics.p_mpjpe(outputs_3d, targets_3d).item(),
                },
            )
    return errors


def parse_arguments(given: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = training_parser("semgcn", __doc__, epochs=100, batch_size=64, lr=1e-3)
    parser.add_argument("--num-layers", type=int, default=4, help="residual blocks")
    parser.add_argument("--hid-dim", type=int, default=128)
    parser.add_argument("--non-local", action="store_true", help="with non-local blocks")
    parser.add_argument("--dropout", type=float, default=0.0, help="0.1 is safer")
    parser.add_argument("--lr-decay", type=int, default=100_000, help="every so many steps")
    parser.add_argument("--lr-gamma", type=float, default=0.96, help="by this factor")
    smoke = {"epochs": 2, "num_layers": 1, "hid_dim": 16, "downsample": 20, "lr_decay": 20}
    return parse(parser, given, **smoke)


def main(given: Sequence[str] | None = None) -> None:
    """Train, evaluate after every epoch, and print errors by action in the end."""
    arguments = parse_arguments(given)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(arguments.seed)
    # The root is zeroed: its position is lost
    train_set, test_set = read_sets(arguments, relative_to_root, joints=16)
    order = torch.Generator().manual_seed(arguments.seed)
    train_loader = DataLoader(
        TensorDataset(
            torch.cat([torch.from_numpy(r.joints) for r in train_set]),
            torch.cat([torch.from_numpy(r.keypoints) for r in train_set]),
        ),
        arguments.batch_size,
        shuffle=True,
        generator=order,
    )

    model_pos = SemGCN(
        "h36m_16",
        width=arguments.hid_dim,
        blocks=arguments.num_layers,
        non_local=arguments.non_local,
        dropout=arguments.dropout,
    ).to(device)
    print(f"==> Total parameters: {sum(p.numel() for p in model_pos.parameters()) / 1e6:.3f}M")
    criterion = nn.MSELoss()
    optimizer = torch.optim.Adam(model_pos.parameters(), lr=arguments.lr)
    hook = PoseAugHook(model_pos, skeleton="h36m_16", adapter=PoseAdapter(root="zeroed"))
    hook.enabled = arguments.poseaug

    parts = {"state_dict": model_pos, "optimizer": optimizer}
    epoch, schedule = 0, StepDecay(arguments.lr, arguments.lr_decay, arguments.lr_gamma)
    if arguments.resume:
        checkpoint = checkpoints.load(arguments.resume)
        epoch = checkpoint["epoch"]
        schedule.step, schedule.lr = checkpoint["step"], checkpoint["lr"]
        checkpoints.restore(checkpoint, order, **parts)
        hook.load_state_dict(checkpoint["poseaug"])

    while epoch < arguments.epochs:
        loss = train(train_loader, model_pos, criterion, optimizer, schedule, hook, device)
        epoch += 1
        error = evaluate(model_pos, test_set, arguments.batch_size, device).frame_average()
        print(
            f"Epoch: {epoch} | LR: {schedule.lr:.8f} | Loss: {loss:.6f} | "
            f"MPJPE: {error['MPJPE']:.4f} | P-MPJPE: {error['P-MPJPE']:.4f}"
        )
        checkpoints.save(
            {
                "epoch": epoch,
                "lr": schedule.lr,
                "step": schedule.step,
                "error": error["MPJPE"],
                "poseaug": hook.state_dict(),
                **checkpoints.states(order, **parts),
            },
            arguments.checkpoint / f"ckpt_epoch_{epoch:04d}.pth.tar",
        )

    print(evaluate(model_pos, test_set, arguments.batch_size, device).table())


if __name__ == "__main__":
    main()
