"""structlog without rich, which it draws tracebacks with wherever it finds it.

A daemon draws nothing, and rich with what comes along are 3 of the 70 MB that it may take at rest.
Commands, which use rich, are not kept from it.
"""

from __future__ import annotations

import sys

__all__ = ["structlog"]

_HIDDEN = "rich" not in sys.modules
if _HIDDEN:
    # None means that there is none.
    sys.modules["rich"] = None  # type: ignore[assignment]
try:
    import structlog
finally:
    if _HIDDEN:
        del sys.modules["rich"]
