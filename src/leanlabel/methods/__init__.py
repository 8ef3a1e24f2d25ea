"""The table of methods: name -> "module:Class", as plain strings; other packages add rows through entry points."""

from __future__ import annotations

import difflib
from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

from leanlabel.errors import InputError

if TYPE_CHECKING:
    from leanlabel.engine.method import Method

TABLE: dict[str, str] = {
    "gca": "leanlabel.methods.gca:GCA",
    "bgrl": "leanlabel.methods.bgrl:BGRL",
    "dgi": "leanlabel.methods.dgi:DGI",
    "cca-ssg": "leanlabel.methods.cca_ssg:CCASSG",
    "mochi": "leanlabel.methods.mochi:MoCHi",
    "dense-moco": "leanlabel.methods.dense_moco:DenseMoCo",
    "simclr": "leanlabel.methods.simclr:SimCLR",
    "byol": "leanlabel.methods.byol:BYOL",
    "simsiam": "leanlabel.methods.simsiam:SimSiam",
    "vicreg": "leanlabel.methods.vicreg:VICReg",
    "supervised-image": "leanlabel.methods.supervised_image:SupervisedImage",
    "segmentation": "leanlabel.methods.segmentation:Segmentation",
    "adapt": "leanlabel.methods.adapt:Adapt",
    "spcl": "leanlabel.methods.spcl:SPCL",
    "content-transfer": "leanlabel.methods.content_transfer:ContentTransferMethod",
    "feature-regression": "leanlabel.methods.feature_regression:FeatureRegression",
    "supervised-graph": "leanlabel.methods.supervised_graph:SupervisedGraph",
}


def table() -> dict[str, str]:
    """All methods that can be named in a recipe, third-party ones (group ``leanlabel.methods``) included."""
    return {**{entry.name: entry.value for entry in entry_points(group="leanlabel.methods")}, **TABLE}


def find(name: str) -> type[Method]:
    """The class of a method.

    Raises:
        InputError: no such method; names the nearest one.
    """
    rows = TABLE if name in TABLE else table()  # entry points take milliseconds to read
    if name not in rows:
        near = difflib.get_close_matches(name, rows, n=1, cutoff=0.4)
        hint = f"Did you mean {near[0]!r}?" if near else f"Known methods: {', '.join(rows)}."
        raise InputError(f"method.name: unknown method {name!r}.", hint)
    module, _, attribute = rows[name].partition(":")
    return getattr(import_module(module), attribute)
