"""What is recorded, when, and from where it is fed; calling again stands in for CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from loops import (
    ASKING,
    HOOKS,
    UPDATES,
    SmallDefault,
    adam,
    augmented,
    differences,
    frozen_state,
    make_hook,
    make_lifter,
    stream,
    train,
    without_trajectory,
)
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from poseaug_plugin import PoseAugHook, PoseAugWarning, PoseSource, RandomPolicy
from poseaug_plugin.runtime import recorder
from poseaug_plugin.runtime.recorder import Recorder

WARM_UP = recorder._WARM_UP


class Operators(TorchDispatchMode):
    """Writes down every operator, and refuses what would wait for a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.done: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []

    def __torch_dispatch__(
        self, operator: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Do it."""
        if operator is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("operation not permitted when stream is capturing")
        made = operator(*args, **(kwargs or {}))
        self.done.append((operator, args, kwargs or {}, made))
        return made


class Graph:
    """Does what a CUDA graph does: the same operators on the same memory, and no Python."""

    def __init__(self, operators: Operators) -> None:
        self.operators, self.replays = operators, 0

    @torch.no_grad()
    def replay(self) -> None:
        self.replays += 1
        if self.replays == 1:  # a capture does nothing; this one did it already
            return
        for operator, args, kwargs, made in self.operators.done:
            if operator._schema.is_mutable:
                operator(*args, **kwargs)
            elif not operator.is_view:
                again = operator(*args, **kwargs)
                for kept, new in zip(tree_leaves(made), tree_leaves(again), strict=True):
                    if isinstance(kept, Tensor) and kept.data_ptr() != new.data_ptr():
                        kept.detach().copy_(new.detach())


class Recording(Recorder):
    """One that records without a GPU."""

    def __init__(self, generator: torch.Generator, *, records: bool) -> None:
        super().__init__(generator, records=records)
        assert not self.records  # there is no GPU
        self.records = records
        self.is_off = False  # but steps are taken as if not

    def call(self, method: Callable[..., Any], *arguments: Any) -> Any:
        """As the real one."""
        return method(*arguments) if self.is_off else super().call(method, *arguments)

    def _record(self, method: Any, arguments: Any) -> Any:
        with Operators() as operators:
            outputs = method(*arguments)
        return Graph(operators), outputs


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("poseaug_plugin.trainer.Recorder", Recording)
    monkeypatch.setattr(recorder, "_must_run_as_written", lambda: False)


def recording_recorder() -> Recording:
    return Recording(torch.Generator(), records=True)


def num_copied(own: Recorder) -> set[tuple[str, int]]:
    """How many inputs of each recording are memory of its own."""
    outputs = {id(x) for *_, made in own._recordings.values() for x in tree_leaves(made)}
    return {
        (kind[0], sum(id(x) not in outputs for x in inputs))  # type: ignore[index]
        for kind, (_, inputs, _) in own._recordings.items()
    }


class Pair(NamedTuple):
    a: Tensor
    b: int


def doubled(values: dict[str, Tensor], pair: Pair, _: Tensor | None) -> list[Tensor]:
    return [values["x"] * 2, pair.a + pair.b]


def summed_up(x: Tensor, y: Tensor) -> Tensor:
    return x.sum() + y.sum()


def call(own: Recorder, x: float, a: float, b: int = 1, size: int = 2) -> list[Tensor]:
    return own.call(doubled, {"x": torch.full((size,), x)}, Pair(torch.full((3,), a), b), None)


def test_recorded_after_some_calls_and_fed_anew_each_time() -> None:
    own = recording_recorder()
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
    own = recording_recorder()
    for _ in range(WARM_UP + 2):
        call(own, 1.0, 1.0)
        double, total = call(own, 1.0, 1.0, **other)
    assert len(double) == other.get("size", 2)
    assert total[0] == 1 + other.get("b", 1)
    assert len(own._recordings) == 2


def test_no_more_than_so_many_are_kept() -> None:
    own = recording_recorder()
    for size in range(1, recorder._MOST_RECORDINGS + 4):
        for _ in range(WARM_UP + 2):
            double, _ = call(own, 3.0, 0.0, size=size)
            assert double.tolist() == [6.0] * size
    assert len(own._recordings) == recorder._MOST_RECORDINGS


def test_what_another_recording_puts_out_is_not_copied() -> None:
    own = recording_recorder()
    for i in range(WARM_UP + 3):
        outputs = call(own, float(i), float(i))
        summed = own.call(summed_up, *outputs)
        assert summed == 2 * 2 * i + 3 * (i + 1)
    assert num_copied(own) == {("doubled", 2), ("summed_up", 0)}


CASES: dict[str, dict[str, Any]] = {
    **HOOKS,
    **UPDATES,
    "seldom": {"preset": SmallDefault(critic_interval=5)},
    "without pools": {"preset": SmallDefault(pool_capacity=0)},
}


def trained(options: dict[str, Any], records: bool, frames: int = 1, more: int = 0) -> PoseAugHook:
    """Until the pools are full, then every kind of update often enough to be replayed."""
    estimator = make_lifter(frames=frames)
    hook = make_hook(estimator, **options)
    hook._trainer.recorder.is_off = not records  # type: ignore[union-attr]
    optimizer = adam(estimator)
    torch.manual_seed(0)
    size = 40 if options is CASES["seldom"] else 16
    more += 28 if options.get("preset") == "random" else 0  # figures of one update in eight
    train(hook, estimator, optimizer, stream(28 + more, size=size, frames=frames))
    # A smaller last batch, and then on.
    train(hook, estimator, optimizer, stream(1, size=5, frames=frames))
    train(hook, estimator, optimizer, stream(4, size=size, seed=1, frames=frames))
    return hook


def replays(hook: PoseAugHook) -> dict[str, int]:
    recordings = hook._trainer.recorder._recordings  # type: ignore[union-attr]
    found: dict[str, int] = {}
    for kind, (graph, *_) in recordings.items():
        name = kind[0]  # type: ignore[index]
        found[name] = found.get(name, 0) + graph.replays  # type: ignore[attr-defined]
    return found


@pytest.mark.parametrize("frames", [1, 3])
@pytest.mark.parametrize("case", CASES)
def test_hook_learns_the_same_from_recordings(case: str, frames: int) -> None:
    written, recorded = (trained(CASES[case], records, frames) for records in (False, True))
    states = frozen_state(written), frozen_state(recorded)
    assert replays(written) == {}
    assert differences(*states) == []
    assert differences(written.losses, recorded.losses) == []
    assert all(loss.isfinite() for loss in recorded.losses.values())
    found = replays(recorded)
    assert found["augment"] > 5
    recurs = case not in ASKING
    assert (found.get("_learn", 0) > 2) == recurs
    assert (found.get("_apply", 0) > 2) == recurs


def test_windows_from_a_source_are_drawn_by_recordings() -> None:
    batch = stream(1, size=4, frames=9)[0]
    sequences = [poses.numpy() for poses in batch.inputs_3d]
    states = []
    for records in (False, True):
        source = PoseSource(sequences, batch.camera.numpy())
        hook = trained({"source": source}, records, frames=3)
        states.append(frozen_state(hook))
    assert differences(*states) == []
    assert replays(hook)["augment"] > 5


def test_steps_that_a_scaler_undoes_teach_nothing() -> None:
    """Also where the step is replayed, as those before it were."""
    states = []
    for records in (False, True):
        hook, generator = trained({}, records), torch.Generator().manual_seed(0)
        trainer = hook._trainer
        for overflows in (0.0,) * 10 + (1.0, 1.0, 0.0):
            before = frozen_state(hook)["training"]["modules"]
            inputs_3d = augmented(hook, stream(1)[0]).inputs_3d
            off = 0.1 * torch.rand(inputs_3d.shape, generator=generator)
            hook.observe(without_trajectory(inputs_3d) + off)
            hook._train(skip=torch.tensor(overflows))
            now = hook.state_dict()["training"]["modules"]
            changed = {name.split(".")[0] for name in differences(before, now)}
            assert ("/policy" in changed) == (not overflows)
            assert ("/controller" in changed) == (not overflows)
        states.append(frozen_state(hook))
    assert differences(*states) == []
    kinds = trainer.recorder._recordings.items()  # type: ignore[union-attr]
    assert any(kind[0] == "_apply" and graph.replays > 3 for kind, (graph, *_) in kinds)  # type: ignore


def test_steps_take_their_gradients_where_they_are() -> None:
    estimator = make_lifter()
    hook = make_hook(estimator)
    optimizer = adam(estimator)
    for i in range(20):
        train(hook, estimator, optimizer, stream(2, size=(16, 12)[i % 2]))
    copied = num_copied(hook._trainer.recorder)  # type: ignore[union-attr]
    learning = {(name, count) for name, count in copied if name != "augment"}
    assert learning == {("_keep", 0), ("_learn", 1), ("_apply", 0)}  # the observed error


@pytest.mark.parametrize("into", ["the same hook", "a new one"])
def test_recording_goes_on_after_a_state_was_loaded(into: str) -> None:
    states = []
    for records in (False, True):
        hook = trained({}, records)
        saved, before, estimator = frozen_state(hook), replays(hook), hook._estimator
        if into == "a new one":
            hook.remove()
            estimator, before = make_lifter(seed=1), {}
            hook = make_hook(estimator)
            hook._trainer.recorder.is_off = not records  # type: ignore[union-attr]
        else:
            train(hook, estimator, adam(estimator), stream(3, seed=2))
        hook.load_state_dict(saved)
        train(hook, estimator, adam(estimator), stream(9))
        states.append(frozen_state(hook))
        if records:
            assert replays(hook)["_apply"] > before.get("_apply", 0) + 1
    assert differences(*states) == []


def test_what_cannot_be_recorded_goes_on_as_it_is_written() -> None:
    def waiting(x: Tensor) -> Tensor:
        return x * x.sum().item()

    own = recording_recorder()
    for _ in range(WARM_UP):
        assert own.call(waiting, torch.ones(2)).tolist() == [2.0, 2.0]
    with pytest.warns(PoseAugWarning, match="cuda_graphs=False"):
        assert own.call(waiting, torch.ones(2)).tolist() == [2.0, 2.0]
    assert own.call(waiting, torch.ones(3)).tolist() == [3.0] * 3
    assert not own.records


def test_losses_that_were_read_stay_as_they_were() -> None:
    hook = trained({}, True)
    losses = hook.losses
    hook._trainer.losses["critic_3d"].add_(1.0)  # type: ignore[union-attr]
    assert losses["critic_3d"] != hook.losses["critic_3d"]


@pytest.mark.filterwarnings("ignore")  # what torch.compile says when it is imported
def test_policies_of_ones_own_are_not_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(
        "poseaug_plugin.trainer.Recorder",
        lambda generator, **options: asked.append(options) or Recorder(generator, **options),
    )
    make_hook(make_lifter())
    make_hook(make_lifter(), cuda_graphs=False)
    make_hook(make_lifter(), policy=RandomPolicy("h36m_16"))
    assert asked == [{"records": True}, {"records": False}, {"records": False}]
