"""Two profiles side by side: a verdict only where the noise allows one; and a profile as a trace."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeq.backends.timing import report
from edgeq.pages import words
from edgeq.run import measurements
from edgeq.run.compare import SHIFT, Ratio, compare, ratio_of_medians
from edgeq.run.measurements import Subject, keep
from edgeq.run.trace import chrome_trace
from edgeq.spec import DeviceInfo, EdgeqError, InstructionReport, LatencyReport, OpLatency

HOST = DeviceInfo("host", "Some CPU", "x86_64-linux", 2, "Linux")


def runs(median: float, spread: float, count: int, seed: int, drift: float = 0.0) -> list[float]:
    """Times around a median; with `drift`, each is like the one before."""
    generator = np.random.default_rng(seed)
    noise, state = [], 0.0
    for step in generator.normal(0, 1, count):
        state = drift * state + (1 - drift**2) ** 0.5 * step
        noise.append(state)
    return [median * (1 + spread * n) for n in noise]


def test_a_clear_difference_is_seen_and_the_interval_holds_the_truth() -> None:
    found = ratio_of_medians(runs(10, 0.03, 40, 1), runs(8, 0.03, 40, 2))
    assert found.verdict == "faster" and found.low is not None and found.high is not None
    assert found.low < 0.8 < found.high and found.high - found.low < 0.12
    assert ratio_of_medians(runs(8, 0.03, 40, 2), runs(10, 0.03, 40, 1)).verdict == "slower"


def profiles(count: int, shift: float, drift: float, seed: int, length: int = 30) -> list[list[float]]:
    """Profiles of one file: runs that are each like the one before, around a median that lies elsewhere in each profile."""
    generator = np.random.default_rng(seed)
    medians = 5 * np.exp(generator.normal(0, shift, count))
    seeds = generator.integers(0, 2**32, count)  # the first runs only warm the drift up
    return [runs(m, 0.05, length + 20, int(s), drift)[20:] for m, s in zip(medians, seeds, strict=True)]


def wrong(found: list[Ratio]) -> float:
    return sum(ratio.verdict != "no difference seen" for ratio in found) / len(found)


@pytest.mark.parametrize("shift", [0.0, SHIFT])
@pytest.mark.parametrize("drift", [0.0, 0.5])
@pytest.mark.parametrize("length", [10, 15, 30])
def test_profiles_of_one_file_are_rarely_called_different(shift: float, drift: float, length: int) -> None:
    made = profiles(400, shift, drift, length, length)
    most = 0.08 if drift and length == 10 else 0.05  # blocks of three do not tell all of what drifts
    assert wrong([ratio_of_medians(a, b) for a, b in zip(made[::2], made[1::2], strict=True)]) <= most


def test_a_restless_machine_is_known_by_its_earlier_profiles() -> None:
    """Where medians lie further apart than the prior says, intervals are too narrow until some profiles are kept."""
    made = profiles(200, 3 * SHIFT, 0.5, 1)
    medians = [float(np.median(series)) for series in made]
    alone, knowing = [], []
    for i in range(10, len(made) - 1):
        alone.append(ratio_of_medians(made[i], made[i + 1]))
        knowing.append(ratio_of_medians(made[i], made[i + 1], earlier=(medians[i - 10 : i], medians[i - 9 : i + 1])))
    assert wrong(alone) > 0.2
    assert wrong(knowing) <= 0.06


def test_a_difference_of_a_tenth_is_found_nine_times_of_ten() -> None:
    """Where runs scatter by 5 % and profiles by the prior."""
    made = profiles(200, SHIFT, 0.0, 3)
    found = [ratio_of_medians(a, [1.1 * ms for ms in b]).verdict for a, b in zip(made[::2], made[1::2], strict=True)]
    assert found.count("slower") >= 90


def test_what_is_kept_tells_how_far_profiles_lie_apart(folder: Path) -> None:
    """The same two profiles: told apart by themselves, not where each file's earlier profiles lay as far apart."""
    slower = dataclasses.replace(FUSED, run_ms=tuple(1.1 * ms for ms in FUSED.run_ms))
    restless = (2.0, 2.3, 1.8, 2.1, 2.5, 1.9)
    for earlier, verdict in (((), "slower"), (restless, "no difference seen")):
        for name, made in (("one", FUSED), ("two", slower)):
            kept = as_profile(litert=dataclasses.replace(made, earlier_ms=earlier))
            (folder / f"{name}.json").write_text(json.dumps(kept))
        (pair,) = compare(f"{folder}/one.json", f"{folder}/two.json")["pairs"]
        assert pair["total"]["verdict"] == verdict


