"""Put a generated part into README.md, between the marker lines of the tool that writes it."""

from __future__ import annotations

from pathlib import Path

README = Path(__file__).resolve().parent.parent / "README.md"


def insert(text: str, tool: str, part: str) -> str:
    """`text` with what stands between the markers of `tool` (its file name) replaced by `part`.

    Raises:
        ValueError: `text` lacks the markers.
    """
    begin, end = f"<!-- written by tools/{tool} -->", f"<!-- end of what tools/{tool} writes -->"
    before, found, rest = text.partition(begin)
    _, ended, after = rest.partition(end)
    if not found or not ended:
        raise ValueError(f"no place for what tools/{tool} writes: the lines {begin!r} and {end!r} are needed")
    return f"{before}{begin}\n{part}\n{end}{after}"


def write(path: Path, text: str) -> None:
    """Write `text` beside `path` and rename."""
    part = path.with_suffix(".part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)
