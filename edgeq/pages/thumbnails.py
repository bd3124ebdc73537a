"""Made-up calibration inputs, small, as SVG: what looks like an image as pixels, the rest as a curve of its values."""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Sequence
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

SHOWN: Final = 12  # inputs
SIDE: Final = 48  # pixels of the longer side
POINTS: Final = 120  # of a curve
SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
COLOURS: Final = (1, 3)  # channels of an image


def thumbnails(batches: Sequence[tuple[Tensor, ...]]) -> list[str]:
    """Of the first float input of the first SHOWN examples of flat batches: `data:` addresses of PNG and SVG images.

    Grey levels and heights go from the least to the largest value of all that is shown.
    """
    index = next((i for i, x in enumerate(batches[0]) if x.is_floating_point()), None) if batches else None
    if index is None:
        return []
    every = [
        example
        for batch in batches[:SHOWN]
        for example in (batch[index] if batch[index].dim() > 1 else batch[index][None])
    ]
    shown = torch.stack(every[:SHOWN]).float()
    low, high = float(shown.min()), float(shown.max())
    scaled = (shown - low) / (high - low or 1.0)
    draw = _png if scaled.dim() == 4 else _curve
    return [draw(example) for example in scaled]


def _png(x: Tensor) -> str:
    """[C, H, W] from 0 to 1; of other than one or three channels the mean."""
    x = x if x.shape[0] in COLOURS else x.mean(0, keepdim=True)
    height, width = (max(1, round(size * min(1.0, SIDE / max(x.shape[1:])))) for size in x.shape[1:])
    pixels = (F.adaptive_avg_pool2d(x, (height, width)) * 255).round().byte().permute(1, 2, 0)
    lines = b"".join(b"\0" + row.contiguous().numpy().tobytes() for row in pixels)  # each begins with its filter: none
    header = struct.pack(">IIBBBBB", width, height, 8, 2 if x.shape[0] == 3 else 0, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(lines, 9)), (b"IEND", b""))
    told = b"".join(struct.pack(">I", len(p)) + n + p + struct.pack(">I", zlib.crc32(n + p)) for n, p in parts)
    return f"data:image/png;base64,{base64.b64encode(SIGNATURE + told).decode()}"


def _curve(x: Tensor) -> str:
    """Values from 0 to 1 in the order of memory, at most POINTS of them."""
    values = x.flatten()
    values = values[torch.linspace(0, len(values) - 1, min(POINTS, len(values))).long()]
    points = " ".join(f"{i},{40 - 40 * v:.1f}" for i, v in enumerate(values.tolist()))
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 -2 {max(len(values) - 1, 1)} 44" preserveAspectRatio="none">'
        f'<polyline points="{points}" fill="none" stroke="#777" vector-effect="non-scaling-stroke"/></svg>'
    )
    return f"data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}"
