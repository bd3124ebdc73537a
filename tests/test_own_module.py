"""A network as a user has it: taken out of what is around it, compared with its graph, and left as it was."""

from __future__ import annotations

import copy
import dataclasses
import re
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from networks import trained
from torch import Tensor, nn

from edgeq import Task, quantize
from edgeq.graph.capture import capture, confirm
from edgeq.graph.own import compare, run, tensors, undisturbed
from edgeq.spec import EdgeqError, EdgeqWarning

X = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(5))


class Of(nn.Module):
    """A function of modules."""

    def __init__(self, function: Callable[..., Any], **parts: nn.Module) -> None:
        super().__init__()
        self.function, self.parts = function, nn.ModuleDict(parts)

    def forward(self, *inputs: Any) -> Any:
        return self.function(self.parts, *inputs)


def right(model: Any, example: tuple[Any, ...], *, by: nn.Module | None = None) -> None:
    """The graph of `model` computes what `by`, else the module itself, does on another input."""
    captured = capture(model, example)
    other = tuple(torch.randn_like(t.float()) for t in captured.example)
    with torch.no_grad():
        wanted = (by or model)(*other)
    torch.testing.assert_close(captured.module(*other)[0], wanted, rtol=1e-4, atol=1e-5)


def state(net: nn.Module) -> dict[str, Any]:
    """All that a training goes on with."""
    return {
        "flags": [m.training for m in net.modules()],
        "needs": [p.requires_grad for p in net.parameters()],
        "values": [t.clone() for t in net.state_dict().values()],
        "grads": [None if p.grad is None else p.grad.clone() for p in net.parameters()],
        "hooks": [(list(m._forward_hooks), list(m._forward_pre_hooks)) for m in net.modules()],
        "attributes": [sorted(vars(m)) for m in net.modules()],
        "same": [id(p) for p in net.parameters()],
    }


@pytest.mark.parametrize("recipe", ["default", "dfq"])
def test_a_network_in_training_is_left_as_it_was(recipe: str) -> None:
    net = trained()
    net(torch.randn(2, 3, 8, 8)).square().mean().backward()
    net[2].register_forward_hook(lambda *_: None)
    before = state(net)
    drawn = torch.random.get_rng_state()
    quantize(Task("t", lambda: net, lambda: (X,), lambda: [(X,)] * 2), recipe=recipe)
    assert torch.equal(torch.random.get_rng_state(), drawn)
    after = state(net)
    for name in ("values", "grads"):
        for a, b in zip(before.pop(name), after.pop(name), strict=True):
            assert a is b is None or torch.equal(a, b)
    assert before == after
    net(torch.randn(2, 3, 8, 8)).square().mean().backward()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    optimizer.step()


def test_a_forward_that_counts_its_calls_is_left_as_it_was() -> None:
    def function(parts: nn.ModuleDict, x: Tensor) -> Tensor:
        parts.calls = getattr(parts, "calls", 0) + 1  # type: ignore[assignment] # an attribute of its own
        return parts["a"](x)

    net = Of(function, a=nn.Conv2d(3, 2, 1))
    capture(net, (X,))
    assert not hasattr(net.parts, "calls")


def test_a_trained_network_goes_on_and_its_quantized_model_stays() -> None:
    net = trained()
    model = quantize(Task("t", lambda: net, lambda: (X,), lambda: [(X,)] * 2))
    (before,) = model.float((X,))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(1)
    assert torch.equal(model.float((X,))[0], before)


