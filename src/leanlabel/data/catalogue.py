"""Public data sets: where they are published, how they are laid out, what their terms are, what their bytes hash to.

Nothing here reaches the network (:mod:`leanlabel.data.obtain` does) and nothing heavy is imported.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal

from leanlabel.errors import InputError

Kind = Literal["graph", "images", "volumes", "text", "vectors"]


@dataclass(frozen=True)
class Remote:
    """One published file.

    Args:
        path: where it goes below the data folder; forward slashes.
        address: http or https address as published; "" for a file that only a mirror can give.
        size: bytes; an estimate where no checksum is known.
        sha256: 64 hexadecimal digits, or None where it is recorded at the first download.
        git_sha1: the name that git gives the file's contents, for files of public repositories whose sha256 is not
            known: SHA-1 of "blob <bytes>\\0" and the contents.
        unpack: folder below the data folder that an archive is unpacked to; None for a plain file.
    """

    path: str
    address: str
    size: int
    sha256: str | None = None
    git_sha1: str | None = None
    unpack: str | None = None

    @property
    def name(self) -> str:
        """File name without folders."""
        return PurePosixPath(self.path).name


@dataclass(frozen=True)
class Entry:
    """One public set.

    Args:
        name: what `leanlabel data get` calls it.
        title: one line on what it is.
        kind: what is in it.
        files: all published files.
        layout: how the files are laid out, for people.
        terms: one line; says "not stated" where the publisher does not say.
        citation: the work to cite.
        data_path: what to write for `data.path` once it is here.
        packed: the same set as the packaged recipes name it, one file that a mirror may hold instead.
        pyg: name in torch_geometric, "Planetoid/Cora"; None where it has none.
        undirected: how torch_geometric reads it: True mirrors every edge, None leaves edges alone.
        binary: torch_geometric sets every positive feature to one.
    """

    name: str
    title: str
    kind: Kind
    files: tuple[Remote, ...]
    layout: str
    terms: str
    citation: str
    data_path: str
    packed: Remote | None = None
    pyg: str | None = None
    undirected: bool | None = None
    binary: bool = False

    @property
    def size(self) -> int:
        """Bytes of all published files."""
        return sum(file.size for file in self.files)

    @property
    def place(self) -> str:
        """What a reader opens, below the data folder: the only file, or the folder of several."""
        first = PurePosixPath(self.files[0].path)
        return (first if len(self.files) == 1 else first.parent).as_posix()

    def as_dict(self) -> dict[str, object]:
        """Plain data, for JSON."""
        return {
            "name": self.name,
            "title": self.title,
            "kind": self.kind,
            "bytes": self.size,
            "layout": self.layout,
            "terms": self.terms,
            "citation": self.citation,
            "data_path": self.data_path,
            "pyg": self.pyg,
            "packed": self.packed.path if self.packed else None,
            "files": [
                {
                    "path": file.path,
                    "address": file.address,
                    "bytes": file.size,
                    "sha256": file.sha256,
                    "git_sha1": file.git_sha1,
                }
                for file in self.files
            ],
        }


def find_entry(name: str) -> Entry:
    """Return the set of a name.

    Raises:
        InputError: no such set; names the nearest one.

    >>> find_entry("cora").place
    'Planetoid/Cora/raw'
    """
    for entry in CATALOGUE:
        if entry.name == name.lower():
            return entry
    near = difflib.get_close_matches(name.lower(), [entry.name for entry in CATALOGUE], n=1)
    hint = f"Did you mean {near[0]!r}?" if near else "`leanlabel data get` without a name lists them."
    raise InputError(f"The catalogue has no set {name!r}.", hint)


def find_pyg(name: str) -> Entry | None:
    """Return the set that torch_geometric calls `name`: in full ("Planetoid/Cora") or by its last part ("Cora").

    >>> find_pyg("Photo").name
    'amazon-photo'
    """
    wanted = name.strip("/").lower()
    for entry in CATALOGUE:
        if entry.pyg and wanted in (entry.pyg.lower(), entry.pyg.rpartition("/")[2].lower()):
            return entry
    return None


def find_packed(path: str) -> Entry | None:
    """Return the set that the packaged recipes keep at `path`, such as "graphs/cora.npz" or "cifar10"."""
    wanted = path.replace("\\", "/")
    return next(
        (one for one in CATALOGUE if wanted == (one.packed.path if one.packed else one.data_path)), None
    )


_RAW = "https://raw.githubusercontent.com"
# Pinned to a commit: what stands there cannot change, so a checksum holds for good.
_PLANETOID = f"{_RAW}/kimiyoung/planetoid/af6abf468a772cc055bec88c52e4d6f51b7c37e3/data"
_BENCHMARK = f"{_RAW}/shchur/gnn-benchmark/1e72912a0810cdf27ae54fd589a3b43358a2b161/data/npz"
_WIKI = f"{_RAW}/pmernyei/wiki-cs-dataset/f5207315d649377f936edb66d7d93f5342f01d81/dataset"
_GRAPH_DATA = f"{_RAW}/EdisonLeeeee/GraphData/f8022c26b917346f2a461ffec0ec5ae24b36de68/datasets"

_TERMS = "MIT licence at the source repository; terms of the data itself not stated"


_Known = tuple[int, str | None]
"""Bytes and sha256 of a file, where they are known."""


def _packed(name: str, size: int = 0, sha256: str | None = None) -> Remote:
    return Remote(f"graphs/{name}.npz", "", size, sha256)


def _planetoid(
    folder: str,
    title: str,
    source: str,
    sums: dict[str, tuple[int, str]],
    *,
    git: str = "",
    packed: _Known = (0, None),
) -> Entry:
    """A set of eight files with their sizes and checksums; that of the part `git` is git's."""
    name, files = folder.lower(), []
    for part, (size, checksum) in sums.items():
        file = f"ind.{name}.{part}"
        known = {"git_sha1": checksum} if part == git else {"sha256": checksum}
        files.append(Remote(f"Planetoid/{folder}/raw/{file}", f"{_PLANETOID}/{file}", size, **known))
    return Entry(
        name,
        title,
        "graph",
        tuple(files),
        "eight ind.* files: sparse features, one-hot labels, neighbour lists, test nodes; public split",
        _TERMS,
        f"{source}; split of Yang et al., Revisiting Semi-Supervised Learning with Graph Embeddings, ICML 2016",
        f"pyg:Planetoid/{folder}",
        _packed(name, *packed),
        f"Planetoid/{folder}",
    )


