"""Segmentation: settings of the terms; the locally adaptive loss against cross-entropy, its windows, wrong labels."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from blocks.charts import Lines, chart
from blocks.dense_records import (
    BASE,
    DATA,
    MAIN,
    MEASURES,
    PLACES,
    RARE,
    RESULTS,
    TAIL,
    Setting,
    adaptive,
    read,
)
from blocks.image_records import Arms, Measure, Run, values
from blocks.settings import COLUMNS, names, rows
from blocks.tables import table

Found = Mapping[Setting, Arms]
OWN = "locally-adaptive"
PAGES = {
    OWN: "locally-adaptive.md",
    "prototype-contrast": "spcl.md",
    "content-transfer": "content-transfer.md",
    "zero-style": "content-transfer.md",
}
"""Terms with a page of their own."""
WINDOWS = (3, 5, 7)
WANTED = {
    "input": [BASE, *(adaptive(n, k) for n, k in ((3, 5), (3, 1), (1, 5), (3, 2), (5, 5), (7, 5)))],
    "feature": [BASE, *(adaptive(n, 5) for n in WINDOWS)],
}
"""Place -> arms that `proofs/locally-adaptive/run.sh` runs on right labels."""
NOISES = (0.0, 0.1, 0.2)
NOISY = (BASE, adaptive(3, 5), adaptive(1, 5))
"""Labels exchanged, and arms that learn from them."""
WINDOW_LOOKS = {
    PLACES["input"]: ("#0072B2", "", "square"),
    PLACES["feature"]: ("#D55E00", "6 4", "circle"),
}
NOISE_LOOKS = {
    NOISY[0]: ("#555555", "6 4", "circle"),
    NOISY[1]: ("#0072B2", "", "square"),
    NOISY[2]: ("#D55E00", "2 3", "diamond"),
}


# -------------------------------------------------------------------------------------------------- settings


def term_entry() -> str:
    """Keys of an entry of ``method.terms``."""
    from leanlabel.methods.dense_settings import TermEntry

    (lines,) = rows(TermEntry).values()
    return table(COLUMNS, lines)


def terms() -> str:
    """Every term: what it is, and its keys, or the page that has them."""
    from leanlabel.methods.terms import TABLE, find_term

    parts = []
    for name in TABLE:
        said = (find_term(name).__doc__ or "").strip().splitlines()[0]
        page = PAGES.get(name)
        keys = f"Its keys are on [its own page]({page}#settings)." if page else term(name)
        parts += [f"**`{name}`**: {said}", keys]
    return "\n\n".join(parts)


def term(name: str) -> str:
    """The keys of one term."""
    from leanlabel.methods.terms import find_term

    every = []
    for title, lines in rows(find_term(name).Settings).items():
        key, _, meaning = title.partition(": ")
        every += [[key.strip("*"), "the keys below", "section", meaning]] if meaning else []
        every += lines
    return table(COLUMNS, every)


def titled(*names: str) -> str:
    """The keys of several terms, each under its name."""
    return "\n\n".join(f"**`{name}`**\n\n{term(name)}" for name in names)


def own_term() -> str:
    """The keys of the locally adaptive loss."""
    return term(OWN)


# -------------------------------------------------------------------------------------------------- evidence


def locally_adaptive_evidence() -> str:
    """Scores of every loss and differences to cross-entropy."""
    return evidence(RESULTS)


def label_noise() -> str:
    """The same losses with wrong labels."""
    return noise_table(RESULTS)


def label_noise_figure() -> str:
    """That as a picture."""
    return noise_picture(RESULTS)


def windows_figure() -> str:
    """What larger windows change, as a picture."""
    return windows_picture(RESULTS)


def evidence(file: Path) -> str:
    """Two tables per data set and place: scores, and paired differences; then what has not run."""
    found = read(file)
    parts = []
    for setting in sorted(found, key=_order):
        arms = found[setting]
        if setting.noise or not arms.by:
            continue
        changes = f" ({setting.changes})" if setting.changes else ""
        parts.append(f"**{DATA[setting.data]}; loss {PLACES[setting.place]}**{changes}")
        columns = ["Loss", "Seeds", *(f"{one.title} %" for one in MEASURES), "Time", "Learning rate"]
        parts.append(table(columns, [_scores(arms, arm) for arm in _arms(arms)]))
        lines = [line for arm in _arms(arms) if arm != BASE for line in _differences(arms, arm)]
        if lines:
            columns = [f"Minus {BASE}", "Seeds", *(one.title for one in MEASURES), "Detectable", "Verdict"]
            parts.append(table([*columns, "Learning rate"], lines))
    tail = f"Tail: {', '.join(TAIL)}." if parts else ""
    return "\n\n".join(part for part in (*parts, tail, _not_run(found)) if part)


def _order(setting: Setting) -> tuple[int, int, float, str]:
    return list(DATA).index(setting.data), list(PLACES).index(setting.place), setting.noise, setting.changes


def _arms(arms: Arms) -> list[str]:
    """Cross-entropy first, then the arms of the proof, then others."""
    order = {name: place for place, name in enumerate(WANTED["input"])}
    return sorted(arms.by, key=lambda arm: (order.get(arm, len(order)), arm))


def _scores(arms: Arms, arm: str) -> list[str]:
    runs = arms.chosen(arm)
    cells = []
    for measure in MEASURES:
        mine = values(runs, measure)
        cells.append(measure.spread(list(mine.values())) if mine else "–")
    return [arm, str(len(runs)), *cells, _time(arms, arm), arms.told(arm)]


def _time(arms: Arms, arm: str) -> str:
    """Seconds of training relative to cross-entropy, over the seeds that both have run."""
    for _, mine, others in _met(arms, arm):
        both = mine.keys() & others.keys()
        if both:
            own, base = (statistics.fmean(runs[seed].seconds for seed in both) for runs in (mine, others))
            return f"{own / base:.2f} ×" if base > 0 else "–"
    return "–"


def _met(arms: Arms, arm: str) -> Iterator[tuple[str, Mapping[int, Run], Mapping[int, Run]]]:
    """An arm and cross-entropy: each at its own rate where both were tuned over the same ones, else at equal rates."""
    tried, base = set(arms.tried(arm)), set(arms.tried(BASE))
    if tried == base:
        one, two = arms.rate(arm), arms.rate(BASE)
        told = f"{one:g}" if one == two else f"{one:g}; {BASE}: {two:g}"
        yield told, arms.chosen(arm), arms.chosen(BASE)
        return
    for rate in sorted(tried & base):
        yield f"{rate:g}", arms.by[arm][rate], arms.by[BASE][rate]


def _differences(arms: Arms, arm: str) -> Iterable[list[str]]:
    for told, mine, others in _met(arms, arm):
        cells, last = [], ["–", "–"]
        for measure in MEASURES:
            text, detectable, verdict = _pair(values(mine, measure), values(others, measure), measure)
            cells.append(text)
            last = [detectable, verdict] if measure is MAIN else last
        if mine.keys() & others.keys():
            yield [arm, str(len(mine.keys() & others.keys())), *cells, *last, told]


def _pair(mine: Mapping[int, float], others: Mapping[int, float], measure: Measure) -> tuple[str, str, str]:
    """Paired difference with its interval and a mark, the difference that so many seeds would find, the verdict."""
    from leanlabel.evaluation.statistics import paired_difference

    if not mine.keys() & others.keys():
        return "–", "–", "–"
    found = paired_difference(mine, others)
    digits = measure.digits
    ends = ", ".join(f"{end:+.{digits}f}" for end in found.interval or ())
    interval = f" [{ends}]" if ends else ""
    mark = {"helps": " ▲", "hurts": " ▼"}.get(found.verdict, "")
    smallest = "–" if found.detectable is None else f"{found.detectable:.{digits}f}"
    return f"{found.mean:+.{digits}f}{interval}{mark}", smallest, found.verdict


def _not_run(found: Found) -> str:
    """What the proof wants and the file has not, and the packaged recipes without a run."""
    from leanlabel.recipe import packaged_recipes

    missing = []
    for data, title in DATA.items():
        for place, wanted in WANTED.items():
            arms = found.get(Setting(data, place))
            lacking = [arm for arm in wanted if arms is None or arm not in arms.by]
            if lacking:
                told = "none of the losses" if lacking == wanted else "; ".join(lacking)
                missing.append(f"- {title}, loss {PLACES[place]}: {told}")
    known = [name for name in packaged_recipes() if name.partition("/")[0] in (OWN, "segmentation")]
    rest = names(name for name in known if name.partition("/")[2] not in DATA)
    return "\n".join(["Not run:", "", *missing, *([f"- the recipes {rest}"] if rest else [])])


# ------------------------------------------------------------------------------------------------ wrong labels


def noise_table(file: Path) -> str:
    """One line per data set and share of exchanged labels, all at one learning rate."""
    found = read(file)
    lines = []
    for data in DATA:
        rate, points = _dial(found, data)
        for noise, arms in points.items():
            cells = [_told(arms.get(arm, {}), MAIN) for arm in NOISY]
            pairs = [
                _pair(values(arms.get(arm, {}), one), values(arms.get(BASE, {}), one), one)[0]
                for arm in NOISY[1:]
                for one in (MAIN, RARE)
            ]
            seeds = max((len(runs) for runs in arms.values()), default=0)
            last = "–" if rate is None else f"{rate:g}"
            lines.append([DATA[data], f"{100 * noise:g} %", str(seeds or "–"), *cells, *pairs, last])
    columns = ["Data", "Exchanged", "Seeds", *(f"{arm}, mIoU %" for arm in NOISY)]
    columns += [
        f"{arm.partition(' (')[0]} − {BASE}, {one}" for arm in NOISY[1:] for one in ("mIoU", "tail IoU")
    ]
    return table([*columns, "Learning rate"], lines)


def _dial(found: Found, data: str) -> tuple[float | None, dict[float, dict[str, Mapping[int, Run]]]]:
    """The rate at which labels were exchanged, and share -> arm -> seed -> run; all shares that are wanted or there."""
    turned = {one.noise: arms for one, arms in found.items() if one == Setting(data, noise=one.noise)}
    rates = {
        rate for noise, arms in turned.items() if noise for arm in NOISY for rate in arms.by.get(arm, {})
    }
    rate = max(rates, default=None)
    points: dict[float, dict[str, Mapping[int, Run]]] = {}
    for noise in sorted({*NOISES, *turned}):
        arms = turned.get(noise)
        points[noise] = {
            arm: arms.by[arm][rate]
            for arm in NOISY
            if arms is not None and rate is not None and rate in arms.by.get(arm, {})
        }
    return rate, points


def _told(runs: Mapping[int, Run], measure: Measure) -> str:
    mine = list(values(runs, measure).values())
    return measure.spread(mine) if mine else "not run"


def noise_picture(file: Path) -> str:
    """mIoU over the share of exchanged labels, one panel per data set."""
    found, panels = read(file), []
    for data, title in DATA.items():
        points = _dial(found, data)[1]
        lines = {
            arm: {
                100 * noise: list(values(arms[arm], MAIN).values())
                for noise, arms in points.items()
                if arm in arms
            }
            for arm in NOISY
        }
        panels.append((title, _drawn(lines)))
    return chart(
        "mIoU against the share of wrong training labels",
        panels,
        "labels exchanged, %",
        NOISE_LOOKS,
        "mIoU %",
    )


# ----------------------------------------------------------------------------------------------------- windows


def windows_picture(file: Path) -> str:
    """Difference to cross-entropy over the window, where the loss is taken at full size and at the scores' stride."""
    found, panels = read(file), []
    for data, title in DATA.items():
        lines: dict[str, dict[float, Sequence[float]]] = {}
        for place, name in PLACES.items():
            arms = found.get(Setting(data, place))
            lines[name] = {} if arms is None else dict(_by_window(arms))
        panels.append((title, _drawn(lines)))
    title = "mIoU of the locally adaptive loss (k = 5) minus that of cross-entropy, against the window"
    return chart(title, panels, "side of the window, positions", WINDOW_LOOKS, "points of mIoU")


def _by_window(arms: Arms) -> Iterator[tuple[float, Sequence[float]]]:
    """Window -> difference of each seed, all at one learning rate: that of the most windows, the larger of equals."""
    tried = {n: set(arms.tried(adaptive(n, 5))) & set(arms.tried(BASE)) for n in WINDOWS}
    rates = sorted({rate for own in tried.values() for rate in own})
    if not rates:
        return
    rate = max(rates, key=lambda one: (sum(one in own for own in tried.values()), one))
    for n in WINDOWS:
        mine, others = (values(arms.by.get(arm, {}).get(rate, {}), MAIN) for arm in (adaptive(n, 5), BASE))
        both = sorted(mine.keys() & others.keys())
        if both:
            yield float(n), [mine[seed] - others[seed] for seed in both]


def _drawn(lines: Lines) -> Lines | None:
    """The lines, or None where there are none."""
    return lines if any(lines.values()) else None
