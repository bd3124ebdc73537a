"""Write docs/targets.md and the README's excerpt from the code: what runtimes compute as integers, which recipes there are.

python tools/write_tables.py            writes the page
python tools/write_tables.py --check    exits with 1 where the page is stale
"""

from __future__ import annotations

import argparse
import ast
import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import fields
from pathlib import Path

from markers import README, insert, write

from edgeq import backends
from edgeq.calib.recipes import RECIPES
from edgeq.calib.steps import name_of
from edgeq.calib.written import cost
from edgeq.spec import OpSupport, Recipe, Target

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "targets.md"
ARITHMETIC = ROOT / "edgeq" / "graph" / "arithmetic"

HEAD = """\
# Targets and recipes

Written by `tools/write_tables.py` from the code (`backends/*/target.py`, `calib/recipes.py`); do not edit it by hand.

A *target* says what a runtime's kernels compute from integers to integers. `portable`, the default, is what all four
have in common, under all their constraints at once: one program of it runs on every runtime, and each runtime then
does with it what its own column says. A runtime's own target may quantize more; its program is then no longer shared.
The target `simulated` takes every kind below, weights of 2 to 8 bits beside activations of 2 to 16, weights in groups (`w4g32`)
and powers of two (`w4log2`) beside floats, and has no artefact.

- **integer**: the kernel sums in integers on every device.
- **eligible**: the device decides. Core ML's Neural Engine may compute int8; its CPU and GPU may dequantise.
- **–**: the operator stays in float there. Every export lists such operators with the reason.

Operators in no row (layer norm, GELU, embedding, …) are float everywhere. All rows take `w8a8` (int8 weights per
channel, int8 activations per tensor). The names are edgeq's own: `clamp` is hardtanh and clip too, `mean` is also
global average pooling, `reshape` is also view, flatten, squeeze and unsqueeze, `gather` is index_select along the first
axis by a table that is an input of the network, and `requantize` moves integers to another scale. An activation that a row
fuses is computed by the clip bounds of that operator's kernel, for free. *Ratio* is the
interval in which the kernel wants the scales' ratio: of an input's to the output's for `add` and `sub`, of the
product of both inputs' (input's and weight's) to the output's elsewhere. Calibration widens a scale where it must.
"""


def pages() -> dict[Path, str]:
    """Each written file → its whole text."""
    runtimes = {name: backends.target(name) for name in backends.RUNTIMES}
    targets = {"portable": backends.target("portable"), **runtimes}
    readme = insert(README.read_text(encoding="utf-8"), "write_tables.py", excerpt(targets))
    return {PAGE: page(runtimes, targets), README: readme}


def page(runtimes: dict[str, Target], targets: dict[str, Target]) -> str:
    """The whole of docs/targets.md."""
    parts = [HEAD, "## Which target computes what\n", support(targets)]
    for name, target in targets.items():
        parts += [f"## `{name}`\n", about(target), details(target.ops), *elsewhere(name)]
    parts += ["## Kernel sets\n", KERNELS, kernel_sets(runtimes), "## Recipes\n", RECIPES_HEAD, recipes()]
    return "\n".join(parts)


KERNELS = """\
Each kernel set requantises by its own rule. `edgeq verify` runs an artefact with each set its runtime has, and compares
it with the simulation that follows the same rule (`edgeq/graph/arithmetic/`). The last set of a runtime is what an app
gets by default; of LiteRT, `tflite-runtime` 2.14 runs `builtin` unless XNNPACK's delegate is asked for, and TensorFlow Lite
for Microcontrollers equals the `reference` kernels of LiteRT 1.2, not of 2.3, in FULLY_CONNECTED.
"""

RECIPES_HEAD = """\
A recipe says how the numbers are chosen, as steps in their order; options that are not a step's own are told. `edgeq recipes`
lists them, `edgeq recipes NAME` prints one with all its options.
"""


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def support(targets: dict[str, Target]) -> str:
    """Operator kinds × targets, in the order in which the targets name them, the shared ones first."""
    kinds = dict.fromkeys(row.kind for target in targets.values() for row in target.ops)
    rows = []
    for kind in kinds:
        found = [target.support(kind) for target in targets.values()]
        rows.append([f"`{kind}`", *(row.status if row else "–" for row in found)])
    return table(["operator", *targets], rows)


