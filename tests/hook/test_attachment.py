"""The hook comes on and off without a trace: paused, removed, dropped, in copies and in threads."""

from __future__ import annotations

import copy
import gc
import pickle
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from loops import (
    adam,
    augmented,
    differences,
    frozen_state,
    make_batch,
    make_hook,
    make_lifter,
    mpjpe,
    same_bits,
    stream,
    train,
)
from torch import Tensor, nn
from torch.optim import optimizer as torch_optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook

import poseaug_plugin
from poseaug_plugin import PoseAugError, PoseAugHook

PACKAGE = Path(poseaug_plugin.__file__).parent


def passes_through(hook: PoseAugHook) -> bool:
    batch = make_batch()
    outputs = augmented(hook, batch)
    return outputs[0] is batch.inputs_2d and outputs[1] is batch.inputs_3d


def hooks_on(estimator: nn.Module, optimizer: torch.optim.Optimizer) -> list[int]:
    """How many callbacks hang on what, in the module, in the optimizer, and globally."""
    gc.collect()  # hooks of other tests
    found = [
        *(len(getattr(estimator, name)) for name in vars(estimator) if name.endswith("_hooks")),
        len(estimator._forward_hooks_with_kwargs),
        *(len(getattr(optimizer, name)) for name in vars(optimizer) if name.endswith("_hooks")),
        len(torch_optimizer._global_optimizer_pre_hooks),
        len(torch_optimizer._global_optimizer_post_hooks),
    ]
    modules = (name for name in vars(nn.modules.module) if name.startswith("_global_"))
    return found + [len(getattr(nn.modules.module, n)) for n in modules if n.endswith("_hooks")]


@pytest.fixture(autouse=True)
def _one_hook_has_been_made() -> None:
    """Two global callbacks are registered with a process's first hook, for good."""
    make_hook(make_lifter(), skeleton=None)


def test_global_callbacks_are_two_whatever_the_number_of_hooks() -> None:
    def registered() -> tuple[int, int]:
        return (
            len(torch_optimizer._global_optimizer_pre_hooks),
            len(torch_optimizer._global_optimizer_post_hooks),
        )

    before = registered()
    hooks = [make_hook(make_lifter(), skeleton=None) for _ in range(3)]
    assert registered() == before
    del hooks
    assert registered() == before


def test_removed_hook_hangs_nowhere() -> None:
    estimator = make_lifter()
    optimizer = adam(estimator)
    before = hooks_on(estimator, optimizer)
    hook = make_hook(estimator, optimizer)
    assert hooks_on(estimator, optimizer) != before
    train(hook, estimator, optimizer, stream(1))
    hook.remove()
    assert hooks_on(estimator, optimizer) == before


def test_forgotten_hook_hangs_nowhere() -> None:
    estimator = make_lifter()
    optimizer = adam(estimator)
    before = hooks_on(estimator, optimizer)
    hook = make_hook(estimator, optimizer)
    train(hook, estimator, optimizer, stream(1))
    del hook
    assert hooks_on(estimator, optimizer) == before


def test_removed_hook_passes_batches_through() -> None:
    hook = make_hook(make_lifter())
    hook.remove()
    assert passes_through(hook)


def test_removed_hook_cannot_be_switched_on_again() -> None:
    hook = make_hook(make_lifter())
    hook.remove()
    hook.enabled = True
    assert passes_through(hook)


def test_removed_hook_trains_no_more() -> None:
    estimator = make_lifter()
    optimizer = adam(estimator)
    hook = make_hook(estimator)
    inputs_2d, inputs_3d = augmented(hook, make_batch())
    mpjpe(estimator(inputs_2d), inputs_3d).backward()
    before = frozen_state(hook)
    hook.remove()
    optimizer.step()
    hook.step()
    assert differences(before, hook.state_dict()) == []


def test_a_hook_removed_while_paused_stays_removed() -> None:
    hook = make_hook(make_lifter())
    with hook.paused():
        hook.remove()
    assert passes_through(hook)


def test_removing_twice_is_fine() -> None:
    estimator = make_lifter()
    optimizer = adam(estimator)
    before = hooks_on(estimator, optimizer)
    hook = make_hook(estimator)
    hook.remove()
    hook.remove()
    assert hooks_on(estimator, optimizer) == before


def test_failed_construction_hangs_nowhere() -> None:
    estimator = make_lifter()
    optimizer = adam(estimator)
    before = hooks_on(estimator, optimizer)
    with pytest.raises(PoseAugError):
        make_hook(estimator, skeleton="no such skeleton")
    assert hooks_on(estimator, optimizer) == before


def test_paused_hook_passes_batches_through() -> None:
    hook = make_hook(make_lifter())
    with hook.paused():
        assert passes_through(hook)
    assert not passes_through(hook)


def test_paused_hook_trains_nothing() -> None:
    estimator = make_lifter()
    hook = make_hook(estimator)
    before = frozen_state(hook)
    with hook.paused():
        train(hook, estimator, adam(estimator), stream(2))
    assert differences(before, hook.state_dict()) == []


