"""Runs a host's script as it is, on today's Python, and tells what the hook in it did.

python run_script.py REPORT.json paused|active SCRIPT ARGUMENTS...
"""

from __future__ import annotations

import builtins
import functools
import json
import random
import runpy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

import poseaug_plugin


def main() -> None:
    """Seed, run, report."""
    report, mode, script, *arguments = sys.argv[1:]
    hooks: list[poseaug_plugin.PoseAugHook] = []

    class SeenHook(poseaug_plugin.PoseAugHook):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            self.enabled = mode == "active"
            hooks.append(self)

    poseaug_plugin.PoseAugHook = SeenHook  # type: ignore[misc]
    give_what_hosts_expect()
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(0)
    torch.set_num_threads(1)
    sys.argv = [script, *arguments]
    # Instead of this folder, whose files are named like the hosts' packages.
    sys.path[0] = str(Path(script).parent)
    runpy.run_path(script, run_name="__main__")
    Path(report).write_text(json.dumps([what_it_did(hook) for hook in hooks]))


def give_what_hosts_expect() -> None:
    """What these code bases were written for: Python 2, early torch, and CUDA."""
    builtins.reduce = functools.reduce  # type: ignore[attr-defined]
    torch.load = functools.partial(torch.load, weights_only=False)
    if not torch.cuda.is_available():
        torch.Tensor.cuda = torch.nn.Module.cuda = lambda self: self  # type: ignore
        torch.cuda.FloatTensor = torch.FloatTensor  # type: ignore
        torch.cuda.synchronize = lambda: None  # type: ignore


def what_it_did(hook: poseaug_plugin.PoseAugHook) -> dict[str, Any]:
    """Figures of a hook after the training."""
    assert isinstance(hook.policy, poseaug_plugin.AugmentationPolicy)
    return {
        **hook.diagnostics()._asdict(),
        "learned": float(hook.policy.widening.detach().abs().max()),
        "spread_factors": [float(f.detach()) for f in hook.policy.spread_factors().values()],
    }


if __name__ == "__main__":
    main()
