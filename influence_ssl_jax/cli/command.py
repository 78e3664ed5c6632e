"""What a sub-command is."""

from typing import Protocol

from rich.console import Console


class Command(Protocol):
    """A frozen dataclass whose fields are the options: its docstring is the help, the object is the configuration."""

    def run(self, out: Console) -> None:
        """Do it.

        Raises:
            InfluenceError: What was asked cannot be done; the message says why and what to do.
        """
        ...
