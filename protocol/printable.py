"""What a stranger's text may show on a screen."""

import unicodedata

# Controls move the cursor, set titles and clipboards; the second group turns text around, hides or joins it.
_DANGEROUS = frozenset({"Cc", "Cf", "Cs", "Co", "Zl", "Zp"})


def printable(text: str) -> str:
    """Write controls, bidirectional marks and other invisible characters as escapes; line breaks and tabs stay.

    Names, reasons, cards and tokens come from strangers: a terminal must neither obey them nor be made to show
    another text than the one that was signed (Unicode Technical Report 36).
    """
    return "".join(_shown(letter) for letter in text) if not text.isprintable() else text


def _shown(letter: str) -> str:
    if letter in "\n\t" or unicodedata.category(letter) not in _DANGEROUS:
        return letter
    return letter.encode("unicode_escape").decode()
