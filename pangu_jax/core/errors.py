"""The one exception that bad input raises."""


class InputError(ValueError):
    """What the user gave cannot be used; the message is one sentence that says what and why.

    The message names the file, field or tensor, what was found and what would be accepted.
    The command line prints it and exits with status 2; no traceback is shown.
    """
