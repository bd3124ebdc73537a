"""The QDQ program states exactly what was resolved, and reads back as the integer operators it was made of."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from networks import ALL, Attention, InvertedResidual, Neck, Sparse, TwoInputs, inputs, seeded
from torch import nn

from edgeq import Task, quantize
from edgeq.graph.annotate import annotate, default_plan
from edgeq.graph.capture import capture, flatten, unlift
from edgeq.graph.integer import QUANTIZE, read
from edgeq.graph.simulate import simulate
from edgeq.spec import EdgeqError, QuantPlan


def task(network: type[nn.Module], batches: int = 4) -> Task:
    return Task(
        network.__name__,
        lambda: seeded(network),
        lambda: inputs(network),
        lambda: (inputs(network, seed) for seed in range(batches)),
    )


@pytest.mark.parametrize("network", ALL)
@pytest.mark.parametrize("precision", ["w8a8", "w4a6"])
def test_the_shortcut_changes_no_bit(network: type[nn.Module], precision: str) -> None:
    model = quantize(task(network), target="simulated", precision=precision)
    batch = flatten(inputs(network, seed=3))
    wanted = flatten(unlift(model.program)(*batch))
    assert any("fake_quantize" in str(n.target) for n in model._qdq.graph.nodes)
    for expected, got in zip(wanted, model.qdq(batch), strict=True):
        assert torch.equal(expected, got)


def sqnr(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(10 * torch.log10(a.square().sum() / (a - b).square().sum()))


@pytest.mark.parametrize("network", ALL)
@pytest.mark.parametrize("target", ["portable", "simulated"])
def test_eight_bits_stay_close_to_float(network: type[nn.Module], target: str) -> None:
    model = quantize(task(network), target=target)
    batch = flatten(inputs(network, seed=2))
    for wanted, got, exact in zip(model.float(batch), model.qdq(batch), model.simulate(batch, "ideal"), strict=True):
        assert sqnr(wanted, got) > 20
        assert sqnr(wanted, exact) > 20


def test_every_convolution_of_the_mobile_block_is_an_integer_operator() -> None:
    model = quantize(task(InvertedResidual))
    kinds = [op.kind for op in model.integers.ops.values()]
    assert kinds.count("conv2d") == 3 and kinds.count("depthwise_conv2d") == 1
    assert {"add", "mean", "linear"} <= set(kinds)
    assert model.integers.floats == ()


def test_transformer_leaves_its_float_operators_float_and_says_why() -> None:
    model = quantize(task(Attention))
    assert [op.kind for op in model.integers.ops.values()].count("linear") == 4
    assert any(key.endswith("softmax") for key in model.islands)
    assert any("no integer kernel" in reason for reason in model.islands.values())


def test_concatenation_and_its_inputs_share_scale_and_zero_point() -> None:
    model = quantize(task(Neck))
    cat = next(op for op in model.integers.ops.values() if op.kind == "cat")
    assert all(q == cat.output_qparams for q in cat.input_qparams)


def test_bias_lies_on_its_integer_grid_and_weights_inside_theirs() -> None:
    model = quantize(task(InvertedResidual))
    for op in model.integers.ops.values():
        if op.weight is None:
            continue
        assert op.weight.dtype == torch.int8 and int(op.weight.min()) >= -127
        assert op.bias is not None and int(op.bias.abs().max()) < 2**22
        stored = next(n for n in op.node.args[2:3])
        real = getattr(model.integers.module, str(stored.target)).double().numpy()  # type: ignore[union-attr] # a node
        assert op.weight_scale is not None
        unit = op.weight_scale.double().numpy() * op.input_qparams[0].scale[0]
        assert np.abs(real / unit - np.round(real / unit)).max() < 1e-2


def test_sparse_convolution_has_no_float_operator_and_its_tables_are_no_islands() -> None:
    model = quantize(task(Sparse))
    assert [op.kind for op in model.integers.ops.values()] == ["pad", "gather", "reshape", "linear"] * 2
    assert model.islands == {} and model.integers.floats == ()
    assert {k: v for k, v in model.plan.layers.items() if v == "fp32"} == {
        "first/reshape": "fp32",
        "second/reshape": "fp32",
    }


def test_golden_tables_pick_rows_that_exist() -> None:
    model = quantize(task(Sparse))
    for golden, example in zip(model.golden[1:], flatten(inputs(Sparse))[1:], strict=True):
        assert not torch.equal(golden, example)
        assert torch.equal(golden.flatten().sort().values, example.flatten().sort().values)


class Picked(nn.Module):
    """Rows picked by what is no table: along another axis, by computed places, by float values' order."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6)

    def forward(self, x: torch.Tensor, table: torch.Tensor) -> tuple[torch.Tensor, ...]:
        y = self.linear(x)
        return y.index_select(1, table), y.index_select(0, table + 1), y.index_select(0, y[:, 0].argsort())


