"""The one exception type that carries a message meant for the user, and what messages quote."""

from __future__ import annotations


class HeliosError(ValueError):
    """Bad input, in one sentence: names the input, its value and the remedy.

    Raised before any sampling starts wherever the fault can be known by then.
    """


def shortened(value: object, limit: int = 80) -> str:
    """A value as a message quotes it: its repr, on one line, of at most ``limit`` characters and three dots."""
    if isinstance(value, str | bytes) and len(value) > limit:
        return f"{value[:limit]!r}..."
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # more digits than Python writes, or deeper than it follows
        return f"a {type(value).__name__} too long to show"
    text = " ".join(text.splitlines())
    return text if len(text) <= limit else f"{text[:limit]}..."


def reason(error: BaseException, limit: int = 200) -> str:
    """What a library's exception says, for the parentheses of a sentence: one printable line, of ``limit`` at most.

    What Python itself says of a wrong type or a missing part tells a user nothing, and is not quoted.
    """
    if isinstance(error, TypeError | AttributeError | LookupError | RecursionError):
        return "unexpected content"
    lines = str(error).strip().splitlines()
    text = "".join(letter for letter in (lines[0] if lines else "") if letter.isprintable()).strip().rstrip(".:")
    return (text[:limit] + "..." if len(text) > limit else text) or type(error).__name__
