"""The packaged recipes: complete, valid, faithful to the published settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from leanlabel import api
from leanlabel.config import to_yaml
from leanlabel.errors import InputError
from leanlabel.methods.spcl import SPCL
from leanlabel.recipe import packaged_recipes, read_recipe

NAMES = list(packaged_recipes())
# Section 4 of the method's specification: the authors' parameter files.
PUBLISHED: dict[str, dict[str, Any]] = {
    "gca/wikics": {
        "lr": 0.01,
        "width": 256,
        "projection": 256,
        "activation": "prelu",
        "edges": (0.2, 0.3),
        "features": (0.1, 0.1),
        "tau": 0.4,
        "steps": 3000,
        "probe": 800,
    },
    "gca/amazon-computers": {
        "lr": 0.01,
        "width": 128,
        "projection": 128,
        "activation": "rrelu",
        "edges": (0.6, 0.3),
        "features": (0.2, 0.3),
        "tau": 0.2,
        "steps": 2000,
        "probe": 3000,
    },
    "gca/amazon-photo": {
        "lr": 0.1,
        "width": 256,
        "projection": 64,
        "activation": "relu",
        "edges": (0.3, 0.5),
        "features": (0.1, 0.1),
        "tau": 0.3,
        "steps": 2000,
        "probe": 3000,
    },
    "gca/coauthor-cs": {
        "lr": 0.0005,
        "width": 256,
        "projection": 256,
        "activation": "rrelu",
        "edges": (0.3, 0.2),
        "features": (0.3, 0.4),
        "tau": 0.4,
        "steps": 1000,
        "probe": 3000,
    },
    "gca/coauthor-physics": {
        "lr": 0.01,
        "width": 128,
        "projection": 64,
        "activation": "rrelu",
        "edges": (0.4, 0.1),
        "features": (0.1, 0.4),
        "tau": 0.5,
        "steps": 1500,
        "probe": 3000,
    },
}
FALLBACK = {
    "lr": 0.01,
    "width": 256,
    "projection": 32,
    "activation": "prelu",
    "edges": (0.3, 0.4),
    "features": (0.1, 0.0),
    "tau": 0.4,
    "steps": 3000,
    "probe": 3000,
}
"""Where the authors' code has no file for a graph."""
PREDECESSOR = {
    "gca/cora": {"seed": 39788, "lr": 0.0005, "width": 128, "projection": 128, "activation": "relu"}
    | {"edges": (0.2, 0.4), "features": (0.3, 0.4), "tau": 0.4, "steps": 200},
    "gca/citeseer": {"seed": 38108, "lr": 0.001, "width": 256, "projection": 256, "activation": "prelu"}
    | {"edges": (0.2, 0.0), "features": (0.3, 0.2), "tau": 0.9, "steps": 200},
    "gca/pubmed": {"seed": 23344, "lr": 0.001, "width": 256, "projection": 256, "activation": "relu"}
    | {"edges": (0.4, 0.1), "features": (0.0, 0.2), "tau": 0.7, "steps": 1500},
}
"""The citation graphs: settings of the predecessor with uniform augmentation, whose seeds differ too."""
EXPECTED = (
    PUBLISHED
    | {name: values | {"probe": 3000} for name, values in PREDECESSOR.items()}
    | {"gca/acm": FALLBACK, "gca/blogcatalog": FALLBACK}
)


def resolved(name: str) -> Any:
    return api.resolve(name)


OFFICIAL = [name for name in NAMES if read_recipe(name).values["fidelity"] == "official"]
OFFICIAL_GRAPHS = [name for name in OFFICIAL if resolved(name).task == "graph"]


def test_all_that_were_promised() -> None:
    graphs = ("amazon-photo", "amazon-computers", "coauthor-cs", "coauthor-physics", "wikics")
    graphs += ("cora", "citeseer", "pubmed", "acm", "blogcatalog")
    wanted = {f"gca/{graph}{variant}" for graph in graphs for variant in ("", "-corrected")}
    assert wanted | {"gca/generated"} <= set(NAMES)


def test_found_at_any_depth() -> None:
    """The list is the folder, whatever its depth: no recipe escapes the tests below."""
    import leanlabel

    root = Path(leanlabel.__file__).parent / "recipes"
    assert len(NAMES) == sum(1 for path in root.rglob("*") if path.suffix in (".yaml", ".yml"))


