"""Class probabilities of rows as a table that other programs read, with a summary beside it."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from leanlabel.engine.progress import Bar
from leanlabel.engine.runfolder import write_json
from leanlabel.errors import InputError
from leanlabel.evaluation.classifier import Classifier
from leanlabel.export.staging import check_target, staged

FORMATS = ("csv", "parquet", "npz")
NAME = "predictions"
BLOCK = 10_000
"""Rows of a CSV file that are turned into text at a time."""


class Model(Protocol):
    """Who predicts: a run, or an export."""

    @property
    def classifier(self) -> Classifier | None: ...

    @property
    def provenance(self) -> dict[str, Any]: ...

    def open(self, path: str, /) -> Any: ...

    def predict(self, data: Any, /) -> Tensor: ...


@dataclass(frozen=True, eq=False)
class Predictions:
    """What a model says about the rows of one input.

    Attributes:
        name: of the input, for people.
        ids: N names, or None where rows are numbered.
        classes: C names.
        probabilities: (N, C), rows sum to 1.
        seen: (N,) bool, the label of this row was used to fit the readout.
    """

    name: str
    ids: Sequence[str] | None
    classes: tuple[str, ...]
    probabilities: Tensor
    seen: Tensor

    @property
    def chosen(self) -> Tensor:
        """(N,) int64, the most probable class; the first of equal ones."""
        return self.probabilities.argmax(1)

    @property
    def names(self) -> list[str]:
        """N ids, row numbers where there are none."""
        return [str(k) for k in range(len(self.probabilities))] if self.ids is None else list(self.ids)

    def summary(self) -> dict[str, Any]:
        """Rows, predicted rows per class, mean confidence, and mean entropy in nats (0 sure, ln C clueless).

        entropy = -sum_c p_c ln p_c per row.
        """
        p = self.probabilities.double()
        rows = len(p)
        counts = torch.bincount(self.chosen, minlength=len(self.classes)).tolist()
        entropy = -torch.special.xlogy(p, p).sum(1)
        return {
            "input": self.name,
            "rows": rows,
            "seen": int(self.seen.sum()),
            "classes": [{"name": name, "rows": n} for name, n in zip(self.classes, counts, strict=True)],
            "mean_confidence": float(p.amax(1).mean()) if rows else None,
            "mean_entropy": float(entropy.mean()) if rows else None,
            "largest_entropy": math.log(max(1, len(self.classes))),
        }


def predict_inputs(
    model: Model,
    inputs: Sequence[str],
    out: Path,
    *,
    own: Any = None,
    form: str = "csv",
    force: bool = False,
    quiet: bool = False,
) -> list[dict[str, Any]]:
    """Predict inputs and write ``predictions.<form>`` and ``predictions.json``, for several inputs in a folder each.

    Nothing is written unless every input could be predicted.

    Args:
        model: a run or an export.
        inputs: places of data; empty means `own`.
        out: folder to make.
        own: the data that a run was trained on.
        form: "csv", "parquet" or "npz".
        force: replace files of a folder that is there already.
        quiet: no progress line.

    Returns:
        One summary per input, as written.

    Raises:
        InputError: unknown format, a place that is taken, two inputs of one name, data that does not fit, rows whose
            names are not text.
    """
    if form not in FORMATS:
        raise InputError(f"--format {form}: predictions are written as {', '.join(FORMATS)}.")
    check_target(out, force)
    stems = _stems(inputs)
    classifier = model.classifier
    if classifier is None:
        raise InputError(
            "This model cannot name classes: it has no labels (or evaluation.protocol=none), or is a backbone.",
            "Take its embeddings with `leanlabel embed RUN --out embeddings.npy`.",
        )
    summaries = []
    with staged(out, force) as folder, Bar(max(1, len(inputs)), label="predict", show=not quiet) as bar:
        for done, place in enumerate(inputs or [None], start=1):
            data = own if place is None else model.open(place)
            found = predictions(model, classifier, data)
            about = {
                **found.summary(),
                "format": form,
                "readout": dict(classifier.about),
                "model": model.provenance,
            }
            target = folder / stems[done - 1] if len(inputs) > 1 else folder
            write(target, found, form, about)
            summaries.append(about)
            bar.advance(done)
    _drop_other_forms(out, stems if len(inputs) > 1 else [""], form)
    return summaries


def predictions(model: Model, classifier: Classifier, data: Any) -> Predictions:
    """What a model says about data."""
    name, ids = str(getattr(data, "name", "data")), getattr(data, "ids", None)
    _check_text(name, ids)
    p = model.predict(data).cpu()
    return Predictions(name, ids, tuple(classifier.classes), p, classifier.saw(data, len(p)))


def _check_text(name: str, ids: Sequence[str] | None) -> None:
    """Refuse names of rows that no table takes: names of files may be any bytes."""
    for one in ids or ():
        try:
            one.encode()
        except UnicodeEncodeError as error:
            raise InputError(f"{name}: the name {one!r} is not text.", "Rename this file.") from error


def write(folder: Path, found: Predictions, form: str, about: dict[str, Any]) -> None:
    """Write table and summary into a folder.

    The columns of the table: id, class, probability (of that class), p_<class> for every class, seen. Ids and names
    of classes are written as they are in the data, unchanged: a spreadsheet may take one that starts with = for a
    formula. An .npz holds ids, classes, predicted (int64), probability, probabilities (N, C) and seen.

    Raises:
        InputError: pyarrow is missing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{NAME}.{form}"
    p, seen = found.probabilities.float().numpy(), found.seen.numpy()
    chosen = found.chosen.numpy()
    best = np.take_along_axis(p, chosen[:, None], 1)[:, 0] if len(p) else np.zeros(0, np.float32)
    columns = ["id", "class", "probability", *(f"p_{name}" for name in found.classes), "seen"]
    if form == "npz":
        with open(path, "wb") as handle:
            np.savez_compressed(
                handle,
                ids=np.array(found.names, dtype=np.str_),
                classes=np.array(found.classes, dtype=np.str_),
                predicted=chosen,
                probability=best,
                probabilities=p,
                seen=seen,
            )
    elif form == "parquet":
        labels = [found.classes[c] for c in chosen]
        _write_parquet(path, columns, [found.names, labels, best, *p.T, seen])
    else:
        _write_csv(path, columns, found, chosen, best, p, seen)
    write_json(folder / f"{NAME}.json", about)


