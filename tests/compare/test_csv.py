"""A comparison as CSV."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import pytest
from fakeruns import Fake

from leanlabel.compare.table import PAIR, RUN, as_csv, write_tables


def read(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))))


def test_values_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One row per run, one per pair; nothing of a dial or grid where there is none."""
    fake = Fake(monkeypatch)
    found = fake.compare(tmp_path, seeds=2, only=["gca-generated", "raw"])
    runs, pairs = read(tmp_path / "comparison.csv"), read(tmp_path / "pairs.csv")
    assert list(runs[0]) == list(RUN)
    assert [(one["arm"], one["seed"], one["role"]) for one in runs] == [
        ("gca-generated", "0", "recipe"),
        ("gca-generated", "1", "recipe"),
        ("raw", "0", "baseline"),
        ("raw", "1", "baseline"),
    ]
    assert [float(one["value"]) for one in runs] == [0.7, 0.71, 0.7, 0.71]
    assert (runs[0]["training_seconds"], runs[0]["seconds"], runs[0]["steps"]) == ("8.0", "11.0", "4")
    assert runs[0]["key"] == fake.ran[0].key
    assert list(pairs[0]) == list(PAIR)
    assert pairs[0]["sentence"] == found["pairs"][0]["sentence"]


def test_values_dial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The setting stands in its own columns."""
    Fake(monkeypatch).compare(
        tmp_path, seeds=1, only=["grace", "raw"], dial="augment.edge_rates=[0.1,0.1],[0.2,0.4]"
    )
    runs = read(tmp_path / "comparison.csv")
    assert [(one["arm"], one["dial"], one["augment.edge_rates"]) for one in runs] == [
        ("raw", "0.1", "[0.1, 0.1]"),
        ("grace", "0.1", "[0.1, 0.1]"),
        ("raw", "[0.2, 0.4]", "[0.2, 0.4]"),
        ("grace", "[0.2, 0.4]", "[0.2, 0.4]"),
    ]


def test_values_tuned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was chosen stands beside the run; what was not tuned has none."""
    Fake(monkeypatch).compare(tmp_path, seeds=1, only=["grace", "raw"], grid=["optim.lr=0.1,0.2"])
    runs = read(tmp_path / "comparison.csv")
    assert {one["arm"]: one["optim.lr"] for one in runs} == {"raw": "", "grace": "0.1"}


def test_errors_no_formula_reaches_a_spreadsheet(tmp_path: Path) -> None:
    """Names and labels come from files: text that begins like a formula is marked as text, numbers are left alone."""
    cells: list[Any] = [
        "=1+1",
        "+1",
        "-1",
        "@x",
        " =1",
        "\t=1",
        -1.5,
        -2,
        None,
        True,
        "a,b",
        'say "x"',
        [-1, 2],
    ]
    (header, line) = list(csv.reader(io.StringIO(as_csv(["=evil"] * len(cells), [cells]))))
    assert set(header) == {"'=evil"}
    assert line == [
        *(
            "'=1+1",
            "'+1",
            "'-1",
            "'@x",
            "' =1",
            "'\t=1",
            "-1.5",
            "-2",
            "",
            "true",
            "a,b",
            'say "x"',
            "[-1, 2]",
        )
    ]
    run = {"seed": 0, "value": -0.5, "seconds": 1}
    arm = {"name": "=cmd|' /C calc'!A0", "recipe": "+x", "role": "@recipe", "runs": [run]}
    write_tables(tmp_path, {"arms": [arm], "pairs": [{"arm": "-a", "against": "=b", "difference": -0.1}]})
    first = read(tmp_path / "comparison.csv")[0]
    assert (first["arm"], first["recipe"], first["role"]) == ("'=cmd|' /C calc'!A0", "'+x", "'@recipe")
    assert first["value"] == "-0.5"
    assert read(tmp_path / "pairs.csv")[0]["arm"] == "'-a"
