"""ST-GCN's training, written anew, with PoseAugHook in it.

    python examples/train_stgcn.py --poseaug                 # procedural motion
    python examples/train_stgcn.py --poseaug --data FOLDER   # the files of ST-GCN
    python examples/train_stgcn.py --poseaug --pad 1         # windows of three frames

Kept of main_graph.py and train_graph_time.py by Cai et al. (ICCV 2019): a loader with flipped
copies, windows with 3D for every frame, the trajectory in joint 0, the axes of the network, the
camera that turns depth and 2D into a pose after the forward pass, flipping and fusing at test time,
both decays of the learning rate, the file of weights, and the printed text without refinement.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from adapters.stgcn import STGCNAdapter
from einops import rearrange
from estimators import STGCN
from shared import checkpoints
from shared.chunks import Windows, mirrored
from shared.h36m import Recording, with_trajectory
from shared.training import PerAction, parse, read_sets, training_parser
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, RandomSampler
from tqdm import tqdm

from poseaug_plugin import PoseAugHook, metrics
from poseaug_plugin.body.presets import H36M_17

FLIP = H36M_17.flip_permutation


class HostSTGCN(STGCN):
    """`STGCN` with the axes of the host's network: (N, 2, T, J, 1) to (N, 3, T, J, 1)."""

    def forward(self, keypoints: Tensor, out_all_frame: bool) -> Tensor:
        """Estimate."""
        joints = super().forward(
            rearrange(keypoints, "n c t j 1 -> n t j c"), all_frames=out_all_frame
        )
        return rearrange(joints, "n t j c -> n c t j 1")


class TrainingErrors(NamedTuple):
    """Means over an epoch, in mm."""

    loss: float
    joints: float  # of the middle frame
    from_depth: float  # of the middle frame, with x and y from 2D, depth and camera


def predict(model_st_gcn: HostSTGCN, input_2D: Tensor, out_all_frame: bool) -> Tensor:
    """Estimate: (N, T, J, 2) to (N, T or 1, J, 3)."""
    output_3D = model_st_gcn(rearrange(input_2D, "n t j c -> n c t j 1"), out_all_frame)
    return rearrange(output_3D, "n c t j 1 -> n t j c")


def uvd_to_xyz(uv: Tensor, depth: Tensor, root: Tensor, camera: Tensor) -> Tensor:
    """Compute root-relative joints from 2D and depth.

    Args:
        uv: (N, T, J, 2) normalised screen.
        depth: (N, T, J) metres behind the root, joint 0.
        root: (N, T, 1, 3) position of the root.
        camera: (N, 9); focal length and principal point are used.
    """
    relative = depth.clone()
    relative[:, :, 0] = 0
    z = (relative + root[..., 2]).unsqueeze(-1)
    focal, centre = camera[:, None, None, :2], camera[:, None, None, 2:4]
    xyz = torch.cat([(uv - centre) * z / focal, z], -1)
    return xyz - xyz[:, :, :1]


