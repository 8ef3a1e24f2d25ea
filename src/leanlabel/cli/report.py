"""``leanlabel report``: renew the HTML page of one or several runs."""

from __future__ import annotations

from pathlib import Path

import typer

from leanlabel.cli import output


def command(
    runs: list[Path] = typer.Argument(help="Folders of runs, or one folder of a comparison."),
) -> None:
    """Write one self-contained HTML page per run, or the page of a comparison."""
    from leanlabel import compare
    from leanlabel.engine.runfolder import RunFolder
    from leanlabel.report.run import write_report

    for path in runs:
        if compare.is_comparison(path):
            output.say(f"report      {compare.write_page(path)}")
        else:
            output.say(f"report      {write_report(RunFolder.existing(path))}")
