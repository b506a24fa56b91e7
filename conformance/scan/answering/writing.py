"""Files replaced in one step: whoever reads them finds the old content or the new, never a part."""

from __future__ import annotations

import os
import secrets
from contextlib import suppress


def replace_file(path: str, content: bytes, *, existing: bool = False) -> None:
    """Write a file in one step, through links; raises OSError.

    A file that was there keeps its permissions, a new one gets those that the umask leaves;
    ``existing`` says that it has to be there.
    """
    target = os.path.realpath(path)
    if existing:
        os.stat(target)
    name = f"{target}.{secrets.token_hex(6)}.tmp"
    handle = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
        with suppress(FileNotFoundError):
            os.chmod(name, os.stat(target).st_mode & 0o7777)
        os.replace(name, target)
    except OSError:
        with suppress(OSError):
            os.unlink(name)
        raise
