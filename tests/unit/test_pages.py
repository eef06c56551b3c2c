"""Pages lead where they say: each relative link is a file, each fragment a heading, and the index has all pages."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
LINK = re.compile(r"(?<!!)\[[^\]\[]+\]\(([^()\s]+)\)|^\[[^\]]+\]:\s*(\S+)", re.MULTILINE)
CODE = re.compile(r"```.*?```|`[^`\n]*`", re.DOTALL)


def pages() -> list[Path]:
    return sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md")])


def links(page: Path) -> list[str]:
    found = (match[1] or match[2] for match in LINK.finditer(CODE.sub("", page.read_text("utf-8"))))
    return [link for link in found if not re.match(r"[a-z]+:", link)]


def fragments(page: Path) -> set[str]:
    """As forges make them: in small letters, hyphens for spaces, without punctuation."""
    headings = re.findall(r"^#+ (.+)$", page.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def lost(page: Path) -> list[str]:
    broken = []
    for link in links(page):
        path, _, fragment = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.is_relative_to(ROOT) or not target.exists() or (fragment and fragment not in fragments(target)):
            broken.append(link)
    return broken


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_each_relative_link_leads_to_a_file(page: Path) -> None:
    assert lost(page) == []


def test_a_link_to_nothing_is_found(tmp_path: Path) -> None:
    """The check itself finds what it is there for."""
    page = DOCS / "README.md"
    assert len(links(page)) > 10
    broken = tmp_path / "broken.md"
    broken.write_text("[a](no-such.md) and [b](https://example.org/x.md) and `[c](code.md)`\n")
    assert lost(broken) == ["no-such.md"]


def test_the_index_has_each_page_in_the_order_of_its_kinds() -> None:
    listed = [(DOCS / link).resolve() for link in links(DOCS / "README.md")]
    pages_below = {page.resolve() for page in DOCS.rglob("*.md")} - {(DOCS / "README.md").resolve()}
    decisions = {page for page in pages_below if page.parent.name == "decisions" and page.name != "README.md"}
    assert pages_below - decisions <= set(listed)
    assert set(listed) & decisions == set()  # the decisions have an index of their own
    kinds = [page.parent.name for page in listed if page.parent != DOCS.resolve() and page.is_relative_to(DOCS)]
    order = list(dict.fromkeys(kinds))
    assert order == ["tutorial", "how-to", "reference", "explanation", "decisions"]
    assert kinds == sorted(kinds, key=order.index)


def test_the_decisions_are_all_in_their_index() -> None:
    folder = DOCS / "decisions"
    listed = {(folder / link).name for link in links(folder / "README.md")}
    assert listed == {page.name for page in folder.glob("[0-9]*.md")}


def test_the_readme_leads_to_the_index() -> None:
    assert "docs/README.md" in links(ROOT / "README.md")


def test_the_unit_of_the_page_about_operation_is_one_that_systemd_reads() -> None:
    page = (DOCS / "how-to/operate.md").read_text("utf-8")
    (unit,) = re.findall(r"```ini\n(.*?)```", page, re.DOTALL)
    assert re.findall(r"^\[(\w+)\]$", unit, re.MULTILINE) == ["Unit", "Service", "Install"]
    assert "\nKillMode=process\n" in unit
    assert re.search(r"^LimitNOFILE=\d{6,}$", unit, re.MULTILINE)
