"""What must hold on every system: text with a named encoding, processes by spawn, names that Windows takes, any path.

The first half reads the source; it cannot run on another system, so it forbids what differs there.
"""

from __future__ import annotations

import ast
import functools
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import leanlabel
from leanlabel.engine import pipeline, runfolder, stop
from leanlabel.engine.checkpoint import Checkpoint, save
from leanlabel.engine.runfolder import (
    JsonLines,
    default_run,
    put_in_place,
    read_lines,
    safe_name,
    write_atomic,
    write_text,
)
from leanlabel.recipe import packaged_recipes
from smallrun import RECIPE, cli, file_options, graph_file, options

ROOT = Path(leanlabel.__file__).parent
MODE = re.compile(r"^[rwaxbt+]{1,3}$")
POSIX_MODULES = {"fcntl", "grp", "pwd", "resource", "termios", "tty", "pty", "crypt", "syslog"}
POSIX_CALLS = {
    "chown", "fork", "forkpty", "getgid", "geteuid", "getpgid", "getuid", "killpg", "mkfifo", "nice", "pread",
    "sched_getaffinity", "setsid", "statvfs", "symlink", "sync", "sysconf", "uname", "wait", "O_DIRECTORY",
}  # fmt: skip
SIGNALS = {"signal", "SIGINT", "SIGTERM", "SIG_DFL", "SIG_IGN", "getsignal", "default_int_handler", "Signals"}
"""What the module ``signal`` has on every system."""
PROCESSES = {"Process", "Pool", "ProcessPoolExecutor", "set_start_method"}


def text(node: ast.AST | None) -> str | None:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


