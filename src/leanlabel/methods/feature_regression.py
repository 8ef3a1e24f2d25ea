"""Transfer to a new sensor without new masks: the maps of a trained network are the target of another network's.

Benbihi, Geist and Pradalier, "Deep Representation Learning for Domain Adaptation of Semantic Image Segmentation"
(arXiv 1805.04141, 2018). A network is trained on labelled images of one sensor (stage ``source``) and frozen. Each
image of the new sensor has a partner of the same scene from the old one; the new network, on the new image, is to give
the maps that the frozen one gives on the partner. The classifier stays. This is a reconstruction from the abstract:
layers, loss, optimiser and tolerance of misalignment are choices that recipes state.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from leanlabel.config import RunConfig
from leanlabel.evaluation.pair_agreement import pair_agreement
from leanlabel.evaluation.shift import estimate_shift, least_response
from leanlabel.methods.adapt import Adapt
from leanlabel.methods.adapt_settings import AdaptConfig, AdaptMethodSettings
from leanlabel.methods.adapt_watch import evenly
from leanlabel.methods.dense_measuring import plain_segmenter
from leanlabel.methods.dense_readouts import name_of
from leanlabel.methods.dense_settings import TermEntry
from leanlabel.methods.domains import Domains, valid_places

LOOKED_AT = 64
"""Pairs whose shift and agreement are measured."""


class RegressionMethodSettings(AdaptMethodSettings):
    """What the new network learns from pairs."""

    name: Literal["feature-regression"] = "feature-regression"  # pyright: ignore[reportIncompatibleVariableOverride]
    """Method."""
    terms: tuple[TermEntry, ...] = (TermEntry(name="feature-regression"),)
    """Ordered list of {name, weight, start, settings}."""
    most_shift: int = Field(default=16, ge=1)
    """Largest shift between the images of a pair, in pixels, that the report looks for; below half of their sides."""


class RegressionConfig(AdaptConfig):
    """The keys of every recipe of feature regression."""

    method: RegressionMethodSettings = RegressionMethodSettings()  # pyright: ignore[reportIncompatibleVariableOverride]
    """Terms, and where the network starts from."""

    @model_validator(mode="after")
    def _paired(self) -> Self:
        if self.data.pairs is None:
            raise ValueError(
                "data.pairs: which image of the target shows the same scene as which of the source"
            )
        return self


def _arm(*terms: str, **more: Any) -> dict[str, Any]:
    return {"method": {"terms": [{"name": name} for name in terms]}, **more}


class FeatureRegression(Adapt):
    """Training on pairs of a labelled and an unlabelled domain, measured on the unlabelled one."""

    Config: ClassVar[type[RunConfig]] = RegressionConfig
    baselines: ClassVar[dict[str, dict[str, Any]]] = {
        "unadapted": {
            "steps": 0,
            "method": {"terms": [{"name": "feature-regression"}], "fresh": False},
        },
        "adabn": {
            "steps": 0,
            "method": {"terms": [{"name": "feature-regression"}], "adabn": True, "fresh": False},
        },
        "mask-reuse": _arm("mask-reuse"),
        "logit-distillation": _arm("logit-distillation"),
        "self-training": {"method": {"terms": [{"name": "self-training"}], "fresh": False}},
        "labelled": {"method": {"terms": [{"name": "labelled-target"}], "target_labels": True}},
    }

    def label_free(self, data: Domains) -> dict[str, float]:
        """Scores that read no labels, and how far the network agrees with the frozen one on pairs, before and now."""
        found = super().label_free(data)
        if self.reference is None or data.partners is None:
            return found
        for name, student in (("pair agreement before", self._start), ("pair agreement", self)):
            if student is not None:
                found[name] = self._agreement(data, student)["agreement"]
        return {key: value for key, value in found.items() if value is not None}

    def figures(self, data: Domains) -> dict[str, Any]:
        """Pictures of an adaptation, and what is known of the pairs: their shifts, agreement by region."""
        found = super().figures(data)
        if self.reference is None or data.partners is None:
            return found
        height, width = self._shown_size(data)
        shifts = [
            {"id": name_of(data.target, row), "dy": one.dy, "dx": one.dx, "response": one.response}
            for row, one in self._shifts(data)
        ]
        arms = {"before": self._start, "after": self}
        return found | {
            "pairs": {
                "shifts": shifts,
                "least_response": least_response(height, width),
                "agreement": {
                    name: self._agreement(data, student)
                    for name, student in arms.items()
                    if student is not None
                },
            }
        }

    def notes(self) -> list[str]:
        """What is to be known of this training; pairs that do not look like one scene."""
        found = super().notes()
        if self.needs.pairs and self.data.partners is not None:
            limit = least_response(*self._shown_size(self.data))
            shifts = list(self._shifts(self.data))
            doubtful = [name_of(self.data.target, row) for row, one in shifts if one.response < limit]
            if doubtful:
                found.append(
                    f"{len(doubtful)} of {len(shifts)} pairs looked at may not show the same scene, such as "
                    f"{doubtful[0]}: no shift of up to {self.cfg.method.most_shift} pixels aligns them"
                )
        return found

    def _shown_size(self, data: Domains) -> tuple[int, int]:
        image = data.target.pixels.read([int(self.target_rows[0])])[0]
        return int(image.shape[-2]), int(image.shape[-1])

    def _pairs(self, data: Domains) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Row, image of the source, image of the target, of training pairs evenly spread."""
        assert data.partners is not None
        for row in evenly(self.target_rows, LOOKED_AT).tolist():
            partner = data.partners.candidates[row][0]
            yield row, data.source.pixels.read([partner])[0], data.target.pixels.read([row])[0]

    def _shifts(self, data: Domains) -> Iterator[tuple[int, Any]]:
        for row, old, new in self._pairs(data):
            most = min(self.cfg.method.most_shift, (min(old.shape[-2:]) - 1) // 2)
            yield row, estimate_shift(old, new, most)

    @torch.no_grad()
    def _agreement(self, data: Domains, student: Any) -> dict[str, Any]:
        assert self.reference is not None
        reference, network = plain_segmenter(self.reference.network), student.deployed
        was = self.training
        self.eval()

        def pairs() -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
            for row, old, new in self._pairs(data):
                with self._source_look():
                    first = self.normalised(old[None])
                yield first, self.normalised(new[None]), _valid(data, row, old, new)

        try:
            return pair_agreement(reference.eval(), network.eval(), pairs(), len(self.classes))
        finally:
            self.train(was)


def _valid(data: Domains, row: int, old: Tensor, new: Tensor) -> Tensor | None:
    """Pixels (1, h, w) bool where an image of the target and its partner both show something; None: everywhere."""
    assert data.partners is not None
    found = [
        valid_places(data.source, [data.partners.candidates[row][0]], old[None]),
        valid_places(data.target, [row], new[None]),
    ]
    known = [one for one in found if one is not None]
    return torch.stack(known).all(0) if known else None
