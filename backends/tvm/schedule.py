"""How a device multiplies: vector width, dot-product instruction, registers. What is computed stands in sums.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from edgeq.spec import EdgeqError


@dataclass(frozen=True, slots=True)
class Machine:
    """One device's integer multiply-accumulate.

    lanes: int32 sums per vector register. group: products each sum gains per instruction, so that weights are packed
    [..., C_in/group, lanes, group]. registers: vector registers there are.
    staged: dtype in which inputs are read by the instruction; offset: what is added to an int8 input to get there, None
    where the zero point itself is subtracted (int16 holds x − zero point exactly).
    intrinsic: LLVM's name of the instruction, None for plain widening multiplies (then group is 1).
    accumulates: whether the instruction adds to the sum itself.
    """

    name: str
    lanes: int
    group: int
    registers: int
    staged: str
    offset: int | None
    intrinsic: str | None
    accumulates: bool = False

    def dot(self, T: Any, total: Any, data: Any, weights: Any) -> Any:
        """total + Σ_group data·weights: int32 [lanes] from `group` staged inputs and int8 [lanes·group] weights."""
        lanes, group = self.lanes, self.group
        if self.intrinsic is None:
            return total + T.broadcast(T.cast(data, "int32"), lanes) * T.cast(weights, f"int32x{lanes}")
        spread = T.reinterpret(f"{self.staged}x{lanes * group}", T.broadcast(T.reinterpret("int32", data), lanes))
        if self.accumulates:
            return T.call_llvm_pure_intrin(f"int32x{lanes}", self.intrinsic, total, spread, weights)
        wide = T.cast(weights, f"{self.staged}x{lanes * group}")
        return total + T.call_llvm_pure_intrin(f"int32x{lanes}", self.intrinsic, spread, wide)

    def tile(self, columns: int, vectors: int) -> tuple[int, int]:
        """Pixels × weight vectors whose sums stay in registers, for an output row of `columns` pixels."""
        wide = next(v for v in (4, 2, 3, 1) if vectors % v == 0 and (v < 4 or columns == 1))
        room = (self.registers - wide - 2) // wide
        # a tile costs its pixels plus the loads of its weights; the last tile of a row overlaps its neighbour
        pixels = min(range(1, min(room, columns) + 1), key=lambda p: (-(-columns // p) * (p + 0.4 * wide), -p))
        return pixels, wide


# Intel's SDM: vpmaddwd multiplies int16 pairs and adds them as int32, exactly; vpdpbusd does uint8 × int8 quadruples.
VNNI = Machine("avx512-vnni", 16, 4, 32, "uint8", 128, "llvm.x86.avx512.vpdpbusd.512", accumulates=True)
AVX512 = Machine("avx512", 16, 2, 32, "int16", None, "llvm.x86.avx512.pmaddw.d.512")
AVX2 = Machine("avx2", 8, 2, 16, "int16", None, "llvm.x86.avx2.pmadd.wd")
PLAIN = Machine("plain", 4, 1, 16, "int16", None, None)


def host_target() -> dict[str, Any]:
    """TVM's description of this computer: LLVM with the processor's own name."""
    from tvm.target import codegen

    return {"kind": "llvm", "mcpu": str(codegen.llvm_get_system_cpu())}


def machine(target: Any) -> Machine:
    """The best instruction that `target` (a tvm.target.Target) has."""
    from tvm.target import codegen

    def has(features: list[str]) -> bool:
        return bool(codegen.target_has_features(features, target))

    try:
        if has(["avx512vnni", "avx512bw"]):
            return VNNI
        if has(["avx512bw"]):
            return AVX512
        return AVX2 if has(["avx2"]) else PLAIN
    except ValueError as error:
        raise EdgeqError(f"TVM does not know the target {target}: {error}") from error
