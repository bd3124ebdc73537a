"""Rows picked by a table: every runtime and kernel set against NumPy, and nothing but integers on the way."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from edgeq import backends
from edgeq.graph.integer import read
from edgeq.graph.simulate import simulate

qd = torch.ops.quantized_decomposed
ZERO = -7
GRID = (0.0625, ZERO)  # a scale that half precision holds exactly
few = settings(
    max_examples=3, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.generate],  # no shrinking: every try exports a program
)  # fmt: skip


def again(x: Tensor) -> Tensor:
    """Quantize and dequantize, as a QDQ program states it."""
    q = qd.quantize_per_tensor.default(x, *GRID, -128, 127, torch.int8)
    real: Tensor = qd.dequantize_per_tensor.default(q, *GRID, -128, 127, torch.int8)
    return real


class Rows(nn.Module):
    """Rows of the input, then of the outcome, then of that, with what is negative clipped."""

    def forward(self, x: Tensor, table: Tensor) -> tuple[Tensor, ...]:
        once = again(again(x).index_select(0, table.flatten()))
        twice = again(once.index_select(0, table.flatten()))
        return once, twice, again(twice.index_select(0, table.flatten()).relu())


@pytest.mark.parametrize("runtime", backends.RUNTIMES)
@few
@given(
    shape=st.lists(st.integers(1, 40), min_size=2, max_size=4).filter(lambda s: math.prod(s) < 4000),
    places=st.lists(st.integers(1, 7), min_size=1, max_size=3),
    dtype=st.sampled_from([torch.int32, torch.int64]),
    seed=st.integers(0, 2**32 - 1),
)
def test_rows_are_numpys(
    tmp_path_factory: pytest.TempPathFactory,
    runtime: str,
    shape: list[int],
    places: list[int],
    dtype: torch.dtype,
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)
    stored = rng.integers(-128, 128, shape)
    # the second and third gather pick among as many rows as the table has
    table = rng.integers(0, min(shape[0], math.prod(places)), places)
    inputs = (((torch.tensor(stored) - ZERO) * GRID[0]).float(), torch.tensor(table, dtype=dtype))
    program = torch.export.export(Rows(), inputs)
    assert [op.kind for op in read(program).ops.values()] == ["gather"] * 3 and not read(program).floats
    engine = backends.backend(runtime)
    artifact = engine.lower(program, tmp_path_factory.mktemp("gather"))
    assert {row.status for row in artifact.coverage if not row.inserted} == {
        "eligible" if runtime == "coreml" else "integer"
    }
    first = stored[table.ravel()]
    second = first[table.ravel()]
    wanted = (first, second, np.maximum(second[table.ravel()], ZERO))
    for kernels, arithmetic in engine.target.kernels or (("", engine.target.arithmetic),):
        options = {"kernels": kernels} if kernels else {}
        got = engine.load(artifact.path, **options)(inputs)
        simulated = simulate(read(program), inputs, arithmetic)
        for integers, outputs in zip(wanted, zip(got, simulated, strict=True), strict=True):
            for output in outputs:
                np.testing.assert_array_equal(output.numpy(), (integers - ZERO) * np.float32(GRID[0]), kernels)


def test_executorch_moves_int8_rows_between_the_delegates(tmp_path: Path) -> None:
    from edgeq.backends.executorch.pte import read_pte

    inputs = (torch.randn(5, 3), torch.tensor([4, 0, 0]))
    artifact = backends.backend("executorch").lower(torch.export.export(Rows(), inputs), tmp_path)
    picked = [op for op in read_pte(artifact.path.read_bytes()) if op.type == "aten::index_select"]
    assert [op.reads for op in picked] == [("char", "long", "char", "char")] * 3
    rows = [row for row in artifact.coverage if row.kind == "gather"]
    assert len(rows) == 3 and all("not delegated" in row.reason for row in rows)


def test_tvm_leaves_an_image_of_rows_as_it_lies(tmp_path: Path) -> None:
    """Rows [H·W, C] → [1, H, W, C] → [1, C, H, W] is no work where images lie channels-last."""

    class Image(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return again(again(again(x).view(1, 4, 6, 3)).permute(0, 3, 1, 2))

    x = torch.randint(-40, 40, (24, 3)) * GRID[0]
    artifact = backends.backend("tvm").lower(torch.export.export(Image(), (x,)), tmp_path)
    assert [row.kind for row in artifact.coverage] == ["reshape"]
    assert "same bytes" in artifact.coverage[0].reason
    (image,) = backends.backend("tvm").load(artifact.path)([x])
    assert torch.equal(image, x.view(1, 4, 6, 3).permute(0, 3, 1, 2))
