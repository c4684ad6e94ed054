"""The learning rate that SimpleBaseline's and SemGCN's loops set as they step."""

from __future__ import annotations

from dataclasses import dataclass

from torch.optim import Optimizer


@dataclass
class StepDecay:
    """``initial * gamma ** (step / every)``, renewed at step 1 and after every ``every`` steps."""

    initial: float
    every: int
    gamma: float
    step: int = 0  # steps begun
    lr: float = 0.0  # set by the first

    def advance(self, optimizer: Optimizer) -> None:
        """Begin a step."""
        self.step += 1
        if self.step == 1 or self.step % self.every == 0:
            self.lr = self.initial * self.gamma ** (self.step / self.every)
            for group in optimizer.param_groups:
                group["lr"] = self.lr
