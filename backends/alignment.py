"""XNNPACK tells which operators it ran, in order and by its own names: find those of the artefact that each computes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise

# how XNNPACK's name of an operator begins → types of it in a .tflite or a delegate's graph, without case and underscores;
# names are those of XNNPACK's operator-type-defs.inc
TYPES: dict[str, tuple[str, ...]] = {
    "convolution": ("conv2d", "depthwiseconv2d"),
    "fully connected": ("fullyconnected", "conv2d"),  # XNNPACK runs convolutions of one pixel as matrix products
    "deconvolution": ("transposeconv", "convtranspose2d"),
    "mean": ("mean", "globalavgpooling2d", "staticmean", "averagepool2d", "avgpooling2d"),
    "global average pooling": ("mean", "globalavgpooling2d"),
    "average pooling": ("averagepool2d", "avgpooling2d"),
    "max pooling": ("maxpool2d", "maxpooling2d"),
    "static reshape": ("reshape", "staticreshape", "squeeze", "expanddims"),
    "copy": ("concatenation", "concatenate", "reshape", "staticreshape", "split", "evensplit", "slice"),
    "constant pad": ("pad", "padv2", "staticconstantpad"),
    "transpose": ("transpose", "statictranspose", "depthtospace"),
    "convert": ("quantize", "dequantize", "convert", "cast"),
    "subtract": ("sub", "subtract"),
    "multiply": ("mul", "multiply"),
    "divide": ("div", "divide"),
    "batch matrix multiply": ("batchmatmul", "batchmatrixmultiply"),
    "sigmoid": ("logistic", "sigmoid"),
    "negate": ("neg", "negate"),
    "square root": ("sqrt", "squareroot"),
    "reciprocal square root": ("rsqrt", "reciprocalsquareroot"),
    "clamp": ("relu", "relu6", "clamp"),
    "ceiling": ("ceil", "ceiling"),
    "slice": ("slice", "stridedslice", "staticslice"),
    "sum": ("sum", "staticsum"),
    # what XNNPACK computes by a table, an activation with the conversions around it, has no better name
    "invalid unary op": ("gelu", "logistic", "sigmoid", "tanh", "hardswish", "elu", "exp", "leakyrelu", "log"),
    "resize bilinear": ("resizebilinear", "staticresizebilinear2d"),
}
# what XNNPACK puts in by itself, and what it drops or folds into a neighbour
PLUMBING = frozenset({"transpose", "convert", "copy", "static reshape", "constant pad"})
FOLDED = frozenset({"pad", "padv2", "staticconstantpad", "relu", "relu6", "clamp", "reshape", "staticreshape", "squeeze",
                    "expanddims", "transpose", "statictranspose", "convert", "quantize", "dequantize"})  # fmt: skip
FORWARD = frozenset({"pad", "padv2", "staticconstantpad"})  # folded into the operator that reads it
MATCH, SURPRISE, EXPECTED = 4, -3, -1  # scores of a pair, of a gap, and of a gap of a type that often is one


def align(types: Sequence[str], names: Sequence[str]) -> list[tuple[int, ...]]:
    """For each of XNNPACK's `names`, in order, the positions in `types` that it computes: first the one it is named after.

    types: operator types of the artefact in their order (`DEPTHWISE_CONV_2D`, `StaticConstantPad`). An empty tuple: XNNPACK
    put it in. Operators without a name of their own go to the one they are folded into: padding forward, all others back.
    The alignment of the highest score (Needleman and Wunsch, 1970).
    """
    plain = [t.replace("_", "").lower() for t in types]
    beginnings = [_beginning(name) for name in names]
    rows, columns = len(plain), len(names)
    best = [[0] * (columns + 1) for _ in range(rows + 1)]
    skip = [EXPECTED if p in FOLDED else SURPRISE for p in plain]
    extra = [EXPECTED if b in PLUMBING else SURPRISE for b in beginnings]
    for i in range(rows + 1):
        for j in range(columns + 1):
            if i == j == 0:
                continue
            best[i][j] = max(
                best[i - 1][j] + skip[i - 1] if i else -(10**9),
                best[i][j - 1] + extra[j - 1] if j else -(10**9),
                best[i - 1][j - 1] + score if i and j and (score := _score(plain[i - 1], names[j - 1])) else -(10**9),
            )
    found: list[list[int]] = [[] for _ in names]
    i, j = rows, columns
    while i and j:
        score = _score(plain[i - 1], names[j - 1])
        if score and best[i][j] == best[i - 1][j - 1] + score:
            i, j = i - 1, j - 1
            found[j].append(i)
        elif best[i][j] == best[i][j - 1] + extra[j - 1]:
            j -= 1
        else:
            i -= 1
    owner = {at[0]: j for j, at in enumerate(found) if at}
    for first, second in (*pairwise(range(columns)), *pairwise(reversed(range(columns)))):
        if beginnings[first] == beginnings[second] == "copy" and found[first] and not found[second]:
            found[second].append(found[first][0])  # a concatenation is one copy for each of its inputs
    for before, j in pairwise(range(columns)):
        if beginnings[j] == "clamp" and found[before] and not found[j]:
            found[j].append(found[before][0])  # the activation of an operator whose kernel has none
    for i in range(rows):
        if i not in owner and owner:
            behind = [k for k in owner if k > i]
            earlier = [k for k in owner if k < i]
            forward = behind and (plain[i] in FORWARD or not earlier)
            found[owner[min(behind) if forward else max(earlier)]].append(i)
    return [tuple(at) for at in found]


def _beginning(name: str) -> str:
    """`fully connected` of `Fully Connected (NC, QS8, QC8W) GEMM #3`."""
    return re.split(r" [(#]", name)[0].strip().lower()


def _score(plain: str, name: str) -> int:
    """How well XNNPACK's `name` fits an operator of type `plain`; 0 where it does not."""
    beginning = _beginning(name)
    known = TYPES.get(beginning, (beginning.replace(" ", ""),))
    if plain not in known and plain.rstrip("0123456789") not in known:  # Concatenate3, EvenSplit2
        return 0
    depthwise = plain == "depthwiseconv2d"
    return MATCH + (("dwconv" in name.lower()) == depthwise)
