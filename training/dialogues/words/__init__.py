"""Word lists, one file each: words between white space. Knows nothing of what they are for."""

from functools import cache
from pathlib import Path


@cache
def words(name: str) -> list[str]:
    """The list in `name`.txt beside this file."""
    return (Path(__file__).parent / f"{name}.txt").read_text().split()
