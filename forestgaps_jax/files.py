"""Small files that are whole at every moment, whoever is killed while they are written."""

from pathlib import Path


def write_whole(path: str | Path, text: str) -> None:
    """Write a text beside where it belongs, and move it there."""
    path = Path(path)
    new = path.with_name(f".{path.name}.new")
    new.write_text(text, encoding="utf-8")
    new.replace(path)
