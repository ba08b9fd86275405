"""Which files are decoded, and to what."""

import dataclasses
from collections.abc import Sequence

from pose.data.shards import ImageFile
from pose_models.framing import Framing


@dataclasses.dataclass(frozen=True)
class Decoding:
    """Files, and what becomes of each when it is decoded.

    Attributes:
        files: `(N,)` in the order of the rows.
        framing: what an image is brought to.
        obey_exif: turn images as their metadata asks.
    """

    files: Sequence[ImageFile]
    framing: Framing
    obey_exif: bool

    @property
    def size(self) -> int:
        """The height and width S of a decoded image."""
        return self.framing.canvas

    @property
    def image_bytes(self) -> int:
        """Bytes of one decoded image."""
        return 3 * self.size**2

    @property
    def num_bytes(self) -> int:
        """Bytes of all of them."""
        return len(self.files) * self.image_bytes
