"""The one kind of error that a user can mend."""


class UserError(Exception):
    """Wrong input from outside. Its message is one line: what is wrong, where, and what to do."""
