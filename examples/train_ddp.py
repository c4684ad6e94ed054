"""PoseAug under DistributedDataParallel: the same loop in every process, one line for the hook.

    torchrun --nproc_per_node=2 examples/train_ddp.py --smoke
    python examples/train_ddp.py --smoke                          # one process, same checkpoint

The processes average the gradients of the hook's networks, and each has its own noise. The first
process writes the checkpoint. With --resume any number of processes goes on from it.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import torch
import torch.distributed as dist
from estimators import SimpleBaseline
from shared import checkpoints
from shared.domains import read_domains, training_data
from shared.models import SingleFrame
from shared.training import positive
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset
from tqdm import tqdm

from poseaug_plugin import PoseAugHook, metrics


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, help="folder with source_cmu, target_bandai, cameras")
    parser.add_argument("--checkpoint", type=Path, default=Path("runs/ddp.pt"))
    parser.add_argument("--epochs", type=positive, default=10, help="in all, resumed ones included")
    parser.add_argument("--batch", type=positive, default=256, help="of one process")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--smoke", action="store_true", help="the whole path in seconds")
    return parser.parse_args()


def main() -> None:
    """Train, evaluate, save."""
    arguments = parse_arguments()
    world = int(os.environ.get("WORLD_SIZE", "1"))
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    if world > 1:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    is_first = world == 1 or dist.get_rank() == 0

    torch.manual_seed(0)
    every = 40 if arguments.smoke else 1
    data = training_data(read_domains(arguments.data), torch.device("cpu"), every)
    pairs = TensorDataset(data.inputs_2d, data.inputs_3d, data.cameras)
    sampler = DistributedSampler(pairs) if world > 1 else None
    loader = DataLoader(pairs, arguments.batch, shuffle=sampler is None, sampler=sampler)
    model = SingleFrame(SimpleBaseline(width=256, dropout=0.1), flat=True).to(device)
    wrapped = nn.parallel.DistributedDataParallel(model) if world > 1 else model
    optimizer = torch.optim.Adam(model.parameters(), lr=arguments.lr)
    hook = PoseAugHook(wrapped, skeleton="h36m_16")
    start = 0
    if arguments.resume and arguments.checkpoint.exists():
        saved = checkpoints.load(arguments.checkpoint)
        start = saved["epoch"]
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        hook.load_state_dict(saved["poseaug"])

    for epoch in range(start, arguments.epochs):
        if sampler is not None:
            sampler.set_epoch(epoch)
        wrapped.train()
        for batch in tqdm(loader, desc=f"epoch {epoch + 1}", disable=not is_first):
            inputs_2d, inputs_3d, cameras = (x.to(device) for x in batch)
            inputs_2d, inputs_3d = hook.augment(inputs_2d, inputs_3d, cameras)
            inputs_3d[:, :, 0] = 0
            optimizer.zero_grad()
            metrics.mpjpe(wrapped(inputs_2d), inputs_3d).backward()
            optimizer.step()
    if is_first:
        state = {
            "epoch": arguments.epochs,
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "poseaug": hook.state_dict(),
        }
        checkpoints.save(state, arguments.checkpoint)
        model.eval()
        with torch.no_grad():
            for name, (keypoints, joints, _) in data.tests.items():
                predicted = model(keypoints.to(device)).cpu()
                error = 1000 * metrics.mpjpe(predicted - predicted[:, :, :1], joints).item()
                print(f"{name}: MPJPE {error:.1f} mm")
        print(hook.diagnostics())
    if world > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