def test_rows_picked_otherwise_stay_float_and_say_so() -> None:
    torch.manual_seed(0)
    made = Picked().eval()
    batch = (torch.randn(5, 6), torch.tensor([3, 0, 2]))
    model = quantize(Task("picked", lambda: made, lambda: batch, lambda: [batch]))
    assert {k for k in model.islands if "index_select" in k} == {"index_select", "index_select#2", "index_select#3"}
    assert all("no integer form" in why for k, why in model.islands.items() if "index_select" in k)
    assert not any("add" in key for key in model.islands)  # table + 1 computes in integers as it is
    assert [op.kind for op in model.integers.ops.values()] == ["linear", "slice", "reshape"]  # and what it sorts by
    assert sqnr(model.float(batch)[0], model.simulate(batch, "ideal")[0]) > 30


class Dead(nn.Module):
    """A channel whose weights are zero and whose bias is not."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        with torch.no_grad():
            self.conv.weight[1] = 0
            self.conv.bias[1] = 3.0  # type: ignore[index] # it has a bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x)


def test_a_dead_channel_keeps_its_bias() -> None:
    torch.manual_seed(0)
    made = Dead().eval()
    batch = (torch.randn(1, 3, 8, 8),)
    model = quantize(Task("dead", lambda: made, lambda: batch, lambda: [batch]))
    got = model.simulate(batch, "ideal")[0][:, 1]
    step = model.outputs[0].qparams
    assert step is not None
    assert float((got - 3.0).abs().max()) <= step.scale[0]


@pytest.mark.parametrize("name", ["w4a8", "w8a4", "w6a6"])
def test_other_widths_run_simulated_and_stay_on_their_grid(name: str) -> None:
    model = quantize(task(InvertedResidual), target="simulated", precision=name)
    bits_w, bits_a = int(name[1]), int(name[3])
    for op in model.integers.ops.values():
        if op.weight is not None:
            assert int(op.weight.abs().max()) <= 2 ** (bits_w - 1) - 1
        assert (op.output_qparams.qmin, op.output_qparams.qmax) == (-(2 ** (bits_a - 1)), 2 ** (bits_a - 1) - 1)
    eight = quantize(task(InvertedResidual), target="simulated")
    batch = flatten(inputs(InvertedResidual, seed=2))
    wanted = eight.float(batch)[0]
    assert sqnr(wanted, model.simulate(batch, "ideal")[0]) < sqnr(wanted, eight.simulate(batch, "ideal")[0])


def test_weight_only_keeps_activations_float() -> None:
    model = quantize(task(Attention), precision="w8")
    assert not any(n.target is QUANTIZE for n in model.program.graph.nodes)
    stored = [t for t in model.program.state_dict.values() if t.dtype == torch.int8]
    stored += [t for t in model.program.constants.values() if isinstance(t, torch.Tensor) and t.dtype == torch.int8]
    assert len(stored) == 4
    batch = flatten(inputs(Attention, seed=2))
    assert sqnr(model.float(batch)[0], model.qdq(batch)[0]) > 30


@pytest.mark.parametrize("network", [InvertedResidual, Attention])
def test_half_precision_where_the_target_has_it(network: type[nn.Module]) -> None:
    model = quantize(task(network), precision="fp16", target="coreml")
    batch = flatten(inputs(network, seed=2))
    assert 30 < sqnr(model.float(batch)[0], model.qdq(batch)[0]) < 120


def test_an_example_that_lies_channels_last_leaves_inputs_in_torchs_order() -> None:
    made = task(InvertedResidual)
    lying = (inputs(InvertedResidual)[0].to(memory_format=torch.channels_last),)
    program = quantize(dataclasses.replace(made, example_inputs=lambda: lying)).program
    assert program.example_inputs is not None and program.example_inputs[0][0].is_contiguous()


def test_an_edited_plan_is_followed() -> None:
    first = quantize(task(InvertedResidual))
    layers = {**first.plan.layers, "expand.0/conv2d": "fp32"}
    model = quantize(task(InvertedResidual), plan=QuantPlan("portable", "default", layers))
    assert model.islands["expand.0/conv2d"] == "the plan keeps it in fp32"
    assert sum(op.kind == "conv2d" for op in model.integers.ops.values()) == 2


@pytest.mark.parametrize(
    ("layers", "target", "message"),
    [
        ({"expnd.0/conv2d": "w8a8"}, "portable", "did you mean 'expand.0/conv2d'"),
        ({"expand.0/conv2d": "w4a8"}, "portable", "target portable computes conv2d in w8a8"),
        ({"expand.0/conv2d": "int8"}, "portable", "unknown precision 'int8'"),
        ({"add": "w8"}, "portable", "it has no weights"),
        ({"expand.0/conv2d": "fp16"}, "portable", "does not compute"),
        ({"add": "fp16"}, "coreml", "use fp32"),
    ],
)
def test_impossible_plans_are_one_sentence(layers: dict[str, str], target: str, message: str) -> None:
    with pytest.raises(EdgeqError, match=message.replace("(", r"\(")):
        quantize(task(InvertedResidual), plan=QuantPlan(target, "minmax", layers))


def test_two_inputs_and_three_outputs() -> None:
    model = quantize(task(TwoInputs))
    assert [i.name for i in model.inputs] == ["x", "extra_depth"] and len(model.outputs) == 3


def test_default_plan_names_every_operator() -> None:
    from edgeq import backends

    captured = capture(seeded(Neck), inputs(Neck))
    target = backends.target("portable")
    plan = default_plan(captured, target, "minmax")
    assert set(plan.layers) == set(captured.keys.values())
    assert {g.key for g in annotate(captured, target, plan).groups} <= set(plan.layers)


class Unequal(nn.Module):
    """Adds two tensors whose ranges are five orders of magnitude apart."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)
        with torch.no_grad():
            self.b.weight *= 1e-5
            self.b.bias *= 1e-5  # type: ignore[operator] # it has a bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.a(x) + self.b(x.flip(-1))  # of one input, the two would be merged into one convolution


