"""The lidar page says what was lost, counts what it draws, loads nothing; the terminal's table fits 80 columns."""

from __future__ import annotations

import base64
import io
import json
import math
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from rich.console import Console

from edgeq.lidar import kitti
from edgeq.lidar.evaluate import SURE, within
from edgeq.lidar.frame import Detections, Frame, Labels
from edgeq.lidar.scenes import HDL64_FRONT, scene
from edgeq.pages import bev, tables
from edgeq.pages.bev import Picture

NAMES = {"Car": "Vehicle", "Van": "Vehicle", "Truck": "Vehicle"}
HOSTILE = "</script><script>alert('x')</script>&\"<b>"


def detections(boxes: Any, scores: Any, classes: Any) -> Detections:
    return Detections(np.array(boxes, np.float64).reshape(-1, 7), np.array(scores, np.float64), tuple(classes))


def jittered(truth: Labels, rng: np.random.Generator) -> tuple[Detections, Detections]:
    """What a detector might find of `truth`, and what its int8 twin might: centimetres off, some gone, one invented."""
    seen = np.flatnonzero((truth.num_points >= 5) & (rng.random(len(truth.classes)) < 0.95))
    names = [NAMES.get(truth.classes[i], truth.classes[i]) for i in seen]
    scores = np.clip(0.25 + 0.12 * np.log10(truth.num_points[seen] + 1) + rng.normal(0, 0.06, len(seen)), 0.1, 0.95)
    boxes = truth.boxes[seen] + rng.normal(0, 1, (len(seen), 7)) * (0.08, 0.05, 0.03, 0.1, 0.04, 0.05, 0.03)
    again = rng.random(len(seen)) < 0.96
    moved = boxes + rng.normal(0, 1, boxes.shape) * (0.03, 0.03, 0.01, 0.04, 0.02, 0.02, 0.01)
    others = np.clip(scores + rng.normal(0, 0.015, len(seen)), 0, 1)
    ghost = [22.0, 14.0, -1, 3.9, 1.6, 1.5, 0.4]
    return detections(boxes, scores, names), detections(
        [*moved[again], ghost], [*others[again], 0.34], [*(n for n, kept in zip(names, again, strict=True) if kept), "Vehicle"]
    )  # fmt: skip


def picture(frame: Frame, source: str, point_range: list[float], seed: int) -> Picture:
    assert frame.labels is not None
    truth = within(frame.labels, point_range)
    low, high = np.array(point_range).reshape(2, 3)
    outside = int((~np.all((frame.points[:, :3] >= low) & (frame.points[:, :3] < high), axis=1)).sum())
    return Picture(frame.name, source, frame.points, truth, *jittered(truth, np.random.default_rng(seed)), outside, 0)


@pytest.fixture(scope="module")
def pictures() -> list[Picture]:
    reach = [0.0, -25.6, -3.0, 51.2, 25.6, 1.0]
    return [picture(scene(seed, HDL64_FRONT), "synthetic scenes", reach, seed) for seed in range(3)]


def found_by_demo(minmax: float | None = 0.7514, lidar_ptq: float | None = 0.7801) -> dict[str, Any]:
    def row(name: str, int8: float | None, floating: float | None, lsb: float | None = 0) -> dict[str, Any]:
        return {
            "artifact": f"demo-out/{name}/model", "max_lsb": lsb, "exact_share": None if lsb is None else 1.0,
            "qdq_lsb": 2, "metric": None if lsb is None else {"vehicle_ap": 0.7803},
            "latency_ms": {"int8": int8, "float": floating}, "integer_ops": 34, "table_ops": 0, "eligible_ops": 0, "float_ops": 2,
            "bundle": f"demo-out/bundles/{name}",
        }  # fmt: skip

    return {
        "network": "CenterPoint-Pillar (synthetic scenes)",
        "device": {"model": "Intel(R) Xeon(R) Processor @ 2.10GHz", "cores": 2, "os": "Linux 6.1", "features": []},
        "versions": {"edgeq": "0.1.0", "torch": "2.13.0"},
        "frames": {"calibration": 64, "evaluation": 40},
        "ap": {"float": 0.7822, "minmax": minmax, "lidar_ptq": lidar_ptq},
        "agreement": 0.9734,
        "report": "demo-out/report.html",
        "backends": {
            "litert": row("litert", 61.2, 103.4),
            "executorch": row("executorch", 58.7, 97.1),
            "coreml": row("coreml", None, None, None),
            "tvm": row("tvm", 84.2, 80.3),
        },
    }


