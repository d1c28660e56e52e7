"""What the gateway says when it says no: an OpenAI error object."""

import orjson


class Refusal(Exception):
    """A request that the gateway itself ends. `message` is for the client and holds no prompt and no secret.

    Without `retry` it is told not to try again by itself, which OpenAI's clients otherwise do after a 429. `allow` are
    the methods that a path takes.
    """

    def __init__(
        self,
        status: int,
        message: str,
        code: str,
        *,
        param: str | None = None,
        retry_after_s: int | None = None,
        retry: bool = True,
        allow: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param
        self.retry_after_s, self.retry, self.allow = retry_after_s, retry, allow

    def body(self) -> bytes:
        return error_object(self.status, self.message, self.code, self.param)

    def text_headers(self) -> dict[str, str]:
        said = {} if self.retry_after_s is None else {"retry-after": str(self.retry_after_s)}
        if not self.retry:
            said["x-should-retry"] = "false"
        if self.allow is not None:
            said["allow"] = self.allow
        if self.status == 401:  # RFC 9110 asks for both
            said["www-authenticate"] = "Bearer"
        return said

    def headers(self) -> list[tuple[bytes, bytes]]:
        return [(name.encode(), value.encode()) for name, value in self.text_headers().items()]


def error_object(status: int, message: str, code: str, param: str | None = None) -> bytes:
    """The JSON that OpenAI clients understand."""
    if status >= 500:
        kind = "server_error"
    elif status == 429:
        kind = "rate_limit_error"
    elif status == 401:
        kind = "authentication_error"
    else:
        kind = "invalid_request_error"
    return orjson.dumps({"error": {"message": message, "type": kind, "param": param, "code": code}})
