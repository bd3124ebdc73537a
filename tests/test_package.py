"""A model folder is whole or absent, and says what is wrong with it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from networks import InvertedResidual, inputs, seeded
from safetensors.torch import load_file

import edgeq
from edgeq import whole
from edgeq.graph import package, store
from edgeq.spec import EdgeqError

X = torch.randn(1, 3, 8, 8)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    task = edgeq.Task(
        "mobile",
        lambda: seeded(InvertedResidual),
        lambda: inputs(InvertedResidual),
        lambda: [inputs(InvertedResidual, 1)],
        preprocessing={"mean": 127},
    )
    folder = tmp_path_factory.mktemp("package") / "mobile"
    edgeq.quantize(task, output=folder)
    return folder


def copy(folder: Path, to: Path) -> Path:
    import shutil

    return Path(shutil.copytree(folder, to / "copy"))


def test_a_saved_model_computes_the_same_after_loading(saved: Path) -> None:
    model = edgeq.load(saved)
    golden = load_file(saved / "golden.safetensors")
    got = model.qdq(model.golden)
    assert torch.equal(got[0], golden["output_0"])
    assert model.preprocessing == {"mean": 127}
    assert {op.kind for op in model.integers.ops.values()} >= {"conv2d", "depthwise_conv2d", "add", "linear"}
    assert set(model.labels) <= {n.name for n in model.program.graph.nodes}


def test_same_task_same_bytes_in_another_process(saved: Path, tmp_path: Path) -> None:
    code = (  # torch marks the nodes of later exports once something was compiled
        "import torch; torch.compile(torch.nn.Linear(4, 4), backend='eager')(torch.ones(1, 4))\n"
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "import edgeq; from networks import InvertedResidual, inputs, seeded\n"
        "task = edgeq.Task('mobile', lambda: seeded(InvertedResidual), lambda: inputs(InvertedResidual),\n"
        "    lambda: [inputs(InvertedResidual, 1)], preprocessing={'mean': 127})\n"
        f"edgeq.quantize(task, output={str(tmp_path / 'again')!r})"
    )
    subprocess.run([sys.executable, "-P", "-c", code], check=True)
    names = sorted(p.name for p in saved.iterdir())
    assert names == sorted(store.FILES)
    for name in names:
        assert (saved / name).read_bytes() == (tmp_path / "again" / name).read_bytes(), name


def test_files_can_be_read_by_whom_the_manifest_can(saved: Path) -> None:
    assert len({path.stat().st_mode for path in saved.iterdir()}) == 1


def test_truncated_program(saved: Path, tmp_path: Path) -> None:
    folder = copy(saved, tmp_path)
    whole = (folder / "program.pt2").read_bytes()
    (folder / "program.pt2").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(EdgeqError, match=r"program\.pt2: truncated"):
        edgeq.load(folder)


def test_edited_plan_is_not_mixed_with_old_scales(saved: Path, tmp_path: Path) -> None:
    folder = copy(saved, tmp_path)
    plan = json.loads((folder / "plan.json").read_text())
    plan["layers"]["head/linear"] = "fp32"
    (folder / "plan.json").write_text(json.dumps(plan))
    with pytest.raises(EdgeqError, match="edited since it was calibrated"):
        edgeq.load(folder)


def test_foreign_weights(saved: Path, tmp_path: Path) -> None:
    folder = copy(saved, tmp_path)
    with (folder / "weights.safetensors").open("ab") as file:
        file.write(b"x")
    with pytest.raises(EdgeqError, match=r"weights\.safetensors: truncated or changed"):
        edgeq.load(folder)


def test_a_folder_of_something_else_is_neither_read_nor_overwritten(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(EdgeqError, match="not a quantized model"):
        edgeq.load(tmp_path)
    with pytest.raises(EdgeqError, match="holds other files"), store.replacing(tmp_path):
        pass
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_an_interrupted_write_leaves_the_old_folder_whole(saved: Path, tmp_path: Path) -> None:
    folder = copy(saved, tmp_path)
    before = sorted(p.name for p in folder.iterdir())
    with pytest.raises(KeyboardInterrupt), store.replacing(folder) as part:
        (part / "half").write_text("written")
        raise KeyboardInterrupt
    assert sorted(p.name for p in folder.iterdir()) == before
    assert [p.name for p in tmp_path.iterdir()] == ["copy"]


def test_ctrl_c_between_the_two_renames_keeps_the_old_model(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, rename = copy(saved, tmp_path), Path.rename
    before = sorted(p.name for p in folder.iterdir())

    def interrupted(path: Path, to: Path) -> Path:
        if to == folder and ".old." not in path.name:
            raise KeyboardInterrupt
        return rename(path, to)

    monkeypatch.setattr(whole.sys, "platform", "one without an exchange by one call")
    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt), store.replacing(folder) as part:
        (part / "new").write_text("whole")
    assert sorted(p.name for p in folder.iterdir()) == before
    assert [p.name for p in tmp_path.iterdir()] == ["copy"]


def test_the_current_folder_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "inner").mkdir()
    monkeypatch.chdir(tmp_path / "inner")
    for folder in (Path(), Path(".."), tmp_path / "inner"):
        with pytest.raises(EdgeqError, match="current folder cannot be replaced"):
            store.check_replaceable(folder)


def test_what_is_removed_with_the_older_model_is_said(saved: Path, tmp_path: Path) -> None:
    folder, said = copy(saved, tmp_path), []
    (folder / "litert").mkdir()
    (folder / "verify.json").write_text("{}")
    task = edgeq.Task("one", lambda: torch.nn.Conv2d(3, 2, 1), lambda: (X,), lambda: [(X,)])
    edgeq.quantize(task, output=folder, progress=lambda stage, done, total: said.append(stage))
    assert said[-1] == "removed what belonged to the older program: litert, verify.json"
    assert sorted(p.name for p in folder.iterdir()) == sorted(store.FILES)


@pytest.mark.parametrize("text", ["[1, 2]", '"plan"', '{"target": "portable", "recipe": "default", "layers": []}'])
def test_a_plan_of_another_form_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(EdgeqError, match="a plan is an object with target, recipe and layers"):
        package.load_plan(tmp_path / "plan.json")


def test_another_models_program(saved: Path, tmp_path: Path) -> None:
    folder = copy(saved, tmp_path)
    (folder / "program.pt2").write_bytes((folder / "float.pt2").read_bytes())
    with pytest.raises(EdgeqError, match=r"program\.pt2: truncated or changed since it was saved with this model"):
        edgeq.load(folder)


def test_an_exported_file_names_its_folder_and_backend(saved: Path, tmp_path: Path) -> None:
    folder = copy(saved, tmp_path)
    path = edgeq.export(folder, "tvm").path
    assert list(edgeq.verify(path)["backends"]) == ["tvm"]
    assert (folder / "verify.json").is_file()
    with pytest.raises(EdgeqError, match=r"was exported to tvm, and --to says litert"):
        edgeq.verify(path, to=["litert"])
    stray = tmp_path / "stray.so"
    stray.write_bytes(path.read_bytes())
    for verb in (edgeq.verify, edgeq.profile):
        with pytest.raises(EdgeqError, match=r"lies in no model folder; name the folder that edgeq quantize wrote"):
            verb(stray)
        with pytest.raises(EdgeqError, match=r"is not what was exported of"):
            verb(folder / "plan.json")


def test_the_program_loads_without_edgeq_as_the_documentation_says(saved: Path, tmp_path: Path) -> None:
    page = (Path(__file__).parent.parent / "docs" / "json.md").read_text()
    (code,) = [block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "torch.export.load" in block]
    golden = tmp_path / "golden.pt"
    torch.save(inputs(InvertedResidual), golden)
    code = code.replace("out/program.pt2", str(saved / "program.pt2"))
    code = code.replace("torch.zeros(1, 3, 32, 32)", f"*torch.load({str(golden)!r})")
    code += f"import sys\nassert 'edgeq' not in sys.modules\ntorch.save(outputs, {str(tmp_path / 'outputs.pt')!r})"
    subprocess.run([sys.executable, "-c", code], check=True)
    for got, wanted in zip(
        torch.load(tmp_path / "outputs.pt"), package.load(saved).qdq(inputs(InvertedResidual)), strict=True
    ):
        assert torch.equal(got, wanted)
