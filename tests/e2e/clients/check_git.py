"""The Python client's own calls of git: a repository made, changed, pushed and pulled, all inside."""

from __future__ import annotations

import inspect
from uuid import uuid4

import pytest
from e2b import Sandbox


def given(method: object, **options: object) -> dict[str, object]:
    """Those of them that this version of the client has."""
    known = inspect.signature(method).parameters  # type: ignore[arg-type]
    return {name: value for name, value in options.items() if name in known}


@pytest.fixture(autouse=True)
def _has_git(sandbox: Sandbox) -> None:
    if not hasattr(sandbox, "git"):
        pytest.skip("this version has none")


@pytest.fixture
def place(sandbox: Sandbox) -> str:
    where = f"/home/user/git-{uuid4().hex}"
    sandbox.files.make_dir(where)
    sandbox.git.configure_user("Somebody", "somebody@example.com")
    return where


def test_a_repository_is_pushed_cloned_and_pulled(sandbox: Sandbox, place: str) -> None:
    git, bare, mine, theirs = sandbox.git, f"{place}/bare", f"{place}/mine", f"{place}/theirs"
    git.init(bare, bare=True, initial_branch="main")
    git.init(mine, initial_branch="main")
    sandbox.files.write(f"{mine}/note", "one")
    assert git.status(mine).has_untracked
    git.add(mine)
    git.commit(mine, "first", author_name="Author", author_email="author@example.com")
    assert git.status(mine).is_clean
    git.remote_add(mine, "origin", bare)
    assert git.remote_get(mine, "origin") == bare
    assert git.remote_get(mine, "nowhere") is None
    git.push(mine, remote="origin", branch="main", set_upstream=True)
    git.clone(bare, path=theirs, branch="main")
    assert sandbox.files.read(f"{theirs}/note") == "one"
    log = sandbox.commands.run("git log --format=%an/%ae/%s", cwd=theirs).stdout
    assert log == "Author/author@example.com/first\n"
    sandbox.files.write(f"{mine}/note", "two")
    git.add(mine, files=["note"])
    git.commit(mine, "second")
    git.push(mine, remote="origin", branch="main")
    git.pull(theirs, remote="origin", branch="main")
    assert sandbox.files.read(f"{theirs}/note") == "two"


def test_branches_and_changes_are_made_and_taken_back(sandbox: Sandbox, place: str) -> None:
    git = sandbox.git
    git.init(place, initial_branch="main")
    git.commit(place, "empty", allow_empty=True)
    git.create_branch(place, "work")
    assert git.branches(place).current_branch == "work"
    git.checkout_branch(place, "main")
    assert sorted(git.branches(place).branches) == ["main", "work"]
    git.delete_branch(place, "work", force=True)
    assert git.branches(place).branches == ["main"]
    sandbox.files.write(f"{place}/note", "one")
    git.add(place)
    git.reset(place)
    assert git.status(place).staged_count == 0
    git.add(place)
    git.commit(place, "note")
    sandbox.files.write(f"{place}/note", "two")
    git.restore(place, ["note"])
    assert sandbox.files.read(f"{place}/note") == "one"


def test_its_configuration_and_credentials_are_kept(sandbox: Sandbox, place: str) -> None:
    git = sandbox.git
    git.init(place)
    git.set_config("pull.rebase", "true", scope="local", path=place)
    assert git.get_config("pull.rebase", scope="local", path=place) == "true"
    assert git.get_config("no.such", scope="local", path=place) is None
    assert git.get_config("user.name") == "Somebody"
    git.dangerously_authenticate("me", "secret", host="git.example.com")
    asked = sandbox.commands.run("printf 'protocol=https\\nhost=git.example.com\\n\\n' | git credential fill").stdout
    assert "username=me\npassword=secret\n" in asked


def test_what_git_says_is_told(sandbox: Sandbox, place: str) -> None:
    with pytest.raises(Exception, match=r"not a git repository|exit"):
        sandbox.git.status(place)
    with pytest.raises(Exception, match=r"(?i)does not exist|not found|exit"):
        sandbox.git.clone(f"{place}/nothing", path=f"{place}/copy")
