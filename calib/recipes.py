"""The recipes by name: each a published method, composed of the parts in this folder."""

from __future__ import annotations

from typing import Final

from edgeq.spec import EdgeqError, Recipe, Reconstruction

_JACOB = "Jacob et al. 2018, arXiv 1712.05877"
_ZHOU = "Zhou et al. 2024 (LiDAR-PTQ), arXiv 2401.15865"

RECIPES: Final[dict[str, Recipe]] = {
    r.name: r
    for r in (
        Recipe(
            "default",
            "extremes seen in calibration; weights rounded so that each kernel's errors cancel",
            f"{_JACOB}; Guo et al. 2022, arXiv 2202.07471",
            rounding="squant",
        ),
        Recipe("minmax", "extremes seen in calibration; weights to nearest", _JACOB),
        Recipe("moving-average", "extremes averaged over batches", _JACOB, activations="moving-average"),
        Recipe(
            "percentile",
            "the rarest 0.01 % of each end clipped",
            "McKinstry et al. 2018, arXiv 1809.04191",
            activations="percentile:99.99",
        ),
        Recipe(
            "mse",
            "least squared error, activations and weights",
            "Banner et al. 2019, arXiv 1810.05723",
            activations="mse",
            weights="mse",
        ),
        Recipe(
            "entropy",
            "least KL divergence, as TensorRT calibrates",
            "Migacz, 8-bit inference with TensorRT, GTC 2017",
            activations="entropy",
        ),
        Recipe(
            "entropy-nonzero",
            "least KL divergence of the values that are not 0, for sparse inputs",
            "Migacz, 8-bit inference with TensorRT, GTC 2017; zeros left out",
            activations="entropy:nonzero",
        ),
        Recipe(
            "dfq",
            "extremes seen in calibration; channels equalised and biases corrected first, for few bits or sparse inputs",
            "Nagel et al. 2019 (Data-Free Quantization), arXiv 1906.04721, with calibration data",
            equalised=True,
            corrected=True,
        ),
        Recipe(
            "adaround",
            "rounding learned layer by layer, so that outputs stay the same",
            "Nagel et al. 2020, arXiv 2004.10568",
            weights="mse",
            rounding="squant",
            reconstruction=Reconstruction(),
        ),
        Recipe(
            "lidar-minmax",
            "channels equalised, extremes searched around for the least error in layers' outputs, biases corrected",
            f"{_ZHOU}, section 3.2",
            activations="sparsity",
            weights="mse",
            ends="w8a8",
            equalised=True,
            corrected=True,
        ),
        Recipe(
            "lidar-ptq",
            "lidar-minmax, then rounding and activation scales learned so that the detector's answers stay the same",
            _ZHOU,
            activations="sparsity",
            weights="mse",
            rounding="squant",
            reconstruction=Reconstruction(
                objectives=("mse", "tgpl"), balanced=True, polish=150, batch=2, activations=True
            ),
            ends="w8a8",
            equalised=True,
            corrected=True,
        ),
    )
}


def recipe(name: str) -> Recipe:
    """The recipe called `name`.

    Raises:
        EdgeqError: there is no such recipe.
    """
    if name not in RECIPES:
        raise EdgeqError(f"unknown recipe {name!r}: use {', '.join(RECIPES)}")
    return RECIPES[name]