class Reader(HTMLParser):
    """What a browser would see: tags, references, text outside of scripts and styles, and the page's data."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.references: list[str] = []
        self.text = ""
        self.feed(page)
        marked = '<script type="application/json" id="data">'
        self.data = json.loads(page.split(marked)[1].split("</script>")[0]) if marked in page else None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.text += " " if tag in ("td", "th") else ""
        self.references += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]

    def handle_data(self, data: str) -> None:
        if self.tags[-1:] not in (["script"], ["style"]):
            self.text += data


def read(found: dict[str, Any], pictures: list[Picture], folder: Path) -> Reader:
    path = bev.write_bev(found, pictures, folder / "page.html")
    assert [p.name for p in folder.iterdir()] == ["page.html"]
    return Reader(path.read_text())


def test_the_page_loads_nothing_and_holds_every_frame(pictures: list[Picture], tmp_path: Path) -> None:
    page = read(found_by_demo(), pictures, tmp_path)
    assert page.references and all(reference.startswith("#") for reference in page.references)
    source = (tmp_path / "page.html").read_text()
    assert "@import" not in source and "url(" not in source.replace("url(#rise)", "")
    assert "default-src 'none'" in source
    for shown, frame in zip(pictures, page.data["frames"], strict=True):
        centimetres = np.frombuffer(base64.b64decode(frame["points"]), "<i2").reshape(-1, 3)
        highest_first = shown.points[np.argsort(-shown.points[:, 2], kind="stable"), :3]
        np.testing.assert_allclose(centimetres / 100, highest_first, atol=0.0051)
        assert shown.truth is not None and len(frame["truth"]) == len(shown.truth.classes)
        x, y, half = frame["view"]
        boxes = np.concatenate([shown.floating.boxes, shown.int8.boxes, shown.truth.boxes])[:, :2]
        assert (np.abs(boxes - (x, y)) < half).all() and abs(x) < half and abs(y) < half
        assert len(json.dumps(frame)) < 400_000


def test_what_was_lost_is_said_first(tmp_path: Path) -> None:
    text = read(found_by_demo(), [], tmp_path).text
    assert text.index("Int8 loses 0.2 points of vehicle AP") < text.index("lidar-ptq wins back 2.9 of the 3.1 points")
    assert "TVM: int8 is slower than float here, 84.2 ms against 80.3 ms." in text
    assert text.index("slower than float") < text.index("wins back")
    assert all(said in text for said in ("78.2", "75.1", "−3.1 points", "78.0", "−0.2 points", "97.3"))


@pytest.mark.parametrize(
    ("minmax", "lidar_ptq", "headline", "verdict"),
    [
        (0.75, 0.79, "Int8 loses no vehicle AP", "wins back 3.2 of the 3.2 points"),
        (0.7822, 0.7822, "Int8 loses no vehicle AP", "there was nothing to win back"),
        (0.78, 0.76, "Int8 loses 2.2 points of vehicle AP", "lidar-ptq does worse than minmax here, by 2.0 points"),
        (None, 0.76, "Int8 loses 2.2 points of vehicle AP", ""),
        (0.75, None, "What int8 does to the boxes", ""),
        (0.75, math.nan, "What int8 does to the boxes", ""),
    ],
)
def test_the_headline_follows_the_numbers(
    minmax: float | None, lidar_ptq: float | None, headline: str, verdict: str, tmp_path: Path
) -> None:
    text = read(found_by_demo(minmax, lidar_ptq), [], tmp_path).text
    assert headline in text and verdict in text
    assert verdict or ("wins back" not in text and "worse" not in text)
    assert "None" not in text and "nan" not in text


def test_pairs_are_the_same_answer_as_ap_counts_it() -> None:
    def car(x: float, y: float = 0.0) -> list[float]:
        return [x, y, -1, 4.0, 1.6, 1.5, 0]

    floating = detections([car(10), car(20), car(30), car(40)], [0.5, 0.9, 0.4, 0.2], ["Vehicle"] * 4)
    int8 = detections(
        [car(10.5), car(10.2), car(20, 0.1), car(30), car(41), car(60)],
        [0.9, 0.4, 0.8, 0.4, 0.25, 0.1],
        ["Vehicle", "Vehicle", "Vehicle", "Cyclist", "Vehicle", "Vehicle"],
    )
    # best score first; of two candidates the greater overlap; a cyclist is no vehicle; 3 m of 5 overlap: 0.6, not 0.7
    assert bev.paired(floating, int8) == [
        (1, 2),
        (0, 1),
        (2, None),
        (3, None),
        (None, 0),
        (None, 3),
        (None, 4),
        (None, 5),
    ]
    nothing = detections([], [], [])
    assert bev.paired(nothing, nothing) == []
    assert bev.paired(floating, nothing) == [(1, None), (0, None), (2, None), (3, None)]
    assert bev.paired(nothing, int8) == [(None, i) for i in range(6)]


def test_counts_are_of_the_boxes_that_are_shown(tmp_path: Path) -> None:
    boxes = [[10.0 * i, 0, -1, 4, 1.6, 1.5, 0] for i in range(1, 6)]
    # float 0.5 with int8 0.2: one answer; float alone 0.4; both too low; int8 alone 0.6; float alone too low
    floating = detections(boxes[:3] + boxes[4:], [0.5, 0.4, 0.29, 0.1], ["Vehicle"] * 4)
    int8 = detections([boxes[0], boxes[2], boxes[3]], [0.2, 0.28, 0.6], ["Vehicle"] * 3)
    shown = Picture("one", "a test", np.zeros((0, 4), np.float32), None, floating, int8, 12, 3)
    page = read(found_by_demo(), [shown], tmp_path)
    assert SURE == 0.3
    assert "In the frame below int8 finds 1 of float's 2 boxes again, 1 it misses; 1 of its own is new." in page.text
    assert "one 1 1 1 0 12 3 a test" in page.text  # found again, missed, new, points, out of range, dropped
    assert page.data["frames"][0]["truth"] == [] and page.data["frames"][0]["points"] == ""


def test_a_large_cloud_is_thinned_from_above_and_a_broken_point_left_out(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    points = (rng.normal(0, 1, (150_000, 4)) * (12, 12, 0.5, 0.2)).astype(np.float32)
    points[0] = np.nan
    points[1, :3] = 400, 0, 0
    points[2, :3] = 5, 5, 20  # the highest of its cell
    nothing = detections([], [], [])
    big = Picture("big", "a test", points, None, nothing, nothing, 0, 0)
    frame = read(found_by_demo(), [big], tmp_path).data["frames"][0]
    drawn = np.frombuffer(base64.b64decode(frame["points"]), "<i2").reshape(-1, 3)
    assert bev.MOST_POINTS / 2 < len(drawn) <= bev.MOST_POINTS
    assert (drawn == (500, 500, 2000)).all(1).any()
    assert np.abs(drawn).max() < 30_000
    assert len(json.dumps(frame)) < 400_000
    # thinning spares what is sparse: of the far points each has one drawn beside it
    far: NDArray[np.float32] = points[3:][np.hypot(points[3:, 0], points[3:, 1]) > 40]
    gap = np.hypot(far[:, None, 0] - drawn[:, 0] / 100, far[:, None, 1] - drawn[:, 1] / 100).min(1)
    assert len(far) > 100 and gap.max() < 0.4


def test_hostile_names_stay_text(pictures: list[Picture], tmp_path: Path) -> None:
    first = pictures[0]
    clean = read(found_by_demo(), pictures[:1], tmp_path)
    classes = tuple(HOSTILE for _ in first.floating.classes)
    floating = Detections(first.floating.boxes, first.floating.scores, classes)
    found = {**found_by_demo(), "network": HOSTILE}
    page = read(found, [Picture(HOSTILE, HOSTILE, first.points, first.truth, floating, first.int8, 0, 0)], tmp_path)
    assert page.tags == clean.tags
    assert page.data["frames"][0]["name"] == HOSTILE
    assert page.text.count(HOSTILE) >= 3


def test_real_frames_stand_after_the_synthetic_ones(data: Path, pictures: list[Picture], tmp_path: Path) -> None:
    frames = kitti.read_frames(data / "kitti" / "eval", ["000019", "001985"])
    reach = [0.0, -39.68, -3.0, 69.12, 39.68, 1.0]
    real = [picture(frame, "KITTI", reach, i) for i, frame in enumerate(frames)]
    page = read(found_by_demo(), [*pictures, *real], tmp_path)
    assert [f["source"] for f in page.data["frames"]] == ["synthetic scenes"] * 3 + ["KITTI"] * 2
    assert (tmp_path / "page.html").stat().st_size < 2_000_000


def test_the_terminal_says_the_same_in_eighty_columns() -> None:
    stream = io.StringIO()
    console = Console(file=stream, width=80, color_system=None)
    for part in tables.lidar_table(found_by_demo()):
        console.print(part)
    text = stream.getvalue()
    assert max(len(line) for line in text.splitlines()) <= 80
    assert "…" not in text
    words = " ".join(text.split())
    for wanted in ("float 78.2", "minmax 75.1 (−3.1)", "lidar-ptq 78.0 (−0.2)", "agreement 97.3", "1.69×", "34/0/0/2", "78.0",
                   "demo-out/report.html", "demo-out/bundles/tvm", "TVM: int8 is slower than float here"):  # fmt: skip
        assert wanted in words, wanted
    assert text.index("slower than float") < text.index("runtime")