def test_pause_ends_with_an_exception() -> None:
    hook = make_hook(make_lifter())
    with pytest.raises(KeyboardInterrupt), hook.paused():
        raise KeyboardInterrupt
    assert hook.enabled


def test_pause_inside_a_pause() -> None:
    hook = make_hook(make_lifter())
    with hook.paused():
        with hook.paused():
            pass
        assert passes_through(hook)


def test_disabled_hook_passes_batches_through() -> None:
    hook = make_hook(make_lifter())
    hook.enabled = False
    assert passes_through(hook)


def test_disabled_hook_does_not_train_on_an_earlier_batch() -> None:
    estimator = make_lifter()
    hook = make_hook(estimator)
    inputs_2d, inputs_3d = augmented(hook, make_batch())
    mpjpe(estimator(inputs_2d), inputs_3d).backward()
    hook.enabled = False
    before = frozen_state(hook)
    adam(estimator).step()
    assert differences(before, hook.state_dict()) == []


# -- memory ----------------------------------------------------------------------------------------


def test_a_dropped_hook_goes_at_once() -> None:
    # Left to the garbage collector, its callbacks could be taken away in the middle of a step.
    estimator, batch = make_lifter(), make_batch()
    optimizer = torch.optim.SGD(estimator.parameters(), lr=1e-3)
    gc.collect()
    gc.disable()
    try:
        hook = make_hook(estimator)
        train(hook, estimator, optimizer, [batch])
        augmented(hook, batch)
        dropped = weakref.ref(hook)
        del hook
        assert dropped() is None
    finally:
        gc.enable()


def test_tensors_do_not_pile_up() -> None:
    estimator = make_lifter()
    optimizer = torch.optim.Adam(estimator.parameters())
    hook = make_hook(estimator)
    batches = stream(4, 4)

    def living() -> int:
        gc.collect()
        return sum(issubclass(type(thing), Tensor) for thing in gc.get_objects())

    train(hook, estimator, optimizer, batches * 3)
    before = living()
    train(hook, estimator, optimizer, batches * 50)
    assert living() <= before


# -- threads ---------------------------------------------------------------------------------------


def in_another_thread(work: Callable[[], None]) -> None:
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


def test_hooks_that_come_and_go_in_the_middle_of_another_loops_step_do_not_break_it() -> None:
    """Callbacks that are taken away while torch goes through them would end its loop over them."""
    estimator = make_lifter()
    optimizer = torch.optim.SGD(estimator.parameters(), lr=1e-3)

    def come_and_go() -> None:
        for how in ("removed", "dropped"):
            hook = make_hook(make_lifter(), skeleton=None)
            if how == "removed":
                hook.remove()
            del hook

    handle = register_optimizer_step_pre_hook(lambda *_: in_another_thread(come_and_go))
    try:
        for batch in stream(2):
            train(None, estimator, optimizer, [batch])
    finally:
        handle.remove()


def test_hooks_made_and_dropped_in_another_thread_break_no_step() -> None:
    """Threads may switch at any call that a step makes, so at every one of them a hook is made."""
    estimator = make_lifter()
    optimizer = torch.optim.SGD(estimator.parameters(), lr=1e-3)
    kept = [make_hook(make_lifter(), skeleton=None) for _ in range(3)]
    others: list[PoseAugHook] = []
    moments: set[str] = set()

    def come_and_go() -> None:
        others.append(make_hook(make_lifter(), skeleton=None))
        if len(others) > 5:
            others[0].remove()
            del others[:3]

    def at_every_call(frame: FrameType, event: str, _: Any) -> None:
        place = Path(frame.f_code.co_filename)
        is_ours = place.is_relative_to(PACKAGE) or place.name.startswith("weakref")
        if event == "call" and is_ours and len(moments) < 50:
            moments.add(f"{place.stem}.{frame.f_code.co_name}")
            in_another_thread(come_and_go)

    mpjpe(estimator(make_batch().inputs_2d), make_batch().inputs_3d).backward()
    sys.setprofile(at_every_call)
    try:
        for _ in range(3):
            optimizer.step()
    finally:
        sys.setprofile(None)
    assert {"attachment._tell_watchers", "hook._on_optimizer_step"} <= moments
    assert others
    assert len(kept) == 3


def test_a_hook_trains_in_the_thread_of_its_own_loop_only() -> None:
    estimator = make_lifter()
    hook = make_hook(estimator)
    other = make_lifter(seed=1)
    batch = make_batch()
    inputs_2d, inputs_3d = augmented(hook, batch)
    mpjpe(estimator(inputs_2d), inputs_3d).backward()
    in_another_thread(lambda: train(None, other, adam(other), [batch]))
    assert hook.diagnostics().updates == 0
    adam(estimator).step()
    assert hook.diagnostics().updates == 1


# -- copies ----------------------------------------------------------------------------------------


def test_copied_estimator_works() -> None:
    estimator = make_lifter(dropout=0.0)
    make_hook(estimator)
    inputs = make_batch().inputs_2d
    assert torch.equal(copy.deepcopy(estimator)(inputs), estimator(inputs))


