"""Tables of predictions: what is in them, that other programs read them, what is refused."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from exportsamples import NAMES, graph, model

from leanlabel.data.graphs import Graph
from leanlabel.errors import InputError
from leanlabel.export.graph_nodes import GraphNodes
from leanlabel.export.predictions import Predictions, predict_inputs, write

IDS = ["plain", "with, comma", 'with "quotes"', "two\nlines", "=1+1", "Ä", "return\rhere", " space ", "", "0"]


def sample(ids: list[str] | None = IDS) -> Predictions:
    p = torch.softmax(torch.randn(10, 3, generator=torch.Generator().manual_seed(0)), 1)
    seen = torch.zeros(10, dtype=torch.bool)
    seen[[1, 4]] = True
    return Predictions("sample", ids, NAMES, p, seen)


def rows(path: Path) -> list[list[str]]:
    with open(path, encoding="utf-8", newline="") as handle:
        return list(csv.reader(handle))


class Fixed:
    """A model that opens what it was given by name."""

    def __init__(self, graphs: dict[str, Graph] | None = None) -> None:
        made = model(data=graph())
        self.inner = GraphNodes(made.exported.config, made.exported.tensors, made.classifier, made.provenance)
        self.classifier, self.provenance = self.inner.classifier, self.inner.provenance
        self.graphs = graphs or {}

    def open(self, path: str, /) -> Graph:
        return self.graphs[Path(path).name]

    def predict(self, data: Any, /) -> torch.Tensor:
        return self.inner.predict(data)


def test_values() -> None:
    """The summary, with the entropy by hand."""
    p = torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [0.2, 0.2, 0.6]], dtype=torch.float64)
    found = Predictions("sample", None, NAMES, p, torch.tensor([True, False, False])).summary()
    assert (found["rows"], found["seen"]) == (3, 1)
    assert [one["rows"] for one in found["classes"]] == [2, 0, 1]
    assert found["mean_confidence"] == pytest.approx((1 + 0.5 + 0.6) / 3, rel=1e-10)
    entropy = (0 + math.log(2) - 0.4 * math.log(0.2) - 0.6 * math.log(0.6)) / 3
    assert found["mean_entropy"] == pytest.approx(entropy, rel=1e-10)
    assert found["largest_entropy"] == pytest.approx(math.log(3))


def test_values_of_csv(tmp_path: Path) -> None:
    """Any id comes back as it was; every number as the same float32."""
    found = sample()
    write(tmp_path, found, "csv", found.summary())
    header, *lines = rows(tmp_path / "predictions.csv")
    assert header == ["id", "class", "probability", *(f"p_{name}" for name in NAMES), "seen"]
    assert [line[0] for line in lines] == IDS
    assert [line[1] for line in lines] == [NAMES[c] for c in found.chosen]
    p = np.array([line[3:6] for line in lines], dtype=np.float32)
    np.testing.assert_array_equal(p, found.probabilities.numpy())
    np.testing.assert_array_equal(np.array([line[2] for line in lines], dtype=np.float32), p.max(1))
    assert [line[-1] for line in lines] == ["true" if k in (1, 4) else "false" for k in range(10)]
    assert json.loads((tmp_path / "predictions.json").read_text()) == found.summary()


def test_values_of_npz(tmp_path: Path) -> None:
    found = sample()
    write(tmp_path, found, "npz", {})
    with np.load(tmp_path / "predictions.npz", allow_pickle=False) as held:
        assert held["ids"].tolist() == IDS
        assert held["classes"].tolist() == list(NAMES)
        np.testing.assert_array_equal(held["probabilities"], found.probabilities.numpy())
        np.testing.assert_array_equal(held["predicted"], found.chosen.numpy())
        np.testing.assert_array_equal(held["probability"], found.probabilities.amax(1).numpy())
        assert held["seen"].nonzero()[0].tolist() == [1, 4]


def test_values_of_parquet(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    found = sample()
    write(tmp_path, found, "parquet", {})
    table = parquet.read_table(tmp_path / "predictions.parquet")
    assert table.column_names == ["id", "class", "probability", *(f"p_{name}" for name in NAMES), "seen"]
    assert table["id"].to_pylist() == IDS
    np.testing.assert_array_equal(table["p_right"].to_numpy(), found.probabilities[:, 2].numpy())
    assert table["seen"].to_pylist()[:5] == [False, True, False, False, True]


@pytest.mark.parametrize("form", ["csv", "npz", "parquet"])
def test_degenerate(form: str, tmp_path: Path) -> None:
    """No rows at all; rows without names are numbered."""
    empty = Predictions("none", None, NAMES, torch.zeros(0, 3), torch.zeros(0, dtype=torch.bool))
    assert empty.summary()["mean_confidence"] is None
    write(tmp_path / "empty", empty, form, empty.summary())
    write(tmp_path / "numbered", sample(None), form, {})
    if form == "csv":
        assert len(rows(tmp_path / "empty" / "predictions.csv")) == 1
        assert [line[0] for line in rows(tmp_path / "numbered" / "predictions.csv")[1:]] == list("0123456789")


def test_values_of_inputs(tmp_path: Path) -> None:
    """One input lies in the folder itself, several in one each; rows of the fitted graph are known again."""
    one, two = graph(), graph(30, 50, seed=2)
    fixed = Fixed({"one.npz": one, "two.csv": two})
    own = predict_inputs(fixed, [], tmp_path / "own", own=one, quiet=True)
    assert (own[0]["input"], own[0]["seen"], own[0]["model"]["recipe"]) == ("graph-20", 2, "sample")
    assert own[0]["readout"]["kind"] == "logistic-l2"
    both = predict_inputs(fixed, ["x/one.npz", "two.csv"], tmp_path / "both", quiet=True)
    assert [(found["rows"], found["seen"]) for found in both] == [(20, 2), (30, 0)]
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.*")) == [
        "both/one/predictions.csv",
        "both/one/predictions.json",
        "both/two/predictions.csv",
        "both/two/predictions.json",
        "own/predictions.csv",
        "own/predictions.json",
    ]
    assert rows(tmp_path / "own" / "predictions.csv") == rows(tmp_path / "both" / "one" / "predictions.csv")


def test_errors(tmp_path: Path) -> None:
    fixed = Fixed({"a.npz": graph(), "wide.npz": graph(features=9)})
    out = tmp_path / "out"
    with pytest.raises(InputError, match="predictions are written as csv, parquet, npz"):
        predict_inputs(fixed, ["a.npz"], out, form="xlsx", quiet=True)
    with pytest.raises(InputError, match="another input is called A, too"):
        predict_inputs(fixed, ["a.npz", "x/A.csv"], out, quiet=True)
    with pytest.raises(InputError, match="9 features per node, the model was trained on 6"):
        predict_inputs(fixed, ["a.npz", "wide.npz"], out, quiet=True)
    assert list(tmp_path.iterdir()) == []  # nothing of the first one either
    fixed.classifier = None
    with pytest.raises(InputError, match=r"cannot name classes.*leanlabel embed"):
        predict_inputs(fixed, ["a.npz"], out, quiet=True)


def test_errors_of_a_taken_folder(tmp_path: Path) -> None:
    """Not without --force; with it the table of another format goes, other files stay."""
    fixed, out = Fixed({"a.npz": graph()}), tmp_path / "out"
    predict_inputs(fixed, ["a.npz"], out, quiet=True)
    (out / "mine.txt").write_text("keep")
    before = (out / "predictions.csv").read_bytes()
    with pytest.raises(InputError, match="not empty"):
        predict_inputs(fixed, ["a.npz"], out, quiet=True)
    assert (out / "predictions.csv").read_bytes() == before
    predict_inputs(fixed, ["a.npz"], out, form="npz", force=True, quiet=True)
    assert sorted(path.name for path in out.iterdir()) == ["mine.txt", "predictions.json", "predictions.npz"]
