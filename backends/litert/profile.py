"""Latency of a `.tflite` file on this host: in total, and per operator by LiteRT's C profiler, or by prefixes of the graph."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
from torch import Tensor

from edgeq.backends.alignment import align
from edgeq.backends.litert.benchmark_model import Node
from edgeq.backends.litert.flatbuffer import pack, schema
from edgeq.backends.litert.profiler import Happened, Profiled, available, merged
from edgeq.backends.litert.run import feed, interpreter
from edgeq.backends.timing import Event, Run, alternate, events_of, overhead, report, times, watched
from edgeq.graph.quiet import quiet
from edgeq.spec import Artifact, LatencyReport, OpLatency, RowKind

METHOD = "litert profiler"
PREFIXES = "prefixes"
DELEGATES = ("TfLiteXNNPackDelegate", "DELEGATE")  # in benchmark_model's table, the second until 2019


def profile(
    artifact: Artifact, inputs: Sequence[Tensor], *, threads: int = 1, warmup: int = 5, runs: int = 30
) -> LatencyReport:
    """Time `runs` invocations of LiteRT's default kernels (XNNPACK takes what it can) after `warmup`.

    Rows by the profiler of LiteRT's compiled model, in turns with the interpreter that is timed: the same kernels, of the
    same package. Where that does not work, as in a release of LiteRT whose profiler is not known here, a row is what one
    operator adds to the median time of the graph up to it, never below 0 (the delegate may fuse across the end of a prefix).

    Raises:
        EdgeqError: see edgeq.backends.litert.run.interpreter.
    """
    engine = interpreter(artifact.path, threads=threads)
    feed(artifact.path, engine, inputs)
    try:
        if not available():
            raise RuntimeError("no profiler that is known here")
        spent, rows = _profiled(artifact, engine, threads, warmup, runs)
        method = METHOD
    except RuntimeError:  # or LiteRT's compiled model refuses what its interpreter takes
        spent, method = watched(engine.invoke, warmup, runs), PREFIXES
        rows = _prefixes(artifact, inputs, threads, warmup, runs)
    return report(
        [run.ms for run in spent],
        rows,
        backend="litert",
        versions={"ai-edge-litert": version("ai-edge-litert")},
        threads=threads,
        warmup=warmup,
        method=method,
        waited=[run.waited for run in spent] if threads == 1 else (),
    )


def _profiled(
    artifact: Artifact, engine: Any, threads: int, warmup: int, runs: int
) -> tuple[list[Run], list[OpLatency]]:
    with quiet():  # LiteRT's C code logs to stderr
        profiled = Profiled(artifact.path, threads)
    try:
        for detail in engine.get_input_details():
            profiled.set_input(detail["name"], engine.get_tensor(detail["index"]).tobytes())
        seen: list[list[Happened]]
        spent, seen = alternate(engine.invoke, profiled.run, warmup, runs)
    finally:
        with quiet():
            profiled.close()
    return spent, place(artifact, events_of({"events": merged(seen)}))


def place(artifact: Artifact, events: Sequence[Event]) -> list[OpLatency]:
    """Events of a traced run as rows: each operator under its name in the coverage table, with all its layers.

    LiteRT counts whole microseconds, rounded down; what is lost is in the row of overhead.
    """
    data = artifact.path.read_bytes()
    names, types, reads, writes = _operators(data)
    layers = {row.name: row.layers for row in artifact.coverage}
    kernels = {e.instruction for e in events if e.kind == "kernel"}
    parts = _parts([i not in kernels for i in range(len(names))], reads, writes)
    pieces: dict[int, list[Event]] = defaultdict(list)
    for event in events:
        if event.kind == "delegated":
            pieces[event.instruction or 0].append(event)
    if len(parts) != len(pieces):  # cut by rules unknown here: in the file's order, as nearly all networks are
        parts = [[i for i in range(len(names)) if i not in kernels]]
        pieces = {min(pieces, default=0): [e for piece in pieces.values() for e in piece]}
    inside = dict(zip(pieces, parts, strict=True))
    rows: list[OpLatency] = []
    for event in events:
        at = event.instruction
        if event.kind == "kernel" and at is not None and at < len(names):
            rows.append(OpLatency(names[at], 0.0, layers.get(names[at], ()), run_ms=event.ms))
        elif event.kind == "delegated" and (piece := pieces.pop(at or 0, None)):
            here = inside[at or 0]
            rows += _delegated(piece, [names[i] for i in here], [types[i] for i in here], layers)
    steps = [e for e in events if e.kind in ("kernel", "delegated")]
    return rows + overhead("delegate and interpreter overhead", [e for e in events if e.kind == "runtime"], steps)


def rows_of(artifact: Artifact, nodes: Sequence[Node]) -> list[OpLatency]:
    """The table of `benchmark_model` as rows; each of its numbers is a mean over runs.

    A program too old to look into XNNPACK gives the delegate as one row, which then names every layer it computes.
    """
    names, *_ = _operators(artifact.path.read_bytes())
    layers = {row.name: row.layers for row in artifact.coverage}
    whole = [n for n in nodes if n.kind in DELEGATES]
    own = {n: i for n in nodes if n not in whole and (i := n.operator(names)) is not None}
    inside = any(n.delegated for n in nodes)
    events = [
        Event(n.kind, "delegated" if n.delegated else "kernel", (n.ms,), 0 if n.delegated else own[n])
        for n in nodes
        if n.delegated or n in own
    ]
    rows = place(artifact, events) if inside or not whole else _kernels(events, names, layers)
    for node in nodes:
        if node in whole and not inside:
            taken = [key for i, name in enumerate(names) if i not in own.values() for key in layers.get(name, ())]
            rows.append(OpLatency(node.kind, 0.0, tuple(dict.fromkeys(taken)), run_ms=(node.ms,)))
        elif node not in whole and not node.delegated and node not in own:
            rows.append(OpLatency(node.kind, 0.0, kind="overhead", run_ms=(node.ms,)))
    return rows


def _kernels(events: Sequence[Event], names: Sequence[str], layers: dict[str, tuple[str, ...]]) -> list[OpLatency]:
    """The interpreter's own kernels."""
    called = [names[e.instruction or 0] for e in events]
    return [OpLatency(n, 0.0, layers.get(n, ()), run_ms=e.ms) for n, e in zip(called, events, strict=True)]


