"""Partners of images: by name, table, time and row; what is missing is named, what is wrong refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from leanlabel.data.class_map import plain_map
from leanlabel.data.dense import DenseImages, MaskArray
from leanlabel.data.dense_files import read_dense
from leanlabel.data.image_names import ImageNames
from leanlabel.data.images import PixelArray
from leanlabel.data.pairs import Pairs, PairSection, check_pair_sizes, find_pairs
from leanlabel.data.transformed import transformed
from leanlabel.errors import InputError

CLASSES = plain_map(["sky", "road"])


def settings(**keys: object) -> PairSection:
    """As a recipe gives them: plain data."""
    return PairSection.model_validate_json(json.dumps(keys))


def named(*ids: str, name: str = "set", size: tuple[int, int] = (4, 6)) -> DenseImages:
    pixels = torch.zeros(len(ids), 3, *size, dtype=torch.uint8)
    return DenseImages(name, PixelArray(pixels), MaskArray(pixels[:, 0].clone()), CLASSES, ids=list(ids))


def found(source: DenseImages, target: DenseImages, *rows: Any, **keys: object) -> dict[int, list[int]]:
    pairs = find_pairs(source, target, settings(**keys), *rows)
    assert pairs.rows.tolist() == list(pairs.candidates)
    return {row: list(own) for row, own in pairs.candidates.items()}


def test_values_name() -> None:
    """Full names; names of files alone where no full name is there; or what a rule finds in both."""
    source = named("train/a.png", "train/b.png", "val/a.jpg", "c.png")
    target = named("val/a.png", "day/b.tif", "day/a.png", "x.png", "c")
    assert found(source, target) == {0: [2], 4: [3]}
    assert found(source, target, [2, 4], [1, 2, 3]) == {4: [3]}
    assert found(
        named("clear/a.png", "clear/b.png", "c.png"), named("x.jpg", "rain/b.jpg", "rain/c.jpg")
    ) == {
        1: [1],
        2: [2],
    }
    by_rule = found(
        named("d1/spot_01_s.png", "d1/spot_2.png", "d1/other.png"),
        named("d2/spot_2_w.png", "d2/none.png", "d2/spot_01.png"),
        by="name",
        rule="spot_([0-9]+)",
    )
    assert by_rule == {0: [1], 2: [0]}


def test_values_name_sequences() -> None:
    """A missing partner is missing, and not the image of another sequence that is called the same."""
    source = named("a/1.png", "b/1.png", "b/2.png")
    pairs = find_pairs(source, named("a/1.png", "a/2.png", "b/2.png"), settings())
    assert dict(pairs.candidates) == {0: [0], 2: [2]}
    assert pairs.missing == ["a/2.png"]
    for first, second in ((source, named("c/1.png")), (named("c/1.png"), source)):
        with pytest.raises(InputError, match=r"a/1.png and b/1.png of set have one file name"):
            find_pairs(first, second, settings())
    assert found(source, named("c/2.png")) == {0: [2]}  # the others are not asked for


def test_values_accents() -> None:
    """File systems write accents in two ways."""
    source, target = named("stra\u0308u.png", "b.png"), named("str\u00e4u.png")
    assert found(source, target) == {0: [0]}
    assert found(source, target, rule="(.*)\\.png") == {0: [0]}
    assert ImageNames(target).find("stra\u0308u") == 0


def test_values_rule_empty() -> None:
    """A group that reads nothing says nothing."""
    assert found(named("x1.png", "x.png"), named("x.png", "y.png", "z1.png"), rule="([0-9]*)\\.") == {2: [0]}


def test_values_name_parts() -> None:
    """An image whose namesake is not allowed takes no other image of that file name."""
    source = named("train/0", "train/1", "val/0")
    assert found(source, source, [0, 1, 2], [0, 1]) == {0: [0], 1: [1]}


@pytest.mark.parametrize(
    "text",
    [
        "target,source\nn1.png,o/1.png\nn2.png,2\nn1.png,o/3.png\n",
        "source;note;target\no/1.png;;n1.png\n2.png;x;n2\no/3;;n1.png\n",
        "n1.png o/1.png\nn2.png 2\nn1.png o/3.png\n",
    ],
)
def test_values_csv(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With or without header, in either order, several partners of one image; names also without folder or ending."""
    (tmp_path / "pairs.csv").write_text(text, encoding="utf-8")
    monkeypatch.setenv("LEANLABEL_DATA", str(tmp_path))
    source, target = named("o/1.png", "o/2.png", "o/3.png"), named("n1.png", "n2.png", "n3.png")
    pairs = find_pairs(source, target, settings(by="csv", path="pairs.csv"))
    assert dict(pairs.candidates) == {0: [0, 2], 1: [1]}
    assert pairs.missing == ["n3.png"]
    assert pairs.note() == "1 of 3 target images has no partner and is left out: n3.png."
    assert len(pairs) == 2


