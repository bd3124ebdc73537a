"""Phones through the real adb client and server: every way a run can break off ends in one sentence, and can go on."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ODD
from fake_adbd import FakePhone

from edgeq.devices import DeviceLost, open_device
from edgeq.devices.adb import Adb
from edgeq.devices.shell import digest
from edgeq.spec import EdgeqError

pytestmark = pytest.mark.usefixtures("edgeq_home")

Plug = Callable[..., FakePhone]
ADD = r"""
#include <stdio.h>
#include <stdlib.h>
int main(int count, char **words) {
    long sum = 0;
    for (int i = 1; i < count; i++) sum += atol(words[i]);
    printf("%ld\n", sum);
    fprintf(stderr, "%d words\n", count - 1);
    FILE *out = fopen("sum.txt", "w");
    if (out == NULL) return 3;
    fprintf(out, "%ld %s", sum, getenv("UNIT") ? getenv("UNIT") : "");
    return fclose(out) || getenv("FAIL") ? 4 : 0;
}
"""


def device(phone: FakePhone, step_s: float = 10.0) -> Adb:
    return Adb(phone.serial, step_s=step_s)


def sentence(error: pytest.ExceptionInfo[EdgeqError], *wanted: str) -> None:
    """One line, with these words in it."""
    said = str(error.value)
    assert "\n" not in said and "Traceback" not in said and len(said) < 400, said
    for words in wanted:
        assert words in said, said


def file(folder: Path, name: str, size: int, seed: int = 0) -> Path:
    path = folder / name
    path.write_bytes(bytes((seed + i * 7) % 251 for i in range(1000)) * (size // 1000) + b"end")
    return path


def left_over(phone: FakePhone) -> set[str]:
    """Half-written files there."""
    return (
        {str(p.relative_to(phone.folder)) for p in phone.folder.rglob("*.partial")} if phone.folder.exists() else set()
    )


# ------------------------------------------------------------------ the real client with the fake phone, without edgeq


def test_the_fake_phone_answers_adb_itself(adb: Callable[..., str], plug: Plug, tmp_path: Path) -> None:
    phone = plug()
    assert f"{phone.serial}        device model:Phone_9" in adb("devices", "-l")
    big = file(tmp_path, "big", 3_000_000)
    assert "1 file pushed" in adb("-s", phone.serial, "push", str(big), "/data/local/tmp/big")
    assert "1 file pulled" in adb("-s", phone.serial, "pull", "/data/local/tmp/big", str(tmp_path / "back"))
    assert (tmp_path / "back").read_bytes() == big.read_bytes()
    assert "big" in adb("-s", phone.serial, "ls", "/data/local/tmp")
    assert adb("-s", phone.serial, "shell", "getprop ro.product.model; uname -m") == "Phone 9\naarch64\n"
    assert adb("-s", phone.serial, "shell", "-x", "echo one; echo two") == "one\ntwo\n"  # the first shell protocol
    done = subprocess.run(
        ["adb", "-s", phone.serial, "shell", "echo bad >&2; exit 7"], capture_output=True, check=False
    )
    assert (done.returncode, done.stderr) == (7, b"bad\n")


# ------------------------------------------------------------------ the way it should go


def test_a_program_for_arm_runs_on_the_phone(
    plug: Plug, tmp_path: Path, arm_program: Callable[[str, str], Path]
) -> None:
    phone = plug()
    with open_device(f"adb:{phone.serial}") as opened:
        info = opened.describe()
        assert (info.abi, info.os, info.model) == ("aarch64-android", "Android 14", "Example Phone 9 (SoC 1)")
        assert (info.features, info.governor, info.temperature_c) == (("asimd", "asimddp"), "schedutil", 41.5)
        opened.put(arm_program("add.c", ADD), "add")
        done = opened.run(["add", "40", "2"], environment={"UNIT": "ms"})
        assert (done.status, done.stdout, done.stderr, done.instructions) == (0, "42\n", "2 words\n", None)
        opened.get("sum.txt", tmp_path / "sum.txt")
        assert (tmp_path / "sum.txt").read_text() == "42 ms"
        assert opened.run(["add"], environment={"FAIL": "1"}).status == 4
    assert not phone.folder.exists()


def test_every_argument_arrives_as_it_is(plug: Plug, tmp_path: Path) -> None:
    phone = plug()
    with device(phone) as opened:
        assert opened.run(["printf", "%s|", *ODD]).stdout == "".join(f"{word}|" for word in ODD)
        strange = "in/it's $HOME; `id`/a b.bin"
        opened.put(file(tmp_path, "x", 5000), strange)
        opened.get(strange, tmp_path / "y")
        assert (tmp_path / "y").read_bytes() == (tmp_path / "x").read_bytes()
        shown = opened.run(["sh", "-c", 'printf %s "$A"'], environment={"A": "$B 'c' \"d\" `e`"})
        assert shown.stdout == "$B 'c' \"d\" `e`"
        assert not list(phone.root.rglob("hacked"))


@pytest.mark.parametrize("name", ["/etc/passwd", "../x", "a/../../x", ".pid", "", "a\nb"])
def test_names_stay_inside_the_folder(plug: Plug, tmp_path: Path, name: str) -> None:
    with device(plug()) as opened, pytest.raises(EdgeqError, match="inside edgeq's folder"):
        opened.put(file(tmp_path, "x", 10), name)


def test_unchanged_files_are_not_sent_twice(plug: Plug, tmp_path: Path) -> None:
    phone = plug()
    library, model = file(tmp_path, "lib.so", 200_000), file(tmp_path, "model", 1000)
    with device(phone) as opened:
        opened.put(library, "lib.so")
        opened.put(model, "model")
        opened.put(library, "lib.so")
        assert [name.rpartition("/")[2] for name, _ in phone.received] == ["lib.so.partial", "model.partial"]
        file(tmp_path, "model", 1000, seed=1)
        opened.put(model, "model")
        assert len(phone.received) == 3
        assert (phone.folder / "model").read_bytes() == model.read_bytes()


def test_two_runs_at_once_are_refused(plug: Plug, tmp_path: Path) -> None:
    phone = plug()
    with device(phone) as first:
        first.put(file(tmp_path, "x", 10), "x")
        with device(phone) as second, pytest.raises(EdgeqError) as error:
            second.put(file(tmp_path, "x", 10), "x")
        sentence(error, "in use by another edgeq")
    with device(phone) as third:
        third.put(file(tmp_path, "x", 10), "x")


def test_what_takes_too_long_is_stopped_there(plug: Plug) -> None:
    phone = plug()
    with device(phone) as opened:
        started = time.monotonic()
        with pytest.raises(EdgeqError) as error:
            opened.run(["sleep", "300"], timeout_s=1)
        sentence(error, "sleep was not finished after 1 s")
        assert time.monotonic() - started < 10
        deadline = time.monotonic() + 5
        while phone.running() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert phone.running() == 0
        assert opened.run(["echo", "on"]).stdout == "on\n"


# ------------------------------------------------------------------ finding it


def test_the_only_phone_needs_no_name(plug: Plug, adb: Callable[..., str]) -> None:
    with pytest.raises(EdgeqError, match=r"adb: no phone is connected"):
        open_device("adb")
    phone = plug()
    assert open_device("adb").name == f"adb:{phone.serial}"
    other = plug()
    with pytest.raises(EdgeqError) as error:
        open_device("adb")
    sentence(error, "2 phones", phone.serial, other.serial)
    with pytest.raises(EdgeqError) as error:
        open_device("adb:R58M123")
    sentence(error, "adb:R58M123: no such phone", phone.serial, other.serial)


def test_one_of_two_phones_is_unplugged(plug: Plug, adb: Callable[..., str], tmp_path: Path) -> None:
    first, second = plug(), plug()
    first.unplug()
    adb("disconnect", first.serial)
    with pytest.raises(EdgeqError) as error:
        open_device(f"adb:{first.serial}")
    sentence(error, f"adb:{first.serial}: no such phone", f"adb:{second.serial}")
    with device(second) as opened:
        assert opened.run(["echo", "here"]).stdout == "here\n"


@pytest.mark.parametrize(
    ("listed", "name", "words"),
    [
        ("X1\tdevice\nX1\tdevice\n", "adb:X1", "adb:X1: two phones have this serial number"),
        ("(no serial number)\tdevice\nX1\tunauthorized\n", "adb:X1", "confirm 'Allow USB debugging'"),
        ("(no serial number)\tdevice\n", "adb", "it has no serial number"),
        ("X1\toffline\n", "adb", "adb:X1: it is connected but does not answer"),
        ("X1\tno permissions (user in plugdev group; are your udev rules wrong?)\n", "adb", "udev rules"),
        ("X1\tsideload\n", "adb:X1", "its state is sideload"),
        ("X1\tdevice\nX2\tdevice\n", "adb", "2 phones are connected, name one: adb:X1, adb:X2"),
    ],
)
def test_phones_that_cannot_be_used(monkeypatch: pytest.MonkeyPatch, listed: str, name: str, words: str) -> None:
    """The list as adb's server words it; only the server is a stand-in, as these phones cannot be had."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    stream, _ = listener.accept()
                    if stream.recv(4) and stream.recv(100) == b"host:devices":
                        stream.sendall(f"OKAY{len(listed):04x}{listed}".encode())
                    stream.close()

        threading.Thread(target=serve, daemon=True).start()
        monkeypatch.setenv("ANDROID_ADB_SERVER_PORT", str(listener.getsockname()[1]))
        with pytest.raises(EdgeqError) as error:
            open_device(name)
        sentence(error, words)
        listener.shutdown(socket.SHUT_RDWR)


