"""Change values in a model folder's files, and see that every verb answers with its result or with one sentence.

    tools/mutate.py FOLDER --kind json --count 1000
    tools/mutate.py FOLDER --kind bytes --count 1000
    tools/mutate.py FOLDER --kind artefacts --count 1000

json: a value of a JSON file becomes another (type, sign, size, NaN, missing, twice), and the manifest's hashes are made to
fit, so that the schema has to see it. bytes: a file is cut or a bit of it turned, and the manifest is left as it is.
artefacts: the same of what runtimes read, and the hashes are made to fit, so that the constants have to show it; what is no
constant (a stride, a name, code) is for verify to compute.
Every seed makes the same change. Ends with 1 where something else than an EdgeqError was raised.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import edgeq
from edgeq import api
from edgeq.graph.store import hash_of
from edgeq.run.agree import agree
from edgeq.run.files import exported, find
from edgeq.spec import EdgeqError

VALUES: tuple[Any, ...] = (
    None, True, 0, -1, 2**70, 1e308, -0.0, "", "x", "../x", [], [1], {}, {"x": 1}, [[]], float("nan"), float("inf"), "\0",
)  # fmt: skip


def places(tree: Any) -> Iterator[tuple[Any, Any]]:
    """(container, key) of every value in `tree`."""
    for key in list(tree) if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ():
        yield tree, key
        yield from places(tree[key])


def change_json(path: Path, chance: random.Random) -> str:
    """Put another value somewhere into a JSON file; returns what was done."""
    tree = json.loads(path.read_text())
    container, key = chance.choice(list(places(tree)))
    before = container[key]
    if isinstance(container, dict) and chance.random() < 0.2:
        del container[key]
        done = "removed"
    elif isinstance(container, dict) and chance.random() < 0.1:
        container[f"{key}_"] = before
        done = "under a name that nobody knows too"
    else:
        container[key] = chance.choice(VALUES)
        done = f"{container[key]!r:.40} instead of {before!r:.40}"
    path.write_text(json.dumps(tree))
    return f"{path.name}: {key!r:.60} {done}"


def change_bytes(path: Path, chance: random.Random) -> str:
    """Cut a file, or turn one of its bits; returns what was done."""
    content = bytearray(path.read_bytes())
    at = chance.randrange(len(content))
    if chance.random() < 0.3:
        path.write_bytes(content[:at])
        return f"{path.name}: cut at {at} of {len(content)}"
    content[at] ^= 1 << chance.randrange(8)
    path.write_bytes(content)
    return f"{path.name}: a bit of byte {at} turned"


def seal(folder: Path) -> None:
    """Make the manifest's hashes fit the files, as far as it is still one."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    for kind in ("files", "artifacts"):
        for name in manifest[kind]:
            manifest[kind][name] = hash_of(folder / name)
    path.write_text(json.dumps(manifest))


def used(folder: Path, good: Path) -> None:
    """What reads the folder's files: load, the artefacts' descriptions, diff."""
    model = edgeq.load(folder)
    for name in exported(model):
        artifact = find(model, name)
        api.coverage(artifact, model)
        agree(model, artifact)
    edgeq.diff(good, folder)


def mutated(good: Path, kind: str, seed: int, to: Path) -> tuple[str, BaseException | None]:
    """Change number `seed` of a copy of `good` in `to`, and what came of it: None, or what was raised."""
    chance = random.Random(seed)
    shutil.rmtree(to, ignore_errors=True)
    shutil.copytree(good, to)
    files = sorted(p for p in to.rglob("*") if p.is_file() and (kind != "json" or p.suffix == ".json"))
    if kind == "artefacts":
        files = [p for p in files if p.parent != to and p.suffix not in (".json", ".safetensors", ".pt2")]
    if kind == "json":  # what verbs found is read by its hash alone
        files = [p for p in files if p.name.split(".")[0] not in ("verify", "profile")]
    file = chance.choice(files)
    if kind != "json":
        done = change_bytes(file, chance)
        if kind == "artefacts":
            seal(to)
    else:
        done = change_json(file, chance)
        if file.name != "manifest.json":
            seal(to)
    try:
        used(to, good)
    except BaseException as error:
        return done, error
    return done, None


def main() -> int:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a model folder, best with artefacts and verified")
    parser.add_argument("--kind", choices=("json", "bytes", "artefacts"), default="json")
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0, help="the first one")
    options = parser.parse_args()
    said, silent, wrong = 0, 0, 0
    with tempfile.TemporaryDirectory() as scratch:
        for seed in range(options.seed, options.seed + options.count):
            done, error = mutated(options.folder, options.kind, seed, Path(scratch) / "copy")
            if error is None:
                silent += 1
                print(f"{seed}: taken: {done}")
            elif isinstance(error, EdgeqError):
                said += 1
            elif isinstance(error, KeyboardInterrupt):
                raise error
            else:
                wrong += 1
                print(f"{seed}: {done}\n{''.join(traceback.format_exception(error)[-3:])}", file=sys.stderr)
    print(f"{options.count} changes: {said} sentences, {silent} taken, {wrong} neither")
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
