"""Recipes as people write them: steps of a plan.json, a TOML file, one option changed by `step.option=value`."""

from __future__ import annotations

import ast
import dataclasses
import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from edgeq.calib.calibrate import learns, needs
from edgeq.calib.data import sources
from edgeq.calib.data.sources import Source
from edgeq.calib.needs import DATA, NEIGHBOURS, SEEN
from edgeq.calib.recipes import RECIPES
from edgeq.calib.recipes import recipe as by_name
from edgeq.calib.steps import kind, name_of
from edgeq.calib.steps.reconstruct import Reconstruct
from edgeq.schema import LARGEST, fit
from edgeq.spec import EdgeqError, QuantPlan, Recipe, Step

Written = Mapping[str, Any]  # a step: {"step": its name, option: value, ...}
REMEDY = "edgeq recipes prints the steps of each"


@dataclass(frozen=True, slots=True)
class RecipeFile:
    """A recipe in TOML; its name is the file's where it says none."""

    steps: tuple[dict[str, Any], ...]
    name: str = ""
    summary: str = ""
    source: str = ""


def written(recipe: Recipe) -> tuple[Written, ...]:
    """A recipe's steps as plain data, every option told."""
    return tuple({"step": name_of(step), **_options(step)} for step in recipe.steps)


def _options(step: Any) -> dict[str, Any]:
    given = dataclasses.asdict(step)
    return {key: list(value) if isinstance(value, tuple) else value for key, value in given.items()}


def recipe_of(name: str, steps: Sequence[Written], where: str) -> Recipe:
    """The recipe of these steps; `where` says where they were read.

    Raises:
        EdgeqError: a step or an option that there is none of.
    """
    made = tuple(_step(each, f"{where}, step {number}") for number, each in enumerate(steps, start=1))
    if not made:
        raise EdgeqError(f"{where}: a recipe has at least one step; {REMEDY}")
    base = RECIPES.get(name.partition(", ")[0])
    if base is None:
        return Recipe(name, "", "", made)
    if base.steps == made:
        return base
    return Recipe(", ".join([base.name, *_differences(base, made)]), base.summary, base.source, made)


def _differences(base: Recipe, steps: Sequence[Step]) -> list[str]:
    """What is set otherwise than in `base`, as `--set` would; a word where its steps are others."""
    if [type(step) for step in steps] != [type(step) for step in base.steps]:
        return ["changed"]
    pairs = [(name_of(old), _options(old), _options(new)) for old, new in zip(base.steps, steps, strict=True)]
    return [
        f"{step}.{key}={','.join(map(str, value)) if isinstance(value, list) else value}"
        for step, before, after in pairs
        for key, value in after.items()
        if before[key] != value
    ]


def _step(given: Written, where: str) -> Step:
    name = given.get("step")
    if not isinstance(name, str):
        raise EdgeqError(f'{where}: has no name: write step = "ranges" or another; {REMEDY}')
    options = {key: value for key, value in given.items() if key != "step"}
    try:
        return fit(options, kind(name), f"{where} ({name})", REMEDY)
    except EdgeqError as error:
        raise EdgeqError(str(error) if str(error).startswith(where) else f"{where}: {error}") from None


def chosen(recipe: str | Path | Recipe) -> Recipe:
    """A recipe by its name, out of a .toml file, or as it is.

    Raises:
        EdgeqError: there is no such recipe or file, or it says something that no recipe does.
    """
    if isinstance(recipe, Recipe):
        return recipe
    path = Path(recipe)
    return read(path) if path.suffix == ".toml" else by_name(str(recipe))


def read(path: Path) -> Recipe:
    """The recipe in a TOML file, as `edgeq recipes NAME` prints one.

    Raises:
        EdgeqError: there is no such file, it is no TOML, or no recipe.
    """
    try:
        if path.stat().st_size > LARGEST:
            raise EdgeqError(f"{path}: is larger than any recipe")
        found = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise EdgeqError(f"{path}: no recipe can be read there ({error.strerror})") from error
    except (ValueError, RecursionError) as error:  # no TOML, or no UTF-8
        raise EdgeqError(f"{path}: not valid TOML ({error}); {REMEDY}") from error
    file = fit(found, RecipeFile, path, REMEDY)
    made = recipe_of(file.name or path.stem, file.steps, str(path))
    return dataclasses.replace(made, summary=file.summary or made.summary, source=file.source or made.source)


def planned(plan: QuantPlan, where: str) -> Recipe:
    """The recipe that a plan holds, or names.

    Raises:
        EdgeqError: as `recipe_of` and `chosen`.
    """
    return recipe_of(plan.recipe, plan.steps, where) if plan.steps else by_name(plan.recipe)


