"""Decide where a network is cut into integers: which operators compute in integers, which tensors share a scale.

Driven by the target's table and the plan alone. The result is data that calibration fills with numbers and
`edgeq.graph.convert` turns into quantize and dequantize nodes.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from operator import getitem

from torch.fx import Node

from edgeq.graph.capture import Captured
from edgeq.graph.curves import Curve, curves
from edgeq.graph.kinds import KINDS, named, role_of, weights_of
from edgeq.graph.limits import LIMITS
from edgeq.graph.ops import OPERATORS, data_inputs, integral, kind_of, node_arg, value
from edgeq.spec import EdgeqError, Grid, OpSupport, Precision, QParams, QuantPlan, Target, precision

HALVES = named("layer", "product")  # what float16 makes faster; everything between them stays float32
FLOAT_INPUT = "its input is computed in float, so quantizing it would cost accuracy and save nothing"
Apart = frozenset[tuple[str, Node]]  # (layer key, input)


@dataclass(frozen=True, slots=True)
class Group:
    """One operator (with its fused activation) that computes from integers to integers.

    node: the operator; output: the node whose value is quantized (the activation where one is fused).
    curve: of a curve, all its operators, of which `node` and `output` are the last.
    """

    key: str
    kind: str
    node: Node
    output: Node
    inputs: tuple[Node, ...]
    precision: Precision
    support: OpSupport
    curve: tuple[Node, ...] = ()

    @property
    def nodes(self) -> tuple[Node, ...]:
        """All that it computes, in order."""
        return self.curve or tuple(dict.fromkeys((self.node, self.output)))


@dataclass(slots=True)
class Tensors:
    """Quantized tensors joined into sets that share scale and zero point (union-find over nodes)."""

    parent: dict[Node, Node] = field(default_factory=dict)
    specs: dict[Node, Grid] = field(default_factory=dict)
    fixed: dict[Node, QParams] = field(default_factory=dict)
    derived: set[Node] = field(default_factory=set)

    def add(self, node: Node, spec: Grid, *, derived: bool = False) -> None:
        """Make `node` a quantized tensor; `derived` ones hold values some member of their set holds already."""
        self.parent.setdefault(node, node)
        root = self.find(node)
        known = self.specs.get(root)
        self.specs[root] = spec if known is None or spec.bits > known.bits else known
        if derived:
            self.derived.add(node)

    def find(self, node: Node) -> Node:
        """The representative of the set `node` lies in."""
        while self.parent[node] is not node:
            node = self.parent[node]
        return node

    def key(self, node: Node) -> str:
        """The name by which the numbers of the set that `node` lies in are kept (edgeq.graph.numbers)."""
        return self.find(node).name

    def join(self, a: Node, b: Node) -> None:
        """Let the sets of `a` and `b` share one scale; the wider spec and any fixed numbers stay."""
        first, second = self.find(a), self.find(b)
        if first is second:
            return
        self.parent[second] = first
        spec = self.specs.pop(second)
        if spec.bits > self.specs[first].bits:
            self.specs[first] = spec
        if second in self.fixed:
            self.fixed[first] = self.fixed.pop(second)

    def unjoinable(self, nodes: tuple[Node, ...]) -> set[Node]:
        """Those of `nodes` whose numbers are fixed, where one set of all of them would hold others beside."""
        numbers = {n: self.fixed.get(self.find(n)) for n in nodes}
        return {n for n, fixed in numbers.items() if fixed is not None} if len(set(numbers.values())) > 1 else set()

    def sets(self) -> dict[Node, list[Node]]:
        """Representative → the members whose values must be observed."""
        found: dict[Node, list[Node]] = {}
        for node in self.parent:
            members = found.setdefault(self.find(node), [])
            if node not in self.derived:
                members.append(node)
        return found


@dataclass(frozen=True, slots=True)
class Annotation:
    """Integer operators, the tensors between them, and why every other operator stays in float.

    weight_only: layer key → (node, precision) of operators whose weights alone are quantized.
    halves: operators that compute in float16. islands: layer key → reason.
    apart: (layer key, input) where the layer shares one scale among its tensors, and this input, which keeps its own, is
        requantized on the way in. kept: what `annotate` was told to keep in float beside the plan's layers.
    """

    groups: tuple[Group, ...]
    tensors: Tensors
    weight_only: dict[str, tuple[Node, Precision]]
    halves: tuple[Node, ...]
    islands: dict[str, str]
    apart: Apart = frozenset()
    kept: Mapping[str, str] = field(default_factory=dict)


def default_plan(captured: Captured, target: Target, recipe: str, name: str = "w8a8") -> QuantPlan:
    """Every operator the target computes as integers in precision `name`, everything else in fp32."""
    layers = {}
    nodes = {n.name: n for n in captured.module.graph.nodes}
    wanted = precision(name)
    chained = {n for c in curves(captured.module.graph, lambda n: True).values() for n in c.nodes}
    for node_name, key in captured.keys.items():
        kind = None if integral(nodes[node_name]) else kind_of(nodes[node_name])
        kind = "curve" if kind is None and nodes[node_name] in chained else kind
        row = target.support(kind)
        if wanted.dtype == "float16":
            allowed = kind in HALVES
        else:  # how many bits is for annotate to refuse
            allowed = row is not None and row.computes(integers=wanted.activation is not None)
            allowed = allowed and not leftover(nodes[node_name], wanted)
        layers[key] = name if allowed else "fp32"
    return QuantPlan(target.name, recipe, layers)


def followed(captured: Captured, target: Target, plan: QuantPlan, name: str = "w8a8") -> QuantPlan:
    """What a person's `plan` means for this network: a line for every layer.

    A line of it names a layer, or all whose key, module path or a module around it a pattern matches, as a shell would; the last
    line that does wins. A pattern leaves what cannot compute in its precision as it is. The other layers get the plan's default,
    else precision `name`, as far as the target computes them in it.

    Raises:
        EdgeqError: a line matches no layer, or no layer that could compute in what it asks for.
    """
    layers = default_plan(captured, target, plan.recipe, plan.default or name).layers
    for line, wanted in plan.layers.items():
        if line in layers:
            layers[line] = wanted
            continue
        found = matching(layers, line)
        if not found:
            raise EdgeqError(f"plan: unknown layer {line!r}{_near(layers, line)}")
        able = default_plan(captured, target, plan.recipe, wanted).layers
        taken = [key for key in found if wanted == "fp32" or able[key] == wanted]
        if not taken:
            raise EdgeqError(
                f"plan: {line!r} asks for {wanted}, and target {target.name} computes no {found[0]!r} or other of it so"
            )
        layers.update(dict.fromkeys(taken, wanted))
    return dataclasses.replace(plan, layers=layers, default=None)


def named_layers(plan: QuantPlan, given: QuantPlan | None) -> frozenset[str]:
    """The layers of `plan` that a person's plan names."""
    lines = () if given is None else given.layers
    return frozenset(key for line in lines for key in ([line] if line in plan.layers else matching(plan.layers, line)))


