"""An interrupt at any line of the hook's own leaves an update undone, or done: never half."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from loops import (
    HOOKS,
    SmallDefault,
    adam,
    augmented,
    differences,
    frozen_state,
    leavings,
    make_batch,
    make_hook,
    make_lifter,
    mpjpe,
    stream,
    train,
)

import poseaug_plugin
from poseaug_plugin import PoseAugHook

PACKAGE = str(Path(poseaug_plugin.__file__).parent)


def interrupted(call: Callable[[], Any], line: int) -> bool:
    """Call, with a KeyboardInterrupt before the given line of the package; False if it has less."""
    lines = itertools.count()

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        if event == "line" and next(lines) == line:
            sys.settrace(None)
            raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
    return False


def prepared(updates: int, options: dict[str, Any]) -> tuple[PoseAugHook, Any, Any]:
    """A hook right before an update, its estimator and optimizer."""
    torch.manual_seed(0)
    estimator = make_lifter(dropout=0.0)
    optimizer = adam(estimator)
    hook = make_hook(estimator, **options)
    train(hook, estimator, optimizer, stream(updates))
    batch = make_batch(seed=77)
    batch.inputs_2d[:2] = torch.nan  # something to count
    inputs_2d, inputs_3d = augmented(hook, batch)
    optimizer.zero_grad()
    mpjpe(estimator(inputs_2d.nan_to_num()), inputs_3d).backward()
    return hook, estimator, optimizer


CASES: dict[str, tuple[int, dict[str, Any], int]] = {
    # Updates before, options, every how many lines.
    "all networks": (3, {"preset": SmallDefault(critic_interval=1)}, 3),
    "pools not full": (1, {"preset": SmallDefault(critic_interval=1, pool_capacity=64)}, 7),
    "nothing learned": (3, {"preset": SmallDefault(interval=2)}, 1),
    "paper": (3, HOOKS["paper"], 31),
}


@pytest.mark.parametrize("case", CASES)
def test_an_interrupted_step_is_undone_or_done(case: str) -> None:
    updates, options, every = CASES[case]
    hook, estimator, optimizer = prepared(updates, options)
    start, host = frozen_state(hook), leavings(estimator, optimizer)
    pending, prediction = hook._pending, hook._observer.prediction
    hook.step()
    end = frozen_state(hook)
    assert differences(start, end) != []
    found = set()
    for line in itertools.count(0, every):
        hook.load_state_dict(start)
        hook._pending = pending
        if prediction is not None:
            hook.observe(prediction)
        stopped = interrupted(hook.step, line)
        now = frozen_state(hook)
        is_undone, is_done = differences(start, now) == [], differences(end, now) == []
        assert is_undone or is_done, line
        assert differences(host, leavings(estimator, optimizer)) == []
        found.add((stopped, is_done))
        if not stopped:
            break
    assert found >= {(True, False), (False, True)}


def test_an_interrupted_augmentation_moves_nothing_but_the_random_stream() -> None:
    hook, estimator, optimizer = prepared(3, {})
    start, host = frozen_state(hook), leavings(estimator, optimizer)
    for line in itertools.count(0, 3):
        stopped = interrupted(lambda: augmented(hook, make_batch()), line)
        now = frozen_state(hook)
        now["training"]["generator"] = start["training"]["generator"]
        assert differences(start, now) == []
        assert differences(host, leavings(estimator, optimizer)) == []
        if not stopped:
            break
