"""Comparisons: arms × seeds as a queue that can be stopped at any time, then one table.

A finished run is one line of ``results.jsonl``, named by a hash of its complete configuration. So a comparison goes on
where it was, also on another machine that has only that file, and the same run is never made twice.
"""

from leanlabel.compare.queue import run
from leanlabel.compare.summary import is_comparison, write_page

__all__ = ["is_comparison", "run", "write_page"]
