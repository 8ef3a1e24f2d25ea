"""``leanlabel compare``: arms × seeds, then a table with verdicts."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import typer

from leanlabel.cli import output

MOST = 8
"""Verdicts that are printed in full; of more, those of the first arm."""


def command(
    recipes: list[str] = typer.Argument(
        help="Recipes to compare; the baselines of their methods are added.",
        autocompletion=output.complete_recipe,
    ),
    seeds: int = typer.Option(3, "--seeds", min=1, help="Seeds per arm, counted up from the first recipe's."),
    data: list[str] = typer.Option([], "--data", help="Use this data instead of the recipes'."),
    assignments: list[str] = typer.Option([], "--set", help="Change a key in every arm (may be repeated)."),
    arms: list[str] = typer.Option([], "--arm", help="Only these arms (may be repeated)."),
    baselines: bool = typer.Option(True, help="Add the baselines of each method as arms."),
    variants: list[str] = typer.Option(
        [],
        "--variant",
        metavar="NAME:KEY=VALUE",
        help="One more arm: every recipe that has the key, with it changed (may be repeated).",
    ),
    against: str = typer.Option(None, "--against", metavar="ARM", help="Compare every arm with this one."),
    grid: list[str] = typer.Option(
        [],
        "--grid",
        metavar="KEY=V1,V2",
        help="Tune every arm that trains, by validation accuracy (may be repeated: all combinations).",
    ),
    grid_seeds: int = typer.Option(1, "--grid-seeds", min=1, help="Seeds that tuning runs with."),
    dial: str = typer.Option(
        None,
        "--dial",
        metavar="KEY=V1,V2",
        help="Compare at every value; KEY+KEY=V,W gives both keys one value, KEY+KEY=A:B,C:D each its own.",
    ),
    plan: bool = typer.Option(False, "--plan", help="Only say what would run and how long it may take."),
    out: Path = typer.Option(
        None, "--out", help="Folder of the comparison; runs/compare/<recipe>, - for /, when left out."
    ),
    results: Path = typer.Option(
        None, "--results", help="File of recorded results; <out>/results.jsonl when left out."
    ),
    minutes: float = typer.Option(
        None, "--minutes", help="Start no new run after this time; the next call goes on."
    ),
    as_json: bool = typer.Option(False, "--json", help="Print JSON."),
) -> None:
    """Run arms × seeds (finished ones are kept), then print a table with paired differences and a verdict."""
    from leanlabel import compare, dist

    request = compare.Request(
        recipes=recipes,
        seeds=seeds,
        data=data,
        overrides=assignments,
        only=arms,
        baselines=baselines,
        variants=variants,
        grid=grid,
        grid_seeds=grid_seeds,
        dial=dial,
        against=against,
    )
    if plan:
        found = compare.preview(request, out=out, results=results, minutes=minutes)
        if dist.is_main():
            output.as_json(found) if as_json else print_plan(found)
        return
    tell = None if as_json else output.say
    comparison = compare.run(request, out=out, results=results, minutes=minutes, tell=tell)
    if dist.is_main():
        output.as_json(comparison) if as_json else print_comparison(comparison)
    if comparison["stopped"]:
        raise typer.Exit(1)


def print_plan(found: dict[str, Any]) -> None:
    """Runs and minutes of every arm, then the sum."""
    columns = ["arm", "runs", "done", "to do", "min per run", "minutes", "measured on"]
    names = ("arm", "runs", "done", "to_do", "minutes_per_run", "minutes", "basis")
    output.table(columns, [[arm[name] for name in names] for arm in found["arms"]])
    least = "" if found["measured"] else "at least "
    output.say(f"\n{_runs(found['to_do'])} to do, {least}{found['minutes']:.1f} minutes.")
    open_arms = [arm for arm in found["arms"] if arm["to_do"] and arm["minutes_per_run"] is None]
    for cost in dict.fromkeys(arm["cost"] for arm in open_arms if arm["cost"]):
        names = ", ".join(arm["arm"] for arm in open_arms if arm["cost"] == cost)
        output.say(f"Not measured: {names}; the recipe says {cost}.")
    if found["left"] is not None:
        output.say(f"--minutes {found['limit']:g} would leave {_runs(found['left'])} for the next call.")


def print_comparison(comparison: dict[str, Any]) -> None:
    """Arms, differences, verdicts, what was tuned, alarms, what stopped, what has not run."""
    title = f"{comparison['protocol']} · split {comparison['split']} · selection: {comparison['selection']}"
    if comparison["dial"]:
        _print_dial(comparison, title)
    else:
        _print_arms(comparison, title)
    for arm in (comparison["tuning"] or {}).get("arms", []):
        output.say(_tuned(arm))
    for alarm in comparison["alarms"]:
        if alarm["level"] == "harm":
            typer.secho("ALARM: ", fg="red", bold=True, nl=False)
            output.say(alarm["sentence"])
        else:
            output.say(f"note: {alarm['sentence']}")
    for stop in comparison["stopped"]:
        typer.secho("stopped: ", fg="red", nl=False)
        output.say(f"{stop['run']}: {stop['reason']}")
    if comparison["stopped"]:
        output.say("What has stopped is not tried again with the same settings (list: stopped.jsonl).")
    for pending in comparison["pending"]:
        output.say(f"not run: {pending}")
    output.say(f"report      {comparison['report']}")


def _print_arms(comparison: dict[str, Any], title: str) -> None:
    stops = Counter(stop["arm"] for stop in comparison["stopped"])
    labels = {
        arm["name"]: _label(arm) + (f" ({stops[arm['name']]} stopped)" if stops[arm["name"]] else "")
        for arm in comparison["arms"]
    }
    output.table(
        ["arm", comparison["metric"], "std over seeds", "seeds", "seconds"],
        [
            [labels[arm["name"]], arm["mean"], arm["std"], arm["n"], arm["seconds"]]
            for arm in comparison["arms"]
        ],
        title=title,
    )
    output.say()
    output.table(
        ["difference", "mean", "95 % low", "95 % high", "pairs", "verdict"],
        [
            [
                f"{pair['arm']} - {pair['against']}",
                pair["difference"],
                pair["low"],
                pair["high"],
                pair["n"],
                pair["verdict"],
            ]
            for pair in comparison["pairs"]
        ],
    )
    output.say()
    pairs = comparison["pairs"]
    told = pairs if len(pairs) <= MOST else [pair for pair in pairs if pair["arm"] == pairs[0]["arm"]]
    for pair in told:
        output.say(pair["sentence"])
    if len(told) < len(pairs):
        output.say(f"{len(pairs) - len(told)} more verdicts are in the report and in pairs.csv.")


def _print_dial(comparison: dict[str, Any], title: str) -> None:
    """Means and verdicts, one line per value."""
    dial = comparison["dial"]
    arms = [_label(arm) for arm in dial["points"][0]["arms"]]
    output.table(
        [dial["name"], *arms],
        [[point["text"], *(arm["mean"] for arm in point["arms"])] for point in dial["points"]],
        title=f"{title} · means over seeds",
    )
    output.say()
    output.table(
        ["difference", dial["name"], "mean", "95 % low", "95 % high", "pairs", "verdict"],
        [
            [
                f"{pair['arm']} - {pair['against']}",
                point["text"],
                pair["difference"],
                pair["low"],
                pair["high"],
                pair["n"],
                pair["verdict"],
            ]
            for place in range(max(len(point["pairs"]) for point in dial["points"]))
            for point in dial["points"]
            for pair in point["pairs"][place : place + 1]
        ],
    )
    output.say()
    for sentence in dial["sentences"]:
        output.say(sentence)


def _label(arm: dict[str, Any]) -> str:
    return f"{arm['label']} (also {', '.join(arm['also'])})" if arm["also"] else arm["label"]


def _tuned(arm: dict[str, Any]) -> str:
    if arm["why"]:
        return f"not tuned: {arm['arm']} {arm['why']}."
    if arm.get("stopped"):
        return f"not tuned: {arm['arm']} stopped at every setting."
    if arm["chosen"] is None:
        return f"tuning of {arm['arm']} is not finished."
    score = next(point["score"] for point in arm["points"] if point["label"] == arm["chosen"])
    return f"tuned: {arm['arm']} takes {arm['chosen']} (validation {score:.4g}, {_runs(arm['runs'])} tried)."


def _runs(count: int) -> str:
    return f"{count} run{'' if count == 1 else 's'}"
