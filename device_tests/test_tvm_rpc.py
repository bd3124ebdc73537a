"""A real TVM RPC server: files travel, programs are refused, and none of TVM's endless waits is ever waited for."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import free_port
from test_adb import file, sentence

from edgeq.backends.tvm.server import TvmRpc
from edgeq.devices import DeviceLost, open_device
from edgeq.run.place import Place
from edgeq.spec import EdgeqError

pytest.importorskip("tvm", reason="TVM is not installed: pip install 'edgeq[tvm]'")


class Server:
    """A server in processes of its own, and where it listens."""

    def __init__(self, folder: Path) -> None:
        port = free_port()
        self.where = f"127.0.0.1:{port}:board"
        said = folder / "said"
        with said.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tvm.exec.rpc_server", "--host", "127.0.0.1", "--port", str(port),
                 "--port-end", str(port + 1), "--key", "board"],
                stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        deadline = time.monotonic() + 120
        while "bind to" not in said.read_text():
            assert self.process.poll() is None and time.monotonic() < deadline, said.read_text()
            time.sleep(0.1)

    def kill(self) -> None:
        """End it with all its processes."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[], Server]]:
    started: list[Server] = []

    def server() -> Server:
        started.append(Server(tmp_path))
        return started[-1]

    yield server
    for one in started:
        one.kill()


def test_files_travel_and_programs_do_not(start: Callable[[], Server], tmp_path: Path) -> None:
    server = start()
    model = file(tmp_path, "model.so", 200_000)
    with open_device(f"tvm-rpc:{server.where}") as device:
        assert isinstance(device, TvmRpc)
        info = device.describe()
        assert (info.name, info.emulated) == (f"tvm-rpc:{server.where}", False)
        assert info.abi.endswith("-linux") and info.model != "", info
        device.put(model, "in/model.so")
        device.get("in/model.so", tmp_path / "back")
        assert (tmp_path / "back").read_bytes() == model.read_bytes()
        device.session.upload(bytearray(b"changed there"), target="in.model.so")
        device.put(model, "in/model.so")  # the same bytes are not sent again
        device.get("in/model.so", tmp_path / "back")
        assert (tmp_path / "back").read_bytes() == b"changed there"
        with pytest.raises(EdgeqError) as error:
            device.get("nothing", tmp_path / "nothing")
        sentence(error, "no file nothing was written there")
        assert not (tmp_path / "nothing").exists()
        with pytest.raises(EdgeqError) as error:
            device.run(["runner", "--model", "model.so"])
        sentence(error, "runs TVM modules, not programs such as runner")
        # the server serves one client at a time: a second one is told so, soon
        started = time.monotonic()
        with pytest.raises(EdgeqError) as error:
            TvmRpc(server.where, step_s=1.0)
        sentence(error, "serves another client")
        assert time.monotonic() - started < 5
    del device
    gc.collect()
    with pytest.raises(EdgeqError) as error:
        TvmRpc(server.where.replace("board", "other"))
    sentence(error, "the server has another key than 'other'")
    with TvmRpc(server.where) as again:  # a new session begins with an empty folder
        with pytest.raises(EdgeqError, match="no file"):
            again.get("in/model.so", tmp_path / "back")
        again.put(model, "model.so")


def test_a_server_that_dies(start: Callable[[], Server], tmp_path: Path) -> None:
    server = start()
    device = TvmRpc(server.where)
    device.put(file(tmp_path, "x", 1000), "x")
    server.kill()
    (tmp_path / "y").write_text("earlier")
    for step in (lambda: device.get("x", tmp_path / "y"), lambda: device.put(file(tmp_path, "z", 1000), "z")):
        with pytest.raises(DeviceLost) as error:
            step()
        sentence(error, "went away while", "run the same command again")
    assert (tmp_path / "y").read_text() == "earlier" and not list(tmp_path.glob("*.partial"))
    device.close()


def test_a_server_that_falls_silent_is_lost(start: Callable[[], Server], tmp_path: Path) -> None:
    """Stopped, not ended: the connection stays, and TVM itself would wait for ever."""
    server = start()
    device = TvmRpc(server.where, step_s=1.0)
    os.killpg(server.process.pid, signal.SIGSTOP)
    started = time.monotonic()
    with pytest.raises(DeviceLost) as error:
        device.put(file(tmp_path, "x", 1000), "x")
    sentence(error, "stopped answering while x was sent", "run the same command again")
    with pytest.raises(DeviceLost, match="stopped answering"):  # at once: the connection is shut
        device.get("x", tmp_path / "y")
    with pytest.raises(DeviceLost, match="stopped answering"):
        device.describe()
    device.close()
    assert time.monotonic() - started < 20
    os.killpg(server.process.pid, signal.SIGCONT)


def test_a_network_that_never_ends_is_lost(start: Callable[[], Server]) -> None:
    server = start()
    device = TvmRpc(server.where)
    ask = device.session.get_function("target.llvm_get_system_cpu")
    os.killpg(server.process.pid, signal.SIGSTOP)
    with (
        pytest.raises(DeviceLost, match="stopped answering while the network ran"),
        device.explained("the network ran", 1),
    ):
        ask()
    os.killpg(server.process.pid, signal.SIGCONT)


def test_a_server_that_tells_no_features_is_not_refused(start: Callable[[], Server]) -> None:
    with TvmRpc(start().where) as device:
        place = Place(device)
        place.info = dataclasses.replace(place.info, abi="aarch64-linux", model="cortex-a76")
        assert place.lacks("tvm-arm64-dotprod") == ""
        assert "is compiled for hexagon" in place.lacks("tvm-hexagon")


def test_what_is_no_server(tmp_path: Path) -> None:
    with pytest.raises(EdgeqError) as error:
        open_device(f"tvm-rpc:127.0.0.1:{free_port()}")
    sentence(error, "Connection refused", "start `python -m tvm.exec.rpc_server")
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(EdgeqError) as error:
        TvmRpc(f"127.0.0.1:{silent.getsockname()[1]}", step_s=0.5)
    sentence(error, "does not answer")
    for name in ("", "host", "host:port", "host:1:", ":1"):
        with pytest.raises(EdgeqError, match="write tvm-rpc:HOST:PORT"):
            open_device(f"tvm-rpc:{name}")
