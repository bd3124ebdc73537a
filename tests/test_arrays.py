"""A folder of arrays as calibration data: the same numbers as the same batches from a task, and a sentence for what is none."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import edgeq
from edgeq.calib.data.arrays import Arrays
from edgeq.spec import EdgeqError


class Two(nn.Module):
    """An image and a vector."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 4, 3), nn.Linear(5, 4)

    def forward(self, image: Tensor, vector: Tensor) -> Tensor:
        return self.stem(image).mean((2, 3)) + self.head(vector)


def quantized(folder: Path | None, batches: list[Any], module: nn.Module) -> edgeq.QuantizedModel:
    return edgeq.quantize(
        module, example_inputs=batches[0], calibration=batches if folder is None else None, data=folder
    )


def test_files_give_what_batches_give(tmp_path: Path) -> None:
    """By name, whatever the order of the folder; axes of one may be left out; doubles are the network's floats."""
    torch.manual_seed(0)
    module = Two().eval()
    batches = [(torch.randn(1, 3, 8, 8), torch.randn(1, 5)) for _ in range(4)]
    for index in (2, 0, 3, 1):
        image, vector = (x.numpy() for x in batches[index])
        np.savez(tmp_path / f"{index}.npz", image[0] if index == 1 else image, vector.astype(np.float64))
    (tmp_path / "notes.txt").write_text("not a batch")
    found, wanted = quantized(tmp_path, batches, module), quantized(None, batches, module)
    assert found.qparams == wanted.qparams
    assert all(torch.equal(a, found.program.state_dict[name]) for name, a in wanted.program.state_dict.items())


def test_one_input_is_an_npy_and_a_dictionary_keeps_its_names(tmp_path: Path) -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Linear(5, 4)

        def forward(self, x: dict[str, Tensor]) -> Tensor:
            return self.stem(x["points"])

    torch.manual_seed(0)
    module, batches = Named().eval(), [({"points": torch.randn(2, 5)},) for _ in range(3)]
    for index, (batch,) in enumerate(batches):
        np.save(tmp_path / f"{index}.npy", batch["points"].numpy())
    assert quantized(tmp_path, batches, module).qparams == quantized(None, batches, module).qparams


@pytest.mark.parametrize(
    ("name", "content", "wrong"),
    [
        (
            "a.npy",
            np.zeros((1, 3, 9, 8), np.float32),
            r"a\.npy: shape \(1, 3, 9, 8\), and the network takes \(1, 3, 8, 8\)",
        ),
        ("a.npy", np.zeros((1, 3, 8, 8), np.uint8), r"a\.npy: holds uint8, and the network takes float32"),
        ("a.npy", np.array([{"x": 1}], dtype=object), r"a\.npy: no whole file of plain numbers"),
        ("a.npy", b"\x93NUMPY", r"a\.npy: no whole file of plain numbers"),
        ("a.npz", b"PK", r"a\.npz: no whole file of plain numbers"),
        ("a.txt", b"", r"holds no \.npy or \.npz files"),
        ("a.npy", np.full((1, 3, 8, 8), np.nan, np.float32), "contains NaN or Inf"),
    ],
)
def test_what_is_no_batch_is_a_sentence(name: str, content: Any, wrong: str, tmp_path: Path) -> None:
    if isinstance(content, bytes):
        (tmp_path / name).write_bytes(content)
    else:
        np.save(tmp_path / name, content, allow_pickle=True)
    with pytest.raises(EdgeqError, match=wrong):
        quantized(tmp_path, [(torch.zeros(1, 3, 8, 8),)], nn.Conv2d(3, 4, 3).eval())
    with pytest.raises(EdgeqError, match="no such folder"):
        quantized(tmp_path / "none", [(torch.zeros(1, 3, 8, 8),)], nn.Conv2d(3, 4, 3).eval())


