"""leanlabel trains good models when labels are scarce, skewed, or come from the wrong domain.

Importing this package is cheap: torch is loaded when one of the functions below is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["__version__", "evaluate", "fit", "load", "resume"]

if TYPE_CHECKING:
    from leanlabel.api import evaluate, fit, load, resume


def __getattr__(name: str) -> Any:
    if name in {"evaluate", "fit", "load", "resume"}:
        from leanlabel import api

        return getattr(api, name)
    raise AttributeError(f"module 'leanlabel' has no attribute {name!r}")