def called(node: ast.Call) -> str:
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def without_encoding(tree: ast.AST) -> Iterator[str]:
    """Text files opened with the encoding, or the line ends, of whatever system this is."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name, keys = called(node), {key.arg: key.value for key in node.keywords}
        if (
            name in ("read_text", "write_text")
            and isinstance(node.func, ast.Attribute)
            and "encoding" not in keys
        ):
            yield f"line {node.lineno}: {name} without encoding"
        if name != "open":
            continue
        place = 0 if isinstance(node.func, ast.Attribute) else 1
        given = node.args[place] if len(node.args) > place else keys.get("mode")
        mode = text(given)
        if given is not None and (mode is None or not MODE.match(mode)):
            continue  # another open: of an archive, of a method
        mode = mode or "r"
        if "b" not in mode and "encoding" not in keys:
            yield f"line {node.lineno}: open without encoding"
        if "b" not in mode and set(mode) & set("wax+") and "newline" not in keys:
            yield f"line {node.lineno}: open for writing text without newline"


def forked(tree: ast.AST) -> Iterator[str]:
    """Processes started in another way than by spawn."""
    for node in ast.walk(tree):
        if text(node) in ("fork", "forkserver", "ddp_fork", "ddp_notebook"):
            yield f"line {getattr(node, 'lineno', 0)}: start method {text(node)}"
        if isinstance(node, ast.Attribute) and node.attr in ("fork", "forkpty"):
            yield f"line {node.lineno}: {node.attr}"
        if isinstance(node, ast.Call):
            keys = {key.arg for key in node.keywords}
            if called(node) in PROCESSES and "mp_context" not in keys:
                yield f"line {node.lineno}: {called(node)} outside a spawn context"
            if (
                called(node) == "DataLoader"
                and "num_workers" in keys
                and "multiprocessing_context" not in keys
            ):
                yield f"line {node.lineno}: DataLoader without multiprocessing_context"


def only_posix(tree: ast.AST) -> Iterator[str]:
    """Modules, calls and signals that Windows lacks, unless their absence is looked after."""
    guarded = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.Try)
        and any(
            re.search("ImportError|AttributeError", ast.unparse(one.type or one)) for one in node.handlers
        )
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in guarded:
            continue
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        found = [name for name in names if name in POSIX_MODULES]
        yield from (f"line {getattr(node, 'lineno', 0)}: import {name}" for name in found)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if node.value.id == "os" and node.attr in POSIX_CALLS:
                yield f"line {node.lineno}: os.{node.attr}"
            if node.value.id == "signal" and node.attr not in SIGNALS:
                yield f"line {node.lineno}: signal.{node.attr}"


def glued(tree: ast.AST) -> Iterator[str]:
    """Paths put together as text, and places that are not everywhere."""
    for node in ast.walk(tree):
        value = text(node) or ""
        if value.startswith(("/tmp", "/var", "/home", "/root", "/usr", "~/")) or re.match(
            r"[A-Za-z]:\\", value
        ):
            yield f"line {getattr(node, 'lineno', 0)}: {value!r}"
        if isinstance(node, ast.BinOp) and isinstance(node.left, ast.BinOp):  # a + "/" + b
            between = text(node.left.right)
            if isinstance(node.op, ast.Add) and between in ("/", "\\"):
                yield f"line {node.lineno}: a path put together with {between!r}"
        if isinstance(node, ast.Attribute) and node.attr in ("sep", "altsep", "join", "expanduser"):
            whole = ast.unparse(node)
            if whole in ("os.sep", "os.altsep", "os.path.join", "os.path.expanduser"):
                yield f"line {node.lineno}: {whole}, where pathlib would do"
        if isinstance(node, ast.Call) and called(node) == "strftime":
            form = text(node.args[0]) if node.args else None
            if form is not None and re.search(r"%[-#]", form):
                yield f"line {node.lineno}: strftime({form!r})"


CHECKS = (without_encoding, forked, only_posix, glued)


@functools.cache
def trees() -> list[tuple[str, ast.AST]]:
    """All modules of the package, parsed."""
    return [
        (path.relative_to(ROOT).as_posix(), ast.parse(path.read_text(encoding="utf-8")))
        for path in sorted(ROOT.rglob("*.py"))
    ]


@pytest.mark.parametrize("check", CHECKS)
def test_source(check: Callable[[ast.AST], Iterator[str]]) -> None:
    wrong = []
    for name, tree in trees():
        wrong += [f"{name}, {fault}" for fault in check(tree)]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("check", "code"),
    [
        (without_encoding, "open(p)"),
        (without_encoding, "open(p, 'w', encoding='utf-8')"),
        (without_encoding, "open(p, mode='a', newline='')"),
        (without_encoding, "path.open('r')"),
        (without_encoding, "path.open()"),
        (without_encoding, "path.read_text()"),
        (without_encoding, "path.write_text(t)"),
        (forked, "os.fork()"),
        (forked, "get_context('fork')"),
        (forked, "multiprocessing.Process(target=f)"),
        (forked, "DataLoader(x, num_workers=2)"),
        (only_posix, "import resource"),
        (only_posix, "from fcntl import flock"),
        (only_posix, "signal.SIGKILL"),
        (only_posix, "os.getuid()"),
        (glued, "Path('/tmp') / x"),
        (glued, "str(folder) + '/' + name"),
        (glued, "os.path.join(a, b)"),
        (glued, "now.strftime('%-d')"),
    ],
)
def test_source_faults_are_noticed(check: Callable[[ast.AST], Iterator[str]], code: str) -> None:
    assert list(check(ast.parse(code)))


def test_source_what_is_right_passes() -> None:
    code = (
        "open(p, 'rb')\nopen(p, encoding='utf-8')\npath.open('w', encoding='utf-8', newline='')\n"
        "archive.open(member)\nwrite_text(path, value)\nfolder / f'{a}/{b}'\nsignal.SIGTERM\n"
        "try:\n    import resource\nexcept ImportError:\n    pass\n"
        "DataLoader(x, num_workers=2, multiprocessing_context='spawn')\n"
    )
    assert [fault for check in CHECKS for fault in check(ast.parse(code))] == []


# ---------------------------------------------------------------------------------------------------- names


def windows_takes(name: str) -> bool:
    """Whether Windows takes a name as it is [Microsoft, Naming Files, Paths, and Namespaces]."""
    devices = {"CON", "PRN", "AUX", "NUL", "CONIN$", "CONOUT$"}
    devices |= {f"{kind}{digit}" for kind in ("COM", "LPT") for digit in "0123456789¹²³"}
    return (
        bool(name)
        and not any(char in '<>:"/\\|?*' or ord(char) < 32 for char in name)
        and name[-1] not in ". "
        and name.split(".")[0].rstrip(" ").upper() not in devices
        and len(name.encode()) <= 255
    )


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("cora-corrected", "cora-corrected"),
        ("t=00000100.ckpt", "t=00000100.ckpt"),
        ("Ä b c", "Ä b c"),
        ("tau: 0.4?", "tau- 0.4-"),
        ("mine..", "mine"),
        (" x . ", "x"),
        ("con", "_con"),
        ("Aux.yaml", "_Aux.yaml"),
        ("nul .x", "_nul .x"),
        ("console", "console"),
        ("lpt1", "_lpt1"),
        ("..", "_"),
        ("", "_"),
        ("a\x00b\nc", "a-b-c"),
        ("x" * 300, "x" * 80),
        ("\ud800", "-"),
    ],
)
def test_values_safe_name(name: str, safe: str) -> None:
    assert safe_name(name) == safe


@given(st.text(max_size=120))
@settings(max_examples=200)
def test_values_safe_names(name: str) -> None:
    found = safe_name(name)
    assert windows_takes(found)
    assert safe_name(found) == found
    if windows_takes(name) and len(name) <= 50 and name.isprintable():
        assert found == name.strip(" ")


@pytest.mark.parametrize("recipe", ["a:b", "con", "x.", "../../away", "/etc", "C:\\windows", "gca/cora", ""])
def test_values_default_run(tmp_path: Path, recipe: str) -> None:
    """Whatever the recipe is called, its runs lie below the root, in folders that every system takes."""
    found = default_run(recipe, tmp_path)
    parts = found.relative_to(tmp_path).parts
    assert all(windows_takes(part) and part not in (".", "..") for part in parts)
    assert len(parts) >= 2
    found.mkdir(parents=True)
    assert default_run(recipe, tmp_path) != found


def test_values_packaged_names() -> None:
    """Recipes, and what a run writes, have names that every system takes, and that differ by more than case."""
    for name in packaged_recipes():
        assert all(windows_takes(part) for part in name.split("/"))
        assert default_run(name).parent.as_posix() == f"runs/{name}"
    lowered = [name.lower() for name in packaged_recipes()]
    assert len(set(lowered)) == len(lowered)


# ---------------------------------------------------------------------------------------------------- files


def test_values_replacing_is_tried_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Windows refuses to replace what a virus scanner reads; a moment later it does not."""
    refusals = [PermissionError(13, "being used by another process")] * 3
    replace = os.replace

    def busy(old: Path, new: Path) -> None:
        if refusals:
            raise refusals.pop()
        replace(old, new)

    monkeypatch.setattr(runfolder.os, "replace", busy)
    monkeypatch.setattr(runfolder.time, "sleep", lambda seconds: None)
    (tmp_path / "new").write_text("x", encoding="utf-8")
    with pytest.raises(PermissionError):  # elsewhere it means what it says
        put_in_place(tmp_path / "new", tmp_path / "old")
    monkeypatch.setattr(runfolder.os, "name", "nt")
    put_in_place(tmp_path / "new", tmp_path / "old")
    assert (tmp_path / "old").read_text(encoding="utf-8") == "x"
    refusals += [PermissionError(13, "being used by another process")]
    with pytest.raises(PermissionError):
        put_in_place(tmp_path / "old", tmp_path / "again", patience=0)