def test_a_missing_adb_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("ANDROID_ADB_SERVER_PORT", "1")
    with pytest.raises(EdgeqError, match=r"adb is not installed: tools/device_setup\.sh"):
        open_device("adb")


def test_adb_without_its_server_starts_it(adb: Callable[..., str], plug: Plug) -> None:
    adb("kill-server")
    with pytest.raises(EdgeqError, match="no phone is connected"):
        open_device("adb")
    assert open_device(f"adb:{plug().serial}").describe().cores >= 1


# ------------------------------------------------------------------ faults


def resumes(phone: FakePhone, plug: Plug, files: dict[str, Path], sent: set[str]) -> None:
    """The next run sends exactly `sent` of `files`, and works."""
    before = len(phone.received)
    plug(phone)
    with device(phone) as opened:
        for name, local in files.items():
            opened.put(local, name)
        arrived = {name.rpartition("/")[2].removesuffix(".partial") for name, _ in phone.received[before:]}
        assert arrived == sent
        assert all(digest(phone.folder / name) == digest(local) for name, local in files.items())
        assert not left_over(phone)
        assert opened.run(["echo", "fine"]).stdout == "fine\n"
    assert not phone.folder.exists()


def test_unplugged_while_files_are_sent(plug: Plug, tmp_path: Path) -> None:
    phone = plug()
    files = {"lib.so": file(tmp_path, "lib.so", 300_000), "model": file(tmp_path, "model", 2_000_000)}
    with pytest.raises(DeviceLost) as error, device(phone) as opened:
        opened.put(files["lib.so"], "lib.so")
        phone.drop_after = 500_000
        opened.put(files["model"], "model")
    sentence(error, "went away while model was sent", "run the same command again")
    assert not (phone.folder / "model").exists()
    assert left_over(phone) == {"model.partial"}  # cut off: nothing could remove it, and no run takes it for whole
    resumes(phone, plug, files, {"model"})


