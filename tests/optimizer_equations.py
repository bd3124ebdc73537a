"""The published equations in NumPy's float64: the oracle of the optimizers' tests."""

from __future__ import annotations

import numpy as np


class Reference:
    """One parameter under one optimizer, with states that are exact."""

    def __init__(self, kind: str, p: np.ndarray, **options: float) -> None:
        self.kind, self.p, self.o, self.t = kind, p.astype(np.float64), options, 0
        self.m = np.zeros_like(self.p)
        self.v = np.zeros_like(self.p)

    def step(self, grad: np.ndarray) -> None:
        o, g, lr, decay = self.o, grad.astype(np.float64), self.o["lr"], self.o["weight_decay"]
        self.t += 1
        if self.kind in ("Adam8bit", "AdamW8bit"):
            b1, b2 = o["beta1"], o["beta2"]
            if self.kind == "AdamW8bit":
                self.p = self.p - lr * decay * self.p
            else:
                g = g + decay * self.p
            self.m = b1 * self.m + (1 - b1) * g
            self.v = b2 * self.v + (1 - b2) * g**2
            seen = self.m / (1 - b1**self.t), self.v / (1 - b2**self.t)
            self.p = self.p - lr * seen[0] / (np.sqrt(seen[1]) + o["eps"])
        elif self.kind == "SGD8bit":
            g = g + decay * self.p
            self.m = g if self.t == 1 else o["momentum"] * self.m + (1 - o["dampening"]) * g
            self.p = self.p - lr * (g + o["momentum"] * self.m if o["nesterov"] else self.m)
        elif self.kind == "Lion8bit":
            update = np.sign(o["beta1"] * self.m + (1 - o["beta1"]) * g)
            self.p = self.p - lr * (update + decay * self.p)
            self.m = o["beta2"] * self.m + (1 - o["beta2"]) * g
        else:
            g = g + decay * self.p
            self.v = self.v + g**2
            self.p = self.p - lr / (1 + (self.t - 1) * o["lr_decay"]) * g / (np.sqrt(self.v) + o["eps"])
