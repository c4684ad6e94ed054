"""`torch.compile`: the hook's own work compiles whole and once, and no user's step takes it in."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from loops import (
    HOOKS,
    UPDATES,
    adam,
    augmented,
    differences,
    frozen_state,
    make_hook,
    make_lifter,
    mpjpe,
    stream,
    train,
)

from poseaug_plugin.body.bones import joints_to_bones
from poseaug_plugin.body.presets import H36M_16

COMPILED = {**HOOKS, **UPDATES}
# Windows make other graphs of every kind; where only the kind of update differs, one will do.
CASES = [
    *((case, frames) for case in ("default", "random", "released") for frames in (1, 3)),
    *(("append", 3), ("in turn", 1), ("regressors", 3)),
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("case", "frames"), CASES)
def test_hook_compiles_whole_and_once(
    case: str, frames: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No graph breaks, nothing new after every kind of step was seen, and the same results."""
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    counters = torch._dynamo.utils.counters
    counters.clear()
    states = []
    for compiles in (False, True):
        estimator = make_lifter(batch_norm=False, frames=frames)
        optimizer = adam(estimator)
        hook = make_hook(estimator, **COMPILED[case], compile=compiles)
        train(hook, estimator, optimizer, stream(4, frames=frames))
        compiled = counters["stats"]["unique_graphs"]
        assert bool(compiled) == compiles
        train(hook, estimator, optimizer, stream(4, seed=1, frames=frames))
        assert counters["stats"]["unique_graphs"] == compiled
        assert hook.diagnostics().updates == 8
        states.append(frozen_state(hook))
    assert counters["graph_break"] == {}
    assert differences(*states) == []


@pytest.mark.filterwarnings("ignore")
def test_a_compiled_optimizer_step_does_not_take_the_hooks_training_in() -> None:
    from torch._dynamo.testing import CompileCounter

    sizes = []
    for attaches in (False, True):
        torch._dynamo.reset()
        estimator = make_lifter()
        optimizer = adam(estimator)
        hook = make_hook(estimator) if attaches else None
        counter = CompileCounter()
        step = torch.compile(lambda o=optimizer: o.step(), backend=counter)
        for batch in stream(3):
            inputs_2d, inputs_3d = batch.inputs_2d, batch.inputs_3d
            if hook is not None:
                inputs_2d, inputs_3d = augmented(hook, batch)
            optimizer.zero_grad()
            mpjpe(estimator(inputs_2d), inputs_3d).backward()
            step()
        if hook is not None:
            assert hook.diagnostics().updates == 3
        sizes.append(counter.op_count)
    torch._dynamo.reset()
    without, with_hook = sizes
    assert 0 < with_hook <= without


def test_compiled_function_does_not_fill_the_skeletons_tables() -> None:
    torch._dynamo.reset()
    operators = []

    def look(module: torch.fx.GraphModule, _: Any) -> torch.fx.GraphModule:
        operators.extend(node.op for node in module.graph.nodes)
        return module

    compiled = torch.compile(partial(joints_to_bones, skeleton=H36M_16), backend=look)
    joints = torch.randn(2, 16, 3)
    assert torch.equal(compiled(joints), joints_to_bones(joints, H36M_16))
    assert operators.count("call_function") + operators.count("call_method") == 3