def test_values_time(tmp_path: Path) -> None:
    """Nearest in time and near enough; ties give several."""
    source = named("100.png", "110.png", "120.5.png", "300.png")
    target = named("d/104.png", "d/105.png", "d/120.4.jpg", "d/200.png")
    assert found(source, target, by="time", tolerance=20) == {0: [0], 1: [0, 1], 2: [2]}
    dated = named("a_20180504_101500.png", "a_20180504_102000.png")
    other = named("b_20180504_101530_x.png")
    keys = {"by": "time", "time_rule": "([0-9]{8}_[0-9]{6})", "time_format": "%Y%m%d_%H%M%S"}
    assert found(dated, other, **keys) == {0: [0]}
    (tmp_path / "own.csv").write_text(
        "name,time\np.png,2018-05-04T10:15:00\nq.png,2018-05-04T12:20:00+02:00\nz.png,0\n", encoding="utf-8"
    )
    (tmp_path / "old.csv").write_text("p.png,2018-05-04T10:19:50Z\nq.png,1525428900\n", encoding="utf-8")
    keys = {"by": "time", "times": str(tmp_path / "own.csv"), "source_times": str(tmp_path / "old.csv")}
    both = named("p.png", "q.png")
    assert found(both, both, **keys) == {0: [1], 1: [0]}


def test_values_same() -> None:
    data = named("a", "b", "c")
    assert found(data, transformed(data, "inversion"), [0, 2], by="same") == {0: [0], 2: [2]}
    assert found(data, data, None, [1], by="same") == {1: [1]}


def test_values_many() -> None:
    """Ties are all found, and what is later is not looked at."""
    source = named(*(f"{k // 3}.png" for k in range(300)))
    assert found(source, named("50.png", "7.25.png"), by="time", tolerance=1) == {
        0: [150, 151, 152],
        1: [21, 22, 23],
    }


def test_reference() -> None:
    """Partners are chosen evenly, another one each epoch, and for each sample on its own."""
    pairs = Pairs(torch.tensor([3, 5]), {3: [7, 8, 9], 5: [2]})
    rows, ids = torch.tensor([3, 5, 3]), torch.tensor([10, 11, 12])
    counts = torch.zeros(10)
    for epoch in range(300):
        chosen = pairs.choose(rows, ids, seed=1, epoch=epoch)
        assert int(chosen[1]) == 2
        assert torch.equal(chosen, pairs.choose(rows, ids, seed=1, epoch=epoch))
        assert torch.equal(chosen[2:], pairs.choose(rows[2:], ids[2:], seed=1, epoch=epoch))
        counts[chosen[0]] += 1
    assert counts[[7, 8, 9]].min() > 70
    assert counts.sum() == 300
    with pytest.raises(ValueError, match="row 4 of the target has no partner"):
        pairs.choose(torch.tensor([4]), torch.tensor([0]), seed=0, epoch=0)


