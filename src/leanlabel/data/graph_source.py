"""Which graph a recipe means: settings, and from settings to a graph in memory."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from leanlabel.config import Settings
from leanlabel.data.graphs import Graph, Normalisation
from leanlabel.errors import InputError


class GraphFile(Settings):
    """A graph on disk."""

    kind: Literal["file"] = "file"
    """A file or folder."""
    path: str
    """An .npz file or a folder with edges, features and labels; also found below LEANLABEL_DATA."""
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

    return read_graph(find(source.path), undirected=source.undirected, features=source.features)


def find(path: str) -> Path:
    """``path`` itself, or the same below the folder that LEANLABEL_DATA names.

    Raises:
        InputError: neither exists.
    """
    root = os.environ.get("LEANLABEL_DATA")
    try:
        own = Path(path).expanduser()
        if own.exists() or own.is_absolute():
            return own
        if root and (Path(root) / path).exists():
            return Path(root) / path
    except (OSError, RuntimeError, ValueError) as error:  # too long, unknown user, no permission to look
        raise InputError(f"{path}: this path cannot be looked at ({error}).") from error
    where = f"nor below LEANLABEL_DATA ({root})" if root else "and LEANLABEL_DATA is not set"
    raise InputError(
        f"{path}: no such file or folder here, {where}.",
        "Give the place of the data with --data or data.path.",
    )
