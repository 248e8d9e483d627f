"""Which addresses are asked without the proxy of the environment: this machine's, and our own.

A proxy cannot reach this machine's own addresses, whatever `no_proxy` says. No Dagster.
"""

import ipaddress
import os


def is_own(host: str | None) -> bool:
    """Tells whether a host, as an address names it, is this machine itself."""
    if host is None or host == "localhost" or host.endswith(".localhost"):
        return host is not None
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def is_direct(host: str | None) -> bool:
    """Tells whether a host is asked without the proxy: it is this machine, or in `no_proxy`."""
    from requests.utils import should_bypass_proxies  # which imports much

    return is_own(host) or bool(should_bypass_proxies(f"http://{host}", no_proxy=None))


def reach_code_location_directly() -> None:
    """Keeps gRPC, here and in all children, away from proxies: it is spoken among our parts only.

    Dagster's client takes `http_proxy` for any TCP address; an empty `grpc_proxy` goes before it.
    """
    os.environ["grpc_proxy"] = ""  # noqa: SIM112 - gRPC knows it in small letters only
