from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from leanlabel.data.generated.graphs import planted_graph
from leanlabel.data.graphs import UNLABELLED
from leanlabel.data.splits import Split, load_splits, make_splits, random_splits, save_splits
from leanlabel.errors import InputError


def _all(split: Split) -> list[int]:
    return sorted(torch.cat([split.train, split.val, split.test]).tolist())


def test_values() -> None:
    split = random_splits(7650, seed=0)[0]
    assert [len(part) for part in (split.train, split.val, split.test)] == [765, 765, 6120]
    assert _all(split) == list(range(7650))
    assert split.train.dtype == torch.int64
    assert split.name == "random-0-0"
    # 0.3 * 10 is 2.9999999999999996 in binary.
    split = random_splits(10, shares=(0.3, 0.3, 0.4), seed=1)[0]
    assert [len(part) for part in (split.train, split.val, split.test)] == [3, 3, 4]


def test_values_public() -> None:
    graph = planted_graph(nodes=30, classes=3)
    parts = {"train": torch.tensor([0, 3]), "test": torch.tensor([1, 2, 4])}
    split = make_splits(dataclasses.replace(graph, splits=parts), "public")[0]
    assert split.name == "public"
    assert split.seed is None
    assert split.train.tolist() == [0, 3]
    assert split.val.tolist() == []
    assert split.warnings == ("2 of 3 classes have no training node: 1, 2",)


def test_values_unlabelled_nodes_are_left_out() -> None:
    graph = planted_graph(nodes=40, classes=2)
    y = graph.y.clone()
    y[::2] = UNLABELLED
    split = make_splits(dataclasses.replace(graph, y=y), shares=(0.5, 0.25, 0.25))[0]
    assert _all(split) == list(range(1, 40, 2))


@given(st.integers(10, 400), st.integers(0, 2**31), st.integers(1, 4))
def test_reference(nodes: int, seed: int, count: int) -> None:
    """A partition whatever the size; split k does not depend on how many are drawn."""
    splits = random_splits(nodes, seed=seed, count=count)
    for split in splits:
        assert _all(split) == list(range(nodes))
    again = random_splits(nodes, seed=seed, count=4)
    assert [split.sha256 for split in splits] == [split.sha256 for split in again[:count]]
    assert len({split.sha256 for split in random_splits(50, seed=seed, count=4)}) == 4


def test_reference_uniform() -> None:
    """Every node is equally often in train: 400 splits of 20 nodes, 2 of them training."""
    counts = torch.zeros(20)
    for split in random_splits(20, seed=3, count=400):
        counts[split.train] += 1
    assert float(counts.min()) > 20
    assert float(counts.max()) < 64


def test_degenerate() -> None:
    one = random_splits(2, shares=(0.5, 0.0, 0.5), seed=0)[0]
    assert len(one.val) == 0
    graph = planted_graph(nodes=60, classes=6)
    rare = graph.y.clone()
    rare[:] = 0
    rare[7] = 1
    splits = make_splits(dataclasses.replace(graph, y=rare), count=5)
    missed = [7 not in split.train.tolist() for split in splits]
    assert any(missed)
    assert [bool(split.warnings) for split in splits] == missed


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: random_splits(9, seed=0), "give 0 training and 9 test nodes"),
        (lambda: random_splits(100, shares=(0.5, 0.5, 0.1), seed=0), "sum to 1"),
        (lambda: random_splits(100, shares=(1.0, 0.0, 0.0), seed=0), "100 training and 0 test"),
        (lambda: random_splits(100, seed=0, count=0), "at least 1"),
        (lambda: make_splits(planted_graph(nodes=60), "public"), "no published train and test nodes"),
        (lambda: make_splits(planted_graph(nodes=60), "publik"), "'publik'"),  # type: ignore[arg-type]
        (lambda: make_splits(dataclasses.replace(planted_graph(nodes=60), y=None)), "no labels"),
    ],
)
def test_errors(call: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()  # type: ignore[operator]


def test_state(tmp_path: Path) -> None:
    graph = planted_graph(nodes=60, classes=6)
    public = Split("public", torch.arange(3), torch.arange(3, 6), torch.arange(6, 9), warnings=("note",))
    splits = [*make_splits(graph, seed=5, count=3), public]
    path = tmp_path / "splits.npz"
    save_splits(path, splits)
    loaded = load_splits(path)
    assert [split.sha256 for split in loaded] == [split.sha256 for split in splits]
    assert [(s.name, s.seed, s.index, s.warnings) for s in loaded] == [
        (s.name, s.seed, s.index, s.warnings) for s in splits
    ]
    assert [file.name for file in tmp_path.iterdir()] == ["splits.npz"]


def test_state_errors(tmp_path: Path) -> None:
    path = tmp_path / "splits.npz"
    with pytest.raises(InputError, match=r"cannot be read"):
        load_splits(path)
    with pytest.raises(InputError, match="cannot be written"):
        save_splits(tmp_path / "missing" / "splits.npz", random_splits(20, seed=0))
    save_splits(path, random_splits(20, seed=0))
    arrays = dict(np.load(path))
    arrays["0_train"] = arrays["0_train"][::-1]
    np.savez(path, **arrays)
    with pytest.raises(InputError, match="recorded hash"):
        load_splits(path)
    del arrays["0_val"]
    np.savez(path, **arrays)
    with pytest.raises(InputError, match="not a file of splits: '0_val'"):
        load_splits(path)
