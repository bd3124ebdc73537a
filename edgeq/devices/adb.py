"""Android phones through adb's server: adbutils finds them and opens their services, the two protocols are spoken here.

adbutils' own file transfer has no time-outs and drops the device's words when it refuses, hence `sync` and `shell,v2` here
(docs/dev/sync.md and shell_protocol.h in Android's packages/modules/adb).
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import socket
import stat
import struct
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgeq.device import STEP_S, Finished
from edgeq.devices.shell import Refused, Shell
from edgeq.spec import EdgeqError

START_S = 15.0  # adb's server starts in one or two seconds
CHUNK = 64 * 1024  # the protocol's largest piece of a file
STDOUT, STDERR, EXIT, CLOSE_STDIN = 1, 2, 3, 4  # packets of `shell,v2`
LARGEST_PACKET = 16 * 2**20  # adbd sends 32 kB at most; a longer one is garbage


class Adb(Shell):
    """A phone by its serial number, or the only one there is."""

    folder = "/data/local/tmp/edgeq"

    def __init__(self, serial: str = "", *, step_s: float = STEP_S) -> None:
        """Find it.

        Raises:
            EdgeqError: adb is missing, or the phone is not there, not authorised, or one of several.
        """
        self._client = client(step_s)
        self.serial = choose(serial, phones(self._client))
        super().__init__(f"adb:{self.serial}", step_s)

    def execute(self, script: str, timeout_s: float) -> Finished:
        """Run by `shell,v2`, which tells stdout, stderr and the exit status apart."""
        deadline = time.monotonic() + timeout_s
        printed: dict[int, list[bytes]] = {STDOUT: [], STDERR: []}
        with self._service(f"shell,v2,raw:{script}") as stream:
            _send(stream, struct.pack("<BI", CLOSE_STDIN, 0))
            while True:
                kind, size = struct.unpack("<BI", self._exactly(stream, 5, deadline))
                if kind not in (STDOUT, STDERR, EXIT) or size > LARGEST_PACKET:
                    raise self._garbage()
                data = self._exactly(stream, size, deadline)
                if kind == EXIT:
                    break
                printed[kind].append(data)
        if len(data) != 1:
            raise self._garbage()
        out, err = (b"".join(printed[kind]).decode(errors="replace") for kind in (STDOUT, STDERR))
        return Finished(data[0], out, err)

    def send(self, local: Path, path: str) -> None:
        """`SEND` of the sync service; the device may refuse at any moment."""
        name = f"{path},{stat.S_IFREG | 0o644}".encode()
        with self._service("sync:") as stream, local.open("rb") as file:
            try:
                _send(stream, b"SEND" + struct.pack("<I", len(name)) + name)
                while chunk := file.read(CHUNK):
                    if select.select([stream], [], [], 0)[0]:
                        break  # an answer before the end is a refusal
                    _send(stream, b"DATA" + struct.pack("<I", len(chunk)) + chunk)
                else:
                    _send(stream, b"DONE" + struct.pack("<I", int(local.stat().st_mtime)))
            except (BrokenPipeError, ConnectionResetError):
                pass  # the answer, if one came, says why
            word, size = struct.unpack("<4sI", self._exactly(stream, 8))
            if word == b"FAIL":
                raise Refused(self._exactly(stream, min(size, CHUNK)).decode(errors="replace"))
            if word != b"OKAY":
                raise self._garbage()

    def fetch(self, path: str, local: Path) -> None:
        """`RECV` of the sync service."""
        name = path.encode()
        with self._service("sync:") as stream, local.open("wb") as file:
            _send(stream, b"RECV" + struct.pack("<I", len(name)) + name)
            while True:
                word, size = struct.unpack("<4sI", self._exactly(stream, 8))
                if word == b"DONE":
                    return
                if word not in (b"DATA", b"FAIL") or size > CHUNK:
                    raise self._garbage()
                data = self._exactly(stream, size)
                if word == b"FAIL":
                    raise Refused(data.decode(errors="replace"))
                file.write(data)

    def release(self) -> None:
        """Nothing is held between services."""

    @contextlib.contextmanager
    def _service(self, service: str) -> Iterator[socket.socket]:
        """A stream to one of the device's services, whose every step ends within `step_s`."""
        from adbutils import AdbError

        try:
            connection = self._client.device(self.serial).open_transport(timeout=self.step_s)
        except (AdbError, OSError) as error:
            if _timed_out(error):
                raise TimeoutError from None
            raise self.lost() from None
        try:
            try:
                connection.send_command(service)
                connection.check_okay()
            except (AdbError, OSError) as error:
                if _timed_out(error):
                    raise TimeoutError from None
                raise self.lost() from None
            try:
                yield connection.conn
            except (BrokenPipeError, ConnectionResetError):
                raise self.lost() from None
        finally:
            connection.conn.close()

    def _exactly(self, stream: socket.socket, size: int, deadline: float | None = None) -> bytes:
        """That many bytes; a stream that ends before means that the phone is gone."""
        data = bytearray()
        while len(data) < size:
            if deadline is not None:
                stream.settimeout(max(deadline - time.monotonic(), 0.001))
            piece = stream.recv(min(size - len(data), 1 << 20))
            if not piece:
                raise self.lost()
            data += piece
        return bytes(data)

    def _garbage(self) -> EdgeqError:
        return EdgeqError(
            f"{self.name} sends what is not adb's protocol; replug it, run adb kill-server, then the same command again"
        )


