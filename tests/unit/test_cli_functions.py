"""What is said to `dovecote function` and `dovecote invocation`, as it reaches the server."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer

from dovecote.cli.deploying import Wanted, read_project
from dovecote.cli.options import Said, with_options
from tests.unit.test_cli import dovecote


def said(*words: str) -> Wanted:
    """What a command that has the options hears."""
    heard: list[Wanted] = []
    app = typer.Typer()

    @app.command()
    @with_options
    def command(*, wanted: Wanted) -> None:
        heard.append(wanted)

    app(list(words), standalone_mode=False)
    return heard[0]


def test_each_option_is_heard() -> None:
    words = (
        *("--start", "serve", "--port", "80", "--template", "base", "--affinity", "header, cookie", "--header", "x-a"),
        *("--sessions", "2", "--requests", "3", "--instances", "4", "--ttl", "5", "--idle-after", "6"),
        *("--env", "A=1", "-e", "B=2=3", "--public", "--spec", "nano", "--level", "crun", "--no-internet"),
    )
    assert said(*words) == Wanted(
        start="serve",
        port=80,
        template="base",
        affinity={"modes": ["header", "cookie"], "header": "x-a", "ttl": 5.0, "idle_after": 6.0},
        sharing={"sessions": 2, "requests": 3, "instances": 4},
        env={"A": "1", "B": "2=3"},
        public=True,
        spec="nano",
        level="crun",
        internet=False,
    )
    assert len(Said.__annotations__) == 15


def test_what_is_not_said_is_nothing() -> None:
    assert said() == Wanted()


def test_options_go_over_what_is_written_down(tmp_path: Path) -> None:
    (tmp_path / "dovecote.toml").write_text(
        'name = "a"\nport = 1\n[env]\nA = "1"\n[affinity]\nttl = 60\nheader = "x-a"\n'
    )
    wanted = read_project(tmp_path).over(**vars(said("--port", "2", "--env", "B=2", "--ttl", "5")))
    assert (wanted.name, wanted.port, wanted.env) == ("a", 2, {"A": "1", "B": "2"})
    assert wanted.affinity == {"ttl": 5.0, "header": "x-a"}


@pytest.mark.parametrize(
    "words",
    [
        ("invocation", "create", "work", "--data", "@/nowhere"),
        ("invocation", "create", "work", "--header", "nothing"),
        ("invocation", "secret", "--overlap", "5"),
        ("function", "call", "work", "--data", "@/nowhere"),
        ("function", "update", "work", "--env", "nothing"),
    ],
)
def test_what_cannot_be_said_is_one_line(
    words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DOVECOTE_API_KEY", "dvc_none")
    assert dovecote(*words) == 2
    assert "Traceback" not in capsys.readouterr().err
