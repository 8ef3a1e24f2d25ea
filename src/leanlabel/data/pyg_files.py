"""Read graphs that torch_geometric saved, without torch_geometric and without running anything in the file."""

from __future__ import annotations

import pickle
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from leanlabel.data.graph_folder import MOST_GAPS, PARTS, Parts
from leanlabel.data.graph_tables import unreadable
from leanlabel.data.splits import part_name
from leanlabel.errors import InputError

_MODULES = ("torch_geometric.data.data", "torch_geometric.data")
_ADVICE = "Save plain tensors instead: torch.save(data.to_dict(), path)."


class _Shell:
    """Stands for a class of torch_geometric: takes the attributes of the saved object and does nothing."""

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.__dict__.update({str(key): value for key, value in state.items()})


class _Data(_Shell):
    """Stands for torch_geometric.data.Data, or its storage."""


class _Hetero(_Shell):
    """Stands for torch_geometric.data.HeteroData."""


class _Wrapper(Tensor):
    """Stands for torch_geometric.EdgeIndex: a tensor that wraps another."""

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise RuntimeError("a wrapped tensor is only unwrapped")


def _order(*_: object) -> None:
    """Stands for the sort order of an EdgeIndex, which is not used."""


_STAND_INS: list[Any] = [
    *((_Data, f"{module}.Data") for module in _MODULES),
    *((_Hetero, f"torch_geometric.data.{module}HeteroData") for module in ("hetero_data.", "")),
    *((_Data, f"torch_geometric.data.storage.{kind}Storage") for kind in ("Global", "Base", "Node", "Edge")),
    *((_Shell, f"torch_geometric.data.data.Data{kind}Attr") for kind in ("Edge", "Tensor")),
    (_Shell, "torch_geometric.data.feature_store.TensorAttr"),
    (_Shell, "torch_geometric.data.graph_store.EdgeAttr"),
    (_Wrapper, "torch_geometric.edge_index.EdgeIndex"),
    (_order, "torch_geometric.edge_index.SortOrder"),
]


def read_pyg(path: Path) -> tuple[Parts, str]:
    """Read a .pt file of torch_geometric: a saved `Data`, its `to_dict()`, or an `InMemoryDataset`'s processed file.

    Taken are `x` (dense or sparse), `edge_index` (or a sparse `adj_t`), `y`, and `train_mask`, `val_mask`,
    `test_mask` (also `..._idx`); a mask of shape (N, K) is K published splits. Everything else is left alone.

    Returns:
        Arrays under the keys of the .npz layout, and the name of the set.

    Raises:
        InputError: the file names anything but plain tensors and torch_geometric's own containers, is damaged, or
            does not hold exactly one homogeneous graph.
    """
    found = _single(_load(path), path)
    parts = Parts()
    edges = found.get("edge_index")
    if edges is None and isinstance(found.get("adj_t"), Tensor):
        # Row: target, column: source.
        edges = _coo(found["adj_t"], path).indices().flip(0)
    if edges is not None:
        parts.put("edge_index", _array(edges, "edge_index", path), path)
    _put_features(parts, found.get("x"), path)
    if isinstance(found.get("y"), Tensor):
        parts.put("y", _array(found["y"], "y", path), path)
    count = found.get("num_nodes", found.get("_num_nodes"))
    if not {"x", "x_data", "y"} & parts.arrays.keys() and isinstance(count, int) and count > 0:
        _plausible(count, 0 if edges is None else edges.numel(), "num_nodes", path)
        # Without features and labels only the ids say how many nodes there are: the last may have no edges.
        parts.put("ids", np.arange(count).astype(np.str_), path)
    for part in PARTS:
        _put_split(parts, part, found, path)
    inner = path.parent.name in ("processed", "raw")
    return parts, path.parent.parent.name if inner else path.stem


def _put_features(parts: Parts, x: Any, path: Path) -> None:
    if not isinstance(x, Tensor):
        return
    if x.layout == torch.strided:
        parts.put("x", _array(x, "x", path), path)
        return
    coo = _coo(x, path)
    _plausible(x.shape[0], coo.values().numel(), "x", path)
    rows, columns = (index.numpy() for index in coo.indices())
    parts.put("x_data", coo.values().float().numpy(), path)
    parts.put("x_indices", columns, path)
    parts.put("x_indptr", np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=x.shape[0]))]), path)
    parts.put("x_shape", np.array(x.shape), path)


def _plausible(nodes: int, entries: int, key: str, path: Path) -> None:
    """Refuse a number of nodes that a small file could only claim: arrays of that length would be made."""
    if nodes > MOST_GAPS * max(entries, 10_000):
        raise InputError(f"{path}: {key} declares {nodes} nodes, the file stores {entries} entries.", _ADVICE)


