"""Servers that are asked: S3, and hosts that are asked without a proxy. No I/O."""

import ipaddress
from dataclasses import dataclass, field


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


@dataclass(frozen=True, slots=True)
class S3:
    """How an S3 server is reached.

    Attributes:
        key, secret: of the account (`AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`).
        token: of a session (`AWS_SESSION_TOKEN`); None for an account that lasts.
        region: where the bucket is (`AWS_REGION`).
        endpoint: the address of a server that is not Amazon's (`AWS_ENDPOINT_URL`); None for that.
    """

    key: str
    secret: str = field(repr=False)
    token: str | None = field(repr=False)
    region: str
    endpoint: str | None

    @property
    def environment(self) -> dict[str, str]:
        """The variables that say so."""
        values = {
            "AWS_ACCESS_KEY_ID": self.key,
            "AWS_SECRET_ACCESS_KEY": self.secret,
            "AWS_SESSION_TOKEN": self.token,
            "AWS_REGION": self.region,
            "AWS_ENDPOINT_URL": self.endpoint,
        }
        return {name: value for name, value in values.items() if value is not None}
