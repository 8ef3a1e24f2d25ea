"""Graphs in the layouts of others, their pickles, and archives: a sound graph, or one error that names the file."""

from __future__ import annotations

import io
import json
import pickle
import tarfile
import zipfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from corrupt import CHANGES, MANY, QUICK, Reader, attempt, damaged, hold, tree
from hypothesis import strategies as st
from lying import ARRAYS, METHODS, Member, Payload, archive, archives, npy
from test_fuzz_graphs import EDGES, read
from test_fuzz_graphs import X as DENSE

from leanlabel.data.archives import extract

pytestmark = pytest.mark.slow

sparse = pytest.importorskip("scipy.sparse")

X = sparse.csr_matrix(DENSE)
ONE_HOT = np.array([[1, 0], [0, 1], [1, 0], [0, 1]], np.int32)


def packed(content: Any, **options: Any) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, **options)
    return file.getvalue()


def pyg(folder: Path) -> Any:
    """Files of torch_geometric: odd tensors in every place, sparse ones that contradict themselves, code."""
    path, marker = folder / "data.pt", folder / "escaped"
    graph = {
        "x": torch.from_numpy(DENSE),
        "edge_index": torch.from_numpy(EDGES),
        "y": torch.tensor([0, 1, -1, 1]),
        "train_mask": torch.tensor([True, False, False, False]),
        "num_nodes": 4,
    }

    def loose(indices: list[list[int]], shape: list[int]) -> torch.Tensor:
        with torch.sparse.check_sparse_tensor_invariants(False):
            return torch.sparse_coo_tensor(torch.tensor(indices), torch.ones(len(indices[0])), shape)

    with torch.sparse.check_sparse_tensor_invariants(False):
        csr = torch.sparse_csr_tensor(
            torch.tensor([0, 2, 9, 1, 3]), torch.tensor([0, 99, -1]), torch.ones(3), (4, 3)
        )
    odd = (
        None, 3, -1, 2**30, 2**70, "x", [], [1, 2], {}, (1, 2), torch.zeros(0), torch.zeros(4),
        torch.zeros(4, 3), torch.zeros(4, 0), torch.full((4, 3), float("nan")),
        torch.full((4, 3), 1e300, dtype=torch.float64), torch.zeros(1).expand(4, 3),
        torch.zeros(1).expand(10**9, 3), torch.zeros(2, 3, dtype=torch.long).expand(2, 3),
        torch.zeros(4, 3, dtype=torch.complex64), torch.zeros(4, 3, dtype=torch.bfloat16),
        torch.zeros(2, 2, dtype=torch.uint8), torch.tensor([[0, 9], [1, 2]]),
        torch.tensor([[0, -1], [1, 2]]), torch.tensor([[0.0, 1.5], [1, 2]]),
        torch.empty(4, 3, device="meta"), torch.from_numpy(DENSE).to_sparse(),
        torch.from_numpy(DENSE).to_sparse_csr(), loose([[0, 99], [0, 1]], [4, 3]),
        loose([[0, -1], [0, 1]], [4, 3]), loose([[0, 1], [0, 1]], [4, 2**40]),
        loose([[0, 1], [0, 1]], [2**40, 3]), csr, torch.tensor([[True, False]] * 4),
        torch.tensor([1, 0, 0, 0], dtype=torch.uint8), torch.tensor([0, 1, 2, 3]),
        torch.tensor(["0" == "1"] * 3), np.zeros((4, 3)), Payload(marker), [Payload(marker)],
        torch.nn.Linear(1, 1), torch.zeros(4, 3, dtype=torch.complex64).conj(),
        torch.ones(4, 3).to(torch.float8_e4m3fn), torch.ones(4, 3).half(),
        torch.ones(4, 3, dtype=torch.uint32), torch.zeros(3, 4, 2).to_sparse(),
        torch.zeros(4, 3).to_sparse_csc(), torch.zeros(4, 4).to_sparse_bsr((2, 2)),
        torch.nn.Parameter(torch.ones(4, 3)), torch.ones(4, 3, requires_grad=True), torch.ones(3, 4).t(),
        torch.ones(8, 6)[::2, ::2],
    )  # fmt: skip
    keys = (*graph, "val_mask", "test_idx", "adj_t", "_store", "_mapping", "x")
    contents = st.one_of(
        st.dictionaries(st.sampled_from(keys), st.sampled_from(odd), min_size=1, max_size=3).map(
            lambda more: {**graph, **more}
        ),
        st.sampled_from(odd),
        st.sampled_from(
            [
                (graph, None),
                (graph, {"x": torch.tensor([0, 4])}),
                (graph, {"x": [0, 2, 4]}),
                (graph, 3, 4),
                (None, {}),
                graph,
            ]
        ),
    )
    whole = packed(graph)
    with zipfile.ZipFile(io.BytesIO(whole)) as file:
        members = [Member(info.filename, file.read(info), zipfile.ZIP_STORED) for info in file.infolist()]

    def repacked(index: int, changes: list[Any]) -> bytes:
        old = members[index]
        new = Member(old.name, damaged(old.content, changes), zipfile.ZIP_STORED)
        return archive([*members[:index], new, *members[index + 1 :]])

    raw = (pickle.dumps(Payload(marker)), packed(graph, _use_new_zipfile_serialization=False), b"", whole)

    def check(content: bytes) -> None:
        path.write_bytes(content)
        read(path)

    return check, st.one_of(
        contents.map(packed),
        contents.map(packed),
        st.builds(repacked, st.integers(0, len(members) - 1), CHANGES),
        st.builds(damaged, st.sampled_from(raw), st.one_of(st.just([]), CHANGES)),
    )


