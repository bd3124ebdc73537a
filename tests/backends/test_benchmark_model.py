"""benchmark_model's output, as real machines printed it, read back; and what is no such output."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import edgeq
from edgeq.backends.litert import benchmark_model
from edgeq.backends.litert.benchmark_model import Node, command, parse
from edgeq.backends.litert.profile import rows_of
from edgeq.backends.timing import settle
from edgeq.spec import EdgeqError

CAPTURED = Path(__file__).parent / "captured"


def captured(name: str) -> str:
    return (CAPTURED / f"{name}.txt").read_text()


def test_litert_on_a_phone() -> None:
    found = parse(captured("litert_2025_phone"))
    assert (found.runs, found.median_ms) == (2112, 0.462), "the timed runs, not the warm-up's"
    assert found.mean_ms == pytest.approx(0.464545)
    assert [(n.kind, n.ms) for n in found.nodes] == [
        ("LiteRT::Run[buffer registration]", 0.014),
        ("Static Reshape (NC)", 0.003),
        ("Fully Connected (NC, PF32) GEMM", 0.382),
        ("LiteRT::Run[Buffer sync]", 0.012),
    ], "in the order of the run; AllocateTensors is called before"


def test_tensorflow_lite_on_a_phone_and_on_a_board() -> None:
    phone = parse(captured("tflite_2020_phone"))
    assert (phone.runs, phone.mean_ms, phone.median_ms, phone.nodes) == (50, 33.2094, None, ())
    board = parse(captured("tflite_2020_board"))
    assert (board.runs, board.mean_ms) == (2254, 0.058311)
    assert board.nodes == (
        Node("FULLY_CONNECTED", 0.016, "[dense_1/BiasAdd]:ld"),
        Node("TANH", 0.004, "[dense_1/Tanh]:ld"),
    ), "the runs' table, not the start's"


@pytest.mark.parametrize("name", ["litert_2025_phone", "tflite_2020_phone", "tflite_2020_board"])
def test_every_truncation_is_whole_or_a_sentence(name: str) -> None:
    """Cut anywhere, the output gives the same total or is refused; never another number."""
    text = captured(name)
    whole = parse(text)
    for end in range(0, len(text), 7):
        try:
            found = parse(text[:end])
        except EdgeqError as error:
            assert benchmark_model.PROGRAM in str(error)
        else:
            assert found.runs == whole.runs and set(found.nodes) <= set(whole.nodes)


def test_other_output_is_refused() -> None:
    with pytest.raises(EdgeqError, match="Failed to load model"):
        parse("STARTING!\nGraph: [x.tflite]\nERROR: Failed to load model x.tflite\n")
    with pytest.raises(EdgeqError, match=r"not known here: \[node type\], .*\[ms\]"):
        parse(captured("litert_2025_phone").replace("[avg ms]", "[ms]"))


def test_the_command_names_exact_runs() -> None:
    words = command("./benchmark_model", "model.tflite", threads=2, warmup=5, runs=6, profiling=False)
    assert {"--num_runs=6", "--min_secs=0", "--num_threads=2", "--graph=model.tflite"} <= set(words)
    assert not any("profil" in w for w in words)


def test_operators_are_found_by_number_or_by_name() -> None:
    names = ["first", "second"]
    assert Node("CONV_2D", 1.0, "[whatever]:1").operator(names) == 1
    assert Node("CONV_2D", 1.0, "[second, third]").operator(names) == 1
    assert Node("CONV_2D", 1.0, "[elsewhere]").operator(names) is None
    assert Node("AllocateTensors", 1.0, "AllocateTensors/0").operator(names) is None


def test_rows_of_a_phone_name_the_layers_of_the_network(tmp_path: Path) -> None:
    """The captured network is one fully connected layer; so is this one."""
    torch.manual_seed(0)
    task = edgeq.Task(
        "fc", lambda: nn.Sequential(nn.Linear(16, 8)), lambda: (torch.randn(4, 16),), lambda: [(torch.randn(4, 16),)]
    )
    edgeq.quantize(task, output=tmp_path / "fc")
    artifact = edgeq.export(tmp_path / "fc", "litert")
    rows, _ = settle(0.462, rows_of(artifact, parse(captured("litert_2025_phone")).nodes))
    assert sum(row.ms for row in rows) == pytest.approx(0.462)
    (layer,) = [row for row in rows if row.layers]
    assert layer.layers == ("0/linear",) and layer.ms == pytest.approx(0.382)
    old = (Node("TfLiteXNNPackDelegate", 0.4, "[whatever]:1"),)
    assert rows_of(artifact, old)[0].layers == ("0/linear",), "a delegate in one piece computes what no other row does"