def _client(step_s: float) -> Any:
    try:
        from adbutils import AdbClient
    except ImportError:
        raise EdgeqError("adb devices need adbutils: pip install 'edgeq[devices]'") from None
    return AdbClient(socket_timeout=step_s)


def running() -> bool:
    """Whether adb's server runs already.

    Raises:
        EdgeqError: adbutils is missing.
    """
    made = _client(1.0)
    return _listens(made.host, made.port)


def client(step_s: float = STEP_S) -> Any:
    """adbutils' client of adb's server, which is started where it does not run.

    Raises:
        EdgeqError: adbutils or adb is missing, or the server does not start.
    """
    made = _client(step_s)
    if _listens(made.host, made.port):
        return made
    program = shutil.which("adb")
    if program is None:
        raise EdgeqError(
            "adb is not installed: tools/device_setup.sh installs it on Debian; Android's platform-tools have it"
        )
    quiet: dict[str, Any] = dict.fromkeys(
        ("stdin", "stdout", "stderr"), subprocess.DEVNULL
    )  # the server keeps them open
    with contextlib.suppress(subprocess.TimeoutExpired):
        subprocess.run([program, "start-server"], **quiet, timeout=START_S, check=False)
    if not _listens(made.host, made.port):
        raise EdgeqError(f"adb's server does not start on {made.host}:{made.port}; run adb start-server to see why")
    return made


def phones(server: Any) -> dict[str, str]:
    """Serial number → state (`device`, `unauthorized`, `offline`, ...) of what is connected.

    Raises:
        EdgeqError: adb's server does not answer.
    """
    from adbutils import AdbError

    try:
        listed = server.list()
    except (AdbError, OSError, ValueError):
        raise EdgeqError(
            f"adb's server on {server.host}:{server.port} does not answer; adb kill-server, then try again"
        ) from None
    found: dict[str, str] = {}
    for phone in listed:
        nameless = phone.serial == "(no"  # adb writes `(no serial number)`, which adbutils splits at the blanks
        serial = "????????????" if nameless else phone.serial
        found[serial] = "duplicate" if serial in found else "nameless" if nameless else phone.state
    return found


STATES = {
    "unauthorized": "it has not allowed this computer: unlock it and confirm 'Allow USB debugging'",
    "offline": "it is connected but does not answer: replug it",
    "no": "this user may not open it over USB: install Debian's android-sdk-platform-tools-common (udev rules)",
    "duplicate": "two phones have this serial number: unplug one of them",
    "nameless": "it has no serial number to reach it by: replug it, or use adb over the network",
    "recovery": "it runs its recovery system: restart it",
    "bootloader": "it is in its bootloader: restart it",
}


def choose(serial: str, found: dict[str, str]) -> str:
    """The serial number meant, once its phone is ready.

    Raises:
        EdgeqError: it is not there, or not ready; or none was named and there is not exactly one.
    """
    ready = [name for name, state in found.items() if state == "device"]
    listed = f"connected: {', '.join(f'adb:{name}' for name in found)}" if found else "no phone is connected"
    serial = serial or os.environ.get("ANDROID_SERIAL", "")
    if not serial:
        if len(ready) == 1:
            return ready[0]
        if len(ready) > 1:
            raise EdgeqError(
                f"adb: {len(ready)} phones are connected, name one: {', '.join(f'adb:{n}' for n in ready)}"
            )
        if len(found) == 1:
            serial = next(iter(found))
        else:
            raise EdgeqError(
                "adb: no phone is connected; switch USB debugging on in its developer options and plug it in"
            )
    if serial not in found:
        raise EdgeqError(f"adb:{serial}: no such phone ({listed})")
    if found[serial] != "device":
        raise EdgeqError(f"adb:{serial}: {STATES.get(found[serial], f'its state is {found[serial]}')}")
    return serial


def _send(stream: socket.socket, data: bytes) -> None:
    stream.sendall(data)


def _listens(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=1).close()
    except OSError:
        return False
    return True


def _timed_out(error: BaseException) -> bool:
    from adbutils._adb import AdbTimeout

    return isinstance(error, (TimeoutError, AdbTimeout))
