"""Loops like SemGCN's: shuffled loader, no camera, clipping, gradients left off by evaluation."""

from __future__ import annotations

from functools import lru_cache

import pytest
import torch
from adapters.semgcn import SemGCNAdapter
from estimators import SemGCN, SimpleBaseline
from loops import make_batch
from stand_ins import Kind, Run, attach, check_active, check_paused
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from poseaug_plugin import PoseAdapter

EPOCHS, SIZE, POSES = 2, 32, 240

pytestmark = pytest.mark.filterwarnings("ignore:PoseAugHook.augment. no camera given")
each_script = pytest.mark.parametrize("script", ["main_gcn", "main_linear"])


def make_loader() -> DataLoader:
    """(3D, 2D, action) with the root at zero; the last batch is smaller."""
    batch = make_batch(POSES)
    targets = batch.inputs_3d[:, 0].clone()
    targets[:, 0] = 0
    data = TensorDataset(targets, batch.inputs_2d[:, 0], torch.zeros(POSES))
    return DataLoader(data, batch_size=SIZE, shuffle=True)


@lru_cache
def run(script: str, kind: Kind) -> Run:
    torch.manual_seed(0)
    is_linear = script == "main_linear"
    model_pos: nn.Module
    model_pos = SimpleBaseline(16, 15, width=32) if is_linear else SemGCN(width=16, blocks=1)
    adapter = SemGCNAdapter() if is_linear else PoseAdapter(root="zeroed")
    criterion = nn.MSELoss()
    optimizer = torch.optim.Adam(model_pos.parameters(), lr=1e-3)
    hook, calls = attach(kind, model_pos, skeleton="h36m_16", adapter=adapter)
    loader = make_loader()
    losses: list[float] = []

    def estimate(inputs_2d: Tensor) -> Tensor:
        if is_linear:
            return model_pos(inputs_2d.view(len(inputs_2d), -1)).view(len(inputs_2d), -1, 3)
        return model_pos(inputs_2d)

    for _ in range(EPOCHS):
        torch.set_grad_enabled(True)
        model_pos.train()
        for targets_3d, inputs_2d, _ in loader:
            for group in optimizer.param_groups:
                group["lr"] = 1e-3 * 0.96 ** (len(losses) / 10)
            if hook is not None:
                inputs_2d, targets_3d = hook.augment(inputs_2d, targets_3d)
            if is_linear:
                targets_3d = targets_3d[:, 1:, :]
            outputs_3d = estimate(inputs_2d)
            optimizer.zero_grad()
            loss = criterion(outputs_3d, targets_3d)
            loss.backward()
            nn.utils.clip_grad_norm_(model_pos.parameters(), max_norm=1)
            optimizer.step()
            losses.append(loss.item())

        torch.set_grad_enabled(False)
        model_pos.eval()
        for _, inputs_2d, _ in loader:
            estimate(inputs_2d)
    torch.set_grad_enabled(True)
    return Run(losses, hook, calls)


@each_script
def test_paused_hook_changes_nothing(script: str) -> None:
    check_paused(run(script, "plain"), run(script, "paused"))


@each_script
def test_loop_with_the_hook(script: str) -> None:
    check_active(run(script, "plain"), run(script, "active"), is_true_camera=False)
