"""What a .pt2 file may hold before torch.export loads it: plain tensors and a graph of registered operators.

torch.export.load unpickles what an archive asks it to, calls whatever a node's target names, and evaluates the text of guards
and symbolic sizes (torch/export/pt2_archive/_package.py, torch/_export/serde/serialize.py of 2.13). A program that edgeq wrote
has none of these, so that one which has is refused unread.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor
from torch._ops import OpOverload
from torch.export.pt2_archive._package import PT2ArchiveReader

GETITEM = "_operator.getitem"  # picks one of an operator's outputs
CONTAINERS = (None, "builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict")
FORBIDDEN = {  # key in the graph's JSON → what it would make torch do
    "expr_str": "evaluates the text of a size",
    "as_expr": "evaluates the text of a size",
    "as_custom_obj": "holds an object of its own",
    "as_graph": "holds a graph inside its graph",
}


class Unsound(ValueError):
    """What an archive holds beside tensors and a graph."""


def check(path: Path) -> None:
    """Read the archive's index and graph, and nothing that torch would run.

    Raises:
        Unsound: it holds something else than tensors and registered operators. Others: it is no archive.
    """
    with PT2ArchiveReader(str(path)) as archive:
        names = archive.get_file_names()
        if len(set(names)) != len(names):
            raise Unsound("two files of one name")
        for name in names:
            _check_file(archive, name)


def _check_file(archive: Any, name: str) -> None:
    folder, _, last = name.rpartition("/")
    if folder == "models" and last.endswith(".json"):
        _check_graph(json.loads(archive.read_bytes(name)))
    elif folder in ("data/weights", "data/constants") and last.endswith("_config.json"):
        for tensor, row in json.loads(archive.read_bytes(name))["config"].items():
            if row["use_pickle"] or not str(row["path_name"]).startswith(("weight_", "tensor_")):
                raise Unsound(f"{tensor!r} is no plain tensor")
    elif folder == "data/sample_inputs":
        held = torch.load(io.BytesIO(archive.read_bytes(name)), weights_only=True)
        if not all(isinstance(leaf, (Tensor, int, float, bool, str, type(None))) for leaf in pytree.tree_leaves(held)):
            raise Unsound("its example inputs are no plain tensors")
    elif folder in ("data/weights", "data/constants"):
        if not last.startswith(("weight_", "tensor_")):
            raise Unsound(f"{name} is no plain tensor")
    elif folder not in ("", ".data"):
        raise Unsound(f"{name} is no part of a program")


def _check_graph(program: dict[str, Any]) -> None:
    if program.get("guards_code") or program.get("range_constraints"):
        raise Unsound("it evaluates guards")
    if program["graph_module"].get("treespec_namedtuple_fields"):
        raise Unsound("its inputs or outputs are of a class of its own")
    for key, value in _pairs(program):
        if key in FORBIDDEN:
            raise Unsound(f"it {FORBIDDEN[key]}")
        if key in ("in_spec", "out_spec") and value:
            for inner, kind in _pairs(json.loads(value)):
                if inner == "type" and kind not in CONTAINERS:
                    raise Unsound(f"its inputs or outputs are of the class {kind}")
        if key in ("target", "as_operator") and isinstance(value, str) and value != GETITEM:
            operator: Any = torch
            for part in value.split(".")[1:]:
                operator = getattr(operator, part, None)
            if not value.startswith("torch.ops.") or not isinstance(operator, OpOverload):
                raise Unsound(f"{value} is no registered operator")


def _pairs(tree: Any) -> Iterator[tuple[str, Any]]:
    """Every key of every dictionary in `tree`, and its value."""
    waiting = [tree]
    while waiting:
        held = waiting.pop()
        if isinstance(held, dict):
            yield from held.items()
            waiting.extend(held.values())
        elif isinstance(held, list):
            waiting.extend(held)
