"""The Mac this runs on, where Apple's runtime itself runs; on other systems one sentence."""

from __future__ import annotations

import platform
import subprocess

from edgeq.backends import RUNTIMES
from edgeq.devices.host import cores
from edgeq.devices.local import Local
from edgeq.spec import DeviceInfo, EdgeqError

OWN = next(runtime for runtime in RUNTIMES.values() if runtime.apple)
ELSEWHERE = (
    f"apple: {OWN.title} runs on macOS only; on a Mac, install edgeq[{OWN.name}] and run the same command there. "
    f"Here the saved package itself is checked, operator by operator: edgeq verify DIR --to {OWN.name}"
)


class Apple(Local):
    """Programs of this Mac; what its runtime does with a model is the backend's to know."""

    name = "apple:"

    def __init__(self) -> None:
        """Be on a Mac.

        Raises:
            EdgeqError: this is none.
        """
        if platform.system() != "Darwin":
            raise EdgeqError(ELSEWHERE)
        super().__init__()

    def describe(self) -> DeviceInfo:
        """As sysctl has it."""
        features = {"hw.optional.arm.FEAT_DotProd": "asimddp", "hw.optional.arm.FEAT_I8MM": "i8mm"}
        return DeviceInfo(
            name=self.name,
            model=_sysctl("machdep.cpu.brand_string") or "Mac",
            abi="arm64-apple" if platform.machine() == "arm64" else "x86_64-apple",
            cores=cores(),
            os=f"macOS {platform.mac_ver()[0]}",
            features=tuple(name for key, name in features.items() if _sysctl(key) == "1"),
        )


def _sysctl(key: str) -> str:
    done = subprocess.run(["/usr/sbin/sysctl", "-n", key], capture_output=True, text=True, check=False)
    return done.stdout.strip()
