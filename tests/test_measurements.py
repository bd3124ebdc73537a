"""Measurements outlive the process: kept whole or not at all, found again by device, layer and what it computes."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
import torch
from networks import InvertedResidual, seeded

from edgeq.graph.capture import capture
from edgeq.graph.convert import float_program
from edgeq.graph.signatures import signatures
from edgeq.run import measurements
from edgeq.run.count import agreed
from edgeq.run.measurements import Subject, keep, layer_times, load
from edgeq.spec import DeviceInfo, EdgeqError, InstructionReport, LatencyReport, OpLatency, Spread

PHONE = DeviceInfo("adb:1", "Some Phone", "aarch64-android", 8, "Android 15", ("asimddp",), "schedutil", 31.5)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGEQ_HOME", str(tmp_path / "home"))
    (tmp_path / "model.tflite").write_bytes(b"an artefact")
    return tmp_path


def report(ms: float) -> LatencyReport:
    rows = (
        OpLatency("CONV", ms * 0.7, ("stem/conv2d", "stem/relu"), "operator", (ms, ms)),
        OpLatency("ADD", ms * 0.2, ("block/add",)),
        OpLatency("unattributed", ms * 0.1, kind="unattributed"),
    )
    spread = Spread(ms, ms * 0.9, ms * 1.1, 2)
    return LatencyReport(
        "Some Phone", "litert", {"ai-edge-litert": "2.3.0"}, 2, 5, spread, (ms, ms), rows, "a profiler"
    )


def subject(folder: Path, **changes: str) -> Subject:
    precisions = {"stem/conv2d": "w8a8", "stem/relu": "w8a8", "block/add": "w8a8"}
    told = {"stem/conv2d": "conv2d(1x3x8x8)", "stem/relu": "relu(1x4x8x8)", "block/add": "add(1x4x8x8, 1x4x8x8)"}
    named = {"model": "small", "variant": "int8", **changes}
    return Subject(
        **named, artifact=folder / "model.tflite", signatures=told, precisions=precisions, settings={"cores": [4]}
    )  # type: ignore[arg-type] # changes may name any of its strings


def test_what_was_kept_comes_back_whole(folder: Path) -> None:
    number = keep(report(2.0), PHONE, subject(folder))
    found = load(number)
    assert found.report == report(2.0) and found.device == PHONE
    assert (found.model, found.variant, found.settings) == ("small", "int8", {"cores": [4]})
    assert found.artifact_sha256 == measurements.sha256(folder / "model.tflite") and found.at.endswith("+00:00")
    with pytest.raises(EdgeqError, match="no measurement 7"):
        load(7)


def test_the_search_finds_the_latest_time_of_a_layer(folder: Path) -> None:
    for ms in (4.0, 2.0):
        keep(report(ms), PHONE, subject(folder))
    keep(report(8.0), PHONE, subject(folder, variant="float"))
    keep(report(1.0), PHONE, subject(folder, model="other"))
    found = layer_times(PHONE, "litert", layer="stem/relu", model="small", precision="w8a8", threads=2)
    assert [(f.ms, f.layers) for f in found] == [
        (1.4, ("stem/conv2d", "stem/relu")),
        (2.8, ("stem/conv2d", "stem/relu")),
    ]
    by_shape = layer_times(PHONE, "litert", signature="conv2d(1x3x8x8)", threads=2)
    assert [f.precision for f in by_shape] == ["w8a8", "fp32", "w8a8", "w8a8"] and by_shape[0].ms == 0.7
    assert layer_times(PHONE, "litert", layer="stem/relu", threads=1) == []
    elsewhere = DeviceInfo("adb:1", "Another Phone", "aarch64-android", 8, "Android 15")
    assert layer_times(elsewhere, "litert", layer="stem/relu", threads=2) == []
    artifact = folder / "model.tflite"
    assert measurements.totals(PHONE, "litert", artifact=artifact, threads=2) == [1.0, 8.0, 2.0, 4.0]
    artifact.write_bytes(b"another")
    assert measurements.totals(PHONE, "litert", artifact=artifact, threads=2) == []


def test_instructions_are_kept_and_are_no_time(folder: Path) -> None:
    counted = InstructionReport("emulated:cortex-a76", "tvm", {"tvm": "0.26"}, 1, 123_456_789)
    core = DeviceInfo("emulated:cortex-a76", "Cortex-A76", "aarch64-linux", 1, "Linux", emulated=True)
    number = keep(counted, core, subject(folder))
    assert load(number).report == counted
    assert measurements.totals(core, "tvm", artifact=folder / "model.tflite") == []


WRITER = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_measurements import PHONE, keep, report, subject
for i in range(40):
    keep(report(1.0 + i), PHONE, subject(Path({folder!r})))
"""


