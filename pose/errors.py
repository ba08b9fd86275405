"""The errors that are the user's business, and the words that their messages share."""

from collections.abc import Iterable


class InputError(ValueError):
    """Something the user typed or gave cannot be used.

    The message is one line: what was expected, what was found, what to do. Entry points print it
    without a traceback and exit with code 2.
    """


class DivergedError(InputError):
    """A loss, a weight or a logit is no longer finite: these settings do not train."""

    # What a run's tag `stop_reason` says of it.
    stop_reason = "diverged"


class DiedError(InputError):
    """A process that trained a seed is gone, and nobody knows why."""

    stop_reason = "killed"


def known(names: Iterable[object]) -> str:
    """`names`, sorted and joined, for the end of a message about an unknown one."""
    return ", ".join(sorted(str(name) for name in names)) or "none"


def first_few(items: Iterable[object], limit: int = 5) -> str:
    """The first `limit` of `items` joined by commas, and how many more there are."""
    texts = [str(item) for item in items]
    more = f" and {len(texts) - limit} more" if len(texts) > limit else ""
    return ", ".join(texts[:limit]) + more


def one_line(error: BaseException, limit: int = 160) -> str:
    """What an error of another library says, on one line; its type where it says nothing."""
    return " ".join(str(error).split())[:limit] or type(error).__name__


def printable(text: str) -> str:
    """`text` on one line that any terminal can show.

    Control characters, line breaks and bytes that are not UTF-8 (a file's name may hold any) are
    written as escapes.
    """
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
