"""A phone for tests: adbd's side of the adb protocol on loopback, so that the real adb client and server connect to it.

It speaks the transport (CNXN, OPEN, OKAY, WRTE, CLSE), the services `shell` (v1 and v2) and `sync` (STAT, LIST, SEND,
RECV), as Android's packages/modules/adb describes them in protocol.txt, shell_protocol.h and SYNC.TXT. Commands run in
this machine's shell, with the phone's own places (/data/local/tmp, /sys, /proc/cpuinfo) mapped into a folder; programs
for Arm run through qemu, which a preloaded library starts in the place where a phone's kernel would run them.

As on a phone, a command goes on when its stream ends, and what was sent before a cable is pulled stays.
"""

from __future__ import annotations

import contextlib
import os
import queue
import shutil
import signal
import socket
import stat
import struct
import subprocess
import threading
import time
from pathlib import Path

CNXN, OPEN, OKAY, CLSE, WRTE = (
    int.from_bytes(word, "little") for word in (b"CNXN", b"OPEN", b"OKAY", b"CLSE", b"WRTE")
)
VERSION, LARGEST = 0x01000001, 256 * 1024
STDIN, STDOUT, STDERR, EXIT, CLOSE_STDIN = range(5)
PLACES = ("/data/local/tmp", "/sys/", "/proc/cpuinfo", "/proc/device-tree")

EXEC = r"""
/* What a phone's kernel does with a program for Arm: run it. Preloaded into the fake phone's shell. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int execve(const char *path, char *const argv[], char *const envp[]) {
    int (*real)(const char *, char *const[], char *const[]) = dlsym(RTLD_NEXT, "execve");
    unsigned char head[20] = {0};
    int file = open(path, O_RDONLY), got = file < 0 ? 0 : read(file, head, sizeof head);
    if (file >= 0) close(file);
    if (got != sizeof head || memcmp(head, "\177ELF", 4) != 0 || head[18] != 183) return real(path, argv, envp);
    int args = 0, vars = 0, n = 0, kept = 0;
    static char libraries[8192];
    while (argv[args]) args++;
    while (envp[vars]) vars++;
    char **arguments = calloc(args + 16, sizeof *arguments), **variables = calloc(vars + 1, sizeof *variables);
    arguments[n++] = "qemu-aarch64";
    arguments[n++] = "-cpu";
    arguments[n++] = getenv("FAKE_PHONE_CPU");
    arguments[n++] = "-L";
    arguments[n++] = getenv("FAKE_PHONE_ROOT");
    for (int i = 0; i < vars; i++) {
        if (strncmp(envp[i], "LD_PRELOAD=", 11) == 0) continue;
        if (strncmp(envp[i], "LD_LIBRARY_PATH=", 16) == 0) {
            snprintf(libraries, sizeof libraries, "%s", envp[i]);
            arguments[n++] = "-E";
            arguments[n++] = libraries;
        } else {
            variables[kept++] = envp[i];
        }
    }
    arguments[n++] = (char *)path;
    for (int i = 1; i < args; i++) arguments[n++] = argv[i];
    return real(getenv("FAKE_PHONE_QEMU"), arguments, variables);
}
"""

CPUINFO = """processor\t: 0
BogoMIPS\t: 38.40
Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp
CPU implementer\t: 0x41
CPU part\t: 0xd0b
"""
PROPERTIES = {
    "ro.build.version.release": "14",
    "ro.product.manufacturer": "Example",
    "ro.product.model": "Phone 9",
    "ro.soc.model": "SoC 1",
}


class Gone(Exception):
    """The stream or the connection ended."""


