"""Run as a script of its own: say what a file is, or why it is refused. Imports h5py and the standard library only.

It is started with ``python -E -P look.py FILE UNPACKED LIMITS``, so that a refusal takes well under two seconds, and answers
with one line of JSON. Its memory, time, file size and network are limited before it opens the file.
"""

import contextlib
import ctypes
import json
import os
import resource
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))


def confine(limits: dict[str, Any]) -> None:
    """Give up memory, time, file size and the network."""
    for name, value in (
        (resource.RLIMIT_AS, limits["memory"]),
        (resource.RLIMIT_CPU, limits["seconds"]),
        (resource.RLIMIT_FSIZE, limits["expanded"]),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NPROC, None),
    ):
        if value is not None:
            with contextlib.suppress(ValueError, OSError):
                resource.setrlimit(name, (value, value))
    with contextlib.suppress(OSError, AttributeError):
        # A network of its own without any interface; where the kernel refuses, the reader still opens no socket.
        user, network = 0x10000000, 0x40000000
        ctypes.CDLL(None, use_errno=True).unshare(network if os.geteuid() == 0 else user | network)
    os.environ["HDF5_PLUGIN_PATH"] = "/nonexistent"


def main() -> None:
    """Look at the file that the arguments name."""
    from formats import Refused, look_at

    path, unpacked, limits = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
    confine(limits)
    try:
        answer = {"ok": True, **look_at(path, unpacked, limits)}
    except Refused as refused:
        answer = {"ok": False, "message": str(refused), "fix": refused.fix}
    except MemoryError:
        answer = {
            "ok": False,
            "message": "reading the file takes more memory than is allowed",
            "fix": "send fewer cells.",
        }
    except Exception as error:  # noqa: BLE001 - whatever a hostile file provokes is a refusal
        answer = {
            "ok": False,
            "message": f"the file cannot be read ({type(error).__name__})",
            "fix": "write it again, for example with adata.write_h5ad.",
        }
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