def _write_csv(
    path: Path,
    columns: list[str],
    found: Predictions,
    chosen: np.ndarray,
    best: np.ndarray,
    p: np.ndarray,
    seen: np.ndarray,
) -> None:
    """RFC 4180, line ends included: cells with commas, quotes or line ends stand in quotes."""
    names = found.names
    with open(path, "w", encoding="utf-8", newline="") as handle:
        table = csv.writer(handle)
        table.writerow(columns)
        for start in range(0, len(p), BLOCK):
            block = slice(start, start + BLOCK)
            # As text numpy gives the fewest digits that read back as the same float32.
            numbers = np.column_stack([best[block], p[block]]).astype(np.str_).tolist()
            for name, c, row, known in zip(names[block], chosen[block], numbers, seen[block], strict=True):
                table.writerow([name, found.classes[c], *row, "true" if known else "false"])


def _write_parquet(path: Path, columns: list[str], values: list[Any]) -> None:
    try:
        import pyarrow as arrow
        from pyarrow import parquet
    except ImportError as error:
        hint = "Install it with pip install 'leanlabel[graph]', or use --format csv."
        raise InputError("Parquet files need pyarrow.", hint) from error
    arrays = [arrow.array(np.ascontiguousarray(v) if isinstance(v, np.ndarray) else v) for v in values]
    parquet.write_table(arrow.Table.from_arrays(arrays, names=columns), path)


def _stems(inputs: Sequence[str]) -> list[str]:
    """A folder name for each input: its own name without the ending.

    Raises:
        InputError: two inputs would share one.
    """
    stems: list[str] = []
    for place in inputs:
        path = Path(place).expanduser().absolute()
        stem = path.name if path.is_dir() else path.stem
        if stem.lower() in (known.lower() for known in stems):
            raise InputError(
                f"{place}: another input is called {stem}, too, so their results would lie in one folder.",
                "Predict them one after the other, each with its own --out.",
            )
        stems.append(stem)
    return stems


def _drop_other_forms(out: Path, places: Sequence[str], form: str) -> None:
    """Take away tables of an earlier call in another format: they would contradict the new summary."""
    for place in places:
        for other in FORMATS:
            if other != form:
                (out / place / f"{NAME}.{other}").unlink(missing_ok=True)
