"""The documentation says what is true: blocks are fresh, code runs, commands and recipes exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer
import yaml

from leanlabel import api, methods
from leanlabel.methods import terms
from leanlabel.recipe import packaged_recipes

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(
    r"(?P<before>(?:^<!--[^\n]*-->\n)?)^```(?P<kind>\w+)\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL
)


def blocks(kind: str) -> list[Any]:
    """Test parameters: body, and marker comment above, of every fenced block of a kind."""
    rows = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for found in FENCE.finditer(text):
            if found["kind"] == kind:
                name = f"{page.relative_to(ROOT).as_posix()}:{text[: found.start()].count(chr(10)) + 1}"
                rows.append(pytest.param(found["body"], found["before"].strip(), id=name))
    return rows


def leaves(values: dict[str, Any], prefix: str = "") -> list[str]:
    """Key paths of a configuration."""
    found = []
    for key, value in values.items():
        found += leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else [prefix + key]
    return found


# ------------------------------------------------------------------------------------------ generated blocks


def test_generated_blocks_are_fresh(generate: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    status = generate.main(["--check"])
    assert status == 0, capsys.readouterr().out


def test_check_notices_a_stale_block(generate: ModuleType) -> None:
    text = "before\n<!-- begin: systems -->\nold\n<!-- end: systems -->\nafter\n"
    new = generate.renewed(text)
    assert new != text
    assert new.startswith("before\n")
    assert new.endswith("after\n")
    assert generate.renewed(new) == new
    with pytest.raises(KeyError, match="nothing"):
        generate.renewed("<!-- begin: nothing -->\n<!-- end: nothing -->")


def test_every_generated_block_has_a_place(generate: ModuleType) -> None:
    used = {
        name
        for page in PAGES
        for name in re.findall(r"<!-- begin: (\S+) -->", page.read_text(encoding="utf-8"))
    }
    assert used == set(generate.BLOCKS)


def test_only_existing_systems_are_said_to_work(generate: ModuleType) -> None:
    assert len(generate.SYSTEMS) == 11
    working = {key for _, key, _ in generate.SYSTEMS if key in methods.TABLE}
    assert generate.systems().count("**works**") == len(working) >= 1
    assert generate.systems().count("planned") == 11 - len(working)


def test_settings_name_every_key(generate: ModuleType) -> None:
    config = api.resolve("gca/generated").model_dump(mode="json")
    written = generate.settings.settings("gca")
    missing = [key for key in leaves(config) if f"`{key}`" not in written]
    assert missing == []
    assert "| `method.tau` | `0.4` | number, > 0 |" in written
    rows = [line for line in written.splitlines() if line.startswith("| `")]
    assert all(line.count(" | ") == 3 and not line.endswith("|  |") for line in rows)


@pytest.mark.parametrize("method", ["bgrl", "dgi", "cca-ssg", "supervised-graph"])
def test_other_settings_name_what_differs(generate: ModuleType, method: str) -> None:
    known = generate.settings.settings("gca")
    config = api.resolve(f"{method}/generated").model_dump(mode="json")
    written = generate.settings.own_settings(method)
    own = [key for key in leaves(config) if f"`{key}`" not in known]
    assert [key for key in own if f"`{key}`" not in written] == []
    assert f"| `method.name` | `{method}` |" in written
    assert "`engine.devices`" not in written
    assert ("no section `augment`" in written) == ("augment" not in config)


# ------------------------------------------------------------------------------------------------------ code


def execute(code: str, name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Run a block of code in an empty folder that has only the documentation in it; return its names."""
    (folder / "docs").symlink_to(ROOT / "docs", target_is_directory=True)
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))  # puts sys.path back after blocks that change it
    for known in (methods, terms):
        monkeypatch.setattr(known, "TABLE", dict(known.TABLE))
    names: dict[str, Any] = {"__name__": "example"}
    exec(compile(code, name, "exec"), names)
    return names


def registers(parameters: Any) -> bool:
    """Whether a block of code is the one that trains the example method; it has a test of its own."""
    return "methods.TABLE[" in parameters.values[0]