def test_copied_estimator_is_not_observed() -> None:
    # An exponential moving average, or a best model that somebody keeps.
    states = []
    for copied in (False, True):
        estimator = make_lifter(dropout=0.0)
        hook = make_hook(estimator)
        inputs_2d, inputs_3d = augmented(hook, make_batch())
        loss = mpjpe(estimator(inputs_2d), inputs_3d)
        if copied:
            copy.deepcopy(estimator)(inputs_2d * 2)
        loss.backward()
        adam(estimator).step()
        states.append(frozen_state(hook))
    assert differences(*states) == []


def test_optimizer_of_a_copy_is_ignored() -> None:
    estimator = make_lifter()
    hook = make_hook(estimator)
    copied, optimizer = copy.deepcopy((estimator, adam(estimator)))
    inputs_2d, inputs_3d = augmented(hook, make_batch())
    mpjpe(copied(inputs_2d), inputs_3d).backward()
    optimizer.step()
    assert hook.diagnostics().updates == 0


@pytest.mark.filterwarnings("ignore:You are using .torch.load.:FutureWarning")  # torch 2.4's own
def test_pickled_estimator_and_optimizer_work() -> None:
    estimator = make_lifter(dropout=0.0)
    optimizer = adam(estimator)
    hook = make_hook(estimator, optimizer)
    train(hook, estimator, optimizer, stream(1))
    inputs = make_batch().inputs_2d
    copied, copied_optimizer = pickle.loads(pickle.dumps((estimator, optimizer)))
    copied(inputs).sum().backward()
    copied_optimizer.step()
    assert not same_bits(copied[1].weight, estimator[1].weight)


def test_saved_estimator_loads_without_the_package(tmp_path: Path) -> None:
    estimator = make_lifter(dropout=0.0)
    optimizer = adam(estimator)
    hook = make_hook(estimator, optimizer)
    train(hook, estimator, optimizer, stream(1))
    inputs = make_batch().inputs_2d
    torch.save((estimator, optimizer, copy.deepcopy(estimator)), tmp_path / "whole.pt")
    torch.save((inputs, estimator(inputs).detach()), tmp_path / "expected.pt")
    program = f"""
import sys
sys.modules["poseaug_plugin"] = None
import torch
torch.set_num_threads(1)
estimator, optimizer, copied = torch.load({str(tmp_path / "whole.pt")!r}, weights_only=False)
inputs, expected = torch.load({str(tmp_path / "expected.pt")!r}, weights_only=True)
torch.testing.assert_close((estimator(inputs), copied(inputs)), (expected, expected))
estimator(inputs).sum().backward()
optimizer.step()
assert not any(name.startswith("poseaug_plugin.") for name in sys.modules)
"""
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.jit's own
def test_estimator_can_be_scripted_once_the_hook_is_removed() -> None:
    estimator = make_lifter(dropout=0.0)
    hook = make_hook(estimator)
    train(hook, estimator, adam(estimator), stream(1))
    hook.remove()
    inputs = make_batch().inputs_2d
    assert torch.allclose(torch.jit.script(estimator)(inputs), estimator(inputs))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_a_copied_hook_says_that_it_cannot_learn(copied: Callable[[Any], Any]) -> None:
    estimator = make_lifter()
    optimizer = adam(estimator)
    hook = make_hook(estimator)
    train(hook, estimator, optimizer, stream(1))
    _, _, other = copied((estimator, optimizer, hook))
    with pytest.raises(PoseAugError, match=r"is a copy.*load the state_dict\(\)"):
        augmented(other, make_batch())
    with other.paused():
        assert passes_through(other)
    again = make_hook(make_lifter())
    again.load_state_dict(other.state_dict())
    assert differences(frozen_state(hook), frozen_state(again)) == []


@pytest.mark.parametrize("strict", [False, True])
def test_an_estimator_with_a_hook_is_exported(strict: bool) -> None:
    estimator = make_lifter().eval()
    hook, batch = make_hook(estimator), make_batch()
    exported = torch.export.export(estimator, (batch.inputs_2d,), strict=strict)
    made = exported.module()(batch.inputs_2d)
    assert torch.allclose(made, estimator(batch.inputs_2d))
    train(hook, estimator, adam(estimator), stream(1))
    assert hook.diagnostics().updates == 1


def test_other_threads_keep_their_default_dtype() -> None:
    seen: set[torch.dtype] = set()
    over = threading.Event()

    def look() -> None:
        while not over.is_set():
            seen.add(torch.get_default_dtype())
            seen.add(torch.zeros(1).dtype)

    torch.set_default_dtype(torch.float64)
    thread = threading.Thread(target=look)
    try:
        thread.start()
        estimator = make_lifter().double()
        hook = make_hook(estimator)
        batches = [tuple(x.double() for x in batch) for batch in stream(20)]
        train(hook, estimator, adam(estimator), batches)
        modules = hook.state_dict()["training"]["modules"].values()
        types = {x.dtype for x in modules if isinstance(x, Tensor) and x.is_floating_point()}
    finally:
        over.set()
        thread.join()
        torch.set_default_dtype(torch.float32)
    assert seen == {torch.float64}
    assert types == {torch.float32}
