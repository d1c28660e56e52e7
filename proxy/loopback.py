"""Which hosts are this machine itself."""

from ipaddress import ip_address


def is_here(host: str) -> bool:
    """Whether a name or an address in a URL is of the loopback (RFC 6761, 6.3: names under `localhost` are)."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
