"""Emulated cores: what they run, what they have, and that their instruction counts are exact."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import need
from test_adb import ADD

from edgeq.devices import open_device
from edgeq.devices.emulated import CORES, plugin
from edgeq.spec import EdgeqError

ARM = ("cortex-a53", "cortex-a76", "neoverse-n1")

# one instruction, then `rounds` times two, then three
LOOP = """
    .global _start
_start:
    ldr x0, =ROUNDS
1:  subs x0, x0, #1
    b.ne 1b
    mov x8, #93
    mov x0, #0
    svc #0
"""

# the same loop in each of so many threads, more of them than qemu's slots matter for
THREADS = """
#include <pthread.h>
#include <stdlib.h>
static void *work(void *rounds) {
    long n = (long)rounds;
    __asm__ volatile("1: subs %0, %0, #1\\n b.ne 1b" : "+r"(n)::"cc");
    return NULL;
}
int main(int count, char **words) {
    pthread_t threads[64];
    int n = atoi(words[1]);
    for (int i = 0; i < n; i++) pthread_create(threads + i, NULL, work, (void *)atol(words[2]));
    for (int i = 0; i < n; i++) pthread_join(threads[i], NULL);
    return 0;
}
"""

HWCAP = """
#include <stdio.h>
#include <sys/auxv.h>
int main(void) {
    unsigned long has = getauxval(AT_HWCAP);
    if (has & 1 << 1) puts("asimd");
    if (has & 1 << 20) puts("asimddp");
    if (getauxval(AT_HWCAP2) & 1 << 13) puts("i8mm");
    return 0;
}
"""

# a packet of one; packets of a decrement and a compound compare-and-jump; a duplex, a constant with its extender, the end
HEXAGON = """
    .globl _start
