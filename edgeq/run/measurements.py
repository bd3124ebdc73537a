"""Every measurement is kept: what ran, where, in which versions, and how long each run took. One SQLite file."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from edgeq.home import home
from edgeq.spec import DeviceInfo, EdgeqError, InstructionReport, LatencyReport, OpLatency, Spread

Variant = Literal["int8", "float"]

FORMAT = 2  # of the tables; PRAGMA user_version
PATIENCE_S = 30.0  # how long to wait while another process writes
TABLES = """
CREATE TABLE measurements (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    at TEXT NOT NULL,              -- UTC, ISO 8601
    model TEXT NOT NULL,
    variant TEXT NOT NULL,         -- int8 or float
    backend TEXT NOT NULL,
    artifact_sha256 TEXT NOT NULL,
    device TEXT NOT NULL,          -- as on the command line
    device_model TEXT NOT NULL,
    device_info TEXT NOT NULL,     -- DeviceInfo as JSON
    versions TEXT NOT NULL,        -- package → version, as JSON
    threads INTEGER NOT NULL,
    settings TEXT NOT NULL,        -- how it was run, as JSON
    median_ms REAL,                -- of whole inferences, NULL where instructions were counted
    instructions INTEGER,          -- of one inference, NULL where time was measured
    report TEXT NOT NULL,          -- the whole report as JSON, with each run's time
    CHECK ((median_ms IS NULL) <> (instructions IS NULL))
);
CREATE INDEX measurements_place ON measurements (device, device_model, backend, threads);
CREATE TABLE rows (
    id INTEGER PRIMARY KEY,
    measurement INTEGER NOT NULL REFERENCES measurements (id),
    kind TEXT NOT NULL,
    ms REAL NOT NULL,
    precision TEXT NOT NULL
);
CREATE INDEX rows_measurement ON rows (measurement);
CREATE TABLE layers (
    row INTEGER NOT NULL REFERENCES rows (id),
    layer TEXT NOT NULL,
    signature TEXT NOT NULL
);
CREATE INDEX layers_row ON layers (row);
CREATE INDEX layers_layer ON layers (layer);
CREATE INDEX layers_signature ON layers (signature);
"""

# format → what brings its tables to the next one
MIGRATIONS = {
    # first counts also compiled Python's caches, and their difference could be below 0
    1: "DELETE FROM measurements WHERE instructions <= 0",
}


@dataclass(frozen=True, slots=True)
class Subject:
    """What was measured.

    variant: the quantized artefact or its float twin. signatures: layer key → edgeq.graph.signatures; precisions: layer
    key → name of its precision in the plan. settings: whatever else decides how it ran (kernels, cores, ...).
    """

    model: str
    variant: Variant
    artifact: Path
    signatures: Mapping[str, str] = field(default_factory=dict)
    precisions: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Measurement:
    """One entry of the database."""

    id: int
    at: str
    model: str
    variant: str
    artifact_sha256: str
    device: DeviceInfo
    settings: dict[str, Any]
    report: LatencyReport | InstructionReport


@dataclass(frozen=True, slots=True)
class LayerTime:
    """Time of one row of a measurement: of all `layers` together, as the runtime fused them."""

    ms: float
    layers: tuple[str, ...]
    signatures: tuple[str, ...]
    precision: str
    measurement: int
    at: str


def path() -> Path:
    """Where the database lies."""
    return home() / "measurements.sqlite"


@contextmanager
def _open(write: bool) -> Iterator[sqlite3.Connection]:
    """The database with its tables, in one transaction that is whole or not at all, also when this process dies in it.

    Raises:
        EdgeqError: it cannot be opened, is damaged, busy for long, or of a later version.
    """
    where = path()
    try:
        where.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(where, timeout=PATIENCE_S, isolation_level=None)) as database:
            database.execute("PRAGMA foreign_keys = ON")
            database.execute("BEGIN IMMEDIATE" if write or _version(database) < FORMAT else "BEGIN")
            if _version(database) == 0:
                for statement in TABLES.split(";")[:-1]:
                    database.execute(statement)
                database.execute(f"PRAGMA user_version = {FORMAT}")
            while (format := _version(database)) in MIGRATIONS:
                database.execute(MIGRATIONS[format])
                database.execute(f"PRAGMA user_version = {format + 1}")
            if _version(database) > FORMAT:
                raise EdgeqError(
                    f"{where} was written by a later edgeq: update edgeq, or set EDGEQ_HOME to another folder"
                )
            try:
                yield database
            except BaseException:
                database.execute("ROLLBACK")
                raise
            database.execute("COMMIT")
    except (sqlite3.Error, OSError) as error:
        raise EdgeqError(
            f"the measurements in {where} cannot be used ({error}): move the file away, or set EDGEQ_HOME to another folder"
        ) from error


def _version(database: sqlite3.Connection) -> int:
    return int(database.execute("PRAGMA user_version").fetchone()[0])


def keep(report: LatencyReport | InstructionReport, device: DeviceInfo, subject: Subject) -> int:
    """Store a measurement; returns its number.

    Raises:
        EdgeqError: the database cannot be used.
    """
    timed = isinstance(report, LatencyReport)
    values = {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "model": subject.model,
        "variant": subject.variant,
        "backend": report.backend,
        "artifact_sha256": sha256(subject.artifact),
        "device": device.name,
        "device_model": device.model,
        "device_info": json.dumps(dataclasses.asdict(device)),
        "versions": json.dumps(report.versions),
        "threads": report.threads,
        "settings": json.dumps(dict(subject.settings)),
        "median_ms": report.total_ms.median if isinstance(report, LatencyReport) else None,
        "instructions": report.instructions if isinstance(report, InstructionReport) else None,
        "report": json.dumps(dataclasses.asdict(report)),
    }
    with _open(write=True) as database:
        marks = ", ".join("?" * len(values))
        added = database.execute(f"INSERT INTO measurements ({', '.join(values)}) VALUES ({marks})", [*values.values()])
        number = int(added.lastrowid or 0)
        for row in report.rows if timed else ():  # type: ignore[union-attr] # a LatencyReport
            made = database.execute(
                "INSERT INTO rows (measurement, kind, ms, precision) VALUES (?, ?, ?, ?)",
                (number, row.kind, row.ms, _precision(row, subject)),
            )
            layers = [(made.lastrowid, key, subject.signatures.get(key, "")) for key in row.layers]
            database.executemany("INSERT INTO layers (row, layer, signature) VALUES (?, ?, ?)", layers)
    return number


def _precision(row: OpLatency, subject: Subject) -> str:
    """Of all its layers, once each: `w8a8`, or `w8a8+fp32`."""
    if subject.variant == "float":
        return "fp32"
    return "+".join(dict.fromkeys(subject.precisions.get(key, "fp32") for key in row.layers))


def load(number: int) -> Measurement:
    """The measurement of that number.

    Raises:
        EdgeqError: there is none, or the database cannot be used.
    """
    if not 0 < number < 2**63:  # SQLite's numbers
        raise EdgeqError(f"there is no measurement {number} in {path()}")
    columns = "id, at, model, variant, artifact_sha256, device_info, settings, report, instructions"
    with _open(write=False) as database:
        found = database.execute(f"SELECT {columns} FROM measurements WHERE id = ?", (number,)).fetchone()
    if found is None:
        raise EdgeqError(f"there is no measurement {number} in {path()}")
    (identity, at, model, variant, content, device, settings, report, instructions) = found
    told = json.loads(device)
    return Measurement(
        identity,
        at,
        model,
        variant,
        content,
        DeviceInfo(**{**told, "features": tuple(told["features"])}),
        json.loads(settings),
        latency(json.loads(report)) if instructions is None else InstructionReport(**json.loads(report)),
    )


def latency(told: Mapping[str, Any]) -> LatencyReport:
    """A latency report out of plain data, as `dataclasses.asdict` made it."""
    rows = tuple(
        OpLatency(**{**row, "layers": tuple(row["layers"]), "run_ms": tuple(row["run_ms"])}) for row in told["rows"]
    )
    known = {f.name: told[f.name] for f in dataclasses.fields(LatencyReport) if f.name in told}
    runs, earlier = tuple(told["run_ms"]), tuple(told.get("earlier_ms") or ())
    return LatencyReport(
        **{**known, "total_ms": Spread(**told["total_ms"]), "run_ms": runs, "rows": rows, "earlier_ms": earlier}
    )


def totals(device: DeviceInfo, backend: str, *, artifact: Path, threads: int = 1) -> list[float]:
    """Median milliseconds of `artifact`, by its content, on a device of this name and model: the latest first."""
    content = sha256(artifact)
    with _open(write=False) as database:
        found = database.execute(
            "SELECT median_ms FROM measurements WHERE device = ? AND device_model = ? AND backend = ? AND threads = ?"
            " AND artifact_sha256 = ? AND median_ms IS NOT NULL ORDER BY id DESC",
            (device.name, device.model, backend, threads, content),
        ).fetchall()
    return [float(ms) for (ms,) in found]


def layer_times(
    device: DeviceInfo,
    backend: str,
    *,
    layer: str | None = None,
    model: str | None = None,
    signature: str | None = None,
    precision: str | None = None,
    threads: int = 1,
) -> list[LayerTime]:
    """Rows that compute a layer, by its key (of `model`) or by its signature (of any model): the latest first.

    device: of this name and model. precision: of the whole row; any where None.
    """
    asked = {
        "m.device": device.name, "m.device_model": device.model, "m.backend": backend, "m.threads": threads,
        "m.model": model, "l.layer": layer, "l.signature": signature, "r.precision": precision,
    }  # fmt: skip
    wanted = {column: value for column, value in asked.items() if value is not None}
    with _open(write=False) as database:
        rows = database.execute(
            "SELECT DISTINCT r.id, r.ms, r.precision, m.id, m.at FROM layers l JOIN rows r ON r.id = l.row"
            f" JOIN measurements m ON m.id = r.measurement WHERE {' AND '.join(f'{c} = ?' for c in wanted)}"
            " ORDER BY m.id DESC, r.id",
            [*wanted.values()],
        ).fetchall()
        found = []
        for row, ms, name, number, at in rows:
            pairs = database.execute("SELECT layer, signature FROM layers WHERE row = ? ORDER BY rowid", (row,))
            layers, signs = zip(*pairs.fetchall(), strict=True)
            found.append(LayerTime(ms, layers, signs, name, number, at))
    return found


def sha256(artifact: Path) -> str:
    """Hash of a file, or of all files of a folder with their names."""
    if not artifact.is_dir():
        return hashlib.sha256(artifact.read_bytes()).hexdigest()
    digest = hashlib.sha256()
    for file in sorted(p for p in artifact.rglob("*") if p.is_file()):
        digest.update(f"{file.relative_to(artifact)}\0{file.stat().st_size}\0".encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()
