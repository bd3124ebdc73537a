"""Random networks through every verb: is what they become right against the network itself, and exact where exact is claimed?

    python tools/soak.py --count 1000 [--seed 0] [--json soak.jsonl] [--to litert,tvm] [--jobs 2]

Each network has 2 to 6 operators and an input of rank 1 to 5, drawn from its seed, with skips by addition, product and concat.
It is quantized, exported to every runtime and verified. What is wrong: a rewritten graph that differs from the network, integers
that differ from the runtime's simulation, a QDQ program far from the network without a word of warning, a file that does not
load, a traceback, the end of the process. A sentence is an answer. Lines of `--json` that are there are not run again.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, TextIO

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgeq import api, backends
from edgeq.spec import EdgeqError, EdgeqWarning
from edgeq.task import Task

RUNTIMES: Final = tuple(backends.RUNTIMES)
LARGEST: Final = 6_000  # elements of a tensor; larger ones are not drawn
FAR_DB: Final = 5.0  # a QDQ program this near to noise must have been warned of
Made = tuple[str, nn.Module | None, Callable[..., Tensor]]  # words, its weights, what it does


class Drawn(nn.Module):
    """A chain of drawn operators, each on the last tensor, some with an earlier one of the same shape."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        draw = random.Random(seed)
        torch.manual_seed(seed)
        rank = draw.randint(1, 5)
        self.shape = tuple([1] * (rank > 1) + [draw.randint(2, 9) for _ in range(rank - (rank > 1))])
        self.layers, self.steps, self.words = nn.ModuleList(), [], [f"input {list(self.shape)}"]
        kept = [torch.randn(self.shape)]
        for _ in range(draw.randint(2, 6)):
            words, module, function, other = self._next(draw, kept)
            with torch.no_grad():
                made = function(kept[-1]) if other is None else function(kept[-1], kept[other])
            if module is not None:
                self.layers.append(module)
            self.steps.append((function, other))
            self.words.append(words)
            kept.append(made)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        """The last tensor of the chain."""
        kept = [x]
        for function, other in self.steps:
            kept.append(function(kept[-1]) if other is None else function(kept[-1], kept[other]))
        return kept[-1]

    def _next(
        self, draw: random.Random, kept: list[Tensor]
    ) -> tuple[str, nn.Module | None, Callable[..., Tensor], int | None]:
        last = kept[-1]
        same = [i for i, t in enumerate(kept[:-1]) if t.shape == last.shape]
        while True:
            if same and draw.random() < 0.25:
                words, pair = draw.choice(PAIRS)
                other = draw.choice(same)
                return f"{words} with {other}", None, pair, other
            words, module, function = draw.choice(OPERATORS)(draw, last)
            if words:
                with torch.no_grad():
                    size = function(last).numel()
                if 0 < size <= LARGEST:
                    return words, module, function, None


PAIRS: Final[tuple[tuple[str, Callable[[Tensor, Tensor], Tensor]], ...]] = (
    ("add", torch.add),
    ("sub", torch.sub),
    ("mul", torch.mul),
    ("cat", lambda a, b: torch.cat((a, b), -1)),
    ("cat first", lambda a, b: torch.cat((a, b), min(1, a.dim() - 1))),
    ("maximum", torch.maximum),
    ("gram", lambda a, b: a @ b.transpose(-1, -2) if a.dim() > 1 else a * b),
)
NOTHING: Final[Made] = ("", None, lambda x: x)


def _linear(draw: random.Random, x: Tensor) -> Made:
    layer = nn.Linear(x.shape[-1], draw.randint(1, 12), bias=draw.random() < 0.8)
    return f"{layer}", layer, layer


