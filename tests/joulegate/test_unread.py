"""A client that reads is told from one that does not, though the kernel takes nothing more for either."""

import asyncio
import socket
import sys

import pytest
import uvloop

from joulegate.unread import unread_bytes


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the kernel does not tell")
def test_what_a_client_takes_from_the_kernel_counts() -> None:
    async def test() -> None:
        loop = asyncio.get_running_loop()
        with socket.create_server(("127.0.0.1", 0)) as server, socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
            client.connect(server.getsockname())
            accepted, _ = server.accept()
            accepted.setblocking(False)
            transport, _ = await loop.connect_accepted_socket(asyncio.Protocol, accepted)
            assert unread_bytes(transport) == 0
            transport.write(b"x" * 2**25)
            before = None
            while before != (before := unread_bytes(transport)):  # noqa: ASYNC110, until both kernels are full
                await asyncio.sleep(0.05)
            waiting = transport.get_write_buffer_size()
            assert before is not None and before > waiting > 0, "what the kernel has counts too"
            taken = 0
            while taken < 2**18:
                taken += len(client.recv(65536))
            async with asyncio.timeout(10):
                while unread_bytes(transport) >= before:  # noqa: ASYNC110
                    await asyncio.sleep(0.005)
            transport.abort()

    uvloop.run(test())
