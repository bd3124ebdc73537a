"""The networks of tests/zoo through quantize, export and verify: what computes in integers on each runtime, and how near it is.

    python tools/zoo_idioms.py --json FILE [--only mobilenet_v2,…] [--to litert,…] [--profile] [--fresh] [--page docs/networks.md]

One row a network, written to --json as soon as it is done; a row that is there is not made again unless --fresh. A verb is
a process of its own and ends in `ok`, in a sentence, or in a fault (a traceback, a signal, no end within the time, integers that
are not the simulation's), which makes this exit with 1. SQNR is against the network's own module, on unseen batches.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any, Final

from markers import insert, write
from verbs import RUNTIMES, edgeq, fault, judged

ROOT: Final = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))  # before this folder, whose zoo.py is another zoo
from zoo import NETWORKS  # noqa: E402 # found by the line above

Row = dict[str, Any]

TASK: Final = '''"""{name} of tests/zoo."""
import sys

sys.path.insert(0, {tests!r})
from zoo import network
from zoo.material import sqnr_db

NETWORK = network({name!r})


def model():
    return NETWORK.module


def example_inputs():
    return NETWORK.example_inputs


def calibration():
    return NETWORK.calibration


def evaluate(predict):
    return {{"own_db": sqnr_db(NETWORK, predict)}}
'''


def main() -> int:
    """Run the zoo; returns how it ended, as an exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, required=True, help="file of the rows; networks that are in it are done")
    parser.add_argument("--only", help="names, with commas between; default: all")
    parser.add_argument("--to", default=",".join(RUNTIMES), help="runtimes, with commas between")
    parser.add_argument("--work", type=Path, help="folder for task files and models; default: a temporary one")
    parser.add_argument("--profile", action="store_true", help="also time int8 beside float on each runtime")
    parser.add_argument("--fresh", action="store_true", help="make rows again that are there")
    parser.add_argument("--page", type=Path, help="write the table of all rows between the marker lines of this page")
    options = parser.parse_args()
    chosen = options.only.split(",") if options.only else list(NETWORKS)
    unknown = [name for name in chosen if name not in NETWORKS]
    if unknown:
        parser.error(f"unknown network {unknown[0]!r}: choose from {', '.join(NETWORKS)}")
    runtimes = options.to.split(",")
    if strange := [name for name in runtimes if name not in RUNTIMES]:
        parser.error(f"unknown runtime {strange[0]!r}: choose from {', '.join(RUNTIMES)}")
    rows: dict[str, Row] = json.loads(options.json.read_text()) if options.json.exists() else {}
    with tempfile.TemporaryDirectory() as temporary:
        for name in [name for name in chosen if options.fresh or name not in rows]:
            rows[name] = passed(name, options.work or Path(temporary), runtimes, profile=options.profile)
            print(line(name, rows[name]), file=sys.stderr, flush=True)
            options.json.parent.mkdir(parents=True, exist_ok=True)
            write(options.json, json.dumps(rows, indent=1))
    if options.page:
        write(options.page, insert(options.page.read_text(encoding="utf-8"), Path(__file__).name, page(rows)))
    return int(any(faults(rows[name]) for name in chosen))


def passed(name: str, work: Path, runtimes: list[str], *, profile: bool) -> Row:
    """Every verb of a network, in order.

    said, seconds: verb (and runtime) → how it ended, how long it took. float: operator → how often it stays in float.
    runtimes: runtime → its counts by status, `ops` and `macs`, and what verify and profile found.
    """
    folder = work / name
    folder.mkdir(parents=True, exist_ok=True)
    task, out = folder / "task.py", folder / "out"
    task.write_text(TASK.format(name=name, tests=str(ROOT / "tests")))
    if out.exists():
        shutil.rmtree(out)
    found: Row = {"said": {}, "seconds": {}, "float": {}, "runtimes": {}}
    made = _verb(found, "quantize", str(task), "-o", str(out))
    if not found["said"]["quantize"].startswith("ok"):
        return found
    found["float"] = dict(Counter(made["island_operators"].values()).most_common())
    for runtime in runtimes:  # each by itself, so that one that does not end takes no other along
        _verb(found, "export", str(out), "--to", runtime)
    exported = [r for r in runtimes if found["said"].get(f"export {r}", "").startswith("ok")]
    if exported:
        _verb(found, "verify", str(out), "--to", *exported, "--batches", "2")
    wrong = [r for r in exported if fault(found["said"].get(f"verify {r}", ""))]
    if wrong:  # a tie that float's own rounding decides is no wrong integer
        _verb(found, "verify", str(out), "--to", *wrong, "--batches", "2", "--layers")
    timed = [r for r in exported if r != "coreml" and profile]  # off macOS there is nothing of Core ML to time
    if timed:
        _verb(found, "profile", str(out), "--to", *timed)
    return found


