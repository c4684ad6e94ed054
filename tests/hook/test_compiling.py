"""`torch.compile`: no compiled step of the user's takes the hook's training in."""

from __future__ import annotations

import pytest
import torch
from loops import adam, augmented, make_hook, make_lifter, mpjpe, stream


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
