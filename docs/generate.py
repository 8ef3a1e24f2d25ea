"""Write what is generated in the documentation: settings, evidence, recipes, code, figures.

A block stands between ``<!-- begin: NAME -->`` and ``<!-- end: NAME -->``. Without arguments all is renewed;
``--check`` changes nothing and exits with 1 if something is stale.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from blocks import (
    adaptation,
    content_transfer,
    dense,
    dials,
    evidence,
    field,
    images,
    prototypes,
    settings,
    speed,
)
from blocks.tables import DOCS, ROOT, table

SYSTEMS = (
    ("GCA", "gca", "node embeddings of a graph without labels"),
    ("SPCL", "spcl", "adapt a segmentation network to an unlabelled domain: prototype contrast"),
    ("ReKD", "rekd", "self-supervised pre-training of small networks through relations"),
    ("AEL", "ael", "semi-supervised segmentation that does not lose rare classes"),
    ("CLINE", "cline", "language models robust to small edits that change the meaning"),
    ("CDAC", "cdac", "semi-supervised domain adaptation for classification"),
    (
        "Content transfer",
        "content-transfer",
        "segmentation in a new domain: tail content pasted across domains",
    ),
    ("MoCHi", "mochi", "image self-supervision with mixed hard negatives"),
    ("Global + local contrast", "global_local", "volumetric medical segmentation from a handful of volumes"),
    (
        "Feature regression",
        "feature-regression",
        "move a segmentation network to a new sensor without new masks",
    ),
    ("Locally adaptive loss", "segmentation", "segmentation loss that groups neighbouring pixels"),
)
"""Name, row in `leanlabel.methods.TABLE` once it exists (of a term: the method that lists it), job."""

BEGIN, END = "<!-- begin: {} -->", "<!-- end: {} -->"


def main(arguments: list[str]) -> int:
    """Renew or check all blocks and figures; return the exit status."""
    stale = []
    for path, new in contents():
        if path.is_file() and path.read_text(encoding="utf-8") == new:
            continue
        stale.append(path.relative_to(ROOT).as_posix())
        if "--check" not in arguments:
            path.write_text(new, encoding="utf-8", newline="\n")
    if stale:
        state = "stale, run docs/generate.py" if "--check" in arguments else "renewed"
        sys.stdout.write(f"{state}: {', '.join(stale)}\n")
    return int(bool(stale) and "--check" in arguments)


def contents() -> Iterator[tuple[Path, str]]:
    """Every file that holds something generated, with what should stand in it."""
    for path in pages():
        yield path, renewed(path.read_text(encoding="utf-8"))
    for path, draw in FIGURES.items():
        yield path, draw()


def pages() -> list[Path]:
    """All pages that may hold blocks."""
    return [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]


def renewed(text: str) -> str:
    """Text with every block written anew; KeyError for a block that nobody generates."""
    pattern = re.compile(r"<!-- begin: (\S+) -->\n.*?<!-- end: \1 -->", re.DOTALL)

    def block(match: re.Match[str]) -> str:
        name = match[1]
        return f"{BEGIN.format(name)}\n{BLOCKS[name]().strip()}\n{END.format(name)}"

    return pattern.sub(block, text)


def systems() -> str:
    """The eleven systems and what can be used today."""
    from leanlabel.methods import TABLE

    rows = [[name, job, "**works**" if key in TABLE else "planned"] for name, key, job in SYSTEMS]
    return table(["System", "Job", "Status"], rows)


def recipes() -> str:
    """The packaged recipes."""
    from leanlabel.recipe import packaged_recipes, read_recipe

    rows = []
    for name in packaged_recipes():
        values = read_recipe(name).values
        rows.append([f"`{name}`", *(str(values.get(key, "")) for key in ("fidelity", "about", "cost"))])
    return table(["Recipe", "Fidelity", "What it is", "Cost"], rows)


def example(name: str) -> str:
    """A complete example, such as that of a method."""
    code = (DOCS / "examples" / f"{name}.py").read_text(encoding="utf-8")
    return f"<!-- not run: it is a file, docs/examples/{name}.py, and tested as one -->\n```python\n{code}```"


BLOCKS: dict[str, Callable[[], str]] = {
    "systems": systems,
    "recipes": recipes,
    "own_method": lambda: example("own_method"),
    "own_term": lambda: example("own_term"),
    "gca-settings": lambda: settings.settings("gca"),
    "bgrl-settings": lambda: settings.own_settings("bgrl"),
    "dgi-settings": lambda: settings.own_settings("dgi"),
    "cca-ssg-settings": lambda: settings.own_settings("cca-ssg"),
    "supervised-settings": lambda: settings.own_settings("supervised-graph"),
    "mochi-settings": lambda: settings.settings("mochi"),
    **{
        f"{name}-settings": lambda name=name: settings.own_settings(name, "mochi")
        for name in ("simclr", "byol", "simsiam", "vicreg", "supervised-image")
    },
    "gca-evidence": evidence.gca_evidence,
    "gca-pairs": evidence.gca_pairs,
    "gca-dead-units": evidence.dead_units,
    "graph-field": field.field,
    "graph-field-cost": field.field_cost,
    "graph-field-tuning": field.field_tuning,
    "mochi-field": images.mochi_field,
    "mochi-pairs": images.mochi_pairs,
    "mochi-dial": images.mochi_dial,
    "segmentation-settings": lambda: settings.settings("segmentation"),
    "term-entry": dense.term_entry,
    "terms-settings": dense.terms,
    "locally-adaptive-settings": dense.own_term,
    "locally-adaptive-evidence": dense.locally_adaptive_evidence,
    "locally-adaptive-noise": dense.label_noise,
    "adapt-settings": adaptation.adapt_settings,
    "adapt-evidence": adaptation.adapt_evidence,
    "adapt-gap": adaptation.adapt_gap,
    "feature-regression-settings": lambda: settings.own_settings("feature-regression", "adapt"),
    "feature-regression-evidence": adaptation.regression_evidence,
    "feature-regression-shift": adaptation.regression_shift,
    "prototype-contrast-settings": lambda: dense.term("prototype-contrast"),
    "content-transfer-settings": lambda: dense.titled("content-transfer", "zero-style"),
    **prototypes.BLOCKS,
    **content_transfer.BLOCKS,
    "dense-moco-settings": lambda: settings.own_settings("dense-moco", "mochi"),
    "robustness": dials.drop_table,
    "attachment": dials.attachment_table,
    "benchmarks": speed.benchmarks,
}

FIGURES: dict[Path, Callable[[], str]] = {
    DOCS / "figures" / "robustness.svg": dials.drop_figure,
    DOCS / "figures" / "label-noise.svg": dense.label_noise_figure,
    DOCS / "figures" / "windows.svg": dense.windows_figure,
    DOCS / "figures" / "adapt-gap.svg": adaptation.adapt_gap_figure,
    **{DOCS / "figures" / name: draw for name, draw in prototypes.FIGURES.items()},
}

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
