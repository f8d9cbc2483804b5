"""The pages for people, README.md and docs/*.md, and their fenced blocks."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["PAGES", "ROOT", "Block", "blocks", "command_lines"]

ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))


@dataclass(frozen=True)
class Block:
    """What stands between two fences."""

    page: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def _read(page: Path) -> Iterator[Block]:
    opened, lines = None, []
    for number, line in enumerate(page.read_text().splitlines(), 1):
        fence = re.match(r"\s*(?:```+|~~~+)(.*)$", line)
        if fence is None:
            lines.append(line)
        elif opened is None:
            opened, lines = (number, fence[1].strip()), []
        else:
            assert fence[1] == "", f"{page.name}:{number} opens a block within another"
            yield Block(page, *opened, "\n".join(lines) + "\n")
            opened = None
    assert opened is None, f"{page.name}: the last block is not closed"


def blocks(language: str | None = None) -> list[Block]:
    """Return the blocks of all pages, or those in one language."""
    return [block for page in PAGES for block in _read(page) if language in (None, block.language)]


def command_lines(text: str) -> list[list[str]]:
    """Return the words of each command in a shell block, without comments."""
    lines = [shlex.split(line, comments=True) for line in text.replace("\\\n", " ").splitlines()]
    return [words for words in lines if words]
