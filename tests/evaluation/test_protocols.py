from __future__ import annotations

import doctest
import hashlib
import json
import statistics

import pytest
import torch

from leanlabel.config import EvaluationSettings
from leanlabel.data.splits import LabelledRows
from leanlabel.errors import InputError
from leanlabel.evaluation import protocols
from leanlabel.evaluation import readouts as readouts_module
from leanlabel.evaluation.knn import knn_scores
from leanlabel.evaluation.probe import linear_probe, logistic_l2
from leanlabel.evaluation.protocols import PROTOCOLS, compare_readouts, predicted, readout
from leanlabel.evaluation.readouts import evaluate_readouts
from leanlabel.sparse import from_dense


def clouds(noise: float = 1.0, rows: int = 120) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(rows) % 3
    centres = 2 * torch.eye(3, 5)
    return centres[y] + noise * torch.randn(rows, 5, generator=generator), y


def splits_of(count: int, rows: int = 120) -> list[dict[str, torch.Tensor]]:
    found = []
    for seed in range(count):
        order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
        found.append({"train": order[:12], "val": order[12:24], "test": order[24:]})
    return found


def test_values():
    z, y = clouds()
    splits = splits_of(3)
    for name, settings, alone in (
        ("gca-probe", {"epochs": 60}, [linear_probe(z, y, s, epochs=60, seed=4) for s in splits]),
        ("logistic-l2", {}, [logistic_l2(z, y, s) for s in splits]),
    ):
        found = readout(name, z, y, splits, seed=4, split_name="random", split_seed=9, **settings)
        values = [score.accuracy for score in alone]
        assert found.per_split == values
        assert found.mean == pytest.approx(statistics.mean(values), rel=1e-12)
        assert found.std == pytest.approx(statistics.stdev(values), rel=1e-12)
        assert found.macro_f1 == pytest.approx(statistics.mean(s.macro_f1 for s in alone), rel=1e-12)
        assert (found.protocol, found.metric, found.n_splits, found.seed) == (name, "accuracy", 3, 4)
        assert "best validation accuracy" in found.selection
        assert found.splits["shares"] == pytest.approx({"train": 0.1, "val": 0.1, "test": 0.8})
        assert (found.splits["name"], found.splits["seed"]) == ("random", 9)
        assert [row["val_accuracy"] for row in found.details] == [s.val_accuracy for s in alone]
        assert all(row["test_rows"] == 96 for row in found.details)
        written = found.as_dict()
        assert json.loads(json.dumps(written, allow_nan=False)) == written
        assert found.settings.keys() == PROTOCOLS[name].settings.keys()


def test_values_knn():
    z, y = clouds()
    splits = splits_of(3)
    found = readout("knn", z, y, splits, k=5, temperature=0.2)
    alone = [knn_scores(z, y, split, k=5, temperature=0.2) for split in splits]
    assert found.per_split == [score.accuracy for score in alone]
    assert found.selection == "none: k and temperature are fixed"
    assert found.settings == {"k": 5, "temperature": 0.2}
    # By default 200 neighbours are wanted, of which 12 training rows can be had.
    assert [row["k"] for row in readout("knn", z, y, splits).details] == [12, 12, 12]
    stored = readout("knn", from_dense(z), y, splits, k=5, temperature=0.2)
    assert stored.per_split == found.per_split
    settings = EvaluationSettings(protocol="knn", knn_k=5, knn_temperature=0.2, splits=2)
    measured = evaluate_readouts(LabelledRows("rows", y), {"raw": z, "trained": z}, settings, 0)["protocol"]
    assert measured["settings"] == {"k": 5, "temperature": 0.2}
    assert [row["k"] for row in measured["readouts"]["trained"]["details"]] == [5, 5]


def test_values_details():
    """What a classifier says about itself stands beside what was measured, and does not replace it."""
    _, y = clouds()
    splits = splits_of(2)
    scores = [torch.nn.functional.one_hot(y, 3).float()] * 2
    told = [{"best_epoch": 4, "val_accuracy": 0.0}, {"best_epoch": 7, "val_accuracy": 0.0}]
    found = predicted("logistic-l2", scores, y, splits, "last", details=told)
    assert [(row["best_epoch"], row["val_accuracy"]) for row in found.details] == [(4, 1.0), (7, 1.0)]
    assert found.settings == {"own_classifier": True}
    assert predicted("linear-moco", scores, y, splits, "last").settings["epochs"] == 100
    with pytest.raises(ValueError, match="2 sets of predictions and 1 details for 2 splits"):
        predicted("logistic-l2", scores, y, splits, "last", details=told[:1])


def test_values_sha256():
    z, y = clouds()
    splits = splits_of(2)
    digest = hashlib.sha256()
    for split in splits:
        for part in ("train", "val", "test"):
            digest.update(f"{part} {len(split[part])}:".encode())
            for row in split[part].tolist():
                digest.update(row.to_bytes(8, "little"))
    found = readout("gca-probe", z, y, splits, epochs=1).splits
    assert found["sha256"] == digest.hexdigest()
    assert readout("gca-probe", z, y, splits[::-1], epochs=1).splits["sha256"] != found["sha256"]


