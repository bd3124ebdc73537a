"""How a device multiplies and rounds: vector width, instructions, registers. What is computed stands in sums.py, moves.py."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgeq.backends.tvm.tir import spread, widened
from edgeq.graph.integer import IntegerOp
from edgeq.spec import EdgeqError


@dataclass(frozen=True, slots=True)
class Machine:
    """One device's integer multiply-accumulate.

    lanes: int32 sums per vector. group: products each sum gains per instruction, so that weights are packed
    [..., C_in/group, lanes, group]. registers: vector registers there are. pair: registers that `lanes` sums take.
    staged: dtype in which inputs are read by the instruction; offset: what is added to an int8 input to get there, None
    where the zero point itself is subtracted (int16 holds x − zero point exactly).
    intrinsic: LLVM's name of the instruction, None for plain widening multiplies of int16 (then group is 1).
    accumulates: whether the instruction adds to the sum itself. words: whether it takes its operands as int32 vectors.
    ahead: groups of inputs that one vector load brings; the instruction then takes one out of it by its place.
    deep: channels that a depthwise kernel sums at a time. deep_intrinsic: LLVM's name of its int16 multiply-accumulate,
    None for LLVM's own choice; such an instruction leaves even channels in the first half of its sums, odd in the second.
    flat: int8 elements that go through an elementwise kernel at a time.
    rounding: LLVM's name of the instruction that rounds a float half to even into an int32, where no vector unit computes in
    float, so that sums are requantized one by one; None for nearbyint.
    """

    name: str
    lanes: int
    group: int
    registers: int
    staged: str
    offset: int | None
    intrinsic: str | None
    accumulates: bool = False
    words: bool = False
    pair: int = 1
    ahead: int = 1
    deep: int = 16
    deep_intrinsic: str | None = None
    flat: int = 32
    rounding: str | None = None

    @property
    def scalar(self) -> bool:
        """Whether floats are computed one by one."""
        return self.rounding is not None

    def floats(self, lanes: int) -> int:
        """How many of `lanes` floats are computed at a time."""
        return 1 if self.scalar else lanes

    @property
    def staged_bytes(self) -> int:
        """Bytes of one staged value."""
        return int(np.dtype(self.staged).itemsize)

    @property
    def order(self) -> tuple[int, ...]:
        """Which of a depthwise vector's channels each sum belongs to."""
        every = range(self.deep)
        return (*every[::2], *every[1::2]) if self.deep_intrinsic else tuple(every)

    def read(self, T: Any, stored: Any, zero_point: int, lanes: int) -> Any:
        """int8 input as it is staged."""
        if self.offset == 0:
            return stored
        shifted = widened(T, stored, -zero_point if self.offset is None else self.offset, lanes)
        return T.cast(shifted, f"{self.staged}x{lanes}" if lanes > 1 else self.staged)

    def fill(self, zero_point: int) -> int:
        """The zero point as it is staged."""
        return 0 if self.offset is None else zero_point + self.offset

    def chunk(self, groups: int) -> int:
        """How many of `groups` groups of inputs are loaded at once."""
        return math.gcd(groups, self.ahead)

    def view(self, T: Any, staged: Any) -> Any:
        """Staged inputs as `load` reads them: a word a group where words are what the instruction takes.

        Hexagon loads a word of unknown alignment byte by byte.
        """
        if not self.words:
            return staged
        return T.decl_buffer((int(staged.shape[0]) // self.group,), "int32", data=staged.data)

    def load(self, T: Any, staged: Any, start: Any, chunk: int) -> Any:
        """`chunk` groups of inputs from group `start` on."""
        together = 1 if self.words else chunk * self.group
        return staged[T.ramp(start * self.group, 1, together) if together > 1 else start]

    def spread(self, T: Any, loaded: Any, place: int, chunk: int) -> Any:
        """The `place`-th of `chunk` loaded groups in every sum's lane: int16 [lanes] or `group` times as many staged."""
        lanes, group = self.lanes, self.group
        if self.words:
            return T.broadcast(loaded, lanes)
        if self.intrinsic is None:
            return T.broadcast(T.Shuffle([loaded], [place]) if chunk > 1 else loaded, lanes)
        word = T.reinterpret(f"int32x{chunk}" if chunk > 1 else "int32", loaded)
        words = T.broadcast(T.Shuffle([word], [place]) if chunk > 1 else word, lanes)
        return T.reinterpret(f"{self.staged}x{lanes * group}", words)

    def dot(self, T: Any, total: Any, data: Any, weights: Any) -> Any:
        """total + Σ_group data·weights: int32 [lanes] from a `spread` group and int8 [lanes·group] weights."""
        lanes, group = self.lanes, self.group
        if self.intrinsic is None:
            return total + T.cast(data, f"int32x{lanes}") * T.cast(T.cast(weights, f"int16x{lanes}"), f"int32x{lanes}")
        if self.words:
            weights = T.reinterpret(f"int32x{lanes}", weights)
        if self.accumulates:
            # of signed operands either may come first, and only sdot's last one may be an element of a vector
            operands = (weights, data) if self.staged == "int8" else (data, weights)
            return T.call_llvm_pure_intrin(f"int32x{lanes}", self.intrinsic, total, *operands)
        wide = T.cast(weights, f"{self.staged}x{lanes * group}")
        return total + T.call_llvm_pure_intrin(f"int32x{lanes}", self.intrinsic, data, wide)

    def multiply(self, T: Any, total: Any, data: Any, taps: Any) -> Any:
        """total + data·taps, element by element: int32 [deep], its elements in `order`, from int16 [deep] twice."""
        wide = f"int32x{self.deep}"
        if self.deep_intrinsic is None:
            return total + T.cast(data, wide) * T.cast(taps, wide)
        halves = [T.reinterpret(f"int32x{self.deep // 2}", v) for v in (data, taps)]
        return T.call_llvm_pure_intrin(wide, self.deep_intrinsic, total, *halves)

    def requantize(self, T: Any, total: Any, ratio: Any, op: IntegerOp, lanes: int) -> Any:
        """int32 sums → int8: float32(total)·ratio, clipped, rounded half to even, plus zero point.

        Bounds are integers, so that clipping first equals clipping last, and the conversion back to int32 cannot overflow.
        There is no float addition, hence nothing a compiler could contract into a fused multiply-add.
        """
        zero_point = op.output_qparams.zero
        scaled = T.cast(total, f"float32x{lanes}" if lanes > 1 else "float32") * ratio
        low, high = (spread(T, T.float32(b - zero_point), lanes) for b in (op.low, op.high))
        integer = self.rounded(T, T.min(T.max(scaled, low), high), lanes) + spread(T, T.int32(zero_point), lanes)
        return T.cast(integer, f"int8x{lanes}" if lanes > 1 else "int8")

    def rounded(self, T: Any, value: Any, lanes: int) -> Any:
        """float32 → int32, rounded half to even; the value fits."""
        if self.rounding is not None:
            return T.call_llvm_pure_intrin("int32", self.rounding, value)
        return T.cast(T.nearbyint(value), f"int32x{lanes}" if lanes > 1 else "int32")

    def tile(self, columns: int, vectors: int, chunk: int) -> tuple[int, int]:
        """Pixels × weight vectors whose sums stay in registers, for an output row of `columns` pixels.

        The pair that takes the fewest instructions: multiplies, loads of weights, and loads of inputs, `chunk` groups each.
        """
        multiply = self.pair if self.accumulates or self.intrinsic is None else 2
        load = 1 if self.accumulates else 2  # others widen their weights
        fetch = 1 / chunk if self.ahead > 1 else 0.4  # a load that broadcasts, or is part of the multiply

        def cost(tile: tuple[int, int]) -> tuple[float, int]:
            pixels, wide = tile
            once = pixels * wide * multiply + pixels * fetch + wide * load
            return -(-columns // pixels) * (vectors // wide) * once, -pixels

        fitting = [
            (pixels, wide)
            for wide in (1, 2, 3, 4)
            for pixels in range(1, columns + 1)
            if vectors % wide == 0
            and pixels * wide * self.pair + wide + (pixels if chunk > 1 else 0) + 2 <= self.registers
        ]
        return min(fitting, key=cost)


# Intel's SDM: vpmaddwd multiplies int16 pairs and adds them as int32, exactly; vpdpbusd does uint8 × int8 quadruples.
VNNI = Machine("avx512-vnni", 16, 4, 32, "uint8", 128, "llvm.x86.avx512.vpdpbusd.512", accumulates=True)
AVX512 = Machine("avx512", 16, 2, 32, "int16", None, "llvm.x86.avx512.pmaddw.d.512")
AVX2 = Machine("avx2", 8, 2, 16, "int16", None, "llvm.x86.avx2.pmadd.wd", deep=8)
PLAIN = Machine("plain", 8, 1, 16, "int16", None, None, pair=2, deep=8)
# Arm ARM: sdot multiplies int8 quadruples; without it LLVM makes smlal and smlal2 of int16. Both take an element of a vector.
SDOT = Machine("neon-sdot", 4, 4, 32, "int8", 0, "llvm.aarch64.neon.sdot", accumulates=True, ahead=4, deep=8, flat=16)
NEON = Machine("neon", 8, 1, 32, "int16", None, None, pair=2, ahead=8, deep=8, flat=16)
# Hexagon V66 HVX PRM: vrmpy multiplies int8 quadruples, vmpy int16 pairwise into the sums of even and of odd elements.
# V67 PRM: convert_sf2w rounds as the status register says, and that is half to even. Of its 32 vector registers 18 are
# counted: LLVM unrolls the sum over inputs, and with more sums it keeps some of them in memory.
HVX = Machine(
    "hvx", 32, 4, 18, "int8", 0, "llvm.hexagon.V6.vrmpybv.acc.128B", accumulates=True, words=True,
    deep=64, deep_intrinsic="llvm.hexagon.V6.vmpyhv.acc.128B", flat=128, rounding="llvm.hexagon.F2.conv.sf2w",
)  # fmt: skip


def host_target() -> dict[str, Any]:
    """TVM's description of this computer: LLVM with the processor's own name."""
    from tvm.target import codegen

    return {"kind": "llvm", "mcpu": str(codegen.llvm_get_system_cpu())}


def machine(target: Any) -> Machine:
    """The best instruction that `target` (a tvm.target.Target) has."""
    from tvm.target import codegen

    def has(*features: str) -> bool:
        return bool(codegen.target_has_features(list(features), target))

    try:
        if str(target.attrs.get("mtriple", "")).startswith("hexagon"):
            return HVX
        if target.attrs.get("feature.is_aarch64", False):
            return SDOT if has("dotprod") else NEON
        if has("avx512vnni", "avx512bw"):
            return VNNI
        if has("avx512bw"):
            return AVX512
        return AVX2 if has("avx2") else PLAIN
    except ValueError as error:
        raise EdgeqError(f"TVM does not know the target {target}: {error}") from error
