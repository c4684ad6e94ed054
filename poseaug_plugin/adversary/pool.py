"""A history of generated poses for the critics (Shrivastava et al., CVPR 2017, section 2.3)."""

import torch
from torch import Tensor, nn


class FakePosePool(nn.Module):
    """Buffers of ``capacity`` samples (*shape) on the device; 0 makes `exchange` the identity.

    Until the pool is full, samples are stored and come back as they are. After that each sample is
    exchanged, with probability ``swap_probability``, for one of the pool.
    """

    items: Tensor

    def __init__(
        self, capacity: int, shape: tuple[int, ...], swap_probability: float = 0.5
    ) -> None:
        super().__init__()
        self.capacity, self.swap_probability = capacity, swap_probability
        self.register_buffer("items", torch.zeros(capacity, *shape))
        # On the host, whatever the module is moved to: the batch size decides it, not the values.
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def exchange(self, samples: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Store ``samples`` (B, *shape) and return as many, some of them older ones."""
        draws = torch.rand(samples.shape[0], device=samples.device, generator=generator)
        # Distinct slots, so that two samples of one batch never go for the same place.
        keys = torch.rand(self.capacity, device=samples.device, generator=generator)
        return self.exchange_with(samples, draws, keys.argsort()[: samples.shape[0]])

    def exchange_with(self, samples: Tensor, draws: Tensor, slots: Tensor) -> Tensor:
        """`exchange` of (B, *shape) with the randomness given; the result is detached.

        A sample is exchanged where 1 - swap_probability < its draw (B,), uniform in [0, 1), with
        its distinct place in ``slots`` (min(B, capacity),); further samples stay.
        """
        samples = samples.detach().to(self.items.dtype)
        stored = min(samples.shape[0], self.capacity - self._size)
        self.items[self._size : self._size + stored] = samples[:stored]
        self._size += stored
        kept, exchanged, rest = samples.tensor_split([stored, stored + len(slots)])
        if not len(exchanged):
            return samples
        slots = slots[: len(exchanged)]
        swap = draws[stored : stored + len(exchanged)] > 1 - self.swap_probability
        swap = swap.reshape(-1, *[1] * (samples.dim() - 1))
        older = self.items[slots]
        self.items[slots] = torch.where(swap, exchanged, older)
        return torch.cat([kept, torch.where(swap, older, exchanged), rest])

    def get_extra_state(self) -> int:
        """The fill, which is a plain number."""
        return self._size

    def set_extra_state(self, state: int) -> None:
        """Restore the fill."""
        self._size = state
