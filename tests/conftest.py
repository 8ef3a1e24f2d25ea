"""What all tests share: the two-process pool, the folder of real data, thread and hypothesis settings.

Test folders are not packages, so every test file has a base name of its own.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import hypothesis
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from pool import Pool

DOCS = Path(__file__).resolve().parent.parent / "docs"

# Several processes of tests share the cores.
torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else min(2, torch.get_num_threads()))
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


@pytest.fixture(scope="module")
def generate() -> Iterator[ModuleType]:
    """The program that writes the generated blocks of the documentation."""
    sys.path.insert(0, str(DOCS))  # as for a script there
    spec = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    sys.path.remove(str(DOCS))