def test_unplugged_while_a_program_runs(plug: Plug, tmp_path: Path) -> None:
    phone = plug()
    files = {"lib.so": file(tmp_path, "lib.so", 300_000)}
    with pytest.raises(DeviceLost) as error, device(phone) as opened:
        opened.put(files["lib.so"], "lib.so")
        phone.drop_on = "sleep"
        opened.run(["sleep", "300"])
    sentence(error, "went away while sleep ran", "what was measured is kept")
    assert phone.running() == 1  # the phone goes on with it, as a real one does
    phone.drop_on = ""
    resumes(phone, plug, files, set())
    assert phone.running() == 0  # the run that follows ends it


def test_unplugged_while_a_result_is_fetched(plug: Plug, tmp_path: Path) -> None:
    phone = plug()
    target = tmp_path / "result"
    target.write_text("earlier")
    with pytest.raises(DeviceLost) as error, device(phone) as opened:
        opened.put(file(tmp_path, "x", 1_000_000), "x")
        phone.drop_after = 500_000
        opened.get("x", target)
    sentence(error, "went away while x was fetched")
    phone.drop_after = None
    assert target.read_text() == "earlier"
    assert sorted(p.name for p in tmp_path.glob("result*")) == ["result"]


def test_a_full_phone(plug: Plug, tmp_path: Path) -> None:
    phone = plug()
    files = {"lib.so": file(tmp_path, "lib.so", 300_000), "model": file(tmp_path, "model", 3_000_000)}
    phone.disk_bytes = 1_000_000
    with pytest.raises(EdgeqError) as error, device(phone) as opened:
        for name, local in files.items():
            opened.put(local, name)
    assert not isinstance(error.value, DeviceLost)
    sentence(error, "is full", "model (2.9 MB) did not fit", "MB are free")
    assert not (phone.folder / "model").exists() and not left_over(phone)
    phone.disk_bytes = None
    resumes(phone, plug, files, {"model"})


