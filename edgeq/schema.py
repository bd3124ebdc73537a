"""JSON that was read from a file, as the dataclass that it should be: types, ranges, depth, unknown and missing keys.

The checks follow the types' own annotations, so that a field is described once. What a type cannot say (a scale above 0) its
dataclass says in `__post_init__`, by a ValueError of a few words.
"""

from __future__ import annotations

import dataclasses
import json
import math
import types
import typing
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from edgeq.spec import EdgeqError

T = TypeVar("T")
WORDS: dict[type, str] = {
    dict: "an object",
    list: "a list",
    str: "a string",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
}

DEEPEST = 64  # levels of nesting; ours have six, and a user's PREPROCESSING a few more
LARGEST = 1 << 28  # bytes of a file: the numbers of a network with a million layers


class Mismatch(ValueError):
    """Where in the data, and what is wrong there."""


def read(path: Path, kind: type[T], missing: str) -> T:
    """The JSON in `path` as `kind`, a dataclass, or a dictionary or tuple of what is checked alike.

    Raises:
        EdgeqError: there is no file (`missing` says what to do), it is no JSON, or it does not fit `kind`; where and why.
    """
    return fit(load(path, missing), kind, path)


def load(path: Path, missing: str) -> Any:
    """The JSON in `path`, whatever its shape.

    Raises:
        EdgeqError: there is no file, or it is no strict JSON of a size and depth that edgeq writes.
    """
    if not path.is_file():
        raise EdgeqError(missing)
    try:
        if path.stat().st_size > LARGEST:
            raise EdgeqError(f"{path}: is larger than {LARGEST >> 20} MiB, which no file of edgeq is; make it again")
        found = json.loads(path.read_bytes(), parse_constant=_no_number, object_pairs_hook=_no_key_twice)
    except (ValueError, RecursionError) as error:  # bytes that are no UTF-8 are a ValueError too
        why = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise EdgeqError(f"{path}: not valid JSON ({why}); make it again") from error
    except OSError as error:
        raise EdgeqError(f"{path}: cannot be read ({error.strerror})") from error
    return found


REMEDY = "it was changed by hand or by another version of edgeq: make it again"


def fit(found: Any, kind: type[T], where: object, remedy: str = REMEDY) -> T:
    """Plain data as `kind`.

    Raises:
        EdgeqError: it does not fit; names `where` it was read, the place in it, the reason and the remedy.
    """
    try:
        return typing.cast(T, _fit(found, kind, "", 0))
    except Mismatch as error:
        raise EdgeqError(f"{where}: {error}; {remedy}") from error


def _fit(found: Any, kind: Any, at: str, depth: int) -> Any:
    if depth > DEEPEST:
        raise Mismatch(f"{at or 'it'} is nested more than {DEEPEST} levels deep")
    origin, parts = get_origin(kind), get_args(kind)
    if kind is Any:
        return _plain(found, at, depth)
    if dataclasses.is_dataclass(kind):
        return _object(found, kind, at, depth)
    if origin in (Union, types.UnionType):
        if found is None and type(None) in parts:
            return None
        chosen = [p for p in parts if p is not type(None)]
        return _fit(found, chosen[0], at, depth)  # ours are a type or None
    if origin is Literal:
        if not any(found == p and type(found) is type(p) for p in parts):
            raise Mismatch(f"{at} is {found!r}, not one of {', '.join(map(str, parts))}")
        return found
    if origin is dict:
        _be(found, dict, at)
        return {key: _fit(value, parts[1], f"{at}[{key!r}]", depth + 1) for key, value in found.items()}
    if origin is tuple:
        _be(found, list, at)
        kinds = [parts[0]] * len(found) if parts[-1] is ... else list(parts)
        if len(kinds) != len(found):
            raise Mismatch(f"{at} has {len(found)} elements instead of {len(kinds)}")
        return tuple(_fit(x, k, f"{at}[{i}]", depth + 1) for i, (x, k) in enumerate(zip(found, kinds, strict=True)))
    if kind is float and type(found) is int:
        found = float(found) if abs(found) < 2**1023 else math.inf
    _be(found, kind, at)
    if kind is float and not math.isfinite(found):
        raise Mismatch(f"{at} is not finite")
    if kind is int and not -(2**63) <= found < 2**63:
        raise Mismatch(f"{at} has more than 64 bits")
    return found


def _object(found: Any, kind: Any, at: str, depth: int) -> Any:
    _be(found, dict, at)
    hints = typing.get_type_hints(kind)
    fields = {f.name: f for f in dataclasses.fields(kind)}
    if unknown := [key for key in found if key not in fields]:
        raise Mismatch(f"{_name(at, unknown[0])} is no field that edgeq knows")
    needed = [n for n, f in fields.items() if f.default is f.default_factory is dataclasses.MISSING]
    if lacking := [name for name in needed if name not in found]:
        raise Mismatch(f"{_name(at, lacking[0])} is missing")
    values = {key: _fit(value, hints[key], _name(at, key), depth + 1) for key, value in found.items()}
    try:
        return kind(**values)
    except Mismatch:
        raise
    except ValueError as error:
        raise Mismatch(f"{at or 'it'}: {error}") from error


def _name(at: str, key: str) -> str:
    return f"{at}.{key}" if at else key


def _be(found: Any, kind: type, at: str) -> None:
    if type(found) is not kind:  # True is no 1
        said = "null" if found is None else WORDS.get(type(found), str(type(found)))
        raise Mismatch(f"{at or 'it'} is {said} instead of {WORDS.get(kind, kind.__name__)}")


def _plain(found: Any, at: str, depth: int) -> Any:
    """What may hold anything, PREPROCESSING for one: any JSON, no deeper than DEEPEST."""
    if depth > DEEPEST:
        raise Mismatch(f"{at} is nested more than {DEEPEST} levels deep")
    if isinstance(found, dict):
        return {key: _plain(value, f"{at}[{key!r}]", depth + 1) for key, value in found.items()}
    if isinstance(found, list):
        return [_plain(value, f"{at}[{i}]", depth + 1) for i, value in enumerate(found)]
    return found


def _no_number(text: str) -> Any:
    raise ValueError(f"{text} is no number of strict JSON")


def _no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        twice = next(key for key, _ in pairs if sum(k == key for k, _ in pairs) > 1)
        raise ValueError(f"the key {twice!r} stands twice in one object")
    return made