def objects(marker: Path) -> tuple[Any, ...]:
    """What a pickle in the place of a matrix, of labels or of neighbours may hold."""
    odd_csr = X.copy()
    odd_csr.indices = np.array([0, 99, -1, 0, 1], np.int32)
    loop: list[Any] = []
    loop.append(loop)
    return (
        X, odd_csr, X.astype(np.float64), X.T.tocsr(), X.tocsc(), X.tocoo(), X[:0], X[:, :0], DENSE,
        ONE_HOT, ONE_HOT.astype(bool), ONE_HOT[:2], ONE_HOT[0], np.array(3), np.array(["a", "b"]),
        np.array([X], dtype=object), np.array(X, dtype=object), None, 3, "text", b"bytes", [], {},
        {0: [1], 1: [0]}, defaultdict(list, {0: [1, 2], 1: [0], 2: [0]}), {0: [99]}, {0: [-1]}, {0: [1.5]},
        {0: 3}, {"0": [1]}, {2**70: [1]}, {0: [2**70]}, {0: ["1"]}, {0: [True]}, {10**9: [0]}, loop,
        Payload(marker), {0: Payload(marker)}, np.array([Payload(marker)], dtype=object), set(), complex(1),
        range(3), np.float64(1), np.zeros(2, "M8[s]"), np.zeros(2, "c8"),
    )  # fmt: skip


def pickles(changed: tuple[Any, ...], *whole: bytes) -> st.SearchStrategy[bytes]:
    """Any of the objects in any protocol, and sound pickles with damage."""
    dumped = st.builds(pickle.dumps, st.sampled_from(changed), st.sampled_from([0, 1, 2, 4, 5]))
    return st.one_of(dumped, dumped, st.builds(damaged, st.sampled_from(whole), CHANGES))


def planetoid(folder: Path) -> Any:
    """Eight pickles, one of them odd, damaged or with code in it."""
    place = folder / "toy"
    place.mkdir()
    content = {
        "x": X[:1],
        "y": ONE_HOT[:1],
        "allx": X[:3],
        "ally": ONE_HOT[:3],
        "tx": X[3:],
        "ty": ONE_HOT[3:],
        "graph": defaultdict(list, {0: [1, 2], 1: [0], 2: [0], 3: [0]}),
    }
    whole = {part: pickle.dumps(value, 2) for part, value in content.items()} | {"test.index": b"3\n"}
    lines = st.sampled_from(
        [
            b"",
            b"3",
            b"2\n",
            b"3\n3\n",
            b"-1\n",
            b"x\n",
            b"9" * 5_000,
            b"999999999\n",
            b"3.0\n",
            b"\xff",
            b"4\n",
        ]
    )
    odd = pickles(objects(folder / "escaped"), *list(whole.values())[:-1])
    written: dict[str, bytes | None] = {}

    def check(one: tuple[str, bytes, str | None]) -> None:
        part, changed, missing = one
        files = {name: data for name, data in (whole | {part: changed}).items() if name != missing}
        for name in whole:
            if written.get(name) != files.get(name):
                file = place / f"ind.toy.{name}"
                file.write_bytes(files[name]) if name in files else file.unlink()
                written[name] = files.get(name)
        read(place)

    part = st.sampled_from(list(content))
    gone = st.sampled_from([None] * 9 + ["allx"])
    return check, st.one_of(
        st.tuples(part, odd, gone), st.tuples(part, odd, gone), st.tuples(st.just("test.index"), lines, gone)
    )


