"""VideoPose3D: one-frame models."""

from __future__ import annotations

from .runner import Edit, Host

HOST = Host(
    name="VideoPose3D",
    page="videopose3d",
    script="run.py",
    data="h36m17",
    arguments=("-k", "gt", "-arc", "1,1,1", "-e", "2", "-ch", "256", "--checkpoint-frequency", "1"),
    # With --evaluate it fails on every checkpoint of its own that has no trajectory model.
    evaluate=("-k", "gt", "-arc", "1,1,1", "-ch", "256", "-e", "2", "--resume", "{checkpoint}"),
    evaluated="Protocol #1",
    checkpoint="checkpoint/epoch_2.bin",
    losses=r"^\[\d+\] time \S+ lr \S+ 3d_train (\S+)",
    hook=(
        Edit("run.py", r"^import torch$", ("...", "from poseaug_plugin import PoseAugHook")),
        Edit(
            "run.py",
            r"^\s+optimizer = optim\.Adam\(model_pos_train\.parameters\(\)",
            ("...", 'hook = PoseAugHook(model_pos_train, skeleton="h36m_17")'),
        ),
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
    ),
)
