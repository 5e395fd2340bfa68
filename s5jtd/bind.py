"""What `bind` means for a socket: the local address or the interface that it leaves from."""

from __future__ import annotations

import ipaddress
import socket


def _address(bind: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(bind)
    except ValueError:  # an interface
        return None


def source_address(bind: str) -> str | None:
    """The local address that is meant, as the kernel writes it; None: it is an interface."""
    address = _address(bind)
    return None if address is None else str(address)


def device_option(bind: str) -> tuple[int, int, bytes]:
    """What makes a socket leave from an interface, as `setsockopt` takes it."""
    return socket.SOL_SOCKET, socket.SO_BINDTODEVICE, bind.encode() + b"\0"


def fits(family: int, bind: str | None) -> bool:
    """Whether an address of this family can be left for from `bind`."""
    address = None if bind is None else _address(bind)
    return address is None or family == (socket.AF_INET6 if address.version == 6 else socket.AF_INET)


def leave_from(connection: socket.socket, bind: str | None) -> None:
    """Make a socket that is to be connected leave from there.

    Raises:
        OSError: there is no such address or interface here.
    """
    if bind is None:
        return
    address = source_address(bind)
    if address is None:
        connection.setsockopt(*device_option(bind))
    else:
        connection.bind((address, 0))