def benchmarks(folder: Path) -> Any:
    """The .npz of gnn-benchmark, with any array in the place of any other, and code in the arrays left unread."""
    path = folder / "set.npz"
    adjacency = sparse.csr_matrix((np.ones(6, np.float32), tuple(EDGES)), shape=(4, 4))
    arrays = {
        **{f"adj_{key}": getattr(adjacency, key) for key in ("data", "indices", "indptr")},
        **{f"attr_{key}": getattr(X, key) for key in ("data", "indices", "indptr")},
        "adj_shape": np.array([4, 4]),
        "attr_shape": np.array([4, 3]),
        "labels": np.array([0, 1, 0, 1]),
    }

    def check(content: bytes) -> None:
        path.write_bytes(content)
        read(path)

    return check, archives(arrays, folder / "escaped", ("class_names", "idx_to_attr", "attr_matrix"))


def graph_data(folder: Path) -> Any:
    """The .npz of GraphData, whose matrices are pickles."""
    path, marker = folder / "set.npz", folder / "escaped"
    adjacency = sparse.csr_matrix((np.ones(6, np.float32), tuple(EDGES)), shape=(4, 4))
    header = npy(np.array(None, dtype=object))
    header = header[: header.index(b"\n") + 1]
    whole = {
        "adj_matrix": header + pickle.dumps(np.array(adjacency, dtype=object), 4),
        "node_attr": header + pickle.dumps(np.array(X, dtype=object), 4),
        "node_label": npy(np.array([0, 1, 0, 1])),
    }
    odd = st.one_of(
        pickles(objects(marker), pickle.dumps(adjacency), pickle.dumps(np.array(X, dtype=object))).map(
            header.__add__
        ),
        ARRAYS.map(npy),
        st.builds(damaged, st.sampled_from(list(whole.values())), CHANGES),
    )

    def check(one: tuple[dict[str, bytes], int, str | None]) -> None:
        changed, method, gone = one
        content = {key: data for key, data in {**whole, **changed}.items() if key != gone}
        path.write_bytes(archive([Member(f"{key}.npy", data, method) for key, data in content.items()]))
        read(path)

    missing = st.sampled_from([None, None, None, None, *whole])
    return check, st.tuples(
        st.dictionaries(st.sampled_from(list(whole)), odd, min_size=1, max_size=2), METHODS, missing
    )


def wikics(folder: Path) -> Any:
    """The JSON of Wiki-CS: other values anywhere, damaged text."""
    path = folder / "data.json"
    content: dict[str, Any] = {
        "features": DENSE.tolist(),
        "labels": [0, 1, 0, 1],
        "links": [[1, 2, 3], [0], [0], [0]],
        "train_masks": [[True, False, False, False]] * 2,
        "val_masks": [[False, True, False, False]] * 2,
        "test_mask": [False, False, True, True],
    }
    odd = (
        None, 3, 1e308, 10**400, "x", [], {}, [[]], [[], []], [1], [[1]], [[1], [2, 3]], [None] * 4,
        ["a"] * 4, [[99]] * 4, [[-1]] * 4, [[1.5]] * 4, [[10**30]] * 4, [10**30] * 4, [float("nan")] * 4,
        [float("inf")] * 4, [[1e308] * 3] * 4, [True] * 4, [[[1]]] * 4, [{}] * 4, [[{}]] * 4, [0.5] * 4,
        [-1] * 4, [[True] * 5] * 2, [[0, 1, 2, 3]], [2**63] * 4,
    )  # fmt: skip
    whole = json.dumps(content).encode()
    deep = [
        b"[" * 9_000,
        b'{"features":' * 5_000,
        b"9" * 5_000,
        b"\xff",
        b"",
        whole.replace(b"1.0", b"1" * 5_000),
    ]

    def check(data: bytes) -> None:
        path.write_bytes(data)
        read(path)

    keys = st.sampled_from([*content, "stopping_masks"])
    return check, st.one_of(
        st.dictionaries(keys, st.sampled_from(odd), min_size=1, max_size=2).map(
            lambda more: json.dumps({**content, **more}).encode()
        ),
        st.builds(damaged, st.just(whole), CHANGES),
        st.sampled_from(deep),
    )


