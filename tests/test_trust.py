"""A folder from somebody else is data: it runs nothing, reads nothing outside itself, and no changed byte goes unseen."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from networks import sealed
from torch import nn

import edgeq
from edgeq.graph.store import hash_of
from edgeq.run.files import find
from edgeq.spec import EdgeqError, EdgeqWarning

TASK = """
import torch
from pathlib import Path
Path(__file__).with_suffix(".ran").touch()
def model():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(64, 2))
def example_inputs():
    return (torch.zeros(1, 3, 6, 6),)
def calibration():
    generator = torch.Generator().manual_seed(0)
    return [(torch.rand(1, 3, 6, 6, generator=generator),) for _ in range(3)]
def evaluate(predict):
    return {"first": float(predict(torch.ones(1, 3, 6, 6))[0].flatten()[0])}
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with a TVM artefact, verified, beside its task file."""
    root = tmp_path_factory.mktemp("trust")
    (root / "task.py").write_text(TASK)
    edgeq.quantize(root / "task.py", output=root / "out")
    edgeq.export(root / "out", "tvm")
    edgeq.verify(root / "out")
    return root / "out"


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "theirs"))


class Payload:
    """Pickles as a call that leaves a mark."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


def repacked(path: Path, change: Callable[[dict[str, bytes]], None]) -> None:
    """The archive at `path` with its files changed."""
    with zipfile.ZipFile(path) as archive:
        held = {name: archive.read(name) for name in archive.namelist()}
    change(held)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, content in held.items():
            archive.writestr(name, content)


def pickled(mark: Path) -> bytes:
    held = io.BytesIO()
    torch.save((Payload(mark),), held)
    return held.getvalue()


def json_changed(name: str, change: Callable[[Any], None]) -> Callable[[dict[str, bytes], Path], None]:
    def apply(held: dict[str, bytes], _: Path) -> None:
        (full,) = [n for n in held if n.endswith(name)]
        told = json.loads(held[full])
        change(told)
        held[full] = json.dumps(told).encode()

    return apply


def example_inputs(held: dict[str, bytes], mark: Path) -> None:
    held.update({n: pickled(mark) for n in held if "sample_inputs" in n})


def weight(held: dict[str, bytes], mark: Path) -> None:
    (name,) = [n for n in held if n.endswith("_weights_config.json")]
    told = json.loads(held[name])
    row = next(iter(told["config"].values()))
    row["use_pickle"] = True
    held[name] = json.dumps(told).encode()
    (full,) = [n for n in held if n.endswith(f"weights/{row['path_name']}")]
    held[full] = pickled(mark)


