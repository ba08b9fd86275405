"""The one error that a user's own input raises."""


class InputError(ValueError):
    """Something the user typed or gave cannot be used.

    The message is one line: what was expected, what was found, what to do. Entry points print it
    without a traceback and exit with code 2.
    """


def known(names) -> str:
    """`names`, sorted and joined, for the end of a message about an unknown one."""
    return ", ".join(sorted(str(name) for name in names)) or "none"


def first_few(items, limit: int = 5) -> str:
    """The first `limit` of `items` joined by commas, and how many more there are."""
    items = [str(item) for item in items]
    more = f" and {len(items) - limit} more" if len(items) > limit else ""
    return ", ".join(items[:limit]) + more