def test_a_file_that_arrives_damaged(plug: Plug, tmp_path: Path) -> None:
    phone = plug()
    files = {"model": file(tmp_path, "model", 100_000)}
    phone.damage_sent = True
    with pytest.raises(EdgeqError) as error, device(phone) as opened:
        opened.put(files["model"], "model")
    sentence(error, "model arrived damaged")
    assert not (phone.folder / "model").exists() and not left_over(phone)
    phone.damage_sent = False
    resumes(phone, plug, files, {"model"})


@pytest.mark.parametrize(
    ("fault", "words"), [("truncate", "came truncated (1000 of 100003 bytes)"), ("damage", "damaged")]
)
def test_a_result_that_comes_back_wrong(plug: Plug, tmp_path: Path, fault: str, words: str) -> None:
    phone = plug()
    source, target = file(tmp_path, "x", 100_000), tmp_path / "result"
    with device(phone) as opened:
        opened.put(source, "x")
        setattr(phone, fault, 1000 if fault == "truncate" else True)
        with pytest.raises(EdgeqError) as error:
            opened.get("x", target)
        sentence(error, words)
        assert not list(tmp_path.glob("result*"))
        setattr(phone, fault, None if fault == "truncate" else False)
        opened.get("x", target)
        assert target.read_bytes() == source.read_bytes()


def test_output_cut_off_in_the_middle(plug: Plug) -> None:
    phone = plug()
    phone.mute_on = "seq"
    with pytest.raises(DeviceLost) as error, device(phone) as opened:
        opened.run(["seq", "1000"])
    sentence(error, "went away while seq ran")


def test_a_description_cut_short_is_no_description(plug: Plug, monkeypatch: pytest.MonkeyPatch) -> None:
    phone = plug()
    (phone.root / "proc" / "cpuinfo").write_text("processor: 0\n@machine\n")
    assert device(phone).describe().features == ()
    monkeypatch.setattr("edgeq.devices.describe.SCRIPT", "echo @machine; uname -m")
    with pytest.raises(EdgeqError) as error:
        device(phone).describe()
    sentence(error, "came truncated")


def test_garbage_instead_of_the_shell_protocol(plug: Plug) -> None:
    phone = plug()
    phone.garbage_on = "seq"
    with device(phone) as opened, pytest.raises(EdgeqError) as error:
        opened.run(["seq", "1000"])
    sentence(error, "not adb's protocol")


@pytest.mark.parametrize("step", ["mkdir", "model", "seq"])
def test_a_phone_that_falls_silent(plug: Plug, tmp_path: Path, step: str) -> None:
    phone = plug()
    files = {"model": file(tmp_path, "model", 100_000)}
    phone.stall_on = step
    started = time.monotonic()
    with pytest.raises(DeviceLost) as error, device(phone, step_s=1.0) as opened:
        opened.put(files["model"], "model")
        opened.run(["seq", "1000"], timeout_s=1.0)
    sentence(error, "stopped answering while", "run the same command again")
    assert time.monotonic() - started < 15
    phone.stall_on = ""
    phone.unplug()
    resumes(phone, plug, files, set() if step == "seq" else {"model"})


def test_nothing_is_printed_besides_the_sentence(plug: Plug) -> None:
    phone = plug()
    phone.drop_on = "seq"
    code = (
        "import sys\nfrom edgeq.devices import open_device\nfrom edgeq.spec import EdgeqError\n"
        "try:\n    with open_device(sys.argv[1]) as d: d.run(['seq', '9'])\n"
        "except EdgeqError as error: sys.exit(f'edgeq: {error}')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, f"adb:{phone.serial}"],
        capture_output=True, text=True, timeout=60, check=False, env=dict(os.environ),
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1 and "went away while seq ran" in done.stderr
