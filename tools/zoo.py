"""Networks that nobody here wrote, taken as they are, through every verb: what became of each, as a table.

    python tools/zoo.py [--only mixnet_s,nin_cifar10] [--work FOLDER] [--json FILE]

Packages are installed at pinned versions into the work folder, never beside edgeq; nothing of them is kept. Weights are the
packages' own random ones, with BatchNorm statistics from a few batches, and the data is noise: the table says whether a network
goes in and comes out as the same integers, not how well it classifies. A verb ends in `ok`, in a sentence (exit code 1 or 2,
counted as an answer), or in a fault (a traceback, a signal, exit code 3, no end within the time), which makes this exit with 1.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

from markers import insert, part, write
from verbs import RUNTIMES, edgeq, fault, judged
from zoo_networks import ZOO, Entry

TASK: Final = '''"""{name} of {package}, as it is."""
import torch


def model():
    torch.manual_seed(0)
    {make}
    net.train()
    with torch.no_grad():
        for batch in calibration()[:2]:
            net(*(torch.cat((x, x.flip(-1))) for x in batch))
    return net.eval()


def noise(shape, generator):
    tokens = {tokens}
    if tokens:
        return torch.randint(tokens, shape, generator=generator)
    return torch.randn(shape, generator=generator)


def example_inputs():
    return tuple(torch.zeros_like(x) for x in calibration()[0])


def calibration():
    generator = torch.Generator().manual_seed(1)
    return [tuple(noise(shape, generator) for shape in {inputs}) for _ in range(4)]
'''


def main() -> int:
    """Run the zoo; returns how it ended, as an exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--only", help="names, with commas between; default: all")
    parser.add_argument("--to", default=",".join(RUNTIMES), help="runtimes, with commas between")
    parser.add_argument(
        "--profile", action="store_true", help="also time each network on one runtime, beside its float twin"
    )
    parser.add_argument("--work", type=Path, help="folder for packages and models; default: a temporary one")
    parser.add_argument(
        "--json", type=Path, help="also write the rows to this file; rows that are there are not run again"
    )
    parser.add_argument(
        "--page", type=Path, help="write what --json holds into this page, whose other rows stay, and run nothing"
    )
    options = parser.parse_args()
    if options.page:
        if not options.json:
            parser.error("--page is written from the rows of --json")
        write(options.page, page(json.loads(options.json.read_text()), options.page.read_text()))
        return 0
    chosen = options.only.split(",") if options.only else [e.name for e in ZOO]
    unknown = [name for name in chosen if name not in {e.name for e in ZOO}]
    if unknown:
        parser.error(f"unknown network {unknown[0]!r}: choose from {', '.join(e.name for e in ZOO)}")
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        known = json.loads(options.json.read_text()) if options.json and options.json.exists() else {}
        entries = {entry.name: entry for entry in ZOO}
        for entry in map(entries.__getitem__, chosen):
            if entry.name not in known:
                known[entry.name] = passed(entry, work, options.to.split(","), profile=options.profile)
                print(row(entry, known[entry.name]), flush=True)
                if options.json:
                    options.json.write_text(json.dumps(known, indent=1))
    return int(any(fault(v) for name in chosen for v in known[name].values()))


