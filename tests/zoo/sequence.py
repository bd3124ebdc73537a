"""Sound and other sequences: DS-CNN, TCN, CRNN with LSTM, WaveNet, a GRU that denoises."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn
from torch.nn.utils import weight_norm

from zoo.material import Recipe, Sample, picture


class DSCNN(nn.Module):
    """Zhang et al. 2017: keyword spotting on 49 × 10 coefficients, small."""

    def __init__(self, c: int = 64, n_classes: int = 12) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, c, (10, 4), (2, 2), (5, 1), bias=False), nn.BatchNorm2d(c)
        blocks: list[nn.Module] = []
        for _ in range(4):
            blocks += [
                nn.Conv2d(c, c, 3, padding=1, groups=c, bias=False), nn.BatchNorm2d(c), nn.ReLU(),
                nn.Conv2d(c, c, 1, bias=False), nn.BatchNorm2d(c), nn.ReLU(),
            ]  # fmt: skip
        self.blocks, self.pool, self.fc = nn.Sequential(*blocks), nn.AvgPool2d((25, 5)), nn.Linear(c, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x.unsqueeze(1))))
        x = F.dropout(self.blocks(x), 0.2, self.training)
        x = self.pool(x).squeeze(3).squeeze(2)
        return F.log_softmax(self.fc(x), dim=1)


class Chomp1d(nn.Module):
    """Cuts what padding put behind the last step."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, : -self.size].contiguous()