def test_degenerate() -> None:
    """Many missing ones are counted and the first few named; nothing missing, nothing said."""
    many = named("a.png", *(f"m{k}.png" for k in range(8)))
    pairs = find_pairs(named("a.png"), many, settings())
    note = pairs.note()
    assert note is not None
    assert note.startswith("8 of 9 target images have no partner and are left out: m0.png, m1.png,")
    assert note.endswith("m4.png, ....")
    assert find_pairs(named("a.png"), named("a.tif"), settings()).note() is None
    assert ImageNames(named("x/a.png", "y/a.png")).find("a.png") == -1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "target,source\nn1.png,o/1.png\nn1.pgn,o/1.png\n",
            r"line 3: 'n1.pgn' names no image of the target, new.* n1.png",
        ),
        ("n1.png,o/11.png\n", r"line 1: 'o/11.png' names no image of the source, old. Nearest: o/1.png"),
        ("target,source\nn1.png,3.png\n", r"'3.png' names several images of the source"),
        ("target,reference,x\n", "has a partner|no image|none of"),
        ("target,source\nn1.png,q/1.png\n", r"'q/1.png' names no image of the source"),
        ("target,source\nn1.png,a/o/1.png\n", r"'a/o/1.png' names no image of the source"),
        ('target,source\nn1.png,"1.png 3"\n', r"'1.png 3' names no image of the source"),
        ('target,source\nn1.png,"1,3"\n', r"'1,3' names no image of the source"),
        ("target,source\nn1.png,../o/1.png\n", r"'../o/1.png' names no image of the source"),
        ("target,source\nn1.png,\n", r"'' names no image of the source"),
        ("a,b,c\nn1.png,o/1.png,1\n", "has 3 columns, and not one called target and one source"),
        ("", "is empty"),
    ],
)
def test_errors_csv(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "pairs.csv").write_text(text, encoding="utf-8")
    source = named("o/1.png", "o/3.png", "p/3.png", name="old")
    with pytest.raises(InputError, match=message):
        find_pairs(source, named("n1.png", name="new"), settings(by="csv", path=str(tmp_path / "pairs.csv")))


