"""Three small trainings from scratch, each a network, a loss and what held-out data says: images, words, lidar scenes.

A seed decides the first weights and the order of the data, so that two optimizers with one seed see the same batches. Images
and text come from the folder EDGEQ_DATA, scenes are generated. Sizes are chosen for one thread: a step takes some 0.1 s.
"""

from __future__ import annotations

import copy
import io
import math
import zipfile
from collections import Counter
from typing import Any, Final, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from accuracy import DATA
from numpy.typing import NDArray
from torch import Tensor, nn

from edgeq.lidar import pipeline
from edgeq.lidar.detectors import DETECTORS, Detector
from edgeq.lidar.evaluate import summary
from edgeq.lidar.networks import CenterPointPillar
from edgeq.lidar.scenes import HDL64_FRONT, scene
from edgeq.lidar.synthetic import TRAINING, frames
from edgeq.lidar.training import augment, collate, losses, samples, targets


class Training(Protocol):
    """What a loop needs to train. `rate` is the largest learning rate, `decay` AdamW's weight decay."""

    title: str
    measure: str  # what held_out says
    rate: float
    decay: float

    def network(self) -> nn.Module:
        """The network with new weights from torch's random generator."""

    def loss(self, network: nn.Module, random: np.random.Generator) -> Tensor:
        """The loss of one batch drawn by `random`."""

    def held_out(self, network: nn.Module) -> float:
        """`measure` on data that no batch holds; leaves the network in eval mode."""


def channels_last(network: nn.Module) -> nn.Module:
    """The network with its convolutions' weights in the layout that a processor's kernels like best."""
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload] # torch's stub lacks the overload
    return network


# ---------------------------------------------------------------- images


class Images:
    """ResNet-20 on CIFAR-10: 50,000 images, flips and shifts by up to 4 pixels, batches of 32."""

    title, measure = "ResNet-20, CIFAR-10, batches of 32", "top-1 %"
    rate, decay, batch = 2e-3, 0.05, 32

    def __init__(self) -> None:
        from PIL import Image
        from resnet20_cifar10 import test_images

        with zipfile.ZipFile(DATA / "cifar10" / "train_jpeg.zip") as archive:
            names = sorted(n for n in archive.namelist() if n.endswith(".jpg"))
            decoded = [np.asarray(Image.open(io.BytesIO(archive.read(n))).convert("RGB")) for n in names]
        kinds = {kind: i for i, kind in enumerate(sorted({n.split("/")[-2] for n in names}))}
        self.labels = torch.tensor([kinds[n.split("/")[-2]] for n in names])
        self.pixels = np.pad(np.stack(decoded), ((0, 0), (4, 4), (4, 4), (0, 0)))
        self.test, labels = test_images()
        self.test_labels = torch.from_numpy(labels)

    def network(self) -> nn.Module:
        from resnet20_cifar10 import ResNet20

        return channels_last(ResNet20())

    def loss(self, network: nn.Module, random: np.random.Generator) -> Tensor:
        from resnet20_cifar10 import prepare

        chosen = random.integers(0, len(self.labels), self.batch)
        shifts, flips = random.integers(0, 9, (self.batch, 2)), random.choice([-1, 1], self.batch)
        crops = [
            self.pixels[i, y : y + 32, x : x + 32][:, ::f] for i, (y, x), f in zip(chosen, shifts, flips, strict=True)
        ]
        return F.cross_entropy(network(prepare(np.stack(crops))), self.labels[chosen])

    def held_out(self, network: nn.Module) -> float:
        network.eval()
        with torch.no_grad():
            guesses = torch.cat([network(part).argmax(1) for part in torch.split(self.test, 100)])
        return 100 * float((guesses == self.test_labels).float().mean())


# ---------------------------------------------------------------- words


class Layer(nn.Module):
    """A transformer's decoder layer, normalised before attention and feed-forward."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.inputs, self.outputs = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[N, T, C] → [N, T, C]; no position sees a later one."""
        shape = (*x.shape[:2], 3, self.heads, -1)
        q, k, v = self.inputs(self.norm1(x)).view(shape).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.outputs(attended.transpose(1, 2).flatten(2))
        out: Tensor = x + self.down(F.gelu(self.up(self.norm2(x))))
        return out


class LanguageModel(nn.Module):
    """Two decoder layers of width 128 between an embedding and an output layer of their own."""

    def __init__(self, words: int, length: int, width: int = 128) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(words, width), nn.Embedding(length, width)
        self.layers = nn.Sequential(Layer(width, 4), Layer(width, 4), nn.LayerNorm(width))
        self.next = nn.Linear(width, words, bias=False)
        for table in (self.words, self.places):
            nn.init.normal_(table.weight, std=0.02)

    def forward(self, words: Tensor) -> Tensor:
        """Word numbers [N, T] → logits of each next word [N, T, words]."""
        logits: Tensor = self.next(self.layers(self.words(words) + self.places.weight[: words.shape[1]]))
        return logits


