"""A loop like VideoPose3D's: numpy generator, root zeroed in place, a second model to evaluate."""

from __future__ import annotations

import io
from collections.abc import Iterator
from functools import lru_cache

import numpy as np
import torch
from estimators import StridedTemporalModel, TemporalModel
from loops import make_batch, mpjpe
from stand_ins import Kind, Run, attach, check_active, check_paused
from torch import nn

from poseaug_plugin.body.presets import H36M_17

EPOCHS, STEPS, SIZE = 2, 8, 32


def generate(epoch: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Camera, 3D, 2D in double precision; every other sample mirrored, the last batch smaller."""
    swap = list(H36M_17.flip_permutation)
    for step in range(STEPS):
        size = SIZE if step < STEPS - 1 else SIZE // 2
        batch = make_batch(size, H36M_17, seed=100 * epoch + step)
        camera, joints, keypoints = (tensor.double().numpy() for tensor in batch)
        camera[::2, [2, 7]] *= -1
        for poses in (joints, keypoints):
            poses[::2, ..., 0] *= -1
            poses[::2] = poses[::2][..., swap, :]
        yield camera, joints, keypoints


@lru_cache
def run(kind: Kind) -> Run:
    torch.manual_seed(0)
    form = {"filter_widths": (1, 1, 1), "channels": 32, "dropout": 0.25}
    model_pos_train = StridedTemporalModel(**form)
    model_pos = TemporalModel(**form)
    lr = 0.001
    optimizer = torch.optim.Adam(model_pos_train.parameters(), lr=lr, amsgrad=True)
    hook, calls = attach(kind, model_pos_train, skeleton="h36m_17")
    losses = []
    for epoch in range(EPOCHS):
        model_pos_train.train()
        for cam, batch_3d, batch_2d in generate(epoch):
            inputs_3d = torch.from_numpy(batch_3d.astype("float32"))
            inputs_2d = torch.from_numpy(batch_2d.astype("float32"))
            if hook is not None:
                inputs_2d, inputs_3d = hook.augment(inputs_2d, inputs_3d, cam)
            inputs_3d[:, :, 0] = 0
            optimizer.zero_grad()
            loss = mpjpe(model_pos_train(inputs_2d), inputs_3d)
            losses.append(loss.item())
            loss.backward()
            optimizer.step()

        with torch.no_grad():
            model_pos.load_state_dict(model_pos_train.state_dict())
            model_pos.eval()
            for _, batch_3d, batch_2d in generate(epoch):
                target = torch.from_numpy(batch_3d.astype("float32"))
                target[:, :, 0] = 0
                mpjpe(model_pos(torch.from_numpy(batch_2d.astype("float32"))), target)

        for group in optimizer.param_groups:
            group["lr"] *= 0.95
        for module in model_pos_train.modules():
            if isinstance(module, nn.BatchNorm1d):
                module.momentum *= 0.1
        states = {"optimizer": optimizer.state_dict(), "model_pos": model_pos_train.state_dict()}
        torch.save(states, io.BytesIO())
    return Run(losses, hook, calls)


def test_paused_hook_changes_nothing() -> None:
    check_paused(run("plain"), run("paused"))


def test_loop_with_the_hook() -> None:
    check_active(run("plain"), run("active"))
