"""The operating system's own byte counters, so that the ledger is not taken on trust.

Linux counts, for each TCP connection, the bytes it has sent (`TCP_INFO`, tcpi_bytes_sent). Summed
over the connections of this process, that is what the rank really put on the wire: gloo's headers
included, other programs' traffic not. Where the kernel does not tell (macOS), `bytes_sent`
returns None and the chapter says so."""

import os
import socket
import struct
import sys

# Where tcpi_bytes_acked, tcpi_bytes_sent and tcpi_bytes_retrans (u64 each) lie in Linux's struct
# tcp_info (include/uapi/linux/tcp.h).
_ACKED, _SENT, _RETRANSMITTED = 120, 200, 208


def bytes_sent() -> int | None:
    """Bytes this process has sent over its open TCP connections so far; None where the kernel
    does not tell.
    """
    if sys.platform != "linux":
        return None
    total, connections = 0, 0
    for name in os.listdir("/proc/self/fd"):
        try:
            if not os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):
                continue
            with socket.socket(fileno=os.dup(int(name))) as connection:
                if connection.type != socket.SOCK_STREAM or connection.family == socket.AF_UNIX:
                    continue
                info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
        except OSError:
            continue  # closed in the meantime, or not a TCP connection
        if len(info) >= _RETRANSMITTED + 8:
            # What a busy machine had to repeat (64 KB at a time) is not the operation's.
            total += struct.unpack_from("=Q", info, _SENT)[0]
            total -= struct.unpack_from("=Q", info, _RETRANSMITTED)[0]
        elif len(info) >= _ACKED + 8:
            total += struct.unpack_from("=Q", info, _ACKED)[0]
        else:
            return None
        connections += 1
    return total if connections else None
