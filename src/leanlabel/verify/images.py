"""Cases of what image methods are measured by, beside those of MoCHi itself: votes of nearest neighbours."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from leanlabel.evaluation.knn import weighted_knn
from leanlabel.sparse import Csr, from_dense
from leanlabel.verify import mochi
from leanlabel.verify.case import Case

SOURCE = "Wu et al., CVPR 2018, section 3.4; {}"

# Small integers, exact in every precision; they point to their directions.
BANK = [[1, 0], [4, 1], [1, 1], [0, 1], [-1, 3]]
LABELS = [0, 1, 1, 2, 2]
QUERY = [[3, 1]]


def cases() -> list[Case]:
    """All cases of MoCHi, and those of its readout."""
    return [*mochi.cases(), *_neighbour_cases()]


def _neighbour_cases() -> list[Case]:
    def votes(
        query: list[list[int]],
        k: int,
        form: Callable[[Tensor], Tensor | Csr] = lambda rows: rows,
        chunk: int | None = None,
    ) -> Callable[[torch.device, torch.dtype], Tensor]:
        def run(device: torch.device, dtype: torch.dtype) -> Tensor:
            bank, asked = (form(torch.tensor(rows, dtype=dtype, device=device)) for rows in (BANK, query))
            return weighted_knn(bank, torch.tensor(LABELS, device=device), asked, k=k, chunk=chunk)

        return run

    script, shares = SOURCE.format("in float64 by an independent script"), [[0.3121739814, 0.6878260186, 0.0]]
    return [
        _case("votes of three neighbours", votes(QUERY, 3), shares, script),
        _case("votes of three neighbours, stored rows", votes(QUERY, 3, from_dense), shares, script),
        _case(
            "votes of three neighbours, one query at a time", votes(QUERY * 3, 3, chunk=1), shares * 3, script
        ),
        # A zero row is at cosine 0 of all five, which then count alike.
        _case("votes of all rows alike", votes([[0, 0]], 200), [[0.2, 0.4, 0.4]], SOURCE.format("by hand")),
    ]


def _case(
    name: str, run: Callable[[torch.device, torch.dtype], Tensor], values: list[list[float]], source: str
) -> Case:
    return Case("mochi", name, run, torch.tensor(values, dtype=torch.float64), source)