def _benchmark(
    pyg: str,
    title: str,
    source: str,
    file: str,
    size: int,
    git_sha1: str,
    packed: _Known = (0, None),
) -> Entry:
    """A set of one .npz, of which git's checksum is known."""
    name = pyg.lower().replace("/", "-")
    return Entry(
        name,
        title,
        "graph",
        (Remote(f"{pyg}/raw/{file}", f"{_BENCHMARK}/{file}", size, git_sha1=git_sha1),),
        "one .npz: adjacency and features as CSR parts, labels; no split",
        _TERMS,
        f"{source}; Shchur et al., Pitfalls of Graph Neural Network Evaluation, 2018 (arXiv:1811.05868)",
        f"pyg:{pyg}",
        _packed(name.replace("-", "_"), *packed),
        pyg,
        undirected=True,
        binary=True,
    )


def _graph_data(
    name: str, title: str, source: str, size: int, sha256: str, packed: _Known = (0, None)
) -> Entry:
    """A set of one .npz of pickled matrices."""
    path = f"GraphData/{name}.npz"
    return Entry(
        name,
        title,
        "graph",
        (Remote(path, f"{_GRAPH_DATA}/{name}.npz", size, sha256),),
        "one .npz of pickled SciPy matrices, read without running them; no split",
        _TERMS,
        f"{source}; packed by EdisonLeeeee/GraphData",
        path,
        _packed(name, *packed),
    )


