"""LiteRT's own C profiler, out of the wheel's libLiteRt.so by ctypes: what each operator of a run took.

Standard library alone, so that a runner on a board can take this file along. The structures are those of
litert/c/litert_common.h, litert_layout.h and litert_profiler_event.h of release 2.3.
"""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Sequence
from ctypes import POINTER, Structure, byref, c_char_p, c_int, c_int32, c_size_t, c_uint32, c_uint64, c_void_p
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

RELEASES = ("2.3.",)  # whose C interface this file was tried with
CPU = 1  # kLiteRtHwAcceleratorCpu
WRITE, READ = 1, 0  # LiteRtTensorBufferLockMode
# kinds of events, tflite/core/api/profiler.h
DEFAULT, OPERATOR, DELEGATE_OPERATOR, DELEGATE_PROFILED = 1, 2, 4, 8
HEAD, TAIL = 4, 3  # 64-bit words of an event before and behind its two memory readings


class Layout(Structure):
    """LiteRtLayout: a bit field of rank and has_strides, then both lists."""

    _fields_ = (("rank", c_uint32), ("dimensions", c_int32 * 8), ("strides", c_uint32 * 8))


class RankedType(Structure):
    """LiteRtRankedTensorType."""

    _fields_ = (("element", c_int), ("layout", Layout))


class Happened(NamedTuple):
    """One event of a run.

    kind: `runtime` (the whole invocation), `kernel` (an operator of LiteRT's own) or `delegated` (inside a delegate).
    instruction: a kernel's index in the file; of what is delegated, which of the delegate's pieces it lies in.
    """

    name: str
    kind: str
    instruction: int | None
    ms: float


def available() -> bool:
    """Whether this LiteRT has the profiler, in a release whose structures are known here."""
    try:
        return version("ai-edge-litert").startswith(RELEASES) and _library().is_file()
    except (PackageNotFoundError, ImportError):
        return False


def _library() -> Path:
    spec = importlib.util.find_spec("ai_edge_litert")
    if spec is None or spec.origin is None:
        raise ImportError("ai_edge_litert is not installed")
    return Path(spec.origin).parent / "libLiteRt.so"


