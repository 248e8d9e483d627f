"""Which requests a web server of ours answers: by `Host`, `Origin` and `Sec-Fetch-Site`.

A browser that can reach a server does so for any page that it shows. So each request is asked where
it comes from. Programs send neither `Origin` nor `Sec-Fetch-Site`, and are let through.
"""

from collections.abc import Collection, Mapping

from starlette.datastructures import Headers
from starlette.types import Scope

LOOPBACK = "127.0.0.1"
"""Where our web servers listen unless they are told otherwise."""

_LOCAL_NAMES = ("localhost", LOOPBACK, "[::1]")
_ANY_ADDRESS = ("0.0.0.0", "::")
_SCHEMES = ("http", "https")
_OWN_SITES = {"same-origin", "none"}  # none: typed, or a bookmark
_SHOWN = 100  # characters of what somebody else has written


def own_names(host: str, port: int, names: Collection[str]) -> dict[str, Collection[str]]:
    """With what the origin of a page of ours begins, by the `Host` that is asked.

    Args:
        host: the address on which the server listens.
        port: where it listens.
        names: other names by which it is called, with the port where browsers send it: what a proxy
            in front of it is called, or this machine on its network.
    """
    address = f"[{host}]" if ":" in host else host.lower()
    own = {*_LOCAL_NAMES} if host in _ANY_ADDRESS else {*_LOCAL_NAMES, address}
    hosts = {f"{name}:{port}" for name in own} | (own if port == 80 else set())
    schemes: dict[str, Collection[str]] = {host: ("http",) for host in hosts}
    # A proxy that is called by one of the other names may speak https with browsers.
    return schemes | dict.fromkeys(names, _SCHEMES)


def refusal(
    scope: Scope,
    schemes: Mapping[str, Collection[str]],
    *,
    origins: Collection[str] = (),
    takes_links: bool = True,
) -> tuple[int, str] | None:
    """The status and the line with which a request is refused; None when it is not.

    Refused are a `Host` that is not this server (421): a page whose name was made to point to this
    machine; an `Origin` that is not this server (403): any other page; and what a browser sends for
    another page, by `Sec-Fetch-Site` (403), but for a link that is followed: images, scripts and
    forms send no `Origin` with GET.

    Args:
        scope: the request, of HTTP or of a websocket.
        schemes: from `own_names`.
        origins: of other pages that may ask.
        takes_links: whether a link of another page may lead here.
    """
    headers = Headers(scope=scope)
    asked = f"{scope.get('method', 'websocket')} {shown(scope['path'])}"
    names = [name.lower() for name in headers.getlist("host")]
    if len(names) != 1 or names[0] not in schemes:
        hosts = ", ".join(map(shown, names)) or "none"
        return 421, f"{asked}: Host is {hosts}; this server is {', '.join(sorted(schemes))}"
    said = headers.getlist("origin")
    if len(said) == 1 and said[0].lower() in origins:
        return None
    for origin in said:
        # Not any of our names: at [::1] another program may listen on the same port.
        if origin.lower() not in [f"{scheme}://{names[0]}" for scheme in schemes[names[0]]]:
            return 403, f"{asked}: Origin is {shown(origin)}; only pages of this server may ask"
    sites = {site.strip().lower() for site in headers.getlist("sec-fetch-site")}
    if not sites <= _OWN_SITES and not (takes_links and _is_link(scope, headers)):
        found = ", ".join(map(shown, sorted(sites)))
        return 403, f"{asked}: Sec-Fetch-Site is {found}; only pages of this server may ask"
    return None


def _is_link(scope: Scope, headers: Headers) -> bool:
    """Whether a person follows a link to a page here, which opens in a tab of its own."""
    return (
        scope.get("method") == "GET"
        and headers.getlist("sec-fetch-mode") == ["navigate"]
        and headers.getlist("sec-fetch-dest") == ["document"]
        and "sec-purpose" not in headers  # a browser that fetches ahead what nobody has clicked
    )


def shown(text: str) -> str:
    """Somebody else's words for a log: one line, ASCII, not long."""
    return ascii(text[:_SHOWN])