def _verb(found: Row, verb: str, *words: str) -> Row:
    """Run a verb and put what it came to into `found`; returns its JSON."""
    answer = edgeq(verb, *words)
    alone = f"{verb} {words[2]}" if words[1] == "--to" and len(words) == 3 else verb  # its sentence is the verb's own
    found["seconds"][alone] = round(found["seconds"].get(alone, 0) + answer.seconds, 1)
    said = {f"{verb} {runtime}": judged(verb, row) for runtime, row in answer.rows.items()}
    if not said or (fault(answer.said) and not any(map(fault, said.values()))):
        said[alone] = answer.said
    found["said"] |= said
    for runtime, row in answer.rows.items():
        into = found["runtimes"].setdefault(runtime, {})
        for what in ("ops", "macs"):
            if counts := {key[: -len(what) - 1]: row[key] for key in row if key.endswith(f"_{what}")}:
                into[what] = counts
        into |= {key: row[key] for key in ("max_lsb", "exact_share") if key in row}
        if row.get("metric"):
            into["sqnr_db"] = row["metric"]["own_db"]
        if row.get("total_ms"):
            into["int8_ms"] = row["total_ms"]["median"]
            into["float_ms"] = row["float"]["total_ms"]["median"] if row.get("float") else None
    return answer.made


def faults(row: Row) -> list[str]:
    """Verbs that ended in a fault, each with what it said."""
    return [f"{verb}: {said}" for verb, said in row["said"].items() if fault(said)]


def line(name: str, row: Row) -> str:
    """A network's row for a terminal."""
    cells = [f"{runtime}: {cell(found)}" for runtime, found in row["runtimes"].items()]
    return " | ".join([name, *cells, f"float: {_stays(row)}", f"{sum(row['seconds'].values()):.0f} s", *_unusual(row)])


def cell(found: Row) -> str:
    """What one runtime makes of a network, in words: each status by layers (by MACs), LSB, dB, milliseconds."""
    parts = []
    for status, ops in found.get("ops", {}).items():
        total, macs = sum(found["ops"].values()), found["macs"]
        if status != "float" and (ops or status == "table"):
            parts.append(f"{status} {ops / total:.0%} ({macs[status] / max(1, sum(macs.values())):.1%})")
    if "exact_share" in found:
        parts.append("∞ LSB" if found["max_lsb"] is None else f"{found['max_lsb']:.2g} LSB")
    if found.get("sqnr_db") is not None:
        parts.append(f"{found['sqnr_db']:.1f} dB")
    if "int8_ms" in found:
        parts.append(f"{found['int8_ms']:.2f} ms" + (f", float {found['float_ms']:.2f}" if found["float_ms"] else ""))
    return ", ".join(parts) or "–"


def _stays(row: Row) -> str:
    return ", ".join(f"{operator} ×{n}" for operator, n in row["float"].items()) or "nothing"


def _unusual(row: Row) -> list[str]:
    """Verbs that ended neither in a plain `ok` nor in `ok` and numbers, without this machine's paths."""
    said = [f"{v}: {s}" for v, s in row["said"].items() if not re.match(r"ok( .* dB)?$", s)]
    return [re.sub(r"/\S*/", "", each) for each in said]


PAGE: Final = """\
The networks of `tests/zoo`: written as strangers write them, random weights with channels of unlike scale and long tails,
BatchNorm's statistics from structured data. Written by `make zoo`.

A cell says, for each status, its share of the network's layers and, in brackets, of its multiply-accumulates; the largest
difference from that runtime's own simulation; and the signal to noise ratio against the network's own module on batches that
calibration did not see, the worst output's. An LSB of an output in float is 1/255 of its range. What is missing to 100 % is in
float. Core ML decides on the device, so nothing there is claimed to be `integer`, and off macOS its package is computed in
float32. One program, target `portable`, default recipe. Seconds are those of all verbs together, on a machine that may be busy.
Random networks of many layers lose more than trained ones: dB compare runtimes and builds, not networks.

"""


def page(rows: dict[str, Row]) -> str:
    """The rows that there are as a table of Markdown."""
    runtimes = [r for r in RUNTIMES if any(r in row["runtimes"] for row in rows.values())]
    head = ["network", "layers", "M MACs", *runtimes, "stays in float", "seconds", "besides"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for name in [name for name in NETWORKS if name in rows]:
        row = rows[name]
        first = next(iter(row["runtimes"].values()), {"ops": {}, "macs": {}})
        counts = [str(sum(first["ops"].values())), f"{sum(first['macs'].values()) / 1e6:.1f}"]
        cells = [cell(row["runtimes"].get(runtime, {})) for runtime in runtimes]
        end = [_stays(row), f"{sum(row['seconds'].values()):.0f}", "; ".join(_unusual(row))]
        lines.append("| " + " | ".join(text.replace("|", "\\|") for text in [name, *counts, *cells, *end]) + " |")
    wrong = sum(bool(faults(row)) for row in rows.values())
    return PAGE + "\n".join(
        [*lines, "", f"{len(rows)} of {len(NETWORKS)} networks have been run, {wrong} with a fault."]
    )


if __name__ == "__main__":
    sys.exit(main())
