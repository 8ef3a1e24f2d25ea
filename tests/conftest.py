"""What all tests share: the two-process pool, the folder of real data, thread and hypothesis settings.

Test folders are not packages, so every test file has a base name of its own.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from pool import Pool

torch.set_num_threads(min(2, torch.get_num_threads()))
hypothesis.settings.register_profile("suite", deadline=None, derandomize=True, max_examples=25)
hypothesis.settings.load_profile("suite")


@pytest.fixture(scope="session")
def pool() -> Iterator[Pool]:
    """Two gloo workers: `pool.run(top_level_function, *args)` -> [result of rank 0, result of rank 1]."""
    workers = Pool()
    yield workers
    workers.close()


@pytest.fixture(scope="session")
def data_root() -> Path:
    """Folder of the real data sets; the test is skipped without one."""
    root = os.environ.get("LEANLABEL_DATA")
    if not root:
        pytest.skip("LEANLABEL_DATA is not set: no real data")
    if not Path(root).is_dir():
        pytest.skip(f"LEANLABEL_DATA={root} is not a folder")
    return Path(root)
