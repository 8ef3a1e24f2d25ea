"""Choices with their reasons, and the commented recipe that they make."""

from __future__ import annotations

import shlex
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from leanlabel.config import variants
from leanlabel.methods import find
from leanlabel.recipe import Recipe, dump, merge

WIDTH = 110
"""Longest line, where the words allow it."""
COLUMN = 30
"""Where comments beside a key begin; the comment of a longer line stands above it."""


@dataclass(frozen=True)
class Choice:
    """One setting and why it has its value.

    Args:
        key: path of the key, such as "augment.scheme".
        value: plain data: number, word, list, null.
        reason: the fact that was measured and the rule, in one sentence.
    """

    key: str
    value: Any
    reason: str

    def __post_init__(self) -> None:
        if not self.reason.strip():
            raise ValueError(f"{self.key} is chosen without a reason")


@dataclass(frozen=True)
class Advice:
    """A recipe in the making.

    Args:
        task: task of ``leanlabel init``.
        facts: what was looked at: one sentence per line of the header.
        choices: in the order of the file; "method.name" is among them.
        warnings: what the data's owner should know, one sentence each.
    """

    task: str
    facts: tuple[str, ...]
    choices: tuple[Choice, ...]
    warnings: tuple[str, ...] = ()

    @property
    def recipe(self) -> Recipe:
        """The raw keys, without comments.

        Raises:
            ValueError: a key is chosen twice, or is a value and a section.
        """
        values: dict[str, Any] = {}
        for choice in self.choices:
            if _taken(values, choice.key):
                raise ValueError(f"{choice.key} is chosen twice")
            values = merge(values, _nested(choice))
        return Recipe(f"init {self.task}", values)


def has_key(schema: type[BaseModel], key: str) -> bool:
    """True when a schema knows a key path; of a section with variants any may know it.

    >>> from leanlabel.config import RunConfig
    >>> has_key(RunConfig, "optim.lr"), has_key(RunConfig, "optim.rate"), has_key(RunConfig, "batch.nodes")
    (True, False, False)
    """
    name, _, rest = key.partition(".")
    if name not in schema.model_fields:
        return False
    return not rest or any(has_key(one, rest) for one in variants(schema.model_fields[name].annotation))


def to_text(advice: Advice, file: str) -> str:
    """Write the recipe as YAML with the reason of every line as its comment.

    Args:
        advice: facts and choices.
        file: name of the recipe file, for the commands in the header.

    Returns:
        Text that reads back as ``advice.recipe.values``, whatever characters names and paths hold.
    """
    method = find(advice.recipe.values["method"]["name"])
    name = shlex.quote(file)
    against = ", ".join(method.baselines_of(advice.recipe.values))
    head = [
        f"Written by `leanlabel init {advice.task}`; the comments name what was measured and the rule.",
        *advice.facts,
        "Go on with:",
        f"  leanlabel data check {name}",
        f"  leanlabel fit {name}",
        f"  leanlabel compare {name} --seeds 5",
        f"The last one trains it beside its baselines ({against}) and says what training bought.",
    ]
    lines = [line for text in head for line in _comment(text, "")]
    return "\n".join([*lines, *_section(advice.choices, "", method.Config)]) + "\n"


def _section(choices: Sequence[Choice], above: str, schema: type[BaseModel]) -> list[str]:
    """The lines of the choices whose key begins with ``above``; a section stands where its first key does."""
    lines: list[str] = []
    written: set[str] = set()
    for choice in choices:
        name, _, inner = choice.key.removeprefix(above).partition(".")
        if not choice.key.startswith(above) or name in written:
            continue
        if not inner:
            lines += _entry(choice)
            continue
        written.add(name)
        about = _description(schema, above + name)
        indent = "  " * above.count(".")
        told = f"# {_printable(about[:1].lower() + about[1:])}" if about else ""
        lines.append(f"{f'{indent}{name}:':<{COLUMN}}{told}".rstrip())
        lines += _section(choices, f"{above}{name}.", schema)
    return lines


def _description(schema: type[BaseModel], key: str) -> str:
    """What a schema says about a section."""
    name, _, rest = key.partition(".")
    field = schema.model_fields.get(name)
    if field is None:
        return ""
    if not rest:
        return " ".join((field.description or "").split()).rstrip(".")
    inner = (_description(one, rest) for one in variants(field.annotation))
    return next((text for text in inner if text), "")


def _entry(choice: Choice) -> list[str]:
    """The lines of one key: value and comment."""
    depth = choice.key.count(".")
    indent = "  " * depth
    if isinstance(choice.value, str) and not choice.value.isprintable():
        own = [f"{indent}{choice.key.rpartition('.')[2]}: {_quoted(choice.value)}"]
    else:
        # Dumped inside its sections, so that the writer of YAML indents what it breaks into several lines.
        own = dump(_nested(choice)).rstrip("\n").split("\n")[depth:]
    if len(own) > 1 or len(own[0]) > COLUMN - 2:
        return [*_comment(choice.reason, indent), *own]
    first, *more = _wrapped(choice.reason, WIDTH - COLUMN - 2)
    return [f"{own[0]:<{COLUMN}}# {first}", *(f"{'':<{COLUMN}}# {line}" for line in more)]


def _comment(text: str, indent: str) -> list[str]:
    lead = " " * (len(text) - len(text.lstrip(" ")))
    return [f"{indent}# {lead}{line}" for line in _wrapped(text, WIDTH - len(indent) - len(lead) - 2)]


def _wrapped(text: str, width: int) -> list[str]:
    text = _printable(text).strip(" ")
    return textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False)


def _printable(text: str) -> str:
    """Text that cannot end a comment: line breaks and other control characters become escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _quoted(text: str) -> str:
    """A scalar in double quotes, on one line; Python's escapes of control characters are YAML's, too."""
    return '"' + "".join(f"\\{c}" if c in '"\\' else _printable(c) for c in text) + '"'


def _nested(choice: Choice) -> dict[str, Any]:
    result: Any = choice.value
    for part in reversed(choice.key.split(".")):
        result = {part: result}
    return result


def _taken(values: Mapping[str, Any], key: str) -> bool:
    """True when a key path has a value or section already, or a value stands in its way."""
    found: Any = values
    for part in key.split("."):
        if not isinstance(found, Mapping):
            return True
        if part not in found:
            return False
        found = found[part]
    return True
