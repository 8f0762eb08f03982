"""The dashboards against Grafana's schema, as its own SDK has it: each key is known, and each value is of its type."""

import enum
import json
import types
import typing
import warnings
from pathlib import Path
from typing import Any

import pytest
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins

with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
    # The SDK prefers the schema that comes next; Grafana reads provisioned files by this one.
    from grafana_foundation_sdk.models.dashboard import Dashboard

FILES = sorted((Path(__file__).parents[1] / "dashboards").glob("*.json"))
register_default_plugins()


def problems(text: str) -> list[str]:
    """Returns what is wrong with a dashboard."""
    dashboard = Dashboard.from_json(json.loads(text))
    written = json.loads(JSONEncoder().encode(dashboard))  # what the SDK does not know is not in it
    return [*lost(json.loads(text), written, ""), *mistyped(dashboard, Dashboard, "")]


def lost(read: Any, written: Any, path: str) -> typing.Iterator[str]:
    """Yields each key that was read and not written again."""
    if isinstance(read, dict) and isinstance(written, dict):
        for key, value in read.items():
            if key in written:
                yield from lost(value, written[key], f"{path}.{key}")
            else:
                yield f"{path}.{key} is not in the schema"
    elif isinstance(read, list) and isinstance(written, list) and len(read) == len(written):
        for place, (one, other) in enumerate(zip(read, written, strict=True)):
            yield from lost(one, other, f"{path}[{place}]")
    elif read != written:
        yield f"{path}: {read!r} is read as {written!r}"


def mistyped(value: Any, kind: Any, path: str) -> typing.Iterator[str]:  # noqa: C901, PLR0912 - a case for each kind of type
    """Yields each value that is of another type than its field."""
    kinds = typing.get_args(kind)
    match typing.get_origin(kind):
        case typing.Union | types.UnionType:
            if not any(not list(mistyped(value, one, path)) for one in kinds):
                yield from mistyped(value, next(one for one in kinds if one is not types.NoneType), path)
        case typing.Literal:
            if value not in kinds:
                yield f"{path}: {value!r} is none of {kinds}"
        case container if container is list and isinstance(value, list):
            for place, one in enumerate(value):
                yield from mistyped(one, kinds[0], f"{path}[{place}]")
        case container if container is dict and isinstance(value, dict):
            for key, one in value.items():
                yield from mistyped(one, kinds[1], f"{path}.{key}")
        case None if kind in (object, Any):
            yield from fields(value, path)
        case None if isinstance(kind, type) and issubclass(kind, enum.Enum):
            if value not in [one.value for one in kind]:
                yield f"{path}: {value!r} is none of {[one.value for one in kind]}"
        case _:
            plain = typing.get_origin(kind) or kind
            accepted = (int, float) if plain is float else plain
            if not isinstance(value, accepted) or (isinstance(value, bool) and plain is not bool):
                yield f"{path}: {value!r} is no {plain.__name__}"
            yield from fields(value, path)


def fields(value: Any, path: str) -> typing.Iterator[str]:
    """Yields what is wrong with the fields of an object of the SDK."""
    if type(value).__module__.startswith("grafana_foundation_sdk"):
        hints = typing.get_type_hints(type(value).__init__)
        for name, one in vars(value).items():
            if one is not None and name in hints:
                yield from mistyped(one, hints[name], f"{path}.{name}")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_it_is_of_the_schema(path: Path) -> None:
    assert problems(path.read_text()) == []


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ('"graphMode": "none"', '"graphMode": 5'),
        ('"displayMode": "list"', '"displayMode": "no such mode"'),
        ('"mode": "normal"', '"moode": "normal"'),
        ('"refresh": "5s"', '"refresh": 5'),
        ('"editable": false', '"editable": "no"'),
    ],
)
def test_a_mistake_is_found(right: str, wrong: str) -> None:
    text = (FILES[0].parent / "message-delivery.json").read_text()
    assert right in text
    assert problems(text.replace(right, wrong))
