"""Exact rewrites every network gets on capture: one spelling per operator, linear steps folded, padding inside the kernel."""

from __future__ import annotations

import torch
from torch.fx import GraphModule

from edgeq.graph.normalise.affine import AXES, between
from edgeq.graph.normalise.choices import spell_out_choice
from edgeq.graph.normalise.fold import (
    BATCH_NORMS,
    OFFSETS,
    SCALINGS,
    fold_affine,
    fold_batch_norm,
    fold_forward,
    merge_branches,
    settle,
)
from edgeq.graph.normalise.kernels import (
    BATCHED,
    add_batch_axis,
    crop_before_padding,
    drop_idle_ceiling,
    explicit_padding,
    pad_into_convolution,
    repeat_shared_heads,
    spell_out_pixel_shuffle,
    spell_out_similarity,
    spell_out_windows,
    subsample_as_convolution,
)
from edgeq.graph.normalise.moves import fewer_axes, join_reshapes, spell_out_moves, spell_out_steps
from edgeq.graph.normalise.reductions import spell_out_reduction
from edgeq.graph.normalise.spelling import compute_tables, open_graphs, spell
from edgeq.graph.normalise.transposed import spell_out_transposed
from edgeq.graph.ops import kind_of

aten = torch.ops.aten

POOLS = (aten.max_pool2d.default, aten.avg_pool2d.default)


def normalise(module: GraphModule) -> None:
    """Rewrite `module` in place; every rewrite leaves the function as it was, up to float rounding."""
    graph = module.graph
    open_graphs(module)
    compute_tables(module)
    for node in list(graph.nodes):
        if node.op == "call_function":
            spell(module, node)
    settle(module)
    for node in list(graph.nodes):
        if node.op == "call_function":
            spell_out_moves(module, node)
    for node in list(graph.nodes):
        if node.target in BATCHED:
            add_batch_axis(module, node)
    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        if node.target in (aten.conv2d.padding, aten.conv1d.padding):
            explicit_padding(node)
        elif node.target in POOLS:
            drop_idle_ceiling(node)
        elif node.target in BATCH_NORMS:
            fold_batch_norm(module, node)
        elif node.target in SCALINGS or node.target in OFFSETS:
            fold_affine(module, node)
        elif node.target in (aten.pixel_shuffle.default, aten.pixel_unshuffle.default):
            spell_out_pixel_shuffle(module, node)
        elif node.target in (aten.cosine_similarity.default, aten.pairwise_distance.default):
            spell_out_similarity(module, node)
        elif node.target is aten.scaled_dot_product_attention.default:
            repeat_shared_heads(module, node)
        elif node.target is aten.unfold.default:
            spell_out_windows(module, node)
        elif node.target in (aten.pad.default, aten.constant_pad_nd.default):
            crop_before_padding(module, node)
    _keep_integers(module)
    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        if kind_of(node) == "pad":
            pad_into_convolution(module, node)
        elif node.target is aten.slice.Tensor:
            subsample_as_convolution(module, node)
    for node in list(graph.nodes):
        if node.target is aten.slice.Tensor:
            spell_out_steps(module, node)
        elif node.target is aten.permute.default:
            fewer_axes(module, node)
    for node in list(graph.nodes):
        if node.target is aten.reshape.default:
            join_reshapes(node)
    for node in list(graph.nodes):
        if kind_of(node) == "add":
            merge_branches(module, node)
    graph.eliminate_dead_code()
    module.delete_all_unused_submodules()
    graph.lint()
    module.recompile()


def _keep_integers(module: GraphModule) -> None:
    """What would cut the integers that come in, as constants, choices and sums do, becomes layers, clips and pools."""
    graph = module.graph
    for node in list(graph.nodes):
        if node.op == "call_function" and between(node):
            spell_out_reduction(module, node)
    for node in list(graph.nodes):
        if node.op == "call_function":
            spell_out_transposed(module, node)
    for node in list(graph.nodes):
        if node.target in SCALINGS or node.target in OFFSETS:
            fold_affine(module, node)
        elif node.op == "call_function" and between(node):
            spell_out_choice(module, node)
    graph.eliminate_dead_code()
    for node in list(graph.nodes):
        if AXES in node.meta and node.target is aten.conv2d.default:
            fold_forward(module, node)
