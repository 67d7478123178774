"""Does a registry take this user name and password? Asked at its base address, for no repository in particular.

Follows the registry's own challenge as a pull does: Basic, or a token from its token service. It remembers nothing, stores
nothing, and never tells the password to anybody but the registry and the token service that it names.
"""

from __future__ import annotations

import time

from catalog.config import Location
from catalog.credential import Credential
from catalog.limits import Limits
from catalog.registry import Registry
from catalog.registry_auth import Refused

ATTEMPTS = 2  # somebody waits at a terminal
TIMEOUT = 10.0  # seconds


class LoginRefused(Exception):
    """The registry does not take the credential; the text says which registry and for whom."""


def try_login(location: Location, credential: Credential) -> None:
    """Returns when the registry takes the credential, or asks for none. Raises LoginRefused; PullFailed when it cannot
    be asked.
    """
    registry = Registry(
        name=location.name,
        url=location.url,
        repository="",
        credential=credential,
        ca=location.sslcacert,
        proxy=location.proxy,
        limits=Limits(attempts=ATTEMPTS, timeout=TIMEOUT),
        pause=time.sleep,
        note=lambda _: None,
    )
    try:
        registry.enter()
    except Refused as error:
        raise LoginRefused(
            f"registry {location.name} does not accept the user name {credential.user} with this password"
        ) from error
    finally:
        registry.close()