def matching(layers: Mapping[str, str], pattern: str) -> list[str]:
    """Layer keys that match a pattern themselves, by their module path or by a module around it."""
    ways = (pattern, f"{pattern}.*", f"{pattern}/*")
    return [key for key in layers if any(fnmatchcase(name, w) for name in (key, key.rpartition("/")[0]) for w in ways)]


def in_float(plan: QuantPlan, patterns: Sequence[str]) -> QuantPlan:
    """`plan` with every layer in fp32 whose key, module path or a module around it matches one of `patterns`, as in a shell.

    Raises:
        EdgeqError: a pattern matches nothing.
    """
    kept: set[str] = set()
    for pattern in (patterns,) if isinstance(patterns, str) else patterns:
        found = matching(plan.layers, pattern)
        if not found:
            names = [*plan.layers, *(key.rpartition("/")[0] for key in plan.layers)]
            near = difflib.get_close_matches(pattern, names, 3, 0.3) or sorted(plan.layers)[:3]
            raise EdgeqError(f"keep_float: no layer matches {pattern!r}; near it are {', '.join(map(repr, near))}")
        kept.update(found)
    return dataclasses.replace(plan, layers={k: "fp32" if k in kept else v for k, v in plan.layers.items()})


def annotate(
    captured: Captured, target: Target, plan: QuantPlan, kept: Mapping[str, str] = {}, apart: Apart = frozenset()
) -> Annotation:
    """Follow `plan` on `captured` as far as `target` can.

    kept: layer key → why it stays in float whatever the plan says. apart: inputs that keep a scale of their own.

    Raises:
        EdgeqError: the plan names an unknown layer, or a precision the target's kernels do not compute.
    """
    _check_keys(captured, plan)
    graph = captured.module.graph
    groups: list[Group] = []
    by_output: dict[Node, Group] = {}
    fused: set[Node] = set()
    weight_only: dict[str, tuple[Node, Precision]] = {}
    halves: list[Node] = []
    islands: dict[str, str] = {}
    chains = _chains(captured, target, plan)
    fused |= {n for chain in chains.values() for n in chain.nodes[:-1]}
    entering = _entering(captured, target, plan, kept)
    for node in graph.nodes:
        if node.op != "call_function" or node.target is getitem or node in fused or integral(node):
            continue
        if node in chains:
            made = _curve(chains[node], captured, target, plan, kept, by_output)
            if isinstance(made, str):
                islands.update((captured.keys[n.name], made) for n in chains[node].nodes)
            else:
                groups.append(made)
                by_output[node] = made
            continue
        key, kind = captured.keys[node.name], kind_of(node)
        wanted = precision(plan.layers.get(key, "fp32"))
        if wanted.dtype == "float16":
            _check_half(key, kind, target)
            halves.append(node)
            continue
        if wanted.weight is None:
            islands[key] = _why_float(kind, target, key in plan.layers, node.target in OPERATORS)
            continue
        if wanted.activation is None:
            _check_weight_only(key, node, wanted, target)
            weight_only[key] = (node, wanted)
            continue
        support = _support(key, kind, wanted, target)
        assert kind is not None  # it has a row
        reason = kept.get(key) or _obstacle(node, kind, support, by_output, entering)
        if reason is not None:
            islands[key] = reason
            continue
        output = _fused_output(node, support)
        if output is not node:
            fused.add(output)
        group = Group(key, kind, node, output, data_inputs(node, kind), wanted, support)
        groups.append(group)
        by_output[output] = group
    groups = _prune(captured, groups, islands)
    tensors, apart = _tensors(groups, apart)
    return Annotation(tuple(groups), tensors, weight_only, tuple(halves), islands, apart, kept)