@pytest.fixture
def like_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that this process holds open cannot be replaced or deleted."""

    def held(path: object) -> bool:
        return any(os.path.realpath(f"/proc/self/fd/{fd}") == os.path.realpath(str(path)) for fd in fds())

    def fds() -> list[str]:
        return os.listdir("/proc/self/fd")

    def guarded(name: str, function: Callable[..., object]) -> Callable[..., object]:
        def call(*paths: object, **options: object) -> object:
            if any(held(path) for path in paths if isinstance(path, str | os.PathLike)):
                raise PermissionError(13, f"{name}: being used by this process")
            return function(*paths, **options)

        return call

    if not Path("/proc/self/fd").is_dir():
        pytest.skip("no list of open files on this system")
    for name in ("replace", "rename", "unlink", "remove"):
        monkeypatch.setattr(os, name, guarded(name, getattr(os, name)))


def test_values_open_files_are_not_replaced(like_windows: None, tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    with open(path, "w", encoding="utf-8") as held, pytest.raises(PermissionError):
        os.replace(path, tmp_path / "x")  # the fixture sees what it must see
    assert held.closed
    rows = JsonLines(path)
    for t in range(4):
        rows.append({"t": t})
    rows.cut(2)  # without closing it first
    rows.append({"t": 2, "again": True})
    rows.close()
    assert read_lines(path) == [{"t": 0}, {"t": 1}, {"t": 2, "again": True}]
    write_text(path, "{}\n")
    for t in (1, 2, 3):
        save(tmp_path / "checkpoints", Checkpoint(t, {}, {}, None), keep_last=1, is_best=True)
    write_atomic(tmp_path / "array.npy", lambda temporary: temporary.write_bytes(b"1"))


def test_values_a_run_holds_no_file_that_it_replaces(like_windows: None, tmp_path: Path) -> None:
    """Fit, resume, evaluate and embed never replace or delete what they have open; all names are safe."""
    run = tmp_path / "run"
    every = options(engine__loggers="[tensorboard, csv]", evaluation__select="best_val", evaluation__every=2)
    answer = cli("fit", RECIPE, "--run", run, *every)
    assert answer.code == 0, answer.err
    (run / "model.safetensors").unlink()
    for verb in ("resume", "evaluate"):
        answer = cli(verb, run)
        assert answer.code == 0, answer.err
    for _ in range(2):
        answer = cli("embed", run, "--out", tmp_path / "rows.npy")
        assert answer.code == 0, answer.err
    assert [path for path in tmp_path.rglob("*") if not windows_takes(path.name)] == []
    longest = max(len(path.relative_to(tmp_path).as_posix()) for path in tmp_path.rglob("*"))
    assert longest < 130  # leaves half of what Windows has for where the runs lie


def test_values_another_drive(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """There is no relative path from one drive to another; the whole one is written down."""

    def other_drive(*_: object) -> str:
        raise ValueError("path is on mount 'D:', start on mount 'C:'")

    monkeypatch.setattr(pipeline.os.path, "relpath", other_drive)
    stage = pipeline.Stage("one", {}, lambda folder: write_text(folder / "x", "1"))
    folder, computed = pipeline.run_stage(stage, tmp_path / "stages", tmp_path / "run" / "stages")
    assert computed
    pointer = json.loads((tmp_path / "run" / "stages" / "one.json").read_text(encoding="utf-8"))
    assert Path(pointer["folder"]) == folder


# -------------------------------------------------------------------------------------------------- signals


def test_values_signals(monkeypatch: pytest.MonkeyPatch) -> None:
    """Signals that a system lacks are left out, Ctrl-Break counts, and handlers from outside Python do no harm."""
    before = signal.getsignal(signal.SIGINT)
    with stop.stop_signals() as asked:
        assert signal.getsignal(signal.SIGINT) is not before
        signal.raise_signal(signal.SIGINT)
        assert asked()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGINT) is before

    class Windows:
        SIGINT, SIGBREAK, SIG_DFL = 2, 21, 0
        now: dict[int, object] = {2: None}  # noqa: RUF012

        @classmethod
        def signal(cls, number: int, handler: object) -> object:
            assert handler is not None
            old = cls.now.get(number, "before")
            cls.now[number] = handler
            return old

    monkeypatch.setattr(stop, "signal", Windows)
    with stop.stop_signals():
        assert callable(Windows.now[2])
        assert callable(Windows.now[21])
    assert Windows.now == {2: 0, 21: "before"}


# ------------------------------------------------------------------------------------------------ end to end


def test_paths_with_spaces_and_letters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Check, fit, resume, evaluate, embed and report in a folder, on a file and with classes named in any script."""
    home = tmp_path / "Ä b c" / "数据 & 100 %"
    home.mkdir(parents=True)
    monkeypatch.chdir(home)
    monkeypatch.setenv("LEANLABEL_DATA", str(home))
    graph_file(home / "größe ß.npz", class_names=np.array(["α", "b c", "д"]))
    place = "größe ß.npz"
    assert cli("data", "check", place, "--html", "Prüfung.html").code == 0
    recipe = home / "mein Rezept.yaml"
    shown = cli("show", "gca/cora", "--data", place, *file_options(evaluation__split="random"))
    recipe.write_text(shown.out, encoding="utf-8", newline="\n")
    answer = cli("fit", recipe.name, "--json")
    assert answer.code == 0, answer.err
    run = Path(json.loads(answer.out)["run"])
    assert run.parent == Path("runs") / "mein Rezept"
    (run / "model.safetensors").unlink()
    assert cli("resume", run).code == 0
    assert cli("evaluate", run).code == 0
    assert cli("embed", run, place, "--out", "Zeilen ü.npy").code == 0
    assert np.load(home / "Zeilen ü.npy").shape[0] == 60
    assert "д" in (run / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("settings", "written"),
    [
        ({"PYTHONIOENCODING": "cp1252"}, b'"\\u6570\\u636e \\u03b1 \xe4"'),
        ({"PYTHONUTF8": "0", "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"}, '"数据 α ä"'.encode()),
    ],
)
def test_any_text_on_any_output(settings: dict[str, str], written: bytes) -> None:
    """A pipe whose encoding lacks a character gets an escape, one of no known encoding UTF-8; neither is a fault."""
    code = (
        "from leanlabel.cli import output\n"
        "output.take_any_text()\n"
        "output.as_json('\\u6570\\u636e \\u03b1 \\u00e4')\n"
        "output.table(['\\u03b1'], [['\\u6570\\ud800']])\n"
    )
    unset = {key: value for key, value in os.environ.items() if key not in ("PYTHONIOENCODING", "PYTHONUTF8")}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, env={**unset, **settings}, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == written


@pytest.mark.slow
def test_two_spawned_processes(tmp_path: Path) -> None:
    """With spawn as the start method, from a script with a space in its path: what Windows does."""
    home = tmp_path / "Ä b c"
    home.mkdir()
    script = home / "mein skript.py"
    script.write_text(
        "import multiprocessing\n"
        "import sys\n"
        "from leanlabel.cli import main\n"
        "if __name__ == '__main__':\n"
        "    multiprocessing.set_start_method('spawn', force=True)\n"
        "    main(sys.argv[1:])\n",
        encoding="utf-8",
    )
    two = options(engine__devices=2, engine__workers=1)
    done = subprocess.run(
        [sys.executable, script, "fit", RECIPE, "--run", home / "run", *two],
        capture_output=True,
        encoding="utf-8",
        timeout=300,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    rows = read_lines(home / "run" / "metrics.jsonl")
    assert [row["t"] for row in rows] == list(range(6))
