"""The code bases: the lines that docs/hosts/*.md tell, and how to run two short epochs."""

from __future__ import annotations

from .runner import Edit, Host

VIDEOPOSE3D = Host(
    name="VideoPose3D",
    script="run.py",
    data="h36m17",
    arguments=("-k", "gt", "-arc", "1,1,1", "-e", "2", "-ch", "256", "--checkpoint-frequency", "1"),
    # With --evaluate it fails on every checkpoint of its own that has no trajectory model.
    evaluate=("-k", "gt", "-arc", "1,1,1", "-ch", "256", "-e", "2", "--resume", "{checkpoint}"),
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

SEMGCN = Host(
    name="SemGCN",
    script="main_gcn.py",
    data="h36m16",
    arguments=(
        "-e",
        "2",
        "-b",
        "256",
        "--num_workers",
        "0",
        "--snapshot",
        "1",
        "--downsample",
        "10",
    ),
    evaluate=("--num_workers", "0", "--downsample", "10", "--evaluate", "{checkpoint}"),
    checkpoint="checkpoint/*/ckpt_epoch*2.pth.tar",
    log="checkpoint/*/log.txt",
    losses=r"^\d\S*\s+\S+\s+(\S+)",
    hook=(
        Edit(
            "main_gcn.py",
            r"^import torch$",
            ("...", "from poseaug_plugin import PoseAdapter, PoseAugHook"),
        ),
        Edit(
            "main_gcn.py",
            r"^    optimizer = torch\.optim\.Adam\(model_pos\.parameters",
            (
                "...",
                "train.hook = "
                'PoseAugHook(model_pos, skeleton="h36m_16", adapter=PoseAdapter(root="zeroed"))',
            ),
        ),
        Edit(
            "main_gcn.py",
            r"^        targets_3d, inputs_2d = targets_3d\.to\(device\), inputs_2d\.to\(device\)$",
            ("...", "inputs_2d, targets_3d = train.hook.augment(inputs_2d, targets_3d)"),
        ),
    ),
    runs_at_all=(
        Edit("main_gcn.py", r'torch\.device\("cuda"\)', (("cuda", "cpu"),)),
        # A keyword of Python 3.
        Edit(
            "models/sem_gcn.py", r"self\.nonlocal\b", ((r"self\.nonlocal\b", "self.non_local"),), 2
        ),
    ),
    needs=("scipy",),
)

HOSTS = {host.name: host for host in (VIDEOPOSE3D, SEMGCN)}
