from __future__ import annotations

import re
import subprocess
import sys
from pathlib import PurePosixPath
from urllib.parse import urlsplit

import pytest

from leanlabel.data.catalogue import CATALOGUE, find_entry, find_packed, find_pyg
from leanlabel.errors import InputError
from leanlabel.recipe import packaged_recipes, read_recipe


def test_values() -> None:
    """Every entry says what it must, in the form that the readers and the downloader expect."""
    for entry in CATALOGUE:
        assert re.fullmatch(r"[a-z0-9-]+", entry.name)
        assert entry.kind in ("graph", "images")
        assert "stated" in entry.terms
        assert all((entry.title, entry.layout, entry.citation, entry.data_path))
        assert entry.size == sum(file.size for file in entry.files) > 0
        for file in (*entry.files, *([entry.packed] if entry.packed else [])):
            path = PurePosixPath(file.path)
            assert not path.is_absolute()
            assert ".." not in path.parts
            assert not set(file.path) & set('\\:*?"<>|')
            assert file.sha256 is None or re.fullmatch(r"[0-9a-f]{64}", file.sha256)
            assert file.git_sha1 is None or re.fullmatch(r"[0-9a-f]{40}", file.git_sha1)
        for file in entry.files:
            address = urlsplit(file.address)
            assert address.scheme == "https"
            assert address.path.endswith(f"/{file.name}")
            # One of the two checksums: a change of the file is noticed.
            assert (file.sha256 is None) != (file.git_sha1 is None)
            # An address that names a commit, where the publisher keeps commits.
            assert re.search(r"/[0-9a-f]{40}/", address.path) or address.netloc == "www.cs.toronto.edu"


def test_values_unique() -> None:
    for values in (
        [entry.name for entry in CATALOGUE],
        [file.path.lower() for entry in CATALOGUE for file in entry.files],
        [file.address for entry in CATALOGUE for file in entry.files],
        [entry.packed.path for entry in CATALOGUE if entry.packed],
        [entry.pyg.lower() for entry in CATALOGUE if entry.pyg],
        [entry.pyg.rpartition("/")[2].lower() for entry in CATALOGUE if entry.pyg],
    ):
        assert len(set(values)) == len(values)


def test_reference_recipes() -> None:
    """Every file that a packaged recipe for graphs names is that of one set."""
    named = set()
    for name in packaged_recipes():
        values = read_recipe(name).values
        path = values.get("data", {}).get("path")
        if path is not None and values.get("task") == "graph":
            named.add(path)
    assert {entry.packed.path for entry in CATALOGUE if entry.packed} >= named
    assert len(named) >= 10


def test_values_lookup() -> None:
    assert find_entry("CORA").name == "cora"
    assert [find_pyg(name).name for name in ("Planetoid/Cora", "cora", "Photo", "CS", "/WikiCS/")] == [  # type: ignore[union-attr]
        "cora",
        "cora",
        "amazon-photo",
        "coauthor-cs",
        "wikics",
    ]
    assert find_pyg("Cora/Planetoid") is None
    assert find_pyg("") is None
    assert find_packed("graphs/acm.npz") is find_entry("acm")
    assert find_packed("graphs\\acm.npz") is find_entry("acm")
    assert find_packed("acm.npz") is None
    assert find_packed("cifar10") is find_entry("cifar-10")
    assert find_packed("") is None


def test_errors() -> None:
    with pytest.raises(InputError, match=r"no set 'pubmet'.*Did you mean 'pubmed'"):
        find_entry("pubmet")
    with pytest.raises(InputError, match=r"without a name lists them"):
        find_entry("imagenet")


def test_degenerate_imports() -> None:
    """Listing and downloading need neither torch nor numpy."""
    code = (
        "import sys, leanlabel.data.obtain\n"
        "sys.exit(str({'torch', 'numpy', 'scipy'} & set(sys.modules)) if 'torch' in sys.modules "
        "or 'numpy' in sys.modules else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
