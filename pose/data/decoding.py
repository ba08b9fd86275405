"""Which files are decoded, and to what."""

import dataclasses
import hashlib
from collections.abc import Sequence

import numpy as np

from pose.data.shards import ImageFile, read_file
from pose.files import reason_of
from pose_models.decode import BadImageError, read_image
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


def decode_file(
    file: ImageFile, decodings: Sequence[tuple[Framing, bool]]
) -> tuple[str, list[np.ndarray], str]:
    """One file decoded in several ways.

    Args:
        decodings: framing, and whether the image is turned as its metadata asks.

    Returns:
        SHA-256 of its bytes, pixels `(3, S, S)` uint8 of each way, and why it cannot be decoded;
        what cannot be had is empty.
    """
    digest = ""
    try:
        data = read_file(file)
        digest = hashlib.sha256(data).hexdigest()
        return digest, [read_image(data, framing, exif) for framing, exif in decodings], ""
    except (BadImageError, OSError) as error:
        return digest, [], reason_of(error) if isinstance(error, OSError) else str(error)
