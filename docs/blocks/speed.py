"""Recorded benchmarks: one table each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from blocks.tables import ROOT, table

RESULTS = ROOT / "benchmarks" / "results.jsonl"
MEMORY = ("memory_mib", "peak_mib")


def benchmarks() -> str:
    """The newest record of every benchmark on every kind of device."""
    return measured(RESULTS)


def measured(file: Path) -> str:
    """One section per benchmark: where and when, then its arms."""
    from leanlabel.engine.runfolder import read_lines

    newest: dict[tuple[str, str], Mapping[str, Any]] = {}
    for row in read_lines(file):
        newest[row["benchmark"], str(row["environment"]["gpus"])] = row
    parts = [f"### {_title(row)}\n\n{_place(row)}\n\n{_arms(row['result'])}" for row in newest.values()]
    return "\n\n".join(parts) or "Nothing is recorded yet."


def _title(row: Mapping[str, Any]) -> str:
    name = row["benchmark"]
    return name[:1].upper() + name[1:]


def _place(row: Mapping[str, Any]) -> str:
    found, result = row["environment"], row["result"]
    gpus = [str(one.get("name", one) if isinstance(one, Mapping) else one) for one in found["gpus"]]
    device = ", ".join(gpus) or f"{found['cpu_count']} processors ({found['cpu_capability']})"
    threads = result.get("threads", found["threads"])
    torch = found["packages"]["torch"]
    plural = "" if threads == 1 else "s"
    return f"{row['date']}, {device}, {threads} thread{plural}, torch {torch}, {found['system']}."


def _arms(result: Mapping[str, Any]) -> str:
    cases = result.get("cases") or [_chain(name, one) for name, one in result.get("chains", {}).items()]
    cases = cases or _groups(result)
    if cases:
        timed = table(
            ["Case", "Arm", "Median", "Against the first arm"],
            [line for case in cases for line in _case(case["title"], case["seconds"])],
        )
        held = {name: one["mib"] for name, one in result.get("memory", {}).items()}
        return f"{timed}\n\n{_held(held)}" if held else timed
    arms = result["arms"]
    times = {name: one["seconds"] for name, one in arms.items() if "seconds" in one}
    sizes = {name: one[key] for name, one in arms.items() for key in MEMORY if key in one}
    columns, rows = ["Arm"], [[_arm(name)] for name in arms]
    if times:
        columns += ["Median", "Speed"]
        ratios = _ratios(times, faster=True)
        rows = [[*row, _seconds(times[name]), ratios[name]] for row, name in zip(rows, arms)]
    if sizes:
        columns += ["Peak memory", *(["Memory"] if len(sizes) > 1 else [])]
        shares = _ratios(sizes, faster=False)
        rows = [
            [*row, f"{sizes[name]:,.0f} MiB", *([shares[name]] if len(sizes) > 1 else [])]
            for row, name in zip(rows, arms)
        ]
    return table(columns, rows)


def _chain(name: str, one: Mapping[str, Any]) -> dict[str, Any]:
    """Views of a batch of images: the other library first."""
    others = {arm: value for arm, value in one["seconds"].items() if arm != "library"}
    size = one["side"] if "side" in one else f"{_sides(one['native'])} cut to {_sides(one['crop'])}"
    title = f"{name}: {one['images']} images of {size} pixels"
    return {"title": title, "seconds": {**others, "library": one["seconds"]["library"]}}


def _sides(sides: Iterable[int]) -> str:
    return " x ".join(map(str, sides))


def _groups(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Groups of arms by part or by size of the images, and the parts of a training step, where there are any."""
    found = [
        {"title": f"{prefix}{name}", "seconds": {arm: one["seconds"] for arm, one in arms.items()}}
        for key, prefix in (("parts", ""), ("sizes", "side "))
        for name, arms in result.get(key, {}).items()
    ]
    step = {arm: value for arm, value in result.get("step", {}).items() if "share" not in arm}
    if step:
        found.append({"title": f"in a step of {result.get('network', 'a network')}", "seconds": step})
    return found


def _held(mib: Mapping[str, float]) -> str:
    shares = _ratios(mib, faster=False)
    rows = [[name, f"{value:,.0f} MiB", shares[name]] for name, value in mib.items()]
    return table(["Arm", "Memory beyond the inputs", "Against the first arm"], rows)


def _case(title: str, seconds: Mapping[str, float]) -> Iterable[list[str]]:
    ratios = _ratios(seconds, faster=True)
    for place, (arm, time) in enumerate(seconds.items()):
        yield ["" if place else title, arm, _seconds(time), ratios[arm]]


def _ratios(values: Mapping[str, float], *, faster: bool) -> dict[str, str]:
    """Each value against the first: how many times as fast, or how much of the memory."""
    first = next(iter(values.values()))
    if faster:
        return {name: f"{first / value:.2g} ×" for name, value in values.items()}
    return {name: f"{value / first:.2g} ×" for name, value in values.items()}


def _arm(name: str) -> str:
    return name.replace("_", " ")


def _seconds(value: float) -> str:
    return f"{value:.3g} s" if value >= 0.1 else f"{1000 * value:.3g} ms"
