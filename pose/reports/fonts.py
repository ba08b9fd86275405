"""Names from data as text that the fonts of this machine can draw."""

from collections.abc import Iterable, Sequence

from matplotlib import font_manager
from matplotlib.ft2font import FT2Font

# matplotlib brings it: Latin, Greek, Cyrillic, Arabic, Hebrew and many symbols.
FIRST_FAMILY = "DejaVu Sans"


def drawable(names: Sequence[str]) -> tuple[list[str], list[str]]:
    """The names as they can be drawn, and the font families that draw them.

    Characters that no installed font has are replaced by their code points: `U+72D7`.
    """
    families = [FIRST_FAMILY]
    own = font_manager.findfont(FIRST_FAMILY, fallback_to_default=True)
    missing = set("".join(names)) - _characters(own)
    for path, family in _other_fonts():
        if not missing:
            break
        if found := missing & _characters(path):
            families.append(family)
            missing -= found
    return [_replaced(name, missing) for name in names], families


def _other_fonts() -> Iterable[tuple[str, str]]:
    """Path and family of the upright fonts that are installed, in a fixed order.

    Not matplotlib's last resort, which draws a box with a code point in it for every character.
    """
    entries = font_manager.fontManager.ttflist
    upright = {
        (entry.fname, entry.name)
        for entry in entries
        if entry.style == "normal"
        and entry.weight in (400, "normal")
        and not entry.name.startswith("Last Resort")
    }
    return sorted(upright)


def _characters(path: str) -> set[str]:
    """What a font draws; nothing where it cannot be read or holds pictures of a fixed size."""
    try:
        font = FT2Font(path)
        return set(map(chr, font.get_charmap())) if font.scalable else set()
    except (OSError, RuntimeError):
        return set()


def _replaced(name: str, missing: set[str]) -> str:
    return "".join(f"U+{ord(c):04X}" if c in missing else c for c in name)