NAMES = (
    "a.txt", "b/a.txt", "b/", "b", "../escaped", "../../escaped", "b/../../escaped", "/escaped",
    "//escaped", "C:/escaped", "C:escaped", "..\\escaped", "a\0b", "con", "b/nul.txt", "A.TXT", "b/.",
    "./a.txt", ".", "..", "", "b//a", "a ", "a.", "x" * 300, "é", "e\u0301", "a:b", "a?b", "\ud800",
    "b/" * 200 + "a", "-rf", "~/a",
)  # fmt: skip


def unpacking(folder: Path) -> Any:
    """Archives with names that leave, links, devices, sizes that lie, damage: all inside the folder, or nothing."""
    path, target = folder / "archive", folder / "out"

    def zipped(members: list[tuple[str, bytes, int, bool, int | None]]) -> bytes:
        return archive([Member(one[0].replace("\ud800", "?"), *one[1:]) for one in members])

    def linked(name: str, mode: int) -> bytes:
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w") as target:
            info = zipfile.ZipInfo(name.replace("\ud800", "?"))
            info.external_attr = mode << 16
            target.writestr(info, b"../escaped")
        return file.getvalue()

    def tarred(members: list[tuple[str, bytes, bytes, str]], mode: str) -> bytes:
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode=mode, format=tarfile.PAX_FORMAT) as out:  # type: ignore[call-overload]
            for name, kind, content, link in members:
                info = tarfile.TarInfo(name.replace("\ud800", "\udcff"))
                info.type, info.linkname, info.mode = kind, link, 0o4777
                info.size = len(content) if kind == tarfile.REGTYPE else 0
                out.addfile(info, io.BytesIO(content))
        return file.getvalue()

    name, data = st.sampled_from(NAMES), st.sampled_from([b"", b"text", b"\0" * 3_000])
    others = (
        tarfile.DIRTYPE,
        tarfile.SYMTYPE,
        tarfile.LNKTYPE,
        tarfile.FIFOTYPE,
        tarfile.CHRTYPE,
        b"S",
        b"Z",
    )
    kinds = [*[tarfile.REGTYPE] * 5, *others]
    sums, sizes = st.sampled_from([True, True, True, False]), st.sampled_from([None, None, None, 2**32 - 1])
    zips = st.builds(zipped, st.lists(st.tuples(name, data, METHODS, sums, sizes), max_size=4))
    places = st.sampled_from(["../../escaped", "/etc", "a.txt"])
    modes = st.sampled_from(["w", "w:gz", "w:xz", "w:bz2"])
    tars = st.builds(
        tarred, st.lists(st.tuples(name, st.sampled_from(kinds), data, places), max_size=4), modes
    )
    links = st.builds(linked, name, st.sampled_from([0o120777, 0o020666, 0o100644, 0o040755, 0o010666]))

    def check(content: bytes) -> None:
        path.write_bytes(content)
        found = attempt(lambda: extract(path, target), path)
        left = tree(folder) - {"archive"}
        if found is None:
            assert left == set(), "something was left of an archive that was refused"
            return
        assert all(
            file.is_file() and not file.is_symlink() and target in file.resolve().parents for file in found
        )
        assert all(one == "out" or one.startswith("out/") for one in left)
        for one in sorted(target.rglob("*"), reverse=True):
            one.rmdir() if one.is_dir() else one.unlink()
        target.rmdir()

    return check, st.one_of(
        zips,
        tars,
        links,
        st.builds(damaged, st.one_of(zips, tars), CHANGES),
    )


# ------------------------------------------------------------------------------------------------ the tests

READERS = (pyg, planetoid, benchmarks, graph_data, wikics, unpacking)


@pytest.mark.parametrize("reader", READERS)
def test_errors_any_input(reader: Reader, tmp_path: Path) -> None:
    assert hold(reader, tmp_path, QUICK) >= QUICK


@pytest.mark.slow
def test_errors_many_inputs(tmp_path: Path) -> None:
    share = -(-MANY["published"] // len(READERS))
    seen = sum(hold(reader, tmp_path / reader.__name__, share) for reader in READERS)
    assert seen >= MANY["published"]