def test_a_graph_that_computes_something_else_is_told_with_its_layer() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.Tanh(), nn.Conv2d(4, 2, 1)).eval()
    graph = capture(net, (X,)).module
    with undisturbed(net):
        wanted = run(net, (X,), "x")
        compare(net, graph, (X,), (X,), wanted, "x")
        for node in graph.graph.nodes:
            if node.target is torch.ops.aten.tanh.default:
                node.target = torch.ops.aten.sigmoid.default
        graph.recompile()
        with pytest.raises(EdgeqError, match=r"output 0 of the captured graph.*they part first at '3'"):
            compare(net, graph, (X,), (X,), wanted, "x")


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (lambda p, x: p["a"](F.dropout(x)), "dropout.*training=self.training"),
        (lambda p, x: p["a"](x + torch.randn_like(x)), "randn_like"),
        (lambda p, x: p["a"](x + torch.rand(x.shape)), "rand"),
        (lambda p, x: p["a"](x * torch.bernoulli(torch.full_like(x, 0.5))), "bernoulli"),
    ],
)
def test_random_numbers_are_refused_with_their_line(function: Callable[..., Any], said: str) -> None:
    with pytest.raises(EdgeqError, match=f"random numbers in eval mode by {said}"):
        capture(Of(function, a=nn.Conv2d(3, 2, 1)), (X,))


def test_the_line_that_draws_is_named() -> None:
    class Noisy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.randn_like(x)  # the noise

    line = next(i for i, text in enumerate(Path(__file__).read_text().splitlines(), 1) if text.endswith("# the noise"))
    with pytest.raises(EdgeqError, match=re.escape(f"(at {__file__}:{line})")):
        capture(Noisy(), (X,))


def test_attention_and_dropout_in_eval_mode_are_not_random() -> None:
    right(nn.Sequential(nn.Linear(8, 8), nn.Dropout(), nn.RReLU()).eval(), (torch.randn(1, 8),))
    capture(Of(lambda _, x: F.scaled_dot_product_attention(x, x, x)), (torch.randn(1, 2, 4, 8),))


def test_a_module_that_changes_between_two_calls_is_told() -> None:
    def function(parts: nn.ModuleDict, x: Tensor) -> Tensor:
        parts.calls = getattr(parts, "calls", 0) + 1  # type: ignore[assignment] # an attribute of its own
        return parts["a"](x) * parts.calls

    net = Of(function, a=nn.Conv2d(3, 2, 1))
    with pytest.raises(EdgeqError, match="other outputs each time for the same inputs"):
        quantize(Task("t", lambda: net, lambda: (X,), lambda: [(X,)]))