def _conv(draw: random.Random, x: Tensor) -> Made:
    axes = x.dim() - 2 if x.dim() > 2 and draw.random() < 0.9 else x.dim() - 1
    if axes not in (1, 2, 3):
        return NOTHING
    channels, sizes = x.shape[-axes - 1], x.shape[-axes:]
    groups = draw.choice([g for g in range(1, channels + 1) if channels % g == 0])
    kernel = [draw.randint(1, min(3, s)) for s in sizes]
    kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[axes - 1]
    layer = kind(
        channels,
        groups * draw.randint(1, 3),
        kernel,  # type: ignore[arg-type] # as many numbers as axes
        stride=draw.randint(1, 2),  # type: ignore[arg-type] # the same for every axis
        padding=draw.randint(0, 1),  # type: ignore[arg-type] # the same for every axis
        groups=groups,
        bias=draw.random() < 0.8,
    )
    return f"{layer}", layer, layer


def _transposed(draw: random.Random, x: Tensor) -> Made:
    if x.dim() not in (3, 4):
        return NOTHING
    kind = nn.ConvTranspose1d if x.dim() == 3 else nn.ConvTranspose2d
    layer = kind(
        x.shape[1],
        draw.randint(1, 4),
        draw.randint(2, 4),  # type: ignore[arg-type] # the same for every axis
        stride=draw.randint(1, 2),  # type: ignore[arg-type] # the same for every axis
    )
    return f"{layer}", layer, layer


