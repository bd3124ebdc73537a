"""QDQ or float program → .pte with XNNPACK, and what became of every operator, read back from the file."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from operator import getitem
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from edgeq.backends.executorch.partition import partitioner
from edgeq.backends.executorch.pte import PteOp, executorch_package, read_pte
from edgeq.backends.executorch.rewrites import rewrite
from edgeq.graph.integer import DEQUANTIZE_CHANNEL, members, read
from edgeq.graph.kinds import role_of
from edgeq.graph.ops import kind_of
from edgeq.graph.quiet import quiet
from edgeq.spec import Artifact, EdgeqError, OpPlacement, Status

TAG = "edgeq_origin"  # key in node.meta["custom"], which ExecuTorch carries through its passes
FLOATS = {"fp32", "fp16", "pfp32"}
HELPERS = {"StaticReshape", "StaticTranspose"}


def lower(
    program: ExportedProgram, folder: Path, *, name: str = "model", layers: Mapping[str, str] | None = None
) -> Artifact:
    """Write `folder`/`name`.pte; the same program gives the same bytes.

    layers: name of a node of `program` → layer key, for the coverage table.

    Raises:
        EdgeqError: executorch is missing, an integer operator breaks XNNPACK's rules, or ExecuTorch cannot lower it.
    """
    executorch_package()
    with quiet():
        module, origin = rewrite(program, layers or {})
        tagged = _export(module, origin, program)
        edge, data = _to_pte(tagged, name)
        ops = read_pte(data)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.pte"
    partial = path.with_suffix(".pte.partial")
    partial.write_bytes(data)
    partial.replace(path)
    kinds = {n.name: kind_of(n) or _short(str(n.target)) for n in program.graph.nodes if n.op == "call_function"}
    clips = {n.name: n.all_input_nodes[0].name for n in program.graph.nodes if role_of(kind_of(n)) == "clip"}
    coverage = _coverage(ops, edge, kinds, members(read(program, layers or {}), layers or {}), clips)
    return Artifact("executorch", path, coverage, _notes(ops, program))


def _export(
    module: torch.fx.GraphModule, origin: Mapping[torch.fx.Node, str], program: ExportedProgram
) -> ExportedProgram:
    """Export the rewritten module, each node tagged with the node of `program` whose work it does."""
    assert program.example_inputs is not None, "the program was saved without example inputs"
    args, kwargs = program.example_inputs
    exported = torch.export.export(module, args, kwargs, strict=False)
    before, after = ([n for n in g.nodes if n.op == "call_function"] for g in (module.graph, exported.graph))
    picks = [n for n in after if n.target is getitem]  # export adds those of results that nobody reads
    before, after = ([n for n in nodes if n.target is not getitem] for nodes in (before, after))
    assert [n.target for n in before] == [n.target for n in after], "torch.export changed the rewritten operators"
    for old, new in zip(before, after, strict=True):
        new.meta["custom"] = {TAG: origin[old]}
    for pick in picks:
        pick.meta["custom"] = pick.all_input_nodes[0].meta["custom"]
    return exported


def _to_pte(program: ExportedProgram, name: str) -> tuple[ExportedProgram, bytes]:
    from executorch.exir import EdgeCompileConfig, to_edge_transform_and_lower

    try:
        edge = to_edge_transform_and_lower(
            program, partitioner=[partitioner()], compile_config=EdgeCompileConfig(_check_ir_validity=False)
        )
        lowered = edge.exported_program()
        return lowered, bytes(edge.to_executorch().buffer)
    except Exception as error:  # ExecuTorch raises whatever its passes raise
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        known = {n.target for n in program.graph.nodes if n.op == "call_function" and kind_of(n) is None}
        others = sorted({t.name().removeprefix("aten::") for t in known if getattr(t, "namespace", "") == "aten"})
        raise EdgeqError(
            f"{name}: ExecuTorch cannot lower this program ({reason})"
            + (
                f"; of its operators edgeq knows no integer form of {', '.join(others)}, so look there first"
                if others
                else ""
            )
        ) from error


# ---------------------------------------------------------------- coverage


def _coverage(
    ops: tuple[PteOp, ...],
    edge: ExportedProgram,
    kinds: Mapping[str, str],
    layers: Mapping[str, tuple[str, ...]],
    clips: Mapping[str, str],
) -> tuple[OpPlacement, ...]:
    """clips: activation → the node before it, in whose operator XNNPACK may compute it."""
    by_handle, kernels = _origins(edge)
    rows: list[OpPlacement] = []
    status: Status
    owned: dict[str, int] = {}  # node → its row
    for op in ops:
        if op.inserted:
            status = "float island" if FLOATS & {*op.reads, op.writes} else "integer"
            rows.append(OpPlacement(op.name, op.type, status, INSERTED[op.type], inserted=True))
            continue
        node = by_handle.get(op.handle or -1) if op.delegated else _next_of(kernels, op.type)
        kind = kinds.get(node or "", op.type.removeprefix("aten::"))
        if op.type in HELPERS and kind not in ("reshape", "permute"):
            continue  # a change of shape inside a rewritten operator, whose own row follows
        status, reason = _judge(op)
        owned.setdefault(node or "", len(rows))
        rows.append(OpPlacement(op.name, kind, status, reason, layers.get(node or "", ())))
    for clip, before in clips.items():
        if clip not in owned and before in owned:
            row = rows[owned[before]]
            keys = tuple(dict.fromkeys((*row.layers, *layers.get(clip, ()))))
            rows[owned[before]] = dataclasses.replace(row, layers=keys)
    return tuple(rows)


INSERTED = {
    "StaticTranspose": "puts axes into XNNPACK's order",
    "Convert": "converts between integers and float at their edge",
}


def _next_of(kernels: list[tuple[str, str | None]], kernel: str) -> str | None:
    """Take the first of `kernels` called `kernel` out, those before it too (they need no instruction); its node."""
    for position, (name, tag) in enumerate(kernels):
        if name == kernel:
            del kernels[: position + 1]
            return tag
    return None


def _judge(op: PteOp) -> tuple[Status, str]:
    if not op.delegated:
        status: Status = "float island" if FLOATS & {*op.reads} else "integer"
        return status, "not delegated: ExecuTorch's own kernel runs it between two calls of XNNPACK"
    if not FLOATS & {*op.reads, op.writes}:
        return "integer", ""
    if op.weight is not None and op.weight not in FLOATS:
        return "float island", "weights stay int8 in the file; XNNPACK multiplies them by float activations"
    return "float island", "in the delegate, computed in float"


def _origins(edge: ExportedProgram) -> tuple[dict[int, str], list[tuple[str, str | None]]]:
    """Debug handle → node of the program, for delegated operators; (kernel, node) of the others, in order."""
    handles: dict[int, str] = {}
    kernels: list[tuple[str, str | None]] = []
    for node in edge.graph_module.graph.nodes:
        if node.op == "get_attr":
            inner = getattr(edge.graph_module, str(node.target))
            for part in inner.original_module.graph.nodes:
                if (tag := _tag(part)) is not None and isinstance(part.meta.get("debug_handle"), int):
                    handles[part.meta["debug_handle"]] = tag
        elif node.op == "call_function" and "delegate" not in str(node.target) and "getitem" not in str(node.target):
            parts = str(node.target).split(".")  # `aten.mean.dim`: the kernel is aten::mean
            kernels.append(("::".join(parts[:2]), _tag(node)))
    return handles, kernels


def _tag(node: Any) -> str | None:
    return (node.meta.get("custom") or {}).get(TAG)


def _short(target: str) -> str:
    """`layer_norm` of `aten.layer_norm.default`."""
    parts = target.split(".")
    return parts[1] if len(parts) > 1 else target


def _notes(ops: tuple[PteOp, ...], program: ExportedProgram) -> tuple[str, ...]:
    inserted = [op for op in ops if op.inserted and op.type == "StaticTranspose"]
    notes = []
    calls = len({op.instruction for op in ops if op.delegated})
    if calls > 1:
        notes.append(f"XNNPACK runs in {calls} pieces, because operators between them are not delegated")
    if inserted:
        notes.append(f"{len(inserted)} transposes between NCHW and XNNPACK's NHWC were inserted")
    wanted = sum(n.target is DEQUANTIZE_CHANNEL for n in program.graph.nodes)
    stored = sum(op.weight is not None and op.weight not in FLOATS for op in ops)
    if wanted > stored:
        notes.append(
            f"{wanted - stored} operators with int8 weights and float activations are stored in float32: "
            "XNNPACK has no such kernel"
        )
    return tuple(notes)