def test_values_comparison():
    z, y = clouds(noise=0.3)
    worse = z[:, torch.tensor([4, 3, 4, 3, 4])]
    splits = splits_of(4)
    found = compare_readouts({"raw": z, "untrained": z * 2, "trained": worse}, y, splits, grid=[1.0])
    assert list(found.results) == ["raw", "untrained", "trained"]
    assert len(found.warnings) == 2
    assert found.warnings[1].startswith("trained worse than untrained: accuracy 0.")
    assert "over 4 splits" in found.warnings[1]
    json.dumps(found.as_dict(), allow_nan=False)
    better = compare_readouts({"raw": worse, "trained": z, "untrained": from_dense(z)}, y, splits, grid=[1.0])
    assert better.warnings == []
    assert better.results["trained"].per_split == better.results["untrained"].per_split
    assert compare_readouts({"raw": z, "ours": worse}, y, splits, grid=[1.0]).warnings == []
    assert (
        len(compare_readouts({"raw": z, "ours": worse}, y, splits, trained="ours", grid=[1.0]).warnings) == 1
    )


@pytest.mark.parametrize(
    ("trained", "other", "warned"),
    [
        ([0.52, 0.62, 0.65], [0.6, 0.6, 0.7], True),  # -0.0367, sd 0.0513, standard error 0.0296
        ([0.5, 0.6, 0.7], [0.4, 0.8, 0.7], False),  # -0.0333, standard error 0.0882
        ([0.5], [0.6], True),  # binomial standard error 0.07
        ([0.5], [0.55], False),
        ([0.5, 0.5], [0.5, 0.5], False),
    ],
)
def test_values_one_standard_error(trained, other, warned):
    def result(values: list[float]) -> protocols.Result:
        mean = sum(values) / len(values)
        details = [{"test_rows": 100}]
        return protocols.Result("p", "accuracy", mean, None, values, len(values), {}, "", 0.0, 0, {}, details)

    text = protocols._fallen_behind("trained", result(trained), "raw", result(other))
    assert (text is not None) == warned


def test_degenerate():
    z, y = clouds()
    split = {**splits_of(1)[0], "name": "public", "seed": None, "sha256": "recorded elsewhere"}
    found = readout("logistic-l2", z, y, split)
    assert (found.n_splits, found.std) == (1, None)
    assert found.per_split == [found.mean]
    assert (found.splits["name"], found.splits["seed"]) == ("public", None)
    several = [{**s, "seed": k, "name": "random"} for k, s in enumerate(splits_of(2))]
    assert readout("logistic-l2", z, y, several).splits["seed"] == [0, 1]
    assert compare_readouts({}, y, split).results == {}
    # A class without test rows has no recall: null in JSON, not NaN.
    test = split["test"][y[split["test"]] != 1]
    row = readout("logistic-l2", z, y, {**split, "test": test}).details[0]
    assert row["recall"][1] is None
    json.dumps(row, allow_nan=False)


class Kept(dict):
    """A cache in memory."""

    def put(self, name, value):
        self[name] = json.loads(json.dumps(value))


@pytest.mark.parametrize(
    "damage",
    [
        lambda _: {"mean": 1.0},
        lambda kept: kept | {"per_split": []},
        lambda kept: kept | {"per_split": "0.5"},
        lambda kept: kept | {"mean": float("nan")},
        lambda kept: kept | {"mean": None},
        lambda kept: kept | {"details": [{} for _ in kept["details"]]},
        lambda kept: kept | {"protocol": "clustering"},
        lambda kept: {key: value for key, value in kept.items() if key != "seed"},
    ],
)
def test_state_damaged_cache(damage):
    """What does not fit a result is measured again and replaced; what fits is not measured."""
    z, y = clouds(rows=60)
    settings = EvaluationSettings(protocol="logistic-l2", split="random", splits=2)
    rows, readouts, cache = LabelledRows("rows", y), {"untrained": z}, Kept()
    first = evaluate_readouts(rows, readouts, settings, 0, cache=cache)["protocol"]
    (name,) = cache
    whole = cache[name]
    cache[name] = damage(whole)
    assert evaluate_readouts(rows, readouts, settings, 0, cache=cache)["protocol"] == first
    assert cache == {name: whole}
    cache[name] = whole | {"mean": 0.125}
    found = evaluate_readouts(rows, readouts, settings, 0, cache=cache)["protocol"]
    assert found["readouts"]["untrained"]["mean"] == 0.125


def test_state_other_versions(monkeypatch):
    """Measurements of another version are left alone."""
    z, y = clouds(rows=60)
    settings, cache = EvaluationSettings(protocol="logistic-l2", split="random", splits=2), Kept()
    for version in (readouts_module.KEPT, -1):
        monkeypatch.setattr(readouts_module, "KEPT", version)
        evaluate_readouts(LabelledRows("rows", y), {"untrained": z}, settings, 0, cache=cache)
    assert len(cache) == 2


def test_errors():
    z, y = clouds()
    with pytest.raises(InputError, match=r"'logistic_l2'\. Did you mean logistic-l2\?"):
        readout("logistic_l2", z, y, splits_of(1))
    with pytest.raises(
        InputError, match=r"Known protocols: gca-probe, logistic-l2, knn, clustering, linear-m"
    ):
        readout("xyz", z, y, splits_of(1))
    with pytest.raises(InputError, match=r"no setting 'epoch'\. It has epochs, lr, every\."):
        readout("gca-probe", z, y, splits_of(1), epoch=3)
    with pytest.raises(ValueError, match="at least one split"):
        readout("gca-probe", z, y, [])


def test_examples():
    assert doctest.testmod(protocols).failed == 0
