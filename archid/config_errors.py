"""How a mistake in a configuration file is told: file, line, key, what is allowed, nearest key.

It turns what tomllib and pydantic found into one `ConfigError` with a sentence for each problem.
tomllib keeps no line numbers, so they are found again by parsing ever longer beginnings of the
text: slow, exact, and only ever done for a file that is wrong.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Sequence
from typing import Any, Final

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from archid.errors import UsageError

MAX_LINES_SEARCHED: Final = 2000
"""Of a longer file the lines of its mistakes are not looked for: that takes quadratic time."""
_MAX_SHOWN_PROBLEMS: Final = 10


class ConfigError(UsageError):
    """A configuration file is wrong; `problems` holds a sentence for each mistake."""

    code = "config_invalid"

    def __init__(
        self,
        message: str,
        *,
        remedy: str | None = None,
        code: str | None = None,
        problems: Sequence[str] = (),
    ) -> None:
        super().__init__(message, remedy=remedy, code=code)
        self.problems = tuple(problems) or (message,)


def key_in_file(name: str, field: FieldInfo) -> str:
    """How a model's field is called in the file."""
    return field.alias or name


def section_model(field: FieldInfo) -> type[BaseModel] | None:
    """The model behind a section's field, or None if the field is a plain key."""
    annotation = field.annotation
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return None


def line_of(text: str, path: Sequence[str | int]) -> int | None:
    """The line, from 1, where the key at `path` is given its value; None if it is nowhere."""
    lines = text.split("\n")
    if len(lines) > MAX_LINES_SEARCHED:
        return None
    start = 1
    for count in range(1, len(lines) + 1):
        try:
            document = tomllib.loads("\n".join(lines[:count]))
        except tomllib.TOMLDecodeError:
            continue  # in the middle of a list or a string of several lines
        if _holds(document, path):
            return start
        start = count + 1
    return None


def _holds(document: object, path: Sequence[str | int]) -> bool:
    for part in path:
        if not isinstance(document, dict) or part not in document:
            return False
        document = document[part]
    return True


def parse_toml(text: str, *, source: str) -> dict[str, Any]:
    """What a file holds; raises ConfigError when it is not TOML, whatever it is instead."""
    try:
        return tomllib.loads(text)
    except RecursionError as error:
        why = "it is nested too deeply"
        raise _not_toml(why, source) from error
    except ValueError as error:  # tomllib's own error, and what Python says of endless numbers
        raise _not_toml(str(error), source) from error


def _not_toml(why: str, source: str) -> ConfigError:
    return ConfigError(
        f"{source} is not valid TOML: {why}",
        remedy="Text needs quotes, lists need brackets, and each key may be set once",
    )


def check_version(document: dict[str, Any], text: str, *, supported: int, source: str) -> None:
    """Refuse a file whose `version` is missing or not `supported`, before anything else of it."""
    found = document.get("version")
    if found is None:
        raise ConfigError(
            f"{source} does not say which version of the configuration format it is written in",
            remedy=f"Put 'version = {supported}' on its first line, before any [section]",
        )
    where = _place(source, line_of(text, ("version",)))
    if type(found) is not int or found < 1:
        raise ConfigError(f"{where}: version is {found!r}, but must be {supported}")
    if found > supported:
        raise ConfigError(
            f"{where}: version is {found}, and this archid reads version {supported} at most",
            remedy="Upgrade archid, or use the configuration that belongs to this release of it",
            code="config_newer",
        )


def describe_problems(
    error: ValidationError, text: str, *, model: type[BaseModel], source: str
) -> ConfigError:
    """One error for everything that pydantic found, each problem with its line."""
    found = []
    for detail in error.errors(include_url=False):
        path = detail["loc"]
        line = _nearest_line(text, path)
        sentence = _sentence(detail["type"], path, detail, model)
        found.append((line or 0, f"{_place(source, line)}: {sentence}"))
    problems = [problem for _, problem in sorted(found)]
    message = problems[0]
    if len(problems) > 1:
        listed = "".join(f"\n  {problem}" for problem in problems[:_MAX_SHOWN_PROBLEMS])
        left_out = len(problems) - _MAX_SHOWN_PROBLEMS
        more = f"\n  and {left_out} more" if left_out > 0 else ""
        message = f"{source} has {len(problems)} mistakes:{listed}{more}"
    return ConfigError(message, problems=problems)


def _nearest_line(text: str, path: Sequence[str | int]) -> int | None:
    """The line of the key, of its section if the key is missing, or None."""
    lines = (line_of(text, path[:length]) for length in range(len(path), 0, -1))
    return next((line for line in lines if line is not None), None)


def _place(source: str, line: int | None) -> str:
    return source if line is None else f"{source}, line {line}"


def _sentence(kind: str, path: tuple[str | int, ...], detail: Any, model: type[BaseModel]) -> str:
    name = _name(path)
    if kind == "extra_forbidden":
        return _unknown_key(path, model)
    if kind == "missing":
        return f"{name} is missing{_allowed_for(path, model)}"
    if kind == "literal_error":
        return f"{name} is {detail['input']!r}, but must be {detail['ctx']['expected']}"
    if kind == "value_error":
        reason = str(detail["ctx"]["error"])
        return f"{name}: {reason}" if name else reason
    if kind in ("model_type", "model_attributes_type"):
        return f"{name} must be a section, written as '[{path[-1]}]' on a line of its own"
    return f"{name} is {detail['input']!r}: {detail['msg']}"


def _name(path: tuple[str | int, ...]) -> str:
    """``[network] listen``, ``[network]`` or ``version``."""
    if len(path) >= 2:
        return f"[{path[0]}] {'.'.join(map(str, path[1:]))}"
    return "".join(map(str, path))


def _model_at(path: Sequence[str | int], model: type[BaseModel]) -> type[BaseModel]:
    """The model of the section that `path` leads into."""
    for part in path:
        for name, field in model.model_fields.items():
            inner = section_model(field)
            if key_in_file(name, field) == part and inner is not None:
                model = inner
    return model


def _unknown_key(path: tuple[str | int, ...], model: type[BaseModel]) -> str:
    key = str(path[-1])
    here = _model_at(path[:-1], model)
    known = [key_in_file(name, field) for name, field in here.model_fields.items()]
    place = f"in [{path[0]}]" if len(path) > 1 else "at the top of the file"
    sentence = f"'{key}' is not known {place}"
    nearest = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    if nearest:
        return f"{sentence}; did you mean '{nearest[0]}'?"
    elsewhere = [
        key_in_file(section, field)
        for section, field in model.model_fields.items()
        for inner in [section_model(field)]
        if inner is not None
        and key in {key_in_file(name, each) for name, each in inner.model_fields.items()}
    ]
    if elsewhere:
        return f"{sentence}; it belongs into [{elsewhere[0]}]"
    return f"{sentence}; known are {', '.join(known)}"


def _allowed_for(path: tuple[str | int, ...], model: type[BaseModel]) -> str:
    """What a missing key may be, if that is a short list."""
    field = next(
        (
            field
            for name, field in _model_at(path[:-1], model).model_fields.items()
            if key_in_file(name, field) == path[-1]
        ),
        None,
    )
    choices = getattr(field.annotation, "__args__", ()) if field is not None else ()
    if choices and all(isinstance(choice, str) for choice in choices):
        return f"; it must be one of {', '.join(choices)}"
    return ""