class Profiled:
    """A model compiled for the CPU with profiling built in; `run` tells the events. Close it after use."""

    def __init__(self, path: Path, threads: int) -> None:
        """Raises RuntimeError where LiteRT refuses the model."""
        self._lib = ctypes.CDLL(str(_library()))
        self._memory = ctypes.CDLL(None)
        self._memory.malloc.restype = c_void_p
        self._memory.malloc.argtypes = [c_size_t]
        self._owned: list[tuple[str, c_void_p]] = []  # destroyer and handle, in the order they were made
        environment, model, options, compiled = (c_void_p() for _ in range(4))
        self._make("LiteRtDestroyEnvironment", environment, "LiteRtCreateEnvironment", 0, None)
        self._make("LiteRtDestroyModel", model, "LiteRtCreateModelFromFile", environment, str(path).encode())
        self._make("LiteRtDestroyOptions", options, "LiteRtCreateOptions")
        self._call("LiteRtSetOptionsHardwareAccelerators", options, CPU)
        self._option(options, b"runtime_options_string", b"enable_profiling = true\n")
        self._option(options, b"xnnpack", f"num_threads = {threads}\n".encode())
        self._make("LiteRtDestroyCompiledModel", compiled, "LiteRtCreateCompiledModel", environment, model, options)
        self._compiled = compiled
        self._signature = c_void_p()
        self._call("LiteRtGetModelSignature", model, c_size_t(0), byref(self._signature))
        self.inputs, self._inputs = self._buffers("Input", environment)
        self.outputs, self._outputs = self._buffers("Output", environment)
        self._profiler = c_void_p()
        self._call("LiteRtCompiledModelGetProfiler", compiled, byref(self._profiler))

    def _call(self, name: str, *arguments: object) -> None:
        function = getattr(self._lib, name)
        function.restype = c_int
        status = function(*arguments)
        if status != 0:
            raise RuntimeError(f"{name} answers with status {status}")

    def _make(self, destroy: str, handle: c_void_p, create: str, *arguments: object) -> None:
        self._call(create, *arguments, byref(handle))
        self._owned.append((destroy, handle))

    def _option(self, options: c_void_p, name: bytes, toml: bytes) -> None:
        text = self._memory.malloc(len(toml) + 1)  # LiteRT frees it
        ctypes.memmove(text, toml + b"\0", len(toml) + 1)
        opaque = c_void_p()
        free = ctypes.cast(self._memory.free, c_void_p)
        self._call("LiteRtCreateOpaqueOptions", name, c_void_p(text), free, byref(opaque))
        self._call("LiteRtAddOpaqueOptions", options, opaque)

    def _buffers(self, side: str, environment: c_void_p) -> tuple[list[str], list[c_void_p]]:
        """Names of the tensors of one side, in the signature's order, and a buffer for each."""
        count = c_size_t()
        self._call(f"LiteRtGetNumSignature{side}s", self._signature, byref(count))
        names, buffers = [], []
        for index in range(count.value):
            tensor, name, kind, wanted, buffer = c_void_p(), c_char_p(), RankedType(), c_void_p(), c_void_p()
            at = c_size_t(index)
            self._call(f"LiteRtGetSignature{side}TensorByIndex", self._signature, at, byref(tensor))
            self._call("LiteRtGetTensorName", tensor, byref(name))
            self._call("LiteRtGetRankedTensorType", tensor, byref(kind))
            self._call(
                f"LiteRtGetCompiledModel{side}BufferRequirements", self._compiled, c_size_t(0), at, byref(wanted)
            )
            create = "LiteRtCreateManagedTensorBufferFromRequirements"
            self._make("LiteRtDestroyTensorBuffer", buffer, create, environment, byref(kind), wanted)
            names.append((name.value or b"").decode())
            buffers.append(buffer)
        return names, buffers

    def set_input(self, name: str, values: bytes) -> None:
        """Fill the input tensor called `name` in the file.

        Raises:
            RuntimeError: there is none, or it holds another number of bytes.
        """
        if name not in self.inputs:
            raise RuntimeError(f"the model's signature has no input {name}, but {', '.join(self.inputs)}")
        buffer = self._inputs[self.inputs.index(name)]
        if len(values) != self._size(buffer):
            raise RuntimeError(f"input {name} takes {self._size(buffer)} bytes, got {len(values)}")
        address = c_void_p()
        self._call("LiteRtLockTensorBuffer", buffer, byref(address), WRITE)
        ctypes.memmove(address, values, len(values))
        self._call("LiteRtUnlockTensorBuffer", buffer)

    def output(self, name: str) -> bytes:
        """What the latest run left in the output tensor called `name` in the file."""
        buffer = self._outputs[self.outputs.index(name)]
        address = c_void_p()
        self._call("LiteRtLockTensorBuffer", buffer, byref(address), READ)
        values = ctypes.string_at(address, self._size(buffer))
        self._call("LiteRtUnlockTensorBuffer", buffer)
        return values

    def _size(self, buffer: c_void_p) -> int:
        size = c_size_t()
        self._call("LiteRtGetTensorBufferPackedSize", buffer, byref(size))
        return size.value

    def run(self) -> list[Happened]:
        """One inference with the profiler on; its events in order of execution."""
        self._call("LiteRtResetProfiler", self._profiler)
        self._call("LiteRtStartProfiler", self._profiler)
        inputs, outputs = (c_void_p * len(self._inputs))(*self._inputs), (c_void_p * len(self._outputs))(*self._outputs)
        counts = c_size_t(len(inputs)), c_size_t(len(outputs))
        self._call("LiteRtRunCompiledModel", self._compiled, c_size_t(0), counts[0], inputs, counts[1], outputs)
        self._call("LiteRtStopProfiler", self._profiler)
        return self._events()

    def _events(self) -> list[Happened]:
        count = c_int()
        self._call("LiteRtGetNumProfilerEvents", self._profiler, byref(count))
        room, unwritten = 64 * count.value, 0xFEEDFACECAFEBEEF
        words = (c_uint64 * room)(*[unwritten] * room)
        self._call("LiteRtGetProfilerEvents", self._profiler, count, words)
        written = next((i for i in range(room, 0, -1) if words[i - 1] != unwritten), 0)
        # the size of a memory reading differs between releases; the last word of an event is half written
        size = -(-written // max(count.value, 1))
        if size <= HEAD + TAIL or (size - HEAD - TAIL) % 2:
            raise RuntimeError(f"LiteRT's profiler writes events of {size} words, which nothing here can read")
        found: list[Happened] = []
        piece, latest = -1, 0
        for start in range(0, size * count.value, size):
            kind, ms = words[start + 1] & 0xFFFFFFFF, words[start + 3] / 1e3
            index = words[start + size - TAIL]
            if kind not in (DEFAULT, OPERATOR, DELEGATE_OPERATOR, DELEGATE_PROFILED):
                continue
            name = ctypes.cast(int(words[start]), POINTER(ctypes.c_char))
            text = ctypes.string_at(name).decode(errors="replace")
            if kind == DEFAULT:
                if text == "Invoke":
                    found.append(Happened(text, "runtime", None, ms))
            elif kind == OPERATOR:
                found.append(Happened(text, "kernel", int(index), ms))
            else:
                if piece < 0 or index <= latest or found[-1].kind != "delegated":
                    piece += 1
                latest = index
                found.append(Happened(text, "delegated", piece, ms))
        return found

    def close(self) -> None:
        """Give everything back."""
        while self._owned:
            destroy, handle = self._owned.pop()
            function = getattr(self._lib, destroy)
            function.restype = None
            function(handle)


def merged(runs: Sequence[Sequence[Happened]]) -> list[dict[str, object]]:
    """Events of several runs as a runner's result.json has them: `name`, `kind`, `instruction`, `ms` of each run.

    Raises:
        RuntimeError: the runs had different events.
    """
    shapes = {tuple(event[:3] for event in run) for run in runs}
    if len(shapes) > 1:
        raise RuntimeError("two runs of one model had different events")
    return [
        {"name": same[0].name, "kind": same[0].kind, "instruction": same[0].instruction, "ms": [e.ms for e in same]}
        for same in zip(*runs, strict=True)
    ]
