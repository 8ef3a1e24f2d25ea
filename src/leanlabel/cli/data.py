"""``leanlabel data``: get public sets, and look at data before training on it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from leanlabel.cli import output
from leanlabel.errors import InputError

if TYPE_CHECKING:
    from leanlabel.data.catalogue import Entry
    from leanlabel.data.dense_check import DenseFindings
    from leanlabel.data.obtain import Step

app = typer.Typer(help="Get public data sets, and look at data before training on it.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    pass


@app.command()
def check(
    what: str = typer.Argument(
        metavar="PATH|RECIPE",
        help="A graph, images, or images with masks on disk, pyg:NAME, or a recipe whose data to check.",
    ),
    html: Path = typer.Option(
        None,
        "--html",
        "--page",
        help="Also write the findings to this HTML page; of images with masks with shares of classes and pictures.",
    ),
    as_json: bool = typer.Option(False, "--json", help="Print JSON."),
) -> None:
    """Check data: counts, classes, duplicates, leaks, whatever would spoil a training. Exits with 2 on errors."""
    findings, masks = _look(what)
    if html is not None:
        title = f"Data check of {what}"
        if masks is not None:
            from leanlabel.report.data_page import write_data_page

            write_data_page(html, title, masks)
        else:
            from leanlabel.report.findings import write_findings

            write_findings(html, title, findings)
    if as_json:
        output.as_json(findings)
    else:
        output.table(
            ["severity", "code", "count", "message"],
            [[one["severity"], one["code"], one["count"], one["message"]] for one in findings],
        )
    if any(one["severity"] == "error" for one in findings):
        raise typer.Exit(2)


def _look(what: str) -> tuple[list[dict[str, Any]], DenseFindings | None]:
    """Findings, and the figures behind them where the data is images with masks."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from leanlabel import api
    from leanlabel.data.checks import check_masks, check_source_masks, is_here

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(24), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("looking at the data", total=None)

        def step(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        if what in api.packaged_recipes() or Path(what).suffix in (".yaml", ".yml"):
            found = check_source_masks(getattr(api.resolve(what), "data", None), step)
        else:
            found = check_masks(what, step) if is_here(what) else None
        if found is None:
            return api.check(what), None
    return [asdict(one) for one in found.findings], found


@app.command(name="list")
def catalogue(as_json: bool = typer.Option(False, "--json", help="Print JSON.")) -> None:
    """List the public sets that `data get` knows, with size and terms."""
    from leanlabel.data.catalogue import CATALOGUE
    from leanlabel.data.obtain import data_folder, missing

    folder = data_folder()
    here = {entry.name: not missing(entry, folder) for entry in CATALOGUE}
    if as_json:
        output.as_json([{**entry.as_dict(), "here": here[entry.name]} for entry in CATALOGUE])
        return
    output.table(
        ["name", "kind", "size", "here", "what", "terms"],
        [
            [
                entry.name,
                entry.kind,
                _size(entry.size),
                "yes" if here[entry.name] else "no",
                entry.title,
                entry.terms,
            ]
            for entry in CATALOGUE
        ],
    )
    output.say(f"data folder {folder}")


@app.command()
def get(
    name: str = typer.Argument(None, metavar="[NAME]", help="Name of a public set; left out: list them."),
    to: Path = typer.Option(None, "--to", help="Data folder; LEANLABEL_DATA or ./data when left out."),
    mirror: str = typer.Option(
        None, "--mirror", help="Folder or http(s) address that holds the files, instead of the published one."
    ),
    max_bytes: int = typer.Option(
        None, "--max-bytes", min=1, help="Refuse larger files; four times the listed size when left out."
    ),
    yes: bool = typer.Option(False, "--yes", "-y", help="Agree to the terms shown, do not ask."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON."),
) -> None:
    """Bring a public set here: shows its terms first, resumes a broken transfer, verifies every file."""
    from leanlabel.data.catalogue import find_entry
    from leanlabel.data.obtain import data_folder, missing, obtain

    if name is None:
        catalogue(as_json)
        return
    entry, folder = find_entry(name), data_folder(to)
    if missing(entry, folder):
        _agree(entry, folder, mirror, yes=yes, quiet=as_json)
    with _bar(show=not as_json) as step:
        found = obtain(entry, folder, mirror=mirror, most_bytes=max_bytes, step=step)
    packed = entry.packed
    place = packed.path if packed is not None and found[0].file is packed else entry.data_path
    if as_json:
        output.as_json(
            {
                "name": entry.name,
                "folder": str(folder),
                "data_path": place,
                "files": [
                    {
                        "path": str(one.path),
                        "state": one.state,
                        "sha256": one.sha256,
                        "verified": one.verified,
                    }
                    for one in found
                ],
            }
        )
        return
    if all(one.state == "there" for one in found):
        output.say(f"{entry.name} is here already; nothing was done.")
    output.table(
        ["file", "state", "verified by", "sha256"],
        [[str(one.path), one.state, one.verified, one.sha256] for one in found],
    )
    output.say(f"data.path   {place}")


def _agree(entry: Entry, folder: Path, mirror: str | None, *, yes: bool, quiet: bool) -> None:
    """Show what would be brought from where and under which terms; go on only when that is wanted."""
    first = entry.files[0].address
    source = mirror or (first if len(entry.files) == 1 else first.rpartition("/")[0] + "/")
    lines = (
        f"{entry.name}: {entry.title}",
        f"from        {source}",
        f"to          {folder.absolute()}",
        f"size        {_size(entry.size)} in {len(entry.files)} file{'s' * (len(entry.files) > 1)}",
        f"terms       {entry.terms}",
        f"cite        {entry.citation}",
    )
    for line in lines:
        typer.echo(line, err=quiet)
    if yes:
        return
    if not sys.stdin.isatty():
        raise InputError(f"{entry.name}: nobody is here to agree to the terms.", "Add --yes to agree.")
    if not typer.confirm("Get it?", default=True, err=quiet):
        raise typer.Exit(2)


@contextmanager
def _bar(*, show: bool) -> Iterator[Step | None]:
    """One line per file on a terminal; nothing where the output is not a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    console = Console(stderr=True)
    if not show or not console.is_terminal:
        yield None
        return
    tasks: dict[str, Any] = {}
    columns = (TextColumn("{task.description}"), BarColumn(24), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console) as progress:

        def step(file: Any, here: int, total: int | None) -> None:
            if file.path not in tasks:
                tasks[file.path] = progress.add_task(file.name, total=total)
            progress.update(tasks[file.path], completed=here, total=total)

        yield step


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB"
