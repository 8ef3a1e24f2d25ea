"""What the page of a run shows of a segmentation, and what it believes of its files."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report_samples import ATTACK, anchors, fill, near_figure, parsed, said, self_contained, write

from leanlabel.data.class_map import plain_map
from leanlabel.engine.runfolder import RunFolder
from leanlabel.evaluation.pictures import Shown, image_score, png, segmentation_figure
from leanlabel.report import segmentation as module
from leanlabel.report.run import run_page
from leanlabel.report.segmentation import segmentation

NAMES = ("road", "building", "pole", "ghost")
SHARES = (0.2, 0.75, 0.05)


def masks(seed: int, height: int = 30, width: int = 40) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """An image, its label with some pixels ignored, and a prediction that loses most of the third class."""
    draw = np.random.default_rng(seed)
    label = draw.choice(3, (height, width), p=SHARES).astype(np.uint8)
    found = np.where((label == 2) & (draw.random(label.shape) < 0.8), 1, label).astype(np.uint8)
    found[draw.random(label.shape) < seed / 50] = 0
    label[:3] = 255
    return draw.integers(0, 255, (3, height, width)).astype(np.uint8), label, found


def figure(images: int = 12, names: tuple[str, ...] = NAMES) -> dict[str, Any]:
    """What a run leaves."""
    made, count = [masks(seed) for seed in range(images)], len(names)
    table = np.zeros((count, count), np.int64)
    for _, label, found in made:
        np.add.at(table, (label[label != 255], found[label != 255]), 1)
    table[0, 1] += 1
    scores = [image_score(f"{k}.png", found, label, count) for k, (_, label, found) in enumerate(made)]

    def show(place: int) -> Shown:
        image, label, found = made[place]
        return Shown(image, label, found, np.full(label.shape, 0.5, np.float32))

    return segmentation_figure(
        "val",
        plain_map(names),
        scores={"miou": 0.61, "boundary_iou": 0.41, "frequency_weighted": 0.86, "pixel_accuracy": 0.91},
        confusion=table,
        images=scores,
        show=show,
        untrained=table.T,
        boundary=[0.5, 0.4] + [None] * (count - 2),
    )


def page_of(folder: Path, values: Any) -> str:
    run = fill(folder, steps=20)
    write(run.figures / "segmentation.json", values)
    return run_page(run)


def part(html: str, anchor: str) -> Any:
    found = parsed(html).find(f".//section[@id='{anchor}']")
    assert found is not None
    return found


def without_pictures(html: str) -> str:
    """The page with its pictures taken out, which must be PNGs that stand in the page."""
    for node in parsed(html).iter("img"):
        assert base64.b64decode(node.attrib["src"].removeprefix("data:image/png;base64,")).startswith(
            b"\x89PNG"
        )
    return re.sub(r"<img [^>]*/>", "", html)


def test_values(tmp_path: Path) -> None:
    """The three sections, self-contained, in place of those of an embedding, and no scores by class twice."""
    html = page_of(tmp_path, figure())
    assert {"classes", "confusion", "examples"} <= set(anchors(html))
    assert not {"embedding", "neighbours"} & set(anchors(html))
    self_contained(without_pictures(html))
    assert "Recall by class" not in said(html)
    text = said(html)
    for shown in ("mIoU 0.610", "boundary IoU 0.410", "frequency-weighted IoU 0.860", "Scores on val."):
        assert shown in text


def test_values_head_and_tail(tmp_path: Path) -> None:
    """The most frequent class stands first, with its share, IoU, untrained IoU and boundary IoU."""
    values = figure()
    section = part(page_of(tmp_path, values), "classes")
    cells = [["".join(cell.itertext()).strip() for cell in row] for row in section.iter("tr")]
    assert [row[0] for row in cells] == ["class", "building", "road", "pole", "ghost"]
    road = values["classes"][0]
    assert cells[2][1] == f"{road['iou']:.3f}"
    assert cells[2][2] == f"{road['untrained']:.3f}"
    assert cells[2][3] == "0.500"
    assert cells[2][4] == f"{100 * road['share']:.1f} %"
    assert cells[2][6] == f"{road['predicted_share'] / road['share']:.2f}"
    assert cells[4][1:] == ["–", "–", "–", "0 %", "0 %", "–"]
    described = [node.text for node in section.iter("desc")]
    assert described[0].startswith("building: IoU 0.")
    bars = [node.get("class") for node in section.iter("rect")]
    assert bars.count("bar second") == 2 + 1  # and its key
    assert len([1 for node in section.iter("line") if node.get("class") == "mean"]) == 3


def test_values_confusion(tmp_path: Path) -> None:
    """Rows in percent of the label, darker for more, right ones outlined; readable without colour."""
    section = part(page_of(tmp_path, figure()), "confusion")
    table = np.array(figure()["confusion"])
    rows = list(section.iter("tr"))
    assert ["".join(cell.itertext()) for cell in rows[0]][1:] == ["building", "road", "pole", "ghost"]
    pole = ["".join(cell.itertext()) for cell in rows[3]]
    assert pole[:3] == [
        "pole",
        f"{100 * table[2, 1] / table[2].sum():.0f}",
        f"{100 * table[2, 0] / table[2].sum():.0f}",
    ]
    assert rows[3][3].get("class").endswith("own")
    assert rows[3][1].get("class").startswith("h")
    assert rows[3][1].get("title").startswith("pole taken for building: ")
    ghost = ["".join(cell.itertext()) for cell in rows[4]]
    assert ghost == ["ghost", "–", "–", "–", "–"]
    road = ["".join(cell.itertext()) for cell in rows[2]]
    assert road[1] == "< 1"
    style = next(parsed(run_page(RunFolder(tmp_path))).iter("style")).text or ""
    alphas = [float(re.search(rf"\.h{k} {{ --heat: ([.\d]+)", style)[1]) for k in range(1, 10)]  # type: ignore[index]
    assert alphas == sorted(alphas)
    assert alphas[-1] < 0.8  # letters stay readable on it
    assert re.search(r"print \{.*\.heat td[^}]*print-color-adjust: exact", style, re.DOTALL)


def test_values_examples(tmp_path: Path) -> None:
    section = part(page_of(tmp_path, figure()), "examples")
    heads = ["".join(node.itertext()) for node in section.iter("figcaption")]
    assert [head.split()[0] for head in heads] == ["Worst"] * 3 + ["Typical"] * 2 + ["Best"] * 3
    assert re.fullmatch(r"Worst 11\.png mIoU 0\.\d{3}, \d\d\.\d % of the pixels right", heads[0])
    described = [node.attrib["alt"] for node in section.iter("img")]
    assert described[:5] == [
        f"{what} of 11.png" for what in ("image", "label", "prediction", "errors", "confidence")
    ]
    legend = ["".join(node.itertext()) for node in section.iter("li")]
    assert legend == list(NAMES)
    assert "dark red is wrong, pale is right, hatched is not scored" in "".join(section.itertext())


def test_values_many_classes() -> None:
    """Bars of the largest, all in the table; the largest confusions instead of a matrix."""
    names = tuple(f"class {k}" for k in range(60))
    shown = {anchor: str(html) for anchor, _, html in segmentation(figure(3, names))}
    assert "The 40 largest of 60 classes" in shown["classes"]
    assert shown["classes"].count("<tr>") == 61
    assert "The largest confusions of 60 classes" in shown["confusion"]
    assert shown["confusion"].count("<tr>") <= 1 + module.LISTED
    assert "class 2</th><td>class 1</td>" in shown["confusion"]


def test_values_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Noise of the largest size, which no PNG makes smaller: pictures stop before the page is too large."""
    values = figure()
    noise = png(np.random.default_rng(0).integers(0, 255, (240, 240, 3)).astype(np.uint8))
    assert len(noise) > 200_000
    for one in values["examples"]:
        one |= {"image": noise, "label": noise, "prediction": noise, "error": noise}
    html = page_of(tmp_path, values)
    assert len(html) < 3_000_000
    assert 1 <= html.count("<figcaption><b>Worst</b>") <= 3
    monkeypatch.setattr(module, "ROOM", 100)
    assert segmentation(figure())[2][2] is None


