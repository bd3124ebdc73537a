"""Boards through the real ssh client and a real sshd, started here with a port, keys and a configuration of its own."""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import ARM_ROOT, ODD, free_port, need
from fake_adbd import FakePhone
from test_adb import ADD, file, sentence

from edgeq.devices import DeviceLost, open_device
from edgeq.devices.shell import digest
from edgeq.devices.ssh import Ssh
from edgeq.spec import EdgeqError

pytestmark = pytest.mark.usefixtures("edgeq_home")


class Wire:
    """A port whose connections lead to another port, until it is cut or held."""

    def __init__(self, to: int) -> None:
        self.to, self.held, self.open, self.carried = to, False, True, 0
        self.ends: list[socket.socket] = []
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self.listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        self.open = False
        for end in self.ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
        self.ends.clear()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self.listener.accept()
                if not self.open:
                    near.close()
                    continue
                far = socket.create_connection(("127.0.0.1", self.to))
                self.ends += [near, far]
                for pair in ((near, far), (far, near)):
                    threading.Thread(target=self._carry, args=pair, daemon=True).start()

    def _carry(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                while self.held:
                    time.sleep(0.05)
                self.carried += len(data)
                sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


class Board:
    """A Linux board: the user's home on it, and the wire to it."""

    def __init__(self, home: Path, wire: Wire) -> None:
        self.home, self.wire = home, wire
        self.name = f"ssh:{getpass.getuser()}@127.0.0.1:{wire.port}"

    @property
    def folder(self) -> Path:
        return self.home / ".edgeq-device"

    def open(self, step_s: float = 10.0) -> Ssh:
        return Ssh(self.name.removeprefix("ssh:"), step_s=step_s)


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Board]:
    need("ssh", "ssh-keygen")
    sshd = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin")
    if sshd is None:
        pytest.skip("sshd not installed: run tools/device_setup.sh --tests")
    for name in ("host_key", "user_key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / name)], check=True)
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # an empty folder that sshd insists on when root starts it
    # an Arm board: its programs run through the emulator, and it stands in a home of its own
    arm = FakePhone(tmp_path / "board", android=False, arm_root=ARM_ROOT)
    home = arm.root / "home"
    home.mkdir()
    own_variables = {key: value for key, value in arm.environment.items() if os.environ.get(key) != value}
    exports = "\n".join(f"export {key}='{value}'" for key, value in own_variables.items())
    login = tmp_path / "login"
    login.write_text(f"#!/bin/sh\n{exports}\ncd '{home}' && eval \"$SSH_ORIGINAL_COMMAND\"\n")
    login.chmod(0o755)
    port = free_port()
    (tmp_path / "sshd_config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {tmp_path}/host_key\nPidFile none\nUsePAM no\nStrictModes no\n"
        f"AuthorizedKeysFile {tmp_path}/user_key.pub\nPasswordAuthentication no\nPermitRootLogin yes\nForceCommand {login}\n"
    )
    log = tmp_path / "sshd.log"
    server = subprocess.Popen([sshd, "-D", "-f", str(tmp_path / "sshd_config"), "-E", str(log)])
    wire = Wire(port)
    (tmp_path / "ssh_config").write_text(
        f"Host *\nIdentityFile {tmp_path}/user_key\nIdentitiesOnly yes\nUserKnownHostsFile {tmp_path}/known\n"
        "StrictHostKeyChecking accept-new\n"
    )
    own = tmp_path / "path" / "ssh"  # ssh reads its configuration from the password file's home, so it is named instead
    own.parent.mkdir()
    own.write_text(f"#!/bin/sh\nexec {shutil.which('ssh')} -F '{tmp_path}/ssh_config' \"$@\"\n")
    own.chmod(0o755)
    monkeypatch.setenv("PATH", f"{own.parent}:{os.environ['PATH']}")
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", port), 1).close()
            break
        assert server.poll() is None, log.read_text()
        time.sleep(0.05)
    yield Board(home, wire)
    wire.cut()
    wire.listener.close()
    server.terminate()
    server.wait()
    arm.close()


def test_a_program_for_arm_runs_on_the_board(
    board: Board, tmp_path: Path, arm_program: Callable[[str, str], Path]
) -> None:
    with board.open() as opened:
        info = opened.describe()
        assert (info.name, info.abi, info.os) == (board.name, "aarch64-linux", "Linux 6.1.99")
        opened.put(arm_program("add.c", ADD), "bin/add")
        done = opened.run(["bin/add", "40", "2"], environment={"UNIT": "it's ms"})
        assert (done.status, done.stdout, done.stderr) == (0, "42\n", "2 words\n")
        opened.get("sum.txt", tmp_path / "sum.txt")
        assert (tmp_path / "sum.txt").read_text() == "42 it's ms"
        assert opened.run(["sh", "-c", "exit 255"]).status == 254
    assert not board.folder.exists()
    assert not opened._control.exists()
    with open_device(board.name) as again:
        assert again.run(["echo", "on"]).stdout == "on\n"


def test_every_argument_arrives_as_it_is(board: Board) -> None:
    with board.open() as opened:
        assert opened.run(["printf", "%s|", *ODD]).stdout == "".join(f"{word}|" for word in ODD)
    assert not list(board.home.rglob("hacked"))


def test_unchanged_files_are_not_sent_twice(board: Board, tmp_path: Path) -> None:
    library = file(tmp_path, "lib.so", 300_000)
    with board.open() as opened:
        opened.put(library, "lib.so")
        before = board.wire.carried
        opened.put(library, "lib.so")
        assert board.wire.carried == before
        assert (board.folder / "lib.so").read_bytes() == library.read_bytes()


def test_what_takes_too_long_is_stopped_there(board: Board) -> None:
    with board.open() as opened:
        with pytest.raises(EdgeqError) as error:
            opened.run(["sleep", "301.25"], timeout_s=1)
        sentence(error, "sleep was not finished after 1 s")
        assert opened.run(["echo", "on"]).stdout == "on\n"
        assert b"sleep\x00301.25\x00" not in commands(board)


def commands(board: Board) -> set[bytes]:
    """Command lines of what runs in the board's folder."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (process / "cwd").readlink() == board.folder:
                found.add((process / "cmdline").read_bytes())
    return found


def resumes(board: Board, files: dict[str, Path], at_most: int) -> None:
    """The next run sends no more than `at_most` bytes for these files."""
    board.wire.open, board.wire.held = True, False
    with board.open() as opened:
        before = board.wire.carried
        for name, local in files.items():
            opened.put(local, name)
        assert board.wire.carried - before < at_most
        assert all(digest(board.folder / name) == digest(local) for name, local in files.items())
        assert not list(board.folder.rglob("*.partial"))
    assert not board.folder.exists()


def test_the_line_breaks_while_a_program_runs(board: Board, tmp_path: Path) -> None:
    library = file(tmp_path, "lib.so", 1_000_000)
    with pytest.raises(DeviceLost) as error, board.open() as opened:
        opened.put(library, "lib.so")
        threading.Timer(0.5, board.wire.cut).start()
        opened.run(["sleep", "60"])
    sentence(error, "went away while sleep ran", "run the same command again")
    with pytest.raises(EdgeqError) as refused:
        board.open()
    sentence(refused, board.name)
    resumes(board, {"lib.so": library}, 100_000)


def test_the_line_goes_dead(board: Board, tmp_path: Path) -> None:
    library = file(tmp_path, "lib.so", 1_000_000)
    with pytest.raises(DeviceLost) as error, board.open(step_s=2.0) as opened:
        opened.put(library, "lib.so")
        board.wire.held = True
        opened.run(["sleep", "60"], timeout_s=1)
    sentence(error, "stopped answering while sleep was stopped")
    board.wire.cut()
    resumes(board, {"lib.so": library}, 100_000)


def test_a_full_board(board: Board, tmp_path: Path) -> None:
    files = {"lib.so": file(tmp_path, "lib.so", 1_000_000), "model": file(tmp_path, "model", 2_000_000)}
    with pytest.raises(EdgeqError) as error, board.open() as opened:
        opened.put(files["lib.so"], "lib.so")
        (board.folder / "model.partial").symlink_to("/dev/full")
        opened.put(files["model"], "model")
    sentence(error, "is full", "model (1.9 MB) did not fit", "MB are free")
    assert not (board.folder / "model").exists() and not list(board.folder.rglob("*.partial"))
    resumes(board, files, 2_200_000)


def test_a_file_that_is_not_there(board: Board, tmp_path: Path) -> None:
    with board.open() as opened, pytest.raises(EdgeqError) as error:
        opened.get("nothing", tmp_path / "x")
    sentence(error, "no file nothing was written there")
    assert not (tmp_path / "x").exists()


def test_ssh_says_why_it_does_not_connect(board: Board, tmp_path: Path) -> None:
    with pytest.raises(EdgeqError) as error:
        open_device(f"ssh:{getpass.getuser()}@127.0.0.1:{free_port()}")
    sentence(error, "Connection refused")
    (tmp_path / "user_key.pub").write_text("")
    with pytest.raises(EdgeqError) as error:
        board.open()
    sentence(error, "does not take this user's keys")
    (tmp_path / "known").write_text(
        f"[127.0.0.1]:{board.wire.port} {(tmp_path / 'user_key').read_text().split()[0]} x\n"
    )
    config = (tmp_path / "ssh_config").read_text().replace("accept-new", "yes")
    (tmp_path / "ssh_config").write_text(config)
    with pytest.raises(EdgeqError) as error:
        board.open()
    sentence(error, "host key is not known here")


@pytest.mark.parametrize("where", ["", "-oProxyCommand=x", "a b", "user@", "user@host:port", "user@-host", "@host"])
def test_what_is_no_host_is_refused(where: str) -> None:
    with pytest.raises(EdgeqError, match="write ssh:USER@HOST"):
        open_device(f"ssh:{where}")


def test_two_names_of_a_board_are_one_lock(board: Board, tmp_path: Path) -> None:
    with board.open() as first:
        first.put(file(tmp_path, "x", 10), "x")
        other = Ssh(board.name.removeprefix("ssh:").partition("@")[2])  # the same user, unsaid
        try:
            assert other.name != first.name and other.place == first.place
            with pytest.raises(EdgeqError, match=f"{other.name} is in use by another edgeq"):
                other.put(file(tmp_path, "y", 10), "y")
        finally:
            other.release()
