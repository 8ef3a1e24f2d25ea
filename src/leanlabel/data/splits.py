"""Named splits of labelled rows (nodes, images, …) into train, validation and test: drawn, published, saved."""

from __future__ import annotations

import hashlib
import os
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from leanlabel import rng
from leanlabel.data.graph_tables import read_arrays, unreadable
from leanlabel.data.graphs import UNLABELLED
from leanlabel.errors import InputError

PARTS = ("train", "val", "test")
Protocol = Literal["public", "random"]


class Labelled(typing.Protocol):
    """Anything whose rows can be split: a graph, or :class:`LabelledRows`."""

    @property
    def name(self) -> str: ...

    @property
    def y(self) -> Tensor | None: ...

    @property
    def splits(self) -> Mapping[str, Tensor]: ...

    @property
    def class_names(self) -> list[str] | None: ...


@dataclass(frozen=True, eq=False)
class LabelledRows:
    """Labels of rows without anything else.

    Args:
        name: name of the data, for people.
        y: (N,) int64, class or -100; None without labels.
        splits: published sets: "train", "val", "test" -> (n,) int64.
        class_names: C names, where there are any.
    """

    name: str
    y: Tensor | None
    splits: Mapping[str, Tensor] = field(default_factory=dict)
    class_names: list[str] | None = None


@dataclass(frozen=True, eq=False)
class Split:
    """Three disjoint sets of nodes, and where they come from.

    Args:
        name: "public", or "random-<seed>-<index>".
        train: (n,) int64, node numbers.
        val: (n,) int64; may be empty.
        test: (n,) int64.
        seed: seed of the draw; None for a published split.
        index: number of the draw within the seed.
        warnings: what a result on this split should mention, one sentence each: classes without a training
            node.
    """

    name: str
    train: Tensor
    val: Tensor
    test: Tensor
    seed: int | None = None
    index: int = 0
    warnings: tuple[str, ...] = ()

    @property
    def sha256(self) -> str:
        """Hash of the three sets, order included: 64 hexadecimal digits, the same on every platform."""
        digest = hashlib.sha256(b"split 1")
        for part in PARTS:
            nodes = getattr(self, part).numpy().astype("<i8")
            digest.update(f"|{part} {len(nodes)} ".encode() + nodes.tobytes())
        return digest.hexdigest()


def make_splits(
    data: Labelled,
    protocol: Protocol = "random",
    *,
    shares: Sequence[float] = (0.1, 0.1, 0.8),
    seed: int = 0,
    count: int = 1,
) -> list[Split]:
    """Make the splits of a protocol: the published one, or `count` random ones from one seed.

    Args:
        data: labelled at least in part; `random` divides the labelled rows only.
        protocol: "public" (from the file) or "random".
        shares: parts for train, val and test, >= 0, summing to 1.
        seed: >= 0; each split records it and its index.
        count: number of random splits.

    Raises:
        InputError: no labels, no published split, or shares that leave train or test empty.
    """
    if protocol == "public":
        return public_splits(data)
    if protocol != "random":
        raise InputError(f"split protocol must be 'public' or 'random', got {protocol!r}.")
    if data.y is None:
        raise InputError(f"{data.name} has no labels, so there is nothing to split.")
    nodes = (data.y != UNLABELLED).nonzero()[:, 0]
    return random_splits(nodes, shares=shares, seed=seed, count=count, y=data.y)


def public_splits(data: Labelled) -> list[Split]:
    """Return the splits that the file brings along: one, or several where it numbers them.

    Split k > 0 takes the nodes under `train_k`, `val_k`, `test_k`; a part that it does not number is that of the
    first split, as the one test set of Wiki-CS is. The first is called "public", the others "public-1", ...

    Raises:
        InputError: there is none, or train or test are missing.
    """
    published = group_parts(data.splits)
    first = published[0] if published else {}
    missing = [part for part in ("train", "test") if len(first.get(part, ())) == 0]
    if missing:
        raise InputError(
            f"{data.name} has no published {' and '.join(missing)} nodes.",
            "Use the split protocol `random`.",
        )
    found = []
    for k, parts in enumerate(published):
        train, val, test = (parts.get(part, torch.zeros(0, dtype=torch.int64)) for part in PARTS)
        name = "public" if k == 0 else f"public-{k}"
        found.append(Split(name, train, val, test, index=k, warnings=_warnings(data.y, train)))
    return found


def part_name(part: str, index: int) -> str:
    """Name under which a graph keeps one part of its published split `index`.

    >>> part_name("train", 0), part_name("train", 3)
    ('train', 'train_3')
    """
    return f"{part}_{index}" if index else part


