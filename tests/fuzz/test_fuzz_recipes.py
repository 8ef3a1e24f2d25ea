"""Whatever a recipe, a --set or a JSON file of a run holds: plain data, or one error that names its place."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from corrupt import CHANGES, MANY, QUICK, Reader, attempt, damaged, hold
from hypothesis import strategies as st

from leanlabel import methods
from leanlabel.config import to_yaml
from leanlabel.engine.runfolder import JsonCache, JsonLines, read_json, read_lines
from leanlabel.methods.resolve import resolve
from leanlabel.recipe import Recipe, dump, override, packaged_recipes, read_recipe

pytestmark = pytest.mark.slow

KEYED = ("method.name", "stages.")
"""Mistakes that are named by their key alone."""


@pytest.fixture(autouse=True)
def _known(monkeypatch: pytest.MonkeyPatch) -> None:
    """The table of methods, once: it looks through all installed packages every time."""
    known = methods.table()
    monkeypatch.setattr(methods, "table", lambda: known)


SMALL = {"method": {"name": "gca"}, "data": {"kind": "planted"}, "steps": 3, "optim": {"lr": 0.1}}


def plain(value: Any, depth: int = 0) -> bool:
    """Whether a value is made of what YAML and JSON hold, and not nested without end."""
    if depth > 60:
        return False
    if isinstance(value, dict):
        return all(plain(key, 60) and plain(inner, depth + 1) for key, inner in value.items())
    if isinstance(value, list):
        return all(plain(inner, depth + 1) for inner in value)
    return value is None or type(value) in (bool, int, float, str)


# ------------------------------------------------------------------------------------------------ texts

TOKENS = (
    "a: 1\n", "a:\n", "  b: 2\n", "- 1\n", "a", ": ", "- ", "? ", "[", "]", "{", "}", ",", "&x ", "*x",
    "<<: ", "<<: {a: 1}\n", "!!python/object/apply:os.mkdir [escaped]", "!!python/name:os.mkdir ",
    "!!set {a}", "!!binary aGk=", "!!bool x", "!!float ''", "!!timestamp x", "!!int 0b",
    "!<tag:yaml.org,2002:null> ", "!local ", "%YAML 1.1\n", "%TAG ! tag:x,1:\n", "---\n", "...\n", "|\n",
    ">-\n", '"', "'", '"\\ud800"', '"\\x00"', "\\", "\t", "\r", "\0", "\x85", "\u2028", "\ufeff", "é", "#",
    " ", "\n", "~", "null", "1e999", ".nan", "-.inf", "010", "0x1F", "0o17", "1_0", "1:30", "2001-01-01",
    "9" * 400, "9" * 5000, "yes", "=", "<", "base: ", "base: gca/generated\n", "base: any.yaml\n",
    "base: ../../escaped\n", "base: /dev/zero\n", "base: [a]\n", "base: " + "x" * 300 + "\n",
    'base: "a\\0b"\n', "steps: ", "steps: 3\n", "method: {name: gca}\n", "method:\n  name: ",
    "data:\n  kind: ", "data: {kind: [1]}\n", "data: planted\n", "stages: {a: {b: 1}}\n",
    "optim: {lr: {x: 1}}\n", "1: 2\n", "null: 3\n", "? [a]\n: 1\n", "? {a: 1}\n: 1\n", "true: 1\n",
    "1.0: 1\n", "a" * 300, "[" * 100, "- " * 100, "{a: " * 60,
)  # fmt: skip

HANGS = tuple(
    (text * 32_000)[:32_000] for text in ("[", "{", "- ", "a:\n ", "- a\n", "[1],", "{a: ", "- - a\n")
) + tuple(
    "a: " + text
    for text in (
        "[" + "1," * 16_000 + "]",
        "[" + "{b: c}," * 4_600 + "]",
        "{" + "".join(f"k{i}: 1, " for i in range(2_500)) + "}",
        "|\n" + " x\n" * 10_000,
        "x\n " * 10_000,
        "x" * 100_000,
        "[" * 3_000 + "]" * 3_000,
        "&a [" + "x," * 9_000 + "]\nb: [" + "*a," * 3_000 + "]",
        "&a [x]\n" + "".join(f"b{i}: &b{i} [*a, *a, *a]\n" for i in range(30)),
    )
)


def recipe_files(folder: Path) -> tuple[Callable[[Any], None], st.SearchStrategy[Any]]:
    """Pieces of YAML in any order, packaged recipes with damage, other encodings, another structure."""
    path = folder / "any.yaml"
    whole = [packaged.read_bytes() for packaged in packaged_recipes().values()]

    def check(content: bytes) -> None:
        path.write_bytes(content)
        recipe = attempt(lambda: read_recipe(path), path, "/dev/zero")
        if recipe is None:
            return
        assert plain(recipe.values)
        assert "base" not in recipe.values
        assert all(isinstance(part, str) for key in recipe.origins for part in key)
        config = attempt(lambda: resolve(recipe), path, "any", *KEYED)
        if config is not None:
            path.write_text(to_yaml(config), encoding="utf-8")
            assert resolve(path) == config

    text = st.lists(st.sampled_from(TOKENS), max_size=12).map("".join)
    structure = st.recursive(
        st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=6)),
        lambda inner: st.one_of(
            st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(KEYS), inner, max_size=3)
        ),
        max_leaves=6,
    )
    return check, st.one_of(
        text.map(str.encode),
        st.tuples(text, st.sampled_from(["utf-16", "latin-1", "utf-8-sig"])).map(
            lambda one: one[0].encode(one[1], "replace")
        ),
        st.builds(damaged, st.sampled_from(whole), CHANGES),
        st.builds(damaged, st.just(dump(SMALL).encode()), CHANGES),
        structure.map(
            lambda value: yaml.safe_dump({**SMALL, **value} if isinstance(value, dict) else value).encode()
        ),
    )


# ------------------------------------------------------------------------------------- settings, overrides

KEYS = (
    "steps", "seed", "method", "method.name", "data", "data.kind", "data.nodes", "data.path", "model",
    "model.width", "optim", "optim.lr", "optim.betas", "optim.betas.0", "engine", "engine.loggers",
    "evaluation.shares", "stages", "stages.a", "stages.a.b", "base", "about", "augment.edge_rates", "kind",
    "name", "", ".", "a.b.c", " steps ", "steps ", "é", "\0", "<<", "__class__", "a" + ".a" * 3_000,
    "x" * 3_000,
)  # fmt: skip
VALUES = (
    "", "1", "-1", "0", "1e5", "1e-5", "1e999", ".nan", "-.inf", "true", "null", "~", "no", "010",
    "9" * 400, "9" * 5000, "a", "a b", "[", "[]", "{}", "[1, 2]", "[1, [2]]", "{a: 1}", "{a: 1, a: 2}",
    "{kind: file}", "{kind: [1]}", "{1: 2}", "&a [*a]", "*a", "!!set {a}", "!!python/name:os.mkdir",
    "!!bool x", "<<: 1", "{<<: {a: 1}}", "a: 1", "- 1", "#", "'", '"\\ud800"', "\ud800", "\0", "\ufeff",
    "a\nb: 2", "[" * 100, "{a: " * 60, "x" * 5_000, "planted", "file", "gca", "adam", "0.5", "=", "a=b",
)  # fmt: skip


def assignments(folder: Path) -> tuple[Callable[[Any], None], st.SearchStrategy[Any]]:
    """Any text behind --set, over a recipe that is sound and one that is not."""

    def check(one: tuple[list[str], dict[str, Any]]) -> None:
        texts, values = one
        start = Recipe("mine", values, {("steps",): "mine.yaml, line 1"})
        before = json.dumps(values)
        recipe = attempt(lambda: override(start, texts), "--set")
        assert json.dumps(values) == before, "the recipe itself was changed"
        if recipe is None:
            return
        assert plain(recipe.values)
        config = attempt(lambda: resolve(recipe), "mine", "--set", *KEYED)
        if config is not None:
            (folder / "back.yaml").write_text(to_yaml(config), encoding="utf-8")
            assert resolve(folder / "back.yaml") == config

    assignment = st.one_of(
        st.tuples(st.sampled_from(KEYS), st.sampled_from(VALUES)).map("=".join),
        st.tuples(st.sampled_from(KEYS), st.sampled_from(VALUES)).map("=".join),
        st.text(max_size=12),
    )
    odd = {
        "steps": [1],
        "method": {"name": "gca"},
        "data": 3,
        "optim": {"lr": {"x": None}},
        "stages": {"a": 1},
    }
    return check, st.tuples(st.lists(assignment, max_size=4), st.sampled_from([SMALL, SMALL, SMALL, odd, {}]))


def settings_of_runs(folder: Path) -> tuple[Callable[[Any], None], st.SearchStrategy[Any]]:
    """Complete configurations with values of other types at any key: every mistake is found, none crashes."""
    whole = json.loads(json.dumps(resolve(Recipe("mine", SMALL)).model_dump(mode="json")))
    leaf = st.one_of(
        st.none(), st.booleans(), st.integers(-3, 3),
        st.sampled_from([10**400, 2**63, 1e308, float("inf"), float("nan")]), st.floats(),
        st.sampled_from(["", "file", "planted", "gca", "auto", "\ud800", "\0", "1"]), st.text(max_size=4),
    )  # fmt: skip
    value = st.recursive(
        leaf,
        lambda inner: st.one_of(
            st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(KEYS), inner, max_size=2)
        ),
        max_leaves=4,
    )

    def places(section: dict[str, Any], above: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
        found = []
        for key, inner in section.items():
            found.append((*above, key))
            found += places(inner, (*above, key)) if isinstance(inner, dict) else []
        return found

    def check(changes: list[tuple[tuple[str, ...], Any, bool]]) -> None:
        values = json.loads(json.dumps(whole))
        for place, new, gone in changes:
            section = values
            for part in place[:-1]:
                section = section.get(part) if isinstance(section, dict) else None
            if isinstance(section, dict):
                if gone:
                    section.pop(place[-1], None)
                else:
                    section[place[-1]] = new
        attempt(lambda: resolve(Recipe("mine", values)), "mine", *KEYED)

    place = st.one_of(st.sampled_from(places(whole)), st.sampled_from(KEYS).map(lambda key: (key,)))
    return check, st.lists(st.tuples(place, value, st.booleans()), min_size=1, max_size=4)


# ---------------------------------------------------------------------------------------- JSON and its lines

ROWS = (
    b'{"t": 0, "loss": 1.5}\n', b'{"t": 1, "loss": NaN}\n', b'{"t": 2}\n', b'{"t": "3"}\n',
    b'{"loss": 1}\n', b'{"t": null}\n', b'{"t": 1e999}\n', b'{"t": true}\n', b"[1]\n", b"3\n", b"null\n",
    b"{}\n", b"\n", b"\r\n", b"{", b"\0\0\n", b"\xff\n", b"\xc3", b'{"t": "\xed\xa0\x80"}\n',
    b'{"t": "\\ud800"}\n', b'{"t": ' + b"9" * 5000 + b"}\n", b"[" * 5_000 + b"\n", b'{"a":' * 5_000 + b"\n",
    b'{"t": 3, "t": 4}\n', b"\xef\xbb\xbf", b'{"t": 5}\r', "\u2028\n".encode(),
    b'{"t": 6, "x": "' + b"y" * 9_000 + b'"}\n',
)  # fmt: skip


def json_files(folder: Path) -> tuple[Callable[[Any], None], st.SearchStrategy[Any]]:
    """Metrics after any damage: whole lines come back, cutting keeps the ones below, appending starts a line."""
    path, other = folder / "m.jsonl", folder / "m.json"

    def check(one: tuple[bytes, int]) -> None:
        content, before = one
        path.write_bytes(content)
        other.write_bytes(content)
        found = attempt(lambda: [read_json(other)], other)
        cached = JsonCache(folder).get("m")
        assert cached is None or isinstance(cached, dict)
        assert found is None or plain(found[0]) or found[0] is not None
        rows = attempt(lambda: read_lines(path), path)
        assert rows is not None, "damaged lines are left out, not refused"
        assert all(isinstance(row, dict) for row in rows)
        attempt(lambda: JsonLines(path).cut(before), path)
        kept = read_lines(path)
        assert all(row["t"] < before for row in kept)
        writer = JsonLines(path)
        writer.append({"t": before})
        writer.close()
        assert read_lines(path) == [*kept, {"t": before}]

    content = st.one_of(
        st.lists(st.sampled_from(ROWS), max_size=6).map(b"".join),
        st.builds(damaged, st.just(b"".join(ROWS[:3]) * 3), CHANGES),
    )
    return check, st.tuples(content, st.integers(0, 4))


# ------------------------------------------------------------------------------------------------ the tests

READERS = (recipe_files, assignments, settings_of_runs, json_files)


@pytest.mark.parametrize("reader", READERS)
def test_errors_any_input(reader: Reader, tmp_path: Path) -> None:
    assert hold(reader, tmp_path, QUICK) >= QUICK


@pytest.mark.slow
def test_errors_many_inputs(tmp_path: Path) -> None:
    share = -(-MANY["recipes"] // len(READERS))
    seen = sum(hold(reader, tmp_path / reader.__name__, share) for reader in READERS)
    assert seen >= MANY["recipes"]


@pytest.mark.parametrize("text", HANGS, ids=range(len(HANGS)))
def test_errors_hangs(text: str, tmp_path: Path) -> None:
    """Texts that cost a parser its time: nesting, aliases, thousands of keys."""
    path = tmp_path / "long.yaml"
    path.write_text(text, encoding="utf-8")
    recipe = attempt(lambda: read_recipe(path), path)
    assert recipe is None or plain(recipe.values)
    attempt(lambda: override(Recipe("mine", {}), [f"a={text}"]), "--set")
