"""Errors that end a command."""


class BadInput(Exception):
    """Input that cannot be used: says where it stands, what was found, the rule and the fix.

    The command line prints it and exits with status 2; nothing has been written by then.
    """

    def __init__(self, where: object, key: str, value: object, rule: str, fix: str) -> None:
        self.where, self.key, self.value, self.rule, self.fix = str(where), key, value, rule, fix
        super().__init__(str(self))

    def __reduce__(self) -> tuple[type, tuple[object, ...]]:
        return BadInput, (self.where, self.key, self.value, self.rule, self.fix)  # it comes from other processes, too

    def __str__(self) -> str:
        shown = repr(self.value)
        shown = shown if len(shown) <= 200 else shown[:197] + "..."
        return f"{self.where}: {self.key}\n  found: {shown}\n  rule:  {self.rule}\n  fix:   {self.fix}"


class BaseNotScored(Exception):
    """The base cannot be loaded or scored, so no trial can be compared with it: exit status 1."""


class Alarmed(Exception):
    """A full run got worse than it may; its state is saved: exit status 3."""


class Stopped(BaseException):
    """A signal ended a search or a full run: status 128 + signal. Not an `Exception`, so that no library keeps it."""

    def __init__(self, signal: int) -> None:
        self.signal = signal
        super().__init__(signal)
