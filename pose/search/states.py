"""Where candidates got to: files from which later rounds, and the first member, go on."""

from pathlib import Path

from pose.errors import InputError
from pose.files import ANY_SIZE, atomic_path, read_bytes, reason_of
from pose.seeds.folder import check_seal


class States:
    """The states of candidates, in the folder of a plan.

    Args:
        folder: it need not exist.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def path(self, candidate: int, number: int) -> Path:
        """The file of a candidate after a round; both are numbers from 0."""
        return self._folder / f"round_{number + 1}_candidate_{candidate + 1}.pth"

    def find(self, candidate: int, number: int) -> bytes | None:
        """What was kept, as `checkpoint_bytes` has it; None where nothing was.

        Raises:
            InputError: it is damaged.
        """
        path = self.path(candidate, number)
        if not path.exists():
            return None
        try:
            data = read_bytes(path, ANY_SIZE)
        except OSError as error:
            raise InputError(f"{path} must be readable, found: {reason_of(error)}") from error
        check_seal(data, str(path))
        return data

    def keep(self, candidate: int, number: int, state: bytes) -> None:
        """Keep where a candidate got to in a round.

        Raises:
            InputError: it cannot be written.
        """
        with atomic_path(self.path(candidate, number)) as partial:
            partial.write_bytes(state)

    def forget(self, but: Path | None = None) -> None:
        """Remove all files, except one."""
        for path in self._folder.glob("round_*_candidate_*.pth"):
            if path != but:
                path.unlink(missing_ok=True)
