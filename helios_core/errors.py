"""The one exception type that carries a message meant for the user."""


class HeliosError(ValueError):
    """Bad input, in one sentence: names the input, its value and the remedy.

    Raised before any sampling starts wherever the fault can be known by then (DESIGN section 7).
    """
