"""Ready-made profiles: the worlds devices live in, each as the keys it changes from the defaults.

An operator names one with ``base = "ldevid"`` and adds or overrides keys; `estd.ca.profile_reader` reads the result
like any other profile. A world is one module here and one line in `READY`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from estd.ca.ecosystems import ieee8021ar

READY: Final[Mapping[str, Mapping[str, object]]] = {
    "ldevid": ieee8021ar.LDEVID,
}
"""Name of the base → the keys it sets."""
