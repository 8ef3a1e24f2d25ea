"""Does this machine compute what the papers say? Cases with known answers, run on a device in a precision."""

from __future__ import annotations

TABLE: dict[str, str] = {
    "gca": "leanlabel.verify.gca:cases",
    "bgrl": "leanlabel.verify.rivals:bgrl",
    "cca-ssg": "leanlabel.verify.rivals:cca_ssg",
    "dgi": "leanlabel.verify.rivals:dgi",
    "mochi": "leanlabel.verify.images:cases",
    "segmentation": "leanlabel.verify.dense:cases",
    "adapt": "leanlabel.verify.adaptation:cases",
    "spcl": "leanlabel.verify.prototypes:cases",
    "content-transfer": "leanlabel.verify.content_transfer:cases",
}
"""System -> "module:function" that returns its list of :class:`leanlabel.verify.case.Case`, as plain strings."""
