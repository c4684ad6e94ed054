"""A history of generated poses for the critics (Shrivastava et al., CVPR 2017, section 2.3)."""

import torch
from torch import Tensor, nn


class FakePosePool(nn.Module):
    """Holds ``capacity`` samples (*shape) on the device; of 0, `exchange` is the identity.

    Until it is full, samples are stored and come back as they are. After that each is exchanged,
    with probability ``swap_probability``, for one of the pool.
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
        """Store ``samples`` (B, *shape) and return as many, detached, some of them older ones."""
        count = len(samples)
        draws = torch.rand(count, device=samples.device, generator=generator)
        keys = torch.rand(self.capacity, device=samples.device, generator=generator)
        samples = samples.detach().to(self.items.dtype)
        stored = min(count, self.capacity - self._size)
        self.items[self._size : self._size + stored] = samples[:stored]
        self._size += stored
        # Distinct slots, so that two samples of one batch never go for the same place.
        kept, exchanged, rest = samples.tensor_split([stored, stored + min(count, self.capacity)])
        if not len(exchanged):
            return samples
        slots = keys.argsort()[: len(exchanged)]
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