def _chains(captured: Captured, target: Target, plan: QuantPlan) -> dict[Node, Curve]:
    """Last operator → curve of those that the plan has in integers, and that are no kind of their own."""

    def asked(node: Node) -> str | None:
        name = plan.layers.get(captured.keys.get(node.name, ""), "fp32")
        return None if precision(name).activation is None else name

    if target.support("curve") is None:
        return {}
    found = curves(captured.module.graph, asked)
    return {n: c for n, c in found.items() if len(c.nodes) > 1 or kind_of(n) is None}


def _curve(
    curve: Curve,
    captured: Captured,
    target: Target,
    plan: QuantPlan,
    kept: Mapping[str, str],
    integers: Mapping[Node, Group],
) -> Group | str:
    """A curve between two grids, or why it stays in float."""
    last = curve.nodes[-1]
    key = captured.keys[last.name]
    if key in kept or curve.source not in integers:
        return kept.get(key, FLOAT_INPUT)
    wanted = precision(plan.layers[key])
    return Group(key, "curve", last, last, (curve.source,), wanted, _support(key, "curve", wanted, target), curve.nodes)


def _support(key: str, kind: str | None, wanted: Precision, target: Target) -> OpSupport:
    """The target's row for a layer that is to compute in integers.

    Raises:
        EdgeqError: it has none, or none for this precision.
    """
    row = target.support(kind)
    if row is None:
        raise EdgeqError(
            f"plan: layer {key!r} asks for {wanted.name}, but target {target.name} has no integer kernel for it; "
            "set it to fp32"
        )
    if target.takes(kind, wanted) is None:
        raise EdgeqError(
            f"plan: layer {key!r} asks for {wanted.name}, but target {target.name} computes {kind} in "
            f"{', '.join(row.precisions)}; change the layer in plan.json or use target simulated"
        )
    return row


