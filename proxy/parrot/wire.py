"""The words of Parrot's ServeCore (commit 2e1825e): bodies of its calls, and what its replies mean. Sans-I/O.

What is left unsaid here is left unsaid on purpose: constant text in a template is hashed and parsed for placeholders,
`fuse_fill` breaks contexts, a cached prefix whose call never ran kills the server after ten minutes, a sampling key
that it does not know is a 500, and an `output_criteria` would run the call before anybody asked for it.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

OUT = "answer"
# `latency` would let four calls run at a time on an engine; how many run together is for the gateway's gate to say.
CRITERIA = "throughput"
_SAMPLING = frozenset(
    (
        *("temperature", "top_p", "max_gen_length", "ignore_tokenizer_eos", "stop_token_ids", "stop_str"),
        *("presence_penalty", "frequency_penalty"),
    )
)
_GONE = re.compile(r"Session \(session_id=\d+\) (?:not found|is not valid)")
_UNKNOWN_VAR = "Unknown Semantic Variable ID"


class CoreFault(ConnectionError):
    """ServeCore cannot do what it was asked; the message is for the client and holds no prompt."""


class Forgotten(CoreFault):
    """The session is not, or no more, one of ServeCore's: it expired, went bad, or ServeCore was restarted."""


@dataclass(frozen=True, slots=True)
class Session:
    """What ServeCore knows a run by."""

    id: int
    auth: str


@dataclass(frozen=True, slots=True)
class Text:
    """A part of a prompt, as it is."""

    text: str


@dataclass(frozen=True, slots=True)
class Var:
    """A part of a prompt that another call of the session makes: the id of its output."""

    id: str


def call(
    session: Session,
    inputs: Sequence[Text | Var],
    sampling: Mapping[str, Any],
    model_type: str = "text",
    models: Sequence[str] = (),
) -> dict[str, Any]:
    """The body of a semantic call with one output. No `models`: any engine of that type may run it.

    Raises ValueError for a sampling key that ServeCore does not know, and without any input.
    """
    if unknown := sampling.keys() - _SAMPLING:
        raise ValueError(
            f"ServeCore knows no sampling key {sorted(unknown)[0]!r}; it knows {', '.join(sorted(_SAMPLING))}"
        )
    if not inputs:
        raise ValueError("a semantic call needs an input: what generates must follow something")
    parameters: list[dict[str, Any]] = []
    for n, part in enumerate(inputs):
        filled = {"value": part.text} if isinstance(part, Text) else {"var_id": part.id}
        parameters.append({"name": f"in_{n}", "is_output": False, **filled})
    parameters.append({"name": OUT, "is_output": True, "sampling_config": dict(sampling)})
    return {
        "session_id": session.id,
        "session_auth": session.auth,
        "func_name": "joulegate",
        "template": "".join("{{" + parameter["name"] + "}}" for parameter in parameters),
        "parameters": parameters,
        "models": list(models),
        "model_type": model_type,
        "cache_prefix": False,
    }


def in_session(session: Session, **more: Any) -> dict[str, Any]:
    """The body of any other call: GET and DELETE have one too."""
    return {"session_id": session.id, "session_auth": session.auth, **more}


def read(what: str, status: int, body: bytes) -> dict[str, Any]:
    """The reply to a call. Raises Forgotten, or CoreFault, for one that says no or makes no sense."""
    try:
        reply = orjson.loads(body)
    except orjson.JSONDecodeError:
        reply = None
    if status == 200 and isinstance(reply, dict):
        return reply
    error = reply.get("error") if isinstance(reply, dict) else None
    if isinstance(error, str) and _GONE.search(error):
        raise Forgotten("ServeCore does not know the session")
    # Its own words may hold a part of the prompt, and a traceback; they stay in its log.
    why = f"ServeCore answered {status} to {what}"
    if what == "a semantic call" and status == 500 and error is None:
        why += "; it says so without SIMULATE_NETWORK_LATENCY_PRT=0 in its environment"
    raise CoreFault(why)


def is_unknown_variable(status: int, body: bytes) -> bool:
    """Whether the session is there and only the variable is not."""
    return status == 500 and _UNKNOWN_VAR.encode() in body


def output_of(reply: Mapping[str, Any]) -> tuple[int, Var]:
    """The number of a submitted call in its session, and its output. Raises CoreFault."""
    try:
        outputs = [info["var_id"] for info in reply["param_info"] if info["is_output"]]
        return int(reply["request_id"]), Var(str(outputs[0]))
    except (KeyError, IndexError, TypeError, ValueError):
        raise CoreFault("ServeCore took a semantic call without telling its output") from None


def session_of(reply: Mapping[str, Any]) -> Session:
    """A new session. Raises CoreFault."""
    try:
        return Session(int(reply["session_id"]), str(reply["session_auth"]))
    except (KeyError, TypeError, ValueError):
        raise CoreFault("ServeCore opened a session without telling its id") from None
