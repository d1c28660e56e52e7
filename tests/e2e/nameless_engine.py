"""An engine without a name for its models."""

import asyncio
import ssl
import threading

from aiohttp import web


class NamelessEngine:
    """An engine in this process that lists no models and answers every name, over TLS when given a context."""

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        self._context = context

    def __enter__(self) -> str:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        return asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(10)

    async def _start(self) -> str:
        async def chat(request: web.Request) -> web.Response:
            asked = (await request.json()).get("model")
            choice = {"index": 0, "message": {"role": "assistant", "content": "yes"}, "finish_reason": "stop"}
            usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
            return web.json_response({"id": "1", "model": asked, "choices": [choice], "usage": usage})

        async def models(_: web.Request) -> web.Response:
            return web.json_response({"object": "list", "data": []})

        app = web.Application()
        app.router.add_post("/v1/chat/completions", chat)
        app.router.add_get("/v1/models", models)
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0, ssl_context=self._context).start()
        return f"{'https' if self._context else 'http'}://127.0.0.1:{self._runner.addresses[0][1]}"

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._runner.cleanup(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
