"""``python -m scdrugmap.web.alive``: exit status 0 while the worker of this machine is heard of."""

from __future__ import annotations

import sys
import time

from scdrugmap.web.config import ServerSettings

#: A worker that has not touched its file for so long does not take work.
SILENCE = 30.0


def main() -> int:
    """Look at the file that the worker touches."""
    file = ServerSettings().folder("cache") / beat_name()  # type: ignore[call-arg]
    return 0 if file.exists() and time.time() - file.stat().st_mtime < SILENCE else 1


def beat_name() -> str:
    """Name of the file of the workers of this machine."""
    import socket

    return f"worker-{socket.gethostname()}"


if __name__ == "__main__":
    sys.exit(main())
