"""verify and profile on devices, through the public verbs: what they write, leave out, refuse, keep and take up again."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import networks
import pytest
import test_ssh
import torch
from conftest import need
from fake_adbd import FakePhone
from test_random_ops import need_device
from test_tvm_rpc import Server

import edgeq
from edgeq.backends.litert import device as litert
from edgeq.backends.timing import WAITING
from edgeq.devices import DeviceLost, open_device
from edgeq.graph.arithmetic import xnnpack_arm
from edgeq.home import home
from edgeq.run import remote
from edgeq.run.files import find
from edgeq.run.place import Place
from edgeq.run.profile import from_result
from edgeq.runners import build
from edgeq.spec import DeviceInfo, EdgeqError, Job

arm_board = test_ssh.board  # a fixture
KINDS = ("operator", "unattributed", WAITING)
A53, A76 = "emulated:cortex-a53", "emulated:cortex-a76"


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network with a product in it, for every Arm runtime, for this host and for Hexagon."""

    class Gate(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = torch.nn.Conv2d(3, 16, 3, 1, 1), torch.nn.Conv2d(3, 16, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (torch.relu(self.a(x)) * self.b(x)).mean((2, 3), keepdim=True)

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("verbs") / "gate"
    task = edgeq.Task("gate", Gate, lambda: networks.inputs(networks.Neck), lambda: [networks.inputs(networks.Neck)])
    edgeq.quantize(task, output=folder)
    for backend in ("litert", "executorch", "tvm", "tvm-arm64", "tvm-arm64-dotprod"):
        edgeq.export(folder, backend)
    return folder


@pytest.fixture
def model(exported: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported, tmp_path / "model"))


def texts(data: Any) -> Iterator[str]:
    """Every key and text in plain data."""
    if isinstance(data, dict):
        for name, value in data.items():
            yield str(name)
            yield from texts(value)
    elif isinstance(data, list):
        for value in data:
            yield from texts(value)
    elif isinstance(data, str):
        yield data


def test_verify_on_an_emulated_core(model: Path) -> None:
    need_device(A53)
    found = edgeq.verify(model, device=A53)
    assert list(found["backends"]) == ["litert", "executorch", "tvm-arm64"]
    assert list(found["skipped"]) == ["tvm", "tvm-arm64-dotprod"]
    assert "needs asimddp" in found["skipped"]["tvm-arm64-dotprod"]
    for row in found["backends"].values():
        assert (row["max_lsb"], row["exact_share"]) == (0, 1)
    rules = {name: kernels["arithmetic"] for name, kernels in found["backends"]["litert"]["kernels"].items()}
    assert rules == {
        "reference": "litert_reference",
        "builtin": "litert_builtin_arm",
        "xnnpack": "litert_xnnpack_arm",
    }
    assert found["device"] == A53 and found["float_metric"] is None
    written = json.loads((model / "verify.emulated-cortex-a53.json").read_text())
    assert written["backends"].keys() == found["backends"].keys()
    assert not (model / "verify.json").exists() and not list(model.glob("*.partial"))


def test_a_layer_that_parts_on_the_device_is_found(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need_device(A53)
    kernels = xnnpack_arm.KERNELS
    other = replace(kernels, compute=lambda op, inputs: kernels.compute(op, inputs) ^ (op.kind == "mul"))
    monkeypatch.setattr(xnnpack_arm, "KERNELS", other)
    found = edgeq.verify(model, device=A53, to=["executorch"], layers=True)
    assert found["backends"]["executorch"]["first_parting"]["layer"] == "mul"


def test_an_emulated_core_counts_and_tells_no_time(model: Path) -> None:
    need_device(A76)
    first, again = (edgeq.profile(model, device=A76, to=["executorch", "tvm-arm64-dotprod"]) for _ in range(2))
    plainer = edgeq.profile(model, device=A53, to=["executorch"])
    for found in (first, again, plainer):
        assert not [
            text for text in texts(found["backends"]) if text.endswith("_ms") or text in ("ms", "rows", "speedup")
        ]
    counted = {name: row["instructions"] for name, row in first["backends"].items()}
    assert all(10_000 < count < 10_000_000 for count in counted.values())
    for name, row in again["backends"].items():
        assert row["instructions"] == pytest.approx(counted[name], rel=0.1)  # the network is tiny
        assert row["float"]["instructions"] > 10_000 and row["fewer"] > 0
    assert plainer["backends"]["executorch"]["instructions"] > counted["executorch"]  # no dot product
    with pytest.raises(EdgeqError, match="no times to trace"):
        edgeq.profile(model, device=A76, trace=model / "trace.json")


def test_what_does_not_run_there_is_refused_by_name(model: Path) -> None:
    need_device(A53)
    with pytest.raises(EdgeqError, match="tvm is compiled for this host"):
        edgeq.verify(model, device=A53, to=["tvm"])
    with pytest.raises(EdgeqError, match="Core ML runs on Apple's systems"):
        edgeq.profile(model, device=A53, to=["coreml"])
    with pytest.raises(EdgeqError, match="taskset"):
        edgeq.profile(model, cores=[0])


def phone(plug: Callable[..., FakePhone]) -> FakePhone:
    """A board behind adb: Linux, so that the runners built for Linux run on it."""
    need_device(A76)
    return plug(android=False, arm_root=home() / "arm64-root")


def test_a_lost_phone_loses_nothing_measured(model: Path, plug: Callable[..., FakePhone]) -> None:
    board = phone(plug)
    name = f"adb:{board.serial}"
    board.drop_on = "exec ./tvm_runner"
    with pytest.raises(DeviceLost, match=r"went away while tvm_runner ran; what was measured is kept"):
        edgeq.profile(model, device=name, to=["executorch", "tvm-arm64"], warmup=1, runs=3)
    board.drop_on = ""
    board.commands.clear()
    plug(board)
    found = edgeq.profile(model, device=name, to=["executorch", "tvm-arm64"], warmup=1, runs=3)
    assert not [c for c in board.commands if "executorch_runner" in c and "--runs" in c]
    for backend, row in found["backends"].items():
        assert row["total_ms"]["runs"] == 3 and row["rows"], backend
    layers = {layer for row in found["backends"]["tvm-arm64"]["rows"] for layer in row["layers"]}
    assert {"a/conv2d", "b/conv2d"} <= layers
    assert not list(model.glob("*.partial"))


@pytest.mark.parametrize("backend", ["litert", "executorch", "tvm"])
def test_rows_account_for_nearly_all_of_a_network_that_computes(backend: str, tmp_path: Path) -> None:
    """Rows add up by construction; that little of the total is unattributed, and little is scaled away, is measured."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(*(torch.nn.Conv2d(64, 64, 3, 1, 1) for _ in range(6)))
    example = (torch.randn(1, 64, 56, 56),)
    edgeq.quantize(edgeq.Task("busy", lambda: net, lambda: example, lambda: [example]), output=tmp_path / "busy")
    edgeq.export(tmp_path / "busy", backend)
    seen = []
    for _ in range(3):  # other programs may take what no row has
        row = edgeq.profile(tmp_path / "busy", to=[backend], runs=10)["backends"][backend]
        total, scale = row["total_ms"]["median"], row["row_scale"]
        shares = {kind: sum(r["ms"] for r in row["rows"] if kind in (r["kind"], r["name"])) / total for kind in KINDS}
        worked = 1 - shares[WAITING]  # traced runs wait for a core too, and their rows are scaled down by it
        seen.append((shares, scale))
        if shares["unattributed"] <= 0.1 and shares["operator"] >= 0.8 * worked and 0.7 * worked <= scale <= 1:
            return
    pytest.fail(f"shares of the total, and the scale of rows: {seen}")


def test_litert_on_android_is_timed_by_its_own_program(
    model: Path, plug: Callable[..., FakePhone], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, edgeq_home: Path
) -> None:
    """A stand-in prints what the real program printed on a phone; the way there and back, and the report, are ours."""
    captured = Path(__file__).parent.parent / "tests" / "backends" / "captured" / "tflite_2020_phone.txt"
    monkeypatch.delenv("EDGEQ_BENCHMARK_MODEL", raising=False)
    board = plug()
    place = f"adb:{board.serial}"
    with pytest.raises(EdgeqError, match="EDGEQ_BENCHMARK_MODEL"):
        edgeq.profile(model, to=["litert"], device=place)
    program = tmp_path / "benchmark_model"
    program.write_text(f"#!/bin/sh\ncat <<'END'\n{captured.read_text()}END\n")
    monkeypatch.setenv("EDGEQ_BENCHMARK_MODEL", str(program))
    found = edgeq.profile(model, to=["litert"], device=place, runs=10)["backends"]["litert"]
    assert found["total_ms"]["median"] == pytest.approx(33.2094) and found["total_ms"]["runs"] == 5
    assert found["versions"]["benchmark_model"] and found["float"]["total_ms"]["runs"] == 5
    calls = [c for c in board.commands if "exec ./benchmark_model" in c]
    assert len(calls) == 12 and sum("--enable_op_profiling=true" in c for c in calls) == 2
    assert all("--graph=model.tflite" in c for c in calls) and sum("--num_runs=2 " in c for c in calls) == 10
    program.write_text("#!/bin/sh\necho 'ERROR: no such model' >&2\nexit 1\n")
    with pytest.raises(EdgeqError, match="status 1: ERROR: no such model"):
        edgeq.profile(model, to=["litert"], device=place)
    with pytest.raises(EdgeqError, match="tells no outputs"):
        edgeq.verify(model, to=["litert"], device=place)


def test_verify_over_adb_with_pinned_cores(model: Path, plug: Callable[..., FakePhone]) -> None:
    board = phone(plug)
    found = edgeq.verify(model, device=f"adb:{board.serial}", to=["executorch", "tvm-arm64-dotprod"])
    assert [row["max_lsb"] for row in found["backends"].values()] == [0, 0]
    timed = edgeq.profile(model, device=f"adb:{board.serial}", to=["executorch"], cores=[0], warmup=0, runs=2)
    assert timed["backends"]["executorch"]["total_ms"]["runs"] == 2
    assert any("--cores 0" in command for command in board.commands)
    with pytest.raises(EdgeqError, match="cannot run on core 999"):
        edgeq.profile(model, device=f"adb:{board.serial}", to=["executorch"], cores=[999], warmup=0, runs=2)


def test_a_tvm_rpc_server_runs_and_times(model: Path, tmp_path: Path) -> None:
    server = Server(tmp_path)
    try:
        found = edgeq.verify(model, device=f"tvm-rpc:{server.where}", to=["tvm"])
        assert (found["backends"]["tvm"]["max_lsb"], found["backends"]["tvm"]["exact_share"]) == (0, 1)
        timed = edgeq.profile(model, device=f"tvm-rpc:{server.where}", to=["tvm"], warmup=1, runs=3)
        assert (
            timed["backends"]["tvm"]["total_ms"]["runs"] == timed["backends"]["tvm"]["float"]["total_ms"]["runs"] == 3
        )
        with pytest.raises(EdgeqError, match="runs TVM's artefacts alone"):
            edgeq.verify(model, device=f"tvm-rpc:{server.where}", to=["executorch"])
    finally:
        server.kill()


def test_a_board_over_ssh_runs_every_runtime(
    model: Path,
    arm_board: test_ssh.Board,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    need_device(A76)
    monkeypatch.setenv("EDGEQ_DEVICE_PYTHON", str(home() / "arm64-root/usr/bin/python3.11"))
    found = edgeq.verify(model, device=arm_board.name)
    assert list(found["backends"]) == ["litert", "executorch", "tvm-arm64"]  # it tells of no dot product
    assert {(row["max_lsb"], row["exact_share"]) for row in found["backends"].values()} == {(0, 1)}


# ---------------------------------------------------------------- runners


def run(job: Job, *arguments: str, files: dict[str, bytes]) -> str:
    """What the runner says on stderr when it fails, on a Cortex-A76."""
    need_device(A76)
    with open_device(A76) as device:
        for name, local in job.files.items():
            device.put(local, name)
        for name, data in files.items():
            (device.folder / name).parent.mkdir(exist_ok=True)  # type: ignore[attr-defined] # a local device's
            (device.folder / name).write_bytes(data)  # type: ignore[attr-defined] # a local device's
        done = device.run([*job.command, *arguments], environment=job.environment)
        assert done.status == 1, (done.status, done.stderr)
        return done.stderr.strip().splitlines()[-1]


def job(model: Path, backend: str) -> Job:
    with open_device(A76) as device:
        return Place(device).job(find(edgeq.load(model), backend))


REST = ("--input", "in", "--output", "out", "--batches", "1", "--result", "result.json")
ONE = {"in/inputs.txt": b"float32 1 3 16 16\n", "in/0_0.bin": bytes(3 * 16 * 16 * 4)}


@pytest.mark.parametrize("backend", ["executorch", "tvm-arm64", "litert"])
def test_a_runners_mistakes_are_sentences(model: Path, backend: str) -> None:
    need_device(A76)
    whole = job(model, backend)
    short = {**ONE, "in/0_0.bin": b"abc"}
    assert "0_0.bin holds 3 bytes, and input 0 takes" in run(whole, *REST, files=short)
    said = run(whole, *REST[:-2], files=ONE)
    assert "--result" in said and ("needed" in said or "required" in said)
    assert "--frobnicate" in run(whole, *REST, "--frobnicate", "1", files=ONE)


def test_litert_on_a_board_tells_its_operators(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the release of this host, whose profiler is known; emulation needs an older one."""
    monkeypatch.setenv("EDGEQ_DEVICE_PYTHON", sys.executable)
    artifact = find(edgeq.load(model), "litert")
    with open_device("host") as device:
        job = litert.job(artifact.path, device.describe())
        batch = litert.encode(artifact.path, edgeq.load(model).golden)
        outcome = remote.execute(device, job, [batch], timing=remote.Timing(warmup=1, runs=4, events=True))
    report = from_result(artifact, outcome.result, "this host", warmup=1)
    assert len(report.rows) > 3 and len(outcome.result["events_run_ms"]) == 4
    assert {layer for row in report.rows for layer in row.layers} >= {"a/conv2d", "b/conv2d", "mul"}


@pytest.mark.parametrize(("backend", "words"), [("executorch", "cannot be loaded"), ("tvm-arm64", "is no library")])
def test_a_damaged_artefact_is_a_sentence(model: Path, tmp_path: Path, backend: str, words: str) -> None:
    need_device(A76)
    whole = job(model, backend)
    name = next(n for n in whole.files if n.startswith("model."))
    broken = tmp_path / name
    broken.write_bytes(b"no artefact at all" * 40)
    assert words in run(Job({**whole.files, name: broken}, whole.command), *REST, files=ONE)


def test_a_runner_that_is_missing_or_old_names_its_command(model: Path, edgeq_home: Path) -> None:
    info = DeviceInfo("ssh:board", "board", "aarch64-linux", 4, "Linux")
    from edgeq.backends.executorch import device

    artifact = find(edgeq.load(model), "executorch").path
    with pytest.raises(EdgeqError, match=r"is not built: run python -m edgeq\.runners\.build aarch64-linux"):
        device.job(artifact, info)
    stamp = edgeq_home / "runners" / "aarch64-linux" / build.STAMP
    stamp.parent.mkdir(parents=True)
    stamp.write_text('{"sources": "older"}')
    with pytest.raises(EdgeqError, match=r"was built from other sources: run python -m"):
        device.job(artifact, info)


def test_building_for_android_needs_the_ndk(edgeq_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ANDROID_NDK_HOME", raising=False)
    with pytest.raises(EdgeqError, match="set ANDROID_NDK_HOME"):
        build.build("aarch64-android")
    with pytest.raises(EdgeqError, match="no runners for riscv64-linux: choose from aarch64-linux"):
        build.build("riscv64-linux")


def test_libraries_of_another_system_are_refused_before_anything_is_fetched(
    edgeq_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need("aarch64-linux-gnu-gcc", "gcc")
    ndk = tmp_path / "ndk" / "toolchains/llvm/prebuilt/linux-x86_64/bin/aarch64-linux-android26-clang++"
    ndk.parent.mkdir(parents=True)
    ndk.write_text("#!/bin/sh\nexit 1\n")
    monkeypatch.setenv("ANDROID_NDK_HOME", str(tmp_path / "ndk"))
    monkeypatch.setenv("EDGEQ_ANDROID_LIBRARIES", str(tmp_path))
    fetched: list[str] = []
    monkeypatch.setattr(build.wheels, "fetch", lambda names, machine: fetched.extend(names) or {})
    runner = build.RUNNERS[0]
    paths = [tmp_path / f"lib{name}.so" for name in (*runner.libraries, *runner.always)]
    code = tmp_path / "a.c"
    code.write_text('#include <stdio.h>\nint say(void) { return puts("x"); }\n')

    def said() -> str:
        with pytest.raises((EdgeqError, KeyError)) as error:
            build.build("aarch64-android", force=True)
        return str(error.value)

    assert "needs libexecutorch.so" in said()
    for compiler, words in (
        (["gcc"], "is for another processor than aarch64"),
        (["aarch64-linux-gnu-gcc"], "wants libc.so.6, which is Linux's"),
        (["aarch64-linux-gnu-gcc", "-nostdlib"], ""),  # as one for Android: no libc.so.6
    ):
        for path in paths:
            subprocess.run([*compiler, "-shared", "-fPIC", str(code), "-o", str(path)], check=True)
        assert words in said() and (not words or not fetched)
    assert fetched
    paths[0].write_bytes(b"no library")
    assert "is no 64-bit ELF library" in said()


def test_a_result_that_cannot_be_read(model: Path, tmp_path: Path) -> None:
    need_device(A76)
    fake = tmp_path / "runner.sh"
    fake.write_text('#!/bin/sh\necho \'{"runtime": "x"}\' > result.json\n')
    fake.chmod(0o755)
    with open_device("host") as device, pytest.raises(EdgeqError, match="a result that cannot be read"):
        remote.execute(device, Job({"runner.sh": fake}, ("runner.sh",)), [(torch.zeros(1),)])
