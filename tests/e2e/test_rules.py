"""What rules leave out is not stored; dependencies among it are back when the session is, with real npm and pip."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from dovecote.sdk import Dovecote, DovecoteError, Rules, Session, Start
from tests.e2e.installation import Installation, until

pytestmark = pytest.mark.e2e

# A project whose one dependency is a package that lies beside it, so that nothing is asked of a registry.
PROJECT = """
mkdir -p app/dep && cd app
echo '{"name": "dep", "version": "1.0.0", "main": "index.js"}' > dep/package.json
echo 'module.exports = "from the dependency"' > dep/index.js
npm pack ./dep --silent && rm -r dep
echo '{"name": "app", "version": "1.0.0", "dependencies": {"dep": "file:dep-1.0.0.tgz"}}' > package.json
npm install --offline --no-audit && echo 'important' > keep.txt && echo noise > build.log
"""
SERVER = "require('http').createServer((q, a) => a.end(require('dep') + '\\n')).listen(process.env.PORT, '0.0.0.0')"
USE = ["node", "-p", "require('/home/user/app/node_modules/dep')"]


@pytest.fixture(scope="module", autouse=True)
def function(installation: Installation) -> None:
    with installation.client() as client:
        client.functions.create("node", rules=Rules(["node_modules/", ".venv/"]))


@pytest.fixture
def project(dovecote: Dovecote) -> Iterator[Session]:
    with dovecote.sessions.create(function="node") as session:
        session.run(PROJECT, timeout=120, check=True)
        assert session.run(USE).stdout == "from the dependency\n"
        yield session


def test_npm_dependencies_are_back_when_the_session_is(installation: Installation, project: Session) -> None:
    project.park()
    view = project.wake()
    assert view.reinstall is not None
    assert (view.reinstall.state, view.reinstall.command) == ("done", "npm ci")
    assert view.reinstall.directories == ["/home/user/app/node_modules"]
    assert project.run(USE).stdout == "from the dependency\n"
    assert project.run("cat app/keep.txt").stdout == "important\n"
    assert (
        "reinstalling /home/user/app/node_modules: done npm ci"
        in installation.command("session", "show", project.id).stdout
    )


def test_a_failure_is_told_and_the_session_works(project: Session) -> None:
    project.run("rm app/dep-1.0.0.tgz; npm cache clean --force", check=True)
    project.park()
    view = project.wake()
    assert view.reinstall is not None
    assert view.reinstall.state == "failed"
    assert "dep-1.0.0.tgz" in view.reinstall.output
    assert project.run("cat app/keep.txt").stdout == "important\n"
    assert project.run(USE).exit_code == 1


def test_a_fork_and_a_rewind_install_too(project: Session) -> None:
    taken = project.snapshot()
    with project.fork(taken.id) as fork:
        assert fork.view.reinstall is not None
        assert fork.run(USE).stdout == "from the dependency\n"
    project.rewind(taken.id)
    assert project.run(USE).stdout == "from the dependency\n"


def test_an_app_has_its_dependencies_without_installing(dovecote: Dovecote, project: Session) -> None:
    project.files.write("app/server.js", SERVER)
    app = dovecote.apps.publish(project, name="left-out", start=Start("node server.js", 3000, "/home/user/app"))
    try:
        with dovecote.http_for(app.address) as web:
            assert web.get("/").text == "from the dependency\n"
    finally:
        dovecote.apps.unpublish("left-out")


def test_a_virtual_environment_is_made_again(dovecote: Dovecote) -> None:
    with dovecote.sessions.create(function="node") as session:
        session.run("mkdir p && cd p && touch requirements.txt && python3 -m venv --without-pip .venv", check=True)
        session.park()
        view = session.wake()
        assert view.reinstall is not None
        assert view.reinstall.state == "done", view.reinstall.output
        assert session.run("p/.venv/bin/python -c 'print(1)'").stdout == "1\n"


def test_an_ignore_file_counts_from_the_next_save_on_and_until_it_goes(dovecote: Dovecote) -> None:
    with dovecote.sessions.create() as session:
        session.run("mkdir app && echo 1 > app/a.log && echo 2 > app/b.txt && echo 3 > app/c.log", check=True)
        session.park()
        session.run("echo '*.log' > .dovecoteignore && echo '!c.log' > app/.dovecoteignore", check=True)
        session.run("echo 4 > app/d.log", check=True)
        until(lambda: session.lag().state == "saved", "it is saved while it runs")
        session.park()
        assert session.run("ls app").stdout.split() == ["b.txt", "c.log"]
        session.run("rm .dovecoteignore; echo 5 > app/d.log", check=True)
        session.park()
        assert session.run("cat app/b.txt app/c.log app/d.log").stdout == "2\n3\n5\n"


@pytest.mark.parametrize(
    "act",
    [
        "mkfifo .dovecoteignore",
        "ln -s /etc/passwd .dovecoteignore",
        "yes '*' | head -c 2M > .dovecoteignore",
        "yes '*a*a*a*a*a*a*a*a*a*a*b' | head -c 8000 > .dovecoteignore; touch $(printf 'a%.0s' $(seq 200))",
        "sudo sh -c 'mv /home/user /home/other; ln -s /etc /home/user; echo \"*\" > /etc/.dovecoteignore'",
    ],
)
def test_a_hostile_ignore_file_leaves_the_session_whole(dovecote: Dovecote, act: str) -> None:
    with dovecote.sessions.create() as session:
        session.run("echo kept > kept", check=True)
        session.run(act, cwd="/home/user", check=True)
        session.park()
        found = session.run("cat /home/user/kept /home/other/kept 2>/dev/null", cwd="/").stdout
        assert found == "kept\n"
        assert session.run("test -s /etc/passwd && test -x /bin/sh", cwd="/").exit_code == 0


def test_a_server_killed_while_it_installs_installs_again(installation: Installation) -> None:
    with installation.client() as client:
        rules = Rules(["node_modules/"], reinstall="touch begun; sleep 3; echo $$ >> done")
        client.functions.create("slow", rules=rules)
        session = client.sessions.create(function="slow")
        session.run("mkdir -p app/node_modules/x", check=True)
        session.park()

        def wake() -> None:
            with installation.client() as another:
                try:
                    another.sessions.get(session.id).wake()
                except DovecoteError:
                    return

        waking = threading.Thread(target=wake)
        waking.start()
        try:
            until(lambda: (found := session.refresh().reinstall) and found.state == "running", "it installs")
        finally:
            installation.kill()
            waking.join(60)
            installation.start()
        until(lambda: (found := session.refresh().reinstall) and found.state == "done", "it has installed again")

        assert session.run("wc -l < done").stdout.strip() == "2"
        session.delete()