@pytest.mark.parametrize("name", NAMES)
def test_valid(name: str, tmp_path: Path) -> None:
    """It validates, its base exists, it says what it is, and its printed form gives the same configuration."""
    config = resolved(name)
    raw = yaml.safe_load(packaged_recipes()[name].read_text(encoding="utf-8"))
    assert raw.get("base", name) in NAMES
    assert raw["about"]
    assert config.task
    assert config.cost
    path = tmp_path / "again.yaml"
    path.write_text(to_yaml(config), encoding="utf-8", newline="\n")
    assert api.resolve(path) == config
    assert to_yaml(api.resolve(path)) == to_yaml(config)


@pytest.mark.parametrize("name", OFFICIAL_GRAPHS)
def test_official_settings(name: str) -> None:
    """Value by value as published; what the authors' code does everywhere holds for every graph."""
    config = resolved(name)
    view = config.augment
    assert (view.cutoff, config.optim.weight_decay, config.model.layers) == (0.7, 1e-5, 2)
    assert (config.model.convolution, config.optim.name) == ("gcn", "adam")
    assert (config.optim.schedule, config.optim.warmup, config.optim.clip) == ("constant", 0, None)
    assert (view.edge_score, view.independent_directions, view.official_centrality) == ("sink", True, True)
    assert view.level == "both"
    assert config.data.normalise == "row_sum_legacy"
    assert config.data.undirected is (name != "gca/wikics")
    assert view.feature_rule == ("dense" if name == "gca/wikics" else "sparse")
    assert config.evaluation.protocol == "gca-probe"
    assert config.evaluation.select == "last"
    assert config.evaluation.shares == (0.1, 0.1, 0.8)
    found = {
        "seed": config.seed,
        "lr": config.optim.lr,
        "width": config.model.width,
        "projection": config.model.projection,
        "activation": config.model.activation,
        "edges": view.edge_rates,
        "features": view.feature_rates,
        "tau": config.method.tau,
        "steps": config.steps,
        "probe": config.evaluation.probe_epochs,
    }
    assert found == {"seed": 39788} | EXPECTED[name]


def test_every_published_graph_is_compared() -> None:
    assert EXPECTED.keys() == set(OFFICIAL_GRAPHS)


def test_official_image_settings() -> None:
    """MoCo's README and scripts, its demonstration on CIFAR-10, and the settings of the paper on mixing."""
    config: Any = resolved("moco-v2/imagenet-1k")
    method, optim, view = config.method, config.optim, config.augment
    assert (method.queue, method.momentum, method.tau, method.width) == (65536, 0.999, 0.2, 128)
    assert (method.head, method.mixing, method.symmetric) == ("mlp", None, False)
    assert (optim.name, optim.lr, optim.momentum, optim.weight_decay) == ("sgd", 0.03, 0.9, 1e-4)
    assert (optim.schedule, optim.warmup, optim.decay_all) == ("cosine", 0, True)
    assert (config.steps, optim.stair, config.data.batch_size) == (200 * 5004, 5004, 256)
    assert (view.size, view.scale, view.jitter, view.jitter_probability) == (
        224,
        (0.2, 1.0),
        (0.4, 0.4, 0.4, 0.1),
        0.8,
    )
    assert (view.grey, view.blur, view.blur_sigma, view.flip, view.hue) == (0.2, 0.5, (0.1, 2.0), 0.5, "hsv")
    demo: Any = resolved("moco-v2/cifar10-demo")
    method, optim, view = demo.method, demo.optim, demo.augment
    assert (method.queue, method.momentum, method.tau, method.head) == (4096, 0.99, 0.1, "linear")
    assert (optim.lr, optim.weight_decay, optim.stair, demo.steps) == (0.06, 5e-4, 97, 200 * 97)
    assert (demo.model.name, demo.model.stem, demo.model.norm, demo.model.norm_groups) == (
        "resnet18",
        "cifar",
        "split",
        8,
    )
    assert (view.size, view.scale, view.blur, demo.data.batch_size) == (32, (0.08, 1.0), 0.0, 512)
    assert (demo.evaluation.protocol, demo.evaluation.feature) == ("knn", "projection")
    assert (demo.evaluation.knn_k, demo.evaluation.knn_temperature) == (200, 0.1)
    paper: Any = resolved("mochi/imagenet-100")
    mixing = paper.method.mixing
    assert (mixing.hardest, mixing.pairs, mixing.with_query) == (1024, 1024, 128)
    assert (paper.method.queue, paper.data.batch_size, mixing.warmup) == (16384, 128, 10 * 989)
    assert {name for name in OFFICIAL if name not in EXPECTED} == {
        "moco-v2/imagenet-1k",
        "moco-v2/cifar10-demo",
        "spcl/gta5-cityscapes",
    }


