"""From what a request asks to the tokens of its prompt: the chat template, and vLLM's bounds on a prompt's length.

The template is the emulated model's own: one token begins a conversation, one names the role of each message and one
ends it, and one opens the answer. So n messages cost 2 n + 2 tokens beside their texts (2 n + 1 without the opening).
Tools stand as JSON in a message of their own, tool calls as JSON behind their message's text.
"""

from collections.abc import Sequence

import orjson

from emulator.server.refusal import Refusal, invalid, not_emulated
from emulator.server.requests import ChatRequest, CompletionRequest, Message, Sampled
from emulator.server.tokens import BOS, END_OF_TURN, ROLES, encode, unknown


def of_chat(request: ChatRequest) -> list[int]:
    """The tokens of a conversation."""
    if not request.messages:
        raise Refusal("Cannot apply chat template to an empty conversation. Provide at least one message.")
    tools = None if request.tools is None else orjson.dumps(request.tools).decode()
    opened = request.add_generation_prompt and not request.continue_final_message
    tokens = conversation(request.messages, opened, tools)
    return tokens[:-1] if request.continue_final_message else tokens


def conversation(messages: Sequence[Message], opened: bool = True, tools: str | None = None) -> list[int]:
    tokens = [BOS]
    if tools is not None:
        tokens += [ROLES["system"], *encode(tools), END_OF_TURN]
    for message in messages:
        role = ROLES.get(message.role)
        if role is None:
            known = ", ".join(ROLES)
            raise Refusal(f"Unexpected message role {message.role!r}; the emulated model's template knows {known}")
        tokens += [role, *encode(text_of(message)), END_OF_TURN]
    if opened:
        tokens.append(ROLES["assistant"])
    return tokens


def text_of(message: Message) -> str:
    """The text of a message: its parts in lines of their own, and its tool calls as JSON."""
    content = message.content
    if isinstance(content, list):
        for part in content:
            if part.get("type", "text") not in ("text", "input_text", "output_text", "refusal"):
                raise not_emulated("messages", f"the model reads text alone, not a part of type {part.get('type')!r}")
        content = "\n".join(str(part.get("text") or part.get("refusal") or "") for part in content)
    calls = (message.model_extra or {}).get("tool_calls")
    return (content or "") + (orjson.dumps(calls).decode() if calls else "")


def of_completion(request: CompletionRequest) -> list[list[int]]:
    """The tokens of each of a request's prompts."""
    if request.suffix is not None:
        raise Refusal("suffix is only supported for models with FIM completion rendering", param="suffix")
    given = request.prompt
    if isinstance(given, str):
        return [_begun(request, given)]
    if not given:
        raise Refusal("You must pass at least one prompt")
    several = [each for each in given if not isinstance(each, int)]
    if not several:
        return [[each for each in given if isinstance(each, int)]]
    return [_begun(request, each) if isinstance(each, str) else each for each in several]


def _begun(request: CompletionRequest, text: str) -> list[int]:
    return [BOS] * request.add_special_tokens + encode(text)


def fit(request: Sampled, prompt: list[int], max_model_len: int, of_text: bool = True) -> tuple[list[int], int]:
    """The prompt, truncated where the request says so, and the most tokens that its answer may have.

    As vLLM 0.32 does it: a limit above the context is refused, a prompt that leaves less room than the limit has it
    cut. Raises Refusal.
    """
    name, wanted = request.limit
    if wanted is not None and wanted > max_model_len:
        raise invalid(
            f"{name}={wanted} cannot be greater than max_model_len={max_model_len}. "
            "Please request fewer output tokens.",
            name,
            wanted,
        )
    keep = request.truncate_prompt_tokens
    if keep is not None:
        if keep > max_model_len:
            raise invalid(
                f"truncate_prompt_tokens={keep} cannot be greater than max_model_len = {max_model_len}. "
                "Please request a smaller truncation size.",
                "truncate_prompt_tokens",
                keep,
            )
        prompt = prompt[: max(0, max_model_len - bool(wanted)) if keep < 0 else keep]
    length = len(prompt)
    if length > max_model_len:
        # vLLM's tokenizer stops one token behind the limit, and so does not know how long a text really is.
        told = max_model_len + 1 if of_text else length
        found = f"{'at least ' if told == max_model_len + 1 else ''}{told} input tokens"
        raise invalid(
            f"This model's maximum context length is {max_model_len} tokens. However, your prompt contains {found}, "
            "which exceeds this limit even without any output tokens. Please reduce the length of the input prompt.",
            "input_tokens",
            told,
        )
    room = max_model_len - length
    return prompt, room if wanted is None else min(wanted, room)


def check_tokens(prompt: Sequence[int]) -> None:
    """What vLLM's engine finds only when a stream has begun. Raises Refusal."""
    if not prompt:
        raise invalid("The decoder prompt cannot be empty")
    token = unknown(prompt)
    if token is not None:
        raise invalid(f"Token id {token} is out of vocabulary")
