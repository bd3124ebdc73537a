"""Is the QDQ program still the network? What is exact on every runtime may be exactly wrong: said in words, per output."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from edgeq.graph.far import FAR_DB, LOST_DB, lost, sqnr_db
from edgeq.graph.ordered import ordered
from edgeq.graph.package import QuantizedModel
from edgeq.run.tensors import tensors
from edgeq.task import Predict

NAMED = 3  # layers that a sentence names


def far(model: QuantizedModel, batches: Sequence[tuple[Tensor, ...]], network: Predict | None = None) -> Iterator[str]:
    """One sentence for each output of the QDQ program that is far from the float network's on flat `batches`.

    As a whole below FAR_DB, or in single slices along an axis below LOST_DB: boxes in pixels may be right beside scores that
    are all 0. The layers named are those where the error is largest, from the front. network: computes what `model.float` does.
    """
    with torch.no_grad(), ordered():
        floats = [network(*batch) if network is not None else model.float(batch) for batch in batches]
    wanted = [torch.stack(outputs) for outputs in zip(*floats, strict=True)]
    given = [torch.stack(outputs) for outputs in zip(*(model.qdq(batch) for batch in batches), strict=True)]
    for info, want, got in zip(model.outputs, wanted, given, strict=True):
        if not want.is_floating_point() or not bool(want.isfinite().all()) or not bool(want.any()):
            continue
        whole = sqnr_db(want, got)
        if whole < FAR_DB:
            yield (
                f"output {info.name!r} is far from the float network's: {whole:.1f} dB{_where(model, batches[0])}; try "
                "--recipe dfq, or keep the layers named in float with --keep-float"
            )
        elif found := lost(want, got, LOST_DB):
            axis, slices = found
            numbers = f"{slices[0]}" if len(slices) == 1 else f"{slices[0]} … {slices[-1]} ({len(slices)} of them)"
            yield (
                f"output {info.name!r}, axis {axis}, index {numbers}: lost in quantization, though the output as a whole is "
                f"{whole:.1f} dB from float: values of other size share their scale; keep what joins them in float with "
                "--keep-float, or return them apart"
            )


@ordered()
def _where(model: QuantizedModel, batch: tuple[Tensor, ...]) -> str:
    """The layers at which the error rises above the limit, as the end of a clause."""
    seen = [t.key for t in tensors(model, batch) if t.sqnr_db < FAR_DB]
    first = list(dict.fromkeys(seen))[:NAMED]
    return f", first at {', '.join(first)}" if first else ""