def test_noise_hides_a_small_difference_and_few_runs_say_nothing() -> None:
    assert ratio_of_medians(runs(10, 0.5, 20, 1), runs(9.9, 0.5, 20, 2)).verdict == "no difference seen"
    few = ratio_of_medians([10.0, 10.1], [1.0, 1.1])
    assert few.verdict == "too few runs" and few.low is None and few.ratio == pytest.approx(1.05 / 10.05)
    assert ratio_of_medians([10.0] * 9, [1.0] * 9).verdict == "too few runs"
    none = ratio_of_medians([0.0] * 30, [5.0] * 30)
    assert none.verdict == "no difference seen" and none.ratio is None and none.low is None
    clock = ratio_of_medians([0.001] * 30, [0.002] * 30)
    assert clock.verdict == "no difference seen" and clock.ratio == 2


def profiled(scale: float, rows: dict[str, tuple[tuple[str, ...], float]], seed: int) -> LatencyReport:
    made = [OpLatency(name, 0.0, layers, run_ms=tuple(runs(ms, 0.01, 20, seed + i)))
            for i, (name, (layers, ms)) in enumerate(rows.items())]  # fmt: skip
    return report(
        runs(scale, 0.01, 20, seed), made, backend="litert", versions={"ai-edge-litert": "2.3.0"}, threads=1, warmup=5,
        method="a profiler", device="Some CPU",
    )  # fmt: skip


FUSED = profiled(2.0, {"c": (("pad", "conv", "relu"), 1.5), "f": (("fc",), 0.4)}, 1)
SPLIT = profiled(1.6, {"p": (("pad",), 0.2), "c": (("conv", "relu"), 0.9), "f": (("fc",), 0.4), "t": ((), 0.05)}, 50)


def as_profile(**backends: LatencyReport) -> dict[str, Any]:
    rows = {
        name: {**dataclasses.asdict(r), "backend": name, "float": None, "speedup": None} for name, r in backends.items()
    }
    return {"model": "small", "device": "host", "versions": {"edgeq": "1"}, "backends": rows, "notes": []}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGEQ_HOME", str(tmp_path / "home"))
    for name, made in (("a", as_profile(litert=FUSED, tvm=SPLIT)), ("b", as_profile(litert=SPLIT))):
        (tmp_path / name).mkdir()
        (tmp_path / name / "profile.json").write_text(json.dumps(made))
    return tmp_path


def test_layers_fused_on_one_side_are_compared_as_one(folder: Path) -> None:
    (pair,) = compare(str(folder / "a"), str(folder / "b"))["pairs"]
    by_layers = {tuple(row["layers"]): row for row in pair["layers"]}
    first = by_layers["pad", "conv", "relu"]
    assert first["verdict"] == "faster" and first["a_ms"] == pytest.approx(1.5, rel=0.02)
    assert first["b_ms"] == pytest.approx(1.1, rel=0.02)
    assert by_layers["fc",]["verdict"] == "no difference seen"
    assert by_layers["(operator)",]["verdict"] == "too few runs"  # A has no such row
    assert pair["total"]["verdict"] == "faster" and pair["total"]["ratio"] == pytest.approx(0.8, rel=0.02)


def test_layers_are_scaled_as_their_sum_is(folder: Path) -> None:
    """Traced runs take longer: the rows of a profile, and so of a comparison, add up to the untraced total."""
    slow = dataclasses.replace(FUSED, row_scale=0.5)
    (folder / "slow.json").write_text(json.dumps(as_profile(litert=slow)))
    (pair,) = compare(f"{folder}/slow.json", f"{folder}/b")["pairs"]
    assert {tuple(row["layers"]): row for row in pair["layers"]}["fc",]["a_ms"] == pytest.approx(0.2, rel=0.02)


def test_two_networks_are_said_first(folder: Path) -> None:
    other = profiled(1.0, {"x": (("head.linear",), 0.7)}, 9)
    (folder / "other.json").write_text(json.dumps({**as_profile(litert=other), "model": "another"}))
    found = compare(f"{folder}/a", f"{folder}/other.json")
    assert words.differing(found["pairs"][0])[0] == "These are two networks: small in A, another in B."
    assert compare(f"{folder}/a", f"{folder}/b")["pairs"][0]["same_network"]


