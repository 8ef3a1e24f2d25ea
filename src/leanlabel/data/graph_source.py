"""Which graph a recipe means: settings, and from settings to a graph in memory."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Discriminator, Field, Tag

from leanlabel.config import Settings
from leanlabel.data.catalogue import CATALOGUE, Entry, find_packed, find_pyg
from leanlabel.data.graphs import Graph, Normalisation
from leanlabel.data.obtain import data_folder
from leanlabel.errors import InputError
from leanlabel.sparse import Csr

PYG = "pyg:"
"""Before the name of a set of torch_geometric, in place of a path."""


class GraphFile(Settings):
    """A graph on disk."""

    kind: Literal["file"] = "file"
    """A file or folder."""
    path: str
    """An .npz or .pt file or a folder with edges, features and labels, also found below LEANLABEL_DATA; or a set of
    torch_geometric, as in pyg:Planetoid/Cora."""
    undirected: bool | None = None
    """true: add missing reverse edges; false: keep directions; null: undirected where every edge has its reverse."""
    features: Literal["file", "degree"] = "file"
    """Node features from the file, or the degree for graphs without any."""
    normalise: Normalisation = "row_sum"
    """Feature rows: divided by their sum (row_sum), by their sum if that is above 1 (row_sum_legacy, as the official
    code did), shifted to be non-negative first (shifted, as torch_geometric does now), or as they are (none)."""


class PlantedGraph(Settings):
    """A generated graph with known classes; see `leanlabel.data.generated.graphs.planted_graph`."""

    kind: Literal["planted"] = "planted"
    """Drawn by the library, no file needed."""
    nodes: int = Field(default=600, ge=2)
    """Nodes."""
    classes: int = Field(default=6, ge=2)
    """Classes."""
    draws: int = Field(default=3000, ge=0)
    """Edges drawn, before repeated ones are merged."""
    crossing: float = Field(default=0.35, ge=0, le=1)
    """Share of edges that ignore the classes."""
    crossing_attachment: float = Field(default=0.0, ge=-1, le=1)
    """Where crossing edges attach: -1 inactive nodes, 0 any, 1 active nodes like the edges within a class."""
    topic_words: int = Field(default=15, ge=1)
    """Words of each class."""
    noise_words: int = Field(default=600, ge=1)
    """Words shared by all classes."""
    noise_draws: int = Field(default=14, ge=0)
    """Most shared words of one node."""
    seed: int = Field(default=0, ge=0)
    """Seed of the graph; the run's seed does not change it."""
    normalise: Normalisation = "none"
    """As for files; rows of this graph already sum to 1."""


def _kind(value: Any) -> Any:
    """The variant a section means; a file unless it says otherwise."""
    return value.get("kind", "file") if isinstance(value, dict) else getattr(value, "kind", None)


GraphSource = Annotated[
    Annotated[GraphFile, Tag("file")] | Annotated[PlantedGraph, Tag("planted")], Discriminator(_kind)
]


def open_graph(source: GraphFile | PlantedGraph) -> Graph:
    """Read or draw the graph that the settings name; features as they are on disk.

    Raises:
        InputError: whatever is wrong with the file, or no such file.
    """
    if isinstance(source, PlantedGraph):
        from leanlabel.data.generated.graphs import planted_graph

        try:
            return planted_graph(**source.model_dump(exclude={"kind", "normalise"}))
        except ValueError as error:
            raise InputError(f"data: {error}.") from error
    from leanlabel.data.graph_files import read_graph

    entry = find_pyg(source.path.removeprefix(PYG)) if source.path.startswith(PYG) else None
    undirected = source.undirected
    if undirected is None and entry is not None:
        undirected = entry.undirected
    graph = read_graph(find(source.path), undirected=undirected, features=source.features)
    if entry is not None:
        graph = replace(graph, name=entry.name)
        if entry.binary and source.features == "file":
            graph = _with_binary_features(graph)
    return graph


