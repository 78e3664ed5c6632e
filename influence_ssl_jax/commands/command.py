"""What a sub-command is."""

import abc

from rich.console import Console


class Command(abc.ABC):
    """A frozen dataclass whose fields are the options: its docstring is the help, the object is the configuration."""

    @abc.abstractmethod
    def run(self, console: Console) -> None:
        """Do it.

        Raises:
            InfluenceError: What was asked cannot be done; the message says why and what to do.
        """
