"""Where a process listens. This imports next to nothing, since NATS' probe needs it every few seconds."""

from pathlib import Path

# All addresses of the pod. That of IPv6 takes IPv4 too; where the kernel has no IPv6, it cannot be listened on.
EVERYWHERE = "[::]" if Path("/proc/net/if_inet6").exists() else "0.0.0.0"  # noqa: S104 - what a pod's server is for


def socket_address(listen: str) -> tuple[str, int]:
    """Host and port of a listening address, the host without the brackets that an address of IPv6 has there."""
    host, _, port = listen.rpartition(":")
    return host.strip("[]"), int(port)
