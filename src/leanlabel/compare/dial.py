"""When does it help? The same comparison at every setting of a dial."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from leanlabel.compare.jobs import Job
from leanlabel.compare.request import Point

WORDS = ("helps", "hurts", "cannot tell")


def dialled(
    points: Sequence[Point], jobs: Sequence[Job], table: Callable[[list[Job], str], dict[str, Any]]
) -> dict[str, Any]:
    """The comparison at every setting.

    Args:
        points: settings of the dial.
        jobs: runs of all settings.
        table: (runs of one setting, its label) -> "arms", "pairs", "alarms" and more.

    Returns:
        "keys", "name" (of the axis), "points" ("label", "text" (the value in short), "value", "x" (None where the
        value is not one number), and what `table` returns), "sentences" (one for each pair of arms).
    """
    found = []
    for point in points:
        label = point.label
        found.append(
            {
                "label": label,
                "text": point.text,
                "value": next(iter(point.values.values())),
                "x": point.x,
                **table([job for job in jobs if job.point.label == label], label),
            }
        )
    keys = list(points[0].texts)
    name = " + ".join(key.rpartition(".")[2] for key in keys)
    return {"keys": keys, "name": name, "points": found, "sentences": sentences(name, found)}


def sentences(name: str, points: Sequence[dict[str, Any]]) -> list[str]:
    """For each pair of arms, at which settings the first helps, hurts, or cannot be told from the other.

    Example:
        >>> pair = {"arm": "a", "against": "b", "verdict": "helps"}
        >>> sentences("rate", [{"text": "0.1", "pairs": [pair]}, {"text": "0.5", "pairs": []}])
        ['a over b: helps at rate 0.1; not measured at 0.5.']
    """
    verdicts: dict[tuple[str, str], dict[str, str]] = {}
    for point in points:
        for pair in point["pairs"]:
            verdicts.setdefault((pair["arm"], pair["against"]), {})[point["text"]] = pair["verdict"]
    told = []
    for (arm, against), by in verdicts.items():
        groups = {word: [text for text, verdict in by.items() if verdict == word] for word in WORDS}
        groups["not measured"] = [point["text"] for point in points if point["text"] not in by]
        parts = [f"{word} at {', '.join(texts)}" for word, texts in groups.items() if texts]
        parts[0] = parts[0].replace(" at ", f" at {name} ", 1)
        told.append(f"{arm} over {against}: {'; '.join(parts)}.")
    return told
