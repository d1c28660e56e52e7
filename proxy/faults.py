"""What is wrong with a configuration, in lines for the person who wrote it: where it is, and what would be right."""

import difflib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError

PREFIX = "JOULEGATE_"
# Variables of other programs of ours, which are no part of a gateway's configuration.
OTHERS = ("URL", "KEY", "MODEL_DIR", "CONFIG", "SOAK_ROUNDS", "FUZZ", "KILLS")
# What Kubernetes puts into every container beside a service called joulegate.
_OF_A_SERVICE = re.compile(r"(.*_)?(SERVICE_(HOST|PORT)|PORT_\d+_(TCP|UDP|SCTP))(_.*)?")

_WORDS = {
    **dict.fromkeys(("model_type", "model_attributes_type", "dict_type"), "must be a mapping, as in {{key: value}}"),
    **dict.fromkeys(("tuple_type", "list_type"), "must be a list, as in [a, b]"),
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float", "int_parsing_size"), "must be a whole number"),
    **dict.fromkeys(("float_type", "float_parsing"), "must be a number"),
    **dict.fromkeys(("bool_type", "bool_parsing"), "must be true or false"),
    **dict.fromkeys(("string_type", "invalid_key"), "must be text"),
    "path_type": "must be a path",
    "finite_number": "must be a finite number",
    "greater_than": "must be more than {gt:g}",
    "greater_than_equal": "must be at least {ge:g}",
    "less_than_equal": "must be at most {le:g}",
    "literal_error": "must be {expected}",
    "too_short": "must not be empty",
    "string_pattern_mismatch": (
        "must be 1 to 64 letters, digits, dots, hyphens or underscores, a letter or a digit first"
    ),
}
_HASH = "must be sha256: and 64 hexadecimal digits, as `joulegate key` prints it"


def in_file(
    error: ValidationError, model: type[BaseModel], data: Mapping[Any, Any], file: str, environ: Mapping[str, str]
) -> Iterator[str]:
    """A line for each fault of what was read from `file` and from the variables that stand over it."""
    faults = error.errors(include_url=False)
    places = [fault["loc"] for fault in faults]
    variables = _ours(environ)
    for fault in faults:
        place = fault["loc"]
        if fault["type"] == "too_short" and any(other[: len(place)] == place != other for other in places):
            continue  # it is short of the item that has a fault of its own
        variable, rest = _variable(variables, place)
        said = _line(fault, place, rest if variable else place, model, _listed(place, data, variables))
        yield f"{variable or file}: {said}"


def in_variables(model: type[BaseModel], environ: Mapping[str, str]) -> list[str]:
    """A line for each variable that ought to be JSON and is not; never with its value, which may be a secret."""
    lines = []
    for name, value in _ours(environ).items():
        field = model.model_fields.get(_field(name))
        if field is None or _is_json(value) or ("__" in name and value.lstrip()[:1] not in ("[", "{")):
            continue  # below the top a value may be plain text, too
        if get_origin(field.annotation) is tuple or "__" in name:
            lines.append(f"{name}: is not valid JSON")
        else:
            lines.append(f"{name}: is not valid JSON; for a single value of it use {name}__ and its key")
    return lines


