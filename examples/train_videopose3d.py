"""VideoPose3D's training, written anew, with PoseAugHook in it.

    python examples/train_videopose3d.py --poseaug                 # procedural motion
    python examples/train_videopose3d.py --poseaug --data FOLDER   # the files of VideoPose3D

Kept of run.py of facebookresearch/VideoPose3D: a generator with flipped copies, a camera with each
batch, the trajectory in joint 0, one model to train on windows and another to evaluate on whole
recordings, the decay of learning rate and BatchNorm momentum, flipping at test time, the keys of
the checkpoint, and the printed text.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from estimators import StridedTemporalModel, TemporalModel
from shared import checkpoints
from shared.chunks import ChunkedGenerator, Windows, mirrored, padded
from shared.h36m import Recording, with_trajectory
from shared.training import PerAction, parse, read_sets, training_parser
from torch import Tensor
from tqdm import tqdm

from poseaug_plugin import PoseAugHook, PoseSource, metrics
from poseaug_plugin.body.presets import H36M_17

Metrics: TypeAlias = Mapping[str, Callable[[Tensor, Tensor], Tensor]]

FLIP = H36M_17.flip_permutation
WHILE_TRAINING: Metrics = {"MPJPE": metrics.mpjpe}
IN_THE_END: Metrics = {
    "MPJPE": metrics.mpjpe,
    "P-MPJPE": metrics.p_mpjpe,
    "N-MPJPE": metrics.n_mpjpe,
    "MPJVE": metrics.mpjve,
}
FIRST_MOMENTUM, LAST_MOMENTUM = 0.1, 0.001


def train_epoch(
    generator: ChunkedGenerator,
    model_pos_train: StridedTemporalModel,
    optimizer: torch.optim.Optimizer,
    hook: PoseAugHook,
    device: torch.device,
) -> float:
    """Train for one epoch; return the mean loss in mm."""
    model_pos_train.train()
    epoch_loss_3d, frames = 0.0, 0
    batches = tqdm(generator.next_epoch(), desc="train", total=len(generator), leave=False)
    for cam, batch_3d, batch_2d in batches:
        inputs_3d = torch.from_numpy(batch_3d).to(device)
        inputs_2d = torch.from_numpy(batch_2d).to(device)
        inputs_2d, inputs_3d = hook.augment(inputs_2d, inputs_3d, cam)
        inputs_3d[:, :, 0] = 0

        optimizer.zero_grad()
        predicted_3d_pos = model_pos_train(inputs_2d)
        loss_3d_pos = metrics.mpjpe(predicted_3d_pos, inputs_3d)
        epoch_loss_3d += inputs_3d.shape[0] * inputs_3d.shape[1] * loss_3d_pos.item()
        frames += inputs_3d.shape[0] * inputs_3d.shape[1]
        loss_3d_pos.backward()
        optimizer.step()
    return 1000 * epoch_loss_3d / frames


@torch.no_grad()
def evaluate(
    model_pos: TemporalModel,
    recordings: Sequence[Recording],
    chosen: Metrics,
    device: torch.device,
    *,
    flip: bool,
) -> PerAction:
    """Compute errors on whole recordings; with ``flip`` of the mean with the mirrored one."""
    model_pos.eval()
    errors = PerAction()
    for recording in tqdm(recordings, desc="evaluate", leave=False):
        keypoints = padded(recording.keypoints, model_pos.padding())
        inputs_2d = torch.from_numpy(keypoints).to(device).unsqueeze(0)
        inputs_3d = torch.from_numpy(recording.joints).to(device).unsqueeze(0).clone()
        inputs_3d[:, :, 0] = 0
        predicted = model_pos(inputs_2d)
        if flip:
            predicted = (predicted + mirrored(model_pos(mirrored(inputs_2d, FLIP)), FLIP)) / 2
        errors.add(
            recording.action,
            inputs_3d.shape[1],
            {name: 1000 * metric(predicted, inputs_3d).item() for name, metric in chosen.items()},
        )
    return errors


def parse_arguments(given: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = training_parser("videopose3d", __doc__, epochs=60, batch_size=1024, lr=1e-3)
    parser.add_argument(
        "--architecture", default="1,1,1", help="filter widths: 3,3,3 sees 27 frames"
    )
    parser.add_argument("--channels", type=int, default=1024)
    parser.add_argument("--dropout", type=float, default=0.25)
    parser.add_argument("--causal", action="store_true", help="use past frames only")
    parser.add_argument("--lr-decay", type=float, default=0.95, help="factor per epoch")
    return parse(parser, given, epochs=2, batch_size=256, channels=32, downsample=20)


def main(given: Sequence[str] | None = None) -> None:
    """Train, evaluate after every epoch, and print errors by action in the end."""
    arguments = parse_arguments(given)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(arguments.seed)
    # The trajectory of the root in joint 0, the other joints relative to it
    train_set, test_set = read_sets(arguments, with_trajectory)

    options: dict[str, Any] = {
        "filter_widths": [int(width) for width in arguments.architecture.split(",")],
        "causal": arguments.causal,
        "channels": arguments.channels,
        "dropout": arguments.dropout,
        "momentum": FIRST_MOMENTUM,
    }
    model_pos_train = StridedTemporalModel(**options).to(device)
    model_pos = TemporalModel(**options).to(device)
    train_generator = ChunkedGenerator(
        Windows(train_set, model_pos.padding(), flip=FLIP), arguments.batch_size
    )
    print(f"INFO: Receptive field: {model_pos.receptive_field()} frames")
    print(f"INFO: Training on {train_generator.windows.frames} frames")

    lr, epoch = arguments.lr, 0
    optimizer = torch.optim.Adam(model_pos_train.parameters(), lr=lr, amsgrad=True)
    source = None
    if model_pos.receptive_field() > 1:
        # A batch has 3D for one frame of a window. Whole windows come from the sequences.
        source = PoseSource(
            [recording.joints for recording in train_set],
            [recording.camera.intrinsics for recording in train_set],
            causal=arguments.causal,
        )
    hook = PoseAugHook(model_pos_train, skeleton="h36m_17", source=source)
    hook.enabled = arguments.poseaug

    if arguments.resume:
        checkpoint = checkpoints.load(arguments.resume)
        epoch, lr = checkpoint["epoch"], checkpoint["lr"]
        model_pos_train.load_state_dict(checkpoint["model_pos"])
        optimizer.load_state_dict(checkpoint["optimizer"])
        train_generator.set_random_state(checkpoint["random_state"])
        hook.load_state_dict(checkpoint["poseaug"])
        checkpoints.set_random_state(checkpoint["torch_random_state"])

    while epoch < arguments.epochs:
        # Decay BatchNorm momentum
        momentum = FIRST_MOMENTUM * (LAST_MOMENTUM / FIRST_MOMENTUM) ** (epoch / arguments.epochs)
        model_pos_train.set_momentum(momentum)
        start = time.time()
        loss_train = train_epoch(train_generator, model_pos_train, optimizer, hook, device)
        model_pos.load_state_dict(model_pos_train.state_dict())
        evaluated, valid = (
            evaluate(model_pos, recordings, WHILE_TRAINING, device, flip=False).frame_average()
            for recordings in (train_set, test_set)
        )
        print(
            f"[{epoch + 1}] time {(time.time() - start) / 60:.2f} lr {lr:f} "
            f"3d_train {loss_train:f} 3d_eval {evaluated['MPJPE']:f} 3d_valid {valid['MPJPE']:f}"
        )

        lr *= arguments.lr_decay
        for group in optimizer.param_groups:
            group["lr"] *= arguments.lr_decay
        epoch += 1
        checkpoints.save(
            {
                "epoch": epoch,
                "lr": lr,
                "random_state": train_generator.random_state(),
                "optimizer": optimizer.state_dict(),
                "model_pos": model_pos_train.state_dict(),
                "poseaug": hook.state_dict(),
                "torch_random_state": checkpoints.random_state(),
            },
            arguments.checkpoint / f"epoch_{epoch}.bin",
        )

    model_pos.load_state_dict(model_pos_train.state_dict())
    errors = evaluate(model_pos, test_set, IN_THE_END, device, flip=True)
    print(errors.table())


if __name__ == "__main__":
    main()
