"""What a run shows, in one honest sentence: trained against untrained and raw."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from leanlabel.report.numbers import are_shares, difference, finite, fixed, plural

NAMES = {
    "untrained": "the untrained model",
    "raw": "the raw features",
    "initial": "the weights it started from",
}


@dataclass(frozen=True)
class Answer:
    """Verdict of one protocol.

    Attributes:
        kind: "gain", "unclear", "none" (trained is not better), or "open" (nothing to compare).
        big: the difference, large on the page.
        over: what the difference is against.
        sentence: all readouts in one sentence.
        box: title of the marked box; empty for a gain.
        reasons: why, one sentence each.
    """

    kind: str
    big: str
    over: str
    sentence: str
    box: str = ""
    reasons: tuple[str, ...] = ()


def main_protocol(results: Mapping[str, Any], config: Mapping[str, Any]) -> str | None:
    """The protocol that the configuration names first, else the first one in the results."""
    protocols = mapping(results.get("protocols"))
    wanted = mapping(config.get("evaluation")).get("protocol")
    for name in wanted if isinstance(wanted, list) else [wanted]:
        if name in protocols:
            return str(name)
    return next(iter(protocols), None)


def mapping(value: Any) -> Mapping[str, Any]:
    """The value if it is a mapping, else an empty one: files may be older or half-written."""
    return value if isinstance(value, Mapping) else {}


def judge(protocol: Mapping[str, Any], called: Mapping[str, str] | None = None) -> Answer:
    """Compare the trained readout with the untrained one and the raw features.

    A gain counts as one only when the mean difference, paired by split, is above its standard deviation over
    splits; below that a single run cannot tell. It must hold against every baseline that is there.

    Args:
        protocol: its record in the results; may be damaged.
        called: readout -> when the network was like that, where the readout's own name would mislead, such as
            {"initial": "before the last stage"}.
    """
    called = called or {}
    known = NAMES | {name: f"the network {told}" for name, told in called.items()}
    readouts = {name: mapping(one) for name, one in mapping(protocol.get("readouts")).items()}
    means = {name: one["mean"] for name, one in readouts.items() if finite(one.get("mean"))}
    trained = means.get("trained")
    against = [name for name in ("untrained", "raw", "initial") if name in means]
    sentence = _sentence(means, against, str(protocol.get("metric", "score")), called)
    if trained is None or not against:
        return Answer("open", fixed(trained) if trained is not None else "–", "", sentence)
    shares = are_shares(means.values())
    first = against[0]
    big, over = difference(trained - means[first], shares), known[first]
    kinds, reasons = [], []
    unit = str(protocol.get("unit") or "split")
    for name in against:
        kind, reason = _against(known[name], readouts["trained"], readouts[name], shares, unit)
        kinds.append(kind)
        reasons += [reason] if reason else []
    over = f"{'over' if trained > means[first] else 'against'} {over}"
    kind = next((k for k in ("none", "unclear") if k in kinds), "gain")
    box = {"none": "Training is not better here.", "unclear": "One run cannot tell whether training helped."}
    return Answer(kind, big, over, sentence, box.get(kind, ""), tuple(reasons))


def _against(
    named: str, trained: Mapping[str, Any], other: Mapping[str, Any], shares: bool, unit: str
) -> tuple[str, str]:
    gain = trained["mean"] - other["mean"]
    amount = difference(abs(gain), shares).lstrip("+")
    if gain <= 0 or (shares and round(100 * gain, 1) == 0):
        if abs(gain) < 5e-4 and shares:
            return "none", f"Trained and {named.removeprefix('the ')} score the same."
        return "none", f"Trained is {amount} below {named}."
    pairs = _paired(trained.get("per_split"), other.get("per_split"))
    if len(pairs) < 2:
        return "gain", ""
    spread = statistics.stdev(pairs)
    if gain > spread:
        return "gain", ""
    wins = sum(pair > 0 for pair in pairs)
    width = difference(spread, shares).lstrip("+")
    return "unclear", (
        f"Against {named} the mean difference of {amount} is within its standard deviation over {unit}s "
        f"({width}); trained is ahead on {wins} of {plural(len(pairs), unit)}."
    )


def _paired(a: Any, b: Any) -> list[float]:
    if not isinstance(a, list) or not isinstance(b, list) or len(a) != len(b):
        return []
    return [x - y for x, y in zip(a, b) if finite(x) and finite(y)]


def _sentence(means: Mapping[str, float], against: list[str], metric: str, called: Mapping[str, str]) -> str:
    values = {name: fixed(means[name]) for name in against}
    parts = [
        f"{value} {called[name]}" if name in called else f"{name} {value}" for name, value in values.items()
    ]
    if "trained" not in means:
        return f"No trained readout; {metric}: {', '.join(parts)}." if parts else "No readout was recorded."
    text = f"Trained {fixed(means['trained'])}"
    text += f" against {' and '.join(parts)}" if parts else ""
    return f"{text} ({metric})."