class FakePhone:
    """A listening phone. Its faults are attributes, to be set at any time:

    drop_after: cut the connection once this many bytes of a file have come in or gone out.
    drop_on: cut it while a command runs that contains this text. stall_on: fall silent when such a command, or a transfer
    of such a path, begins. garbage_on: answer such a command with bytes that are no shell protocol.
    mute_on: run such a command, but give only the first half of what it prints.
    disk_bytes: room for files. truncate: end a fetched file after this many bytes as if that were all. damage: flip a bit
    of every fetched piece; `damage_sent` of every one that comes in.
    """

    def __init__(
        self, root: Path, *, android: bool = True, cpu: str = "cortex-a76", arm_root: Path | None = None
    ) -> None:
        self.root = root
        self.drop_after: int | None = None
        self.drop_on = self.stall_on = self.garbage_on = self.mute_on = ""
        self.disk_bytes: int | None = None
        self.truncate: int | None = None
        self.damage = self.damage_sent = False
        self.received: list[tuple[str, int]] = []  # files that came in whole: path there, bytes
        self.commands: list[str] = []
        self._processes: list[subprocess.Popen[bytes]] = []
        self._links: list[Link] = []
        self._plugged = True
        for place in (
            "data/local/tmp",
            "bin",
            "proc",
            "sys/class/thermal/thermal_zone0",
            "sys/class/thermal/thermal_zone1",
        ):
            (root / place).mkdir(parents=True, exist_ok=True)
        (root / "proc" / "cpuinfo").write_text(CPUINFO)
        (root / "sys/class/thermal/thermal_zone0/temp").write_text("41500\n")
        (root / "sys/class/thermal/thermal_zone1/temp").write_text("-274000\n")
        governor = root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"
        governor.parent.mkdir(parents=True, exist_ok=True)
        governor.write_text("schedutil\n")
        self._program("uname", 'case "$1" in -m) echo aarch64 ;; -r) echo 6.1.99 ;; *) echo Linux ;; esac')
        known = "\n".join(f"{key}) echo '{value}' ;;" for key, value in PROPERTIES.items()) if android else ""
        self._program("getprop", f'case "$1" in\n{known}\n*) ;;\nesac' if android else "exit 127")
        self.environment = {**os.environ, "PATH": f"{root / 'bin'}:{os.environ['PATH']}", "HOME": "/"}
        self._arm(cpu, arm_root)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.serial = f"127.0.0.1:{self.port}"
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def folder(self) -> Path:
        """The phone's /data/local/tmp/edgeq, here."""
        return self.root / "data" / "local" / "tmp" / "edgeq"

    def here(self, text: str) -> str:
        """The phone's places as places in `root`."""
        for place in PLACES:
            text = text.replace(place, f"{self.root}{place}")
        return text

    def unplug(self) -> None:
        """Pull the cable: what is under way breaks off, and nobody can connect."""
        self._plugged = False
        for link in self._links:
            link.cut()
        self._links.clear()

    def plug_in(self) -> None:
        """Connections are taken again."""
        self._plugged = True

    def close(self) -> None:
        """Unplug for good, and end what still runs."""
        self.unplug()
        self._listener.close()
        for process in self._processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def running(self) -> int:
        """Commands that have not ended."""
        return sum(process.poll() is None for process in self._processes)

    def _program(self, name: str, script: str) -> None:
        path = self.root / "bin" / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    def _arm(self, cpu: str, arm_root: Path | None) -> None:
        qemu, compiler = shutil.which("qemu-aarch64"), shutil.which("cc") or shutil.which("gcc")
        if qemu is None or compiler is None:
            return
        source, library = self.root / "exec.c", self.root / "exec.so"
        source.write_text(EXEC)
        subprocess.run([compiler, "-shared", "-fPIC", "-O1", str(source), "-o", str(library), "-ldl"], check=True)
        self.environment |= {
            "LD_PRELOAD": str(library),
            "FAKE_PHONE_QEMU": qemu,
            "FAKE_PHONE_CPU": cpu,
            "FAKE_PHONE_ROOT": str(arm_root or "/nonexistent"),
        }

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            if not self._plugged:
                connection.close()
                continue
            link = Link(self, connection)
            self._links.append(link)
            threading.Thread(target=link.serve, daemon=True).start()

    def start(self, command: str) -> subprocess.Popen[bytes]:
        """Run a command as the phone's shell would."""
        self.commands.append(command)
        process = subprocess.Popen(
            ["sh", "-c", self.here(command)],
            cwd=self.root,
            env=self.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        self._processes.append(process)
        return process

    def used(self) -> int:
        """Bytes of files in /data/local/tmp."""
        return sum(path.stat().st_size for path in (self.root / "data/local/tmp").rglob("*") if path.is_file())


class Link:
    """One connection to adb's server."""

    def __init__(self, phone: FakePhone, connection: socket.socket) -> None:
        self.phone, self.connection = phone, connection
        self.largest = LARGEST
        self.streams: dict[int, Stream] = {}
        self.count = 0
        self.silent = False
        self._sending = threading.Lock()

    def serve(self) -> None:
        """Take packets until the connection ends."""
        try:
            while True:
                command, first, second, size, _, _ = struct.unpack("<6I", self._exactly(24))
                data = self._exactly(size)
                if command == CNXN:
                    self.largest = min(second, LARGEST)
                    self.send(CNXN, VERSION, LARGEST, b"device::ro.product.model=Phone 9;features=shell_v2,cmd\0")
                elif command == OPEN:
                    self.count += 1
                    self.streams[self.count] = stream = Stream(self, self.count, first)
                    threading.Thread(target=stream.serve, args=(data.rstrip(b"\0").decode(),), daemon=True).start()
                elif (known := self.streams.get(second)) is None:
                    if command != CLSE:
                        self.send(CLSE, 0, first)
                elif command == OKAY:
                    known.ready.release()
                elif command == WRTE:
                    known.inbox.put(data)
                elif command == CLSE:
                    known.end()
        except (Gone, OSError):
            pass
        finally:
            self.cut()

    def send(self, command: int, first: int, second: int, data: bytes = b"") -> None:
        """One packet, unless the phone has fallen silent."""
        if self.silent:
            return
        head = struct.pack("<6I", command, first, second, len(data), sum(data) & 0xFFFFFFFF, command ^ 0xFFFFFFFF)
        with self._sending:
            try:
                self.connection.sendall(head + data)
            except OSError:
                raise Gone from None

    def cut(self) -> None:
        """Close without a word."""
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)
        self.connection.close()
        for stream in list(self.streams.values()):
            stream.end()

    def _exactly(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            piece = self.connection.recv(size - len(data))
            if not piece:
                raise Gone
            data += piece
        return bytes(data)


class Stream:
    """One service that the other side opened."""

    def __init__(self, link: Link, number: int, remote: int) -> None:
        self.link, self.phone, self.number, self.remote = link, link.phone, number, remote
        self.inbox: queue.Queue[bytes | None] = queue.Queue()
        self.ready = threading.Semaphore(1)  # one packet may be under way
        self.ended = False
        self._rest = b""

    def serve(self, service: str) -> None:
        """Open, do, close."""
        with contextlib.suppress(Gone, OSError):
            kind, _, argument = service.partition(":")
            name, *options = kind.split(",")
            if name not in ("shell", "sync"):
                self.link.send(CLSE, 0, self.remote)
                return
            self.link.send(OKAY, self.number, self.remote)
            if name == "sync":
                self._sync()
            else:
                self._shell(argument, v2="v2" in options)
            self.link.send(CLSE, self.number, self.remote)
        self.end()

    def end(self) -> None:
        """Wake whoever reads or writes."""
        self.ended = True
        self.inbox.put(None)
        self.ready.release()

    def read(self, size: int) -> bytes:
        """Exactly so many bytes."""
        while len(self._rest) < size:
            piece = self.inbox.get()
            if piece is None:
                raise Gone
            self.link.send(OKAY, self.number, self.remote)
            self._rest += piece
        data, self._rest = self._rest[:size], self._rest[size:]
        return data

    def write(self, data: bytes) -> None:
        """In packets, each waiting for the one before to be taken."""
        for start in range(0, len(data), self.link.largest):
            self.ready.acquire()
            if self.ended:
                raise Gone
            self.link.send(WRTE, self.number, self.remote, data[start : start + self.link.largest])

    def _stall(self, text: str) -> None:
        if self.phone.stall_on and self.phone.stall_on in text:
            self.link.silent = True

    # -------------------------------------------------------------- shell

    def _shell(self, command: str, v2: bool) -> None:
        phone = self.phone
        self._stall(command)
        process = phone.start(command)
        assert process.stdin and process.stdout and process.stderr
        if phone.garbage_on and phone.garbage_on in command:
            self.write(b"\xde\xad\xbe\xef" * 64)
            return
        if phone.drop_on and phone.drop_on in command:
            time.sleep(0.3)
            phone.unplug()
            return
        if v2:
            threading.Thread(target=self._feed, args=(process,), daemon=True).start()
        else:
            process.stdin.close()
        half = bool(phone.mute_on) and phone.mute_on in command
        sending = threading.Lock()

        def pump(pipe: int, kind: int) -> None:
            with contextlib.suppress(Gone, OSError):
                while data := os.read(pipe, 32 * 1024):
                    data = data[: len(data) // 2] if half else data
                    with sending:
                        self.write(struct.pack("<BI", kind, len(data)) + data if v2 else data)

        pipes = [(process.stdout.fileno(), STDOUT), (process.stderr.fileno(), STDERR)]
        pumps = [threading.Thread(target=pump, args=pipe, daemon=True) for pipe in pipes]
        for thread in pumps:
            thread.start()
        for thread in pumps:
            thread.join()
        status = process.wait()
        if half:
            phone.unplug()
        elif v2:
            self.write(struct.pack("<BIB", EXIT, 1, status & 0xFF if status >= 0 else 128 - status))

    def _feed(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdin
        with contextlib.suppress(Gone, OSError, ValueError):
            while True:
                kind, size = struct.unpack("<BI", self.read(5))
                data = self.read(size)
                if kind == STDIN:
                    process.stdin.write(data)
                    process.stdin.flush()
                elif kind == CLOSE_STDIN:
                    process.stdin.close()

    # --------------------------------------------------------------- sync

    def _sync(self) -> None:
        while True:
            word, size = struct.unpack("<4sI", self.read(8))
            if word == b"QUIT":
                return
            name = self.read(size).decode()
            self._stall(name)
            if word == b"STAT":
                self.write(b"STAT" + struct.pack("<3I", *_status(Path(self.phone.here(name)))))
            elif word == b"LIST":
                self._list(Path(self.phone.here(name)))
            elif word == b"SEND":
                self._take(*name.rsplit(",", 1))
            elif word == b"RECV":
                self._give(name)
            else:
                self._fail(f"unknown command {word!r}")
                return

    def _fail(self, words: str) -> None:
        self.write(b"FAIL" + struct.pack("<I", len(words)) + words.encode())

    def _list(self, folder: Path) -> None:
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            name = path.name.encode()
            self.write(b"DENT" + struct.pack("<4I", *_status(path), len(name)) + name)
        self.write(b"DONE" + bytes(16))

    def _take(self, name: str, mode: str) -> None:
        phone, path = self.phone, Path(self.phone.here(name))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        total, refused = 0, ""
        with path.open("wb", buffering=0) as file:
            while True:
                word, size = struct.unpack("<4sI", self.read(8))
                if word == b"DONE":
                    break
                data = self.read(size)
                if refused:
                    continue  # as adbd: go on reading, so that the refusal is not lost
                if phone.disk_bytes is not None and phone.used() + size > phone.disk_bytes:
                    refused = "write failed: No space left on device"
                    self._fail(refused)
                    continue
                if phone.drop_after is not None and total + size > phone.drop_after:
                    file.write(data[: phone.drop_after - total])
                    phone.drop_after = None
                    phone.unplug()
                    raise Gone
                file.write(bytes([data[0] ^ 1]) + data[1:] if phone.damage_sent else data)
                total += size
        if refused:
            path.unlink()
            return
        path.chmod(stat.S_IMODE(int(mode)))
        phone.received.append((name, total))
        self.write(b"OKAY" + bytes(4))

    def _give(self, name: str) -> None:
        path = Path(self.phone.here(name))
        try:
            data = path.read_bytes()
        except OSError as error:
            self._fail(f"open failed: {error.strerror}")
            return
        data = data[: self.phone.truncate]
        for start in range(0, len(data), 64 * 1024):
            if self.phone.drop_after is not None and start >= self.phone.drop_after:
                self.phone.unplug()
                raise Gone
            piece = data[start : start + 64 * 1024]
            piece = bytes([piece[0] ^ 1]) + piece[1:] if self.phone.damage else piece
            self.write(b"DATA" + struct.pack("<I", len(piece)) + piece)
        self.write(b"DONE" + bytes(4))


def _status(path: Path) -> tuple[int, int, int]:
    try:
        found = path.lstat()
    except OSError:
        return (0, 0, 0)
    return (found.st_mode, found.st_size & 0xFFFFFFFF, int(found.st_mtime))