def test_names_are_no_order(tmp_path: Path) -> None:
    """Inputs of one shape would change places without a word; a dictionary's names say which is which."""

    class Pair(nn.Module):
        def forward(self, x: dict[str, Tensor]) -> Tensor:
            return nn.functional.linear(x["first"] - 2 * x["second"], torch.eye(5))

    first, second = np.ones((1, 5), np.float32), np.zeros((1, 5), np.float32)
    np.savez(tmp_path / "a.npz", second=second, first=first)
    example = {"first": torch.zeros(1, 5), "second": torch.zeros(1, 5)}
    (batch,) = Arrays(tmp_path, (example,))
    assert batch[0]["first"].sum() == 5 and batch[0]["second"].sum() == 0
    with pytest.raises(EdgeqError, match=r"a\.npz: which input is which\? Its arrays are called 'second', 'first'"):
        list(Arrays(tmp_path, (torch.zeros(1, 5), torch.zeros(1, 5))))
    np.savez(tmp_path / "a.npz", first, second)
    (batch,) = Arrays(tmp_path, (torch.zeros(1, 5), torch.zeros(1, 5)))
    assert batch[0].sum() == 5 and batch[1].sum() == 0


def test_integers_do_not_wrap(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([[1, 2**32 + 7]]))
    with pytest.raises(EdgeqError, match=r"a\.npy: holds integers that int32 does not, as 4294967303"):
        list(Arrays(tmp_path, (torch.zeros(1, 2, dtype=torch.int32),)))
    (batch,) = Arrays(tmp_path, (torch.zeros(1, 2, dtype=torch.int64),))
    assert batch[0].tolist() == [[1, 2**32 + 7]]


def test_a_turned_bit_is_read_or_a_sentence(tmp_path: Path) -> None:
    """Whatever part of the file it lies in."""
    path = tmp_path / "a.npz"
    np.savez_compressed(path, np.arange(40, dtype=np.float32).reshape(1, 40))
    whole, chance, said = path.read_bytes(), random.Random(0), 0
    for _ in range(600):
        at = chance.randrange(len(whole))
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << chance.randrange(8)]) + whole[at + 1 :])
        try:
            list(Arrays(tmp_path, (torch.zeros(1, 40),)))
        except EdgeqError:
            said += 1
    assert said > 300


def test_arrays_that_are_too_few_are_a_sentence(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", np.zeros((1, 3, 8, 8), np.float32))
    with pytest.raises(EdgeqError, match=r"a\.npz: holds 1 arrays, and the network takes 2"):
        quantized(tmp_path, [(torch.zeros(1, 3, 8, 8), torch.zeros(1, 5))], Two().eval())


def test_one_file_of_all_is_parted_into_batches(tmp_path: Path) -> None:
    """By the example's first axis, in order, each input of its own size; other numbers of batches are a sentence."""
    random = np.random.default_rng(0)
    image, vector = (random.normal(size=shape).astype(np.float32) for shape in ((6, 3, 8, 8), (3, 5)))
    example = (torch.zeros(2, 3, 8, 8), torch.zeros(1, 5))
    np.savez(tmp_path / "all.npz", image, vector)
    batches = list(Arrays(tmp_path / "all.npz", example))
    assert len(batches) == 3
    assert all(np.array_equal(x.numpy(), image[2 * i : 2 * i + 2]) for i, (x, _) in enumerate(batches))
    assert all(np.array_equal(y.numpy(), vector[i : i + 1]) for i, (_, y) in enumerate(batches))
    np.save(tmp_path / "one.npy", vector)
    assert [x.shape for (x,) in Arrays(tmp_path / "one.npy", (torch.zeros(1, 5),))] == [(1, 5)] * 3
    np.savez(tmp_path / "all.npz", image, vector[:2])
    with pytest.raises(
        EdgeqError, match=r"all.npz: holds 3 batches of 'arr_0', 2 batches of 'arr_1': save as many of each"
    ):
        list(Arrays(tmp_path / "all.npz", example))
    np.savez(tmp_path / "all.npz", image[:5], vector)
    with pytest.raises(EdgeqError, match=r"shape \(5, 3, 8, 8\), and the network takes \(2, 3, 8, 8\)"):
        list(Arrays(tmp_path / "all.npz", example))
