"""How much a client has not read of what was written for it."""

import asyncio
import fcntl
import struct
import termios


def unread_bytes(transport: asyncio.Transport) -> int:
    """The bytes that wait in a transport, and with them those in the kernel that the client's has not taken (Linux).

    0 where none waits in the transport. The kernel takes more only when a third of its own buffer is free, which a
    client that reads ten kilobytes a second brings about every few minutes; what it has taken itself shows that it
    reads (ioctl SIOCOUTQ, tcp(7)).
    """
    rest = transport.get_write_buffer_size()
    sock = transport.get_extra_info("socket") if rest else None
    if sock is None:
        return rest
    try:
        return rest + struct.unpack("i", fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4)))[0]
    except OSError:  # not Linux
        return rest
