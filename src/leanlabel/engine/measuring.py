"""Measuring a trained run and writing down what was found: results, warnings, classifier, picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from leanlabel.engine import readout
from leanlabel.engine.method import Method
from leanlabel.engine.pipeline import DONE
from leanlabel.engine.runfolder import JsonCache, RunFolder, read_json, read_lines, write_json
from leanlabel.engine.training import shared_stages
from leanlabel.engine.transfer import started_supervised
from leanlabel.errors import InputError, RunError

TAUGHT = (
    "the weights that training started from were trained with labels, which may be those of test rows here: scores "
    "of initial and trained may be too high"
)


def measure(
    folder: RunFolder,
    method: Method,
    data: Any,
    *,
    untrained: Method,
    initial: Method | None,
    protocol: str | None,
    iterations: int,
) -> dict[str, Any]:
    """Measure a trained method beside its baselines by a named protocol and add that to the run's files.

    Args:
        folder: of the run.
        method: trained.
        data: what it was trained on.
        untrained: the method as its seed initialises it.
        initial: with the weights of another run that training started from; None where there were none.
        protocol: its name; None takes the configuration's and renews the run's classifier.
        iterations: behind the weights.

    Returns:
        What ``results.json`` then says.

    Raises:
        InputError: unknown protocol.
        RunError: the embeddings are not finite.
    """
    evaluation = method.cfg.evaluation
    lost = []
    for pointer in sorted(folder.stages.glob("*.json")):
        place = folder.path / read_json(pointer)["folder"]
        if (place / DONE).exists():
            try:
                method.recall(pointer.stem, place)
            except (InputError, RunError) as error:  # numbers need none of it
                lost.append(f"stage {pointer.stem}: {error.message} Pictures are without it.")
    method.keep_initial(initial, data)
    cache = JsonCache(shared_stages(folder))
    measured = method.evaluate(data, untrained, protocol, folder.splits, cache=cache)
    results = read_json(folder.results) or {"protocols": {}}
    also = evaluation.also if protocol is None and measured["protocol"] is not None else ()
    further = [method.evaluate(data, untrained, name, folder.splits, cache=cache) for name in also]
    for one in (measured, *further):
        if one["protocol"] is not None:
            found = {**one["protocol"], "warnings": one["warnings"]}
            results["protocols"][found["protocol"]] = found
        for more in one.get("further", ()):  # other parts of the data under the same protocol
            results["protocols"][more["protocol"]] = {**more, "warnings": []}
    warnings = [text for one in results["protocols"].values() for text in one["warnings"]]
    results |= {
        "monitors": measured["monitors"],
        "label_free": method.label_free(data),
        "weights": evaluation.select,
        "t": iterations,
        "training_seconds": seconds_of(folder.timing),
        "stage_seconds": stage_seconds(folder),
        "parameters": sum(p.numel() for p in method.parameters()),
    }
    write_json(folder.results, results)
    noted = [*read_json(folder.notes, []), *([TAUGHT] if started_supervised(folder) else []), *lost]
    write_json(folder.warnings, list(dict.fromkeys([*noted, *warnings, *measured["warnings"]])))
    # That of an untrained model is fitted when somebody asks for it.
    if protocol in (None, evaluation.protocol) and method.cfg.steps > 0:
        classifier = readout.classifier_of(method, data, measured["protocol"])
        if classifier is not None:
            readout.save(folder.readout, classifier)
    if measured["figure"] is not None:
        write_json(folder.figures / "embedding.json", measured["figure"])
    for name, content in method.figures(data).items():
        write_json(folder.figures / f"{name}.json", content)
    return results


def seconds_of(timing: Path) -> float:
    """Seconds of training that a ``timing.jsonl`` adds up to."""
    return round(sum(row["seconds"] * row.get("iterations", 1) for row in read_lines(timing)), 3)


def stage_seconds(folder: RunFolder) -> dict[str, float]:
    """Seconds of training behind each stage of a run that trained, by name; whoever computed it."""
    found = {}
    for pointer in sorted(folder.stages.glob("*.json")):
        timing = folder.stages.parent / read_json(pointer)["folder"] / folder.timing.name
        if timing.exists():
            found[pointer.stem] = seconds_of(timing)
    return found
