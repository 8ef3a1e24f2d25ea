from __future__ import annotations

import hashlib
import io
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from leanlabel.data import catalogue as catalogue_module
from leanlabel.data.catalogue import Entry, Remote, find_entry
from smallrun import arrays, cli, file_options


@pytest.fixture(autouse=True)
def _place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("LEANLABEL_DATA", raising=False)
    monkeypatch.chdir(tmp_path)


def packed(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, allow_pickle=True, **arrays())
    return path


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Entry:
    """A set of one published file, whose packed form lies in ./mirror, in place of amazon-photo."""
    content = packed(tmp_path / "mirror" / "graphs" / "amazon_photo.npz").read_bytes()
    entry = replace(
        find_entry("amazon-photo"),
        files=(Remote("Amazon/Photo/raw/tiny.npz", "https://127.0.0.1:1/tiny.npz", len(content)),),
        packed=Remote("graphs/amazon_photo.npz", "", len(content), hashlib.sha256(content).hexdigest()),
    )
    others = tuple(one for one in catalogue_module.CATALOGUE if one.name != entry.name)
    monkeypatch.setattr(catalogue_module, "CATALOGUE", (entry, *others))
    return entry


def test_values_list() -> None:
    answer = cli("data", "get")
    assert answer.code == 0
    assert cli("data", "list").out == answer.out
    for word in ("cora", "wikics", "17.1 MB", "terms of the data itself not stated", "data folder data"):
        assert word in answer.out
    rows = json.loads(cli("data", "get", "--json").out)
    assert [row["name"] for row in rows][:3] == ["cora", "citeseer", "pubmed"]
    assert all(
        {"terms", "bytes", "kind", "citation", "data_path", "files", "here"} <= row.keys() for row in rows
    )
    assert not any(row["here"] for row in rows)


def test_values_get(tiny: Entry, tmp_path: Path) -> None:
    """Terms and source come first; the second call does nothing; the recipe's path then works."""
    answer = cli("data", "get", "amazon-photo", "--mirror", "mirror", "--yes")
    assert answer.code == 0, answer.err
    assert answer.out.index(tiny.terms) < answer.out.index("copied")
    assert "from        mirror" in answer.out
    assert "data.path   graphs/amazon_photo.npz" in answer.out
    again = cli("data", "get", "amazon-photo")
    assert again.code == 0, again.err
    assert "is here already; nothing was done" in again.out
    assert "terms" not in again.out
    assert [row["here"] for row in json.loads(cli("data", "list", "--json").out)].count(True) == 1
    found = json.loads(cli("data", "check", "gca/amazon-photo", "--json").out)
    assert {"severity": "info", "code": "nodes", "message": "60 nodes", "count": 60} in found
    short = file_options(steps=1, evaluation__probe_epochs=1, model__projection=16)
    run = cli("fit", "gca/amazon-photo", "--run", "run", *short)
    assert run.code == 0, run.err
    record = json.loads((tmp_path / "data" / "checksums.json").read_text(encoding="utf-8"))
    assert list(record) == ["graphs/amazon_photo.npz"]


def test_values_json(tiny: Entry, tmp_path: Path) -> None:
    answer = cli("data", "get", "amazon-photo", "--mirror", "mirror", "--to", "there", "--yes", "--json")
    assert answer.code == 0, answer.err
    found = json.loads(answer.out)
    assert tiny.packed is not None
    assert found["files"] == [
        {
            "path": str(Path("there/graphs/amazon_photo.npz")),
            "state": "copied",
            "sha256": tiny.packed.sha256,
            "verified": "catalogue",
        }
    ]
    assert found["data_path"] == "graphs/amazon_photo.npz"
    assert tiny.terms in answer.err


def test_values_folder(tiny: Entry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEANLABEL_DATA", str(tmp_path / "root"))
    assert cli("data", "get", "amazon-photo", "--mirror", "mirror", "--yes").code == 0
    assert (tmp_path / "root" / "graphs" / "amazon_photo.npz").is_file()
    assert not (tmp_path / "data").exists()


class Person(io.StringIO):
    """Somebody at a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("word", "code"), [("y\n", 0), ("\n", 0), ("n\n", 2)])
def test_values_question(
    tiny: Entry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, word: str, code: int
) -> None:
    monkeypatch.setattr(sys, "stdin", Person(word))
    answer = cli("data", "get", "amazon-photo", "--mirror", "mirror")
    assert answer.code == code
    assert "Get it?" in answer.out + answer.err
    assert (tmp_path / "data").exists() == (code == 0)


def test_errors(tiny: Entry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def complains(code: int, *arguments: Any) -> str:
        answer = cli("data", "get", *arguments)
        assert answer.code == code
        return answer.err

    assert "Did you mean 'amazon-photo'" in complains(2, "amazon-photos", "--yes")
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    err = complains(2, "amazon-photo", "--mirror", "mirror")
    assert "nobody is here to agree" in err
    assert "--yes" in err
    assert "is no folder" in complains(2, "amazon-photo", "--yes", "--mirror", "nowhere")
    assert "larger than 9 bytes" in complains(
        2, "amazon-photo", "--yes", "--mirror", "mirror", "--max-bytes", 9
    )
    (tmp_path / "mirror" / "graphs" / "amazon_photo.npz").write_bytes(b"other")
    assert "expected" in complains(2, "amazon-photo", "--yes", "--mirror", "mirror")
    assert not (tmp_path / "data" / "graphs" / "amazon_photo.npz").exists()
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr("leanlabel.data.download.time.sleep", lambda _: None)
    assert "not downloaded after 3 attempts" in complains(1, "amazon-photo", "--yes")


def test_errors_missing_data() -> None:
    """What is not here says how to get it."""
    for words in (
        ("data", "check", "pyg:Planetoid/Cora"),
        ("data", "check", "gca/cora"),
        ("fit", "gca/cora"),
    ):
        answer = cli(*words)
        assert answer.code == 2
        assert "leanlabel data get cora" in answer.err


def test_values_check_by_name(tmp_path: Path) -> None:
    """`data check pyg:NAME` reads a set as a recipe with that path would; findings go to the page too."""
    packed(tmp_path / "data" / "graphs" / "cora.npz")
    answer = cli("data", "check", "pyg:Cora", "--html", "page.html")
    assert answer.code == 0, answer.err
    assert "60 nodes" in answer.out
    assert "Data check of pyg:Cora" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_values_check_leaks_on_page(tmp_path: Path) -> None:
    content = arrays() | {"train_idx": np.array([0, 1, 2]), "test_idx": np.array([3, 4])}
    content["x"][3] = content["x"][0]
    np.savez(tmp_path / "g.npz", allow_pickle=True, **content)
    answer = cli("data", "check", "g.npz", "--html", "page.html")
    assert "leak_features" in answer.out
    assert "have exactly the features of a node of train" in (tmp_path / "page.html").read_text(
        encoding="utf-8"
    )