def _entering(captured: Captured, target: Target, plan: QuantPlan, kept: Mapping[str, str]) -> set[Node]:
    """Moves that give their values only to what quantizes its input anyway: it may as well be quantized in front of them."""
    found: set[Node] = set()
    for node in reversed(captured.module.graph.nodes):
        if role_of(kind_of(node)) != "move" or not node.users:
            continue
        for user in node.users:
            key, kind = captured.keys.get(user.name, ""), kind_of(user)
            row, wanted = target.support(kind), precision(plan.layers.get(key, "fp32"))
            if kind is None or row is None or wanted.activation is None or key in kept:
                break
            if not KINDS[kind].enters and user not in found:
                break
            if node not in data_inputs(user, kind) or any(LIMITS[limit](user) for limit in row.limits):
                break
        else:
            found.add(node)
    return found


def _obstacle(
    node: Node, kind: str, support: OpSupport, integers: Mapping[Node, Group], entering: set[Node]
) -> str | None:
    """Why this very operator cannot or should not compute in integers; None where it can."""
    for limit in support.limits:
        if (reason := LIMITS[limit](node)) is not None:
            return reason
    sources = data_inputs(node, kind)
    if not sources:
        return "it reads no tensor"
    if any(not value(s).is_floating_point() for s in sources):
        return "its input is no float tensor"
    if any(value(tensor).dim() == 0 for tensor in (*sources, node)):
        return "it reads or makes a number without axes, which integer kernels do not take"
    if role_of(kind) == "layer":
        at = weights_of(kind)
        weight, bias = node.args[at.weight], node_arg(node, at.bias, None)
        if not isinstance(weight, Node) or weight.op != "get_attr":
            return "its weight is computed by the network, not constant"
        if isinstance(bias, Node) and bias.op != "get_attr":
            return "its bias is computed by the network, not constant"
    elif any(s.op == "get_attr" for s in sources):
        return "it reads a constant"
    elif (
        not KINDS[kind].enters
        and node not in entering
        and any(s not in integers and s.op != "placeholder" for s in sources)
    ):
        return FLOAT_INPUT
    return None


def _fused_output(node: Node, support: OpSupport) -> Node:
    if len(node.users) == 1:
        (user,) = node.users
        kind = kind_of(user)
        if role_of(kind) == "clip" and kind in support.fused and user.args[0] is node:
            return user
    return node


def _prune(captured: Captured, groups: list[Group], islands: dict[str, str]) -> list[Group]:
    """Leave out what gains nothing: data movement between the network's inputs and float operators, and curves of which
    nobody computes anything in integers."""
    kept = list(groups)
    changed = True
    while changed:
        served = _served(kept)
        alone = [g for g in kept if role_of(g.kind) == "curve" and g.output not in served]
        for group in alone:
            islands.update(dict.fromkeys(_keys(group, captured), "nothing computes in integers with what it gives"))
            kept.remove(group)
        reading = {i for g in kept for i in g.inputs}
        outputs = {g.output for g in kept}
        idle = [
            g
            for g in kept
            if g.output not in reading
            and not any(i in outputs for i in g.inputs)
            and role_of(g.kind) in ("move", "pick")
        ]
        changed = bool(idle or alone)
        for group in idle:
            islands[group.key] = "it moves float data between float operators"
            kept.remove(group)
    return kept


