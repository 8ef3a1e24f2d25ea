"""Look at images before a run does: counts, sizes, classes, copies and what cannot be read, as plain findings."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from leanlabel.data.decode import decode_with_header
from leanlabel.data.findings import Finding, Severity, class_findings, share
from leanlabel.data.graphs import UNLABELLED
from leanlabel.data.image_files import list_images
from leanlabel.data.image_folder import Layout
from leanlabel.data.images import THREADS, Images, PixelArray, PixelFiles
from leanlabel.errors import InputError

SMALL_SIDE = 16
"""Images with a shorter side of fewer pixels have little left after a random crop."""
LARGE_PIXELS = 4_000_000
"""Decoding images of more pixels costs more than most training steps."""
QUEUE = 4096
"""The queue of negatives of the packaged recipes for small images."""
GREY = 2.0
"""An image whose largest and smallest channel differ by less than this on average (of 255) counts as grey."""
_SAMPLE = 256
_CHUNK = 32
_SHOWN = 5


@dataclass
class _Look:
    """One pass over all images; every list has one entry per readable image.

    Args:
        rows: row numbers.
        sizes: width and height.
        digests: hash of the pixels.
        grey: whether the channels are nearly equal.
        flat: whether all pixels have one colour.
        modes: pixel formats of files and their number.
        faults: row -> message.
    """

    rows: list[int] = field(default_factory=list)
    sizes: list[tuple[int, int]] = field(default_factory=list)
    digests: list[bytes] = field(default_factory=list)
    grey: list[bool] = field(default_factory=list)
    flat: list[bool] = field(default_factory=list)
    modes: Counter[str] = field(default_factory=Counter)
    faults: dict[int, str] = field(default_factory=dict)


def check_images(
    images: Images | str | Path,
    *,
    layout: Layout = "auto",
    progress: Callable[[int, int], None] | None = None,
) -> list[Finding]:
    """Describe a set of images and name everything in it that may surprise; decodes every image once.

    Args:
        images: images, or where they are.
        layout: what folders mean, for a place.
        progress: called now and then with the number of images looked at, and of all.

    Returns:
        Findings: files first, then sizes, colours, labels, domains, copies, splits.

    Raises:
        InputError: the place holds no images at all. Single unreadable files are a finding.
    """
    if not isinstance(images, Images):
        images = _unread(images, layout)
    look = _pass(images, progress)
    return [
        *_files(images, look),
        *_sizes(look),
        *_colours(look),
        *_labels(images),
        *_domains(images),
        *_copies(images, look),
        *_splits(images),
    ]


def _unread(path: str | Path, layout: Layout) -> Images:
    listing = list_images(path, layout=layout)
    source = listing.source
    return Images(
        listing.name,
        PixelArray(source) if isinstance(source, Tensor) else PixelFiles(source),
        listing.y,
        listing.class_names,
        listing.splits,
        listing.ids,
        listing.domain,
        listing.domain_names,
        listing.facts,
    )


def _pass(images: Images, progress: Callable[[int, int], None] | None) -> _Look:
    n, pixels, look = len(images), images.pixels, _Look()

    def one(row: int) -> tuple[tuple[int, int], bytes, bool, bool, str | None] | str:
        mode = None
        try:
            if isinstance(pixels, PixelFiles):
                store = pixels.store
                image, head = decode_with_header(store.read(row), store.where(row), pixels.fit)
                mode = head.mode
            else:
                image = pixels[row]
        except InputError as error:
            return str(error)
        digest = hashlib.blake2b(f"{tuple(image.shape)}".encode(), digest_size=16)
        digest.update(image.contiguous().numpy().data)
        height, width = image.shape[1:]
        rough = image[:, :: 1 + height // _SAMPLE, :: 1 + width // _SAMPLE]
        spread = float((rough.amax(0) - rough.amin(0)).float().mean())
        flat = bool((image.flatten(1).amax(1) == image.flatten(1).amin(1)).all())
        return (int(width), int(height)), digest.digest(), spread < GREY, flat, mode

    def chunk(start: int) -> list[tuple[tuple[int, int], bytes, bool, bool, str | None] | str]:
        return [one(row) for row in range(start, min(start + _CHUNK, n))]

    done = 0
    with ThreadPoolExecutor(THREADS) as threads:
        for found in threads.map(chunk, range(0, n, _CHUNK)):
            for row, result in enumerate(found, done):
                if isinstance(result, str):
                    look.faults[row] = result
                    continue
                size, digest, grey, flat, mode = result
                look.rows.append(row)
                look.sizes.append(size)
                look.digests.append(digest)
                look.grey.append(grey)
                look.flat.append(flat)
                if mode is not None:
                    look.modes[mode] += 1
            done += len(found)
            if progress is not None:
                progress(done, n)
    return look


def _files(images: Images, look: _Look) -> list[Finding]:
    n = len(images)
    found = [Finding("info", "images", f"{n} images", n)]
    if look.faults:
        shown = "; ".join(look.faults[row].rstrip(".") for row in sorted(look.faults)[:_SHOWN])
        more = ", ..." if len(look.faults) > _SHOWN else ""
        text = f"{len(look.faults)} images cannot be read: {shown}{more}"
        found.append(Finding("error", "unreadable", text, len(look.faults)))
    said: tuple[tuple[str, Severity, str], ...] = (
        ("unreadable_skipped", "warning", "unreadable images were left out"),
        ("other_files", "info", "files are not images and were passed over"),
        ("empty_folders", "warning", "folders hold no image"),
        ("outside_splits", "warning", "images lie beside train, val and test and belong to none of them"),
        ("val_used_as_test", "info", "images of a part called val are the test part, for there is none"),
        ("limited_from", "info", "images are there, of which a limit keeps some"),
    )
    for key, severity, text in said:
        count = int(images.facts.get(key, 0))
        if count:
            found.append(Finding(severity, key, f"{count} {text}", count))
    training = len(images.splits["train"]) if "train" in images.splits else n
    if training < QUEUE:
        text = (
            f"{training} images to train on are fewer than the {QUEUE} keys that a queue holds by default: "
            "make the queue a good deal smaller, or an image is its own negative"
        )
        found.append(Finding("info", "few_images", text, training))
    return found


def _sizes(look: _Look) -> list[Finding]:
    if not look.sizes:
        return []
    sizes = Counter(look.sizes)
    widths, heights = ([size[axis] for size in look.sizes] for axis in (0, 1))
    found = []
    if len(sizes) == 1:
        text = f"all images are {widths[0]} x {heights[0]} pixels"
    else:
        common, count = sizes.most_common(1)[0]
        text = (
            f"{len(sizes)} sizes (width x height): from {min(widths)} x {min(heights)} to {max(widths)} x "
            f"{max(heights)}, median {median(widths):g} x {median(heights):g}, most often {common[0]} x {common[1]} "
            f"({share(count, len(look.sizes))})"
        )
    found.append(Finding("info", "sizes", text, len(sizes)))
    small = sum(count for size, count in sizes.items() if min(size) < SMALL_SIDE)
    if small:
        text = f"{small} images have a side of fewer than {SMALL_SIDE} pixels: little is left after a random crop"
        found.append(Finding("warning", "small_images", text, small))
    large = sum(count for (width, height), count in sizes.items() if width * height > LARGE_PIXELS)
    if large:
        text = f"{large} images have more than {LARGE_PIXELS / 1e6:g} million pixels: data.resize makes reading cheaper"
        found.append(Finding("info", "large_images", text, large))
    return found


def _colours(look: _Look) -> list[Finding]:
    n = len(look.rows)
    found = []
    if len(look.modes) > 1:
        shown = ", ".join(f"{mode} {count}" for mode, count in look.modes.most_common(8))
        text = f"{len(look.modes)} pixel formats ({shown}), all read as RGB"
        found.append(Finding("info", "mixed_modes", text, len(look.modes)))
    grey = sum(look.grey)
    if grey:
        rest = ": jitter of hue and saturation does nothing" if grey == n else ""
        found.append(Finding("info", "near_grey", f"{grey} images ({share(grey, n)}) are grey{rest}", grey))
    flat = sum(look.flat)
    if flat:
        text = f"{flat} images ({share(flat, n)}) have one colour only"
        found.append(Finding("warning", "one_colour", text, flat))
    return found


def _labels(images: Images) -> list[Finding]:
    if images.y is None:
        return [Finding("info", "no_labels", "no labels: a model can be trained but not evaluated", 0)]
    n = len(images)
    known = images.y[images.labelled]
    counts = torch.bincount(known, minlength=images.num_classes).tolist()
    names = images.class_names or [str(c) for c in range(len(counts))]
    order = sorted((c for c, count in enumerate(counts) if count), key=lambda c: -counts[c])
    present = [(counts[c], names[c]) for c in order]
    found = []
    if len(known) < n:
        text = f"{n - len(known)} images ({share(n - len(known), n)}) are unlabelled"
        found.append(Finding("info", "unlabelled", text, n - len(known)))
    if len(present) < 2:
        text = f"{len(present)} class with labels: a classifier needs two; data.labels: none forgets it"
        return [*found, Finding("warning", "one_class", text, len(present))]
    return [*found, *class_findings(present, counts.count(0), "image", shares=True)]


def _domains(images: Images) -> list[Finding]:
    if images.domain is None:
        return []
    counts = torch.bincount(images.domain).tolist()
    names = images.domain_names or [str(d) for d in range(len(counts))]
    shown = ", ".join(f"{name} {count}" for name, count in list(zip(names, counts))[:12])
    return [Finding("info", "domains", f"{len(counts)} domains: {shown}", len(counts))]


def _copies(images: Images, look: _Look) -> list[Finding]:
    groups: dict[bytes, list[int]] = defaultdict(list)
    for row, digest in zip(look.rows, look.digests):
        groups[digest].append(row)
    several = [rows for rows in groups.values() if len(rows) > 1]
    if not several:
        return []
    extra = sum(len(rows) - 1 for rows in several)
    text = f"{extra} images ({share(extra, len(look.rows))}) are exact copies of another one{_such(images, several)}"
    severity: Severity = "warning" if extra >= 0.01 * len(look.rows) else "info"
    found = [Finding(severity, "duplicates", text, extra)]
    if images.y is not None:
        labels = images.y.tolist()
        torn = [rows for rows in several if len({labels[row] for row in rows} - {UNLABELLED}) > 1]
        if torn:
            text = f"{len(torn)} groups of exact copies have different labels{_such(images, torn)}"
            found.append(Finding("warning", "conflicting_labels", text, len(torn)))
    part_of = _part_of(images)
    for one, other in combinations(images.splits, 2):
        leaks = [rows for rows in several if {one, other} <= {p for row in rows for p in part_of[row]}]
        count = sum(other in part_of[row] and one not in part_of[row] for rows in leaks for row in rows)
        if count:
            of = len(images.splits[other])
            text = (
                f"{count} of {of} images of {other} ({share(count, of)}) are exact copies of images of {one}: scores "
                f"on {other} may be too good{_such(images, leaks)}"
            )
            found.append(Finding("warning", "leak_copies", text, count))
    return found


def _such(images: Images, groups: Iterable[list[int]]) -> str:
    first = next(iter(groups))[:2]
    return "" if images.ids is None else f", such as {' and '.join(images.ids[row] for row in first)}"


def _part_of(images: Images) -> list[set[str]]:
    part_of: list[set[str]] = [set() for _ in range(len(images))]
    for part, rows in images.splits.items():
        for row in rows.tolist():
            part_of[row].add(part)
    return part_of


def _splits(images: Images) -> list[Finding]:
    found = []
    for part, rows in images.splits.items():
        found.append(Finding("info", f"split_{part}", f"{part}: {len(rows)} images", len(rows)))
        repeated = len(rows) - len(torch.unique(rows))
        if repeated:
            text = f"{part} lists {repeated} images more than once"
            found.append(Finding("error", "split_repeats", text, repeated))
    cut = int(images.facts.get("val_cut_from_train", 0))
    if cut:
        text = f"the validation part was cut from {cut} training images with a fixed seed"
        found.append(Finding("info", "val_cut_from_train", text, cut))
    for one, other in combinations(images.splits, 2):
        shared = int(torch.isin(torch.unique(images.splits[one]), images.splits[other]).sum())
        if shared:
            text = f"{shared} images are in both {one} and {other}: scores on {other} are too good"
            found.append(Finding("error", "split_leak", text, shared))
    if images.y is not None and "train" in images.splits:
        known = set(images.y[images.labelled].tolist())
        missing = known - set(images.y[images.splits["train"]].tolist())
        if missing:
            text = f"{len(missing)} of {len(known)} classes have no training image"
            found.append(Finding("warning", "split_missing_classes", text, len(missing)))
    return found
