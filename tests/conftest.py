"""Shared by all tests: neighbours are importable, torch is frugal, real data is found or its tests say why not."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
torch.set_num_threads(2)

DATA = Path(os.environ.get("EDGEQ_DATA", Path(__file__).parents[2] / "shared" / "data"))


@pytest.fixture(scope="session", autouse=True)
def edgeq_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Tests keep their measurements in a folder of their own."""
    folder = tmp_path_factory.mktemp("edgeq-home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEQ_HOME", str(folder))
        yield folder


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of real weights and images."""
    if not DATA.is_dir():
        pytest.skip(f"EDGEQ_DATA is not set and {DATA} does not exist: this test needs the real weights and images")
    os.environ["EDGEQ_DATA"] = str(DATA)
    return DATA