def test_scales_too_far_apart_for_an_add_kernel_are_widened() -> None:
    torch.manual_seed(0)
    made = Unequal().eval()
    batch = (torch.randn(1, 3, 8, 8),)
    model = quantize(Task("unequal", lambda: made, lambda: batch, lambda: [batch]))
    add = next(op for op in model.integers.ops.values() if op.kind == "add")
    for q in add.input_qparams:
        assert 2**-10 < q.scale[0] / add.output_qparams.scale[0] < 2**8
    assert sqnr(model.float(batch)[0], model.simulate(batch, "ideal")[0]) > 30


class Subsampled(nn.Module):
    """Every second pixel behind a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x)[:, :, ::2, ::2]


def test_subsampling_keeps_the_values_of_the_pixels_it_keeps() -> None:
    torch.manual_seed(0)
    made = Subsampled().eval()
    batch = (torch.randn(1, 3, 8, 8),)
    model = quantize(Task("sub", lambda: made, lambda: batch, lambda: [batch]))
    values: list[tuple[torch.Tensor, float, int]] = []
    ops = model.integers.ops

    def watch(node: torch.fx.Node, q: torch.Tensor) -> None:
        if node.name in ops:
            out = ops[node.name].output_qparams
            values.append((q, out.scale[0], out.zero_point[0]))

    simulate(model.integers, batch, "ideal", watch=watch)
    (before, scale, zero), (after, other, moved) = values
    wanted = (before[:, :, ::2, ::2].double() - zero) * scale
    assert float((wanted - (after.double() - moved) * other).abs().max()) <= other


@pytest.mark.parametrize("target", ["tvm", "litert", "executorch", "coreml", "portable", "simulated"])
def test_a_transposed_convolution_of_several_groups_is_in_integers(target: str) -> None:
    torch.manual_seed(0)
    module, example = nn.ConvTranspose2d(8, 12, 3, 2, 1, groups=2).eval(), (torch.randn(1, 8, 5, 5),)
    model = quantize(Task("up", lambda: module, lambda: example, lambda: [example]), target=target)
    program = read(model.program)
    assert not program.floats and "conv2d" in {op.kind for op in program.ops.values()}
    wanted, got = module(*example).detach(), model.qdq(example)[0]
    assert float((wanted - got).square().sum() / wanted.square().sum()) < 1e-3
