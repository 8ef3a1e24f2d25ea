"""Choices become a commented recipe that reads back equal, whatever names and reasons hold."""

from __future__ import annotations

import doctest
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from leanlabel.advice import recipe as advice_recipe
from leanlabel.advice.recipe import Advice, Choice, has_key, to_text
from leanlabel.config import Settings
from leanlabel.methods.gca import GCAConfig
from leanlabel.recipe import read_recipe

NASTY = [
    "plain",
    "a # b",
    "#",
    'it\'s "quoted"',
    "key: value",
    "two\nlines: 1",
    "end\r\nof line",
    "\u2028separator\u2029\x85",
    "\ufeffmark",
    "tab\there",
    "- item",
    "*alias &anchor !tag",
    "{a: 1}",
    "[1, 2]",
    "null",
    "1e-5",
    "~",
    "---",
    "%directive",
    "größe 図 🦊",
    " spaces ",
    "long words " * 20,
    "",
]


def _advice(about: str = "a graph", fact: str = "a fact", reason: str = "a reason") -> Advice:
    return Advice(
        "graph",
        (fact,),
        (
            Choice("about", about, reason),
            Choice("method.name", "gca", reason),
            Choice("augment.edge_rates", [0.1, 0.25], "r"),
            Choice("method.chunk", None, "s"),
            Choice("optim.weight_decay", 1e-5, "t"),
            Choice("data.path", about, reason),
        ),
    )


def _read(folder: Path, text: str) -> dict:
    path = folder / "recipe.yaml"
    path.write_text(text, encoding="utf-8", newline="\n")
    return read_recipe(path).values


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("advice")


def test_values() -> None:
    """Sections keep their keys together, comments stand in their column."""
    lines = to_text(_advice(), "mine.yaml").splitlines()
    assert lines[0].startswith("# Written by `leanlabel init graph`")
    assert lines[1] == "# a fact"
    assert "#   leanlabel fit mine.yaml" in lines
    assert "#   leanlabel compare mine.yaml --seeds 5" in lines
    assert lines[-10:] == [
        "about: a graph                # a reason",
        "method:                       # objective",
        "  name: gca                   # a reason",
        "  chunk: null                 # s",
        "augment:                      # views",
        "  edge_rates: [0.1, 0.25]     # r",
        "optim:                        # optimiser",
        "  weight_decay: 1e-05         # t",
        "data:                         # the graph",
        "  path: a graph               # a reason",
    ]


def test_values_long_lines() -> None:
    """Long reasons are wrapped in the column; the reason of a long value stands above it."""
    reason = "because " * 30
    lines = to_text(_advice(about="x" * 60, reason=reason), "a.yaml").splitlines()
    assert max(map(len, lines)) <= 110
    at = next(i for i, line in enumerate(lines) if line.startswith("about:"))
    assert lines[at] == f"about: {'x' * 60}"
    assert lines[at - 1].startswith("# because")
    at = next(i for i, line in enumerate(lines) if line.startswith("  name:"))
    assert lines[at + 1].startswith(" " * 30 + "# because")
    assert "because " * 29 + "because" in " ".join(line.partition("# ")[2] for line in lines[at : at + 5])


@pytest.mark.parametrize("name", NASTY)
def test_values_safe(name: str, folder: Path) -> None:
    """Names, reasons and file names cannot leave their place."""
    advice = _advice(name, name, name or "empty")
    text = to_text(advice, f"{name}.yaml")
    assert _read(folder, text) == advice.recipe.values
    keys = [line for line in text.split("\n") if line[:1].isalpha()]
    assert [line.partition(":")[0] for line in keys] == ["about", "method", "augment", "optim", "data"]


@settings(max_examples=12)
@given(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=200),
    st.text(max_size=60).filter(str.strip),
)
@example("a" * 150 + " #", "\ud800")
def test_values_safe_any(folder: Path, name: str, reason: str) -> None:
    """The same for any text; a reason may even hold halves of characters."""
    advice = _advice(name, reason, reason)
    assert _read(folder, to_text(advice, "a.yaml")) == advice.recipe.values


def test_reference() -> None:
    """The schema is asked key by key, through sections with variants."""

    class Inner(Settings):
        size: int = 1

    class Outer(BaseModel):
        batch: Inner = Inner()

    assert has_key(Outer, "batch.size")
    assert has_key(Outer, "batch")
    assert not has_key(Outer, "batch.nodes")
    assert not has_key(Outer, "batch.size.deep")
    assert has_key(GCAConfig, "data.path")
    assert has_key(GCAConfig, "data.draws")
    assert not has_key(GCAConfig, "data.nothing")
    assert doctest.testmod(advice_recipe).failed == 0


@pytest.mark.parametrize(
    ("first", "second"),
    [("seed", "seed"), ("model.width", "model.width"), ("model", "model.width"), ("model.width", "model")],
)
@pytest.mark.parametrize("value", [3, None])
def test_errors(first: str, second: str, value: int | None) -> None:
    with pytest.raises(ValueError, match="chosen twice"):
        _ = Advice("graph", (), (Choice(first, value, "a"), Choice(second, 4, "b"))).recipe
    with pytest.raises(ValueError, match="seed is chosen without a reason"):
        Choice("seed", value, " ")
