"""Devices in words: what each is and can do, and what is missing where it cannot be reached."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

# of what a device names among its features, those that multiply and add eight-bit integers
DOT_PRODUCTS = ("avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm")


def device_rows(devices: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    """Name, and what there is to say; `devices` as `edgeq doctor --json` has them."""
    for name, device in devices.items():
        yield name, _reached(device) if device["reachable"] else f"not reached: {device['how']}"


def _reached(device: Mapping[str, Any]) -> str:
    cores = device["cores"]
    what = f"{device['model']}, {cores} {'core' if cores == 1 else 'cores'}"
    if device["os"] != "none":  # a DSP runs a program alone
        what += f", {device['os']}"
    state = [" ".join(device["features"])]
    if device["governor"]:
        state.append(f"governor {device['governor']}")
    if device["temperature_c"] is not None:
        state.append(f"{device['temperature_c']:.0f} °C")
    if device["features"] and device["abi"].startswith(("x86_64", "aarch64")):
        has = [name for name in device["features"] if name in DOT_PRODUCTS]
        state.append(f"int8 dot products by {has[0]}" if has else "no int8 dot products: float may be as fast")
    can = f"{device['can']} ({device['how']})" if device["how"] else device["can"]
    return "\n".join(line for line in (what, ", ".join(part for part in state if part), can) if line)