class Words:
    """A word-level language model on WikiText-2's validation text, whose last tenth is held out; 1.4 M parameters.

    The 4,096 most frequent words of the first nine tenths are known, the others are one word. Input embedding and output
    layer share nothing, so an embedding's row has a gradient only in the steps whose batch holds its word.
    """

    title, measure = "transformer, WikiText-2, batches of 8 × 64 words", "perplexity"
    rate, decay, batch, length, known = 1e-3, 0.1, 8, 64, 4096

    def __init__(self) -> None:
        words = (DATA / "wikitext2" / "valid.txt").read_text(encoding="utf-8").replace("\n", " <eos> ").split()
        cut = len(words) * 9 // 10
        frequent = (word for word, _ in Counter(words[:cut]).most_common(self.known))
        numbers = {word: i for i, word in enumerate(w for w in frequent if w != "<unk>")}
        text = torch.tensor([numbers.get(w, self.known - 1) for w in words])
        self.train, self.test = text[:cut], text[cut:]

    def network(self) -> nn.Module:
        return LanguageModel(self.known, self.length)

    def loss(self, network: nn.Module, random: np.random.Generator) -> Tensor:
        starts = random.integers(0, len(self.train) - self.length, self.batch)
        return self.entropy(network, torch.stack([self.train[s : s + self.length + 1] for s in starts]))

    def entropy(self, network: nn.Module, rows: Tensor) -> Tensor:
        """Mean cross entropy of every next word of `rows` [N, length + 1]."""
        return F.cross_entropy(network(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())

    def held_out(self, network: nn.Module) -> float:
        network.eval()
        rows = self.test.unfold(0, self.length + 1, self.length)
        parts = torch.split(rows, 16)
        with torch.no_grad():
            found = [float(self.entropy(network, part)) * len(part) for part in parts]
        return math.exp(sum(found) / len(rows))


# ---------------------------------------------------------------- scenes


class Scenes:
    """CenterPointPillar as edgeq ships it, on a quarter of its area in coarser pillars: 25.6 m square, 0.4 m each.

    A pool of scenes, augmented once, is drawn from in batches of 2.
    """

    title, measure = "CenterPoint-pillar, synthetic scenes, 64 × 64 pillars, batches of 2", "vehicle AP"
    rate, decay, batch, pool, evaluated = 2e-3, 0.01, 2, 400, 60
    side: Final = 64

    def __init__(self) -> None:
        settings = copy.deepcopy(DETECTORS["centerpoint_pillar"].pipeline)
        settings["encoder"] |= {"point_range": [0.0, -12.8, -3.0, 25.6, 12.8, 1.0], "pillar_size": [0.4, 0.4]}
        settings["head"] |= {"origin": [0.0, -12.8], "cell": 1.6}
        self.detector = Detector("small", self.network, settings)
        made = [scene(TRAINING + i, HDL64_FRONT) for i in range(self.pool)]
        bank, random = samples(made), np.random.default_rng(0)
        self.frames = [self._prepared(augment(frame, bank, random)) for frame in made]
        self.test = list(frames(self.evaluated))

    def _prepared(self, frame: Any) -> tuple[tuple[NDArray[Any], ...], dict[str, NDArray[np.float32]]]:
        inputs = pipeline.prepare(frame.points, self.detector.pipeline, padded=False).inputs
        return inputs, targets(frame, self.detector.pipeline["head"], (self.side // 4, self.side // 4))

    def network(self) -> nn.Module:
        return channels_last(CenterPointPillar(grid=(self.side, self.side)))

    def loss(self, network: nn.Module, random: np.random.Generator) -> Tensor:
        chosen = [self.frames[i] for i in random.integers(0, len(self.frames), self.batch)]
        wanted = {k: torch.from_numpy(np.stack([answer[k] for _, answer in chosen])) for k in chosen[0][1]}
        parts = losses(network(*collate([inputs for inputs, _ in chosen])), wanted)
        return torch.stack(list(parts.values())).sum()

    def held_out(self, network: nn.Module) -> float:
        network.eval()
        found = [self.detector.detect(f.points, network, padded=False) for f in self.test]
        settings = self.detector.pipeline
        return summary(found, self.test, settings["encoder"]["point_range"], settings["head"]["classes"])["vehicle_ap"]


TRAININGS: Final[dict[str, type[Training]]] = {"resnet20": Images, "transformer": Words, "lidar": Scenes}
