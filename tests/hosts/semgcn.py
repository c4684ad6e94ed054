"""SemGCN: `main_gcn.py`, and `main_linear.py` with the network of SimpleBaseline."""

from __future__ import annotations

from dataclasses import replace

from .runner import Edit, Host

SHORT = ("--num_workers", "0", "--downsample", "10")


def on_cpu(script: str) -> Edit:
    return Edit(script, r'torch\.device\("cuda"\)', (("cuda", "cpu"),))


HOST = Host(
    name="SemGCN",
    page="semgcn",
    script="main_gcn.py",
    data="h36m16",
    arguments=(*SHORT, "-e", "2", "-b", "256", "--snapshot", "1"),
    evaluate=(*SHORT, "--evaluate", "checkpoint/{checkpoint}"),
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
        on_cpu("main_gcn.py"),
        # A keyword of Python 3.
        Edit(
            "models/sem_gcn.py", r"self\.nonlocal\b", ((r"self\.nonlocal\b", "self.non_local"),), 2
        ),
    ),
    needs=("scipy",),
)

LINEAR = replace(
    HOST,
    name="SemGCN, main_linear.py",
    folder="SemGCN",
    script="main_linear.py",
    adapter="semgcn.py",
    hook=(
        Edit(
            "main_linear.py",
            r"^import torch$",
            ("...", "from poseaug_plugin import PoseAugHook", "from semgcn import SemGCNAdapter"),
        ),
        Edit(
            "main_linear.py",
            r"^    optimizer = torch\.optim\.Adam\(model_pos\.parameters",
            (
                "...",
                'train.hook = PoseAugHook(model_pos, skeleton="h36m_16", adapter=SemGCNAdapter())',
            ),
        ),
        Edit(
            "main_linear.py",
            r"^        targets_3d, inputs_2d = targets_3d\[:, 1:, :\]\.to\(device\)",
            (
                "inputs_2d, targets_3d = "
                "train.hook.augment(inputs_2d.to(device), targets_3d.to(device))",
                "...",
            ),
        ),
    ),
    runs_at_all=(on_cpu("main_linear.py"),),
)