def test_two_processes_write_at_once_and_nothing_is_lost(folder: Path) -> None:
    code = WRITER.format(tests=str(Path(__file__).parent), folder=str(folder))
    writers = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(2)]
    assert [writer.wait(120) for writer in writers] == [0, 0]
    assert len(layer_times(PHONE, "litert", layer="block/add", threads=2)) == 80


CRASH = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_measurements import PHONE, keep, report, subject
from edgeq.run import measurements
keep(report(1.0), PHONE, subject(Path({folder!r})))
with measurements._open(write=True) as database:
    database.execute("PRAGMA cache_size = 1")
    database.executemany("INSERT INTO layers VALUES (1, 'half', ?)", [("x" * 5000,) for _ in range(500)])
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_process_killed_in_the_middle_leaves_what_was_whole(folder: Path) -> None:
    code = CRASH.format(tests=str(Path(__file__).parent), folder=str(folder))
    killed = subprocess.run([sys.executable, "-c", code], check=False, timeout=120)
    assert killed.returncode == -signal.SIGKILL
    assert [f.name for f in measurements.path().parent.iterdir() if f.name.endswith("-journal")]
    assert load(1).report == report(1.0)
    assert layer_times(PHONE, "litert", layer="half", threads=2) == []
    assert keep(report(2.0), PHONE, subject(folder)) == 2


def test_what_is_no_database_and_what_is_of_a_later_version_is_named(folder: Path) -> None:
    measurements.path().parent.mkdir()
    measurements.path().write_bytes(b"no database at all, but a file of some length" * 100)
    with pytest.raises(EdgeqError, match=r"measurements\.sqlite cannot be used .*move the file away"):
        keep(report(1.0), PHONE, subject(folder))
    measurements.path().unlink()
    keep(report(1.0), PHONE, subject(folder))
    with sqlite3.connect(measurements.path()) as database:
        database.execute(f"PRAGMA user_version = {measurements.FORMAT + 1}")
    with pytest.raises(EdgeqError, match="later edgeq"):
        load(1)


def test_a_folder_that_cannot_be_made_is_named(folder: Path) -> None:
    measurements.path().parent.write_text("a file where the folder should be, which not even root writes into")
    with pytest.raises(EdgeqError, match="EDGEQ_HOME"):
        keep(report(1.0), PHONE, subject(folder))


def test_a_signature_tells_shapes_and_attributes_and_no_name() -> None:
    captured = capture(seeded(InvertedResidual), (torch.zeros(2, 3, 16, 16),))
    told = signatures(*float_program(captured))
    assert "conv2d(2x3x16x16, 8x3x3x3, 8, [2, 2], [1, 1])" in told.values()
    assert set(told) == set(float_program(captured)[1].values())
    depthwise = next(said for key, said in told.items() if "depthwise" in key)
    assert depthwise.startswith("depthwise_conv2d(2x")


def test_counts_below_zero_of_an_older_format_are_dropped(folder: Path) -> None:
    counted = InstructionReport("emulated:cortex-a53", "litert", {}, 1, 1_000_000)
    right, wrong = (keep(counted, PHONE, subject(folder)) for _ in range(2))
    with closing(sqlite3.connect(measurements.path())) as database:
        database.execute("UPDATE measurements SET instructions = -240585449 WHERE id = ?", (wrong,))
        database.execute("PRAGMA user_version = 1")
        database.commit()
    assert load(right).report == counted
    with pytest.raises(EdgeqError, match=f"no measurement {wrong}"):
        load(wrong)
    with closing(sqlite3.connect(measurements.path())) as database:
        assert database.execute("PRAGMA user_version").fetchone()[0] == measurements.FORMAT


@pytest.mark.parametrize(
    ("counts", "found"),
    [
        ([-240_585_449, 1_000_000, 1_000_900], 1_000_900),
        ([1_000_000, 2_000_000, 1_005_000], 1_005_000),
        ([-5, -5, 0, 0], None),
        ([1_000, 2_000, 3_000, 4_000], None),
    ],
)
def test_a_count_is_one_where_two_agree(counts: list[int], found: int | None) -> None:
    assert agreed(counts) == found
