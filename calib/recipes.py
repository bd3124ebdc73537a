"""The recipes by name: each a published method, as the steps in calib/steps/."""

from __future__ import annotations

from typing import Final

from edgeq.calib.steps.correct import Correct
from edgeq.calib.steps.ends import Ends
from edgeq.calib.steps.equalise import Equalise
from edgeq.calib.steps.ranges import Ranges
from edgeq.calib.steps.reconstruct import Reconstruct
from edgeq.calib.steps.round import Round
from edgeq.calib.steps.scales import Scales
from edgeq.calib.steps.search import Search
from edgeq.spec import EdgeqError, Recipe

_JACOB = "Jacob et al. 2018, arXiv 1712.05877"
_GUO = "Guo et al. 2022, arXiv 2202.07471"
_NAGEL = "Nagel et al. 2021 (white paper), arXiv 2106.08295, section 3.1"
_ZHOU = "Zhou et al. 2024 (LiDAR-PTQ), arXiv 2401.15865"

# what `best-range` chooses among, the widest first. Averages of extremes clip every second batch, which squared errors hardly
# show and scores do (MobileNetV2: 51 of 100 images, not 77); `entropy` counts zeros, by which no network gained: docs/results.md
CANDIDATES: Final = ("minmax", "percentile:99.99", "mse", "entropy:nonzero")


def _ranged(name: str, summary: str, source: str, method: str) -> Recipe:
    """A recipe that differs from others by how intervals of activations are found."""
    return Recipe(name, summary, source, (Ranges(method), Scales(), Round()))


def _solved(name: str, summary: str, source: str, by: Round) -> Recipe:
    """A recipe that differs from others by how weights are rounded."""
    return Recipe(name, summary, source, (Ranges(), Scales("mse"), by))


RECIPES: Final[dict[str, Recipe]] = {
    r.name: r
    for r in (
        Recipe(
            "default",
            "extremes seen in calibration; weights rounded so that each kernel's errors cancel",
            f"{_JACOB}; {_GUO}",
            (Ranges(), Scales(), Round("squant")),
        ),
        _ranged("minmax", "extremes seen in calibration; weights to nearest", _JACOB, "minmax"),
        _ranged("moving-average", "extremes averaged over batches", _JACOB, "moving-average"),
        _ranged(
            "percentile",
            "the rarest 0.01 % of each end clipped",
            "McKinstry et al. 2018, arXiv 1809.04191",
            "percentile:99.99",
        ),
        Recipe(
            "mse",
            "least squared error, activations and weights",
            "Banner et al. 2019, arXiv 1810.05723",
            (Ranges("mse"), Scales("mse"), Round()),
        ),
        _ranged(
            "entropy",
            "least KL divergence, as TensorRT calibrates",
            "Migacz, 8-bit inference with TensorRT, GTC 2017",
            "entropy",
        ),
        _ranged(
            "entropy-nonzero",
            "least KL divergence of the values that are not 0, for sparse inputs",
            "Migacz, 8-bit inference with TensorRT, GTC 2017; zeros left out",
            "entropy:nonzero",
        ),
        Recipe(
            "best-range",
            "default, but of several range methods the one that costs the network's outputs least, for long tails",
            f"{_NAGEL}; {_GUO}",
            (Ranges(", ".join(CANDIDATES)), Scales(), Round("squant")),
        ),
        Recipe(
            "dfq",
            "extremes seen in calibration; channels equalised and biases corrected first, for few bits or sparse inputs",
            "Nagel et al. 2019 (Data-Free Quantization), arXiv 1906.04721, with calibration data",
            (Equalise(), Ranges(), Scales(), Round(), Correct()),
        ),
        _solved(
            "adaround",
            "rounding learned layer by layer, so that outputs stay the same",
            "Nagel et al. 2020, arXiv 2004.10568",
            Round("adaround", start="squant"),
        ),
        _solved(
            "gptq",
            "each weight's rounding error made up for by the layer's later weights",
            "Frantar et al. 2023, arXiv 2210.17323",
            Round("gptq:act-order", start="squant"),
        ),
        _solved(
            "quantease",
            "one weight after the other to where the layer's error is least, in sweeps",
            "Behdin et al. 2023, arXiv 2309.01885",
            Round("quantease", start="squant"),
        ),
        _solved(
            "flexround",
            "weights divided by learned factors before they are rounded",
            "Lee et al. 2023, arXiv 2306.00317",
            Round("flexround", start="squant"),
        ),
        _solved(
            "comq",
            "codes one by one, and after each sweep the scale that suits them",
            "Zhang et al. 2024, arXiv 2403.07134",
            Round("comq", start="squant"),
        ),
        Recipe(
            "brecq",
            "adaround, then rounding learned block by block, each value by how much the network's output hangs on it",
            "Li et al. 2021 (BRECQ), arXiv 2102.05426",
            (
                Ranges(), Scales("mse"), Round("adaround", start="squant"),
                Reconstruct(extent="block", objectives=("fisher",), batch=8),
            ),
        ),
        Recipe(
            "lidar-minmax",
            "channels equalised, extremes searched around for the least error in layers' outputs, biases corrected",
            f"{_ZHOU}, section 3.2",
            (Ends(), Equalise(), Ranges(), Scales("mse"), Search(), Round(), Correct()),
        ),
        Recipe(
            "lidar-ptq",
            "lidar-minmax, then rounding and activation scales learned so that the detector's answers stay the same",
            _ZHOU,
            (
                Ends(), Equalise(), Ranges(), Scales("mse"), Search(),
                Round("adaround", start="squant", balanced=True), Correct(),
                Reconstruct(objectives=("mse", "tgpl"), balanced=True, batch=2, activations=True),
            ),
        ),
    )
}  # fmt: skip


def recipe(name: str) -> Recipe:
    """The recipe called `name`.

    Raises:
        EdgeqError: there is no such recipe.
    """
    if name not in RECIPES:
        raise EdgeqError(f"unknown recipe {name!r}: use {', '.join(RECIPES)}")
    return RECIPES[name]
