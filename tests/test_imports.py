"""The house keeps its order: who may import whom, no cycles, and nothing heavy at the front door."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import leanlabel

ROOT = Path(leanlabel.__file__).parent
GROUND = {"errors", "recipe", "config", "rng", "dist", "sparse"}
PARTS = {"losses", "banks", "models", "augment", "data"}
# Room -> rooms it may import, the ground not counted. This is the table of the design, row by row.
ALLOWED: dict[str, set[str]] = {
    "losses": set(),
    "banks": {"losses"},
    "models": set(),
    "augment": set(),
    "data": {"augment"},
    "evaluation": PARTS,
    "engine": PARTS | {"evaluation"},
    "methods": PARTS | {"evaluation", "engine"},
    "report": PARTS | {"evaluation", "engine"},
    "export": PARTS | {"evaluation", "engine"},
    "advice": PARTS | {"evaluation", "engine", "methods"},
    "verify": PARTS | {"evaluation", "engine", "methods"},
    "api": PARTS | {"evaluation", "engine", "methods", "report", "export", "advice", "verify"},
    "compare": PARTS | {"evaluation", "engine", "methods", "report", "export", "api"},
    "cli": PARTS
    | {"evaluation", "engine", "methods", "report", "export", "advice", "verify", "api", "compare"},
    "recipes": set(),
}
FRONT = {"__init__": {"api"}, "__main__": {"cli"}}


def room(parts: tuple[str, ...]) -> str:
    return parts[0].removesuffix(".py") if parts else "__init__"


def imports(path: Path) -> list[tuple[str, bool]]:
    """Modules of the package that a file names in an import, and whether only for the type checker."""
    found: list[tuple[str, bool]] = []
    tree = ast.parse(path.read_text(encoding="utf-8"))

    def walk(node: ast.AST, typing_only: bool) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            typing_only = True
        if isinstance(node, ast.Import):
            found.extend(
                (alias.name, typing_only) for alias in node.names if alias.name.startswith("leanlabel")
            )
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            if (node.module or "").split(".")[0] == "leanlabel":
                found.extend((f"{node.module}.{alias.name}", typing_only) for alias in node.names)
        for child in ast.iter_child_nodes(node):
            walk(child, typing_only)

    walk(tree, False)
    return found


def resolved(name: str) -> str | None:
    """The module behind an imported name (which may be an attribute of a module), without the package's name."""
    parts = name.split(".")[1:]
    while parts:
        path = ROOT.joinpath(*parts)
        if path.with_suffix(".py").exists() or (path / "__init__.py").exists():
            return ".".join(parts)
        parts.pop()
    return None


def edges() -> list[tuple[Path, str, str, bool]]:
    result = []
    for path in sorted(ROOT.rglob("*.py")):
        own = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for name, typing_only in imports(path):
            target = resolved(name)
            if target is not None and target != own:
                result.append((path, own, target, typing_only))
    return result


def test_allowed_arrows() -> None:
    wrong = []
    for path, own, target, _ in edges():
        source, goal = room(tuple(own.split("."))), room(tuple(target.split(".")))
        if source == goal or goal in GROUND:
            continue
        allowed = FRONT.get(source, ALLOWED.get(source, set()))
        if goal not in allowed:
            wrong.append(f"{path.relative_to(ROOT)} imports {target}")
    assert not wrong, "\n".join(wrong)


def test_every_room_is_in_the_table() -> None:
    rooms = {path.name for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith("__")}
    assert rooms <= ALLOWED.keys()
    files = {path.stem for path in ROOT.glob("*.py")}
    assert files <= GROUND | {"api"} | FRONT.keys()


def test_no_cycles() -> None:
    """Between modules, by what is imported at run time (anywhere in the file, inside functions too)."""
    graph: dict[str, set[str]] = {}
    for _, own, target, typing_only in edges():
        if not typing_only:
            graph.setdefault(own, set()).add(target)
    state: dict[str, int] = {}

    def visit(node: str, trail: list[str]) -> None:
        state[node] = 1
        for after in sorted(graph.get(node, ())):
            assert state.get(after) != 1, " -> ".join([*trail, node, after])
            if after not in state:
                visit(after, [*trail, node])
        state[node] = 2

    for node in sorted(graph):
        if node not in state:
            visit(node, [])


def test_no_room_has_a_wrong_arrow_undetected(tmp_path: Path) -> None:
    """The walker sees what it must see."""
    sample = tmp_path / "sample.py"
    sample.write_text("def f():\n    from leanlabel.methods import gca\n", encoding="utf-8")
    assert imports(sample) == [("leanlabel.methods.gca", False)]
    assert resolved("leanlabel.methods.gca.GCA") == "methods.gca"


def test_front_door_is_light() -> None:
    """`import leanlabel` and `leanlabel --help` load neither torch nor anything that loads it."""
    code = (
        "import sys, contextlib, io, leanlabel\n"
        "first = 'torch' in sys.modules\n"
        "from leanlabel.cli import main\n"
        "with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):\n"
        "    main(['--help'])\n"
        "heavy = {'torch', 'numpy', 'sklearn', 'scipy', 'lightning_fabric', 'tensorboard'} & set(sys.modules)\n"
        "print(first, sorted(heavy))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False []"
