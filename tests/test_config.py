"""Recipes and settings: reading, merging, overriding, every mistake at once, and the way back to YAML."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Annotated, Literal

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import Discriminator, Field, Tag, ValidationError

from leanlabel.config import RunConfig, Settings, stage_config, to_yaml, validate
from leanlabel.errors import InputError
from leanlabel.recipe import Recipe, merge, override, packaged_recipes, read_recipe


class Circle(Settings):
    kind: Literal["circle"] = "circle"
    radius: float = Field(default=1.0, gt=0)


class Square(Settings):
    kind: Literal["square"] = "square"
    side: float = 1.0
    holes: int = 0


class Shapes(RunConfig):
    steps: int = Field(default=10, ge=0)
    shape: Annotated[
        Annotated[Circle, Tag("circle")] | Annotated[Square, Tag("square")], Discriminator("kind")
    ] = Circle()


def recipe(**values: object) -> Recipe:
    return Recipe("sample", values)


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def message(caught: pytest.ExceptionInfo[InputError]) -> str:
    return str(caught.value)


# ----------------------------------------------------------------------------------------------- values


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5),
        ("1E3", 1000.0),
        ("-.5", -0.5),
        ("5.", 5.0),
        (".inf", float("inf")),
        ("010", 10),
        ("0o17", 15),
        ("0x1F", 31),
        ("-3", -3),
        ("1:30", "1:30"),
        ("1_000", "1_000"),
        ("0b11", "0b11"),
        ("no", "no"),
        ("on", "on"),
        ("True", True),
        ("false", False),
        ("2020-01-31", "2020-01-31"),
        ("2020-13-45", "2020-13-45"),
        ("=", "="),
        ("", None),
        ("~", None),
        ("null", None),
        ("[1, a, 2.5]", [1, "a", 2.5]),
        ("{a: 1}", {"a": 1}),
        ("'1'", "1"),
    ],
)
def test_values_of_scalars(text: str, value: object) -> None:
    """YAML 1.2 where version 1.1 would surprise."""
    found = override(recipe(), [f"key={text}"]).values["key"]
    assert found == value
    assert type(found) is type(value)


def test_values_of_defaults() -> None:
    config = Shapes()
    assert (config.seed, config.engine.devices, config.evaluation.protocol) == (0, 1, "logistic-l2")
    assert config.optim.betas == (0.9, 0.999)
    with pytest.raises(ValidationError, match="frozen"):
        config.seed = 1  # type: ignore[misc]


def test_values_of_origins(tmp_path: Path) -> None:
    path = write(tmp_path / "r.yaml", "seed: 3\n\noptim:\n  lr: 0.1\n")
    found = override(read_recipe(path), ["optim.lr=0.2"])
    assert found.values == {"seed": 3, "optim": {"lr": 0.2}}
    assert found.origins["seed",] == f"{path}, line 1"
    assert found.origins["optim", "lr"] == "--set optim.lr=0.2"
    assert found.name == "r"


def test_merge() -> None:
    below = {"a": {"x": 1, "y": 2}, "b": [1, 2]}
    assert merge(below, {"a": {"y": 3}, "b": [9]}) == {"a": {"x": 1, "y": 3}, "b": [9]}
    assert below == {"a": {"x": 1, "y": 2}, "b": [1, 2]}
    variants = merge({"s": {"kind": "circle", "radius": 2}}, {"s": {"kind": "square"}})
    assert variants == {"s": {"kind": "square"}}  # nothing of the other variant is kept
    assert merge({"s": {"kind": "circle", "radius": 2}}, {"s": {"kind": "circle"}})["s"]["radius"] == 2


def test_base(tmp_path: Path) -> None:
    write(tmp_path / "below.yaml", "seed: 3\noptim:\n  lr: 0.1\n  clip: 2.0\n")
    above = write(tmp_path / "above.yaml", "base: below.yaml\noptim:\n  lr: 0.5\n")
    found = read_recipe(above)
    assert found.values == {"seed": 3, "optim": {"lr": 0.5, "clip": 2.0}}
    assert "below.yaml, line 4" in found.origins["optim", "clip"]
    assert "above.yaml, line 3" in found.origins["optim", "lr"]


def test_stage_config() -> None:
    config = validate(recipe(steps=5, stages={"warm": {"steps": 2, "optim": {"lr": 0.5}}}), Shapes)
    warm = stage_config(config, "warm")
    assert (warm.steps, warm.optim.lr, warm.stages) == (2, 0.5, {})
    assert stage_config(config, "other").steps == 5
    wrong = validate(recipe(stages={"warm": {"stepss": 2}}), Shapes)
    with pytest.raises(InputError, match="stepss"):
        stage_config(wrong, "warm")


def test_several_sets_of_one_section() -> None:
    found = override(recipe(shape={"kind": "circle"}), ["shape.kind=square", "shape.side=2", "shape.holes=3"])
    assert validate(found, Shapes).shape == Square(side=2.0, holes=3)


# ---------------------------------------------------------------------------------------------- errors


def test_errors_all_at_once(tmp_path: Path) -> None:
    """Every mistake in one message, each with file and line or option, key path, expectation, nearest key."""
    path = write(
        tmp_path / "bad.yaml", "steps: -1\nseed: many\noptim:\n  lrr: 0.1\n  betas: [0.9]\nshapee: {}\n"
    )
    raw = override(read_recipe(path), ["shape.kind=square", "shape.sides=3", "engine.devices=0"])
    with pytest.raises(InputError) as caught:
        validate(raw, Shapes)
    text = message(caught)
    assert text.startswith("7 mistakes in recipe bad:")
    assert f"{path}, line 1: steps: expected greater than or equal to 0, got -1." in text
    assert f"{path}, line 2: seed: expected integer, got 'many'." in text
    assert f"{path}, line 4: optim.lrr: unknown key; nearest valid key: optim.lr." in text
    assert f"{path}, line 5: optim.betas.1: missing" in text
    assert f"{path}, line 6: shapee: unknown key; nearest valid key: shape." in text
    assert "--set shape.sides=3: shape.sides: unknown key; nearest valid key: shape.side." in text
    assert "--set engine.devices=0: engine.devices: expected greater than or equal to 1, got 0." in text


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("seed=1.5", ["seed: expected", "1.5"]),
        ("seed=true", ["seed: expected integer, got True"]),
        ("seed=-1", ["seed: expected greater than or equal to 0, got -1"]),
        ("seed=9223372036854775808", ["seed: expected less than"]),
        ("optim.lr=.inf", ["optim.lr: expected finite number, got inf"]),
        ("optim.lr=.nan", ["optim.lr: expected"]),
        ("optim.betas=[0.9, 1.0]", ["optim.betas.1: expected less than 1, got 1.0"]),
        ("optim.betas=0.9", ["optim.betas: expected"]),
        ("optim.name=adma", ["optim.name: expected 'adam', 'adamw' or 'sgd', got 'adma'"]),
        ("optim=3", ["optim: expected", "got 3"]),
        ("shape=3", ["shape: expected", "got 3"]),
        (
            "shape.kind=round",
            ["--set shape.kind=round: shape.kind: expected 'circle' or 'square', got 'round'"],
        ),
        ("shape.radius=0", ["shape.radius: expected greater than 0, got 0"]),
        ("evaluation.shares=[0.1, 0.1, 0.7, 0.1]", ["evaluation.shares: expected 3 values"]),
        ("engine.loggers=[csvv]", ["engine.loggers.0: expected 'tensorboard' or 'csv', got 'csvv'"]),
    ],
)
def test_errors_of_types_and_ranges(text: str, parts: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        validate(override(recipe(shape={"kind": "circle"}), [text]), Shapes)
    for part in parts:
        assert part in message(caught)


def test_errors_of_assignments_all_at_once() -> None:
    wrong = ["seed", "=3", "a..b=1", "seed.x=1", "x=[", "x=" + "[" * 3000, "x=\x00"]
    with pytest.raises(InputError) as caught:
        override(recipe(seed=1), wrong)
    lines = message(caught).splitlines()
    assert len(lines) == len(wrong)
    assert all(line.startswith("--set ") for line in lines)
    assert "seed is a value, not a section" in message(caught)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "a recipe is a mapping"),
        ("- 1\n", "a recipe is a mapping"),
        ("seed: 1\nseed: 2\n", "line 2: the key seed appears twice (first in line 1)"),
        ("optim:\n  lr: 1\n  lr: 2\n", "line 3: the key optim.lr appears twice"),
        ("seed: 1\n  x: 2\n", "line 2: not valid YAML"),
        ("seed: [1\n", "not valid YAML"),
        ("seed: !!python/object/apply:os.system [true]\n", "line 1: not valid YAML"),
        ("a: &a\n  b: *a\n", "alias *a: write it out"),
        ("seed: " + "9" * 5000 + "\n", "not valid YAML"),
        ("a: " + "{a: " * 2000 + "1" + "}" * 2000, "not valid YAML"),
        ("? [1, 2]\n: 3\n", "not valid YAML"),
        ("base: 3\n", "base must be the name or path of a recipe, got 3"),
        ("base: no/such\n", "Unknown recipe 'no/such'"),
        ("base: bad.yaml\n", "is its own base"),
        ("base: ../{folder}/bad.yaml\n", "is its own base"),
    ],
)
def test_errors_of_files(tmp_path: Path, text: str, part: str) -> None:
    path = write(tmp_path / "bad.yaml", text.replace("{folder}", tmp_path.name))
    with pytest.raises(InputError) as caught:
        read_recipe(path)
    assert part in message(caught)
    if not part.startswith("Unknown"):
        assert "bad.yaml" in message(caught)


def test_errors_of_unreadable_files(tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes(b"about: caf\xe9\n")
    with pytest.raises(InputError, match=r"latin\.yaml: cannot be read"):
        read_recipe(tmp_path / "latin.yaml")
    (tmp_path / "folder.yaml").mkdir()
    for name in ("folder.yaml", "missing.yaml", "x" * 300 + ".yaml"):
        with pytest.raises(InputError, match="no such recipe file"):
            read_recipe(tmp_path / name)
    for name in ("a" * 300, "a\0b", "", "gca"):
        with pytest.raises(InputError, match="Unknown recipe"):
            read_recipe(name)


def test_errors_name_the_nearest_recipe() -> None:
    with pytest.raises(InputError, match="Did you mean 'gca/amazon-photo'"):
        read_recipe("gca/amazn-photo")


@pytest.mark.parametrize("value", [{(1, 2): 3}, {"x": "\ud800"}, {"x": float("inf")}])
def test_errors_of_values_that_are_not_plain(value: dict) -> None:
    with pytest.raises(InputError):
        validate(recipe(optim=value), Shapes)
    loop: list = []
    loop.append(loop)
    with pytest.raises(InputError):
        validate(recipe(seed=loop), Shapes)


# ------------------------------------------------------------------------------------------- the way back


@given(about=st.text(), lr=st.floats(1e-300, 1e300), betas=st.tuples(*[st.floats(0, 0.999)] * 2))
@example(about="no", lr=1e-5, betas=(0.9, 0.999))
@example(about="1e-5", lr=1.0, betas=(0.0, 0.0))
@example(about="010", lr=1.0, betas=(0.0, 0.0))
@example(about="- a: b #", lr=1.0, betas=(0.0, 0.0))
@example(about="\x85\u2028\ufeff", lr=1.0, betas=(0.0, 0.0))
@settings(max_examples=60)
def test_reference_yaml_round_trip(
    about: str, lr: float, betas: tuple, tmp_path_factory: pytest.TempPathFactory
) -> None:
    config = validate(
        recipe(
            about=about,
            optim={"lr": lr, "schedule": "poly", "clip": None, "betas": list(betas)},
        ),
        Shapes,
    )
    path = tmp_path_factory.getbasetemp() / "round.yaml"
    path.write_text(to_yaml(config), encoding="utf-8", newline="\n")
    assert validate(read_recipe(path), Shapes) == config


PATHS = ["seed", "steps", "optim.lr", "optim", "shape.kind", "shape", "engine.loggers", "stages.a", "about"]
SCALARS = st.one_of(
    st.text(max_size=12),
    st.sampled_from(["[", "{}", "[1,2]", "{a: 1}", "&a [*a]", "!!set {a}", "!!binary aGk=", "<<: 1", ".nan"]),
    st.integers().map(str),
    st.floats().map(str),
)


@given(
    st.lists(
        st.one_of(
            st.text(max_size=20), st.tuples(st.sampled_from(PATHS), SCALARS).map(lambda pair: "=".join(pair))
        ),
        max_size=4,
    )
)
@settings(max_examples=200)
def test_errors_of_any_assignment(assignments: list[str]) -> None:
    """Whatever is written behind --set: a configuration, or an InputError."""
    with contextlib.suppress(InputError):
        config = validate(override(recipe(shape={"kind": "circle"}), assignments), Shapes)
        assert isinstance(config, Shapes)


PLAIN = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.one_of(st.sampled_from(PATHS), st.text(max_size=5)), inner, max_size=3),
    ),
    max_leaves=8,
)


@given(
    st.one_of(
        st.text(max_size=60), PLAIN.map(yaml.safe_dump), st.tuples(st.integers(0, 700), st.integers(1, 40))
    )
)
@settings(max_examples=150)
def test_errors_of_any_recipe_file(
    tmp_path_factory: pytest.TempPathFactory, content: str | tuple[int, int]
) -> None:
    """Whatever a file holds: random text, random structures, a packaged recipe with a piece torn out."""
    if isinstance(content, str):
        text = content
    else:
        whole = packaged_recipes()["gca/generated"].read_text(encoding="utf-8")
        text = whole[: content[0]] + whole[sum(content) :]
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_bytes(text.encode())
    with contextlib.suppress(InputError):
        validate(read_recipe(path), Shapes)


def test_override_entries_of_lists() -> None:
    """An entry of a list of sections is named by its name or number; the others stay as they are."""
    terms = [{"name": "dice", "weight": 1.0}, {"name": "focal", "deep": {"x": 1, "y": 2}}]
    raw = recipe(method={"terms": terms, "plain": [1, 2]})
    found = override(raw, ["method.terms.dice.weight=0.5", "method.terms.1.deep.x=3"]).values["method"]
    assert found["terms"] == [{"name": "dice", "weight": 0.5}, {"name": "focal", "deep": {"x": 3, "y": 2}}]
    assert raw.values["method"]["terms"] == terms
    assert override(raw, ["method.terms.0={name: new}"]).values["method"]["terms"][0] == {"name": "new"}
    for text, told in {
        "method.terms.ohem.weight=1": "no entry 'ohem', but dice, focal",
        "method.terms.2.weight=1": "no entry '2'",
        "method.terms.dice.weight.x=1": "method.terms.dice.weight is a value|weight is a value",
        "method.plain.0=5": "method.plain is a value",
    }.items():
        with pytest.raises(InputError, match=told):
            override(raw, [text])
