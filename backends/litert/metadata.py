"""TFLite metadata: what an image's pixels have to become, and the names of classes, inside the `.tflite` itself.

As metadata_schema.fbs of TensorFlow Lite Support has it (identifier M001), which MediaPipe's Task library, Android Studio
and ML Kit read: a flatbuffer of its own in the buffer TFLITE_METADATA, and files it names in a zip archive behind the model.
Written here field by field, as no kept package writes it.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgeq.spec import EdgeqError, TensorInfo

NAME = b"TFLITE_METADATA"
IDENTIFIER = b"M001"
PARSER = "1.0.0"  # the oldest reader that knows every field written here
LABELS = "labels.txt"
CHANNELS_LAST = (0, 2, 3, 1)  # torch's axes in the order of pixels

# members of the schema's enums and unions
IMAGE_PROPERTIES, NORMALIZATION, AXIS_LABELS = 2, 1, 2
COLOR_SPACES = {"RGB": 1, "GRAYSCALE": 2}
LIMITS = {"int8": (-128.0, 127.0), "uint8": (0.0, 255.0)}  # of the values an input takes
UNLIKE = 8.0  # how many times wider than calibrated inputs pixels may become before the task's numbers are not believed


@dataclass(frozen=True, slots=True)
class Image:
    """The input that is an image, as the task's PREPROCESSING describes it.

    index: among the inputs. axes: which of its axes are height, width and channels. mean, std: in units of the pixel's byte,
    value = (byte − mean) / std, one number each or one a channel; empty where pixels go in as they are. color: as written.
    """

    index: int
    axes: tuple[int, int, int]
    color: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def even(self) -> bool:
        """Whether all channels are normalised alike, as MediaPipe's Task library wants a float image."""
        return len({*self.mean}) <= 1 and len({*self.std}) <= 1

    def bounds(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Least and largest value of each channel."""
        pairs = list(zip(self.mean, self.std, strict=True))
        return tuple((0 - m) / s for m, s in pairs), tuple((255 - m) / s for m, s in pairs)


def image(preprocessing: Mapping[str, Any] | None, inputs: Sequence[TensorInfo]) -> Image | None:
    """The image among a program's `inputs`, None where PREPROCESSING says of none.

    It says so by `color`, or by a `mean` and a `std` for three channels; a pixel's byte becomes (byte · scale − mean) / std.
    `layout` is NCHW or NHWC; without it the axis of 1, 3 or 4 channels tells.

    Raises:
        EdgeqError: mean, std or scale are no numbers, or not one for each channel.
    """
    told = preprocessing or {}
    layouts = {"NCHW": (2, 3, 1), "NHWC": (1, 2, 3)}
    wanted = [layouts[told["layout"]]] if told.get("layout") in layouts else list(layouts.values())
    fitting = [
        (index, next((axes for axes in wanted if info.shape[axes[2]] in (1, 3, 4)), None))
        for index, info in enumerate(inputs)
        if len(info.shape) == 4
    ]
    found = [(index, axes) for index, axes in fitting if axes is not None]
    if len(found) != 1:
        return None
    index, axes = found[0]
    channels = inputs[index].shape[axes[2]]
    given = {key: told[key] for key in ("scale", "mean", "std") if told.get(key) is not None}
    if "color" not in told and not ({"mean", "std"} <= given.keys() and channels == 3):
        return None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    if given:
        given = {"scale": 1.0, "mean": 0.0, "std": 1.0} | given
        factor = _numbers(given["scale"], "scale", 1)[0]
        if not factor:
            raise EdgeqError("PREPROCESSING['scale'] is 0, which leaves nothing of the image; write 1 / 255 or 1")
        mean, std = (
            tuple(float(np.float32(x / factor)) for x in _numbers(given[key], key, channels)) for key in ("mean", "std")
        )
        if not all(std):
            raise EdgeqError("PREPROCESSING['std'] has a 0, by which nothing divides; write 1 for no change")
        mean, std = (x * max(len(mean), len(std)) if len(x) == 1 else x for x in (mean, std))
    return Image(index, axes, str(told.get("color", "RGB")).upper(), mean, std)


def labels(preprocessing: Mapping[str, Any] | None) -> tuple[str, ...]:
    """The classes' names, where PREPROCESSING['labels'] is a list of them.

    Raises:
        EdgeqError: one of them is no string, or holds a line break, which ends a name in the file.
    """
    told = (preprocessing or {}).get("labels")
    if not isinstance(told, (list, tuple)):
        return ()
    for index, name in enumerate(told):
        if not isinstance(name, str) or len(name.splitlines()) > 1 or name.endswith(("\n", "\r")):
            raise EdgeqError(f"PREPROCESSING['labels'][{index}] is {name!r}; write each class's name on one line")
    return tuple(told)


def unbelieved(picture: Image, given: TensorInfo) -> str:
    """Why the task's numbers cannot be those of the images that calibrated `given`; empty where they can."""
    q = given.qparams
    if q is None or not picture.mean:
        return ""
    low, high = (q.step * (end - q.zero) for end in (q.qmin, q.qmax))
    least, most = min(map(min, zip(*picture.bounds(), strict=True))), max(map(max, zip(*picture.bounds(), strict=True)))
    if 1 / UNLIKE < (most - least) / (high - low) < UNLIKE:
        return ""
    return (
        f"no TFLite metadata: PREPROCESSING makes pixels {least:.3g} … {most:.3g}, and calibration's lie in {low:.3g} … "
        f"{high:.3g}; a mean and std for pixels of 0 … 1 need 'scale': 1 / 255 beside them"
    )


def steps_off(picture: Image, given: TensorInfo) -> float:
    """How far a uint8 input's numbers are from the image's bytes, in steps: 0.5 and less is its own rounding."""
    if given.qparams is None or not picture.mean:
        return 0.0
    scale, zero_point = given.qparams.step, given.qparams.zero
    pixels = np.arange(256)
    ends = [(pixels - m) / s / scale + zero_point - pixels for m, s in zip(picture.mean, picture.std, strict=True)]
    return float(np.abs(ends).max())


def metadata(
    picture: Image,
    inputs: Sequence[TensorInfo],
    outputs: Sequence[TensorInfo],
    classes: Sequence[str],
) -> bytes:
    """The flatbuffer: `inputs` and `outputs` as the file has them, in its order, `picture`'s axes those of the file.

    classes: names for every output that has as many values along its last axis; they stand in the file LABELS.
    """
    given = [_image_input(info, picture) if i == picture.index else _plain(info) for i, info in enumerate(inputs)]
    made = [_plain(info) | _named(info, classes) for info in outputs]
    graph = {2: given, 3: made}
    return _packed({1: "Quantized by edgeq.", 3: [graph], 7: PARSER})


def with_files(model: bytes, classes: Sequence[str]) -> bytes:
    """`model` with the file LABELS in a zip archive behind it: stored as it is, and without a date."""
    kept = io.BytesIO(model)
    with zipfile.ZipFile(kept, "a", zipfile.ZIP_STORED) as archive:
        archive.writestr(zipfile.ZipInfo(LABELS), "\n".join(classes))
    return kept.getvalue()


def labelled(outputs: Sequence[TensorInfo], classes: Sequence[str]) -> bool:
    """Whether some output has as many values along its last axis as there are names."""
    return any(_named(info, classes) for info in outputs)


def _image_input(info: TensorInfo, picture: Image) -> dict[int, Any]:
    height, width = (info.shape[axis] for axis in picture.axes[:2])
    content = {0: _Byte(COLOR_SPACES.get(picture.color, 0)), 1: {0: width, 1: height}}
    table = _plain(info) | {3: {0: _Byte(IMAGE_PROPERTIES), 1: content}}
    names = {0: "batch", picture.axes[0]: "height", picture.axes[1]: "width", picture.axes[2]: "channels"}
    table |= {1: "Image, as process_units and the tensor's own scale say.", 2: [names[axis] for axis in range(4)]}
    if picture.mean:
        table[4] = [{0: _Byte(NORMALIZATION), 1: {0: list(picture.mean), 1: list(picture.std)}}]
    least, most = picture.bounds() if picture.mean else ((0.0,), (255.0,))
    if info.dtype in LIMITS:
        least, most = ((end,) for end in LIMITS[info.dtype])
    return table | {5: {0: list(most), 1: list(least)}}


def _plain(info: TensorInfo) -> dict[int, Any]:
    return {0: info.name, 1: f"{info.dtype} {list(info.shape)}"}


def _named(info: TensorInfo, classes: Sequence[str]) -> dict[int, Any]:
    if not classes or not info.shape or info.shape[-1] != len(classes):
        return {}
    return {6: [{0: LABELS, 1: "Names of the classes along the last axis.", 2: _Byte(AXIS_LABELS)}]}


def _numbers(told: Any, key: str, channels: int) -> tuple[float, ...]:
    items = tuple(told) if isinstance(told, (list, tuple)) else (told,)
    if not all(isinstance(x, (int, float)) and not isinstance(x, bool) for x in items):
        raise EdgeqError(f"PREPROCESSING[{key!r}] is {told!r}; write a number, or one for each channel")
    if len(items) not in (1, channels):
        raise EdgeqError(f"PREPROCESSING[{key!r}] has {len(items)} numbers, and its image {channels} channels")
    return tuple(float(x) for x in items)


class _Byte(int):
    """A field of one byte: an enum, or a union's type."""


def _packed(root: Mapping[int, Any]) -> bytes:
    import flatbuffers

    builder = flatbuffers.Builder(1024)
    builder.Finish(_table(builder, root), IDENTIFIER)
    return bytes(builder.Output())


def _table(builder: Any, fields: Mapping[int, Any]) -> int:
    """A table of the flatbuffer: field id → number, text, table, or a list of one of them. What it refers to goes first."""
    places = {field: _place(builder, held) for field, held in fields.items() if not isinstance(held, int)}
    builder.StartObject(max(fields) + 1)
    for field, held in fields.items():
        if field in places:
            builder.PrependUOffsetTRelativeSlot(field, places[field], 0)
        elif isinstance(held, _Byte):
            builder.PrependUint8Slot(field, held, 0)
        else:
            builder.PrependUint32Slot(field, held, 0)
    return int(builder.EndObject())


def _place(builder: Any, held: Any) -> int:
    """Where a text, a table or a vector begins."""
    if isinstance(held, str):
        return int(builder.CreateString(held))
    if isinstance(held, Mapping):
        return _table(builder, held)
    if isinstance(held[0], float):
        return int(builder.CreateNumpyVector(np.asarray(held, np.float32)))
    places = [_place(builder, each) for each in held]
    builder.StartVector(4, len(places), 4)
    for place in reversed(places):
        builder.PrependUOffsetTRelative(place)
    return int(builder.EndVector())
