"""How far embedding rows drift that never have a gradient: one optimizer, one embedding, every second row is never seen.

Runs in bitsandbytes' environment too, so it imports torch and the standard library only; prints one line of JSON.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable
from typing import Any, Final

import torch
from torch import nn

ROWS, WIDTH, BATCH, CLASSES, STD, RATE = 1024, 64, 64, 16, 0.02, 1e-3


def _torch(params: Iterable[nn.Parameter], rate: float, decay: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW(params, lr=rate, weight_decay=decay)


def _edgeq(params: Iterable[nn.Parameter], rate: float, decay: float) -> torch.optim.Optimizer:
    from edgeq.optim import AdamW8bit

    return AdamW8bit(params, lr=rate, weight_decay=decay)


def _bitsandbytes(params: Iterable[nn.Parameter], rate: float, decay: float) -> torch.optim.Optimizer:
    from bitsandbytes.optim import AdamW8bit

    found: torch.optim.Optimizer = AdamW8bit(params, lr=rate, weight_decay=decay)
    return found


# parameters, learning rate and weight decay → optimizer; the other settings are each one's own
OPTIMIZERS: Final[dict[str, Callable[[Iterable[nn.Parameter], float, float], torch.optim.Optimizer]]] = {
    "torch.AdamW": _torch,
    "edgeq.AdamW8bit": _edgeq,
    "bitsandbytes.AdamW8bit": _bitsandbytes,
}


def drift(optimizer: str, steps: int) -> dict[str, Any]:
    """Train without weight decay on even rows; distances of both kinds of rows from where they began, in units of STD."""
    torch.manual_seed(0)
    table, head = nn.Embedding(ROWS, WIDTH), nn.Linear(WIDTH, CLASSES)
    nn.init.normal_(table.weight, std=STD)
    first, labels = table.weight.detach().clone(), torch.randint(CLASSES, (ROWS,))
    stepping = OPTIMIZERS[optimizer]([*table.parameters(), *head.parameters()], RATE, 0.0)
    for _ in range(steps):
        rows = 2 * torch.randint(ROWS // 2, (BATCH,))
        loss = nn.functional.cross_entropy(head(table(rows)), labels[rows])
        stepping.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call] # torch's
        stepping.step()
    way = (table.weight.detach() - first) / STD
    far = way.abs()
    return {
        "optimizer": optimizer,
        "steps": steps,
        "unseen_mean": float(far[1::2].mean()),
        "unseen_largest": float(far[1::2].max()),
        "unseen_shift": float(way[1::2].mean()),
        "moved": float((far[1::2] > 0).float().mean()),
        "seen_mean": float(far[::2].mean()),
        "loss": float(loss.detach()),
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(drift(sys.argv[1], int(sys.argv[2]))))
