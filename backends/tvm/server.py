"""A TVM RPC server: it takes and gives files and runs TVM modules through a session, but no programs."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import stat
import struct
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

from torch import Tensor

from edgeq.backends.tvm.rpc import run
from edgeq.device import AGAIN, STEP_S, DeviceLost, Finished, Server, beside, digest, inside
from edgeq.spec import DeviceInfo, EdgeqError

# the handshake of tvm/rpc/base.py: magic, length and text of the key; then the answer
MAGIC = 0xFF271
MISMATCH = MAGIC + 2
SLOWEST = 100e3  # bytes a second below which a transfer counts as stalled
LARGEST = 10e6  # bytes of a file that is fetched
STRANGER = b"client:edgeq-asks-whether-you-are-free"


class TvmRpc(Server):
    """A session with a server started by `python -m tvm.exec.rpc_server`, its files in a folder of the session's own."""

    runtime = "tvm"

    def __init__(self, where: str, *, step_s: float = STEP_S) -> None:
        """Connect.

        Raises:
            EdgeqError: not a name of that form, TVM is not installed, or nothing answers, or it serves somebody else.
        """
        match = re.fullmatch(r"([^:\s]+):([0-9]+)(?::(\S+))?", where)
        if match is None:
            raise EdgeqError(f"tvm-rpc:{where}: write tvm-rpc:HOST:PORT or tvm-rpc:HOST:PORT:KEY")
        self._name = f"tvm-rpc:{where}"
        self.host, self.port, key = match[1], int(match[2]), match[3] or ""
        try:
            from tvm import rpc
        except ImportError:
            raise EdgeqError(f"{self._name} needs TVM here: pip install 'edgeq[tvm]'") from None
        self.step_s = step_s
        self._there: dict[str, str] = {}  # file there → SHA-256
        self._cut = False  # whether the connection was shut because nothing was heard
        self._ask_whether_free(step_s)
        before = set(_connections())
        try:
            self.session: Any = _within(step_s, lambda: rpc.connect(self.host, self.port, key=key))
        except TimeoutError:
            raise DeviceLost(
                f"{self._name} did not answer within {step_s:g} s while it was connected; {AGAIN}"
            ) from None
        except Exception as error:  # whatever TVM raises for it
            if "matches key" in str(error):
                raise EdgeqError(
                    f"{self._name}: the server has another key than {key!r}; write tvm-rpc:HOST:PORT:KEY"
                ) from None
            raise EdgeqError(f"{self._name}: {str(error).strip().splitlines()[-1]}") from None
        self._streams = [fd for fd in _connections() if fd not in before]

    @property
    def name(self) -> str:
        """As on the command line."""
        return self._name

    def describe(self) -> DeviceInfo:
        """What a server with TVM's compiler knows of its processor; one with the runtime alone knows nothing."""
        triple = self._facts("target.llvm_get_system_triple")
        machine, _, rest = triple.partition("-")
        system = next((name for name in ("android", "linux", "apple") if name in rest), "")
        return DeviceInfo(
            name=self._name,
            model=self._facts("target.llvm_get_system_cpu") or f"TVM RPC server at {self.host}",
            abi=f"{machine}-{system}" if system else "unknown",
            cores=1,  # it does not tell
            os=system.capitalize() or "unknown",
        )

    def put(self, local: Path, remote: str) -> None:
        """Upload; the server's folder is flat, so slashes in `remote` become dots (see `there`)."""
        if not local.is_file():
            raise EdgeqError(f"{local}: no such file to put on {self._name}")
        name, wanted = there(remote), digest(local)
        if self._there.get(name) == wanted:
            return
        self._there.pop(name, None)
        data = bytearray(local.read_bytes())
        try:
            with self._patient(self.step_s + len(data) / SLOWEST):
                self.session.upload(data, target=name)
        except Exception as error:
            self._explain(error, f"{self._name} does not take {remote}", f"{remote} was sent")
        self._there[name] = wanted

    def run(
        self,
        command: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
        timeout_s: float = 600.0,
        count: bool = False,
    ) -> Finished:
        """Refuse: only TVM modules run there."""
        raise EdgeqError(
            f"{self._name} runs TVM modules, not programs such as {command[0]}; use --to tvm or tvm-arm64 there, "
            "and ssh: or adb: for the other runtimes"
        )

    def execute(
        self,
        artifact: Path,
        batches: Sequence[Sequence[Tensor]],
        *,
        threads: int,
        warmup: int,
        runs: int,
        timeout_s: float,
    ) -> tuple[tuple[tuple[Tensor, ...], ...], dict[str, Any]]:
        """Run a compiled library; the server times its runs."""
        name = f"model-{digest(artifact)[:16]}.so"  # a library that is loaded must not be written over
        self.put(artifact, name)
        with self.explained("the network ran", timeout_s):
            outputs, run_ms = run(self.session, name, batches, threads, warmup, runs)
        told = f"tvm {version('apache-tvm')}"
        result = {"runtime": told, "threads": threads, "cores": [], "run_ms": run_ms, "events": [], "events_run_ms": []}
        return outputs, result

    def get(self, remote: str, local: Path) -> None:
        """Download."""
        try:
            with self._patient(self.step_s + LARGEST / SLOWEST):  # how large it is, is not known
                data = self.session.download(there(remote))
        except Exception as error:
            self._explain(error, f"{self._name}: no file {remote} was written there", f"{remote} was fetched")
        partial = beside(local)
        try:
            partial.write_bytes(data)
            partial.replace(local)
        except OSError as error:
            raise EdgeqError(f"cannot write {local}: {error.strerror}") from None
        finally:
            partial.unlink(missing_ok=True)

    def close(self) -> None:
        """End the session; the server then removes its folder."""
        self._there.clear()
        self.session = None

    @contextlib.contextmanager
    def explained(self, doing: str, timeout_s: float) -> Iterator[None]:
        """What TVM raises inside, as one sentence; after `timeout_s` the device counts as lost."""
        try:
            with self._patient(timeout_s):
                yield
        except EdgeqError:
            raise
        except Exception as error:
            self._explain(error, f"{self._name} failed while {doing}", doing)

    def _facts(self, function: str) -> str:
        try:
            with self._patient(self.step_s):
                return str(self.session.get_function(function)())
        except AttributeError:  # the server has no such function
            return ""
        except Exception as error:
            self._explain(error, "", "it was asked what it is")

    @contextlib.contextmanager
    def _patient(self, timeout_s: float) -> Iterator[None]:
        """TVM waits for ever for an answer: after `timeout_s` the connection is shut under it, and it raises."""
        if self._cut:
            raise TimeoutError

        def cut() -> None:
            self._cut = True
            for fd in self._streams:
                with contextlib.suppress(OSError), socket.socket(fileno=os.dup(fd)) as stream:
                    stream.shutdown(socket.SHUT_RDWR)

        timer = threading.Timer(timeout_s, cut)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _explain(self, error: Exception, refusal: str, doing: str) -> NoReturn:
        """TVM tells an error over there (RPCError) from a connection that broke (any other)."""
        if self._cut:
            raise DeviceLost(f"{self._name} stopped answering while {doing}; {AGAIN}") from None
        if type(error).__name__ == "RPCError":
            last = str(error).strip().splitlines()[-1]
            raise EdgeqError(f"{refusal}: {last}" if refusal else f"{self._name}: {last}") from None
        raise DeviceLost(f"{self._name} went away while {doing}; {AGAIN}") from None

    def _ask_whether_free(self, step_s: float) -> None:
        """TVM waits for ever for a server that serves another client; one that is free turns a stranger away at once."""
        try:
            with socket.create_connection((self.host, self.port), step_s) as stream:
                stream.settimeout(step_s)
                stream.sendall(struct.pack("<ii", MAGIC, len(STRANGER)) + STRANGER)
                answer = stream.recv(4, socket.MSG_WAITALL)
        except TimeoutError:
            raise EdgeqError(
                f"{self._name}: the server takes the connection but does not answer; it serves another client, or is no "
                "TVM RPC server"
            ) from None
        except OSError as error:
            raise EdgeqError(
                f"{self._name}: {error.strerror or error}; start `python -m tvm.exec.rpc_server --port {self.port}` there"
            ) from None
        if answer != struct.pack("<i", MISMATCH):
            raise EdgeqError(f"{self._name}: what listens there is no TVM RPC server")


def connect(where: str) -> TvmRpc:
    """A session with the server at HOST:PORT[:KEY].

    Raises:
        EdgeqError: see TvmRpc.
    """
    return TvmRpc(where)


def _within(timeout_s: float, call: Callable[[], Any]) -> Any:
    """What `call` returns or raises, on a thread that is left behind where it takes longer.

    Raises:
        TimeoutError: it does.
    """
    found: Future[Any] = Future()

    def work() -> None:
        try:
            found.set_result(call())
        except BaseException as error:
            found.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    return found.result(timeout_s)


def _connections() -> list[int]:
    """This process's open sockets; TVM does not tell which is its own."""
    found = []
    for entry in Path("/dev/fd").iterdir():
        with contextlib.suppress(OSError):
            if stat.S_ISSOCK(os.fstat(int(entry.name)).st_mode):
                found.append(int(entry.name))
    return found


def there(remote: str) -> str:
    """A remote name as it is called in the server's flat folder."""
    return inside(remote).replace("/", ".")