def _served(groups: list[Group]) -> set[Node]:
    """Tensors that an operator computes with in integers, however they are moved, joined, clipped or bent before it does."""
    found: set[Node] = set()
    for group in reversed(groups):
        if role_of(group.kind) not in ("move", "pick", "join", "clip", "curve") or group.output in found:
            found.update(group.inputs)
    return found


def _keys(group: Group, captured: Captured) -> tuple[str, ...]:
    return tuple(captured.keys[n.name] for n in group.nodes if n.name in captured.keys)


def _tensors(groups: list[Group], apart: Apart) -> tuple[Tensors, Apart]:
    """The sets, and which inputs are requantized into one: those of `apart`, and fixed ones that others stand beside."""
    tensors, found = Tensors(), set()
    made = {group.output for group in groups}
    for group in groups:
        spec = group.precision.activation
        assert spec is not None
        for source in group.inputs:
            if source not in made:  # no layer answers with it: the widest of its readers says how many bits it has
                tensors.add(source, spec)
        shared = group.support.shared_scale
        own = tensors.unjoinable(group.inputs) if shared else set()
        own |= {source for source in group.inputs if (group.key, source) in apart}
        tensors.add(group.output, spec, derived=shared and not own)
        for source in group.inputs if shared else ():
            if source in own:
                found.add((group.key, source))
            else:
                tensors.join(group.output, source)
        if group.support.fixed_output is not None:
            scale, zero_point = group.support.fixed_output
            tensors.fixed[tensors.find(group.output)] = QParams((scale,), (zero_point,), spec.qmin, spec.qmax)
    return tensors, frozenset(found)


def _why_float(kind: str | None, target: Target, planned: bool, known_target: bool) -> str:
    if kind is None and known_target:
        return "it has no integer form with these operands (a constant, an alpha, an axis or a size among them)"
    if target.support(kind) is None:
        return f"target {target.name} has no integer kernel for it"
    return "the plan keeps it in fp32" if planned else "it is not in the plan"


def _check_keys(captured: Captured, plan: QuantPlan) -> None:
    known = set(captured.keys.values())
    unknown = [key for key in plan.layers if key not in known]
    if unknown:
        raise EdgeqError(f"plan: unknown layer {unknown[0]!r}{_near(known, unknown[0])}")


def _near(known: Iterable[str], name: str) -> str:
    """A hint at what `name` may have meant."""
    near = difflib.get_close_matches(name, list(known), 1)
    return f"; did you mean {near[0]!r}?" if near else f"; the network has layers such as {sorted(known)[0]!r}"


def _check_half(key: str, kind: str | None, target: Target) -> None:
    if kind not in HALVES:
        raise EdgeqError(
            f"plan: layer {key!r} asks for fp16, which pays for {', '.join(sorted(HALVES))} only; use fp32"
        )
    if "fp16" not in target.floats:
        raise EdgeqError(f"plan: layer {key!r} asks for fp16, which target {target.name} does not compute; use fp32")


def leftover(node: Node, wanted: Precision) -> int:
    """How many of a layer's inputs are left where its weights are cut into groups."""
    if wanted.weight is None or wanted.weight.tile.over != "group":
        return 0
    at = weights_of(kind_of(node))
    return value(node.args[at.weight]).shape[1 - at.axis] % wanted.weight.tile.size


def _check_weight_only(key: str, node: Node, wanted: Precision, target: Target) -> None:
    kind = kind_of(node)
    if role_of(kind) != "layer":
        raise EdgeqError(
            f"plan: layer {key!r} asks for {wanted.name} (weights only), but it has no weights; set it to fp32"
        )
    if target.takes(kind, wanted) is None:
        raise EdgeqError(
            f"plan: layer {key!r} asks for {wanted.name}, but target {target.name} stores weight-only int8 for "
            f"{', '.join(target.weight_only) or 'no operator'}; use fp32 or w8a8"
        )
    if leftover(node, wanted):
        raise EdgeqError(
            f"plan: layer {key!r} asks for {wanted.name}, but its inputs are no multiple of the group; use another size or none"
        )
