"""Every setting is documented, readable from the environment, and refuses nonsense."""

from dataclasses import fields
from pathlib import Path

import pytest

from dovecote.config import Settings, read_settings
from dovecote.errors import Invalid

PAGE = Path(__file__).parents[2] / "docs/reference/settings.md"


def row(name: str) -> str:
    field = {f.name: f for f in fields(Settings)}[name]
    default = f"`{field.default}`" if field.default != "" else ""
    unit = field.metadata["unit"]
    return f"| `DOVECOTE_{name.upper()}` | {default} | {unit} | {field.metadata['help']} |"


@pytest.mark.parametrize("name", [f.name for f in fields(Settings)])
def test_the_page_has_each_setting_as_it_is(name: str) -> None:
    assert row(name) in PAGE.read_text().splitlines()


def test_the_page_has_no_setting_that_does_not_exist() -> None:
    rows = [line for line in PAGE.read_text().splitlines() if line.startswith("| `DOVECOTE_")]
    assert len(rows) == len(fields(Settings))


def test_values_come_from_the_environment() -> None:
    settings = read_settings({"DOVECOTE_PORT": "9000", "DOVECOTE_QUIET_AFTER": "2.5", "DOVECOTE_DATA_DIR": "/srv/d"})
    assert (settings.port, settings.quiet_after, settings.data_dir) == (9000, 2.5, Path("/srv/d"))


@pytest.mark.parametrize(
    "environ", [{"DOVECOTE_PORT": "many"}, {"DOVECOTE_PORT": "0"}, {"DOVECOTE_PROT": "1"}, {"DOVECOTE_TICK": "-1"}]
)
def test_nonsense_is_refused(environ: dict[str, str]) -> None:
    with pytest.raises(Invalid):
        read_settings(environ)


def test_installations_with_other_data_have_other_names() -> None:
    assert Settings(data_dir=Path("/a")).installation != Settings(data_dir=Path("/b")).installation
