"""The page says everything, safely, and the worst first; the terminal's tables fit 80 columns."""

from __future__ import annotations

import dataclasses
import html
import io
import json
import math
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from networks import InvertedResidual, sealed, seeded
from rich.console import Console

from edgeq import api
from edgeq.graph import package
from edgeq.graph.package import QuantizedModel
from edgeq.pages import choices, tables, words
from edgeq.pages.page import write_page
from edgeq.run.profile import Pair
from edgeq.run.tensors import tensors
from edgeq.spec import InstructionReport, LatencyReport, Spread
from edgeq.task import Task

HOSTILE = "<script>alert('x')</script>&\"/conv2d"


def batches() -> list[tuple[torch.Tensor, ...]]:
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(2, 3, 16, 16, generator=generator),) for _ in range(2)]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> QuantizedModel:
    """A small real network, quantized and saved."""
    task = Task("small", lambda: seeded(InvertedResidual), lambda: batches()[0], batches)
    return api.quantize(task, target="simulated", recipe="minmax", output=tmp_path_factory.mktemp("made") / "small")


def times(ms: float, rows: list[dict[str, Any]]) -> dict[str, Any]:
    others = [{"name": "delegate overhead", "ms": ms * 0.1, "layers": [], "kind": "overhead"},
              {"name": "unattributed", "ms": ms * 0.1, "layers": [], "kind": "unattributed"}]  # fmt: skip
    return {
        "device": "a test", "backend": "litert", "versions": {}, "threads": 1, "warmup": 5, "method": "a profiler",
        "total_ms": {"median": ms, "p10": ms * 0.9, "p90": ms * 1.1, "runs": 30}, "run_ms": [ms],
        "rows": [*rows, *others], "unattributed_ms": ms * 0.1, "row_scale": 0.75,
    }  # fmt: skip


def parity_of(model: QuantizedModel, lsb: float) -> dict[str, Any]:
    output = {
        "name": model.outputs[0].name, "max_lsb": lsb, "exact_share": 0.99999, "qdq_lsb": 2, "sqnr_db": None,
        "equivalent": False,
    }  # fmt: skip
    kernels = {"arithmetic": "xnnpack", "max_lsb": lsb, "exact_share": 0.99999, "qdq_lsb": 2, "outputs": [output]}
    row = {
        "artifact": "small/litert/model.tflite", "max_lsb": lsb, "exact_share": 0.99999, "qdq_lsb": 2,
        "metric": {"top1": 0.871}, "kernels": {"reference": kernels, "xnnpack": kernels}, "integer_ops": 3,
        "table_ops": 0, "eligible_ops": 0, "float_ops": 1,
    }  # fmt: skip
    return {
        "model": "small", "device": "host", "versions": {"torch": "9.9"}, "inputs": "calibration", "batches": 2,
        "float_metric": {"top1": 0.878}, "qdq_metric": {"top1": 0.872},
        "backends": {"litert": row, "executorch": row, "coreml": row, "tvm": row},
    }  # fmt: skip


def coverage_rows(model: QuantizedModel) -> list[dict[str, Any]]:
    keys = [k for k in model.plan.layers if "conv2d" in k]
    rows = [{"name": f"CONV_{i}", "kind": "conv2d", "status": "integer", "reason": "", "layers": [k]}
            for i, k in enumerate(keys)]  # fmt: skip
    reason = "it has no integer kernel for <mean> over height and width"
    return [*rows, {"name": "MEAN", "kind": "mean", "status": "float island", "reason": reason, "layers": ["mean"]}]


def profile_of(model: QuantizedModel, int8: float, floating: float) -> dict[str, Any]:
    rows = [{"name": row["name"], "ms": int8 * 0.2, "layers": row["layers"], "kind": "operator"}
            for row in coverage_rows(model)]  # fmt: skip
    one = {**times(int8, rows), "float": times(floating, []), "speedup": floating / int8}
    none = {"backend": "coreml", "total_ms": None, "float": None, "speedup": None}
    return {"model": "small", "device": "host", "versions": {"torch": "9.9"},
            "backends": {"litert": one, "coreml": none}}  # fmt: skip


