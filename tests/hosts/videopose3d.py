"""VideoPose3D: one-frame models, and windows of which 3D is known for one frame."""

from __future__ import annotations

from dataclasses import replace

from .runner import Edit, Host


def _architecture(widths: str) -> tuple[str, ...]:
    return ("-k", "gt", "-arc", widths, "-e", "2", "-ch", "256")


_AUGMENT = (
    Edit(
        "run.py",
        r"for _, batch_3d, batch_2d in train_generator\.next_epoch",
        ((r"for _,", "for cam,"),),
    ),
    Edit(
        "run.py",
        r"^                inputs_3d\[:, :, 0\] = 0$",
        ("inputs_2d, inputs_3d = hook.augment(inputs_2d, inputs_3d, cam)", "..."),
        after="# Regular supervised scenario",
    ),
)


def _hook(imported: str, made: str) -> tuple[Edit, ...]:
    return (
        Edit("run.py", r"^import torch$", ("...", f"from poseaug_plugin import {imported}")),
        Edit(
            "run.py", r"^\s+optimizer = optim\.Adam\(model_pos_train\.parameters\(\)", ("...", made)
        ),
        *_AUGMENT,
    )


HOST = Host(
    name="VideoPose3D",
    page="videopose3d",
    script="run.py",
    data="h36m17",
    arguments=(*_architecture("1,1,1"), "--checkpoint-frequency", "1"),
    # With --evaluate it fails on every checkpoint of its own that has no trajectory model.
    evaluate=(*_architecture("1,1,1"), "--resume", "{checkpoint}"),
    evaluated="Protocol #1",
    checkpoint="checkpoint/epoch_2.bin",
    losses=r"^\[\d+\] time \S+ lr \S+ 3d_train (\S+)",
    hook=_hook("PoseAugHook", 'hook = PoseAugHook(model_pos_train, skeleton="h36m_17")'),
)

WINDOWS = replace(
    HOST,
    name="VideoPose3D-27",
    folder="VideoPose3D",
    arguments=(*_architecture("3,3,3"), "--checkpoint-frequency", "1", "--downsample", "4"),
    evaluate=(*_architecture("3,3,3"), "--downsample", "4", "--resume", "{checkpoint}"),
    hook=_hook(
        "PoseAugHook, PoseSource",
        "hook = PoseAugHook("
        'model_pos_train, skeleton="h36m_17", source=PoseSource(poses_train, cameras_train))',
    ),
)
