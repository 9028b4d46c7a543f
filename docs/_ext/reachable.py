"""Inventories of other projects' documentation, as far as they can be read."""

from __future__ import annotations

import logging
import urllib.error
import urllib.request

logger = logging.getLogger(__name__)
_SECONDS = 5


def inventories(addresses: dict[str, str]) -> dict[str, tuple[str, None]]:
    """Return intersphinx's mapping of the addresses that answer.

    Without a network there are none: names of other packages are then text in place of links, and the
    build has the same pages and no warning. After the first that cannot be reached no other is asked.
    """
    found: dict[str, tuple[str, None]] = {}
    for name, address in addresses.items():
        request = urllib.request.Request(f"{address}objects.inv", method="HEAD")
        request.add_header("User-Agent", "sphinx")
        try:
            urllib.request.urlopen(request, timeout=_SECONDS).close()
        except urllib.error.HTTPError as error:
            logger.info("%s answers %d: not linked.", address, error.code)
            continue
        except (TimeoutError, OSError):
            logger.info("%s cannot be reached: other packages are not linked.", address)
            return found
        found[name] = (address, None)
    return found
