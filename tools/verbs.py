"""A verb of edgeq in a process of its own, and its answer: `ok`, a sentence, wrong numbers, or a fault."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from typing import Any, Final

from edgeq.pages.words import tied

RUNTIMES: Final = ("litert", "executorch", "coreml", "tvm")
NOISE: Final = 1e-3  # of a step: what float kernels of several operators may differ by
LIMIT: Final = 900  # seconds for one verb


@dataclass(frozen=True, slots=True)
class Answer:
    """What a verb came to.

    said: `ok` and its warnings, a sentence, or `FAULT` and why. made: its JSON; rows: that of each runtime.
    """

    said: str
    seconds: float
    made: dict[str, Any] = field(default_factory=dict)

    @property
    def rows(self) -> dict[str, dict[str, Any]]:
        """Runtime → its row."""
        found: dict[str, dict[str, Any]] = self.made.get("backends", {})
        return found


def edgeq(*words: str, **environment: str) -> Answer:
    """Run `edgeq` with `words` and `--json`; several runtimes may follow one `--to`."""
    command = [sys.executable, "-m", "edgeq.cli", *_repeated(words), "--json"]
    begun = time.monotonic()
    try:
        done = subprocess.run(
            command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=LIMIT, check=False
        )
    except subprocess.TimeoutExpired:
        return Answer(f"FAULT no end within {LIMIT} s", LIMIT)
    seconds = time.monotonic() - begun
    last = done.stderr.strip().splitlines()[-1:] or [""]
    made = json.loads(done.stdout) if done.stdout.startswith("{") else {}
    if done.returncode not in (0, 1, 2) or "Traceback" in done.stderr:
        return Answer(f"FAULT exit code {done.returncode}: {last[0][:400]}", seconds, made)
    said = [line for line in done.stderr.splitlines() if line.startswith("edgeq:")]
    if done.returncode:
        return Answer((said or last)[-1][:400], seconds, made)
    warned = dict.fromkeys(line.partition("warning: ")[2] for line in said if line.startswith("edgeq: warning: "))
    return Answer("; ".join(("ok", *warned)), seconds, made)


def _repeated(words: tuple[str, ...]) -> list[str]:
    """`--to a b` as the command line takes it: `--to a --to b`."""
    made: list[str] = []
    for word in words:
        made += ["--to", word] if word in RUNTIMES and made[-2] == "--to" else [word]
    return made


def judged(verb: str, row: dict[str, Any]) -> str:
    """One runtime's row of a verb's JSON in words: `ok`, a sentence, `WRONG` and its numbers, or `FAULT` and why."""
    if "error" in row:
        return ("FAULT " if row.get("fault") else "") + row["error"][:400]
    if verb != "verify":
        return "ok"
    lsb, decibels = (math.inf if row[name] is None else row[name] for name in ("max_lsb", "sqnr_db"))
    numbers = f"{lsb:.3g} LSB, {row['exact_share']:.1%} equal, {decibels:.0f} dB"
    claimed = row["integer_ops"] > 0  # what is only eligible for integers is claimed to be near, not equal
    if not claimed or lsb < 0.5:
        return f"ok {numbers}"
    parting = row.get("first_parting") or {}
    if parting.get("tie") is None:
        return f"WRONG {numbers}" + (f", first at {parting['layer']}" if parting else "")
    return f"{'ok' if parting['tie'] < NOISE else 'WRONG'} {numbers}: at {parting['layer']}, {tied(parting['tie'])}"


def fault(answer: str) -> bool:
    """Whether a verb neither did its work rightly nor said in a sentence why not."""
    return answer.startswith(("FAULT", "WRONG"))