def _put_split(parts: Parts, part: str, found: Mapping[str, Any], path: Path) -> None:
    mask, index = found.get(f"{part}_mask"), found.get(f"{part}_idx")
    if isinstance(mask, Tensor):
        array = _array(mask, f"{part}_mask", path)
        if array.dtype.kind in "iu" and array.size and array.min() >= 0 and array.max() <= 1:
            array = array.astype(bool)  # masks of torch < 1.2
        if array.ndim == 2:
            for k in range(array.shape[1]):
                parts.put(f"{part_name(part, k)}_mask", array[:, k], path)
        else:
            parts.put(f"{part}_mask", array, path)
    elif isinstance(index, Tensor):
        parts.put(f"{part}_idx", _array(index, f"{part}_idx", path), path)


def _single(found: Any, path: Path) -> dict[str, Any]:
    """The attributes of the one graph in what was loaded."""
    if isinstance(found, tuple) and len(found) in (2, 3):
        data, slices = found[:2]
        ends = slices.values() if isinstance(slices, dict) else ()
        listed = [end for end in ends if isinstance(end, list) or (isinstance(end, Tensor) and end.ndim == 1)]
        counts = [len(end) - 1 for end in listed]
        if counts and max(counts) != 1:
            raise InputError(f"{path} holds {max(counts)} graphs; one graph is needed.", _ADVICE)
        found = (data, *found[2:])
        if len(found) == 2 and found[1] is _Hetero:
            found = _Hetero()
        else:
            found = data
    if isinstance(found, _Hetero):
        raise InputError(
            f"{path} holds a graph with several kinds of nodes; all nodes must be of one kind.", _ADVICE
        )
    if isinstance(found, _Data):
        found = vars(found)
        for inner in ("_store", "_mapping"):
            value = found.get(inner)
            found = vars(value) if isinstance(value, _Data) else value if isinstance(value, dict) else found
    if not isinstance(found, dict) or not {"x", "edge_index", "adj_t"} & found.keys():
        kind = type(found).__name__.lstrip("_")
        raise InputError(f"{path} holds no graph (a {kind} without x and edge_index).", _ADVICE)
    return {str(key): value for key, value in found.items()}


@contextmanager
def _only_stand_ins() -> Iterator[None]:
    """Let torch.load resolve the names of torch_geometric to the stand-ins, and nothing else beyond tensors.

    What other packages have allowed in this process (torch_geometric does on import) is put aside meanwhile.
    """
    allowed = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    torch.serialization.add_safe_globals(_STAND_INS)
    try:
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(allowed)


def _load(path: Path) -> Any:
    try:
        # Sparse tensors are not looked at otherwise: an index that lies would be followed into foreign memory.
        checked = torch.sparse.check_sparse_tensor_invariants(True)
        with path.open("rb") as file, _only_stand_ins(), checked, warnings.catch_warnings():
            # Of odd pickles and of sparse layouts torch warns; what cannot be read is an error of its own here.
            warnings.simplefilter("ignore", UserWarning)
            return torch.load(file, map_location="cpu", weights_only=True)
    except OSError as error:
        raise unreadable(path, error) from error
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL (\S+)", str(error))
        if named is None:
            raise _damaged(path, error) from error
        raise InputError(
            f"{path} names {named[1]}, which could run code when it is read.",
            _ADVICE,
        ) from error
    except Exception as error:  # zip, pickle and torch's own reader each have their own kinds of damage
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> InputError:
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    return InputError(
        f"{path} is not a complete .pt file: {text}.", "It may be cut short; copy or write it again."
    )


def _array(value: Any, key: str, path: Path) -> np.ndarray:
    if isinstance(value, _Wrapper):
        value = vars(value).get("_data")
    if (
        not isinstance(value, Tensor)
        or value.layout != torch.strided
        or value.device.type != "cpu"
        or value.is_complex()
        or value.is_quantized
    ):
        raise InputError(f"{path}: {key} is not a plain tensor.", _ADVICE)
    stored = value.untyped_storage().nbytes()
    if value.numel() * value.element_size() > stored:
        raise InputError(
            f"{path}: {key} declares shape {tuple(value.shape)} and stores {stored} bytes.", _ADVICE
        )
    if value.is_floating_point() and value.dtype != torch.float64:
        value = value.float()
    return value.detach().numpy()


def _coo(value: Tensor, path: Path) -> Tensor:
    """A sparse tensor as coordinates, each once."""
    if value.ndim != 2:
        raise InputError(f"{path}: a sparse tensor has shape {tuple(value.shape)}, expected two dimensions.")
    return (value if value.layout == torch.sparse_coo else value.to_sparse_coo()).coalesce()
