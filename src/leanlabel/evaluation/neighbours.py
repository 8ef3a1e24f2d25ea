"""Nearest neighbours of some images in a space of embeddings, and small pictures of them for people to look at."""

from __future__ import annotations

import base64
import struct
import zlib
from collections import Counter
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from leanlabel import rng
from leanlabel.data.images import Images
from leanlabel.evaluation.collapse import directions

SIDE = 64
"""Longest side of a small picture, in pixels."""
MOST = 64
"""Small pictures in one figure."""
# Rows of queries and of the bank in one product: 16 MiB of similarities in float32.
QUERIES, TILE = 256, 1 << 14


@torch.no_grad()
def nearest_neighbours(z: Tensor, query_rows: Tensor, bank_rows: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Find the k rows of a bank with the largest cosine to each query; no row is its own neighbour.

    Products of a block of queries with a block of the bank are formed and their k largest kept, so that memory does
    not grow with queries x bank.

    Args:
        z: (N, d) embeddings, finite, any scale; a row of norm 0 has cosine 0 with everything. No gradient.
        query_rows: (Q,) integers in [0, N).
        bank_rows: (M,) distinct integers in [0, N).
        k: neighbours, >= 1; fewer where the bank has fewer rows other than the query.

    Returns:
        Rows (Q, k') int64, the closest first, and their cosines (Q, k'), in float32 or wider.

    Raises:
        ValueError: z is not (N, d) or not finite, rows are not vectors of numbers in [0, N), a row of the bank is
            given twice, or k < 1.

    Example:
        >>> z = torch.tensor([[1.0, 0.0], [2.0, 0.1], [0.0, 1.0]])
        >>> nearest_neighbours(z, torch.tensor([0, 2]), torch.arange(3), 1)[0].tolist()
        [[1], [1]]
    """
    if z.ndim != 2 or not bool(torch.isfinite(z).all()):
        raise ValueError(f"z must be (N, d) and finite, got {tuple(z.shape)}")
    for name, rows in (("query_rows", query_rows), ("bank_rows", bank_rows)):
        if rows.ndim != 1 or rows.is_floating_point():
            raise ValueError(f"{name} must be (n,) integers, got {tuple(rows.shape)} {rows.dtype}")
        if len(rows) and (int(rows.min()) < 0 or int(rows.max()) >= len(z)):
            raise ValueError(f"{name} must lie in [0, {len(z)}), got {int(rows.min())} to {int(rows.max())}")
    if len(bank_rows.unique()) < len(bank_rows):
        raise ValueError("bank_rows holds a row twice")
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    queries, bank = query_rows.to(z.device).long(), bank_rows.to(z.device).long()
    count = min(k, len(bank) - int(bool(torch.isin(queries, bank).any())))
    unit = directions(z.to(torch.promote_types(z.dtype, torch.float32)))
    found = [_nearest(unit, part, bank, count) for part in queries.split(QUERIES)]
    return torch.cat([rows for rows, _ in found]), torch.cat([alike for _, alike in found])


def neighbour_figure(
    images: Images, z: Tensor, seed: int, *, queries: int = 8, neighbours: int = 6, side: int = SIDE
) -> dict[str, Any]:
    """Show the nearest training images of a few others.

    Queries come from the published test part, else from the validation part, else from all images; neighbours from
    the published training part, else from all images that are no queries' part, the query itself left out. Queries
    are drawn by the seed and are of different classes as far as there are any.

    Args:
        images: N images.
        z: (N, d) their embeddings; no gradient.
        seed: of the draw.
        queries, neighbours: how many of each, at most :data:`MOST` pictures in all.
        side: longest side of a picture in pixels, at most :data:`SIDE`.

    Returns:
        Plain data: "asked" and "bank" (where queries and neighbours come from), "bank_size", and "queries": each with
        "row", "name", "class" (None where it is not known), "image" (PNG in base64) and "neighbours": the same keys,
        "similarity" (cosine), and "same": whether the classes agree, None where one is not known.

    Raises:
        ValueError: z does not fit the images, or more pictures than that.
    """
    if len(z) != len(images):
        raise ValueError(f"{len(z)} embeddings for {len(images)} images")
    if queries * (1 + neighbours) > MOST or min(queries, neighbours) < 1 or not 1 <= side <= SIDE:
        raise ValueError(
            f"1 to {MOST} pictures of 1 to {SIDE} pixels, got {queries} x {1 + neighbours} of {side}"
        )
    (asked_name, asked), (bank_name, bank) = _parts(images)
    chosen = _spread_over_classes(images, asked, seed, queries)
    if len(chosen) == 0:
        return {"asked": asked_name, "bank": bank_name, "bank_size": len(bank), "queries": []}
    rows, alike = nearest_neighbours(z, chosen, bank, neighbours)
    shown = []
    for query, near, values in zip(chosen.tolist(), rows.tolist(), alike.tolist(), strict=True):
        own = _entry(images, query, side)
        others = []
        for row, value in zip(near, values, strict=True):
            other = _entry(images, row, side)
            known = own["class"] is not None and other["class"] is not None
            same = own["class"] == other["class"] if known else None
            others.append({**other, "similarity": round(value, 4), "same": same})
        shown.append({**own, "neighbours": others})
    return {"asked": asked_name, "bank": bank_name, "bank_size": len(bank), "queries": shown}


def thumbnail(pixels: Tensor, side: int = SIDE) -> Tensor:
    """Scale an image down until its longer side has ``side`` pixels, antialiased; smaller ones stay as they are.

    Args:
        pixels: (3, h, w) uint8.
        side: >= 1.

    Returns:
        (3, h', w') uint8.
    """
    height, width = pixels.shape[1:]
    if max(height, width) <= side:
        return pixels
    scale = side / max(height, width)
    size = [max(1, round(height * scale)), max(1, round(width * scale))]
    found = F.interpolate(pixels[None].float(), size, mode="bilinear", antialias=True, align_corners=False)
    return found[0].round().clamp(0, 255).to(torch.uint8)


def png(pixels: Tensor) -> bytes:
    """Encode an image as PNG: 8 bits, RGB, not interlaced, every row as its difference to the one above (filter 2).

    [PNG specification, sections 5, 9 and 11]

    Args:
        pixels: (3, h, w) uint8, h, w >= 1.

    Raises:
        ValueError: another shape or type.
    """
    if pixels.ndim != 3 or pixels.shape[0] != 3 or pixels.dtype != torch.uint8 or 0 in pixels.shape:
        raise ValueError(f"pixels must be (3, h, w) uint8, got {tuple(pixels.shape)} {pixels.dtype}")
    height, width = pixels.shape[1:]
    rows = pixels.cpu().permute(1, 2, 0).reshape(height, 3 * width)
    differences = rows - F.pad(rows, (0, 0, 1, 0))[:-1]  # modulo 256
    filtered = F.pad(differences, (1, 0), value=2).numpy().tobytes()

    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(filtered, 9))
        + chunk(b"IEND", b"")
    )


def _nearest(unit: Tensor, queries: Tensor, bank: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Rows and cosines (B, k) of the rows of the bank that are closest to a block of queries."""
    alike = unit.new_empty(len(queries), 0)
    rows = torch.empty(len(queries), 0, dtype=torch.long, device=unit.device)
    for tile in bank.split(TILE):
        products = unit[queries] @ unit[tile].mT
        products.masked_fill_(queries[:, None] == tile[None], -torch.inf)
        alike, rows = torch.cat([alike, products], 1), torch.cat([rows, tile.expand(len(queries), -1)], 1)
        alike, order = alike.topk(min(k, alike.shape[1]))
        rows = rows.gather(1, order)
    return rows, alike.clamp(-1, 1)


def _parts(images: Images) -> tuple[tuple[str, Tensor], tuple[str, Tensor]]:
    """Where queries and neighbours come from: what it is called, and the rows."""
    everything = torch.arange(len(images))
    asked = next((part for part in ("test", "val") if len(images.splits.get(part, ()))), None)
    if asked is None:
        return ("all images", everything), ("all images", everything)
    names = {"test": "test images", "val": "validation images"}
    rows = images.splits[asked]
    train = images.splits.get("train", everything[:0])
    if len(train):
        return (names[asked], rows), ("training images", train.unique())
    rest = everything[~torch.isin(everything, rows)]
    return (names[asked], rows), ("all other images", rest)


def _spread_over_classes(images: Images, rows: Tensor, seed: int, count: int) -> Tensor:
    """Some of the rows in random order, in turns over the classes; those without a class last."""
    order = rows[rng.permutation(seed, "neighbour queries", 0, len(rows))].tolist()
    labels = [-1] * len(order) if images.y is None else images.y[order].tolist()
    seen: Counter[int] = Counter()
    ranked = []
    for place, (row, label) in enumerate(zip(order, labels, strict=True)):
        ranked.append((label < 0, seen[label] if label >= 0 else 0, place, row))
        seen[label] += 1
    chosen = sorted(ranked)[:count]
    return torch.tensor([row for *_, row in chosen], dtype=torch.int64)


def _entry(images: Images, row: int, side: int) -> dict[str, Any]:
    """What is shown of one image."""
    label = -1 if images.y is None else int(images.y[row])
    names = images.class_names
    known = None if label < 0 else names[label] if names is not None else str(label)
    return {
        "row": row,
        "name": images.ids[row] if images.ids is not None else f"image {row}",
        "class": known,
        "image": base64.b64encode(png(thumbnail(images[row], side))).decode("ascii"),
    }