_start:
    { r1 = #1000 }
.Lloop:
    { r1 = add(r1, #-1)
      p0 = cmp.eq(r1, #1)
      if (!p0.new) jump:t .Lloop }
    { r2 = #3
      r3 = #4 }
    { r4 = ##0x12345678 }
    { r0 = #0
      r6 = #94 }
    { trap0(#1) }
"""
ENVIRONMENT = """
#include <stdio.h>
extern char **environ;
int main(int count, char **words) {
    for (char **variable = environ; *variable; variable++) puts(*variable);
    for (int i = 1; i < count; i++) puts(words[i]);
    return 0;
}
"""

Compile = Callable[[str, str], Path]


@pytest.fixture(autouse=True)
def tools() -> None:
    need("qemu-aarch64", "qemu-hexagon")


@pytest.mark.parametrize("core", ARM)
@pytest.mark.parametrize("rounds", [1, 1000, 1234567])
def test_instructions_of_a_loop_are_exact(core: str, rounds: int, arm_program: Compile) -> None:
    program = arm_program(f"loop{rounds}.S", LOOP.replace("ROUNDS", str(rounds)))
    with open_device(f"emulated:{core}") as device:
        device.put(program, "loop")
        counted = [device.run(["loop"], count=True) for _ in range(2)]
    assert [(done.status, done.instructions) for done in counted] == [(0, 4 + 2 * rounds)] * 2


def test_instructions_of_all_threads_are_counted(arm_program: Compile) -> None:
    program = arm_program("threads.c", THREADS)
    rounds, slack = 2_000_000, 20_000  # starting and joining threads takes a varying few thousand
    with open_device("emulated:cortex-a76") as device:
        device.put(program, "threads")
        for threads in (1, 4, 16):
            least, most = (
                device.run(["threads", str(threads), str(n)], count=True).instructions or 0 for n in (1, 1 + rounds)
            )
            assert abs(most - least - threads * 2 * rounds) < slack, threads


def test_hexagon_counts_instructions_not_packets(tmp_path: Path) -> None:
    need("clang-16", "ld.lld-16")
    code, built, program = (tmp_path / name for name in ("loop.S", "loop.o", "loop"))
    code.write_text(HEXAGON)
    hexagon = ["clang-16", "--target=hexagon-unknown-linux-musl", "-mcpu=hexagonv67", "-ffreestanding", "-nostdlib"]
    subprocess.run([*hexagon, "-c", str(code), "-o", str(built)], check=True)
    subprocess.run(["ld.lld-16", str(built), "-o", str(program)], check=True)
    with open_device("emulated:hexagon-v67") as device:
        device.put(program, "loop")
        done = device.run(["loop"], count=True)
        info = device.describe()
    assert (done.status, done.instructions) == (0, 1 + 1000 * 2 + 2 + 1 + 2 + 1)
    assert (info.abi, info.emulated, info.cores) == ("hexagon", True, 1)


def test_a_program_killed_by_a_signal_has_no_count(arm_program: Compile) -> None:
    program = arm_program("abort.c", "#include <stdlib.h>\nint main(void) { abort(); }\n")
    with open_device("emulated:cortex-a53") as device:
        device.put(program, "abort")
        done = device.run(["abort"], count=True)
    assert done.status != 0 and done.instructions is None


@pytest.mark.parametrize("core", ARM)
def test_a_core_has_the_features_it_claims(core: str, arm_program: Compile) -> None:
    with open_device(f"emulated:{core}") as device:
        info = device.describe()
        device.put(arm_program("hwcap.c", HWCAP), "bin/hwcap")
        assert tuple(device.run(["bin/hwcap"]).stdout.split()) == info.features == CORES[core].features
        assert (info.abi, info.emulated, info.name) == ("aarch64-linux", True, f"emulated:{core}")


def test_files_and_environment(arm_program: Compile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/of/this/host")
    with open_device("emulated:cortex-a76") as device:
        device.put(arm_program("add.c", ADD), "add")
        assert device.run(["add", "1", "2"], environment={"UNIT": "a, b"}).stdout == "3\n"
        device.get("sum.txt", tmp_path / "sum.txt")
        assert (tmp_path / "sum.txt").read_text() == "3 a, b"
        device.put(arm_program("environment.c", ENVIRONMENT), "environment")
        seen = device.run(["environment", "$HOME", "a b"], environment={"LD_LIBRARY_PATH": ".", "A": "=,="}).stdout
        assert {"LD_LIBRARY_PATH=.", "A==,=", "$HOME", "a b"} <= set(seen.splitlines())
        assert "/of/this/host" not in seen
        with pytest.raises(EdgeqError, match="comma"):
            device.run(["environment"], environment={"LD_LIBRARY_PATH": "a,b"})
        with pytest.raises(EdgeqError, match="no file out was written there"):
            device.get("out", tmp_path / "out")


def test_what_takes_too_long_is_stopped(arm_program: Compile) -> None:
    with open_device("emulated:cortex-a53") as device:
        device.put(arm_program("forever.S", "    .global _start\n_start:\n    b _start\n"), "forever")
        started = time.monotonic()
        with pytest.raises(EdgeqError, match="forever was not finished after 1 s and was stopped"):
            device.run(["forever"], timeout_s=1)
        assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    ("core", "words"),
    [
        ("max", "int8 results are wrong .* name a real one: emulated:cortex-a53, .*neoverse-n1$"),
        ("cortex-a99", "no such core here; there are cortex-a53, cortex-a76, neoverse-n1, hexagon-v67"),
        ("", "no such core here"),
    ],
)
def test_other_cores_are_refused(core: str, words: str) -> None:
    with pytest.raises(EdgeqError, match=words):
        open_device(f"emulated:{core}")


def test_shared_libraries_need_the_root(arm_program: Compile, edgeq_home: Path, tmp_path: Path) -> None:
    need("aarch64-linux-gnu-gcc")
    (tmp_path / "add.c").write_text(ADD)
    command = ["aarch64-linux-gnu-gcc", str(tmp_path / "add.c"), "-o", str(tmp_path / "add")]
    subprocess.run(command, check=True)
    with open_device("emulated:cortex-a53") as device:
        device.put(tmp_path / "add", "add")
        with pytest.raises(EdgeqError, match=r"add needs shared libraries.*tools/arm64_root\.py assembles them"):
            device.run(["add", "1"])
        with pytest.raises(EdgeqError, match=r"no program python3 was put there.*tools/arm64_root\.py"):
            device.run(["python3", "--version"])


def test_without_a_compiler_counting_is_refused(edgeq_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    emulator = str(shutil.which("qemu-aarch64"))
    built = plugin(emulator)
    assert built.is_file() and plugin(emulator) == built
    built.unlink()
    folder = edgeq_home / "path"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    with pytest.raises(EdgeqError, match="counting instructions needs a C compiler"):
        plugin(emulator)
    (folder / "cc").write_text("#!/bin/sh\necho 'cc: broken' >&2; exit 1\n")
    (folder / "cc").chmod(0o755)
    with pytest.raises(EdgeqError, match="cannot build edgeq's instruction counter for qemu: cc: broken"):
        plugin(emulator)
    assert not list(edgeq_home.rglob("*.so"))


def test_without_qemu_the_script_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EdgeqError, match=r"qemu-aarch64 is not installed; tools/device_setup\.sh"):
        open_device("emulated:cortex-a76")


def test_the_host_runs_its_own_programs(tmp_path: Path) -> None:
    with open_device("host") as device:
        info = device.describe()
        assert not info.emulated and info.cores >= 1 and info.abi.endswith(("-linux", "-apple"))
        (tmp_path / "hello").write_text("#!/bin/sh\necho $A; pwd >where\n")
        (tmp_path / "hello").chmod(0o755)
        device.put(tmp_path / "hello", "bin/hello")
        assert device.run(["bin/hello"], environment={"A": "hi"}).stdout == "hi\n"
        device.get("where", tmp_path / "where")
        folder = Path((tmp_path / "where").read_text().strip())
        assert device.run([sys.executable, "-c", "print(6 * 7)"]).stdout == "42\n"
        with pytest.raises(EdgeqError, match="cannot start nothing"):
            device.run(["nothing"])
        with pytest.raises(EdgeqError, match="emulated devices do"):
            device.run(["bin/hello"], count=True)
    assert not folder.exists()
