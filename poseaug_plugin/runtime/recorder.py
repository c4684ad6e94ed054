"""`Recorder`: the hook's own work, replayed on a GPU."""

from collections import Counter
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from ..errors import warn

_WARM_UP = 3  # calls of a kind before it is recorded: what they make once is made by then
_MOST_RECORDINGS = 16  # five for one batch size; each keeps its memory, so others go on without


class Recorder:
    """Records work in CUDA graphs and replays it; on a CPU it just does it.

    Launching kernels one by one takes several times as long as they do, so a GPU gets all kernels
    of a piece of work at once. ``generator`` is the random stream, on the device of the work.
    """

    def __init__(self, generator: torch.Generator, *, records: bool) -> None:
        self.generator = generator
        # An old torch records no random streams but its own.
        can_record = hasattr(torch.cuda.CUDAGraph, "register_generator_state")
        self.records = records and can_record and generator.device.type == "cuda"
        self._stream: torch.cuda.Stream | None = None
        self._calls: Counter[Hashable] = Counter()
        # Graph, inputs and outputs.
        self._recordings: dict[Hashable, tuple[torch.cuda.CUDAGraph, list[Tensor], Any]] = {}

    def call(self, method: Callable[..., Any], *arguments: Any) -> Any:
        """``method(*arguments)``, recorded and replayed: work that stays on the device.

        It may change tensors in place and draw from the generator. All else that it depends on must
        be an argument; what it changes in Python changes once. The next call overwrites the result.
        """
        if not self.records or _must_run_as_written():
            return method(*arguments)
        leaves, structure = tree_flatten(arguments)
        tensors = [x for x in leaves if isinstance(x, Tensor)]
        kinds = ((x.shape, x.dtype) if isinstance(x, Tensor) else x for x in leaves)
        kind = (method.__name__, *kinds)
        if kind not in self._recordings:
            self._calls[kind] += 1
            if self._calls[kind] <= _WARM_UP or len(self._recordings) == _MOST_RECORDINGS:
                return method(*arguments)
            # What another recording puts out stays where it is, so that it need not be copied.
            put_out = {id(x) for *_, made in self._recordings.values() for x in tree_leaves(made)}
            inputs = [x if id(x) in put_out else x.clone() for x in tensors]
            own = iter(inputs)
            fed = [next(own) if isinstance(x, Tensor) else x for x in leaves]
            try:
                graph, outputs = self._record(method, tree_unflatten(fed, structure))
            except Exception as failure:
                self.records, self._recordings = False, {}
                warn(
                    "PoseAugHook: the hook's work could not be recorded in a CUDA graph "
                    f"({type(failure).__name__}: {failure}), so it goes on several times slower. "
                    "cuda_graphs=False does without from the start."
                )
                return method(*arguments)
            self._recordings[kind] = graph, inputs, outputs
        graph, inputs, outputs = self._recordings[kind]
        for kept, given in zip(inputs, tensors, strict=True):
            if kept is not given:
                kept.copy_(given)
        graph.replay()
        return outputs

    def _record(
        self, method: Callable[..., Any], arguments: tuple[Any, ...]
    ) -> tuple[torch.cuda.CUDAGraph, Any]:
        device = self.generator.device
        with torch.cuda.device(device):  # where the random stream keeps what a replay reads of it
            graph = torch.cuda.CUDAGraph()
            graph.register_generator_state(self.generator)
            if self._stream is None:
                self._stream = torch.cuda.Stream(device)
            # Only this thread's calls: the user's others may be loading batches meanwhile.
            with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
                outputs = method(*arguments)
        return graph, outputs


def _must_run_as_written() -> bool:
    # In a capture of the user's own, and where autograd looks at every gradient.
    return torch.cuda.is_current_stream_capturing() or torch.is_anomaly_enabled()