def passed(entry: Entry, work: Path, runtimes: list[str], *, profile: bool) -> dict[str, str]:
    """Every verb of `entry`, in order: verb → `ok …`, a sentence, or `FAULT …`."""
    site, folder = work / "site", work / entry.name.replace(" ", "_")
    site.mkdir(parents=True, exist_ok=True)
    missing = [
        p for p in entry.package.split() if not (site / f"{p.replace('-', '_').replace('==', '-')}.dist-info").exists()
    ]
    if missing:
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
        subprocess.run([*pip, "--target", str(site), *missing], check=True, stderr=subprocess.DEVNULL)
    folder.mkdir(exist_ok=True)
    task, out = folder / "task.py", folder / "out"
    task.write_text(
        TASK.format(**{key: getattr(entry, key) for key in ("name", "package", "make", "inputs", "tokens")})
    )
    found = verb(site, "quantize", str(task), "-o", str(out))
    if fault(found["quantize"]) or not found["quantize"].startswith("ok"):
        return found
    found |= verb(site, "export", str(out), "--to", *runtimes)
    exported = [r for r in runtimes if found.get(f"export {r}", "").startswith("ok")]
    if exported:
        found |= verb(site, "verify", str(out), "--to", *exported, "--batches", "1")
    for runtime in [r for r in exported if found.get(f"verify {r}", "").startswith("WRONG")]:
        found |= verb(site, "verify", str(out), "--to", runtime, "--batches", "1", "--layers")
    timed = [r for r in exported if r != "coreml"]  # off macOS there is nothing of Core ML to time
    if profile and timed:  # one of them, another for each network: the float twin has to be exported too
        runtime = timed[ZOO.index(entry) % len(timed)]
        found |= verb(site, "profile", str(out), "--to", runtime, "--runs", "3", "--warmup", "1")
    return found | verb(site, "report", str(out))


def verb(site: Path, *words: str) -> dict[str, str]:
    """Run `edgeq` with `words`: verb (and runtime) → `ok` and its numbers, a sentence, `WRONG` numbers, or `FAULT` and why."""
    path = os.pathsep.join(filter(None, (str(site), os.environ.get("PYTHONPATH"))))
    answer = edgeq(*words, PYTHONPATH=path, YOLO_CONFIG_DIR=str(site))
    found = {f"{words[0]} {runtime}": judged(words[0], row) for runtime, row in answer.rows.items()}
    if not found or (fault(answer.said) and not any(map(fault, found.values()))):
        found[words[0]] = answer.said
    return found


HEAD: Final = """\
What became of public networks, taken as they are, from `quantize` to `report`. Written by

    python tools/zoo.py --json zoo.json && python tools/zoo.py --json zoo.json --page docs/networks.md

Packages are pinned and installed beside edgeq, nothing of them is kept; weights are the packages' random ones, the data is noise,
so dB says how near the integers are to that network, and nothing about accuracy. LSB: against the runtime's own simulation, on a
calibration batch. Core ML claims no exact integers (its device decides), and its file is computed in float32 here, where values
beyond float16 stay finite. Every verb that is not named ended well.
[Results](results.md#public-networks) say what the runs found, what was mended since and which were cut off.

| network | package | licence | what happened |
|---|---|---|---|
"""


def page(known: dict[str, dict[str, str]], older: str) -> str:
    """The page `older` with the rows that there are; those of it stay where `known` has no newer one."""
    kept = {line[2:].partition(" | ")[0]: line for line in part(older, "zoo.py").splitlines() if line.startswith("| ")}
    rows = {e.name: row(e, known[e.name]) if e.name in known else kept.get(e.name, "") for e in ZOO}
    table = [line for line in rows.values() if line]
    wrong = sum(": FAULT " in line or ": WRONG " in line for line in table)
    run = f"{len(table)} of the {len(ZOO)} networks listed have been run, {wrong} with a fault."
    return insert(older, "zoo.py", HEAD + "\n".join([*table, "", run]))


def row(entry: Entry, found: dict[str, str]) -> str:
    """The network's row of a Markdown table; of a file in the work folder only what lies below it."""
    cells = "; ".join(f"{verb}: {answer}" for verb, answer in found.items() if answer != "ok").replace("|", "\\|")
    cells = re.sub(r"/\S*/(?:site(?:-packages)?|out)/", "", cells)
    cells = re.sub(r"/\S*/out\b", "out", cells)
    return f"| {entry.name} | {entry.package} | {entry.licence} | {cells or 'ok'} |"


if __name__ == "__main__":
    sys.exit(main())