def train(
    loader: Iterable[Sequence[Tensor]],
    model_st_gcn: HostSTGCN,
    optimizer: torch.optim.Optimizer,
    hook: PoseAugHook,
    device: torch.device,
    pad: int,
) -> TrainingErrors:
    """Train for one epoch."""
    model_st_gcn.train()
    sums, samples = torch.zeros(3), 0
    for data in tqdm(loader, desc="train", leave=False):
        batch_cam, gt_3D, input_2D = (tensor.to(device) for tensor in data)
        input_2D, gt_3D, batch_cam = hook.augment(input_2D, gt_3D, batch_cam, return_camera=True)
        out_target = gt_3D.clone()
        out_target[:, :, 0] = 0

        output_3D = predict(model_st_gcn, input_2D, out_all_frame=True)
        loss = metrics.mpjpe(output_3D, out_target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

        middle = slice(pad, pad + 1)
        with torch.no_grad():
            single = output_3D[:, middle].clone()
            xyz = uvd_to_xyz(input_2D[:, middle], single[..., 2], gt_3D[:, middle, :1], batch_cam)
            single[:, :, 0] = 0
            errors = [loss, *(metrics.mpjpe(pose, out_target[:, middle]) for pose in (single, xyz))]
        sums += len(gt_3D) * torch.stack(errors).cpu()
        samples += len(gt_3D)
    return TrainingErrors(*(1000 * sums / samples).tolist())


@torch.no_grad()
def val(
    model_st_gcn: HostSTGCN,
    recordings: Sequence[Recording],
    batch_size: int,
    device: torch.device,
    pad: int,
) -> PerAction:
    """Compute errors of the mean prediction for windows and their mirror images."""
    model_st_gcn.eval()
    errors = PerAction()
    for recording in tqdm(recordings, desc="test", leave=False):
        for data in Windows([recording], (pad, pad)).in_order(batch_size):
            batch_cam, gt_3D, input_2D = (torch.from_numpy(array).to(device) for array in data)
            out_target = gt_3D.clone()
            out_target[:, :, 0] = 0
            straight, turned = (
                predict(model_st_gcn, seen, out_all_frame=False)
                for seen in (input_2D, mirrored(input_2D, FLIP))
            )
            pred_out = (straight + mirrored(turned, FLIP)) / 2
            uv = input_2D[:, pad : pad + 1]
            xyz = uvd_to_xyz(uv, pred_out[..., 2], gt_3D[:, :, :1], batch_cam)
            pred_out[:, :, 0] = 0
            errors.add(
                recording.action,
                len(gt_3D),
                {
                    "p#1": 1000 * metrics.mpjpe(pred_out, out_target).item(),
                    "p#2": 1000 * metrics.p_mpjpe(pred_out, out_target).item(),
                    "p#1, x and y from depth": 1000 * metrics.mpjpe(xyz, out_target).item(),
                },
            )
    return errors


def parse_arguments(given: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = training_parser("stgcn", __doc__, epochs=200, batch_size=256, lr=1e-3)
    parser.add_argument("--pad", type=int, default=0, help="frames before and after: 1 makes 3")
    parser.add_argument("--widths", type=int, nargs=3, default=(128, 128, 256))
    parser.add_argument("--part-width", type=int, default=512)
    parser.add_argument("--lr-decay", type=float, default=0.95, help="factor per epoch")
    parser.add_argument("--large-decay-epoch", type=int, default=5, help="then it is a half")
    narrow = {"widths": (8, 8, 16), "part_width": 16}
    return parse(parser, given, epochs=2, batch_size=64, downsample=40, **narrow)


def main(given: Sequence[str] | None = None) -> None:
    """Train, test after every epoch, and print errors by action in the end."""
    arguments = parse_arguments(given)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(arguments.seed)
    # The trajectory of the root in joint 0, the other joints relative to it
    train_set, test_set = read_sets(arguments, with_trajectory)
    pad = arguments.pad
    windows = Windows(train_set, (pad, pad), whole_targets=True, flip=FLIP)
    order = torch.Generator().manual_seed(arguments.seed)
    sampler = BatchSampler(RandomSampler(windows, generator=order), arguments.batch_size, False)
    train_loader = DataLoader(windows, batch_size=None, sampler=sampler)
    print(f"INFO: Training on {windows.frames} frames")

    model_st_gcn = HostSTGCN(
        "h36m_17",
        frames=2 * pad + 1,
        widths=tuple(arguments.widths),
        part_width=arguments.part_width,
    ).to(device)
    lr, epoch = arguments.lr, 0
    optimizer = torch.optim.Adam(model_st_gcn.parameters(), lr=lr, amsgrad=True)
    hook = PoseAugHook(model_st_gcn, skeleton="h36m_17", adapter=STGCNAdapter(crop_uv=0))
    hook.enabled = arguments.poseaug

    parts = {"st_gcn": model_st_gcn, "optimizer": optimizer}
    if arguments.resume:
        checkpoint = checkpoints.load(arguments.resume)
        epoch, lr = checkpoint["epoch"], checkpoint["lr"]
        checkpoints.restore(checkpoint, order, **parts)
        hook.load_state_dict(checkpoint["poseaug"])

    while epoch < arguments.epochs:
        trained = train(train_loader, model_st_gcn, optimizer, hook, device, pad)
        epoch += 1
        error = val(model_st_gcn, test_set, arguments.batch_size, device, pad).action_average()
        print(
            f"epoch: #{epoch} learning rate {lr:f} loss {trained.loss:f} mean joint error "
            f"{trained.joints:f}, from depth {trained.from_depth:f} test {error['p#1']:.2f}"
        )
        factor = 0.5 if epoch % arguments.large_decay_epoch == 0 else arguments.lr_decay
        lr *= factor
        for group in optimizer.param_groups:
            group["lr"] *= factor
        # The host writes the weights alone. To resume, the rest is needed, too.
        weights = arguments.checkpoint / f"model_st_gcn_{epoch}.pth"
        checkpoints.save(model_st_gcn.state_dict(), weights)
        checkpoints.save(
            {
                "epoch": epoch,
                "lr": lr,
                "poseaug": hook.state_dict(),
                **checkpoints.states(order, **parts),
            },
            arguments.checkpoint / f"training_{epoch}.pth",
        )

    print(val(model_st_gcn, test_set, arguments.batch_size, device, pad).table())


if __name__ == "__main__":
    main()
