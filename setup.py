"""The optimizers' kernel as an optional extension: where it cannot be compiled, edgeq is installed without it."""

import sys

from setuptools import Extension, setup

# single float32 operations, as edgeq/optim/update.py has them: nothing contracted, nothing reordered
FLAGS = ["-O3", "-std=c++17", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"]
OPENMP = ["-fopenmp"] if sys.platform == "linux" else []  # not linked to: torch's own serves, see edgeq/optim/native.py

setup(
    ext_modules=[
        Extension("edgeq.optim._native", ["native/optim.cpp"], extra_compile_args=FLAGS + OPENMP, optional=True),
    ]
)
