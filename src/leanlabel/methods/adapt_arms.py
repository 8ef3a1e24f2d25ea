"""Arms that a staged adaptation is held against: the same recipe with terms left out, in all of its stages."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from leanlabel.methods.dense_settings import TermEntry
from leanlabel.methods.terms import find_term

PLAIN = {"terms": [{"name": "cross-entropy"}], "ema": None, "adabn": False, "sampling": {"name": "uniform"}}
"""Section ``method`` of a training on labelled images alone."""


def without(values: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    """Changes of a recipe that leave some terms out, of all trainings; none where no training has any of them.

    A training that would have no term left keeps the cross-entropy of labelled images.

    Args:
        values: keys of the recipe.
        names: of the terms.

    Example:
        >>> without({"method": {"terms": [{"name": "cross-entropy"}, {"name": "entropy"}]}}, ["entropy"])
        {'method': {'terms': [{'name': 'cross-entropy'}]}}
    """
    found: dict[str, Any] = {}
    own = _left(values.get("method", {}), names)
    if own is not None:
        found["method"] = {"terms": own}
    stages = {}
    for name, stage in (values.get("stages") or {}).items():
        terms = None if stage is None else _left(stage.get("method", {}), names)
        if terms is not None:
            stages[name] = {"method": {"terms": terms}}
    return found | ({"stages": stages} if stages else {})


def asked_for(values: Mapping[str, Any], name: str) -> bool:
    """Whether another term of some training cannot do without a term, by its settings.

    Example:
        >>> pasting = {"name": "content-transfer", "settings": {"mode": "decoded"}}
        >>> asked_for({"method": {"terms": [pasting, {"name": "zero-style"}]}}, "zero-style")
        True
    """
    trainings = [values, *(stage for stage in (values.get("stages") or {}).values() if stage is not None)]
    entries = [TermEntry.model_validate(one) for each in trainings for one in _terms(each)]
    return any(name in find_term(entry.name).asks(entry.typed()) for entry in entries)


def source_only(values: Mapping[str, Any]) -> dict[str, Any]:
    """Changes of a recipe that make all of its trainings read labelled images alone, for as many iterations."""
    kept = {
        key: value for key, value in PLAIN.items() if key != "sampling"
    }  # so that a plain stage is shared
    stages = {
        name: {"method": kept} for name, stage in (values.get("stages") or {}).items() if stage is not None
    }
    return {"method": dict(PLAIN)} | ({"stages": stages} if stages else {})


def _terms(training: Mapping[str, Any]) -> list[Any]:
    return list(training.get("method", {}).get("terms") or [])


def _left(method: Mapping[str, Any], names: Collection[str]) -> list[Any] | None:
    """Terms that are left; None where none of the names is among them."""
    terms = list(method.get("terms") or [])
    left = [entry for entry in terms if entry["name"] not in names]
    return None if len(left) == len(terms) else left or [{"name": "cross-entropy"}]
