"""Recognising by their names who made the weights in a file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TypeVar

from torch import Tensor

from leanlabel.errors import InputError

Kind = TypeVar("Kind", bound=str)
FIRST_NAMES = 3
"""How many names of each kind a report for people shows."""
AVERAGED = re.compile(r"(^|[._])(encoder_k|teacher|momentum|target|ema)[._]")
"""In the name of a network that follows another one; it is taken only where there is no other."""


def recognised(
    tensors: Mapping[str, Tensor], markers: Mapping[Kind, tuple[str, str]], network: str, known: str
) -> tuple[Kind, str]:
    """The layout of a file, and what stands before the names of the preferred network in it.

    Several networks in one file are told apart by what stands before their names: the trained one is preferred to
    one that follows it, and the shorter name to the longer.

    Args:
        tensors: name -> tensor.
        markers: layout -> two names that only this layout has.
        network: what such networks are called, for the error.
        known: which layouts there are, for the error.

    Raises:
        InputError: none of these layouts.

    Example:
        >>> import torch
        >>> weights = {"ema.a.w": torch.zeros(1), "ema.b.w": torch.zeros(1)}
        >>> recognised(weights, {"letters": ("a.w", "b.w")}, "toy", "")
        ('letters', 'ema.')
    """
    found: list[tuple[bool, int, str, Kind]] = []
    for layout, (first, second) in markers.items():
        for name in tensors:
            prefix = name.removesuffix(first)
            inside = name.endswith(first) and (not prefix or prefix.endswith("."))
            if inside and f"{prefix}{second}" in tensors:
                found.append((AVERAGED.search(prefix) is not None, len(prefix), prefix, layout))
    if not found:
        raise InputError(
            f"no published layout of a {network} is recognised{first_names(tuple(tensors))}.",
            known,
        )
    *_, prefix, layout = min(found)
    return layout, prefix


def first_names(names: tuple[str, ...]) -> str:
    """The first of some names for a message, behind a colon; nothing where there are none."""
    more = ", …" if len(names) > FIRST_NAMES else ""
    return f": {', '.join(names[:FIRST_NAMES])}{more}" if names else ""