def constant(held: dict[str, bytes], mark: Path) -> None:
    (name,) = [n for n in held if n.endswith("_constants_config.json")]
    row = {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": True, "tensor_meta": None}
    held[name] = json.dumps({"config": {"mine": row}}).encode()
    held[name.replace("model_constants_config.json", "opaque_obj_0")] = pickled(mark)


def legacy(held: dict[str, bytes], mark: Path) -> None:
    (name,) = [n for n in held if n.endswith("_weights_config.json")]
    held[name.replace("model_weights_config.json", "model.pt")] = pickled(mark)


def native(held: dict[str, bytes], _: Path) -> None:
    held[f"{next(iter(held)).split('/')[0]}/data/aotinductor/model/a.so"] = b"no library"


def function(told: Any) -> None:
    told["graph_module"]["graph"]["nodes"][0]["target"] = "torch.manual_seed"


def guard(told: Any) -> None:
    told["guards_code"] = ["True"]


def container(told: Any) -> None:
    call = told["graph_module"]["module_call_graph"][0]["signature"]
    call["out_spec"] = call["out_spec"].replace("builtins.tuple", "collections.defaultdict")


def size(told: Any) -> None:
    told["graph_module"]["graph"]["nodes"][0]["inputs"][0]["arg"] = {"as_sym_int": {"as_expr": {"expr_str": "1 + 1"}}}


CHANGES: dict[str, Callable[[dict[str, bytes], Path], None]] = {
    "example inputs": example_inputs,
    "weight": weight,
    "constant": constant,
    "legacy weights": legacy,
    "native code": native,
    "function": json_changed("models/model.json", function),
    "guard": json_changed("models/model.json", guard),
    "container": json_changed("models/model.json", container),
    "size": json_changed("models/model.json", size),
}


@pytest.mark.parametrize("file", ["program.pt2", "float.pt2"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_program_is_tensors_and_operators_or_is_not_loaded(change: str, file: str, folder: Path) -> None:
    mark = folder.parent / "mark"
    repacked(folder / file, lambda held: CHANGES[change](held, mark))
    with pytest.raises(EdgeqError, match=rf"{file}: (not loaded|truncated)"):
        edgeq.load(sealed(folder))
    assert not mark.exists()


def test_a_repacked_program_is_loaded(folder: Path) -> None:
    """What refuses the others is what they hold, not that they were packed again."""
    repacked(folder / "program.pt2", lambda held: None)
    edgeq.load(sealed(folder))


def test_every_file_is_known_by_its_hash(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    known = {**manifest["files"], **manifest["artifacts"]}
    there = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()} - {"manifest.json"}
    assert there == set(known)
    for name, value in known.items():
        assert hash_of(folder / name) == value
        content = bytearray((folder / name).read_bytes())
        content[len(content) // 2] ^= 1
        (folder / name).write_bytes(content)
        with pytest.raises(EdgeqError, match=Path(name).name):
            edgeq.report(folder, output=folder.parent / "page.html")
        content[len(content) // 2] ^= 1
        (folder / name).write_bytes(content)
    edgeq.report(folder, output=folder.parent / "page.html")


@pytest.mark.parametrize("name", ["../model.so", "/tmp/model.so", "sub/model.so", "..", ""])
def test_an_artefact_lies_beside_its_description(name: str, folder: Path) -> None:
    path = folder / "tvm" / "model.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "artifact": name}))
    with pytest.raises(EdgeqError, match=r"no file inside the model folder|not beside it"):
        find(edgeq.load(sealed(folder)), "tvm")


def test_a_link_out_of_the_folder_is_not_followed(folder: Path) -> None:
    artifact = find(edgeq.load(folder), "tvm").path
    outside = folder.parent / "outside"
    artifact.rename(outside)
    artifact.symlink_to(outside)
    with pytest.raises(EdgeqError, match="leads out of the model folder"):
        edgeq.verify(sealed(folder))


def test_a_changed_task_file_runs_only_where_it_is_named(made: Path, tmp_path: Path) -> None:
    task = tmp_path / "task.py"
    task.write_text(TASK)
    edgeq.quantize(task, output=tmp_path / "out")
    edgeq.export(tmp_path / "out", "tvm")
    mark = task.with_suffix(".ran")
    mark.unlink()
    assert edgeq.verify(tmp_path / "out")["inputs"] == "calibration" and mark.exists()
    mark.unlink()
    task.write_text(TASK + "# a remark\n")
    with pytest.warns(
        EdgeqWarning, match=r"was changed since the model was quantized, and is not run: name it with --task"
    ):
        found = edgeq.verify(tmp_path / "out")
    assert found["inputs"] == "golden" and found["float_metric"] is None and not mark.exists()
    with pytest.warns(EdgeqWarning, match="is not run"):
        edgeq.report(tmp_path / "out")
    assert not mark.exists()
    assert edgeq.verify(tmp_path / "out", task=task)["float_metric"] is not None and mark.exists()
    command = [sys.executable, "-m", "edgeq.cli", "verify", str(tmp_path / "out"), "--task", str(task), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["inputs"] == "calibration"


def test_a_task_inside_the_folder_is_part_of_it(folder: Path) -> None:
    task = folder / "task.py"
    task.write_text(TASK)
    path = folder / "manifest.json"
    told = {**json.loads(path.read_text()), "task": str(task), "task_sha256": hash_of(task)}
    path.write_text(json.dumps(told))
    with pytest.warns(EdgeqWarning, match="lies in the model folder, and is not run"):
        assert edgeq.verify(folder)["inputs"] == "golden"
    assert not task.with_suffix(".ran").exists()


def test_exports_side_by_side_are_all_recorded(tmp_path: Path) -> None:
    batch = torch.ones(1, 3, 6, 6)
    edgeq.quantize(nn.Conv2d(3, 4, 3), example_inputs=(batch,), calibration=[batch], output=tmp_path / "out")
    commands = [
        [sys.executable, "-m", "edgeq.cli", "export", str(tmp_path / "out"), "--to", to] for to in ("tvm", "litert")
    ]
    for running in [subprocess.Popen(c, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) for c in commands]:
        assert running.wait(timeout=300) == 0
    assert {row["max_lsb"] for row in edgeq.verify(tmp_path / "out")["backends"].values()} == {0}
