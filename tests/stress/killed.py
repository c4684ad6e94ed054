"""A training that saves after every step and may be killed at any moment; started by test_stress.

python killed.py FOLDER STEPS
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import torch

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS), str(TESTS.parent / "examples"), str(TESTS.parent)]

from loops import adam, make_hook, make_lifter, stream, train  # noqa: E402
from shared import checkpoints  # noqa: E402


def main() -> None:
    """Go on from the checkpoint, if there is one."""
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    folder, steps = Path(sys.argv[1]), int(sys.argv[2])
    estimator = make_lifter()
    optimizer, hook, order = adam(estimator), make_hook(estimator), torch.Generator()
    parts = {"model": estimator, "optimizer": optimizer, "hook": hook}
    path, done = folder / "last.pt", 0
    if path.exists():
        saved = checkpoints.load(path)
        done = saved.pop("done")
        checkpoints.restore(saved, order, **parts)
    for step, batch in enumerate(stream(steps)):
        if step >= done:
            train(hook, estimator, optimizer, [batch])
            checkpoints.save({"done": step + 1, **checkpoints.states(order, **parts)}, path)
            print(step + 1, flush=True)


if __name__ == "__main__":
    main()
