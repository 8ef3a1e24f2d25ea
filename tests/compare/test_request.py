"""What the options of a comparison say."""

from __future__ import annotations

import pytest

from leanlabel.compare.request import Request, dial_points, grid_points, split_values, variants
from leanlabel.errors import InputError


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("1,2", ["1", "2"]),
        ("[0.1,0.1],[0.3, 0.3]", ["[0.1,0.1]", "[0.3, 0.3]"]),
        ("[[1,2],[3,4]],x", ["[[1,2],[3,4]]", "x"]),
        ("{a: 1, b: 2}, c", ["{a: 1, b: 2}", "c"]),
        ("'a,b',\"c,'d\"", ["'a,b'", '"c,\'d"']),
        ("one", ["one"]),
        ("a,,b", ["a", "", "b"]),
    ],
)
def test_values_split(text: str, parts: list[str]) -> None:
    assert split_values(text) == parts


def test_values_grid() -> None:
    """The product, the last key turning fastest; values are read as YAML."""
    points = grid_points(["optim.lr=1e-3,0.01", "augment.edge_rates=[0.1,0.1],[0.3, 0.4]"])
    assert [point.label for point in points] == [
        "lr=1e-3, edge_rates=0.1",
        "lr=1e-3, edge_rates=[0.3, 0.4]",
        "lr=0.01, edge_rates=0.1",
        "lr=0.01, edge_rates=[0.3, 0.4]",
    ]
    assert points[1].values == {"optim.lr": 0.001, "augment.edge_rates": [0.3, 0.4]}
    assert points[1].texts == {"optim.lr": "1e-3", "augment.edge_rates": "[0.3, 0.4]"}
    assert [point.x for point in grid_points(["a.b=1,true,x"])] == [1.0, None, None]


def test_values_dial() -> None:
    """Two keys may move together; x is the number where there is one."""
    points = dial_points("augment.edge_rates+augment.feature_rates=[.1,.1],[.2,.3]")
    assert [point.label for point in points] == [
        "edge_rates+feature_rates=0.1",
        "edge_rates+feature_rates=[0.2, 0.3]",
    ]
    assert [point.x for point in points] == [0.1, None]
    assert points[0].texts == {"augment.edge_rates": "[.1,.1]", "augment.feature_rates": "[.1,.1]"}
    assert [point.text for point in dial_points("augment.scheme=degree,uniform")] == ["degree", "uniform"]


def test_values_variants() -> None:
    """Assignments of one name belong together, in order."""
    found = variants(["cold:method.tau=0.1", "wide:model.width=9", "cold:optim.lr=1,2:3"])
    assert found == {"cold": ["method.tau=0.1", "optim.lr=1,2:3"], "wide": ["model.width=9"]}


def test_values_request() -> None:
    """Any iterable will do; a single text is one."""
    request = Request("gca/cora", overrides=["a=1"], only=iter(["x"]))  # type: ignore[arg-type]
    assert (request.recipes, request.overrides, request.only) == (("gca/cora",), ("a=1",), ("x",))


@pytest.mark.parametrize(
    "text", ["optim.lr", "optim.lr=", "optim.lr=1,", "=1", "a+=1", "a=[1", "a=1,1", "a=1,1.0"]
)
def test_errors_values(text: str) -> None:
    with pytest.raises(InputError, match="--dial"):
        dial_points(text)
    with pytest.raises(InputError, match="--grid"):
        grid_points([text])


def test_errors_grid() -> None:
    with pytest.raises(InputError, match="every key by itself, and once"):
        grid_points(["a=1,2", "a=3"])
    with pytest.raises(InputError, match="every key by itself"):
        grid_points(["a+b=1,2"])
    with pytest.raises(InputError, match="seeds are counted by --seeds"):
        grid_points(["seed=1,2"])
    with pytest.raises(InputError, match="one point is no choice"):
        grid_points(["a=1", "b=2"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cold", "write it as NAME:key=value"),
        ("cold:tau", "write it as NAME:key=value"),
        ("a/b:tau=1", "cannot be the name of an arm"),
        ("..:tau=1", "cannot be the name of an arm"),
        ("CON:tau=1", "cannot be the name of an arm"),
        ("lpt1.x:tau=1", "cannot be the name of an arm"),
        ("stages:tau=1", "cannot be the name of an arm"),
        ("x.:tau=1", "cannot be the name of an arm"),
        ("=cmd:tau=1", "write it as NAME:key=value|cannot be the name"),
    ],
)
def test_errors_variants(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        variants([text])


def test_errors_request() -> None:
    with pytest.raises(InputError, match="needs a recipe"):
        Request(())
    with pytest.raises(InputError, match="--seeds 0"):
        Request(["a"], seeds=0)
    with pytest.raises(InputError, match="cannot stand together"):
        Request(["a"], grid=["x=1"], dial="y=1")
    for count in (0, 4):
        with pytest.raises(InputError, match=f"--grid-seeds {count}: from 1 to the 3"):
            Request(["a"], grid_seeds=count)
