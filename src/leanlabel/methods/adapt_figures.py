"""What the page of an adaptation shows besides that of a segmentation, taken from the trained method."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

from leanlabel.data.dense import DenseImages
from leanlabel.evaluation.adaptation_pictures import Shown2, adaptation_figure
from leanlabel.evaluation.tails import head_and_tail
from leanlabel.methods.dense_readouts import name_of
from leanlabel.methods.segmentation import channels_of, channels_read

if TYPE_CHECKING:
    from leanlabel.methods.adapt import Adapt
    from leanlabel.methods.domains import Domains


def adaptation_pictures(method: Adapt, data: Domains) -> dict[str, Any]:
    """The same target images before and after, as ``{"adaptation": ...}``; nothing where there is nothing before.

    Before is what :meth:`~leanlabel.methods.segmentation.Segmentation.keep_initial` was given: the weights that the
    last training started from. With labels of the target these are images of the part that was measured; without
    them, training images.
    """
    start, settings, target = method._start, method.cfg.evaluation, data.target
    if start is None or settings.protocol == "none" or not _reads(method, target):
        return {}
    _, images, part = method.to_measure(data)[0]
    before, after = (method._found.get(("miou", key)) for key in ("initial", "trained"))
    if after is None:
        return {}
    labelled = images is target and before is not None
    if labelled and before is not None:
        rows = [row for row in after.images if row in before.images]
        scores = [(before.images[row].miou, after.images[row].miou) for row in rows]
        predicted = after.table.sum(0).double()
    else:
        part, scores, rows = "images to train on", None, method.watching.target.tolist()
        predicted = torch.zeros(len(method.classes), dtype=torch.float64)
        for row in rows:
            found = method.read_batch(target.pixels.read([row])[0][None]).classes.flatten()
            predicted += found.long().bincount(minlength=len(predicted))

    def show(place: int) -> Shown2:
        row = rows[place]
        image = target.pixels.read([row])[0]
        mask = target.masks[row] if labelled and target.masks is not None else None
        pair = [one.read_batch(image[None]).classes[0] for one in (start, method)]
        return Shown2(image, mask, *pair)

    pixels = torch.tensor(method.class_pixels(data.source), dtype=torch.float64)
    figure = adaptation_figure(
        part,
        method.classes,
        started=_started(method),
        before=before.table if labelled and before is not None else None,
        after=after.table if labelled else None,
        names=[name_of(target, row) for row in rows],
        scores=scores,
        show=show,
        kept=None if method.stored is None else method.stored.kept_share,
        thresholds=None if method.stored is None else method.stored.thresholds,
        source_share=(pixels / pixels.sum().clamp_min(1)).tolist(),
        predicted_share=(predicted / predicted.sum().clamp_min(1)).tolist(),
    )
    return {"adaptation": figure}


def with_domains(found: dict[str, Any], data: Domains, measured: list[tuple[str, DenseImages, str]]) -> Any:
    """Say in each record of a measurement which domain it is of, under "domain": "source" or "target"."""
    of = {name: "source" if images is data.source else "target" for name, images, _ in measured}
    for one in (found.get("protocol"), *found.get("further", ())):
        if one is not None:
            one["domain"] = of[one["protocol"]]
    return found


def add_tails(method: Adapt, data: Domains, records: list[dict[str, Any]]) -> None:
    """Put the mean IoU of the tail and of the other classes beside the main number of every readout.

    The tail are the rarest classes of the labelled source images, so that it is the same for all arms.
    """
    pixels = torch.tensor(method.class_pixels(data.source))
    for one in records:
        for key, readout in one["readouts"].items():
            measured = method._found.get((one["protocol"], key))
            if measured is None:
                continue
            head, tail, _ = head_and_tail(measured.scores.iou, pixels, method.cfg.evaluation.tail)
            for name, value in (("head mIoU", head), ("tail mIoU", tail)):
                if math.isfinite(value):
                    readout["others"][name] = value


def _started(method: Adapt) -> str:
    stages = list(method.cfg.stages)
    return f"weights after stage {stages[-1]}" if stages else "weights that training started from"


def _reads(method: Adapt, data: DenseImages) -> bool:
    """Whether the network takes images of so many channels."""
    return channels_read(method.deployed) == channels_of(data)