def _cifar(classes: int, title: str, size: int, sha256: str) -> Entry:
    """One of the two sets of CIFAR as published for Python; read as it is, not unpacked."""
    file, folder = f"cifar-{classes}-python.tar.gz", f"cifar{classes}"
    return Entry(
        f"cifar-{classes}",
        title,
        "images",
        (Remote(f"{folder}/{file}", f"https://www.cs.toronto.edu/~kriz/{file}", size, sha256),),
        "one .tar.gz of pickled batches, read without running them; published training and test part",
        "terms not stated; the authors ask to be cited",
        "Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009",
        folder,
    )


CATALOGUE: tuple[Entry, ...] = (
    _planetoid(
        "Cora",
        "2,708 papers in 7 classes, 1,433 words, 5,278 citations",
        "Sen et al., Collective Classification in Network Data, 2008",
        {
            "x": (22119, "23cfa55d91c6f624233f5eb7b6e3f141f1bd2b2ae39608a63cf5d084bb27baab"),
            "tx": (148025, "b9afbaa4a400df991f6f02ef677e1e44da55ffc04801fd02f9e673987829226a"),
            "allx": (257305, "9419ba2f26f5c35243db64aba110e0f35a04851609e0dc5433450676ca6b8543"),
            "y": (4054, "94465c14eb53e04ca262198dcbb2521ee8af60fb3f3d546cd6ca24a511b0e7d1"),
            "ty": (28135, "41f5ac76596a1699cc33f53084a2419e92961c42bb75f36fc38e616d348532ad"),
            "ally": (47959, "2b998f5cc7fedc86e7f97ca2498f47a1ffc1462c29e2d578b23bf3f62b6e7d71"),
            "graph": (59847, "58f13302f39dde8852dad6fe6d15b89b077b6d7f837626bce671ef80344b383d"),
            "test.index": (5000, "297ce89af2b51a6a194181c7dbe1796c6a1cf9cd9349a88383b1b1e227867875"),
        },
        packed=(100069, "20ba9c20c182b9830ef2284630d2533295e1285f81898ccbba8869f8db86540c"),
    ),
    _planetoid(
        "CiteSeer",
        "3,327 papers in 6 classes, 3,703 words, 4,552 citations",
        "Sen et al., Collective Classification in Network Data, 2008",
        {
            "x": (31087, "d20de19150741e555de0ed037195630fc194114ebc7fd72ced62810148aa22f6"),
            "tx": (260321, "539a8906a2da97628d212f2fdd668c109a8b3f0d36574b59e5d3fd5b5303da21"),
            "allx": (595021, "2ac30345d95c9ec933a817ee0bdd6a5f077f8c184a20e696910192d534414668"),
            "y": (3014, "8ba87e515d8e3ee3cf52f6d2c5b86aa73f11ecad825a808455209ec26cd54924"),
            "ty": (24135, "55e5bd1ba1e733a04598753ad1a8d57957f4b8f89e74519f41f4f4938767e4ce"),
            "ally": (55623, "f704b2d986dde6c2669934de1f3ae5696a6cf9455c0f6b2646a2d135ea0a1c95"),
            "graph": (61987, "d79a4ef9d3e7169aee8946145f6b7306e35bc79bffad26346cfb94e10e9912a7"),
            "test.index": (5000, "2af990671580b6b2df5d158d1038f8292e30c9cd821b5453f399659b25b723d4"),
        },
    ),
    _planetoid(
        "PubMed",
        "19,717 papers in 3 classes, 500 weighted words, 44,324 citations",
        "Namata et al., Query-driven Active Surveying for Collective Classification, 2012",
        {
            "x": (23172, "fbe9cb5c47200d1b7769a26e579be3b7130b556831f9d850e77c4c74f2599b33"),
            "tx": (405505, "4eb5f5d0f30f26497eb0ac6ac9719d09c67e284f1ed0385c93f3ef27a671da3d"),
            "allx": (7500000, "3b86bccf08111c37c632a9dd8ab63db25ea76361"),
            "y": (854, "e6c807633307a07ed659249006536a147c7999c797f11a2560752990181b41b3"),
            "ty": (12135, "ee2e0d4819d9fbcc403689c3bf2e49face401b605932f093bc58ab6461130fdd"),
            "ally": (224739, "0c37bbe3b5014ec365e9d393cf4791925e5ed94fb194305d74f064a8d7b50f0e"),
            "graph": (471808, "5b89f0036ca22909471f1e6558eb42fa06e0c730a577bde5b058b40638f81dc9"),
            "test.index": (6000, "b101d421688bbaecbd82e8a18f1e282378d6830f3a37666f28ebc47f844341b5"),
        },
        git="allx",
    ),
    _benchmark(
        "Amazon/Photo",
        "7,650 goods in 8 categories, 745 words of reviews, bought together",
        "McAuley et al., Image-based Recommendations on Styles and Substitutes, 2015",
        "amazon_electronics_photo.npz",
        17100000,
        "97323743cb56aca9dd611f5b4b46862c1c9c6bd9",
        (1723711, "19379e7450f1ec3112f29b019ca0f9fc1075e4fda586eef60a50ad580c88cb1d"),
    ),
    _benchmark(
        "Amazon/Computers",
        "13,752 goods in 10 categories, 767 words of reviews, bought together",
        "McAuley et al., Image-based Recommendations on Styles and Substitutes, 2015",
        "amazon_electronics_computers.npz",
        31900000,
        "8120e4148a330b3fafe37c4476823302d9d834b9",
        (3413760, "51977992a1bfc96b9138f4b43b11fba61e2510ad2207d6fa885042f6aa3451fa"),
    ),
    _benchmark(
        "Coauthor/CS",
        "18,333 authors in 15 fields of computer science, 6,805 keywords, joint papers",
        "Microsoft Academic Graph (KDD Cup 2016)",
        "ms_academic_cs.npz",
        12800000,
        "9bdd7da943d86b74297e8d32e99eb64245b52835",
    ),
    _benchmark(
        "Coauthor/Physics",
        "34,493 authors in 5 fields of physics, 8,415 keywords, joint papers",
        "Microsoft Academic Graph (KDD Cup 2016)",
        "ms_academic_phy.npz",
        16300000,
        "8d8bc12e29aa67f6753a712080eae81079bd7d01",
        (3307595, "34b22cc7b2fce380d5b49fc9bdbe8bafc2ede22e1d0cd4e300c0b5233d174805"),
    ),
    Entry(
        "wikics",
        "11,701 pages on computer science in 10 branches, 300 numbers each, 20 published splits",
        "graph",
        (
            Remote(
                "WikiCS/raw/data.json",
                f"{_WIKI}/data.json",
                80000000,
                git_sha1="f1b743119df1a7a3bca449039c54034ae623a756",
            ),
        ),
        "one .json: features, labels, links of each page, 20 training and validation sets, one test set",
        _TERMS,
        "Mernyei, Cangea, Wiki-CS: A Wikipedia-Based Benchmark for Graph Neural Networks, 2020 (arXiv:2007.02901)",
        "pyg:WikiCS",
        _packed("wikics"),
        "WikiCS",
        undirected=True,
    ),
    _graph_data(
        "acm",
        "3,025 papers in 3 classes, 1,870 words, joined where they share an author",
        "Wang et al., Heterogeneous Graph Attention Network, WWW 2019",
        379273,
        "f585d6127cd2e2a6605d3f1f7dded4003264f32db0b8d339adb2436559374a03",
        (317621, "11a49ba473718920785831d088c834ae62731fff6b8a583d85f46764b8368e83"),
    ),
    _graph_data(
        "blogcatalog",
        "5,196 bloggers in 6 interests, 8,189 keywords, 171,743 contacts",
        "Huang, Li, Hu, Label Informed Attributed Network Embedding, WSDM 2017",
        1426499,
        "115be8c3396ae7db96c60df578c8c24ee46d2547ca62fa538ec9852c338df6c6",
        (1299020, "6f7446117eb45739f58286df0fcd81ee1303625f3e1a881108600d8b40b49b0b"),
    ),
    _cifar(
        10,
        "60,000 photographs of 32 x 32 pixels in 10 classes",
        170498071,
        "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
    ),
    _cifar(
        100,
        "60,000 photographs of 32 x 32 pixels in 100 classes",
        169001437,
        "85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7",
    ),
)
