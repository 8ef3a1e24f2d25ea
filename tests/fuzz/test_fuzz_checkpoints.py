"""Checkpoints, weights, splits of a run, whatever is in them: a whole state, or one error that names the file."""

from __future__ import annotations

import io
import json
import math
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from corrupt import CHANGES, MANY, QUICK, Reader, attempt, damaged, hold, tree
from hypothesis import strategies as st
from lying import ARRAYS, Member, Payload, archive, archives
from test_fuzz_graphs import TOKENS
from torch import nn

from leanlabel.data.rows import write_rows
from leanlabel.data.splits import PARTS, Split, load_splits, save_splits
from leanlabel.engine import checkpoint
from leanlabel.engine.checkpoint import Checkpoint

pytestmark = pytest.mark.slow

SOUND: dict[str, Any] = {
    "format": 1,
    "t": 4,
    "method": {"weight": torch.arange(6.0).reshape(2, 3), "count": torch.tensor(3)},
    "optimisers": {
        "main": {"state": {0: {"step": torch.tensor(4.0)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}
    },
    "best": {"score": 0.5, "t": 2.0},
    "scaler": {},
}


def packed(content: Any, **options: Any) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, **options)
    return file.getvalue()


def sound(found: Checkpoint) -> None:
    """What the type promises."""
    assert type(found.t) is int
    assert found.t >= 0
    for name, value in found.method.items():
        assert isinstance(name, str)
        assert isinstance(value, torch.Tensor)
        assert value.device.type == "cpu"
        value.clone()  # there is a value behind every number
    assert all(isinstance(name, str) and isinstance(state, dict) for name, state in found.optimisers.items())
    assert found.best is None or isinstance(found.best["score"], (int, float))
    assert isinstance(found.scaler, dict)


def checkpoints(folder: Path) -> tuple[Callable[[Any], None], st.SearchStrategy[Any]]:
    """Damaged bytes, a member exchanged with its checksum right, other contents, code."""
    path, marker = folder / "t=00000004.ckpt", folder / "escaped"
    whole = packed(SOUND)
    with zipfile.ZipFile(io.BytesIO(whole)) as file:
        members = [Member(info.filename, file.read(info), zipfile.ZIP_STORED) for info in file.infolist()]
    linear = nn.Linear(3, 2)  # a whole module: its class is code

    def repacked(index: int, changes: list[Any], checksum: bool) -> bytes:
        changed = list(members)
        old = changed[index % len(changed)]
        changed[index % len(changed)] = Member(
            old.name, damaged(old.content, changes), zipfile.ZIP_STORED, checksum
        )
        return archive(changed)

    odd = (
        None, True, -1, 0, 2**70, 1.5, float("nan"), "4", b"4", [], {}, (1,), {"a": 1}, {1: torch.zeros(1)},
        {"a": {}}, {"score": 1}, {"a": torch.zeros(0)}, torch.tensor(3), torch.zeros(2, 2),
        torch.zeros(1).expand(10**6), torch.Size([1]), torch.float32, {"w": torch.zeros(3).to_sparse()},
        {"w": torch.zeros(2, dtype=torch.complex64)}, {"w": torch.empty(2, device="meta")},
        {"w": nn.Parameter(torch.zeros(2))}, {"w": torch.zeros(2, dtype=torch.bfloat16)},
        {"w": np.float64(1.0)}, np.zeros(2), Payload(marker), {"w": Payload(marker)}, linear,
        {"weight": torch.zeros(2, 3), "bias": torch.zeros(2)},
        {"weight": torch.zeros(2, 3), "bias": torch.zeros(3)},
        {"weight": torch.zeros(2, 3).int(), "bias": torch.zeros(2)},
    )  # fmt: skip
    values = st.sampled_from(odd)
    contents = st.one_of(
        st.dictionaries(st.sampled_from([*SOUND, "more"]), values, min_size=1, max_size=3).map(
            lambda more: {**SOUND, **more}
        ),
        st.sampled_from(sorted(SOUND)).map(
            lambda gone: {key: value for key, value in SOUND.items() if key != gone}
        ),
        values,
    )
    raw = [
        pickle.dumps(SOUND["t"]),
        pickle.dumps(Payload(marker)),
        packed(SOUND, _use_new_zipfile_serialization=False),
    ]

    def check(content: bytes) -> None:
        path.write_bytes(content)
        found = attempt(lambda: checkpoint.latest(folder), path)
        if found is not None:
            sound(found)
            # Either it fits or it is refused in words; never half of it.
            fresh = nn.Linear(3, 2)
            before = checkpoint.state_of(fresh)
            if attempt(lambda: checkpoint.restore(fresh, found.method) or True, "does not fit the model"):
                before = found.method
            assert all(
                torch.equal(value, before[name].to(value)) for name, value in fresh.state_dict().items()
            )

    return check, st.one_of(
        st.builds(damaged, st.just(whole), CHANGES),
        st.builds(
            repacked, st.integers(0, len(members) - 1), CHANGES, st.sampled_from([True, True, True, False])
        ),
        contents.map(packed),
        st.builds(damaged, st.sampled_from(raw), st.one_of(st.just([]), CHANGES)),
    )


BITS = {
    "F32": 32,
    "F64": 64,
    "F16": 16,
    "BF16": 16,
    "I64": 64,
    "I8": 8,
    "U8": 8,
    "BOOL": 8,
    "U64": 64,
    "F8_E4M3": 8,
}
BITS |= {"F8_E8M0": 8, "C64": 64, "F4": 4, "F6_E2M3": 6, "U16": 16}
TYPES = (*BITS, "", "f32", None, 3)


def weights(folder: Path) -> tuple[Callable[[Any], None], st.SearchStrategy[Any]]:
    """Headers of safetensors that lie about types, shapes, places and lengths; damaged bytes; other files."""
    path = folder / "model.safetensors"
    checkpoint.save_weights(path, nn.Linear(3, 2), {"config": {"steps": 3}})
    whole = path.read_bytes()

    def fitting(kind: str, shape: list[int], noted: Any, length: int) -> bytes:
        size = BITS[kind] * math.prod(shape) // 8
        return made([("weight", kind, shape, [0, size])], noted, length, size)

    def made(tensors: list[tuple[str, Any, Any, Any]], noted: Any, length: int, body: int) -> bytes:
        header: dict[str, Any] = {
            name: {"dtype": kind, "shape": shape, "data_offsets": place}
            for name, kind, shape, place in tensors
        }
        if noted is not None:
            header["__metadata__"] = noted
        text = json.dumps(header).encode()
        return struct.pack("<Q", max(len(text) + length, 0)) + text + bytes(body)

    number = st.sampled_from(
        [0, 1, 2, 3, 4, 8, 12, 16, 24, 2**31, 2**62, 2**63 - 1, 2**64 - 1, 2**64, -1, 1.5, "2", None]
    )
    entry = st.tuples(
        st.sampled_from(["weight", "bias", "", "\0", "é", "../../escaped", "__metadata__"]),
        st.sampled_from(TYPES),
        st.one_of(st.lists(number, max_size=4), st.just([2, 2]), st.just([0, 2**40]), st.just(None)),
        st.one_of(st.lists(number, min_size=2, max_size=2), st.just([0, 16]), st.just([0, 0]), st.just([])),
    )
    notes = ("{", "[1]", "3", "[" * 9_000, "9" * 5_000, '{"a": NaN}', "\\", "null", "")
    noted = st.sampled_from([None, {}, {"a": 1}, [], "x", *({"leanlabel": note} for note in notes)])
    lengths = st.sampled_from([0, 0, 0, 0, 1, -1, 2**40, 2**63])

    def check(content: bytes) -> None:
        path.write_bytes(content)
        found = attempt(lambda: checkpoint.load_tensors(path), path)
        if found is not None:
            tensors, about = found
            assert isinstance(about, dict)
            for name, value in tensors.items():
                assert isinstance(name, str)
                value.clone()
        only = attempt(lambda: checkpoint.load_weights(path), path)
        assert (only is None) == (found is None)

    return check, st.one_of(
        st.builds(made, st.lists(entry, max_size=2), noted, lengths, st.sampled_from([0, 8, 16, 24, 100])),
        st.builds(
            fitting, st.sampled_from(list(BITS)), st.lists(st.integers(0, 4), max_size=4), noted, lengths
        ),
        st.builds(damaged, st.just(whole), CHANGES),
        st.sampled_from(
            [b"", b"\0" * 8, b"\xff" * 8, struct.pack("<Q", 2) + b"{}", packed(SOUND), b"\x01" * 4096]
        ),
    )


WRITTEN = tuple(np.dtype(kind) for kind in ("i1", "i4", "i8", "u1", "u8", "f2", "f4", "f8", "?"))


# ------------------------------------------------------------------------------------------- splits, rows


def splits(folder: Path) -> tuple[Callable[[Any], None], st.SearchStrategy[Any]]:
    """Files of splits: arrays of other types and shapes, also behind a hash that is right."""
    path = folder / "splits.npz"
    train, val, test = (torch.tensor(part) for part in ([0, 1], [2], [3, 4]))
    save_splits(
        path,
        [
            Split("random-0-0", train, val, test, seed=0, warnings=("one class is missing",)),
            Split("public", train, val, test),
        ],
    )
    with np.load(path) as file:
        arrays = {key: file[key] for key in file.files}
    whole = path.read_bytes()

    def check(content: bytes) -> None:
        path.write_bytes(content)
        for one in attempt(lambda: load_splits(path), path) or []:
            assert isinstance(one.name, str)
            assert one.seed is None or one.seed >= 0
            assert all(isinstance(text, str) for text in one.warnings)
            for part in PARTS:
                found = getattr(one, part)
                assert found.dtype == torch.int64
                assert found.ndim == 1
                assert not len(found) or int(found.min()) >= 0

    content = st.one_of(
        archives(arrays, folder / "escaped"),
        st.builds(damaged, st.just(whole), CHANGES),
        st.builds(archive, st.just([])),
    )
    return check, content


def rows(folder: Path) -> tuple[Callable[[Any], None], st.SearchStrategy[Any]]:
    """What is written as rows reads back equal, or is refused before there is a file."""
    parquet = pytest.importorskip("pyarrow.parquet")
    names = st.one_of(
        st.none(), st.lists(st.one_of(st.sampled_from((*TOKENS, "\ud800")), st.text(max_size=4)), max_size=6)
    )

    def check(one: tuple[np.ndarray, list[str] | None, str]) -> None:
        array, ids, ending = one
        path = folder / f"rows{ending}"
        for old in folder.iterdir():
            old.unlink()
        done = attempt(lambda: write_rows(path, array, ids) or True, path)
        assert tree(folder) == ({path.name} if done else set())
        if not done:
            return
        if ending == ".npy":
            np.testing.assert_array_equal(np.load(path, allow_pickle=False), array)
            return
        table = parquet.read_table(path)
        assert table.column(0).to_pylist() == (list(range(len(array))) if ids is None else ids)
        if array.shape[1]:
            np.testing.assert_array_equal(
                np.stack([column.to_numpy() for column in table.columns[1:]], 1), array
            )

    sizes = st.tuples(st.integers(0, 6), st.integers(0, 4))
    numbers = st.builds(np.resize, ARRAYS.filter(lambda array: array.size and array.dtype in WRITTEN), sizes)

    def named(
        array: np.ndarray, ids: list[str] | None, ending: str
    ) -> tuple[np.ndarray, list[str] | None, str]:
        return (
            array,
            None if ids is None else (ids + [str(i) for i in range(len(array))])[: len(array)],
            ending,
        )

    return check, st.builds(named, numbers, names, st.sampled_from([".npy", ".parquet", ".txt", ""]))


# ------------------------------------------------------------------------------------------------ the tests

READERS = (checkpoints, weights, splits, rows)


@pytest.mark.parametrize("reader", READERS)
def test_errors_any_input(reader: Reader, tmp_path: Path) -> None:
    assert hold(reader, tmp_path, QUICK) >= QUICK


@pytest.mark.slow
def test_errors_many_inputs(tmp_path: Path) -> None:
    share = -(-MANY["checkpoints"] // len(READERS))
    seen = sum(hold(reader, tmp_path / reader.__name__, share) for reader in READERS)
    assert seen >= MANY["checkpoints"]