def _norm(draw: random.Random, x: Tensor) -> Made:
    if x.dim() < 2 or draw.random() < 0.3:
        layer: nn.Module = nn.LayerNorm(x.shape[-1])
        return f"{layer}", layer, layer
    layer = (nn.BatchNorm1d, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[x.dim() - 2](x.shape[1])
    nn.init.uniform_(layer.weight, 0.5, 1.5)
    nn.init.normal_(layer.running_mean, 0, 0.3)  # type: ignore[arg-type] # a buffer
    nn.init.uniform_(layer.running_var, 0.5, 1.5)  # type: ignore[arg-type] # a buffer
    return f"{layer}", layer.eval(), layer


def _curve(draw: random.Random, x: Tensor) -> Made:
    layer = draw.choice(
        [nn.ReLU, nn.ReLU6, nn.Hardtanh, nn.Sigmoid, nn.Tanh, nn.SiLU, nn.GELU, nn.Hardswish, nn.LeakyReLU, nn.ELU]
    )()
    return f"{layer}", None, layer


def _softmax(draw: random.Random, x: Tensor) -> Made:
    axis = draw.randrange(x.dim())
    return f"softmax {axis}", None, lambda y: F.softmax(y, axis)


def _pool(draw: random.Random, x: Tensor) -> Made:
    if x.dim() not in (3, 4) or min(x.shape[2:]) < 2:
        return NOTHING
    two = x.dim() == 4
    kind = draw.choice([F.max_pool2d, F.avg_pool2d] if two else [F.max_pool1d, F.avg_pool1d])
    return kind.__name__, None, lambda y: kind(y, 2)


def _move(draw: random.Random, x: Tensor) -> Made:
    axis, order = draw.randrange(x.dim()), draw.sample(range(x.dim()), x.dim())
    cut = draw.randint(1, x.shape[axis])
    return draw.choice(
        [
            (f"permute {order}", None, lambda y: y.permute(order)),
            ("transpose and view", None, lambda y: y.transpose(0, -1).contiguous().view(y.shape)),
            (f"flatten {axis}", None, lambda y: y.flatten(axis)),
            (f"slice {axis} to {cut}", None, lambda y: y.narrow(axis, 0, cut)),
            (f"last of {axis}", None, lambda y: y.narrow(axis, y.shape[axis] - 1, 1)),
            (f"chunk {axis}", None, lambda y: y.chunk(2, axis)[0]),
            ("pad", None, lambda y: F.pad(y, (1, 1))),
            (f"flip {axis}", None, lambda y: y.flip(axis)),
        ]
    )


def _reduce(draw: random.Random, x: Tensor) -> Made:
    axis, keep = draw.randrange(x.dim()), draw.random() < 0.7 or x.dim() == 1
    return draw.choice(
        [
            (f"mean {axis} {keep}", None, lambda y: y.mean(axis, keep)),
            (f"sum {axis} {keep}", None, lambda y: y.sum(axis, keep)),
            (f"amax {axis} {keep}", None, lambda y: y.amax(axis, keep)),
        ]
    )


def _constant(draw: random.Random, x: Tensor) -> Made:
    number = draw.choice([0.0, 1.0, 0.5, -2.0])
    return draw.choice(
        [
            (f"+ {number}", None, lambda y: y + number),
            (f"· {number or 3.0}", None, lambda y: y * (number or 3.0)),
            (f"{number} −", None, lambda y: number - y),
            ("to float", None, lambda y: y.float().to("cpu")),
        ]
    )


def _upsample(draw: random.Random, x: Tensor) -> Made:
    if x.dim() != 4:
        return NOTHING
    mode, factor = draw.choice(["nearest", "bilinear"]), draw.choice([1.5, 2, 3])
    return f"upsample {mode} {factor}", None, lambda y: F.interpolate(y, scale_factor=factor, mode=mode)


OPERATORS: Final[tuple[Callable[[random.Random, Tensor], Made], ...]] = (
    _linear,
    _linear,
    _conv,
    _conv,
    _conv,
    _transposed,
    _norm,
    _curve,
    _curve,
    _softmax,
    _pool,
    _move,
    _move,
    _reduce,
    _constant,
    _upsample,
)


def one(seed: int, runtimes: tuple[str, ...]) -> dict[str, Any]:
    """The network of `seed` through every verb: its words, what was refused, and what is wrong."""
    network = Drawn(seed)
    line: dict[str, Any] = {"seed": seed, "network": network.words, "refused": {}, "wrong": {}}
    generator = torch.Generator().manual_seed(seed)
    data = [(torch.randn(network.shape, generator=generator),) for _ in range(8)]
    task = Task(f"soak {seed}", lambda: network, lambda: data[0], lambda: data)
    with tempfile.TemporaryDirectory() as folder:
        model = None
        for stage, act in _stages(task, Path(folder) / "out", runtimes):
            try:
                with warnings.catch_warnings(record=True) as said:
                    warnings.simplefilter("always")
                    made = act()
            except EdgeqError as error:
                line["refused"][stage] = str(error)
            except Exception as error:  # whatever it is, it is a fault to count
                line["wrong"][stage] = f"{type(error).__name__}: {str(error)[:400]}"
            else:
                if stage == "quantize":
                    model, warned = made, [str(w.message) for w in said if issubclass(w.category, EdgeqWarning)]
                    line["wrong"].update(_against(network, model, data, warned))
                elif stage.startswith("verify"):
                    line["wrong"].update(_parity(stage, made))
            if model is None:
                break
    return line


def _stages(task: Task, out: Path, runtimes: tuple[str, ...]) -> Iterator[tuple[str, Callable[[], Any]]]:
    yield "quantize", lambda: api.quantize(task, output=out)
    for runtime in runtimes:
        yield f"export {runtime}", lambda runtime=runtime: api.export(out, runtime)  # type: ignore[misc] # bound at once
        if (out / runtime / "model.json").is_file():
            yield f"verify {runtime}", lambda runtime=runtime: api.verify(out, to=[runtime])  # type: ignore[misc] # as above


def _against(network: Drawn, model: Any, data: list[tuple[Tensor, ...]], warned: list[str]) -> dict[str, str]:
    """What is wrong with captured graph and QDQ program beside the network itself."""
    wrong = {}
    with torch.no_grad():
        want = torch.cat([network(*batch).double().flatten() for batch in data])
    captured = torch.cat([model.float(batch)[0].double().flatten() for batch in data])
    quantized = torch.cat([model.qdq(batch)[0].double().flatten() for batch in data])
    if not torch.allclose(captured, want, rtol=1e-4, atol=1e-5 * float(want.abs().max() + 1)):
        wrong["captured"] = f"differs from the network by {float((captured - want).abs().max()):.3g}"
    power, error = float(want.square().sum()), float((quantized - want).square().sum())
    if error > power * 10 ** (-FAR_DB / 10) and power > 0 and not warned:
        wrong["far"] = f"signal {power:.3g}, error {error:.3g}, and no warning"
    return wrong


def _parity(stage: str, found: dict[str, Any]) -> dict[str, str]:
    """What is wrong with an artefact beside its runtime's simulation: more than one step anywhere."""
    row = next(iter(found["backends"].values()))
    wrong = row.get("max_lsb", 0) > 1
    return {stage: f"{row['max_lsb']:.4g} LSB, {row['exact_share']:.1%} equal"} if wrong else {}


def work(first: int, step: int, last: int, skip: set[int], runtimes: tuple[str, ...], out: TextIO) -> None:
    """Print one line of JSON for each seed from `first` in steps of `step`."""
    for seed in range(first, last, step):
        if seed not in skip:
            print(json.dumps({"begins": seed}), file=out, flush=True)
            print(json.dumps(one(seed, runtimes)), file=out, flush=True)


def main() -> int:
    """Soak; exit code 1 where anything was wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0, help="of the first network; the others follow")
    parser.add_argument("--to", default=",".join(RUNTIMES))
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--json", type=Path, help="one line a network, appended")
    parser.add_argument(
        "--inside",
        action="store_true",
        help="leave the run at an export's end to verify, in the same process: several times as many networks an hour",
    )
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    last, known = options.seed + options.count, _known(options.json)
    runtimes = tuple(options.to.split(","))
    if options.worker is not None:
        torch.set_num_threads(1)
        if options.inside:
            api.run_once = lambda artifact, inputs: None  # verify loads the same file, here
        work(options.seed + options.worker, options.jobs, last, set(known), runtimes, sys.stdout)
        return 0
    with ThreadPoolExecutor(options.jobs) as pool:
        for lines in pool.map(lambda index: _supervised(index, options), range(options.jobs)):
            known.update({line["seed"]: line for line in lines})
    lines = [line for seed, line in sorted(known.items()) if options.seed <= seed < last]
    wrong = [line for line in lines if line["wrong"]]
    for line in wrong:
        print(f"seed {line['seed']}: {' → '.join(line['network'])}\n    {line['wrong']}")
    refused = sum(bool(line["refused"]) for line in lines)
    print(f"{len(lines)} networks: {len(wrong)} wrong, {refused} with something refused in a sentence")
    return int(bool(wrong))


def _known(path: Path | None) -> dict[int, dict[str, Any]]:
    lines = [json.loads(text) for text in path.read_text().splitlines()] if path and path.exists() else []
    return {line["seed"]: line for line in lines}


def _supervised(index: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Lines of one worker, which is started again behind a network that ended it."""
    found: list[dict[str, Any]] = []
    dead: set[int] = set()
    while True:
        with tempfile.NamedTemporaryFile("w+", suffix=".jsonl") as skip:
            path = Path(skip.name)
            path.write_text("".join(json.dumps({"seed": s}) + "\n" for s in {*_known(options.json), *dead}))
            words = [
                "--count",
                str(options.count),
                "--seed",
                str(options.seed),
                "--to",
                options.to,
                "--json",
                str(path),
            ]
            words += ["--inside"] if options.inside else []
            command = [sys.executable, __file__, *words, "--jobs", str(options.jobs), "--worker", str(index)]
            with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
                begun = None
                assert process.stdout is not None
                for text in process.stdout:
                    if not text.startswith("{"):
                        continue  # a converter's own words
                    line = json.loads(text)
                    if "begins" in line:
                        begun = line["begins"]
                        continue
                    begun = None
                    found.append(line)
                    dead.add(line["seed"])
                    _append(options.json, line)
        if begun is None:
            return found
        line = {"seed": begun, "network": Drawn(begun).words, "refused": {}}
        line["wrong"] = {"process": f"ended with {process.returncode}"}
        found.append(line)
        dead.add(begun)
        _append(options.json, line)


def _append(path: Path | None, line: dict[str, Any]) -> None:
    print(f"seed {line['seed']}: {'wrong' if line['wrong'] else 'right'}", file=sys.stderr, flush=True)
    if path is not None:
        with path.open("a") as out:
            out.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    sys.exit(main())
