"""A loop like ST-GCN's: camera and scale in the batch, axes permuted, two models, one optimizer."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import pytest
import torch
from adapters.stgcn import STGCNAdapter
from estimators import STGCN
from loops import PUBLISHED, absolute_batch, mpjpe, with_trajectory
from stand_ins import Kind, Run, attach, check_active, check_paused
from torch import Tensor, nn
from torch.utils.data import DataLoader

from poseaug_plugin import AugmentationPolicy, PoseAugHook, project_points
from poseaug_plugin.body.presets import H36M_17
from poseaug_plugin.reference.recipes import Paper

EPOCHS, SIZE, POSES = 2, 32, 240

each_pad = pytest.mark.parametrize("pad", [0, 1])


class Network(nn.Module):
    """(N, 2, T, J, 1) to (N, 3, T, J, 1), or to the middle frame."""

    def __init__(self, pad: int) -> None:
        super().__init__()
        self.estimator = STGCN(frames=2 * pad + 1, widths=(8, 8, 16), part_width=16)

    def forward(self, x: Tensor, out_all_frame: bool = False) -> Tensor:
        joints = self.estimator(x[..., 0].permute(0, 2, 3, 1), all_frames=out_all_frame)
        return joints.permute(0, 3, 1, 2).unsqueeze(-1)


class Refinement(nn.Module):
    """Mixes two estimates of the same pose."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(17 * 6, 17)

    def forward(self, direct: Tensor, from_depth: Tensor) -> Tensor:
        share = self.mix(torch.cat((direct, from_depth), -1).flatten(1)).sigmoid()
        share = share[:, None, :, None]
        return share * direct + (1 - share) * from_depth


@lru_cache
def make_data(pad: int) -> list[tuple[Any, ...]]:
    """Camera, 3D, 2D, action, subject, scale, box, camera's number; double precision, no lens."""
    batch = absolute_batch(POSES, H36M_17, frames=2 * pad + 1)
    camera = batch.camera.clone()
    camera[:, 4:] = 0
    joints = with_trajectory(batch.inputs_3d, H36M_17).double().numpy()
    keypoints = project_points(batch.inputs_3d, camera).double().numpy()
    box = torch.tensor([0, 0, 1, 1]).numpy()
    return [
        (camera[i].double().numpy(), joints[i], keypoints[i], "Walking 1", "S1", 1.0, box, 0)
        for i in range(POSES)
    ]


def from_depth(uv: Tensor, depth: Tensor, gt_3D: Tensor, camera: Tensor) -> Tensor:
    """Root-relative pose from 2D, relative depth, the true root and the camera."""
    focal, centre = camera[:, None, None, :2], camera[:, None, None, 2:4]
    z = depth + gt_3D[:, :, :1, 2]
    z[:, :, 0] = gt_3D[:, :, 0, 2]
    xyz = torch.cat([(uv - centre) / focal * z.unsqueeze(-1), z.unsqueeze(-1)], -1)
    return xyz - xyz[:, :, :1]


@lru_cache
def run(pad: int, kind: Kind) -> Run:
    torch.manual_seed(0)
    model = {"st_gcn": Network(pad), "post_refine": Refinement()}
    parameters = [p for network in model.values() for p in network.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=1e-3, amsgrad=True)
    hook, calls = attach(kind, model["st_gcn"], skeleton="h36m_17", adapter=STGCNAdapter(crop_uv=0))
    losses: list[float] = []

    def step(split: str) -> None:
        model["st_gcn"].train(split == "train")
        loader = DataLoader(make_data(pad), batch_size=SIZE, shuffle=split == "train")
        for data in loader:
            batch_cam, gt_3D, input_2D, _, _, scale, _, _ = data
            input_2D, gt_3D, batch_cam, scale = (
                tensor.contiguous().float() for tensor in (input_2D, gt_3D, batch_cam, scale)
            )
            if split == "train" and hook is not None:
                input_2D, gt_3D, (batch_cam, _) = hook.augment(
                    input_2D, gt_3D, (batch_cam, data[5]), return_camera=True
                )
            n = input_2D.size(0)
            out_target = gt_3D.clone().view(n, -1, 17, 3)
            out_target[:, :, 0] = 0
            input_2D = input_2D.view(n, -1, 17, 2, 1).permute(0, 3, 1, 2, 4)
            output_3D = model["st_gcn"](input_2D, split == "train")
            output_3D = output_3D.permute(0, 2, 3, 4, 1).contiguous().view(n, -1, 17, 3)
            output_3D = output_3D * scale[:, None, None, None]
            middle = pad if output_3D.size(1) > 1 else 0
            single = output_3D[:, middle : middle + 1]
            uv = input_2D.permute(0, 2, 3, 1, 4).reshape(n, -1, 17, 2)[:, pad : pad + 1]
            gt_single, target_single = gt_3D[:, pad : pad + 1], out_target[:, pad : pad + 1]
            # With the true depth, 2D and camera the pose is the target: the camera is its own.
            again = from_depth(uv, target_single[..., 2].clone(), gt_single, batch_cam)
            assert (again - target_single).abs().max() < 1e-4
            xyz = from_depth(uv, single[..., 2].clone(), gt_single, batch_cam)
            refined = model["post_refine"](single, xyz)
            if split == "test":
                continue
            loss = mpjpe(output_3D, out_target) + mpjpe(refined, target_single)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            output_3D[:, :, 0, :] = 0
            losses.append(loss.item())

    for epoch in range(1, EPOCHS + 1):
        step("train")
        step("test")
        for group in optimizer.param_groups:
            group["lr"] *= 0.5 if epoch % 5 == 0 else 0.95
    return Run(losses, hook, calls)


@each_pad
def test_paused_hook_changes_nothing(pad: int) -> None:
    check_paused(run(pad, "plain"), run(pad, "paused"))


@each_pad
def test_loop_with_the_hook(pad: int) -> None:
    check_active(run(pad, "plain"), run(pad, "active"))


def test_feedback_through_the_estimator_asks_it_as_the_host_does() -> None:
    network = Network(0)
    optimizer = torch.optim.Adam(network.parameters())
    hook = PoseAugHook(
        network,
        skeleton="h36m_17",
        adapter=STGCNAdapter(),
        preset=Paper(**PUBLISHED),
        policy=AugmentationPolicy("h36m_17"),  # whose poses are in view from the first step on
        total_updates=10,
    )
    batch = absolute_batch(SIZE, H36M_17)
    input_2D, gt_3D = hook.augment(
        batch.inputs_2d, with_trajectory(batch.inputs_3d, H36M_17), batch.camera
    )
    output_3D = network(STGCNAdapter().estimator_inputs(input_2D)).permute(0, 2, 3, 4, 1)
    gt_3D[:, :, 0] = 0
    mpjpe(output_3D[:, :, :, 0], gt_3D).backward()
    optimizer.step()
    assert hook.losses["policy/feedback"].isfinite()
    assert hook.losses["policy/feedback"] != 0
    assert hook.diagnostics().hardness_ratio > 0
