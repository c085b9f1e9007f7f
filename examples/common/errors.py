"""The one exception a user is meant to read."""


class InputError(Exception):
    """What the user gave can't be used; the message is one sentence that says what to do."""