@pytest.mark.parametrize(("code", "marker"), [one for one in blocks("python") if not registers(one)])
def test_code_runs(
    code: str, marker: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    if marker.startswith("<!-- not run:"):
        compile(code, request.node.name, "exec")
        assert len(marker) > len("<!-- not run: -->") + 10, "say why it is not run"
        return
    for package in ("onnx", "onnxruntime"):
        if "onnx" in code:
            pytest.importorskip(package)
    execute(code, request.node.name, tmp_path, monkeypatch)


def test_own_term_is_short() -> None:
    source = (ROOT / "docs" / "examples" / "own_term.py").read_text(encoding="utf-8")
    assert len(source.splitlines()) <= 40


def test_own_method(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = (ROOT / "docs" / "examples" / "own_method.py").read_text(encoding="utf-8")
    assert len(source.splitlines()) < 80
    (code,) = [one.values[0] for one in blocks("python") if registers(one)]
    run = execute(code, "write-your-own.md", tmp_path, monkeypatch)["run"]
    losses = [row["loss"] for row in run.metrics]
    assert len(losses) == run.config.steps
    assert losses[-1] < losses[0] - 1
    assert set(run.results["protocols"]["logistic-l2"]["readouts"]) == {"raw", "untrained", "trained"}
    assert run.embed().shape == (1797, 64)


# -------------------------------------------------------------------------------------------------- commands


def commands(body: str) -> list[list[str]]:
    """Words of each ``leanlabel`` command of a console block; what torchrun is told is left out."""
    found = []
    for line in re.findall(r"^\$ (.*)$", body.replace("\\\n", " "), re.MULTILINE):
        words = shlex.split(line.partition(" > ")[0])
        if words[0] == "torchrun":
            assert "--" in words, "torchrun needs -- before the words of leanlabel"
            words = words[words.index("--") + 1 :]
        if words and words[0] == "leanlabel":
            found.append(words[1:])
    return found


def parse(words: list[str]) -> dict[str, Any]:
    """Parse a command as the command line does, without running it."""
    from leanlabel.cli import app

    command: Any = typer.main.get_command(app)
    while hasattr(command, "commands"):
        assert words[0] in command.commands, f"leanlabel has no verb {words[0]}"
        command, words = command.commands[words[0]], words[1:]
    return {"verb": command.name, **command.make_context(command.name, list(words)).params}


@pytest.mark.parametrize(("body", "marker"), blocks("console"))
def test_commands_parse(body: str, marker: str) -> None:
    from leanlabel.compare.jobs import lay_out
    from leanlabel.compare.request import Request, dial_points, grid_points

    for words in commands(body):
        given = parse(words)
        names = given.get("recipes") or [given["recipe"]] if {"recipe", "recipes"} & given.keys() else []
        for name in names:
            if Path(name).suffix in (".yaml", ".yml"):
                continue
            assert name in packaged_recipes()
            if marker != "<!-- wrong on purpose -->" and given["verb"] != "compare":
                api.resolve(name, given["assignments"], given.get("data") or [])
        if given["verb"] == "compare" and names and all(name in packaged_recipes() for name in names):
            asked = Request(
                names,
                seeds=given["seeds"],
                data=given["data"],
                overrides=given["assignments"],
                only=given["arms"],
                variants=given["variants"],
                grid=given["grid"],
                dial=given["dial"],
                against=given["against"],
            )
            points = grid_points(given["grid"]) if given["grid"] else []
            points = dial_points(given["dial"]) if given["dial"] else points
            assert lay_out(asked, *([points] if points else [])).jobs


def test_choices_of_options_exist() -> None:
    from leanlabel.advice import TASKS
    from leanlabel.data.catalogue import find_entry
    from leanlabel.evaluation.protocols import PROTOCOLS
    from leanlabel.export.layout import FORMATS
    from leanlabel.export.predictions import FORMATS as TABLES

    known = {
        "export": ("form", FORMATS),
        "predict": ("form", TABLES),
        "evaluate": ("protocol", (None, *PROTOCOLS)),
        "init": ("task", TASKS),
    }
    seen = set()
    for body in (one.values[0] for one in blocks("console")):
        for given in map(parse, commands(body)):
            seen.add(given["verb"])
            if given["verb"] in known:
                option, choices = known[given["verb"]]
                assert given[option] in choices, given
            if given["verb"] == "get" and given["name"] is not None:
                assert find_entry(given["name"])
    assert seen >= {
        "init",
        "fit",
        "resume",
        "compare",
        "predict",
        "export",
        "embed",
        "evaluate",
        "doctor",
        "check",
        "get",
    }


def test_a_wrong_command_is_noticed() -> None:
    with pytest.raises(AssertionError, match="no verb"):
        parse(["train", "gca/generated"])
    for words in (
        ["fit", "gca/generated", "--sets", "steps=1"],
        ["compare", "gca/generated", "--grids", "steps=1"],
        ["predict", "run", "--output", "x"],
        ["export", "run", "--formats", "onnx"],
        ["init", "graph", "g", "--into", "x"],
    ):
        with pytest.raises(Exception, match="No such option"):
            parse(words)


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for page in PAGES:
        for target in re.findall(r"(?:`|^\$ )make (\w+)", page.read_text(encoding="utf-8"), re.MULTILINE):
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"{page.name}: make {target}"


def test_named_recipes_exist() -> None:
    folders = "|".join(sorted({name.partition("/")[0] for name in packaged_recipes()}))
    for page in PAGES:
        for name in re.findall(rf"`((?:{folders})/[\w-]+)`", page.read_text(encoding="utf-8")):
            assert name in packaged_recipes(), f"{page.name}: {name}"


def test_recipe_blocks_are_yaml() -> None:
    for body in (parameters.values[0] for parameters in blocks("yaml")):
        assert isinstance(yaml.safe_load(body), dict)


def test_links_of_the_readme() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for target in re.findall(r"(?<!!)\[[^\]]+\]\(([^)#:]+)\)", text):
        assert (ROOT / target).exists(), target


def test_figures_exist() -> None:
    for page in PAGES:
        for target in re.findall(r"!\[[^\]]*\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).is_file(), f"{page.name}: {target}"


def test_every_page_is_in_the_navigation() -> None:
    nav = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for page in (ROOT / "docs").rglob("*.md"):
        assert f": {page.relative_to(ROOT / 'docs').as_posix()}\n" in nav, page
