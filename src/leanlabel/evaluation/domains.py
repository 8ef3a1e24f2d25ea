"""Scores within each domain of data that comes from several: is what helps on all of them a help on each?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from leanlabel.data.splits import PARTS
from leanlabel.evaluation.probe import Split
from leanlabel.evaluation.protocols import readout


def by_domain(
    readouts: Mapping[str, Tensor],
    y: Tensor,
    splits: Sequence[Split],
    domain: Tensor,
    names: Sequence[str],
    *,
    protocol: str,
    seed: int = 0,
    **settings: Any,
) -> list[dict[str, Any]]:
    """Fit and score a readout on the rows of each domain alone.

    Args:
        readouts: name -> (N, d) embeddings.
        y: (N,) int64 classes; rows outside the splits may carry a negative label.
        splits: row ids under "train", "val", "test"; those of a domain are its rows in each part.
        domain: (N,) int64, number of the domain of every row.
        names: of the domains.
        protocol: name of a protocol that needs splits and reads embeddings.
        seed, **settings: as in :func:`leanlabel.evaluation.protocols.readout`.

    Returns:
        Per domain: "name", "test_rows" (mean over splits), "metric" and "readouts" (name -> mean score); "readouts" is
        empty for a domain that lacks a part, or has fewer than two classes to train on.

    Example:
        >>> z, y, domain = torch.eye(8), torch.arange(8) % 2, torch.arange(8) // 4
        >>> split = {"train": torch.tensor([0, 1, 4, 5]), "val": torch.tensor([2, 6]), "test": torch.tensor([3, 7])}
        >>> [row["test_rows"] for row in by_domain({"z": z}, y, [split], domain, ["a", "b"], protocol="logistic-l2")]
        [1.0, 1.0]
    """
    found = []
    for number, name in enumerate(names):
        own = domain == number
        parts = [{part: split[part][own[split[part]]] for part in PARTS} for split in splits]
        sizes = [len(part["test"]) for part in parts]
        told: dict[str, Any] = {
            "name": name,
            "test_rows": sum(sizes) / len(sizes),
            "metric": "",
            "readouts": {},
        }
        if all(len(part[key]) for part in parts for key in PARTS) and all(
            len(torch.unique(y[part["train"]])) > 1 for part in parts
        ):
            results = {
                key: readout(protocol, z, y, parts, seed, split_name=name, **settings)
                for key, z in readouts.items()
            }
            told["readouts"] = {key: result.mean for key, result in results.items()}
            told["metric"] = next(iter(results.values())).metric
        found.append(told)
    return found
