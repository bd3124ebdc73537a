"""Shared by the device tests: neighbours are importable, a missing tool skips with its reason, servers are real."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.append(str(Path(__file__).parents[1] / "tests"))  # networks and oracle

from fake_adbd import FakePhone

from edgeq.home import home

os.environ["EDGEQ_HOME"] = str(home())  # stays where it is when a fixture gives adb a HOME of its own
ARM_ROOT = home() / "arm64-root"


# words that a shell would take apart, for whoever sends arguments to one
ODD = [
    "a b",
    "$(touch hacked)",
    "it's",
    '"quoted"',
    "*",
    "back\\slash",
    "line\nbreak",
    ";rm x",
    "",
    "-n",
    "ünï",
    "`id`",
]


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport() -> Iterator[None]:
    """Where everything was installed for the tests (EDGEQ_NO_SKIP, set by `make device-test`), a skip is a failure."""
    outcome = yield
    report = outcome.get_result()  # type: ignore[attr-defined] # pluggy's result
    if os.environ.get("EDGEQ_NO_SKIP") and report.skipped:
        report.outcome = "failed"
        report.longrepr = f"skipped where nothing may be: {report.longrepr}"


def need(*programs: str) -> None:
    """Skip where one of them is not installed."""
    missing = [program for program in programs if shutil.which(program) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} not installed: run tools/device_setup.sh --tests")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@pytest.fixture(scope="session")
def arm_program(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """Compiles a static program for Arm from C or assembly: name with its suffix, source."""
    need("aarch64-linux-gnu-gcc")
    folder = tmp_path_factory.mktemp("arm")

    def compile(name: str, source: str) -> Path:
        code, program = folder / name, (folder / name).with_suffix("")
        if not program.is_file():
            code.write_text(source)
            plain = ["-nostdlib"] if name.endswith(".S") else ["-O1", "-pthread"]
            subprocess.run(
                ["aarch64-linux-gnu-gcc", "-static", *plain, str(code), "-o", str(program)], check=True, timeout=60
            )
        return program

    return compile


@pytest.fixture(scope="session")
def adb(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., str]]:
    """The real adb with a server of the tests' own: its arguments → what it printed."""
    need("adb")
    home = tmp_path_factory.mktemp("adb-home")  # adb makes a key there
    own = {"ANDROID_ADB_SERVER_PORT": str(free_port()), "HOME": str(home), "ADB_MDNS": "0"}
    before = {name: os.environ.get(name) for name in (*own, "ANDROID_SERIAL")}
    os.environ.update(own)
    os.environ.pop("ANDROID_SERIAL", None)
    said = home / "said"

    def run(*arguments: str) -> str:
        with said.open("w") as file:  # the server stays, and would keep a pipe open
            subprocess.run(
                ["adb", *arguments], stdout=file, stderr=file, stdin=subprocess.DEVNULL, timeout=30, check=False
            )
        return said.read_text()

    run("start-server")
    yield run
    run("kill-server")
    for name, value in before.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


@pytest.fixture
def plug(adb: Callable[..., str], tmp_path: Path) -> Iterator[Callable[..., FakePhone]]:
    """Makes a phone and connects adb to it; again with the same phone after it was unplugged."""
    made: list[FakePhone] = []

    def connect(phone: FakePhone | None = None, **options: object) -> FakePhone:
        if phone is None:
            phone = FakePhone(tmp_path / f"phone{len(made)}", **options)  # type: ignore[arg-type]  # its own options
            made.append(phone)
        phone.plug_in()
        adb("disconnect", phone.serial)
        said = adb("connect", phone.serial)
        assert "connected to" in said, said
        return phone

    yield connect
    for phone in made:
        adb("disconnect", phone.serial)
        phone.close()


@pytest.fixture
def edgeq_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home() for one test."""
    monkeypatch.setenv("EDGEQ_HOME", str(tmp_path / "edgeq-home"))
    return tmp_path / "edgeq-home"
