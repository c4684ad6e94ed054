"""How the hook's own work is done: compiled, where that is asked for, and on a GPU replayed."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Iterator
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from .errors import PoseAugWarning

Result = TypeVar("Result")

_WARM_UP = 3  # calls of a kind before it is recorded: what they make once is made by then
_MOST_RECORDINGS = 16  # five for one batch size; each keeps its memory, so others go on without


class _Recording(NamedTuple):
    graph: torch.cuda.CUDAGraph
    inputs: list[Tensor]
    outputs: Any


class Execution:
    """Does the hook's own work.

    On a GPU all kernels of a piece of work are recorded in a CUDA graph and launched at once, since
    launching them one by one takes several times as long as they do. Compiled, they become fewer.

    Args:
        generator: The random stream, on the device of the work.
        records: Record, where the device is a GPU.
        compiles: Compile.
    """

    def __init__(self, generator: torch.Generator, *, records: bool, compiles: bool) -> None:
        self.generator = generator
        # An old torch records no random streams but its own.
        can_record = hasattr(torch.cuda.CUDAGraph, "register_generator_state")
        self.records = records and can_record and generator.device.type == "cuda"
        self.compiles = compiles
        self._stream: torch.cuda.Stream | None = None
        self._compiled: dict[Callable[..., Any], Callable[..., Any]] = {}
        self.forget()

    def forget(self) -> None:
        """Drop all recordings, because memory that they work on is no longer the one in use."""
        self._calls: dict[Hashable, int] = {}
        self._recordings: dict[Hashable, _Recording] = {}

    def compute(self, method: Callable[..., Result], *arguments: Any) -> Result:  # noqa: ANN401
        """``method(*arguments)``, compiled: arithmetic that draws nothing.

        Args:
            method: A function or bound method; numbers and flags of its object that it reads must
                not change.
            arguments: Tensors and what holds them, modules, and values that seldom change.
        """
        if not self.compiles:
            return method(*arguments)
        # Not the bound method: kept, it would keep its object, and so all of the hook's, alive.
        function = getattr(method, "__func__", method)
        if function not in self._compiled:
            self._compiled[function] = torch.compile(function, dynamic=False)
        its_object = () if function is method else (method.__self__,)  # type: ignore[attr-defined]
        return self._compiled[function](*its_object, *arguments)

    def run(self, method: Callable[..., Result], *arguments: Any) -> Result:  # noqa: ANN401
        """``method(*arguments)``, recorded and replayed: work that stays on the device.

        Args:
            method: May change tensors in place and draw from the generator. Whatever else its work
                depends on must be among the arguments; what it changes in Python changes once.
            arguments: Tensors and what holds them, and values that seldom change.

        Returns:
            Its result, in memory that the next call writes again.
        """
        if not self.records or _must_run_as_written():
            return method(*arguments)
        kind = method.__name__, _kind_of(arguments)
        if kind not in self._recordings:
            calls = self._calls[kind] = self._calls.get(kind, 0) + 1
            if calls <= _WARM_UP or len(self._recordings) == _MOST_RECORDINGS:
                return method(*arguments)
            inputs = self._own_inputs(arguments)
            try:
                recording = self._record(method, _with_tensors(arguments, iter(inputs)), inputs)
            except Exception as failure:
                self.forget()
                self.records = False
                warnings.warn(
                    f"PoseAugHook: the hook's work could not be recorded in a CUDA graph "
                    f"({type(failure).__name__}: {failure}), so it goes on several times slower. "
                    "cuda_graphs=False does without from the start.",
                    PoseAugWarning,
                    stacklevel=2,
                )
                return method(*arguments)
            self._recordings[kind] = recording
        recording = self._recordings[kind]
        for own, given in zip(recording.inputs, _tensors_in(arguments), strict=True):
            if own is not given:
                own.copy_(given)
        recording.graph.replay()
        return recording.outputs

    def _own_inputs(self, arguments: tuple[Any, ...]) -> list[Tensor]:
        # What another recording puts out stays where it is, so that it need not be copied.
        kept = {id(x) for r in self._recordings.values() for x in _tensors_in(r.outputs)}
        return [x if id(x) in kept else x.clone() for x in _tensors_in(arguments)]

    def _record(
        self, method: Callable[..., Any], arguments: tuple[Any, ...], inputs: list[Tensor]
    ) -> _Recording:
        device = self.generator.device
        with torch.cuda.device(device):  # where the random stream keeps what a replay reads of it
            graph = torch.cuda.CUDAGraph()
            graph.register_generator_state(self.generator)
            if self._stream is None:
                self._stream = torch.cuda.Stream(device)
            # Only this thread's calls: the user's others may be loading batches meanwhile.
            with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
                outputs = method(*arguments)
        return _Recording(graph, inputs, outputs)


def _must_run_as_written() -> bool:
    # In a capture of the user's own, and where autograd looks at every gradient.
    return torch.cuda.is_current_stream_capturing() or torch.is_anomaly_enabled()


def _kind_of(values: Any) -> Hashable:  # noqa: ANN401
    """The values with every tensor's shape and type in its place."""
    if isinstance(values, Tensor):
        return values.shape, values.dtype
    if isinstance(values, dict):
        return tuple((name, _kind_of(value)) for name, value in values.items())
    if isinstance(values, (tuple, list)):
        return tuple(_kind_of(value) for value in values)
    return values


def _tensors_in(values: Any) -> Iterator[Tensor]:  # noqa: ANN401
    """Every tensor of nested tuples, lists and dictionaries, in order."""
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, dict):
        yield from _tensors_in(tuple(values.values()))
    elif isinstance(values, (tuple, list)):
        for value in values:
            yield from _tensors_in(value)


def _with_tensors(values: Any, tensors: Iterator[Tensor]) -> Any:  # noqa: ANN401
    """The same values with other tensors in their places."""
    if isinstance(values, Tensor):
        return next(tensors)
    if isinstance(values, dict):
        return {name: _with_tensors(value, tensors) for name, value in values.items()}
    if isinstance(values, (tuple, list)):
        replaced = [_with_tensors(value, tensors) for value in values]
        return type(values)(*replaced) if hasattr(values, "_fields") else type(values)(replaced)
    return values
