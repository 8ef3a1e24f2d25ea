"""Of which domain a record of an adaptation is, and what its readouts are called."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from leanlabel.report.answer import mapping
from leanlabel.report.markup import Markup, tag
from leanlabel.report.page import notice

_CHOSEN = (
    "evaluation.select=best_target_val kept the weights of the best mIoU on the target's val part. Who has no labels "
    "of the target cannot do the same, and the scores on that part are too good."
)


def is_adaptation(config: Mapping[str, Any]) -> bool:
    """Whether a configuration names a source and a target."""
    return {"source", "target"} <= mapping(config.get("data")).keys()


def readout_names(config: Mapping[str, Any]) -> dict[str, str]:
    """When the network was as a readout has it, where the readout's own name would mislead.

    >>> readout_names({"data": {"source": {}, "target": {}}, "stages": {"source": {"steps": 400}}})
    {'initial': 'before the last stage'}
    >>> readout_names({"data": {"kind": "scenes"}})
    {}
    """
    staged = is_adaptation(config) and mapping(config.get("stages"))
    return {"initial": "before the last stage"} if staged else {}


def placed(results: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """The results of an adaptation with, in each record under "on", which images it is of; others as they are.

    Where neither the record nor its neighbours tell the domain, nothing is said.
    """
    protocols = mapping(results.get("protocols"))
    if not is_adaptation(config) or not protocols:
        return dict(results)
    with_source = any(str(name).endswith(":source") for name in protocols)
    found = {}
    for name, one in protocols.items():
        record = mapping(one)
        domain = record.get("domain")
        if domain not in ("source", "target"):
            domain = "source" if str(name).endswith(":source") else "target" if with_source else None
        told = {"source": "held-out source images", "target": "target images"}.get(str(domain))
        part = mapping(record.get("split")).get("name")
        on = f"{told}, part {part}" if told and part else told
        found[name] = {**record, "on": on}
    return {**results, "protocols": found}


def chosen_by_target(config: Mapping[str, Any]) -> Markup | None:
    """A box where labels of the target chose the weights."""
    if not is_adaptation(config) or mapping(config.get("evaluation")).get("select") != "best_target_val":
        return None
    return notice("warn", "Labels of the target chose the weights.", tag("p", _CHOSEN))
