"""The data check finds out by itself what a place holds, and looks at a recipe's data as training would."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from leanlabel.config import Settings
from leanlabel.data.checks import check_place, check_source, check_source_masks, is_here, kind_of
from leanlabel.data.dense_source import ClassSection, DenseFiles, open_dense
from leanlabel.data.findings import Finding
from leanlabel.data.graph_source import PlantedGraph
from leanlabel.data.image_source import Glyphs, ImageFiles
from leanlabel.errors import InputError
from smallrun import arrays, graph_file

PIXELS = np.arange(6 * 4 * 5 * 3, dtype=np.uint8).reshape(6, 4, 5, 3)


def codes(found: list[Finding]) -> dict[str, int]:
    return {one.code: one.count for one in found}


def pictures(folder: Path, count: int = 3) -> Path:
    Image = pytest.importorskip("PIL.Image")
    folder.mkdir(parents=True, exist_ok=True)
    for row in range(count):
        Image.fromarray(PIXELS[row]).save(folder / f"{row}.png")
    return folder


def test_values_kinds(tmp_path: Path) -> None:
    assert kind_of(graph_file(tmp_path / "graph.npz")) == "graph"
    np.savez(tmp_path / "images.npz", image=PIXELS)
    np.savez(tmp_path / "x.npz", x=PIXELS)
    np.savez(tmp_path / "parts.npz", train_image=PIXELS, test_image=PIXELS)
    np.savez(tmp_path / "packed.npz", jpeg=np.zeros(9, np.uint8), offsets=np.array([0, 9]))
    assert {kind_of(tmp_path / f"{name}.npz") for name in ("images", "x", "parts", "packed")} == {"images"}
    np.savez(tmp_path / "rows.npz", x=arrays()["x"])
    (tmp_path / "broken.npz").write_bytes(b"PK\x03\x04nothing")
    assert {kind_of(tmp_path / f"{name}.npz") for name in ("rows", "broken")} == {None}
    for name, kind in (
        ("a.pt", "graph"),
        ("a.zip", "images"),
        ("a.csv", "images"),
        ("a.PNG", "images"),
        ("a", None),
    ):
        (tmp_path / name).write_bytes(b"")
        assert kind_of(tmp_path / name) == kind, name
    assert kind_of(tmp_path / "nowhere" / "a.bin") is None


def test_values_folders(tmp_path: Path) -> None:
    """Images anywhere below make a set of images; a table of edges makes a graph, whatever lies beside it."""
    assert kind_of(pictures(tmp_path / "deep" / "class")) == "images"
    assert kind_of(tmp_path / "deep") == "images"
    (tmp_path / "packed").mkdir()
    np.savez(tmp_path / "packed" / "set_train.npz", image=PIXELS)
    assert kind_of(tmp_path / "packed") == "images"
    graph = pictures(tmp_path / "graph")
    (graph / "edges.csv").write_text("0,1\n")
    assert kind_of(graph) == "graph"
    (tmp_path / "hidden" / ".git").mkdir(parents=True)
    (tmp_path / "hidden" / ".git" / "a.png").write_bytes(b"")
    assert kind_of(tmp_path / "hidden") is None


def test_values_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures(tmp_path / "set")
    graph_file(tmp_path / "graph.npz")
    monkeypatch.setenv("LEANLABEL_DATA", str(tmp_path))
    assert codes(check_place("set"))["images"] == 3
    assert codes(check_place("graph.npz"))["nodes"] == 60
    assert is_here("set")
    assert not is_here("sets")
    assert not is_here("pyg:nothing")


def test_values_sources(tmp_path: Path) -> None:
    assert codes(check_source(PlantedGraph(nodes=50, draws=100)))["nodes"] == 50
    glyphs = Glyphs(classes=3, per_class=4, size=16, test_share=0.0, val_share=0.0)
    assert codes(check_source(glyphs))["images"] == 12
    place = str(pictures(tmp_path / "set", 6))
    assert codes(check_source(ImageFiles(path=place, limit=4)))["images"] == 4


def test_values_unreadable(tmp_path: Path) -> None:
    """A recipe stops at a broken file, unless it leaves such files out: then it is a warning."""
    place = pictures(tmp_path / "set")
    (place / "broken.png").write_bytes(b"nothing")
    stopping = next(one for one in check_source(ImageFiles(path=str(place))) if one.code == "unreadable")
    assert (stopping.severity, stopping.count) == ("error", 1)
    skipping = check_source(ImageFiles(path=str(place), skip_unreadable=True))
    assert {one.code: one.severity for one in skipping}["unreadable_skipped"] == "warning"
    assert codes(check_place(str(place)))["unreadable"] == 1


def test_values_coco_classes(tmp_path: Path) -> None:
    """Categories are the classes that the recipe says, as training reads them."""
    Image.fromarray(np.zeros((4, 6, 3), np.uint8)).save(tmp_path / "a.png")
    shape = [[0, 0, 3, 0, 3, 4, 0, 4]]
    content = {
        "images": [{"id": 1, "file_name": "a.png", "height": 4, "width": 6}],
        "categories": [{"id": 3, "name": "x"}, {"id": 7, "name": "y"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 7, "segmentation": shape}],
    }
    (tmp_path / "marks.json").write_text(json.dumps(content))
    source = DenseFiles(
        path=str(tmp_path / "marks.json"),
        classes=ClassSection(names=("y", "x", "background"), ids={7: 0, 3: 1, 0: 2}),
    )
    found = check_source_masks(source)
    assert found is not None
    shares = {one["name"]: one["shares"]["all"]["pixels"] for one in found.figures["classes"]}
    assert shares == {"y": 0.5, "x": 0.0, "background": 0.5}
    data = open_dense(source)
    assert dict(zip(data.classes.names, data.facts["class_pixels"], strict=True)) == {
        "y": 12,
        "x": 0,
        "background": 12,
    }


def test_errors(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.bin").write_bytes(b"")
    for place in ("empty", "a.bin"):
        with pytest.raises(InputError, match="holds neither a graph nor images") as found:
            check_place(str(tmp_path / place))
        assert "A set of images is a folder" in str(found.value)
        assert "A graph " in str(found.value)
    np.savez(tmp_path / "bad.npz", **{**arrays(), "edge_index": np.array([[0], [999]])})
    with pytest.raises(InputError, match="999"):  # of a graph its reader says what is wrong
        check_place(str(tmp_path / "bad.npz"))
    with pytest.raises(InputError, match="no such file or folder"):
        check_place("nowhere")

    class Sounds(Settings):
        kind: str = "sounds"

    with pytest.raises(InputError, match="not at data of kind 'sounds'"):
        check_source(Sounds())
