"""From raw points to a network's inputs and from its heads to boxes, as `pipeline.json` says; numpy only.

A deployable bundle carries this file, its neighbours and the JSON; nothing else of edgeq is needed there, so this
file and those it imports import each other relatively and nothing but numpy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import anchors, centre, pillars, voxels

Array = NDArray[Any]

ABOVE = "a finite number above 0"
# what each kind of a pipeline's two parts has to say, and of what type: float for any finite number, ABOVE, int for a whole
# number above 0, [type] for a list, (type, …) for a list of just these
_RANGE = (float,) * 6
_FOUND = {"outputs": [str], "classes": [str], "score": float, "overlap": float, "limit": int}
NEEDED: dict[str, dict[str, dict[str, Any]]] = {
    "encoder": {
        "pillars": {"point_range": _RANGE, "pillar_size": (ABOVE, ABOVE), "max_points": int, "max_pillars": int},
        "voxels": {"point_range": _RANGE, "grid": (int, int, int), "limits": (int, int, int)},
    },
    "head": {
        "centre": _FOUND | {"origin": (float, float), "cell": ABOVE},
        "anchors": _FOUND | {"anchors": [(float,) * 5], "columns": (float, float, int), "rows": (float, float, int)},
    },
}
OPTIONAL = {"feature_weight": [float], "feature_bias": [float]}
NAMES = {float: "a finite number", ABOVE: ABOVE, int: "a whole number above 0", str: "a string"}
OUTPUTS = {
    "centre": ("heatmap", "offset", "height", "size", "rotation", "direction"),
    "anchors": ("cls", "box", "dir"),
}


@dataclass(frozen=True, slots=True)
class Prepared:
    """inputs: what the network takes, in its order. points: of the cloud; ignored: those out of range or not finite.

    found: pillars, or voxels of each level; dropped: those beyond a static limit.
    """

    inputs: tuple[Array, ...]
    points: int
    ignored: int
    found: tuple[int, ...]
    dropped: tuple[int, ...]


def part(settings: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The `encoder` or `head` of a pipeline, which has all that its kind needs.

    Raises:
        ValueError: what it lacks, or what is unknown.
    """
    if not isinstance(settings.get(name), dict):
        raise ValueError(f"the pipeline has no {name!r}: give it a dict with {' or '.join(NEEDED[name])} as its kind")
    found: dict[str, Any] = settings[name]
    kind, kinds = found.get("kind"), NEEDED[name]
    if kind not in kinds:
        raise ValueError(f"the pipeline's {name} has kind {kind!r}: write {' or '.join(map(repr, kinds))}")
    missing = [key for key in kinds[kind] if key not in found]
    if missing:
        raise ValueError(
            f"the pipeline's {name} lacks {', '.join(map(repr, missing))}: kind {kind!r} needs {', '.join(kinds[kind])}"
        )
    for key, wanted_type in (kinds[kind] | OPTIONAL).items():
        if key in found and (wrong := misfit(found[key], wanted_type)):
            raise ValueError(f"the pipeline's {name} has {key} {found[key]!r:.60}: {wrong}")
    wanted = OUTPUTS.get(kind, ())
    if wanted and sorted(found["outputs"]) != sorted(wanted):
        raise ValueError(
            f"the pipeline's head has outputs {list(found['outputs'])}: kind {kind!r} needs {', '.join(wanted)}, in the "
            "order in which the network gives them"
        )
    return found


def misfit(value: Any, wanted: Any) -> str:
    """Why `value` is not of the type `wanted`, as NEEDED writes types; empty where it is."""
    if isinstance(wanted, (list, tuple)):
        if not isinstance(value, (list, tuple)):
            return "it has to be a list"
        if isinstance(wanted, tuple) and len(value) != len(wanted):
            return f"it has {len(value)} elements instead of {len(wanted)}"
        each = wanted if isinstance(wanted, tuple) else wanted * len(value)
        return next((wrong for v, w in zip(value, each, strict=True) if (wrong := misfit(v, w))), "")
    if wanted is str:
        fine = isinstance(value, str)
    elif wanted is int:
        fine = isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**31
    else:
        fine = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e9
        fine = fine and (wanted is float or value > 0)
    return "" if fine else f"{value!r:.40} is not {NAMES[wanted]}"


def prepare(points: Array, settings: dict[str, Any], padded: bool = True) -> Prepared:
    """A cloud [N, ≥4] as the network's inputs. `padded`: full static arrays, else as long as needed.

    Raises:
        ValueError: the cloud has fewer than four columns, or the settings lack something.
    """
    encoder = part(settings, "encoder")
    points = np.asarray(points, np.float32)
    if points.ndim != 2 or points.shape[1] < 4:
        raise ValueError(
            f"a point cloud needs four columns (x, y, z, intensity), this one has shape {list(points.shape)}"
        )
    low, high = np.array(encoder["point_range"], np.float32).reshape(2, 3)
    inside = np.isfinite(points[:, 3]) & np.all((points[:, :3] >= low) & (points[:, :3] < high), axis=1)
    ignored = int(len(points) - inside.sum())
    if encoder["kind"] == "voxels":
        found = voxels.voxelise(points, voxels.settings(encoder), padded)
        return Prepared(found.inputs(), len(points), ignored, found.found, found.dropped)
    size, reach = encoder["pillar_size"], encoder["point_range"]
    height, width = pillars.grid(reach, size)
    limit = encoder["max_pillars"] if padded else min(int(inside.sum()), height * width)
    made = pillars.pillarise(points, reach, size, encoder["max_points"], limit)
    filled = int((made.num_points > 0).sum())
    real = limit if padded else filled
    features = pillars.decorate(made, reach, size, encoder.get("feature_weight"), encoder.get("feature_bias"))[:real]
    table = np.full(height * width + 1, real, np.int64)
    table[made.cells] = np.arange(limit)
    table[-1] = real
    inputs = (np.ascontiguousarray(features.transpose(2, 0, 1))[None], table[:-1])
    return Prepared(inputs, len(points), ignored, (filled + made.dropped,), (made.dropped,))


def left_out(dropped: Sequence[int], found: Sequence[int]) -> str:
    """What static limits left out, by level, in words: "453 of 1053 pillars"; empty where nothing was."""
    kinds = ["pillars"] if len(found) == 1 else [f"voxels of level {i + 1}" for i in range(len(found))]
    return ", ".join(f"{d} of {n} {kind}" for d, n, kind in zip(dropped, found, kinds, strict=True) if d)


def boxes(heads: dict[str, Array], settings: dict[str, Any]) -> tuple[Array, Array, tuple[str, ...]]:
    """Boxes [K, 7], scores [K] and K class names of one frame, best first.

    Raises:
        ValueError: the settings lack something, or a map's shape does not fit them.
    """
    head = part(settings, "head")
    found = anchors.decode(heads, head) if head["kind"] == "anchors" else centre.decode(heads, head)
    return found.boxes, found.scores, tuple(head["classes"][k] for k in found.classes)
