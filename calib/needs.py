"""What a step may ask for beside the network, in the words that users read; an objective may name functions of the task."""

from __future__ import annotations

from typing import Final

DATA: Final = "calibration()"  # batches, whatever is quantized
SEEN: Final = "calibration(), but for weights alone"
NEIGHBOURS: Final = "weights whose codes are neighbouring integers"  # to learn between two of them