def _operators(data: bytes) -> tuple[list[str], list[str], list[set[int]], list[set[int]]]:
    """Of each operator of the file: name (of its first output), type, and the tensors it reads and writes."""
    s = schema()
    model = s.ModelT.InitFromPackedBuf(data, 0)
    graph = model.subgraphs[0]
    known = {value: name for name, value in vars(s.BuiltinOperator).items() if isinstance(value, int)}
    names = [graph.tensors[int(op.outputs[0])].name.decode() for op in graph.operators]
    types = [known[_code(model.operatorCodes[op.opcodeIndex])] for op in graph.operators]
    made = {int(t) for op in graph.operators for t in op.outputs}
    reads = [{int(t) for t in op.inputs} & made for op in graph.operators]
    return names, types, reads, [{int(t) for t in op.outputs} for op in graph.operators]


def _code(operator: Any) -> int:
    """Its builtin code: in the old field, of one byte, where it fits."""
    return max(int(operator.builtinCode), int(operator.deprecatedBuiltinCode))


def _parts(delegated: Sequence[bool], reads: Sequence[set[int]], writes: Sequence[set[int]]) -> list[list[int]]:
    """Operators of each piece that a delegate gets, as PartitionGraphIntoIndependentNodeSubsets of tflite cuts them.

    In turns all that can run of one sort, delegated or not, until nothing is left.
    """
    left = list(range(len(reads)))
    unmade = {t for made in writes for t in made}
    parts = []
    while left:
        sort, part = None, []
        while True:  # one pass in order may make more operators ready
            taken = []
            for i in left:
                if not reads[i] & unmade and sort in (None, delegated[i]):
                    sort = delegated[i]
                    unmade -= writes[i]
                    taken.append(i)
            if not taken:
                break
            part += taken
            left = [i for i in left if i not in set(taken)]
        if sort is None:
            break  # a cycle, which no file has
        if sort:
            parts.append(sorted(part))
    return parts


def _delegated(
    events: Sequence[Event], names: Sequence[str], types: Sequence[str], layers: dict[str, tuple[str, ...]]
) -> list[OpLatency]:
    rows = []
    for event, at in zip(events, align(types, [e.name for e in events]), strict=True):
        found = tuple(dict.fromkeys(key for i in at for key in layers.get(names[i], ())))
        kind: RowKind = "operator" if found else "inserted"
        rows.append(OpLatency(names[at[0]] if at else event.name, 0.0, found, kind, event.ms))
    return rows


def _prefixes(artifact: Artifact, inputs: Sequence[Tensor], threads: int, warmup: int, runs: int) -> list[OpLatency]:
    model = schema().ModelT.InitFromPackedBuf(artifact.path.read_bytes(), 0)
    model.signatureDefs = None  # they name the whole graph's outputs
    graph = model.subgraphs[0]
    operators = list(graph.operators)
    layers = {row.name: row.layers for row in artifact.coverage}
    rows, before = [], 0.0
    for count, operator in enumerate(operators, 1):
        graph.operators, graph.outputs = operators[:count], operator.outputs
        engine = interpreter(artifact.path, threads=threads, data=pack(model))
        feed(artifact.path, engine, inputs)
        so_far = float(np.median(times(engine.invoke, warmup, runs)))
        name = graph.tensors[int(operator.outputs[0])].name.decode()
        rows.append(OpLatency(name, max(0.0, so_far - before), layers.get(name, ())))
        before = max(before, so_far)
    return rows
