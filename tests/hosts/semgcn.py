"""SemGCN: `main_gcn.py`."""

from __future__ import annotations

from .runner import Edit, Host

HOST = Host(
    name="SemGCN",
    page="semgcn",
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
    evaluate=("--num_workers", "0", "--downsample", "10", "--evaluate", "checkpoint/{checkpoint}"),
    evaluated="Protocol #1",
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