def misspelt(model: type[BaseModel], environ: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """Variables that no key has: a line for each that is close to one, and the names of the others."""
    faults: list[str] = []
    unknown: list[str] = []
    fields = list(model.model_fields)
    for name in _ours(environ):
        rest = name.removeprefix(PREFIX)
        field = _field(name)
        if field in fields or rest in OTHERS or _OF_A_SERVICE.fullmatch(rest):
            continue
        inside = next((known for known in fields if field.startswith(f"{known}_")), None)
        nearest = difflib.get_close_matches(field, fields, n=1, cutoff=0.6)
        if inside:
            meant = f"{inside}__{rest[len(inside) + 1 :]}"
        elif nearest:
            meant = f"{nearest[0]}{rest[len(field) :]}"
        else:
            unknown.append(name)
            continue
        faults.append(f"{name}: no such variable; did you mean {PREFIX}{meant.upper()}?")
    return faults, unknown


def _ours(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables with our prefix that hold something; their names count in any case."""
    return {name.upper(): value for name, value in environ.items() if name.upper().startswith(PREFIX) and value}


def _field(name: str) -> str:
    return name.removeprefix(PREFIX).partition("__")[0].lower()


def _is_json(value: str) -> bool:
    return _decoded(value) is not None or value.strip() == "null"


def _decoded(value: str) -> Any:
    try:
        return json.loads(value)
    except ValueError:
        return None


def _variable(variables: Mapping[str, str], place: Sequence[int | str]) -> tuple[str | None, Sequence[int | str]]:
    """The variable that a value comes from, and the way to the value in it; None for one of the file."""
    for length in range(len(place), 0, -1):
        name = PREFIX + "__".join(map(str, place[:length])).upper()
        if name in variables and (length == len(place) or _leads_in(_decoded(variables[name]), place[length:])):
            return name, place[length:]
    return None, place


def _leads_in(value: Any, way: Sequence[int | str]) -> bool:
    for step in way:
        try:
            value = value[step]
        except (KeyError, IndexError, TypeError):
            return False
    return True


def _listed(place: Sequence[int | str], data: Mapping[Any, Any], variables: Mapping[str, str]) -> str | None:
    """Which engine or which key it is about, by its name: nobody counts them."""
    if len(place) < 2 or place[0] not in ("engines", "keys") or not isinstance(place[1], int):
        return None
    whole = _decoded(variables.get(f"{PREFIX}{place[0]}".upper(), "")) or data.get(place[0])
    items = whole if isinstance(whole, list | tuple) else ()
    item = items[place[1]] if place[1] < len(items) else None
    kind, key = ("engine", "name") if place[0] == "engines" else ("the key of tenant", "tenant")
    name = item.get(key) if isinstance(item, Mapping) else None
    if isinstance(name, str) and re.fullmatch(r"[!-~]{1,64}", name):
        return f"{kind} {name}"
    return f"{place[0]}.{place[1]}"


def _line(
    fault: Mapping[str, Any],
    place: Sequence[int | str],
    shown: Sequence[int | str],
    model: type[BaseModel],
    listed: str | None,
) -> str:
    """One fault. `shown` is the way to it within its file or variable, `listed` the item of a list that it is in."""
    way = [str(step) for step in (place[2:] if listed else shown)]
    key, before = ".".join(way), f"{listed}: " if listed else ""
    if fault["type"] == "extra_forbidden":
        known = _keys_at(model, place[:-1])
        nearest = difflib.get_close_matches(str(place[-1]), known, n=1, cutoff=0.5)
        hint = f"did you mean {nearest[0]!r}?" if nearest else f"known: {', '.join(known)}"
        return f"{before}unknown key {key or str(place[-1])!r}; {hint}"
    if fault["type"] == "missing":
        return f"{before}{key} is missing"
    if place[-1:] == ("[key]",):
        return f"{'.'.join(map(str, place[:-2]))}: the name {place[-2]!r} {_said(fault)}"
    what = _said(fault) + _given(fault, place)
    if listed and what.startswith(before):
        before = ""
    return f"{before}{key}: {what}" if key else f"{before}{what}"


def _said(fault: Mapping[str, Any]) -> str:
    if "sha256" in str(fault.get("ctx", {}).get("pattern", "")):
        return _HASH
    if fault["type"] in _WORDS:
        return _WORDS[fault["type"]].format(**fault.get("ctx", {}))
    return str(fault["msg"]).removeprefix("Value error, ")


def _given(fault: Mapping[str, Any], place: Sequence[int | str]) -> str:
    """The value, unless it is long, or may be a secret."""
    value = fault.get("input")
    held = place[:1] == ("admin",) or (place[:1] == ("keys",) and len(place) <= 2)
    if not place or held or {"key", "key_hash", "api_key"} & set(place) or isinstance(value, dict | list | tuple):
        return ""
    if value is None:
        return " (it is empty)"
    text = repr(value)
    return f" (got {text})" if len(text) <= 80 and not isinstance(value, BaseModel) else ""


def _keys_at(model: type[BaseModel], place: Sequence[int | str]) -> list[str]:
    """The keys that the model knows at a place in the file."""
    for step in place:
        if step in model.model_fields:  # a list's index or a name of the user's own leads no deeper
            inner = _model_in(model.model_fields[str(step)].annotation)
            if inner is None:
                return []
            model = inner
    return sorted(model.model_fields)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The model inside `tuple[Model, ...]`, `dict[str, Model]` or `Model` itself."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((model for part in get_args(annotation) if (model := _model_in(part))), None)
