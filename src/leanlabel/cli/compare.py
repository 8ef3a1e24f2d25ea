"""``leanlabel compare``: arms × seeds, then a table."""

from __future__ import annotations

from pathlib import Path

import typer

from leanlabel.cli import output


def command(
    recipes: list[str] = typer.Argument(help="Recipes to compare; the baselines of their methods are added."),
    seeds: int = typer.Option(3, "--seeds", min=1, help="Seeds per arm, counted up from the recipe's."),
    data: list[str] = typer.Option([], "--data", help="Use this data instead of the recipes'."),
    assignments: list[str] = typer.Option([], "--set", help="Change a key in every arm (may be repeated)."),
    arms: list[str] = typer.Option([], "--arm", help="Only these arms (may be repeated)."),
    baselines: bool = typer.Option(True, help="Add the baselines of each method as arms."),
    out: Path = typer.Option(
        None, "--out", help="Folder of the comparison; runs/compare/<recipe> when left out."
    ),
    results: Path = typer.Option(
        None, "--results", help="File of recorded results; <out>/results.jsonl when left out."
    ),
    minutes: float = typer.Option(
        None, "--minutes", help="Start no new run after this time; the next call goes on."
    ),
    as_json: bool = typer.Option(False, "--json", help="Print JSON."),
) -> None:
    """Run arms × seeds (finished ones are kept), then print a table with paired differences."""
    from leanlabel import compare, dist

    comparison = compare.run(
        recipes,
        seeds=seeds,
        data=data,
        overrides=assignments,
        only=arms,
        baselines=baselines,
        out=out,
        results=results,
        minutes=minutes,
        tell=None if as_json else output.say,
    )
    if not dist.is_main():
        return
    if as_json:
        output.as_json(comparison)
    else:
        print_comparison(comparison)


def print_comparison(comparison: dict) -> None:
    """Arms, then pairs, then what has not run."""
    title = f"{comparison['protocol']} · split {comparison['split']} · selection: {comparison['selection']}"
    output.table(
        ["arm", comparison["metric"], "std over seeds", "seeds", "seconds"],
        [[arm["name"], arm["mean"], arm["std"], arm["n"], arm["seconds"]] for arm in comparison["arms"]],
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
    for pending in comparison["pending"]:
        output.say(f"not run: {pending}")
    output.say(f"report      {comparison['report']}")