def test_official_segmentation_settings() -> None:
    """SPCL's published code: warm-up, contrast, self-training, each with its length, schedule, norm and losses."""
    config: Any = resolved("spcl/gta5-cityscapes")
    warm, contrast = (SPCL.stage_config(config, name) for name in ("warm-up", "contrast"))
    assert [one.steps for one in (warm, contrast, config)] == [40000, 40000, 20000]
    assert [one.optim.horizon for one in (warm, contrast, config)] == [62500, 62500, 31250]
    assert [one.optim.lr for one in (warm, contrast, config)] == [2.5e-4, 2.5e-4, 5e-4]
    assert [one.model.norm for one in (warm, contrast, config)] == ["frozen", "frozen", "sync"]
    assert [one.data.target.batch_size for one in (warm, contrast, config)] == [4, 4, 8]
    for one in (warm, contrast, config):
        assert (one.optim.name, one.optim.momentum, one.optim.weight_decay) == ("sgd", 0.9, 5e-4)
        assert (one.optim.schedule, one.optim.head_factor, one.data.source.batch_size) == ("poly", 10.0, 4)
        assert (one.model.name, one.model.encoder, one.model.align_corners) == (
            "deeplab-v2",
            "resnet101",
            True,
        )
    for one in (warm, contrast):
        assert one.method.sampling.name == "balanced"
        assert one.target_augment.crop is None
        assert one.target_augment.jitter_probability == 0
    entropy, adversary = warm.method.terms
    assert (entropy.settings["divisor"], adversary.weight, adversary.settings["lr"]) == (1.8, 0.001, 1e-4)
    term = contrast.method.terms[1]
    wanted = {
        "tau": 100.0,
        "alpha": 0.1,
        "estimator": "ema",
        "absent": "decay",
        "balance": "pixel",
        "agree": "agreed",
    }
    assert (term.name, term.weight) == ("prototype-contrast", 1.0)
    assert wanted.items() <= term.settings.items()
    for one in (contrast, config):
        assert (one.method.pseudo_labels.quantile, one.method.pseudo_labels.cap) == (0.5, 0.9)
    look = config.target_augment
    assert (look.crop, look.flip, look.jitter) == ((512, 1024), 0.5, (0.5, 0.5, 0.5, 0.2))
    assert look.scale == (1.0, 3.0)  # of images read at half of their size: 0.5 to 1.5 of what they were


@pytest.mark.parametrize("name", [name for name in NAMES if name.endswith("-corrected")])
def test_corrected_settings(name: str) -> None:
    """The known faults mended, everything else as in the official recipe."""
    config, official = resolved(name), resolved(name.removesuffix("-corrected"))
    assert (config.fidelity, official.fidelity) == ("corrected", "official")
    view = config.augment
    assert (view.edge_score, view.independent_directions, view.official_centrality) == ("auto", False, False)
    assert config.data.normalise in ("row_sum", "shifted", "none")
    assert config.evaluation.protocol == "logistic-l2"
    assert (config.steps, config.seed, config.model, config.method) == (
        official.steps,
        official.seed,
        official.model,
        official.method,
    )
    assert (view.edge_rates, view.feature_rates, view.cutoff) == (
        official.augment.edge_rates,
        official.augment.feature_rates,
        official.augment.cutoff,
    )


@pytest.mark.parametrize("name", [name for name in NAMES if hasattr(resolved(name).data, "path")])
def test_files_that_are_not_there(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the data: a sentence that names the file and what to do, before anything is written."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LEANLABEL_DATA", raising=False)
    config = resolved(name)
    with pytest.raises(InputError) as caught:
        api.fit(name)
    assert config.data.path in caught.value.message
    assert "--data" in (caught.value.suggestion or "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.real
@pytest.mark.parametrize("name", [name for name in OFFICIAL_GRAPHS if "physics" not in name])
def test_real_files(name: str, data_root: Path) -> None:
    """Where the file is there, it is the graph that the recipe is about, and its splits can be drawn."""
    config = resolved(name)
    if not (data_root / config.data.path).exists():
        pytest.skip(f"{config.data.path} is not below LEANLABEL_DATA")
    graph = api._method_class(config).read(config)
    assert f"{graph.num_nodes:,}" in config.about
    assert graph.undirected == config.data.undirected
