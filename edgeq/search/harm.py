"""What each unit hurts alone: the network in float but for it, outputs beside float's."""

from __future__ import annotations

from pathlib import Path

from edgeq.run.kept import Kept, digest
from edgeq.search.bench import Bench
from edgeq.search.space import FLOAT, Space
from edgeq.spec import Progress


def alone(bench: Bench, space: Space, folder: Path, progress: Progress) -> dict[tuple[str, str], float]:
    """(unit, precision) → power of the outputs' error over the outputs', where this unit alone has that precision.

    Layer by layer, as ZeroQ (Cai et al., CVPR 2020, section 3.3) does with the Kullback-Leibler divergence; the power of an error
    adds up over layers that err independently. Kept in `folder`, each under a hash of what decides it.
    """
    kept, found = Kept(folder / "harms"), {}
    base = {unit.name: FLOAT if FLOAT in unit.plans else next(iter(unit.plans)) for unit in space.units}
    pairs = [(unit.name, name) for unit in space.units for name in unit.plans if name != base[unit.name]]
    for done, (unit, name) in enumerate(pairs):
        progress("what each layer hurts", done, len(pairs))

        def measure(choice: dict[str, str] = base | {unit: name}) -> dict[str, float]:
            return {"noise": bench.noise(bench.model(space.plan(choice)).qdq)}

        known = digest(bench.key, bench.to, base, unit, name)
        found[unit, name] = float(kept.once(known, known, measure)["noise"])
    progress("what each layer hurts", len(pairs), len(pairs))
    return found
