"""Optimizing the hook's own networks: never the user's, never with a NaN, never with a sync."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adam import adam

_ADAMS_OWN: Any = {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.0}
_ADAMS_OWN |= {"amsgrad": False, "maximize": False}


class GuardedAdam(nn.Module):
    """Adam with gradient clipping that leaves out steps whose gradient is not finite.

    The device decides (``found_inf`` of torch's fused Adam), as with `GradScaler`. No ``.grad`` is
    written and no `torch.optim.Optimizer` involved, so nobody's optimizer hooks see these steps.
    """

    first_moment: Tensor  # (n,) of all parameters, one behind the other
    second_moment: Tensor  # (n,)
    steps: Tensor  # (parameters,)

    def __init__(
        self, network: nn.Module, learning_rate: float = 3e-4, max_gradient_norm: float = 1.0
    ) -> None:
        super().__init__()
        self.network_parameters: list[Tensor] = [p for p in network.parameters() if p.requires_grad]
        self.max_gradient_norm = max_gradient_norm
        parameters, device = self.network_parameters, self.network_parameters[0].device
        sizes = [p.numel() for p in parameters]
        self.register_buffer("first_moment", torch.zeros(sum(sizes), device=device))
        self.register_buffer("second_moment", torch.zeros(sum(sizes), device=device))
        self.register_buffer("steps", torch.zeros(len(sizes), device=device))
        # On a GPU a tensor, since a CUDA graph may hold the steps.
        on_gpu = device.type == "cuda"
        self._rate = torch.tensor(learning_rate, device=device) if on_gpu else learning_rate
        self._moments = [
            [part.view_as(p) for part, p in zip(moment.split(sizes), parameters, strict=True)]
            for moment in (self.first_moment, self.second_moment)
        ]

    def gradients(self, loss: Tensor) -> list[Tensor]:
        """Gradients of a loss; zeros for parameters that it does not depend on."""
        return list(torch.autograd.grad(loss, self.network_parameters, materialize_grads=True))

    def set_learning_rate(self, rate: float) -> None:
        """Step at this rate from now on."""
        if isinstance(self._rate, Tensor):
            self._rate.fill_(rate)
        else:
            self._rate = rate

    @torch.no_grad()
    def step(self, gradients: list[Tensor], allowed: Tensor) -> Tensor:
        """Take a step if ``allowed`` (0-d bool); answers (0-d bool) if NaN or Inf kept it back."""
        parameters = self.network_parameters
        # Fused Adam walks through memory: on a CPU it takes a transposed gradient, as batched
        # matrix products have, for another one without a word; on a GPU it refuses it.
        gradients = [
            g if g.stride() == p.stride() else torch.empty_like(p).copy_(g)
            for p, g in zip(parameters, gradients, strict=True)
        ]
        norm = torch.stack(torch._foreach_norm(gradients)).norm()
        clip = (self.max_gradient_norm / (norm + 1e-6)).clamp(max=1.0)
        finite = norm < torch.inf
        first, second = self._moments
        adam(
            *(parameters, list(torch._foreach_mul(gradients, clip)), first, second),
            max_exp_avg_sqs=[],
            state_steps=list(self.steps.unbind()),
            fused=True,
            capturable=self.steps.is_cuda,
            found_inf=(~(finite & allowed)).to(torch.float32),
            lr=self._rate,
            **_ADAMS_OWN,
        )
        return allowed & ~finite
