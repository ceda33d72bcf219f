"""The failures a user can mend, each with the exit code that `vae-lab` ends with.

A wrong setting is a plain `ValueError` (exit code 2). The classes here are the other cases; `__main__` prints each of
them as one line on stderr, without a traceback.
"""


class DataError(RuntimeError):
    """The images are missing, unreadable or not what they should be."""

    exit_code = 3


class NumericsError(ArithmeticError):
    """The loss or a parameter became NaN or infinite."""

    exit_code = 4


class RunError(RuntimeError):
    """A run folder or a checkpoint cannot be written, read or resumed."""

    exit_code = 5


class OutOfMemoryError(RuntimeError):
    """A step needs more memory than the device has."""

    exit_code = 1


class SweepError(RuntimeError):
    """Not all jobs of a sweep were completed."""

    exit_code = 6


class Preempted(SystemExit):
    """The process was asked to stop by a signal; the exit code is 128 + the signal's number.

    A `SystemExit`, so that a sweep stops with it instead of going on to its next job.
    """

    code: int


def printable(text: object) -> str:
    """Text with what cannot be shown, such as a line break in the name of a file, as its escape."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in str(text))


def one_line(error: BaseException) -> str:
    """What an exception says, on one line; its name where it says nothing, or only a key."""
    said = str(error).partition("\nOriginal Traceback")[0]  # which torch adds to what a worker raised
    name, text = type(error).__name__, " ".join(said.split())
    return f"{name}: {text}" if text and isinstance(error, LookupError) else text or name