@pytest.mark.parametrize(
    "content",
    [
        "null",
        "[]",
        "{broken",
        '{"classes": 3, "examples": 4, "confusion": 5, "scores": 6}',
        '{"classes": [], "examples": [null, {}, {"image": 3}], "confusion": [[]]}',
    ],
)
def test_degenerate(tmp_path: Path, content: str) -> None:
    """Strange files give a page without the sections, and with what it would have had without them."""
    run = fill(tmp_path, steps=20)
    write(run.figures / "neighbours.json", near_figure())
    (run.figures / "segmentation.json").write_text(content)
    html = run_page(run)
    assert not {"classes", "confusion", "examples"} & set(anchors(html))
    assert {"embedding", "neighbours"} <= set(anchors(html))


def test_degenerate_values() -> None:
    """Numbers that cannot be, of any kind, are dashes; a matrix that does not fit is left out."""
    bad = [None, "x", True, -1, 2, float("nan"), float("inf"), 10**400, [], {}]
    classes = [
        dict.fromkeys(("iou", "untrained", "boundary_iou", "share", "predicted_share"), value)
        | {"name": value, "colour": value}
        for value in bad
    ]
    for confusion in (
        None,
        [[1]],
        [[1] * 10] * 9,
        [[-1] * 10] * 10,
        [[1.5] * 10] * 10,
        [[True] * 10] * 10,
        [[0] * 10] * 10,
    ):
        shown = segmentation(
            {"classes": [*classes, 3][:10], "confusion": confusion, "scores": {"miou": 10**400}}
        )
        assert shown[1][2] is None
        assert "nan" not in str(shown[0][2])
    one = {
        "classes": [{"name": "only", "share": 1.0, "predicted_share": 1.0, "iou": 1.0}],
        "confusion": [[10**15]],
    }
    by_class, confusion, examples = (html for *_, html in segmentation(one))
    assert "only" in str(by_class)
    assert ">100</td>" in str(confusion)
    assert examples is None


