"""Whole networks of today's idioms, our own code, written as strangers write them, with data and statistics like real ones.

`network(name)` builds one, the same on every call. A family is a file with a dictionary NETWORKS: name → (what builds the module,
what draws one sample of its inputs).
"""

from __future__ import annotations

import torch

from zoo import attention, classify, detection, mobile, segmentation, sequence, spatial
from zoo.material import Network, Recipe, settled

NETWORKS: dict[str, Recipe] = {
    **mobile.NETWORKS,
    **classify.NETWORKS,
    **detection.NETWORKS,
    **segmentation.NETWORKS,
    **attention.NETWORKS,
    **sequence.NETWORKS,
    **spatial.NETWORKS,
}


def network(name: str) -> Network:
    """The network of that name, from one seed: its module in eval mode, batches to calibrate on, and unseen ones."""
    build, sample = NETWORKS[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = build()
        generator = torch.Generator().manual_seed(1)
        samples = [sample(generator) for _ in range(18)]
        return Network(settled(module, samples[:8]), calibration=samples[8:16], held_out=samples[16:])
