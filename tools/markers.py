"""Put a generated part into a page, between the marker lines of the tool that writes it."""

from __future__ import annotations

from pathlib import Path

README = Path(__file__).resolve().parent.parent / "README.md"


def insert(text: str, tool: str, new: str) -> str:
    """`text` with what stands between the markers of `tool` (its file name) replaced by `new`.

    Raises:
        ValueError: `text` lacks the markers.
    """
    before, _, after = _parted(text, tool)
    return f"{before}\n{new}\n{after}"


def part(text: str, tool: str) -> str:
    """What stands between the markers of `tool`.

    Raises:
        ValueError: `text` lacks the markers.
    """
    return _parted(text, tool)[1]


def _parted(text: str, tool: str) -> tuple[str, str, str]:
    """`text` up to its first marker, between both, from the second on."""
    begin, end = f"<!-- written by tools/{tool} -->", f"<!-- end of what tools/{tool} writes -->"
    before, found, rest = text.partition(begin)
    between, ended, after = rest.partition(end)
    if not found or not ended:
        raise ValueError(f"no place for what tools/{tool} writes: the lines {begin!r} and {end!r} are needed")
    return before + begin, between, end + after


def write(path: Path, text: str) -> None:
    """Write `text` beside `path` and rename."""
    beside = path.with_suffix(".part")
    beside.write_text(text, encoding="utf-8")
    beside.replace(path)
