"""A loop like SimpleBaseline's in PyTorch: z-scored, flattened, no hip; rate by step, clipping."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pytest
import torch
from adapters.simple_baseline import SimpleBaselineAdapter, image_coordinates, keypoint_statistics
from estimators import SimpleBaseline
from loops import absolute_batch
from stand_ins import Kind, Run, attach, check_active, check_paused
from torch import nn
from torch.utils.data import DataLoader

from poseaug_plugin import project_points, root_relative
from poseaug_plugin.body.poses import DEFAULT_INTRINSICS
from poseaug_plugin.body.presets import H36M_17

EPOCHS, SIZE, POSES = 2, 32, 240

pytestmark = pytest.mark.filterwarnings("ignore:PoseAugHook.augment. no camera given")


class Data:
    """Scored poses as the host's data set gives them, and the statistics they were scored with."""

    def __init__(self) -> None:
        joints = absolute_batch(POSES, H36M_17).inputs_3d[:, 0]
        pixels = image_coordinates(project_points(joints, _camera()), 1000, 1000).numpy()
        targets = 1000 * root_relative(joints, H36M_17)[:, 1:].flatten(1).double().numpy()
        self.stat_2d = keypoint_statistics(pixels)
        # Of three joints' places that are not used, as the host's 96 dimensions are not all used.
        used = np.arange(3, 51)
        self.stat_3d = {"mean": np.zeros(51), "std": np.zeros(51), "dim_use": used}
        self.stat_3d["mean"][used], self.stat_3d["std"][used] = targets.mean(0), targets.std(0)
        inputs = np.delete(pixels, H36M_17.joints.index("neck"), 1).reshape(POSES, -1)
        self.inputs = (inputs - self.stat_2d["mean"]) / self.stat_2d["std"]
        self.targets = (targets - targets.mean(0)) / targets.std(0)

    def __len__(self) -> int:
        return POSES

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return tuple(torch.from_numpy(x[index]).float() for x in (self.inputs, self.targets))


def _camera() -> torch.Tensor:
    return torch.tensor([DEFAULT_INTRINSICS])


@lru_cache
def run(kind: Kind) -> Run:
    data = Data()
    torch.manual_seed(0)
    model = SimpleBaseline(width=32)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    adapter = SimpleBaselineAdapter(data.stat_3d, data.stat_2d)
    hook, calls = attach(kind, model, skeleton="h36m_17", adapter=adapter)
    criterion = nn.MSELoss()
    losses: list[float] = []
    for _ in range(EPOCHS):
        model.train()
        for inputs, targets in DataLoader(data, batch_size=SIZE, shuffle=True):
            for group in optimizer.param_groups:
                group["lr"] = 1e-3 * 0.96 ** (len(losses) / 10)
            if hook is not None:
                inputs, targets = hook.augment(inputs, targets)
            outputs = model(inputs)
            optimizer.zero_grad()
            loss = criterion(outputs, targets)
            losses.append(loss.item())
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), max_norm=1)
            optimizer.step()

        model.eval()
        for inputs, _ in DataLoader(data, batch_size=SIZE):
            whole = np.zeros((len(inputs), 51), np.float32)
            whole[:, data.stat_3d["dim_use"]] = model(inputs).data.numpy()
            whole = whole * data.stat_3d["std"] + data.stat_3d["mean"]
            assert (whole[:, :3] == 0).all()
    return Run(losses, hook, calls)


def test_paused_hook_changes_nothing() -> None:
    check_paused(run("plain"), run("paused"))


def test_loop_with_the_hook() -> None:
    check_active(run("plain"), run("active"))