def group_parts(splits: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
    """Sort published sets of nodes by split: `train`, `val`, `test`, then `train_1`, `val_1`, ...

    Args:
        splits: sets by name, as :func:`part_name` makes them.

    Returns:
        One mapping of "train", "val", "test" per split; parts that a later split lacks are those of the first.
    """
    first = {part: splits[part] for part in PARTS if part in splits}
    ends = {name.partition("_")[2] for name in splits if name.partition("_")[0] in PARTS}
    found = [first] if first else []
    for index in sorted(int(end) for end in ends if end.isdigit()):
        own = {part: splits[name] for part in PARTS if (name := part_name(part, index)) in splits}
        found.append({**first, **own})
    return found


def random_splits(
    nodes: int | Tensor,
    *,
    shares: Sequence[float] = (0.1, 0.1, 0.8),
    seed: int,
    count: int = 1,
    y: Tensor | None = None,
) -> list[Split]:
    """Divide nodes at random; not by class, as in the published protocol.

    With n nodes, train has floor(n * shares[0]) of them, val floor(n * shares[1]), test the rest. Split k of
    a seed is the same whatever `count` is.

    Args:
        nodes: their number n, or (n,) int64 node numbers.
        shares: parts for train, val and test, >= 0, summing to 1.
        seed: >= 0.
        count: number of splits, >= 1.
        y: (N,) int64 labels of all nodes; only to warn about classes that train misses.

    Raises:
        InputError: the shares do not sum to 1, or leave train or test empty.

    >>> split = random_splits(50, seed=0)[0]
    >>> len(split.train), len(split.val), len(split.test)
    (5, 5, 40)
    """
    if len(shares) != 3 or min(shares) < 0 or abs(sum(shares) - 1) > 1e-9:
        raise InputError(f"shares must be three numbers >= 0 that sum to 1, got {tuple(shares)}.")
    if count < 1:
        raise InputError(f"the number of splits must be at least 1, got {count}.")
    pool = torch.arange(nodes) if isinstance(nodes, int) else nodes.to(torch.int64)
    # 0.1 * 30 is 3.0000000000000004 and 0.3 * 10 is 2.9999999999999996: both mean 3.
    first, second = (int(share * len(pool) + 1e-9) for share in shares[:2])
    last = len(pool) - first - second
    if first == 0 or last <= 0:
        raise InputError(
            f"shares {tuple(shares)} of {len(pool)} nodes give {first} training and {last} test nodes.",
            "Use other shares or a larger graph.",
        )
    splits = []
    for k in range(count):
        order = pool[rng.draw(seed, "split", k).permutation(len(pool))]
        train, val, test = order.split([first, second, last])
        splits.append(Split(f"random-{seed}-{k}", train, val, test, seed, k, _warnings(y, train)))
    return splits


def save_splits(path: str | Path, splits: Sequence[Split]) -> None:
    """Write splits to an .npz of plain arrays; the file appears complete or not at all.

    Raises:
        InputError: the file cannot be written.
    """
    path = Path(path)
    arrays = {f"{k}_{part}": getattr(split, part).numpy() for k, split in enumerate(splits) for part in PARTS}
    arrays["name"] = np.array([split.name for split in splits], dtype=np.str_)
    arrays["sha256"] = np.array([split.sha256 for split in splits], dtype=np.str_)
    arrays["seed"] = np.array([-1 if split.seed is None else split.seed for split in splits], dtype=np.int64)
    arrays["index"] = np.array([split.index for split in splits], dtype=np.int64)
    for k, split in enumerate(splits):
        arrays[f"{k}_warnings"] = np.array(split.warnings, dtype=np.str_)
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with unfinished.open("wb") as file:
            np.savez_compressed(file, **arrays)
        unfinished.replace(path)
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        raise InputError(f"{path} cannot be written: {error.strerror or error}.") from error


def load_splits(path: str | Path) -> list[Split]:
    """Read what :func:`save_splits` wrote and compare every split with its recorded hash.

    Raises:
        InputError: unreadable, not such a file, or changed since it was written.
    """
    path = Path(path)
    if not path.is_file():
        raise unreadable(path, FileNotFoundError(2, "no such file"))
    arrays = read_arrays(path)
    splits = []
    try:
        for k, name in enumerate(_column(arrays, "name", "U").tolist()):
            parts = {part: torch.from_numpy(_nodes(arrays, f"{k}_{part}")) for part in PARTS}
            seed, index = (int(_column(arrays, key, "i")[k]) for key in ("seed", "index"))
            notes = tuple(_column(arrays, f"{k}_warnings", "U").tolist())
            splits.append(Split(name, **parts, seed=None if seed < 0 else seed, index=index, warnings=notes))
            if splits[-1].sha256 != _column(arrays, "sha256", "U")[k]:
                raise InputError(f"{path}: split {name} does not have its recorded hash.", "Write it again.")
    except (KeyError, IndexError, TypeError) as error:
        raise InputError(f"{path} is not a file of splits: {error}.") from error
    return splits


def _column(arrays: Mapping[str, np.ndarray], key: str, kind: str) -> np.ndarray:
    array = arrays[key]
    if array.ndim != 1 or (array.dtype.kind != kind and len(array)):
        raise TypeError(f"{key} has shape {array.shape} and type {array.dtype}")
    return array


def _nodes(arrays: Mapping[str, np.ndarray], key: str) -> np.ndarray:
    array = _column(arrays, key, "i").astype(np.int64)
    if array.min(initial=0) < 0:
        raise TypeError(f"{key} holds {array.min()}, expected node numbers")
    return array


def _warnings(y: Tensor | None, train: Tensor) -> tuple[str, ...]:
    if y is None:
        return ()
    classes = torch.unique(y[y != UNLABELLED])
    missing = sorted(set(classes.tolist()) - set(y[train].tolist()))
    if not missing:
        return ()
    return (
        f"{len(missing)} of {len(classes)} classes have no training node: {', '.join(map(str, missing))}",
    )
