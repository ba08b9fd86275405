"""What a command says, remembered. Needs torch's side of the project alone."""

from pose.display import NoDisplay


class Said(NoDisplay):
    """A display that remembers what it was told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        """Remember it."""
        self.lines.append(text)

    @property
    def trials(self) -> list[str]:
        """The names of a plan's trials that are over, in order."""
        return [line.partition(":")[0] for line in self.lines if line.startswith("round_")]

    @property
    def text(self) -> str:
        """All of it, a line each."""
        return "".join(f"{line}\n" for line in self.lines)