def excerpt(targets: dict[str, Target]) -> str:
    """`support` with the operators that every target treats alike in one row."""
    alike: dict[tuple[str, ...], list[str]] = {}
    for kind in dict.fromkeys(row.kind for target in targets.values() for row in target.ops):
        found = [target.support(kind) for target in targets.values()]
        alike.setdefault(tuple(row.status if row else "–" for row in found), []).append(f"`{kind}`")
    return table(["operators", *targets], ([", ".join(kinds), *status] for status, kinds in alike.items())).rstrip()


def details(ops: Iterable[OpSupport]) -> str:
    """What the operators of one target fuse and insist on, alike ones in one row."""
    alike: dict[tuple[str, ...], list[str]] = {}
    for row in ops:
        fixed = ""
        if row.fixed_output is not None:
            scale, zero_point = row.fixed_output
            fixed = f"scale 1/{round(1 / scale)}, zero point {zero_point}"
        shared = "yes" if row.shared_scale else ""
        ratio = "" if row.ratio is None else " to ".join(f"2^{math.log2(bound):.0f}" for bound in row.ratio)
        alike.setdefault((", ".join(row.fused), shared, fixed, ratio, row.constraint), []).append(f"`{row.kind}`")
    columns = ["operators", "fuse", "one scale for inputs and output", "fixed output", "ratio", "constraint"]
    return table(columns, ([", ".join(kinds), *what] for what, kinds in alike.items()))


def about(target: Target) -> str:
    """The sentences above a target's table."""
    weight_only = ", ".join(f"`{kind}`" for kind in target.weight_only)
    return f"Weight-only int8 (`w8`): {weight_only or 'none'}. Float precisions: {', '.join(target.floats)}.\n"


def elsewhere(name: str) -> list[str]:
    """What a runtime's artefacts for other machines are called; they have the same operators and the same integers."""
    found = {backend: variant for backend, variant in backends.VARIANTS.items() if variant.runtime == name}
    if not found:
        return []
    rows = [
        [f"`{backend}`", variant.machine, ", ".join(variant.features) or "any", variant.devices]
        for backend, variant in found.items()
    ]
    columns = ["backend", "machine", "processor's features", "`--device`, as"]
    return [
        f"`{name}` compiles for this host. For other machines, same operators, same integers:\n",
        table(columns, rows),
    ]


def kernel_sets(runtimes: dict[str, Target]) -> str:
    """Runtime, kernel set, module of its arithmetic, and that module's first sentence."""
    rows = []
    for name, target in runtimes.items():
        for kernels, arithmetic in target.kernels or (("default", target.arithmetic),):
            rows.append([name, kernels, f"`{arithmetic}`", summary(ARITHMETIC / f"{arithmetic}.py")])
    return table(["runtime", "kernel set", "arithmetic", "rule"], rows)


def summary(module: Path) -> str:
    """The first line of a module's docstring, read without importing it."""
    text = ast.get_docstring(ast.parse(module.read_text(encoding="utf-8"))) or ""
    return text.splitlines()[0]


def recipes() -> str:
    """Every recipe by its steps."""
    rows = [[f"`{r.name}`", steps(r), r.summary, cost(r), r.source] for r in RECIPES.values()]
    return table(["recipe", "steps", "what it does", "costs", "source"], rows)


def steps(recipe: Recipe) -> str:
    """A recipe's steps with the options that are not a step's own."""
    told = []
    for step in recipe.steps:
        own = type(step)()
        given = [
            f"{f.name}={getattr(step, f.name)}" for f in fields(step) if getattr(step, f.name) != getattr(own, f.name)
        ]  # type: ignore[arg-type] # a dataclass
        told.append(" ".join([name_of(step), *given]))
    return ", ".join(told)


def main() -> int:
    """Write or check."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 where something is stale")
    wanted = pages()
    stale = [path for path, text in wanted.items() if not path.is_file() or path.read_text(encoding="utf-8") != text]
    if parser.parse_args().check:
        for path in stale:
            print(f"{path.relative_to(ROOT)} is stale: run python tools/write_tables.py", file=sys.stderr)
        return 1 if stale else 0
    for path in stale:
        write(path, wanted[path])
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
