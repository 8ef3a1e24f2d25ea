"""Nearest neighbours of embeddings, and the small pictures of them."""

from __future__ import annotations

import base64
import doctest
import io
import json

import numpy as np
import pytest
import torch

from leanlabel.data.images import Images, PixelArray
from leanlabel.evaluation import neighbours
from leanlabel.evaluation.neighbours import MOST, nearest_neighbours, neighbour_figure, png, thumbnail


def drawn(count: int, **more: object) -> Images:
    pixels = torch.randint(
        0, 256, (count, 3, 6, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    return Images("drawn", PixelArray(pixels), **more)  # type: ignore[arg-type]


def reference(z: torch.Tensor, queries: torch.Tensor, bank: torch.Tensor, k: int) -> list[list[int]]:
    """Every pair on its own."""
    found = []
    for q in queries.tolist():
        alike = {
            row: float(z[q] @ z[row] / (z[q].norm() * z[row].norm()).clamp(min=1e-30))
            for row in bank.tolist()
            if row != q
        }
        found.append(sorted(alike, key=lambda row: -alike[row])[:k])
    return found


def test_values() -> None:
    z = torch.tensor([[1.0, 0.0], [3.0, 4.0], [0.0, 2.0], [-1.0, 0.0]], dtype=torch.float64)
    rows, alike = nearest_neighbours(z, torch.tensor([0, 2]), torch.arange(4), 3)
    assert rows.tolist() == [[1, 2, 3], [1, 0, 3]] or rows.tolist() == [[1, 2, 3], [1, 3, 0]]
    torch.testing.assert_close(
        alike, torch.tensor([[0.6, 0.0, -1.0], [0.8, 0.0, 0.0]], dtype=torch.float64), rtol=1e-10, atol=1e-15
    )


def test_values_docstring() -> None:
    assert doctest.testmod(neighbours) == (0, 2)


def test_values_thumbnail() -> None:
    """Scaled down to the longer side by averages, never up."""
    halves = torch.zeros(3, 8, 16, dtype=torch.uint8)
    halves[:, :, 8:] = 200
    small = thumbnail(halves, 4)
    assert small.shape == (3, 2, 4)
    assert small[0, 0].tolist() == pytest.approx([0, 12, 188, 200], abs=13)
    assert thumbnail(halves, 16) is halves
    assert thumbnail(torch.zeros(3, 1, 500, dtype=torch.uint8), 5).shape == (3, 1, 5)


def test_values_figure() -> None:
    """Queries of the test part, neighbours of the training part, classes in turns; plain data."""
    y = torch.tensor([0, 0, 0, 1, 1, 1, 0, 0, 0, 1, 2, -100])
    z = torch.nn.functional.one_hot(y.clamp(min=0), 3).float() + 0.01 * torch.arange(12)[:, None]
    splits = {"train": torch.arange(6), "test": torch.arange(6, 12)}
    images = drawn(
        12, y=y, class_names=["cat", "dog", "cow"], splits=splits, ids=[f"{row}.png" for row in range(12)]
    )
    found = neighbour_figure(images, z, seed=3, queries=4, neighbours=2)
    assert json.loads(json.dumps(found)) == found
    assert (found["asked"], found["bank"], found["bank_size"]) == ("test images", "training images", 6)
    assert sorted(one["class"] for one in found["queries"][:3]) == ["cat", "cow", "dog"]
    assert found["queries"][3]["class"] == "cat"
    for one in found["queries"]:
        assert one["row"] in range(6, 12)
        assert one["name"] == f"{one['row']}.png"
        assert all(near["row"] in range(6) for near in one["neighbours"])
        same = [near["same"] for near in one["neighbours"]]
        assert same == [one["class"] != "cow"] * 2
    picture = base64.b64decode(found["queries"][0]["image"])
    Image = pytest.importorskip("PIL.Image")
    shown = torch.from_numpy(np.array(Image.open(io.BytesIO(picture)))).permute(2, 0, 1)
    assert torch.equal(shown, images[found["queries"][0]["row"]])
    assert neighbour_figure(images, z, seed=3, queries=4, neighbours=2) == found
    drawn_rows = [[one["row"] for one in neighbour_figure(images, z, s)["queries"]] for s in range(4)]
    assert len({tuple(rows) for rows in drawn_rows}) > 1


def test_values_figure_parts() -> None:
    """Without a test part the validation part asks; without any all images, never themselves."""
    z = torch.randn(10, 4, generator=torch.Generator().manual_seed(0))
    val = neighbour_figure(drawn(10, splits={"val": torch.tensor([1, 2])}), z, 0)
    assert (val["asked"], val["bank"], val["bank_size"]) == ("validation images", "all other images", 8)
    assert sorted(one["row"] for one in val["queries"]) == [1, 2]
    everything = neighbour_figure(drawn(10), z, 0)
    assert (everything["asked"], everything["bank_size"]) == ("all images", 10)
    for one in everything["queries"]:
        assert one["class"] is None
        assert one["row"] not in [near["row"] for near in one["neighbours"]]
        assert {near["same"] for near in one["neighbours"]} == {None}


def test_reference() -> None:
    z = torch.randn(60, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    queries, bank = torch.arange(0, 60, 3), torch.arange(10, 50)
    rows, _ = nearest_neighbours(z, queries, bank, 7)
    assert rows.tolist() == reference(z, queries, bank, 7)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (37, 51)])
def test_reference_png(size: tuple[int, int]) -> None:
    Image = pytest.importorskip("PIL.Image")
    pixels = torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    read = Image.open(io.BytesIO(png(pixels)))
    read.load()
    assert (read.mode, read.size) == ("RGB", (size[1], size[0]))
    assert np.array_equal(np.array(read), pixels.permute(1, 2, 0).numpy())


def test_dtypes() -> None:
    z = torch.randn(20, 3, generator=torch.Generator().manual_seed(3))
    expected, _ = nearest_neighbours(z.half().float(), torch.arange(4), torch.arange(20), 3)
    rows, alike = nearest_neighbours(z.half(), torch.arange(4), torch.arange(20), 3)
    assert torch.equal(rows, expected)
    assert alike.dtype == torch.float32


def test_degenerate() -> None:
    """A zero row, huge and tiny rows, fewer rows than neighbours, no query, one image."""
    z = torch.tensor([[0.0, 0.0], [1e-30, 0.0], [1e30, 1e28], [0.0, 1.0]])
    rows, alike = nearest_neighbours(z, torch.tensor([1]), torch.arange(4), 9)
    assert rows.shape == (1, 3)
    assert rows[0, 0] == 2
    assert bool(torch.isfinite(alike).all())
    assert nearest_neighbours(z, torch.tensor([0]), torch.tensor([3]), 2)[1].tolist() == [[0.0]]
    nothing = torch.zeros(0, dtype=torch.int64)
    assert nearest_neighbours(z, nothing, torch.arange(4), 2)[0].shape == (0, 2)
    alone = neighbour_figure(drawn(1), z[:1], 0)
    assert alone["queries"][0]["neighbours"] == []
    assert neighbour_figure(drawn(0), z[:0], 0)["queries"] == []


def test_errors() -> None:
    z, rows = torch.randn(5, 2), torch.arange(5)
    for arguments, text in (
        ((z[0], rows, rows, 1), r"z must be \(N, d\)"),
        ((z / 0, rows, rows, 1), "finite"),
        ((z, rows.float(), rows, 1), "query_rows must be"),
        ((z, rows, rows + 1, 1), r"bank_rows must lie in \[0, 5\)"),
        ((z, rows, torch.tensor([1, 1]), 1), "a row twice"),
        ((z, rows, rows, 0), "k must be at least 1"),
    ):
        with pytest.raises(ValueError, match=text):
            nearest_neighbours(*arguments)
    with pytest.raises(ValueError, match="5 embeddings for 6 images"):
        neighbour_figure(drawn(6), z, 0)
    with pytest.raises(ValueError, match=f"1 to {MOST} pictures"):
        neighbour_figure(drawn(5), z, 0, queries=10, neighbours=6)
    with pytest.raises(ValueError, match=r"pixels must be \(3, h, w\) uint8"):
        png(torch.zeros(3, 4, 4))


def test_chunked(monkeypatch: pytest.MonkeyPatch) -> None:
    z = torch.randn(200, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    queries, bank = torch.arange(0, 200, 3), torch.arange(30, 180)
    expected = nearest_neighbours(z, queries, bank, 8)
    monkeypatch.setattr(neighbours, "QUERIES", 13)
    monkeypatch.setattr(neighbours, "TILE", 7)
    rows, alike = nearest_neighbours(z, queries, bank, 8)
    assert torch.equal(rows, expected[0])
    torch.testing.assert_close(alike, expected[1], rtol=1e-12, atol=1e-12)