def _with_binary_features(graph: Graph) -> Graph:
    """Positive features set to one, as torch_geometric does on reading gnn-benchmark's files."""
    x = graph.x
    values = x.values if isinstance(x, Csr) else x
    if values is None:
        return graph
    ones = torch.where(values > 0, torch.ones_like(values), values)
    changed = int((ones != values).sum())
    if not changed:
        return graph
    if isinstance(x, Csr):
        x = x.with_values(None if bool((ones == 1).all()) else ones)
    else:
        x = ones
    return replace(graph, x=x, facts={**graph.facts, "features_set_to_one": changed})


def find(path: str) -> Path:
    """``path`` itself, or the same below the data folder; of a public set, whatever form of it is here.

    The data folder is the one that LEANLABEL_DATA names, or ./data without it. ``pyg:NAME`` is looked for where
    torch_geometric and `leanlabel data get` put it; the file of a packaged recipe that is not here is replaced by the
    published files of the same set.

    Raises:
        InputError: nothing of it exists; says how to get it.
    """
    if path.startswith(PYG):
        return _find_pyg(path)
    root = os.environ.get("LEANLABEL_DATA")
    entry = find_packed(path)
    try:
        own = Path(path).expanduser()
        if own.exists() or own.is_absolute():
            return own
        folders = _folders()
        found = next((folder / path for folder in folders if (folder / path).exists()), None)
        if found is None and entry is not None:
            found = _published(entry, folders)
        if found is not None:
            return found
    except (OSError, RuntimeError, ValueError) as error:  # too long, unknown user, no permission to look
        raise InputError(f"{path}: this path cannot be looked at ({error}).") from error
    where = f"nor below LEANLABEL_DATA ({root})" if root else "and LEANLABEL_DATA is not set"
    raise InputError(
        f"{path}: no such file or folder here, {where}.",
        f"Get it with `leanlabel data get {entry.name}`, or give the place of the data with --data or data.path."
        if entry
        else "Give the place of the data with --data or data.path.",
    )


def _folders() -> list[Path]:
    """Where public sets are looked for: the data folder, then here."""
    return [data_folder(), Path()]


def _published(entry: Entry, folders: list[Path]) -> Path | None:
    """The published files of a set: their folder, or the only file; None where one is missing."""
    for folder in folders:
        if all((folder / file.path).is_file() for file in entry.files):
            return folder / entry.place
    return None


def _find_pyg(path: str) -> Path:
    """Where a set of torch_geometric is: its raw files, else its processed file, else the packed file."""
    name = path.removeprefix(PYG).strip("/")
    entry = find_pyg(name)
    full = entry.pyg if entry and entry.pyg else name
    if not name or ".." in Path(full).parts:
        raise InputError(f"{path}: expected a name, as in pyg:Planetoid/Cora.")
    last = full.rpartition("/")[2]
    folders = _folders()
    for folder in folders:
        for place in dict.fromkeys((folder / full, folder / last, folder / name)):
            raw = place / "raw"
            if entry and all((raw / file.name).is_file() for file in entry.files):
                return place / Path(entry.place).relative_to(full)
            for processed in ("data.pt", "data_undirected.pt"):
                if (place / "processed" / processed).is_file():
                    return place / "processed" / processed
        if entry and entry.packed and (folder / entry.packed.path).is_file():
            return folder / entry.packed.path
    looked = " and ".join(dict.fromkeys(str(folder.absolute()) for folder in folders))
    if entry is None:
        known = ", ".join(one.pyg for one in CATALOGUE if one.pyg)
        raise InputError(
            f"{path}: no folder {full} with processed/data.pt below {looked}.",
            f"Let torch_geometric make it there; sets that `leanlabel data get` can bring: {known}.",
        )
    raise InputError(
        f"{path}: neither raw nor processed files of it below {looked}.",
        f"Get them with `leanlabel data get {entry.name}`.",
    )