def changed(recipe: Recipe, settings: Sequence[str]) -> Recipe:
    """`recipe` with options set, each as `round.solver=gptq`; its name tells them.

    Raises:
        EdgeqError: it has no such step, the step no such option, or the option no such value.
    """
    steps = list(written(recipe))
    for setting in settings:
        name, equals, text = setting.partition("=")
        step, dot, option = name.strip().partition(".")
        if not (equals and dot and option):
            raise EdgeqError(f"--set {setting}: write it as STEP.OPTION=VALUE, for one round.solver=gptq")
        places = [index for index, each in enumerate(steps) if each["step"] == step]
        if not places:
            has = ", ".join(dict.fromkeys(each["step"] for each in steps))
            raise EdgeqError(f"--set {setting}: recipe {recipe.name!r} has no step {step!r}; it has {has}")
        for index in places:
            if option not in steps[index] or option == "step":
                options = ", ".join(key for key in steps[index] if key != "step") or "none"
                raise EdgeqError(f"--set {setting}: step {step!r} has no option {option!r}; it has {options}")
            steps[index] = {**steps[index], option: _value(text.strip(), steps[index][option])}
    return recipe_of(recipe.name, steps, "--set " + " --set ".join(settings)) if settings else recipe


DATA_SET: Final = "data."  # before an option of a data source


def sourced(name: str, options: Written, settings: Sequence[str], where: str) -> Source:
    """The data source of this name with these options; settings: more of them, each as `data.seed=3`.

    Raises:
        EdgeqError: there is no such source, or it has no such option or value.
    """
    kind = sources.kind(name)
    given = {f.name: f.default for f in dataclasses.fields(kind)} | dict(options)
    for setting in settings:
        option, equals, text = setting.removeprefix(DATA_SET).partition("=")
        if not equals or option not in given:
            raise EdgeqError(f"--set {setting}: data source {name!r} has {', '.join(given)}; write it as data.seed=1")
        given[option] = _value(text.strip(), given[option])
    made: Source = fit(given, kind, f"{where} ({name})", "see edgeq quantize --help")
    return made


def told(source: Source) -> dict[str, Any]:
    """A data source as plain data: its name, and every option."""
    return {"source": sources.name_of(source), **_options(source)}


def _value(text: str, old: Any) -> Any:
    """What `text` means for an option that was `old`: as TOML writes it, or a bare word or words with commas."""
    if isinstance(old, str):
        return text.strip("\"'")
    if isinstance(old, list):
        return [part.strip(" \"'") for part in text.strip("[]()").split(",")]
    try:
        return {"true": True, "false": False}[text.lower()] if isinstance(old, bool) else ast.literal_eval(text)
    except (ValueError, SyntaxError, KeyError, RecursionError, MemoryError):
        return text  # of a wrong type, which is told where the option is checked


def toml(recipe: Recipe) -> str:
    """The recipe as a TOML file, to change and to give back as `--recipe FILE.toml`."""
    lines = [f"{key} = {json.dumps(getattr(recipe, key), ensure_ascii=False)}" for key in ("name", "summary", "source")]
    for step in written(recipe):
        lines += ["", "[[steps]]", *(f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in step.items())]
    return "\n".join(lines) + "\n"


def cost(recipe: Recipe) -> str:
    """What a recipe costs, in words."""
    if any(isinstance(step, Reconstruct) for step in recipe.steps):
        return "passes over the data, the layers one by one, then gradient steps through the network"
    if learns(recipe):
        return "a pass over the data, then the layers one by one on sums over it"
    return f"{_passes(recipe)} over the data"


def _passes(recipe: Recipe) -> str:
    count = sum(name_of(step) in ("ranges", "equalise", "search", "correct") for step in recipe.steps)
    return {1: "one pass", 2: "two passes", 3: "three passes"}.get(count, f"{count} passes")


def described(recipe: Recipe) -> dict[str, Any]:
    """A recipe as plain data: what it does, needs and costs, and its steps."""
    return {
        "summary": recipe.summary,
        "source": recipe.source,
        "needs": _asked(recipe),
        "cost": cost(recipe),
        "steps": [dict(step) for step in written(recipe)],
    }


def _asked(recipe: Recipe) -> list[str]:
    """What a recipe asks of the task: its data, then whatever functions."""
    found = needs(recipe)
    data = [DATA] if DATA in found else [SEEN] if SEEN in found else []
    return data + sorted(found - {DATA, SEEN, NEIGHBOURS})
