"""Changing a started run: which keys may change, and what then has to be made again.

A run is one configuration. What may change is how long it trains, where it is executed and how it is measured.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from leanlabel.config import RunConfig
from leanlabel.engine import checkpoint
from leanlabel.engine.method import Method
from leanlabel.engine.runfolder import RunFolder, read_json, write_json, write_text
from leanlabel.errors import InputError

NUMBERS = ("engine.precision", "engine.bf16_products")
"""Engine settings that change what is computed."""
MEASURED = tuple(
    f"evaluation.{key}"
    for key in (
        *("split", "splits", "shares", "protocol"),
        *("empty", "subset", "window", "overlap", "scales", "flip", "network"),
    )
)
"""What validation scores depend on, where weights are selected by them."""
NETWORKS = "cannot change once a run has started: the networks of this method depend on it"


def changes(old: RunConfig, new: RunConfig) -> dict[str, list[Any]]:
    """Key path -> [old value, new value] of every key that differs, sections opened."""
    before, after = _flat(old.model_dump(mode="json")), _flat(new.model_dump(mode="json"))
    keys = [*before, *(key for key in after if key not in before)]
    return {
        key: [before.get(key), after.get(key)]
        for key in keys
        if before.get(key) != after.get(key) or (key in before) != (key in after)
    }


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            found |= _flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def check_changes(
    run: RunFolder, old: RunConfig, new: RunConfig, fixed: Collection[str] = ()
) -> dict[str, list[Any]]:
    """The changes, if a started run may have them; every refusal in one message.

    Args:
        run: its folder.
        old: its configuration.
        new: the wanted one.
        fixed: keys that the networks of its method depend on.

    Raises:
        InputError: a key that belongs to what the run is, fewer steps than are done, no checkpoint to go on from.
    """
    found = changes(old, new)
    reasons = [
        f"{key}: {reason}"
        for key in found
        if (reason := NETWORKS if key in fixed else _refused(key, run, old, new))
    ]
    if reasons:
        raise InputError(
            "\n".join(f"{one}." for one in reasons),
            "Start a new run; `leanlabel fit … --from` takes the weights of this one along.",
        )
    if "steps" in found:
        _check_steps(run, old.steps, new.steps)
    return found


def _refused(key: str, run: RunFolder, old: RunConfig, new: RunConfig) -> str | None:
    """Why a key cannot change; None where it can."""
    if key in NUMBERS:
        return "changes the numbers that are computed, so the run would be two runs in one"
    if key == "evaluation.select" and new.evaluation.select != "last" and _trained(run):
        return "what is trained so far was not validated on the way, so its best is not known"
    if old.evaluation.select != "last" and key in MEASURED and _trained(run):
        return f"the weights are selected by validation (evaluation.select={old.evaluation.select}), which it changes"
    if key == "steps" or key.startswith(("engine.", "evaluation.")):
        return None
    return "cannot change once a run has started: a run is one configuration"


def differences(kind: type[Method], old: RunConfig, new: RunConfig) -> list[str]:
    """In what a run that is trained longer differs from a run of that length from the start, for people."""
    if old.steps == new.steps:
        return []
    found = [f"{one} follows steps" for one in kind.follows_steps(new)]
    if old.evaluation.select != "last" and old.steps % old.evaluation.every:
        found.append(f"validation after iteration {old.steps}, its end before, may have chosen the weights")
    return found


def _trained(run: RunFolder) -> bool:
    return bool(checkpoint.saved(run.checkpoints)) or run.weights.exists()


def _check_steps(run: RunFolder, old: int, new: int) -> None:
    newest = checkpoint.latest(run.checkpoints)
    if newest is None and run.weights.exists() and old > 0:
        raise InputError(
            f"{run.path}: its checkpoints are gone, so it cannot go on from iteration {old}.",
            "Start a new run with `leanlabel fit … --from` this one.",
        )
    done = 0 if newest is None else newest.t
    if new < done:
        raise InputError(
            f"steps={new}: this run has already done {done} iterations.", f"Give {done} or more."
        )


def apply_changes(run: RunFolder, found: Mapping[str, list[Any]], text: str) -> None:
    """Note the changes, put away what they make stale, then write the new configuration, which is what counts.

    A run killed in between is one without results under its old configuration; a resume makes them again.
    """
    origin = read_json(run.origin, {})
    noted = {"date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M"), "keys": dict(found)}
    write_json(run.origin, {**origin, "changes": [*origin.get("changes", []), noted]})
    stale: list[Path] = []
    if any(key == "steps" or key.startswith("evaluation.") for key in found):
        stale += [run.results, run.readout, run.report, run.figures / "embedding.json"]
    if "steps" in found or "evaluation.select" in found:
        stale.append(run.weights)
    for path in stale:
        path.unlink(missing_ok=True)
    write_text(run.config, text)