def test_folders_files_and_numbers_name_a_profile(folder: Path) -> None:
    artifact = folder / "model.tflite"
    artifact.write_bytes(b"an artefact")
    number = keep(FUSED, HOST, Subject("small", "int8", artifact))
    for a in (f"{folder}/a:litert", f"{folder}/a/profile.json:litert", str(number), f"#{number}"):
        (pair,) = compare(a, f"{folder}/b")["pairs"]
        assert pair["total"]["a_ms"] == pytest.approx(FUSED.total_ms.median)
    (pair,) = compare(f"{folder}/a:litert", f"{folder}/a:tvm")["pairs"]
    assert (pair["a"]["backend"], pair["b"]["backend"]) == ("litert", "tvm")
    counted = InstructionReport("emulated:cortex-a76", "tvm", {}, 1, 10**9)
    core = DeviceInfo("emulated:cortex-a76", "Cortex-A76", "aarch64-linux", 1, "Linux", emulated=True)
    with pytest.raises(EdgeqError, match="there is no time in it"):
        compare(str(keep(counted, core, Subject("small", "int8", artifact))), str(number))


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("nowhere", "there is no such profile; name a model folder"),
        ("99", "there is no measurement 99"),
        ("{0}/empty", "run edgeq profile .*empty first"),
        ("{0}/a:coreml", "has no profile of coreml: there is litert, tvm"),
        ("{0}/old.json", "no latency in it"),
        ("99999999999999999999999", "there is no measurement 99999999999999999999999"),
        ("²", "there is no such profile; name a model folder"),
        ("{0}/list.json", "no latency in it"),
        ("{0}/three.json", "no latency in it"),
        ("{0}/lacking.json", "no latency in it"),
        ("{0}/nan.json", "NaN is no number of strict JSON"),
    ],
)
def test_what_is_no_profile_is_named(source: str, said: str, folder: Path) -> None:
    (folder / "empty").mkdir()
    (folder / "list.json").write_text("[1, 2]")
    (folder / "three.json").write_text('{"backends": 3}')
    (folder / "lacking.json").write_text('{"backends": {"litert": {"total_ms": {"median": 1}, "run_ms": [1]}}}')
    nan = {**as_profile(litert=FUSED)["backends"]["litert"], "run_ms": [float("nan")]}
    (folder / "nan.json").write_text(json.dumps({"backends": {"litert": nan}}))
    (folder / "old.json").write_text(json.dumps({"backends": {"litert": {"int8": {"median_ms": 1}}}}))
    with pytest.raises(EdgeqError, match=said):
        compare(source.format(folder), f"{folder}/b")
    assert not measurements.path().is_file() or source.startswith("99")


def test_rows_with_and_without_single_runs_are_compared_as_sums(folder: Path) -> None:
    rows = (
        OpLatency("overhead", 0.2, (), kind="overhead"),
        OpLatency("overhead", 0.3, (), kind="overhead", run_ms=(0.3,) * 20),
    )
    made = as_profile(litert=dataclasses.replace(FUSED, rows=(*FUSED.rows, *rows)))
    (folder / "mixed.json").write_text(json.dumps(made))
    (pair,) = compare(str(folder / "mixed.json"), str(folder / "mixed.json"))["pairs"]
    by_layers = {tuple(row["layers"]): row for row in pair["layers"]}
    assert by_layers["(overhead)",]["verdict"] == "too few runs"
    assert by_layers["(overhead)",]["a_ms"] == pytest.approx(0.5)


def test_the_verdict_is_a_sentence() -> None:
    faster = ratio_of_medians(runs(10, 0.01, 40, 1), runs(5, 0.01, 40, 2))
    said = words.compared(dataclasses.asdict(faster))
    assert said.startswith("B is faster: 2.0") and said.endswith("ms.") and "10.0 ms and 5.0" in said
    same = words.compared(dataclasses.asdict(ratio_of_medians(runs(10, 0.01, 40, 1), runs(10, 0.01, 40, 2))))
    assert same.startswith("No difference seen") and same.endswith("times A's time.")
    assert "too few runs to say" in words.compared(dataclasses.asdict(ratio_of_medians([1.0], [2.0])))
    told = {"device": "X", "threads": 1, "versions": {"tvm": "0.26"}}
    assert words.differing({"a": told, "b": told, "same_network": True}) == []
    other = {"device": "Y", "threads": 2, "versions": {"tvm": "0.27"}}
    assert [s.split()[1] for s in words.differing({"a": told, "b": other, "same_network": True})] == [
        "devices",
        "threads",
        "versions",
    ]


def test_a_trace_is_what_chrome_reads_and_adds_up() -> None:
    found = chrome_trace(as_profile(litert=FUSED, tvm=SPLIT))
    again = json.loads(json.dumps(found, allow_nan=False))
    events = again["traceEvents"]
    assert {e["ph"] for e in events} == {"X", "M"} and all({"pid", "tid", "name"} <= set(e) for e in events)
    names = [e["args"]["name"] for e in events if e["name"] == "process_name"]
    assert names == ["litert int8, Some CPU", "tvm int8, Some CPU"]
    drawn = [e for e in events if e["ph"] == "X" and e["pid"] == 1 and e["tid"] == 1]
    assert [e["name"] for e in drawn] == ["pad", "fc", "unattributed"]
    for before, after in itertools.pairwise(drawn):
        assert after["ts"] == pytest.approx(before["ts"] + before["dur"])
    assert sum(e["dur"] for e in drawn) == pytest.approx(FUSED.total_ms.median * 1e3)
    assert drawn[0]["args"] == {"operator": "c", "layers": ["pad", "conv", "relu"]}
    whole = [e for e in events if e["ph"] == "X" and e["pid"] == 1 and e["tid"] == 2]
    assert [e["dur"] / 1e3 for e in whole] == pytest.approx(FUSED.run_ms)