def measured(model: QuantizedModel, folder: Path, *, int8: float, floating: float, lsb: float = 0) -> QuantizedModel:
    """A copy of `model` in `folder` with an artefact and measurements written by hand."""
    copy = dataclasses.replace(model, folder=None)
    copy.save(folder)
    (folder / "litert").mkdir()
    (folder / "litert" / "model.tflite").write_bytes(bytes(1234))
    described = {
        "backend": "litert", "artifact": "model.tflite", "model": model.name, "inputs": [], "outputs": [],
        "preprocessing": None, "coverage": coverage_rows(model), "notes": ["a note with <b>"],
    }  # fmt: skip
    (folder / "litert" / "model.json").write_text(json.dumps(described))
    (folder / "verify.json").write_text(json.dumps(parity_of(model, lsb)))
    (folder / "profile.json").write_text(json.dumps(profile_of(model, int8, floating)))
    sealed(folder)
    return copy


class Reader(HTMLParser):
    """What a browser would see: tags, references and text outside of scripts and styles."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.references: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.references += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]

    def handle_data(self, data: str) -> None:
        if self.tags[-1:] not in (["script"], ["style"]):
            self.text += data


def test_the_page_names_every_layer_and_loads_nothing(made: QuantizedModel, tmp_path: Path) -> None:
    page = write_page(measured(made, tmp_path / "m", int8=2, floating=6), tmp_path / "page.html").read_text()
    seen = Reader(page)
    assert len(made.plan.layers) > 8
    for key in made.plan.layers:
        assert key in seen.text
    assert seen.references and all(reference.startswith("#") for reference in seen.references)
    assert "@import" not in page and "url(" not in page
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_slower_than_float_stands_before_the_first_section(made: QuantizedModel, tmp_path: Path) -> None:
    sentence = "LiteRT: int8 is slower than float here, 6.00 ms against 5.00 ms."
    slow = write_page(measured(made, tmp_path / "slow", int8=6, floating=5), tmp_path / "slow.html").read_text()
    assert 0 < slow.index(sentence) < slow.index("<article") < slow.index("<section")
    fast = write_page(measured(made, tmp_path / "fast", int8=5, floating=6), tmp_path / "fast.html").read_text()
    assert "slower than float" not in fast
    assert fast.index("int8 is faster than float on the same runtime: LiteRT 1.20×.") < fast.index("<section")


def test_parity_beyond_one_lsb_is_a_warning_and_nearly_all_is_not_all(made: QuantizedModel, tmp_path: Path) -> None:
    page = write_page(measured(made, tmp_path / "m", int8=2, floating=6, lsb=3), tmp_path / "page.html").read_text()
    first = page.index('<li class="warn">')
    assert "Further than 1 LSB from its own simulation: LiteRT by 3 LSB" in page[first : page.index("</li>", first)]
    assert "99.99 %" in page and "100.00 %" not in page


def test_a_hostile_layer_name_stays_text(made: QuantizedModel, tmp_path: Path) -> None:
    victim = next(key for key in made.plan.layers if "depthwise" in key)

    def rename(table: dict[str, Any]) -> dict[str, Any]:
        return {k: HOSTILE if v == victim else v for k, v in table.items()}

    model = measured(made, tmp_path / "m", int8=2, floating=6)
    clean = Reader(write_page(model, tmp_path / "clean.html").read_text())
    layers = {HOSTILE if k == victim else k: v for k, v in model.plan.layers.items()}
    model.plan = dataclasses.replace(model.plan, layers=layers)
    model.labels, model.twin_labels = rename(model.labels), rename(model.twin_labels)
    model.name = HOSTILE
    page = write_page(model, tmp_path / "page.html").read_text()
    assert Reader(page).tags == clean.tags
    assert "<script>alert" not in page
    assert html.escape(HOSTILE, quote=False).replace('"', "&#34;").replace("'", "&#39;") in page
    data = page.split('id="data">')[1].split("</script>")[0]
    assert HOSTILE in {row["key"] for row in json.loads(data)}


def test_what_is_missing_is_named_with_its_command(made: QuantizedModel, tmp_path: Path) -> None:
    text = Reader(write_page(made, tmp_path / "page.html").read_text()).text
    for command in ("edgeq export small --to litert", "edgeq verify small", "edgeq profile small"):
        assert f"Run {command} and write the report again." in text


def test_tensor_statistics_against_numpy(made: QuantizedModel) -> None:
    batch = (batches()[0][0] * 3,)  # three times what was calibrated, so that some of it is clipped
    found = tensors(made, batch, bins=32)
    first, last = found[0], [s for s in found if s.role != "weight"][-1]
    x = batch[0].double().numpy()
    q = made.qparams[first.key]
    scale, zero = q.scale[0], q.zero_point[0]
    back = (np.clip(np.rint(x / scale) + zero, -128, 127) - zero) * scale
    assert first.key.startswith("input ") and (first.scale, first.zero_point) == (scale, zero)
    assert first.sqnr_db == pytest.approx(10 * math.log10((x**2).sum() / ((x - back) ** 2).sum()), abs=1e-3)
    low, high = (-128 - zero) * scale, (127 - zero) * scale
    assert first.clipped == ((x < low - scale / 2) | (x > high + scale / 2)).mean() > 0
    assert first.counts == tuple(np.histogram(x, 32)[0])
    want, got = (run(batch)[0].double().numpy() for run in (made.float, made.qdq))
    assert last.key == "head/linear"
    assert last.sqnr_db == pytest.approx(10 * math.log10((want**2).sum() / ((want - got) ** 2).sum()), abs=1e-3)
    weights = {s.key: s for s in found if s.role == "weight"}
    assert set(weights) == {k for k in made.plan.layers if k.endswith(("conv2d", "linear"))}
    stored = np.abs(made.twin.state_dict["head.weight"].double().numpy()).max(1)  # min-max: reach is the extreme
    assert weights["head/linear"].channels == pytest.approx((stored.min(), np.sort(stored)[2], stored.max()), rel=1e-5)
    assert 35 < weights["head/linear"].sqnr_db < 60


def test_a_float_island_is_priced_by_its_own_row(made: QuantizedModel) -> None:
    latency = [{"name": "MEAN", "ms": 0.5, "layers": []}, {"name": "other", "ms": 0.25, "layers": ["mean"]}]
    first, *rest = words.grouped(coverage_rows(made), latency)
    assert (first.kind, first.status, first.count, first.ms) == ("mean", "float island", 1, 0.75)
    assert [(p.kind, p.ms) for p in rest] == [("conv2d", None)]


@pytest.mark.parametrize(
    ("value", "said"),
    [(1.0, "100 %"), (0.999999, "99.99 %"), (0.0, "0 %"), (0.00001, "< 0.01 %"), (None, "–"), (0.5, "50.00 %")],
)
def test_a_share_is_never_rounded_up(value: float | None, said: str) -> None:
    assert words.share(value) == said


@pytest.mark.parametrize(
    ("value", "said"),
    [(None, "–"), (0.0, "0"), (12.345, "12.3"), (0.012345, "0.0123"), (123456.0, "123456"), (-1.5, "−1.50"),
     (math.inf, "∞"), (math.nan, "–"), (2.5e-7, "2.50e−07")],
)  # fmt: skip
def test_a_number_keeps_three_digits(value: float | None, said: str) -> None:
    assert words.number(value) == said


def shown(render: Callable[[Any], list[Any]], found: dict[str, Any]) -> str:
    stream = io.StringIO()
    console = Console(file=stream, width=80, color_system=None)
    for part in render(found):
        console.print(part)
    return stream.getvalue()


def found_by(verb: str, model: QuantizedModel) -> dict[str, Any]:
    rows = coverage_rows(model)
    covered = {"artifact": "small/litert/model.tflite", "integer_ops": 3, "table_ops": 0, "eligible_ops": 0, "float_ops": 1,
               "integer_macs": 950, "table_macs": 0, "eligible_macs": 0, "float_macs": 50,
               "inserted": {"TRANSPOSE": 29, "QUANTIZE": 1},
               "rows": rows, "notes": ["a note"],
               "size_bytes": 2_659_056, "float_size_bytes": 2_108_944, "float_size_of": "artefact"}  # fmt: skip
    parity = parity_of(model, 1)
    return {
        "demo": {
            "network": "EfficientNet-Lite0 (ImageNet)", "report": "demo-out/report.html",
            "float_metric": parity["float_metric"], "qdq_metric": parity["qdq_metric"],
            "backends": {n: {**r, "latency_ms": {"int8": None if n == "coreml" else 12.345, "float": 9.876}}
                         for n, r in parity["backends"].items()},
        },
        "quantize": {
            "model": "small", "folder": "out", "target": "portable", "recipe": "default", "tensors": 20,
            "data": {"source": "zeroq", "images": 32, "seed": 0, "steps": 120, "rate": 0.5, "batch": 0},
            "operators": {"integer": 12, "float": 2}, "macs": {"integer": 950, "float": 50},
            "islands": {f"encoder.layer.{i}.attention.output/layer_norm":
            "target portable has no integer kernel for it" for i in range(9)},
            "island_operators": {f"encoder.layer.{i}.attention.output/layer_norm": "layer_norm" for i in range(9)},
        },
        "export": {"model": "small", "backends": {"litert": covered, "executorch": covered}},
        "verify": parity,
        "profile": profile_of(model, 6.5, 5.25),
        "doctor": {
            "versions": {"edgeq": "0.1.0", "torch": "2.13.0"},
            "backends": {
                "litert": {"installed": True, "version": "0.10.0", "install": "pip install 'edgeq[litert]'",
                           "runs_here": "yes"},
                "coreml": {"installed": False, "version": None, "install": "pip install 'edgeq[coreml]'",
                           "runs_here": "not installed"},
            },
            "devices": {
                "host": {
                    "reachable": True, "can": "verify, profile", "how": "", "emulated": False, "abi": "x86_64-linux",
                    "model": "Intel(R) Xeon(R) Processor @ 2.10GHz", "cores": 2, "os": "Linux 6.1",
                    "features": ("avx2", "avx512f", "avx512_vnni", "amx_int8"), "governor": None, "temperature_c": None,
                },
                "emulated:hexagon-v67": {
                    "reachable": True, "can": "verify; instruction counts, no times", "how": "", "emulated": True,
                    "model": "Qualcomm Hexagon V67 (qemu-hexagon 7.2.22)", "abi": "hexagon", "cores": 1, "os": "none",
                    "features": ("hvx128",), "governor": None, "temperature_c": None,
                },
                "adb:RFCX90ABCDE": {
                    "reachable": True, "can": "verify, profile", "how": "", "emulated": False, "abi": "aarch64-android",
                    "model": "Example [Phone] 9 (SoC 1)", "cores": 8, "os": "Android 14", "features": ("asimd", "asimddp"),
                    "governor": "schedutil", "temperature_c": 41.5,
                },
                "tvm-rpc:HOST:PORT": {"reachable": False, "can": "TVM: verify, profile",
                                      "how": "python -m tvm.exec.rpc_server --port 9090 on the board"},
            },
            "targets": {name: {"ops": [{"kind": "conv2d", "status": status}, {"kind": "mean", "status": "integer"}]}
                        for name, status in {"portable": "integer", "litert": "integer", "executorch": "integer",
                                             "coreml": "eligible", "tvm": "integer"}.items()},
            "recipes": {"minmax": "extremes seen in calibration; weights to nearest",
                        "default": "extremes seen in calibration; weights rounded so that each kernel's errors cancel"},
        },
    }[verb]  # fmt: skip


WANTED = {
    "demo": ("LiteRT", "12.3", "9.88", "0.80×", "99.99 %", "3/0/0/1", "0.872", "int8 is slower than float here"),
    "quantize": (
        "12 of 14 layers compute in integers (95 % of multiply-accumulates), 2 in float",
        "calibrated on made-up inputs (zeroq: images 32, seed 0, steps 120, rate 0.5, batch 0)",
        "layer_norm",
        "×9",
        "target portable has no integer kernel for it",
        "and 7 more",
    ),
    "export": (
        "3 of 4 layers in integers (95 % of multiply-accumulates), 1 in float; inserted beside them: 29 TRANSPOSE and "
        "1 QUANTIZE",
        "conv2d",
        "×4",
        "float island",
        "<mean>",
        "a note",
        "2.7 MB (float 2.1 MB)",
    ),
    "verify": ("xnnpack", "99.99 %", "∞", "0.878"),
    "profile": (
        "LiteRT",
        "6.50",
        "5.25",
        "0.81×",
        "Core ML cannot be timed",
        "unattributed",
        "delegate overhead",
        "a profiler; rows × 0.75",
        "100 % whole inference",
    ),
    "doctor": (
        "int8 dot products by avx512_vnni",
        "litert",
        "pip install",
        "conv2d ● ● ● ○ ●",
        "minmax",
        "2 cores",
        "7.2.22), 1 core hvx128 verify; instruction counts",
        "[Phone]",
        "asimd asimddp, governor schedutil, 42 °C",
        "not reached: python",
    ),
}
RENDER = {
    "demo": tables.demo_table,
    "quantize": tables.quantized_table,
    "export": tables.coverage_tables,
    "verify": tables.parity_table,
    "profile": tables.latency_tables,
    "doctor": choices.doctor_tables,
}


@pytest.mark.parametrize("verb", list(RENDER))
def test_tables_fit_eighty_columns(verb: str, made: QuantizedModel) -> None:
    text = shown(RENDER[verb], found_by(verb, made))
    assert max(len(line) for line in text.splitlines()) <= 80
    for wanted in WANTED[verb]:
        assert wanted in " ".join(text.split()), wanted
    assert "…" not in text
    warned = text.find("slower than float")
    assert warned == -1 or warned < text.index("runtime")


@pytest.mark.parametrize(
    ("tie", "mark", "said"),
    [
        (
            6e-6,
            "good",
            "within 6e-06 of a step from halfway between two: float's own rounding decides which, and both are",
        ),
        (
            0.01,
            "warn",
            "up to 0.01 of a step from halfway between two integers became the other: the runtime's float kernels",
        ),
    ],
)
def test_an_island_whose_rounding_parts_is_said_in_words(
    tie: float, mark: str, said: str, made: QuantizedModel
) -> None:
    found = parity_of(made, 1)
    row = found["backends"]["litert"]
    assert "edgeq verify --layers names the layer that parts first" in shown(tables.parity_table, found)
    parting = {"layer": "cat", "max_lsb": 1, "exact_share": 0.998, "tie": tie, "checked": 4}
    found["backends"] = {"litert": {**row, "first_parting": parting}}
    text = " ".join(shown(tables.parity_table, found).split())
    assert "LiteRT: parts first at cat" in text and said in text and "--layers" not in text
    assert any(said in sentence for told, sentence in words.parity(found["backends"]) if told == mark)
    parting["tie"] = None  # integers that are wrong
    assert "float island" not in shown(tables.parity_table, found) + str(words.parity(found["backends"]))


def test_runs_that_differ_much_are_said_in_one_sentence(made: QuantizedModel) -> None:
    found = profile_of(made, 6.5, 5.25)
    assert words.unsteady(found) == []
    found["backends"]["litert"]["total_ms"]["p90"] = 20.0
    (said,) = words.unsteady(found)
    assert "device busy" in said and "LiteRT int8 took 5.85 to 20.0 ms." in said
    assert "device busy" in " ".join(shown(tables.latency_tables, found).split())


def test_an_emulated_core_has_instructions_and_nothing_of_time(made: QuantizedModel) -> None:
    report = InstructionReport("emulated:cortex-a76", "tvm", {"tvm": "0.26.0"}, 1, 123_456_789)
    assert {field.name for field in dataclasses.fields(InstructionReport)} == {
        "device", "backend", "versions", "threads", "instructions", "measurement",
    }  # fmt: skip
    counted = {
        "model": "small",
        "device": report.device,
        "notes": ["a note"],
        "backends": {"tvm": dataclasses.asdict(report)},
    }
    text = shown(tables.latency_tables, counted)
    assert "123 456 789" in text and "Cortex" not in text and "emulated:cortex-a76" in text and "a note" in text
    assert not re.search(r"\b(ms|milliseconds|speedup|seconds)\b", text)
    both = {**counted, "backends": {**counted["backends"], **profile_of(made, 6.5, 5.25)["backends"]}}
    assert "123 456 789" in shown(tables.latency_tables, both) and "6.50" in shown(tables.latency_tables, both)


def test_the_tables_do_not_import_torch() -> None:
    code = "import sys, edgeq.pages.tables; sys.exit('torch' in sys.modules or 'jinja2' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_other_devices_have_a_section_and_emulated_ones_no_time(made: QuantizedModel, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(made.folder or Path(), tmp_path / "elsewhere"))
    model = package.load(folder)
    assert 'id="devices"' not in write_page(model, folder / "report.html").read_text()
    row = {"name": "CONV", "ms": 1.25, "layers": [HOSTILE], "kind": "operator", "run_ms": []}
    timed = {**times(4.5, [row]), "device": "Phone <9>", "float": times(9.0, [row]), "speedup": 2.0}
    counted = {
        "device": "Arm Cortex-A76", "backend": "executorch", "instructions": 1234567, "fewer": 3.5,
        "float": {"instructions": 4320985},
    }  # fmt: skip
    for name, found in (("adb:X1", timed), ("emulated:cortex-a76", counted)):
        file = name.replace(":", "-")
        for verb, backends in (("verify", parity_of(model, 0)["backends"]), ("profile", {"executorch": found})):
            told = {"device": name, "backends": {"executorch": backends["executorch"]}}
            (folder / f"{verb}.{file}.json").write_text(json.dumps(told))
    page = write_page(model, sealed(folder) / "report.html").read_text()
    section = page[page.index('<section id="devices">') :].partition("</section>")[0]
    phone, core = section.split("emulated:cortex-a76</h3>")
    assert (
        "4.50" in phone and "9.00" in phone and "2.00×" in phone and "Phone &lt;9&gt;" in phone and "1.25 ms" in phone
    )
    assert HOSTILE not in phone and html.escape(HOSTILE, quote=False)[:10] in phone
    assert "1,234,567" in core and "4,320,985" in core and "3.50×" in core and "100.00 %" not in core
    assert not re.search(r"\bms\b", core)


@pytest.mark.parametrize(
    ("interval", "warned", "praised"),
    [
        ((2.31, 2.80), "", "int8 is faster than float on the same runtime: TVM 2.55× (2.31× to 2.80×)."),
        ((0.40, 9.00), "cannot be told on this busy device: TVM 2.55× (0.40× to 9.00×)", ""),
        (None, "cannot be told on this busy device: TVM 2.55× (too few runs)", ""),
    ],
)
def test_a_verdict_on_speed_is_one_beyond_the_noise(
    interval: tuple[float, float] | None, warned: str, praised: str
) -> None:
    row = {"total_ms": {"median": 1.0}, "float": {"total_ms": {"median": 2.55}}, "speedup": 2.55}
    found = {"backends": {"tvm": {**row, "speedup_interval": interval}}}
    assert words.faster(found) == ([praised] if praised else [])
    assert len(words.slower(found)) == bool(warned) and warned in "".join(words.slower(found))


def test_the_interval_of_a_speed_up_is_that_of_its_runs() -> None:
    """Of runs that scatter a hundredfold, medians 1.2 apart tell nothing; of calm ones they do."""

    def timed(runs: list[float]) -> LatencyReport:
        spread = Spread(float(np.median(runs)), min(runs), max(runs), len(runs))
        return LatencyReport("host", "tvm", {}, 1, 5, spread, tuple(runs), (), "")

    calm, busy = [1.0, 1.01] * 15, np.random.default_rng(0).exponential(1.0, 30).tolist()
    steady = Pair("tvm", timed(calm), timed([2.55 * ms for ms in calm])).interval
    assert steady is not None and 2.4 < steady[0] <= 2.55 <= steady[1] < 2.7
    noisy = Pair("tvm", timed(busy), timed([1.2 * ms for ms in busy])).interval
    assert noisy is not None and noisy[0] < 1 < noisy[1]
    assert Pair("tvm", timed(calm[:3]), timed(calm[:3])).interval is None
