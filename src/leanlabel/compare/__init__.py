"""Comparisons: arms × seeds as a queue that can be stopped at any time, then one table with verdicts.

A finished run is one line of ``results.jsonl``, named by a hash of its complete configuration. So a comparison goes on
where it was, also on another machine that has only that file, and the same run is never made twice.

    from leanlabel import compare
    found = compare.run(["gca/generated"], seeds=5, variants=["cold:method.tau=0.1"], out=Path("runs/tau"))
    found["pairs"][0]["sentence"]

`compare.run` takes a `Request` or its fields; `compare.preview` says what it would do.
"""

from leanlabel.compare.jobs import plan
from leanlabel.compare.queue import preview, run
from leanlabel.compare.request import Request
from leanlabel.compare.summary import is_comparison, write_page

__all__ = ["Request", "is_comparison", "plan", "preview", "run", "write_page"]
