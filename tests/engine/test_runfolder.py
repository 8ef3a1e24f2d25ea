"""Files of a run: whole or not at all, lines that can be cut back, folders that are named."""

from __future__ import annotations

import getpass
import json
import os
import socket
from datetime import datetime
from pathlib import Path

import pytest

from leanlabel.engine import runfolder
from leanlabel.engine.runfolder import (
    JsonLines,
    RunFolder,
    default_run,
    environment,
    read_json,
    read_lines,
    write_atomic,
    write_json,
    write_text,
)
from leanlabel.errors import InputError, RunError


def listing(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_values_write(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "er" / "text.txt"
    write_text(path, "für\n")
    assert path.read_bytes() == "für\n".encode()
    write_json(path, {"b": 1, "a": "ü"})
    assert path.read_text(encoding="utf-8") == '{\n  "b": 1,\n  "a": "ü"\n}\n'
    assert read_json(path) == {"b": 1, "a": "ü"}
    assert read_json(tmp_path / "none", []) == []
    assert listing(path.parent) == ["text.txt"]


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (OSError(28, "No space left on device"), RunError),
        (RuntimeError("[enforce fail at inline_container.cc:1] . PytorchStreamWriter failed"), RunError),
        (ValueError("a bug"), ValueError),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ],
)
def test_errors_write(tmp_path: Path, error: BaseException, raised: type[BaseException]) -> None:
    """Whatever happens while writing, the earlier file is untouched and nothing half is left."""
    path = tmp_path / "file"
    path.write_text("before")

    def fails(temporary: Path) -> None:
        temporary.write_text("half")
        raise error

    with pytest.raises(raised) as caught:
        write_atomic(path, fails)
    if raised is RunError:
        assert str(path) in str(caught.value)
    assert path.read_text() == "before"
    assert listing(tmp_path) == ["file"]


def test_errors_write_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("before")
    with pytest.raises(RunError, match="could not be written"):
        write_text(tmp_path / "file" / "below", "text")
    assert (tmp_path / "file").read_text() == "before"


def test_errors_read(tmp_path: Path) -> None:
    for content in (b"{", b"\xff", b""):
        (tmp_path / "bad.json").write_bytes(content)
        with pytest.raises(InputError, match=r"bad\.json: not readable as JSON"):
            read_json(tmp_path / "bad.json")


def lines(path: Path, count: int = 4) -> JsonLines:
    writer = JsonLines(path)
    for t in range(count):
        writer.append({"t": t, "loss": 0.5 * t})
    writer.close()
    return writer


@pytest.mark.parametrize("tail", ["", '{"t": 4, "lo', '{"t": 4}', "\0\0\0", "[1]\n", "junk\n"])
def test_values_cut(tmp_path: Path, tail: str) -> None:
    """Whole lines below the iteration stay, byte for byte; what a kill left behind goes."""
    path = tmp_path / "m.jsonl"
    lines(path)
    whole = path.read_text().splitlines(keepends=True)
    with open(path, "a") as file:
        file.write(tail)
    assert [row["t"] for row in read_lines(path)] == [0, 1, 2, 3]
    writer = JsonLines(path)
    writer.cut(3)
    assert path.read_text() == "".join(whole[:3])
    writer.append({"t": 3})
    writer.close()
    assert [row["t"] for row in read_lines(path)] == [0, 1, 2, 3]
    writer.cut(0)
    assert path.read_text() == ""


def test_degenerate_cut(tmp_path: Path) -> None:
    JsonLines(tmp_path / "none").cut(3)
    assert listing(tmp_path) == []
    assert read_lines(tmp_path / "none") == []


def test_values_append_after_half_a_line(tmp_path: Path) -> None:
    """A line is never glued to one that a kill cut off: what follows would be lost with it."""
    path = tmp_path / "r.jsonl"
    lines(path, 2)
    for keep in (10, 0):
        content = path.read_text().splitlines(keepends=True)
        path.write_text("".join(content[:1]) + content[1][:keep])
        writer = JsonLines(path)
        writer.append({"t": 9})
        writer.append({"t": 10})
        writer.close()
        assert [row["t"] for row in read_lines(path)] == [0, 9, 10]


def test_values_append_is_seen_at_once(tmp_path: Path) -> None:
    writer = JsonLines(tmp_path / "m.jsonl")
    writer.append({"t": 0})
    assert read_lines(tmp_path / "m.jsonl") == [{"t": 0}]
    writer.close()
    writer.close()


def test_errors_append(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="could not be written"):
        JsonLines(tmp_path / "file" / "m.jsonl").append({"t": 0})


def test_errors_existing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such run folder"):
        RunFolder.existing(tmp_path / "none")
    with pytest.raises(InputError, match=r"not a run folder, it has no config\.yaml"):
        RunFolder.existing(tmp_path)
    (tmp_path / "config.yaml").write_text("steps: 1\n")
    assert RunFolder.existing(tmp_path).exists()
    assert not RunFolder(tmp_path / "none").exists()


def test_values_default_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two runs within one second have two folders."""

    class Frozen(datetime):
        @classmethod
        def now(cls, tz: object = None) -> datetime:
            return datetime(2024, 5, 6, 7, 8, 9)

    monkeypatch.setattr(runfolder, "datetime", Frozen)
    first = default_run("gca/cora", tmp_path)
    assert first == tmp_path / "gca" / "cora" / "20240506-070809"
    first.mkdir(parents=True)
    assert default_run("gca/cora", tmp_path).name == "20240506-070809-2"


def test_values_environment() -> None:
    """Versions and hardware, nothing about the person or the place."""
    found = environment()
    text = json.dumps(found)
    assert found["packages"]["torch"]
    assert found["cpu_count"] == os.cpu_count()
    private = {socket.gethostname(), str(Path.home()), os.getcwd()}
    private |= {getpass.getuser()} - {"root"}
    assert not [word for word in private if len(word) > 3 and word in text]
