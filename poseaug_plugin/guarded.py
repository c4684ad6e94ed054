"""Optimizing the hook's own networks: never the user's, never with a NaN, never with a sync."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn


class GuardedAdam:
    """Adam with gradient clipping that leaves out steps whose gradient is not finite.

    The decision is taken on the device (``found_inf`` of torch's fused Adam), as `GradScaler` does
    it, and gradients are taken with `torch.autograd.grad`, so no one else's ``.grad`` is written.

    Args:
        network: What to train.
        learning_rate: Adam's.
        max_gradient_norm: Clipping.
        recordable: Let a CUDA graph hold the steps: what changes is on the device, the learning
            rate too.
    """

    def __init__(
        self,
        network: nn.Module,
        learning_rate: float,
        max_gradient_norm: float,
        *,
        recordable: bool = False,
    ) -> None:
        self.parameters = [p for p in network.parameters() if p.requires_grad]
        self.learning_rate = learning_rate
        self.max_gradient_norm = max_gradient_norm
        self._rate = learning_rate
        rate: float | Tensor = learning_rate
        if recordable:
            rate = torch.tensor(learning_rate, device=self.parameters[0].device)
        self.adam = torch.optim.Adam(self.parameters, lr=rate, fused=True, capturable=recordable)

    def gradients(self, loss: Tensor) -> list[Tensor]:
        """Those of a loss; zeros for parameters that it does not depend on."""
        gradients = torch.autograd.grad(
            loss, self.parameters, allow_unused=True, materialize_grads=True
        )
        # Two parameters may get one tensor, and clipping it in place would do so twice.
        firsts = {id(gradient): i for i, gradient in reversed(list(enumerate(gradients)))}
        return [g if firsts[id(g)] == i else g.clone() for i, g in enumerate(gradients)]

    def set_learning_rate(self, rate: float) -> None:
        """From now on step at this rate; costs nothing where that is so already."""
        if rate == self._rate:
            return
        self._rate = rate
        for group in self.adam.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate

    def step(self, gradients: list[Tensor], usable: Tensor) -> Tensor:
        """One step, unless a gradient is not finite or ``usable`` (a 0-d bool) is False.

        Returns:
            0-d bool on the device: whether it was left out because a gradient was not finite.
        """
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = _laid_out_like(parameter, gradient)
        norm = nn.utils.clip_grad_norm_(self.parameters, self.max_gradient_norm)
        finite = norm.isfinite()
        self.adam.found_inf = (~(finite & usable)).to(torch.float32)  # type: ignore[attr-defined]
        self.adam.step()
        self.adam.zero_grad(set_to_none=True)
        return usable & ~finite

    def state_dict(self) -> dict[str, Any]:
        """Adam's state, the same whether it can be recorded or not."""
        state = self.adam.state_dict()
        options = {"lr": self._rate, "capturable": False}
        return {**state, "param_groups": [group | options for group in state["param_groups"]]}

    def problems_with(self, state: dict[str, Any]) -> list[str]:
        """What keeps a state from being loaded here."""
        try:
            count = len(state["param_groups"][0]["params"])
            moments = {i: dict(moment) for i, moment in dict(state["state"]).items()}
            float(state["param_groups"][0]["lr"])
        except (KeyError, IndexError, TypeError, ValueError):
            return ["not the state of an Adam optimizer"]
        if count != len(self.parameters):
            return [f"its optimizer must have {len(self.parameters)} parameters, got {count}"]
        shapes = ({"step": (), "exp_avg": p.shape, "exp_avg_sq": p.shape} for p in self.parameters)
        return [
            f"parameter {i} must have the moments {', '.join(expected)} in its own shape"
            for i, expected in enumerate(shapes)
            if i in moments
            and any(getattr(moments[i].get(k), "shape", None) != s for k, s in expected.items())
        ]

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore Adam's state, of which a copy is taken; how it is executed stays its own."""
        # torch keeps the very tensors, so that this Adam would go on in somebody else's state.
        moments = copy.deepcopy(state["state"])
        self.adam.load_state_dict({**self.adam.state_dict(), "state": moments})
        self.set_learning_rate(float(state["param_groups"][0]["lr"]))


def _laid_out_like(parameter: Tensor, gradient: Tensor) -> Tensor:
    # Fused Adam walks through memory: on a CPU it takes a transposed gradient, as batched matrix
    # products have, for another one without a word; on a GPU it refuses it.
    if gradient.stride() == parameter.stride():
        return gradient
    return torch.empty_like(parameter).copy_(gradient)
