"""Names that users give to runs, which become folder names."""

import re

from vae_lab.secrets import redact

MAX_BYTES = 100
_ALLOWED = re.compile(r"[^\W_][\w.,+=@ -]*")


def folder_name(name: object, otherwise: str, key: str = "run_name") -> str:
    """The part of a run folder's name that says what it is.

    Args:
        name: what the user called the run, or None.
        otherwise: what to call it then; group options in sub-folders bring slashes.
        key: under which the name was given, for messages.

    Raises:
        ValueError: if the name could lead out of its folder, or is not fit for a file system.
    """
    if name is None:
        return re.sub(r"[^\w.,+=@-]", "-", otherwise).lstrip(".-")
    text = str(name)
    if not _ALLOWED.fullmatch(text) or len(text.encode()) > MAX_BYTES:
        raise ValueError(
            f"{key} must begin with a letter or digit, go on with those, spaces and _.,+=@- only, "
            f"and have at most {MAX_BYTES} bytes, got {text[:200]!r}"
        )
    if redact(text) != text:
        raise ValueError(f"{key} holds a secret, and would be the name of a folder")
    return text
