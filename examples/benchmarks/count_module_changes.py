"""Count how often one step of the hook changes from module to module of the package.

    python examples/benchmarks/count_module_changes.py [--details]

Counts package calls, modules, and consecutive calls in different modules, for one `augment` and for
one optimizer step in which policy and critics learn. Code with fewer changes is easier to follow.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import poseaug_plugin
from poseaug_plugin import PoseAugHook, project_points

PACKAGE = Path(poseaug_plugin.__file__).parent
WARM_UP, MEASURED = 6, 3  # steps; critics learn in every second one


class Calls(NamedTuple):
    """Calls of functions of the package, in their order."""

    made: tuple[tuple[str, str], ...]  # module and function

    @property
    def modules(self) -> int:
        """Number of modules."""
        return len({module for module, _ in self.made})

    @property
    def changes(self) -> int:
        """Number of calls whose module is not that of the call before."""
        modules = [module for module, _ in self.made]
        return sum(a != b for a, b in pairwise(modules))


def record(work: Callable[..., Any], *arguments: Any) -> tuple[Any, Calls]:
    """Do some work; return its result and its calls."""
    made: list[tuple[str, str]] = []

    def note(frame: FrameType, event: str, _: Any) -> None:
        path = Path(frame.f_code.co_filename)
        if event == "call" and path.is_relative_to(PACKAGE):
            made.append((str(path.relative_to(PACKAGE)), frame.f_code.co_name))

    sys.setprofile(note)
    try:
        result = work(*arguments)
    finally:
        sys.setprofile(None)
    return result, Calls(tuple(made))


class Estimator(nn.Module):
    """A linear estimator: (B, 1, 17, 2) to (B, 1, 17, 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(34, 51)

    def forward(self, keypoints: Tensor) -> Tensor:
        """Estimate."""
        return self.layer(keypoints.flatten(1)).view(-1, 1, 17, 3)


def count() -> dict[str, Calls]:
    """Record the default hook's calls by "augment" and "step", the optimizer step."""
    generator = torch.Generator().manual_seed(0)
    estimator = Estimator()
    optimizer = torch.optim.Adam(estimator.parameters())
    hook = PoseAugHook(estimator, skeleton="h36m_17")
    camera = torch.tensor([2.29, 2.29, *[0.0] * 7]).expand(64, 9)
    found: list[dict[str, Calls]] = []
    warnings.filterwarnings("ignore", "PoseAugHook: the first batch")  # these are no bodies
    for _ in range(WARM_UP + MEASURED):
        joints = 0.3 * torch.randn(64, 1, 17, 3, generator=generator)
        joints[:, :, 0] = torch.tensor([0.0, 0.0, 5.0])
        absolute = torch.cat([joints[:, :, :1], joints[:, :, 1:] + joints[:, :, :1]], 2)
        seen = project_points(absolute, camera)
        (inputs_2d, inputs_3d), augmenting = record(hook.augment, seen, joints, camera)
        optimizer.zero_grad()
        (estimator(inputs_2d) - inputs_3d).norm(dim=-1).mean().backward()
        _, stepping = record(optimizer.step)
        found.append({"augment": augmenting, "step": stepping})
    hook.remove()
    # Critics learn in the longest of the last steps.
    return max(found[WARM_UP:], key=lambda calls: len(calls["step"].made))


def main() -> None:
    """Print the counts, and with --details the calls."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--details", action="store_true", help="print every call")
    details = parser.parse_args().details
    for name, calls in count().items():
        print(f"{name}: {len(calls.made)} calls, {calls.modules} modules, {calls.changes} changes")
        before = ""
        for module, function in calls.made if details else ():
            print(f"{'  ' if module == before else '>>'} {module} {function}")
            before = module


if __name__ == "__main__":
    main()
