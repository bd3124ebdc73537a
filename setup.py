"""The links in edgeq/ are there, or installing ends; the optimizers' kernel, where it cannot be compiled, is left out."""

import sys
from pathlib import Path

from setuptools import Extension, setup

# single float32 operations, as edgeq/optim/update.py has them: nothing contracted, nothing reordered
FLAGS = ["-O3", "-std=c++17", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"]
OPENMP = ["-fopenmp"] if sys.platform == "linux" else []  # not linked to: torch's own serves, see edgeq/optim/native.py

for link in ("calib", "backends", "examples", "runners"):
    if not (Path(__file__).parent / "edgeq" / link).is_dir():
        sys.exit(
            f"edgeq/{link} is no folder: git made a text file of the link, as it does on Windows; clone again with "
            "git clone -c core.symlinks=true, or install edgeq's wheel"
        )

setup(
    ext_modules=[
        Extension("edgeq.optim._native", ["native/optim.cpp"], extra_compile_args=FLAGS + OPENMP, optional=True),
    ]
)