def test_a_graph_that_fits_the_example_alone_is_found_on_the_first_batch() -> None:
    class Guess(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * 2 if torch.compiler.is_exporting() else x * x.abs().clamp(max=1).ceil() * 3

    captured = capture(Guess(), (torch.zeros(1, 3, 8, 8),))
    with pytest.raises(EdgeqError, match="not what the module itself computes on calibration batch 0"):
        confirm(Guess(), captured, (X,))


def test_programs_of_torch_export_alone_and_inside() -> None:
    net = trained().eval()
    program = torch.export.export(net, (X,))
    right(program, (X,), by=net)
    right(program.module(), (X,), by=net)
    outer = nn.Sequential(program.module(), nn.Conv2d(4, 2, 1))
    right(outer, (X,), by=nn.Sequential(net, outer[1]).eval())


class Named(nn.Module):
    """Takes its inputs by name, one of them before the others in the dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(8, 4)

    def forward(self, tokens: Tensor, *, weight: Tensor) -> Tensor:
        return self.a(tokens) * weight


def test_inputs_by_name() -> None:
    torch.manual_seed(0)
    net, tokens, weight = Named(), torch.randn(1, 5, 8), torch.rand(1, 5, 1)
    with torch.no_grad():
        wanted = net(tokens, weight=weight)
    for example, batch in (
        ({"tokens": tokens, "weight": weight}, {"weight": weight, "tokens": tokens}),
        ({"weight": weight, "tokens": tokens}, {"weight": weight, "tokens": tokens}),
        (((tokens,), {"weight": weight}), ((tokens,), {"weight": weight})),
    ):
        made = quantize(Task("t", lambda: net, lambda e=example: e, lambda b=batch: [b] * 2))  # type: ignore[misc]
        given = {"tokens": tokens, "weight": weight}
        assert {i.name for i in made.inputs} == set(given)
        got = made.float([given[i.name] for i in made.inputs])
        torch.testing.assert_close(got[0], wanted)


def test_a_scalar_before_the_others() -> None:
    torch.manual_seed(0)
    net = Of(
        lambda p, t, x: p["a"](x) * p["t"](t.reshape(1, 1))[..., None, None], a=nn.Conv2d(3, 4, 1), t=nn.Linear(1, 4)
    )
    batches = [(torch.rand(()), torch.randn(1, 3, 8, 8)) for _ in range(6)]
    for recipe in ("default", "dfq"):
        model = quantize(Task("t", lambda: net, lambda: batches[0], lambda: batches), recipe=recipe)
        with torch.no_grad():
            wanted = net(*batches[1])
        (got,) = model.qdq(batches[1])
        assert (got - wanted).abs().max() < 0.1 * wanted.abs().max()


def test_words_of_python_as_names() -> None:
    torch.manual_seed(0)
    heads = {"class": nn.Conv2d(3, 2, 1), "lambda": nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))}
    net = Of(lambda p, x: {name: head(x) for name, head in p.items()}, **heads).eval()
    captured = capture(net, (X,))
    assert [o.name for o in captured.outputs] == ["class", "lambda"]
    assert "parts.class/conv2d" in captured.keys.values()
    with torch.no_grad():
        for wanted, got in zip(net(X).values(), captured.module(X), strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)


Pair = namedtuple("Pair", ["scores", "boxes"])


@dataclasses.dataclass
class Found:
    """Two outputs by name."""

    scores: Tensor
    boxes: Tensor


@pytest.mark.parametrize("kind", [Pair, Found, lambda a, b: {"scores": a, "boxes": b}])
def test_outputs_are_named_as_the_user_names_them(kind: Callable[[Tensor, Tensor], Any]) -> None:
    captured = capture(Of(lambda _, x: kind(x * 2, x + 1)), (X,))
    assert [o.name for o in captured.outputs] == ["scores", "boxes"]
    assert torch.equal(captured.module(X)[1], X + 1)


def test_prepared_and_quantized_networks_name_the_cause() -> None:
    from torch.ao.quantization import get_default_qat_qconfig_mapping
    from torch.ao.quantization.quantize_fx import prepare_qat_fx

    prepared = prepare_qat_fx(trained().train(), get_default_qat_qconfig_mapping("qnnpack"), (X,))
    with pytest.raises(EdgeqError, match="prepared for quantization-aware training"):
        capture(prepared, (X,))
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    graph = torch.export.export(trained().eval(), (X,)).module()
    observed = prepare_pt2e(graph, XNNPACKQuantizer().set_global(get_symmetric_quantization_config()))
    observed(X)
    with pytest.raises(EdgeqError, match="prepared for quantization, whose scales"):
        capture(observed, (X,))
    with pytest.raises(EdgeqError, match=r"is quantized already \(quantized_decomposed"):
        capture(convert_pt2e(observed), (X,))
    with pytest.raises(EdgeqError, match=r"TorchScript.*return the module it was made from"):
        capture(torch.jit.trace(trained().eval(), X), (X,))


def distributed(net: nn.Module) -> nn.Module:
    """`net` as a training of one process has it."""
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    return nn.parallel.DistributedDataParallel(net)


WRAPPED: dict[str, Callable[[nn.Module], nn.Module]] = {
    "DistributedDataParallel": distributed,
    "DataParallel": nn.DataParallel,
    "compiled": torch.compile,
    "compiled inside": lambda net: nn.Sequential(torch.compile(net)),
    "double": lambda net: copy.deepcopy(net).double(),
}


@pytest.mark.parametrize("wrapper", WRAPPED)
def test_wrappers_are_taken_off(wrapper: str) -> None:
    net = trained().eval()
    wrapped = WRAPPED[wrapper](net)
    before = [(n, p.dtype) for n, p in wrapped.named_parameters()]
    right(wrapped, (X,), by=net)
    assert before == [(n, p.dtype) for n, p in wrapped.named_parameters()]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_becomes_float32_on_a_copy(dtype: torch.dtype) -> None:
    net = trained().eval().to(dtype)
    right(net, (X.to(dtype),), by=copy.deepcopy(net).float())
    assert next(net.parameters()).dtype == dtype
    quantize(Task("t", lambda: net, lambda: (X.to(dtype),), lambda: [(X.to(dtype),)] * 2))


@pytest.mark.parametrize(
    "norm",
    [
        nn.utils.weight_norm,
        nn.utils.spectral_norm,
        nn.utils.parametrizations.weight_norm,
        nn.utils.parametrizations.spectral_norm,
    ],
)
def test_parametrizations_are_merged(norm: Callable[[nn.Module], nn.Module]) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(norm(nn.Conv2d(3, 4, 3)), nn.ReLU(), nn.Conv2d(4, 2, 1))
    net(X)  # in training: spectral_norm's vectors move
    net.eval()
    right(net, (X,))
    model = quantize(Task("t", lambda: net, lambda: (X,), lambda: [(X,)] * 2))
    assert "0/conv2d" in model.qparams and not model.islands


def test_an_error_of_the_users_forward_comes_with_its_line() -> None:
    def function(parts: nn.ModuleDict, x: Tensor) -> Tensor:
        return parts["a"](x)  # four channels are wanted

    words = "four channels are wanted"
    line = next(i for i, text in enumerate(Path(__file__).read_text().splitlines(), 1) if text.endswith(words))
    with pytest.raises(EdgeqError, match="its own forward fails on example_inputs") as caught:
        capture(Of(function, a=nn.Conv2d(4, 2, 1)), (X,))
    assert f"{__file__}:{line}" in str(caught.value) and "independent of the data" not in str(caught.value)


def leave(*_: Any) -> Any:
    """End the process, as sys.exit does."""
    raise SystemExit(0)


@pytest.mark.parametrize("function", ["model", "example_inputs", "calibration", "forward"])
def test_a_task_that_exits_is_one_sentence(function: str, tmp_path: Path) -> None:
    parts: dict[str, Any] = {"model": trained, "example_inputs": lambda: (X,), "calibration": lambda: [(X,)]}
    parts[function] = leave
    model = (lambda: Of(leave)) if function == "forward" else parts["model"]
    task = Task("t", model, parts["example_inputs"], parts["calibration"])
    with pytest.raises(EdgeqError, match=f"{function}.* fail.*SystemExit"):
        quantize(task, output=tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_tensors_of_what_forward_returns() -> None:
    assert len(tensors({"a": X, "b": (None, X)})) == 2


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (lambda p, x: p["a"](x) * 0 + 1, "output 'output_0' is 1 everywhere on calibration batch 0"),
        (
            lambda _, x: torch.log(-1 - x.abs()),
            r"output 'output_0' holds NaN, of the module itself, first in log \(at .*test_own_module\.py:\d+\)",
        ),
    ],
)
def test_outputs_that_say_nothing_are_warned_of(function: Callable[..., Any], said: str) -> None:
    net = Of(function, a=nn.Conv2d(3, 2, 1))
    captured = capture(net, (X,))
    with pytest.warns(EdgeqWarning, match=said):
        confirm(net, captured, (X,))


def test_weights_that_torchao_quantized_name_it() -> None:
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    net = nn.Sequential(nn.Linear(64, 64))
    quantize_(net, Int8WeightOnlyConfig())
    with pytest.raises(EdgeqError, match=r"weight '0\.weight' is a .* of torchao, quantized already"):
        capture(net, (torch.randn(1, 64),))
