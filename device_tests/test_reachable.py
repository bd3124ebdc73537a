"""What `edgeq doctor` says of devices, by real adb servers, absent tools, and servers that never answer."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import free_port, need
from fake_adbd import FakePhone

from edgeq import api
from edgeq.devices import Found, found, open_device
from edgeq.pages.devices import device_rows
from edgeq.runners import build
from edgeq.spec import EdgeqError

KINDS = ("host", "emulated:", "adb:", "ssh:", "apple:", "tvm-rpc:")


def by_name() -> dict[str, Found]:
    started = time.monotonic()
    rows = {row.name: row for row in found()}
    assert time.monotonic() - started < 5
    assert all(any(name.startswith(kind) for name in rows) for kind in KINDS)
    assert all(row.info is not None or row.how for row in rows.values())
    return rows


def test_phones_are_described_or_explained(adb: Callable[..., str], plug: Callable[..., FakePhone]) -> None:
    good, mute = plug(), plug()
    mute.stall_on = "uname"
    rows = by_name()
    info = rows[f"adb:{good.serial}"].info
    assert info is not None and info.model == "Example Phone 9 (SoC 1)"
    assert rows[f"adb:{mute.serial}"].info is None
    assert "stopped answering" in rows[f"adb:{mute.serial}"].how or "no answer" in rows[f"adb:{mute.serial}"].how


def server_runs(expected: bool) -> bool:
    """Whether it does, a few seconds at most after it was told to end."""
    port, deadline, runs = int(os.environ["ANDROID_ADB_SERVER_PORT"]), time.monotonic() + 5, not expected
    while runs is not expected and time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            runs = True
        except OSError:
            runs = False
        time.sleep(0.05)
    return runs


def test_no_phone_leaves_no_server_behind(adb: Callable[..., str]) -> None:
    adb("kill-server")
    assert not server_runs(False)
    assert "plug a phone in" in by_name()["adb:SERIAL"].how
    assert not server_runs(False)
    adb("start-server")
    assert "plug a phone in" in by_name()["adb:SERIAL"].how
    time.sleep(0.5)
    assert server_runs(True)


def test_a_server_that_never_answers_does_not_hold_doctor_up(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        monkeypatch.setenv("ANDROID_ADB_SERVER_PORT", str(listener.getsockname()[1]))
        assert "does not answer" in by_name()["adb:SERIAL"].how


def test_without_any_tool_every_row_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("ANDROID_ADB_SERVER_PORT", str(free_port()))
    rows = by_name()
    assert rows["host"].info is not None
    for name in ("emulated:cortex-a76", "emulated:hexagon-v67", "adb:SERIAL", "ssh:USER@HOST"):
        assert rows[name].info is None and "tools/device_setup.sh" in rows[name].how, name


def test_an_emulated_core_says_what_is_missing(
    edgeq_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need("qemu-aarch64", "qemu-hexagon", "aarch64-linux-gnu-g++", "clang-16", "ld.lld-16")
    said = by_name()["emulated:cortex-a53"].how
    assert "tools/arm64_root.py" in said and "python -m edgeq.runners.build aarch64-linux" in said
    (edgeq_home / "arm64-root").mkdir(parents=True)
    stamp = edgeq_home / "runners" / "aarch64-linux" / build.STAMP
    stamp.parent.mkdir(parents=True)
    stamp.write_text(json.dumps({"sources": build.digest()}))
    rows = by_name()
    row = rows["emulated:cortex-a53"]
    assert row.how == "" and row.info is not None and row.info.emulated and "no times" in row.can
    assert rows["emulated:hexagon-v67"].how == ""
    bare = tmp_path / "bare"
    bare.mkdir()
    for tool in ("qemu-aarch64", "qemu-hexagon"):
        (bare / tool).symlink_to(shutil.which(tool) or "")
    monkeypatch.setenv("PATH", str(bare))
    rows = by_name()
    assert "aarch64-linux-gnu-g++ missing: tools/device_setup.sh" in rows["emulated:cortex-a53"].how
    assert "apt-get install clang-16 lld-16" in rows["emulated:hexagon-v67"].how


def test_doctor_tells_the_version_that_runs() -> None:
    found = api.doctor()
    assert found["backends"]["litert"]["version"] == found["versions"]["ai-edge-litert"]


def test_doctor_prints_what_was_found(adb: Callable[..., str], plug: Callable[..., FakePhone]) -> None:
    phone = plug()
    done = subprocess.run(
        [sys.executable, "-m", "edgeq.cli", "doctor", "--json"], capture_output=True, text=True, timeout=120, check=True
    )
    devices = json.loads(done.stdout)["devices"]
    row = devices[f"adb:{phone.serial}"]
    assert (row["reachable"], row["abi"], row["temperature_c"]) == (True, "aarch64-android", 41.5)
    assert devices["ssh:USER@HOST"]["reachable"] is False
    said = dict(device_rows(devices))
    assert "Example Phone 9 (SoC 1)" in said[f"adb:{phone.serial}"]
    assert "asimd asimddp, governor schedutil, 42 °C" in said[f"adb:{phone.serial}"]
    assert said["ssh:USER@HOST"].startswith("not reached: any Linux board")


def test_rows_of_the_table_are_what_the_api_gives() -> None:
    row = api.device_json(Found("adb:X", None, "verify, profile", "plug it in"))
    assert row == {"reachable": False, "can": "verify, profile", "how": "plug it in"}


@pytest.mark.skipif(sys.platform == "darwin", reason="this is a Mac")
def test_apple_elsewhere_is_one_sentence() -> None:
    with pytest.raises(EdgeqError, match="macOS only") as error:
        open_device("apple:")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["", "phone", "hosts", "host:x", "emulated", "tvm-rpc"])
def test_unknown_devices_are_named(name: str) -> None:
    with pytest.raises(EdgeqError, match=r"unknown device|no such core|write tvm-rpc"):
        open_device(name)
