"""From the keys of a recipe to images with masks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydantic import TypeAdapter, ValidationError

from leanlabel.data.class_map import ClassMap, class_map
from leanlabel.data.dense_source import (
    ClassSection,
    DenseFiles,
    DenseSource,
    Scenes,
    chosen_classes,
    open_dense,
)
from leanlabel.errors import InputError

SOURCE: TypeAdapter[Any] = TypeAdapter(DenseSource)


def settings(**keys: object) -> Any:
    """As a recipe gives them: plain data."""
    return SOURCE.validate_json(json.dumps(keys))


def fill(root: Path) -> Path:
    for k in range(4):
        for folder, content in (("images", np.full((4, 6, 3), k)), ("masks", np.full((4, 6), k % 2 * 255))):
            (root / folder).mkdir(parents=True, exist_ok=True)
            Image.fromarray(content.astype(np.uint8)).save(root / folder / f"{k}.png")
    return root


def test_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path / "own")
    monkeypatch.setenv("LEANLABEL_DATA", str(tmp_path))
    source = settings(
        path="own", classes={"names": ["back", "cell"], "ids": {"0": 0, "255": 1}}, val_share=0.25
    )
    assert isinstance(source, DenseFiles)
    assert isinstance(source.classes, ClassSection)
    seen: list[tuple[int, int]] = []
    data = open_dense(source, lambda done, of: seen.append((done, of)))
    assert data.classes.names == ("back", "cell")
    assert data.read([1])[1].unique().tolist() == [1]
    assert len(data.splits["val"]) == 1
    assert seen == [(4, 4)]
    named = settings(path="own", labels="none", classes="camvid-11", resize=2)
    assert open_dense(named).shape == (3, 2, 3)
    assert chosen_classes(named.classes) == class_map("camvid-11")
    with pytest.raises(InputError, match="no such file or folder"):
        open_dense(settings(path="other"))


def test_values_sections() -> None:
    assert isinstance(settings(path="x"), DenseFiles)
    scenes = settings(kind="scenes", train=3)
    assert isinstance(scenes, Scenes)
    assert (scenes.train, scenes.val, scenes.height, scenes.batch_size) == (3, 40, 96, 8)
    own = settings(
        path="x", classes={"names": ["a", "b"], "colours": [[1, 2, 3], [4, 5, 6]], "by_colour": True}
    )
    found = chosen_classes(own.classes)
    assert isinstance(found, ClassMap)
    assert found.by_colour
    assert chosen_classes(None) is None


def test_state() -> None:
    """What is printed reads back as the same settings."""
    for source in (
        settings(
            path="x", classes={"names": ["a"], "ids": {"300": 0}, "ignored": [0]}, bands=[0, 3], white=1e4
        ),
        settings(path="x", only_groups=["s"], layout="voc", classes="voc-21"),
        settings(kind="scenes", tail=2.0, gap=0.5),
    ):
        assert settings(**source.model_dump(mode="json")) == source
        assert type(source)(**source.model_dump()) == source


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"classes": {"names": ["a", "a"]}}, "the class name 'a' occurs twice"),
        ({"classes": {"names": []}}, "names: "),
        ({"classes": {"names": ["a"], "idz": 1}}, "idz: Extra inputs"),
        ({"classes": {"names": ["a"], "ids": {"0": 3}}}, "class 0 has no raw id"),
        ({"classes": {"names": ["a"], "by_colour": True}}, "colours, the colour of each class"),
        ({"classes": "camvid"}, r"the name of a class map \(Nearest: camvid-11"),
        ({"classes": 3}, "the name of a class map, or a section"),
        ({"white": 3.0}, "bands, the bands to read, with white"),
        ({"val_share": 1.0}, "less than 1"),
        ({"resize": 0}, "greater than or equal to 1"),
        ({"layout": "kitti"}, "'auto', 'folders'"),
        ({"maskz": "x"}, "Extra inputs"),
        ({"kind": "scenes", "train": 0, "val": 0, "test": 0}, "at least one scene"),
        ({"kind": "scenes", "gap": 3.0}, "less than or equal to 2"),
    ],
)
def test_errors(keys: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message) as told:
        settings(**({} if keys.get("kind") == "scenes" else {"path": "x"}), **keys)
    assert len(told.value.errors()) == 1


def test_values_scenes() -> None:
    """Scenes are drawn with the keys of their section."""
    pytest.importorskip("leanlabel.data.generated.scenes")
    data = open_dense(settings(kind="scenes", train=2, val=1, test=1, height=48, width=64))
    assert data.shape == (3, 48, 64)
    assert data.classes.names == class_map("camvid-11").names
    assert {part: len(rows) for part, rows in data.splits.items()} == {"train": 2, "val": 1, "test": 1}
