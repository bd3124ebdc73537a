"""Calibration batches from arrays: a folder of one file each, or one file of all; .npy for one input, .npz for several."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
import torch.utils._pytree as pytree
from torch import Tensor

from edgeq.spec import EdgeqError

KINDS: Final = (".npy", ".npz")


class Arrays:
    """Batches of the structure of `example`; iterable again and again, each file is read when it is its turn.

    Of one file of all, the arrays' first axis is that of examples, which are parted into batches as large as the example's.
    Of an .npz, arrays without names of their own (`numpy.savez(file, x, y)`) are the network's inputs in their order; those of a
    dictionary's inputs have its names. An array without the first axis of an input of one is taken as that one.

    Raises:
        EdgeqError: there is no such folder or file, or no such file in it; while iterating, a file that is damaged, or holds
            objects or arrays of other shapes or types than the network takes.
    """

    def __init__(self, path: Path, example: Any) -> None:
        """Look which files there are; nothing is read."""
        self.whole = path.is_file() and path.suffix in KINDS  # one file of all
        if not self.whole and not path.is_dir():
            raise EdgeqError(
                f"{path}: no such folder or file; --data takes one of .npy or .npz files, one for each batch, or one of these"
            )
        self.files = [path] if self.whole else sorted(found for found in path.iterdir() if found.suffix in KINDS)
        if not self.files:
            raise EdgeqError(f"{path}: holds no .npy or .npz files; save one for each batch, as numpy.save does")
        paths, self.spec = pytree.tree_flatten_with_path(example)
        self.wanted = [leaf for _, leaf in paths]
        self.names = [str(getattr(path[-1], "key", "")) if path else "" for path, _ in paths]

    def __iter__(self) -> Iterator[Any]:
        for path in self.files:
            held = _read(path)
            if len(held) != len(self.wanted):
                raise EdgeqError(
                    f"{path}: holds {len(held)} arrays, and the network takes {len(self.wanted)}: save them with numpy.savez, "
                    "in the order of example_inputs()"
                )
            inputs = [(name, held[name]) for name in self._in_order(path, held)]
            batches = self._parted(path, inputs) if self.whole else [[x for _, x in inputs]]
            for batch in batches:
                leaves = [
                    _fitted(path, name, x, wanted)
                    for (name, _), x, wanted in zip(inputs, batch, self.wanted, strict=True)
                ]
                yield pytree.tree_unflatten(leaves, self.spec)

    def _parted(
        self, path: Path, inputs: list[tuple[str, np.ndarray[Any, Any]]]
    ) -> Iterator[list[np.ndarray[Any, Any]]]:
        """The batches of one file of all; one alone where the arrays are of the example's own shapes.

        Raises:
            EdgeqError: the arrays hold different numbers of batches, or none of whole ones.
        """
        counts = {}
        for (name, x), wanted in zip(inputs, self.wanted, strict=True):
            size = wanted.shape[0] if isinstance(wanted, Tensor) and wanted.dim() else 0
            if not size or x.ndim != wanted.dim() or x.shape[0] % size:
                yield [x for _, x in inputs]  # which says how it does not fit
                return
            counts[name] = x.shape[0] // size
        if len(set(counts.values())) > 1 or 0 in counts.values():
            held = ", ".join(f"{count} batches of {name!r}" for name, count in counts.items())
            raise EdgeqError(f"{path}: holds {held}: save as many of each")
        parts = [np.split(x, counts[name]) for name, x in inputs]
        yield from (list(batch) for batch in zip(*parts, strict=True))

    def _in_order(self, path: Path, held: dict[str, np.ndarray[Any, Any]]) -> list[str]:
        """The names of a file's arrays in the order of the network's inputs."""
        unnamed = [f"arr_{index}" for index in range(len(held))]
        for names in (self.names, unnamed):
            if set(held) == set(names):
                return names
        if len(held) == 1:
            return list(held)
        raise EdgeqError(
            f"{path}: which input is which? Its arrays are called {', '.join(map(repr, held))}; save them without names, as "
            "numpy.savez(file, x, y), in the order of example_inputs()"
        )


def _read(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    try:
        with np.load(path, allow_pickle=False) if path.suffix == ".npz" else _Single(path) as held:
            return {name: held[name] for name in held}
    except Exception as error:  # numpy's, zipfile's and zlib's, by what is damaged
        raise EdgeqError(f"{path}: no whole file of plain numbers ({error}); save it again with numpy.save") from error


class _Single(dict[str, Any]):
    """An .npy file as an .npz of one."""

    def __init__(self, path: Path) -> None:
        super().__init__({"array": np.load(path, allow_pickle=False)})

    def __enter__(self) -> _Single:
        return self

    def __exit__(self, *error: object) -> None:
        pass


def _fitted(path: Path, name: str, x: np.ndarray[Any, Any], wanted: Any) -> Tensor:
    """An array as the tensor that the network takes."""
    if not isinstance(wanted, Tensor):
        raise EdgeqError(f"{path}: example_inputs() holds a {type(wanted).__name__}, which no array stands for")
    where, shape = f"{path}, array {name!r}" if path.suffix == ".npz" else f"{path}", tuple(wanted.shape)
    if x.shape == shape[1:] and shape[:1] == (1,):
        x = x[None]
    if x.shape != shape:
        raise EdgeqError(f"{where}: shape {x.shape}, and the network takes {shape}: save what example_inputs() fixed")
    if (x.dtype.kind == "f") is not wanted.is_floating_point() or x.dtype.kind not in "fiub":
        raise EdgeqError(
            f"{where}: holds {x.dtype}, and the network takes {str(wanted.dtype).removeprefix('torch.')}: save what the network "
            "is given, pixels scaled as it wants them"
        )
    made = torch.from_numpy(np.ascontiguousarray(x.astype(x.dtype.newbyteorder("=")))).to(wanted.dtype)
    if x.dtype.kind != "f" and not np.array_equal(made.numpy(), x):
        raise EdgeqError(
            f"{where}: holds integers that {str(wanted.dtype).removeprefix('torch.')} does not, as {x.max()}"
        )
    return made
