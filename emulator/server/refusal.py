"""vLLM's refusals: its error object, its statuses, its words."""

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

import orjson

_MOST_ERRORS = 10  # of one body that are told; the rest are counted


class Refusal(Exception):
    """A request that is not served. `kind` is the error's `type`, `param` the field that is at fault."""

    def __init__(self, message: str, status: int = 400, kind: str = "BadRequestError", param: str | None = None):
        super().__init__(message)
        self.message, self.status, self.kind, self.param = message, status, kind, param

    def body(self) -> bytes:
        error = {"message": self.message, "type": self.kind, "param": self.param, "code": self.status}
        return orjson.dumps({"error": error})


def invalid(message: str, param: str | None = None, value: object = None) -> Refusal:
    """A value that vLLM itself refuses; field and value are said behind the message."""
    said = [f"parameter={param}"] * (param is not None) + [f"value={value}"] * (value is not None)
    return Refusal(f"{message} ({', '.join(said)})" if said else message, param=param)


def not_emulated(param: str, why: str) -> Refusal:
    """What vLLM would do and an emulated engine cannot do honestly."""
    return Refusal(f"{param} is not emulated: {why}", param=param)


def unknown_model(model: str, served: str) -> Refusal:
    message = f"The model `{model}` does not exist. Valid aliases: {served}."
    return Refusal(message, HTTPStatus.NOT_FOUND, "NotFoundError", "model")


def too_busy() -> Refusal:
    message = "The engine is currently busy and cannot accept new requests. "
    message += "Please try again later or on a different instance."
    return Refusal(message, HTTPStatus.SERVICE_UNAVAILABLE, "Service Unavailable")


def dead() -> Refusal:
    """What everybody is told once the engine has failed."""
    message = "EngineCore encountered an issue. See stack trace (above) for the root cause."
    return Refusal(message, HTTPStatus.INTERNAL_SERVER_ERROR, "InternalServerError")


def malformed(errors: Sequence[Mapping[str, Any] | str]) -> Refusal:
    """What a body of the wrong shape is told: each of pydantic's errors, and the first one's place as `param`."""
    param = None
    lines = []
    for error in errors:
        if isinstance(error, str):
            lines.append(error)
            continue
        place = ".".join(str(part) for part in error["loc"] if not _of_pydantic(str(part)))
        param = param or place
        shown = {"type": error["type"], "loc": place, "msg": error["msg"], "input": _short(error.get("input"))}
        if "ctx" in error:
            shown["ctx"] = error["ctx"]
        lines.append(str(shown)[:1000])
    more = len(lines) - _MOST_ERRORS
    said = "".join(f"  {line}\n" for line in lines[:_MOST_ERRORS])
    if more > 0:
        said += f"  ...and {more} more {'error' if len(lines) == 1 else 'errors'}\n"
    count = f"{len(lines)} validation {'error' if len(lines) == 1 else 'errors'}"
    return Refusal(f"{count}:\n{said}".rstrip(), kind=HTTPStatus.BAD_REQUEST.phrase, param=param)


def _of_pydantic(part: str) -> bool:
    """Whether a part of an error's place names a branch of a type and no field."""
    return any(bracket in part for bracket in "[](){}") or part in ("str", "int", "float", "bool", "list", "dict")


def _short(value: object) -> object:
    if isinstance(value, str):
        return value if len(value) <= 200 else value[:200] + "...[truncated]"
    if isinstance(value, list | tuple | dict):
        return f"<{type(value).__name__} of {len(value)} items>"
    return value