def test_errors(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"none of 1 target images has a partner in old by name, such as b.png.*a.png"
    ):
        find_pairs(named("a.png", name="old"), named("b.png"), settings())
    with pytest.raises(InputError, match="old has 1 images and set 2"):
        find_pairs(named("a", name="old"), named("a", "b"), settings(by="same"))
    with pytest.raises(InputError, match=r"by same: row 1 is b.png in old and c.tif in set"):
        find_pairs(named("a.png", "b.png", name="old"), named("a.tif", "c.tif"), settings(by="same"))
    assert found(named("a.png"), named("a.tif"), by="same") == {0: [0]}
    bare = DenseImages("bare", PixelArray(torch.zeros(1, 3, 4, 4, dtype=torch.uint8)), None, CLASSES)
    with pytest.raises(InputError, match="images of bare have no names"):
        find_pairs(named("a"), bare, settings())
    with pytest.raises(InputError, match=r"set, a.png: 'a' is not a number of seconds or ISO 8601"):
        find_pairs(named("1.png"), named("a.png"), settings(by="time"))
    with pytest.raises(InputError, match="no image of set has a time in their names"):
        find_pairs(named("1.png"), named("a.png"), settings(by="time", time_rule="([0-9]+)"))
    with pytest.raises(InputError, match=r"further apart than data.pairs.tolerance, 5 s"):
        find_pairs(named("1.png"), named("9.png"), settings(by="time", tolerance=5))
    (tmp_path / "t.csv").write_text("name,time\na.png,soon\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"t.csv, line 2: 'soon' is not"):
        find_pairs(named("a.png"), named("a.png"), settings(by="time", times=str(tmp_path / "t.csv")))
    for keys, message in (
        ({"by": "csv"}, "path, the table of pairs"),
        ({"rule": "a+"}, "one group in brackets, not 0"),
        ({"rule": "("}, "a regular expression"),
        ({"source_times": "x"}, "times, the table of the target"),
        ({"tolerance": -1}, "greater than or equal to 0"),
        ({"by": "gps"}, "'name', 'csv', 'time' or 'same'"),
    ):
        with pytest.raises(ValidationError, match=message):
            settings(**keys)


@pytest.mark.parametrize("text", ["20240131", "202401311059", "20240131105959", "20240131_105959", "1_000"])
def test_errors_dates(text: str) -> None:
    """Digits that are a date are no seconds: minutes would have a hundred."""
    with pytest.raises(InputError, match=rf"'{text}' looks like a date, .* data.pairs.time_format"):
        find_pairs(named("1.png"), named(f"{text}.png"), settings(by="time"))
    assert found(named("12345678.png"), named("12345679.5.png"), by="time") == {0: [0]}  # no such month
    form = "%Y%m%d%H%M%S"
    dated = named("20240131105959.png", "20240131110058.png")
    assert found(dated, named("20240131110000.png"), by="time", time_format=form) == {0: [0]}


def test_errors_times(tmp_path: Path) -> None:
    """Two times of one image: which is meant is not known."""
    (tmp_path / "t.csv").write_text("name,time\n1.png,100\n2.png,200\n1.png,900\n", encoding="utf-8")
    keys = {"by": "time", "times": str(tmp_path / "t.csv")}
    with pytest.raises(InputError, match=r"line 2, and .*line 4: two times of 1.png of set.*source_times"):
        find_pairs(named("1.png", "2.png"), named("1.png", "2.png"), settings(**keys))
    (tmp_path / "t.csv").write_text("name,time\n1.png,100\n2.png,200\n./1.png,100.0\n", encoding="utf-8")
    assert found(named("1.png"), named("2.png"), **keys, tolerance=100) == {0: [0]}
    (tmp_path / "t.csv").write_text("name,time\nold/1.png,100\nnew/1.png,205\n", encoding="utf-8")
    with pytest.raises(InputError, match="no image of set has a time"):
        find_pairs(named("1.png"), named("1.png"), settings(**keys))


def test_errors_sizes(tmp_path: Path) -> None:
    """Pairs of different sizes are refused, by name, whether in memory or on disk."""
    source, target = named("a.png", name="old"), named("a.png", name="new", size=(5, 6))
    pairs = find_pairs(source, target, settings())
    with pytest.raises(InputError, match="images of new have 6 x 5 pixels, those of old 6 x 4"):
        check_pair_sizes(source, target, pairs)
    check_pair_sizes(source, transformed(source, "camera"), pairs)
    for part, sizes in (("one", ((4, 6), (8, 5))), ("two", ((4, 6), (8, 9)))):
        for k, size in enumerate(sizes):
            for folder, shape in (("images", (*size, 3)), ("masks", size)):
                (tmp_path / part / folder).mkdir(parents=True, exist_ok=True)
                Image.fromarray(np.zeros(shape, np.uint8)).save(tmp_path / part / folder / f"{k}.png")
    for labels in ("auto", "none"):
        one, two = (
            read_dense(tmp_path / part, classes=CLASSES, val_share=0, labels=labels)  # type: ignore[arg-type]
            for part in ("one", "two")
        )
        pairs = find_pairs(one, two, settings())
        with pytest.raises(
            InputError, match=r"1 pairs differ in size: 1.png with 9 x 8 and 1.png with 5 x 8 pixels"
        ):
            check_pair_sizes(one, transformed(two, "camera"), pairs)
        check_pair_sizes(one, two, find_pairs(one, two, settings(), [0]))


def test_state() -> None:
    """Settings read back."""
    for own in (settings(), settings(by="time", time_rule="_([0-9]+)", tolerance=2), settings(rule="(a)")):
        assert settings(**own.model_dump(mode="json")) == own
