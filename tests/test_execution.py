"""What is recorded, when, and from where it is fed; calling again stands in for CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from loops import HOOKS, differences, frozen_state, make_hook, make_lifter, stream, train
from torch import Tensor

from poseaug_plugin import PoseAugHook, RandomPolicy, execution
from poseaug_plugin.execution import Execution, _tensors_in, _with_tensors

WARM_UP = execution._WARM_UP


class Recalled:
    """Does what a CUDA graph does: the same work on the same memory, whatever it is given."""

    def __init__(self, own: Execution, method: Callable[..., Any], arguments: Any) -> None:
        kept = {id(x) for r in own._recordings.values() for x in _tensors_in(r.outputs)}
        self.inputs = [x if id(x) in kept else x.clone() for x in _tensors_in(arguments)]
        self.method, self.arguments = method, _with_tensors(arguments, iter(self.inputs))
        self.graph, self.outputs = self, None
        self.num_own = sum(id(x) not in kept for x in self.inputs)

    def replay(self) -> None:
        made = self.method(*self.arguments)
        if self.outputs is None:
            self.outputs = made
        for kept, new in zip(_tensors_in(self.outputs), _tensors_in(made), strict=True):
            if kept is not new:
                kept.copy_(new)


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Execution, "_record", lambda own, *work: Recalled(own, *work))
    monkeypatch.setattr(execution, "_must_run_as_written", lambda: False)


def recording_execution() -> Execution:
    own = Execution(torch.Generator(), records=True, compiles=False)
    assert not own.records  # there is no GPU
    own.records = True
    return own


class Pair(NamedTuple):
    a: Tensor
    b: int


def doubled(values: dict[str, Tensor], pair: Pair, _: Tensor | None) -> list[Tensor]:
    return [values["x"] * 2, pair.a + pair.b]


def summed_up(x: Tensor, y: Tensor) -> Tensor:
    return x.sum() + y.sum()


def call(own: Execution, x: float, a: float, b: int = 1, size: int = 2) -> list[Tensor]:
    return own.run(doubled, {"x": torch.full((size,), x)}, Pair(torch.full((3,), a), b), None)


def test_recorded_after_some_calls_and_fed_anew_each_time() -> None:
    own = recording_execution()
    for i in range(WARM_UP):
        call(own, float(i), float(i))
    assert not own._recordings
    for i in range(3):
        double, total = call(own, 10.0 + i, float(i))
        assert double.tolist() == [20.0 + 2 * i] * 2
        assert total.tolist() == [1.0 + i] * 3
    assert len(own._recordings) == 1


@pytest.mark.parametrize("other", [{"b": 2}, {"size": 3}])
def test_other_values_and_shapes_are_recorded_apart(other: dict[str, int]) -> None:
    own = recording_execution()
    for _ in range(WARM_UP + 2):
        call(own, 1.0, 1.0)
        double, total = call(own, 1.0, 1.0, **other)
    assert len(double) == other.get("size", 2)
    assert total[0] == 1 + other.get("b", 1)
    assert len(own._recordings) == 2


def test_no_more_than_so_many_are_kept() -> None:
    own = recording_execution()
    for size in range(1, execution._MOST_RECORDINGS + 4):
        for _ in range(WARM_UP + 2):
            double, _ = call(own, 3.0, 0.0, size=size)
            assert double.tolist() == [6.0] * size
    assert len(own._recordings) == execution._MOST_RECORDINGS


def test_what_another_recording_puts_out_is_not_copied() -> None:
    own = recording_execution()
    for i in range(WARM_UP + 3):
        outputs = call(own, float(i), float(i))
        summed = own.run(summed_up, *outputs)
        assert summed == 2 * 2 * i + 3 * (i + 1)
    assert [recording.num_own for recording in own._recordings.values()] == [2, 0]


def test_forgotten_recordings_are_made_again() -> None:
    own = recording_execution()
    for _ in range(WARM_UP + 1):
        call(own, 1.0, 1.0)
    own.forget()
    assert not own._recordings
    for _ in range(WARM_UP + 1):
        call(own, 1.0, 1.0)
    assert len(own._recordings) == 1


CASES: dict[str, dict[str, Any]] = {
    **{name: options for name, options in HOOKS.items() if name != "estimator, as found"},
    "append": {"mix": "append"},
    "in turn": {"policy_interval": 2},
    "decay": {"decay_learning_rate": True, "total_updates": 40},
    "given real poses": {"real_poses_3d": stream(1, size=5)[0].inputs_3d[:, 0]},
}


def trained(options: dict[str, Any], records: bool, frames: int) -> PoseAugHook:
    estimator = make_lifter(frames=frames)
    hook = make_hook(estimator, **options)
    hook._trainer.execution.records = records  # type: ignore[union-attr]
    torch.manual_seed(0)
    # Until the pools are full, then every kind of update often enough, and a smaller last batch.
    batches = [*stream(26, frames=frames), *stream(1, size=5, frames=frames)]
    train(hook, estimator, torch.optim.Adam(estimator.parameters(), lr=1e-3), batches)
    return hook


@pytest.mark.parametrize("frames", [1, 3])
@pytest.mark.parametrize("case", CASES)
def test_hook_learns_the_same_from_recordings(case: str, frames: int) -> None:
    written, recorded = (trained(CASES[case], records, frames) for records in (False, True))
    assert differences(frozen_state(written), frozen_state(recorded)) == []
    names = {kind[0] for kind in recorded._trainer.execution._recordings}  # type: ignore
    asks = recorded.config.feedback == "estimator"
    assert names == ({"augment"} if asks else {"augment", "_learn", "_apply"})


def test_steps_take_their_gradients_where_they_are() -> None:
    hook = trained({}, True, 1)
    recordings = hook._trainer.execution._recordings  # type: ignore[union-attr]
    copied = {kind[0]: r.num_own for kind, r in recordings.items()}  # type: ignore[attr-defined]
    assert copied["_apply"] == 0
    assert copied["_learn"] == 1  # the observed error


def test_losses_that_were_read_stay_as_they_were() -> None:
    hook = trained({}, True, 1)
    losses = hook.losses
    hook._trainer.losses.critic_3d.add_(1.0)  # type: ignore[union-attr]
    assert losses.critic_3d != hook.losses.critic_3d


def test_loading_a_state_forgets_what_was_recorded() -> None:
    hook = trained({}, True, 1)
    hook.load_state_dict(hook.state_dict())
    assert not hook._trainer.execution._recordings  # type: ignore[union-attr]


def test_policies_of_ones_own_are_not_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(
        "poseaug_plugin.training.Execution",
        lambda generator, **options: asked.append(options) or Execution(generator, **options),
    )
    make_hook(make_lifter())
    make_hook(make_lifter(), cuda_graphs=False)
    make_hook(make_lifter(), policy=RandomPolicy("h36m_16"), compile=True)
    assert asked == [
        {"records": True, "compiles": False},
        {"records": False, "compiles": False},
        {"records": False, "compiles": True},
    ]


def test_learning_is_recorded_once_the_pools_are_full() -> None:
    """How full they are is Python's, which a recording does not ask."""
    estimator = make_lifter()
    hook = make_hook(estimator)
    trainer, optimizer = hook._trainer, torch.optim.Adam(estimator.parameters(), lr=1e-3)
    trainer.execution.records = True  # type: ignore[union-attr]
    seen = []
    for batch in stream(26):
        full = all(len(c.pool) == c.pool.capacity for c in trainer.critics if len(c.pool))  # type: ignore
        train(hook, estimator, optimizer, [batch])
        kinds = [kind[0] for kind in trainer.execution._recordings]  # type: ignore
        seen.append((full, "_learn" in kinds))
    assert (False, True) not in seen
    assert (True, True) in seen
