"""README.md is short, links lead somewhere, and nobody is told to install what nobody has published."""

import re
import subprocess
from pathlib import Path

import pytest

from tests.docs.pages import PAGES, ROOT, blocks

LINK = re.compile(r"\]\(((?!https?:)[^)#]*)(?:#([^)]*))?\)")


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().split()) <= 1000


def _anchors(page: Path) -> set[str]:
    """The names that GitHub gives to the headings of a page."""
    text = page.read_text()
    for block in blocks():
        if block.page == page:
            text = text.replace(block.text, "")
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for name, anchor in LINK.findall(page.read_text()):
        target = page.parent / name if name else page
        assert target.exists(), name
        assert not anchor or anchor in _anchors(target), f"{name}#{anchor}"


def test_the_readme_leads_to_every_page() -> None:
    linked = {ROOT / name for name, _ in LINK.findall((ROOT / "README.md").read_text())}
    assert set(PAGES[1:]) <= linked


def test_nobody_is_told_to_install_overtone_from_an_index() -> None:
    """Nobody has published it in one: a checkout is what works."""
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    names = [name for name in tracked.splitlines() if name.endswith((".md", ".py", ".sh", ".toml", ".yaml"))]
    names = [name for name in names if not name.startswith("tests/") and (ROOT / name).exists()]
    assert len(names) > 100
    told = re.compile(r"pip install [^\n#]*\bovertone\b")
    assert not [name for name in names if told.search((ROOT / name).read_text())]