class TemporalBlock(nn.Module):
    """Two causal dilated convolutions with weight norm, and a shortcut."""

    def __init__(self, inp: int, oup: int, k: int, d: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for a in (inp, oup):
            conv = weight_norm(nn.Conv1d(a, oup, k, padding=(k - 1) * d, dilation=d))
            layers += [conv, Chomp1d((k - 1) * d), nn.ReLU(), nn.Dropout(0.2)]
        self.net, self.downsample = nn.Sequential(*layers), nn.Conv1d(inp, oup, 1) if inp != oup else None

    def forward(self, x: Tensor) -> Tensor:
        res = x if self.downsample is None else self.downsample(x)
        return torch.relu(self.net(x) + res)


class TCN(nn.Module):
    """Bai et al. 2018: gestures from nine channels of motion."""

    def __init__(self) -> None:
        super().__init__()
        widths = (9, 32, 32, 64, 64)
        self.tcn = nn.Sequential(*(TemporalBlock(a, b, 5, 2**i) for i, (a, b) in enumerate(pairwise(widths))))
        self.linear = nn.Linear(64, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.tcn(x)[:, :, -1])


class BidirectionalLSTM(nn.Module):
    """An LSTM in both directions and a linear layer at each step."""

    def __init__(self, inp: int, hidden: int, oup: int) -> None:
        super().__init__()
        self.rnn, self.embedding = nn.LSTM(inp, hidden, bidirectional=True), nn.Linear(hidden * 2, oup)

    def forward(self, x: Tensor) -> Tensor:
        recurrent, _ = self.rnn(x)
        t, b, h = recurrent.size()
        output = self.embedding(recurrent.view(t * b, h))
        return output.view(t, b, -1)


class CRNN(nn.Module):
    """Shi et al. 2015: a line of text as a sequence of columns, half of the channels."""

    def __init__(self, n_classes: int = 37, hidden: int = 48) -> None:
        super().__init__()
        self.cnn = nn.Sequential(
            nn.Conv2d(1, 32, 3, 1, 1), nn.ReLU(True), nn.MaxPool2d(2, 2),
            nn.Conv2d(32, 64, 3, 1, 1), nn.ReLU(True), nn.MaxPool2d(2, 2),
            nn.Conv2d(64, 128, 3, 1, 1), nn.BatchNorm2d(128), nn.ReLU(True),
            nn.Conv2d(128, 128, 3, 1, 1), nn.ReLU(True), nn.MaxPool2d((2, 2), (2, 1), (0, 1)),
            nn.Conv2d(128, 192, 3, 1, 1), nn.BatchNorm2d(192), nn.ReLU(True), nn.MaxPool2d((2, 2), (2, 1), (0, 1)),
            nn.Conv2d(192, 192, 2, 1, 0), nn.ReLU(True),
        )  # fmt: skip
        self.rnn = nn.Sequential(BidirectionalLSTM(192, hidden, hidden), BidirectionalLSTM(hidden, hidden, n_classes))

    def forward(self, x: Tensor) -> Tensor:
        conv = self.cnn(x)
        _, _, h, _ = conv.size()
        assert h == 1, "the height of conv must be 1"
        return self.rnn(conv.squeeze(2).permute(2, 0, 1))


class WaveNet(nn.Module):
    """van den Oord et al. 2016: gated causal dilated convolutions, skips summed."""

    def __init__(self, c: int = 32, skip: int = 64, layers: int = 7) -> None:
        super().__init__()
        self.causal = nn.Conv1d(1, c, 2)
        self.dilated = nn.ModuleList(nn.Conv1d(c, 2 * c, 2, dilation=2**i) for i in range(layers))
        self.res = nn.ModuleList(nn.Conv1d(c, c, 1) for _ in range(layers))
        self.skip = nn.ModuleList(nn.Conv1d(c, skip, 1) for _ in range(layers))
        self.end1, self.end2 = nn.Conv1d(skip, skip, 1), nn.Conv1d(skip, 64, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.causal(F.pad(x, (1, 0)))
        skips = torch.tensor(0.0)
        for i, (dilated, res, skip) in enumerate(zip(self.dilated, self.res, self.skip, strict=True)):
            filtered, gate = torch.split(dilated(F.pad(x, (2**i, 0))), x.size(1), dim=1)
            z = torch.tanh(filtered) * torch.sigmoid(gate)
            skips = skips + skip(z)
            x = x + res(z)
        return self.end2(F.relu(self.end1(F.relu(skips))))


class GRUDenoiser(nn.Module):
    """A mask for a spectrogram: convolutions along frequency, a GRU along time, transposed convolutions back."""

    def __init__(self) -> None:
        super().__init__()
        self.enc1, self.enc2 = nn.Conv2d(1, 16, (1, 5), (1, 2), (0, 2)), nn.Conv2d(16, 16, (1, 3), (1, 2), (0, 1))
        self.bn1, self.bn2, self.bn3 = nn.BatchNorm2d(16), nn.BatchNorm2d(16), nn.BatchNorm2d(16)
        self.prelu, self.gru, self.fc = nn.PReLU(16), nn.GRU(16 * 16, 64, batch_first=True), nn.Linear(64, 16 * 16)
        self.dec2, self.dec1 = (
            nn.ConvTranspose2d(32, 16, (1, 4), (1, 2), (0, 1)),
            nn.ConvTranspose2d(32, 1, (1, 4), (1, 2), (0, 1)),
        )

    def forward(self, x: Tensor) -> Tensor:
        e1 = F.elu(self.bn1(self.enc1(x)))
        e2 = self.prelu(self.bn2(self.enc2(e1)))
        b, c, t, f = e2.shape
        y, _ = self.gru(e2.permute(0, 2, 1, 3).reshape(b, t, c * f))
        y = F.relu(self.fc(y)).view(b, t, c, f).permute(0, 2, 1, 3)
        y = F.elu(self.bn3(self.dec2(torch.cat([y, e2], 1))))
        return torch.sigmoid(self.dec1(torch.cat([y, e1], 1))) * x


def spectrogram(generator: Generator, steps: int, bands: int) -> Tensor:
    """[steps, bands] of energies' logarithms: a floor of silence, harmonics that begin and end."""
    energy = torch.full((steps, bands), 1e-4)
    for _ in range(3):
        begin, length, pitch, power = torch.rand(4, generator=generator).tolist()
        times = slice(int(begin * steps * 0.7), int((begin * 0.7 + 0.1 + 0.3 * length) * steps))
        comb = torch.cos(torch.arange(bands) * (0.3 + pitch)).relu() * torch.exp(-torch.arange(bands) / bands * 3)
        energy[times] += comb * 10 ** (2 * power - 1)
    return (energy * torch.exp(0.5 * torch.randn(steps, bands, generator=generator))).log()


def coefficients(generator: Generator) -> Sample:
    """49 frames of 10 cepstral coefficients, the first far larger than the others."""
    bands = spectrogram(generator, 49, 20)
    table = torch.cos(math.pi / 20 * (torch.arange(20)[:, None] + 0.5) * torch.arange(10))
    return ((bands @ table / 10)[None],)


def waves(channels: int, steps: int) -> Callable[[Generator], Sample]:
    """Draws sums of decaying sines, of unlike strength a channel, clipped to ±1 as sound is."""

    def sample(generator: Generator) -> Sample:
        t, x = torch.arange(steps) / steps, torch.zeros(channels, steps)
        for _ in range(5):
            tone, decay = torch.rand(2, generator=generator).tolist()
            strength = torch.randn(channels, 1, generator=generator) * 0.4
            x += strength * torch.sin(2 * math.pi * (2 + 40 * tone**2) * t) * torch.exp(-5 * decay * t)
        return ((x + 0.01 * torch.randn(x.shape, generator=generator)).clamp(-1, 1)[None],)

    return sample


NETWORKS: dict[str, Recipe] = {
    "ds_cnn": (DSCNN, coefficients),
    "tcn": (TCN, waves(9, 128)),
    "crnn": (CRNN, lambda generator: (picture(generator, 1, 32, 100)[None] * 2 - 1,)),
    "wavenet": (WaveNet, waves(1, 512)),
    "gru_denoiser": (GRUDenoiser, lambda generator: (spectrogram(generator, 20, 64).exp().sqrt()[None, None],)),
}
