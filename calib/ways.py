"""Ways through an annotated network: which tensors hold the same integers, who computes of them, where they come and go."""

from __future__ import annotations

from collections.abc import Sequence

from torch.fx import Node

from edgeq.graph.annotate import Annotation, Group
from edgeq.graph.capture import Captured
from edgeq.graph.ops import kind_of


class Ways:
    """One annotation's operators, by what they read and make."""

    def __init__(self, captured: Captured, annotation: Annotation) -> None:
        """makers: quantized tensor → its operator. integer: nodes of integer operators. readers: tensor → operators."""
        self.annotation = annotation
        self.output = captured.module.graph.output_node()
        self.makers = {g.output: g for g in annotation.groups}
        self.integer = {n for g in annotation.groups for n in g.nodes}
        self.readers: dict[Node, list[Group]] = {}
        for group in annotation.groups:
            for source in dict.fromkeys(group.inputs):
                self.readers.setdefault(source, []).append(group)

    def entries(self) -> list[Node]:
        """Floats that are quantized: inputs of the network, and what it computes in float."""
        return [n for n in self.annotation.tensors.parent if n not in self.makers]

    def ends(self) -> list[Node]:
        """Entries, what is computed of them at once, and what leaves."""
        reading = [g for n in self.entries() for g in self.computing(self.behind({n}))]
        return [*self.entries(), *self.leaving(), *(n for g in reading for n in (*g.inputs, g.output))]

    def behind(self, nodes: set[Node]) -> set[Node]:
        """`nodes` and every tensor that holds the same integers moved, or joined with others."""
        found = set(nodes)
        for group in self.annotation.groups:
            same = (n for n in group.inputs if n in found and (group.key, n) not in self.annotation.apart)
            if group.support.shared_scale and any(same):
                found.add(group.output)
        return found

    def read_elsewhere(self, node: Node, joining: Group) -> bool:
        """Whether the integers of `node`, moved or not, serve anybody but `joining`."""
        found, grown = {node}, True
        while grown:
            size = len(found)
            for group in self.annotation.groups:
                if group.support.shared_scale and group is not joining and {group.output, *group.inputs} & found:
                    found |= {group.output, *group.inputs}
            grown = len(found) > size
        moving = {self.makers[n].node for n in found if self.shares(n)} | {joining.node}
        inside = moving | {self.makers[n].output for n in found if n in self.makers}
        return any(user not in inside for n in found for user in n.users)

    def before(self, nodes: Sequence[Node]) -> set[Node]:
        """`nodes` and every tensor whose integers they hold moved, or joined with others."""
        found = set(nodes)
        for group in reversed(self.annotation.groups):
            if group.support.shared_scale and group.output in found:
                found.update(group.inputs)
        return found

    def computing(self, reach: set[Node]) -> list[Group]:
        """Operators that compute something else out of `reach`."""
        return list({g.node: g for n in reach for g in self.readers.get(n, ()) if not g.support.shared_scale}.values())

    def leaves(self, reach: set[Node]) -> bool:
        """Whether `reach` is read in float, or an output of the network."""
        return any(user not in self.integer for n in reach for user in n.users)

    def leaving(self) -> list[Node]:
        """Integers that outputs of the network are, or are computed of in float, value by value or joined: not in sums, whose
        other terms may outweigh them."""
        found, pending = dict.fromkeys([self.output]), [self.output]
        leaving: dict[Node, None] = {}
        while pending:
            node = pending.pop()
            sources = [n for n in node.all_input_nodes if n.op != "get_attr"]
            if len(sources) > 1 and node is not self.output and kind_of(node) != "cat":
                continue
            for source in sources:
                if source in self.makers:
                    leaving[source] = None
                elif source not in found:
                    found[source] = None
                    pending.append(source)
        return list(leaving)

    def shares(self, node: Node) -> bool:
        """Whether `node` holds integers that were only moved, or joined."""
        return node in self.makers and self.makers[node].support.shared_scale