def test_errors_only_small_pngs(tmp_path: Path) -> None:
    """A run folder from elsewhere cannot bring another kind of picture, an address or markup."""
    good = figure()["examples"][0]
    head = base64.b64decode(good["image"])
    huge = base64.b64encode(head[:16] + (60_000).to_bytes(4, "big") * 2 + head[24:]).decode()
    for bad in (
        "https://host.invalid/x.png",
        base64.b64encode(b"<svg xmlns='http://www.w3.org/2000/svg'/>" * 3).decode(),
        good["image"] + '" onerror="alert(1)',
        good["image"][:12] + "A" * 500_000,
        huge,
        12,
        None,
    ):
        values = figure() | {"examples": [good | {"image": bad}]}
        assert segmentation(values)[2][2] is None
        html = page_of(tmp_path, figure() | {"examples": [good | {"error": bad}]})
        assert "errors of" not in html
        assert "onerror" not in html


def test_errors_text_is_escaped(tmp_path: Path) -> None:
    values = json.loads(json.dumps(figure()))
    values["part"] = ATTACK
    values["scores"][ATTACK] = 0.5
    for one in values["classes"]:
        one["name"] = ATTACK
        one["colour"] = [1, 2, "3)"]
    for one in values["examples"]:
        one["id"] = one["kind"] = ATTACK
    html = page_of(tmp_path, values)
    self_contained(without_pictures(html))
    assert "<script" not in html
    assert "alert(1)" in said(html)
