"""verify as JUnit XML, the form in which CI services take test results: one suite a model, one case a runtime."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

FIGURES = (
    "max_lsb", "exact_share", "qdq_lsb", "sqnr_db", "integer_ops", "table_ops", "eligible_ops", "float_ops",
    "integer_macs", "table_macs", "eligible_macs", "float_macs", "size_bytes",
)  # fmt: skip


def write_junit(found: Mapping[str, Any], path: Path) -> None:
    """Write what `edgeq.verify` returned: a condition that holds is a failure, a runtime that failed an error, one that does
    not run on the device skipped; a runtime's figures are properties of its case."""
    rows, failing, skipped = found["backends"], found["failing"], found["skipped"]
    errors = [name for name, row in rows.items() if "error" in row or "metric_error" in row]
    counts = {
        "tests": len(rows) + len(skipped),
        "failures": len(failing),
        "errors": len(errors),
        "skipped": len(skipped),
    }
    suite = ElementTree.Element("testsuite", name=f"edgeq verify {found['model']}")
    suite.attrib.update({name: str(count) for name, count in counts.items()})
    for name in (*rows, *skipped):
        case = ElementTree.SubElement(suite, "testcase", classname=f"edgeq.verify.{found['model']}", name=name)
        row = rows.get(name, {})
        if name in skipped:
            ElementTree.SubElement(case, "skipped", message=skipped[name])
        elif "error" in row:
            ElementTree.SubElement(case, "error", message=row["error"])
        else:
            figures = {key: row.get(key) for key in FIGURES} | (row["metric"] or {})
            properties = ElementTree.SubElement(case, "properties")
            for key, value in figures.items():
                ElementTree.SubElement(properties, "property", name=key, value="" if value is None else str(value))
            if "metric_error" in row:
                ElementTree.SubElement(case, "error", message=row["metric_error"])
            if name in failing:
                ElementTree.SubElement(case, "failure", message=f"{' and '.join(failing[name])} for {name}")
    root = ElementTree.Element("testsuites")
    root.append(suite)
    ElementTree.indent(root)
    path.parent.mkdir(parents=True, exist_ok=True)
    ElementTree.ElementTree(root).write(path, encoding="utf-8", xml_declaration=True)
