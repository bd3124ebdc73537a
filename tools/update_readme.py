"""Put the demo's table and a picture of its report into README.md, so that its numbers are never typed by hand.

edgeq demo --json > demo.json && python tools/update_readme.py demo.json      (the picture needs chromium)
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markers import README, insert, write

from edgeq.pages.words import decibel, join, medians, number, plain, share, speed, title

Found = Mapping[str, Any]
PICTURE = README.parent / "docs" / "images" / "report.png"
SCREEN = (1280, 800)  # pixels of the page that the picture shows
HEAD = ("int8 ms", "float ms", "speedup", "integer / table / eligible / float layers")


def table(found: Found) -> str:
    """The demo's result, as `edgeq demo --json` prints it, in Markdown, machine and versions below it."""
    metrics = list(found["float_metric"])
    times = medians(found["backends"])["backends"]
    head = ["", "max LSB", "equal", *map(_heading, metrics), *HEAD]
    rows = [head, ["---", *["---:"] * (len(head) - 1)]]
    for words, key in (("float network", "float_metric"), ("QDQ program", "qdq_metric")):
        rows.append([words, "", "", *_values(metrics, found[key]), *[""] * len(HEAD)])
    for name, row in found["backends"].items():
        int8, floating, gain = speed(times[name])
        parity = [plain(row["max_lsb"]), share(row["exact_share"])]
        timed = [number(int8), number(floating), "–" if gain is None else f"{gain:.2f}×"]
        counts = " / ".join(str(row[key]) for key in ("integer_ops", "table_ops", "eligible_ops", "float_ops"))
        rows.append([title(name), *parity, *_values(metrics, row["metric"]), *timed, counts])
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([*lines, "", _where(found)])


def _where(found: Found) -> str:
    device = found["device"]
    features = f" with {join(device['features'])}" if device["features"] else ""
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    return f"{found['network']} on {device['model']}, {device['cores']} cores{features}; {versions}."


def _heading(metric: str) -> str:
    return metric.removesuffix("_db").replace("_", " ") + (" dB" if metric.endswith("_db") else "")


def _values(metrics: Sequence[str], values: Found) -> list[str]:
    return [decibel(values[name]) if name.endswith("_db") else plain(values[name]) for name in metrics]


def shoot(page: Path, picture: Path) -> None:
    """Save the first screen of an HTML page as PNG.

    Raises:
        SystemExit: there is no chromium, or it fails.
    """
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        raise SystemExit("the picture needs chromium: install it, or leave the picture out with --no-picture")
    picture.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as profile:
        made = Path(profile) / "page.png"
        flags = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--hide-scrollbars")
        size = f"--window-size={SCREEN[0]},{SCREEN[1]}"
        command = [browser, *flags, f"--user-data-dir={profile}/user", f"--screenshot={made}", size]
        done = subprocess.run(
            [*command, page.resolve().as_uri()], capture_output=True, text=True, timeout=120, check=False
        )
        if not made.is_file():
            raise SystemExit(f"{browser} made no picture of {page}: {done.stderr.strip()[-300:]}")
        shutil.move(made, picture)


def main() -> None:
    """Rewrite README.md and its picture from the JSON of a run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("demo", type=Path, help="what edgeq demo --json printed")
    parser.add_argument("--no-picture", action="store_true", help="leave docs/images/report.png as it is")
    arguments = parser.parse_args()
    found = json.loads(arguments.demo.read_text(encoding="utf-8"))
    if not arguments.no_picture:
        shoot(Path(found["report"]), PICTURE)
    write(README, insert(README.read_text(encoding="utf-8"), "update_readme.py", table(found)))


if __name__ == "__main__":
    main()
