"""Who owns what in the hospitals' table: two have labels only, two or three masks only, one neither."""

from typing import Final

LABELLED: Final = ("kermany", "nih14")
MASKED: Final = ("jsrt", "shenzhen", "montgomery")
UNLABELLED: Final = ("cohen",)
EVERYONE: Final = (*LABELLED, *MASKED, *UNLABELLED)
