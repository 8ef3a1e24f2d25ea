"""The sections on transfer: what they say of pasted content and of images without style; no file can break the page."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from report_samples import ATTACK, anchors, fill, self_contained, write

from leanlabel.data.class_map import plain_map
from leanlabel.evaluation.transfer_pictures import Pasted, Unstyled, transfer_figure, zero_style_figure
from leanlabel.report import transfer as module
from leanlabel.report.run import run_page
from leanlabel.report.transfer import transfer

NAMES = ("road", "car", "sign")
RESULTS: dict[str, Any] = {
    "protocols": {
        "miou": {
            "protocol": "miou",
            "metric": "mIoU",
            "unit": "part",
            "readouts": {
                "initial": {"mean": 0.4, "others": {"head mIoU": 0.7, "tail mIoU": 0.125}},
                "trained": {"mean": 0.5, "others": {"head mIoU": 0.69, "tail mIoU": 0.25}},
            },
        }
    },
    "label_free": {"entropy": 0.2, "domain accuracy content": 0.5625, "style emptiness": 0.03125},
}


def shade(height: int, width: int) -> torch.Tensor:
    return torch.linspace(0, 1, 3 * height * width).view(3, height, width)


def mixed(**more: Any) -> dict[str, Any]:
    label = np.zeros((20, 30), np.uint8)
    label[4:9, 4:9] = 2
    one = Pasted("aachen.png", shade(20, 30), label, label == 2)
    given: dict[str, Any] = {
        "term": "content-transfer",
        "around": "stored pseudo labels",
        "examples": [one, one],
        "tail": [False, True, True],
        "pasted": [0, 0, 500],
        "source_share": [0.9, 0.09, 0.01],
    }
    return json.loads(json.dumps(transfer_figure(plain_map(NAMES), **(given | more))))


def unstyled() -> dict[str, Any]:
    one = Unstyled("b.png", shade(8, 8), shade(8, 8) / 2, shade(8, 8) / 3, error=0.125)
    return json.loads(json.dumps(zero_style_figure([one], [one, one])))


def part(made: Any, place: int) -> ElementTree.Element:
    assert made[place][2] is not None
    return ElementTree.fromstring(made[place][2])


def words(node: ElementTree.Element) -> str:
    return re.sub(r"\s+", " ", " ".join(node.itertext()))


def test_values_pasted() -> None:
    section = part(transfer(mixed(), {}, RESULTS, "miou", {"initial": "before the last stage"}), 0)
    rows = [[words(cell).strip() for cell in row] for row in section.iter("tr")]
    assert rows[:3] == [
        ["readout", "head mIoU", "tail mIoU"],
        ["before the last stage", "0.700", "0.125"],
        ["trained", "0.690", "0.250"],
    ]
    assert rows[4:] == [
        ["road", "no", "0", "0 %", "90.0 %", "–", "0.00"],
        ["car", "yes", "0", "0 %", "9.00 %", "–", "0.00"],
        ["sign", "yes", "500", "100 %", "1.00 %", "–", "100.00"],
    ]
    described = next(section.iter("desc")).text
    assert described == "sign: 100 % of the pasted pixels, 1.00 % of the labels"
    alts = [node.attrib["alt"] for node in section.iter("img")]
    assert alts[:3] == [
        "aachen.png with pixels of a source image in it",
        "what was pasted into aachen.png, outlined, everything else pale",
        "label of the mixed image aachen.png over it, what was pasted outlined",
    ]
    assert len(alts) == 6
    text = words(section)
    assert "4.17 % pasted: sign" in text
    assert "labels around it are from stored pseudo labels" in text
    assert "May be pasted, but never was: car." in text


def test_values_zero_style() -> None:
    section = part(transfer({}, unstyled(), RESULTS), 1)
    heads = [words(node).strip() for node in section.iter("figcaption")]
    assert [head.split()[0] for head in heads] == ["Source", "Target", "Target"]
    assert "mean error 0.125, normalised" in heads[0]
    cells = [[words(cell).strip() for cell in row][:2] for row in section.iter("tr")][1:]
    assert cells == [["domain accuracy content", "0.562"], ["style emptiness", "0.031"]]
    assert [node.attrib["alt"] for node in section.iter("img")][2] == (
        "b.png drawn from its content alone, without style"
    )


def test_values_page(tmp_path: Path) -> None:
    """Sections stand on the page of a run that left their data, and on no other."""
    run = fill(tmp_path / "run", steps=5)
    assert not {"pasted", "zero-style", "prototypes"} & set(anchors(run_page(run)))
    write(run.figures / "mixes.json", mixed())
    write(run.figures / "zero_style.json", unstyled())
    html = run_page(run)
    assert [one for one in anchors(html) if one in ("pasted", "zero-style")] == ["pasted", "zero-style"]
    self_contained(re.sub(r"<img [^>]*/>", "", html))


def test_degenerate() -> None:
    """Nothing there; no labels around; nothing was counted; scores alone."""
    assert [content for *_, content in transfer({}, {}, {})] == [None, None]
    assert [content for *_, content in transfer({}, {}, {"protocols": RESULTS["protocols"]}, "miou")] == [
        None
    ] * 2
    bare = transfer(mixed(around="", pasted=None, tail=None), {}, {})
    assert "labels around it were not at hand" in words(part(bare, 0))
    assert "Pasted pixels" not in words(part(bare, 0))
    alone = transfer({}, {}, {"label_free": {"content drift": 0.5}})
    assert alone[0][2] is None
    assert "content drift 0.500" in words(part(alone, 1))


@pytest.mark.parametrize("damage", [3, None, "x", [], {}, [3, None], {"a": 1}, 10**400, float("nan"), True])
def test_errors_damage(damage: Any) -> None:
    """Any value may stand anywhere."""
    for key in ("classes", "examples", "term", "around"):
        transfer(mixed() | {key: damage}, {}, {})
    for key in mixed()["classes"][0]:
        transfer(mixed() | {"classes": [{**mixed()["classes"][1], key: damage}]}, {}, {})
    for key in mixed()["examples"][0]:
        transfer(mixed() | {"examples": [{**mixed()["examples"][0], key: damage}]}, {}, {})
    first = unstyled()["domains"][0]
    for key in first:
        transfer({}, {"domains": [{**first, key: damage}]}, {})
    for key in first["examples"][0]:
        transfer({}, {"domains": [{**first, "examples": [{**first["examples"][0], key: damage}]}]}, {})
    transfer({}, {"domains": damage}, {"label_free": damage, "protocols": damage}, "miou")
    transfer(mixed(), {}, {"label_free": {"content drift": damage}, "protocols": {"miou": damage}}, "miou")
    for key in ("others", "mean"):
        transfer(mixed(), {}, {"protocols": {"miou": {"readouts": {"trained": {key: damage}}}}}, "miou")
    numbers = {"readouts": {"trained": {"others": {"head mIoU": damage}}}}
    transfer(mixed(), {}, {"protocols": {"miou": numbers}}, "miou")


def test_errors_text_is_escaped() -> None:
    values, drawn = mixed(), unstyled()
    values["term"] = values["around"] = ATTACK
    for one in (*values["classes"], *values["examples"], *drawn["domains"][0]["examples"]):
        one["name"] = one["id"] = ATTACK
    values["examples"][0]["classes"] = [ATTACK]
    bad = values["examples"][0] | {"image": values["examples"][0]["image"] + '" onerror="alert(1)'}
    values["examples"].append(bad)
    html = "".join(str(content) for *_, content in transfer(values, drawn, {}))
    assert "<script" not in html
    assert "onerror" not in html
    assert len(re.findall("<img ", html)) == 3 * 5


def test_errors_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures stop before the page is too large."""
    one = sum(len(mixed()["examples"][0][key]) for key in module.MIXED)
    monkeypatch.setattr(module, "ROOM", one + 10)
    assert len(re.findall("<img ", str(transfer(mixed(), {}, {})[0][2]))) == 3
