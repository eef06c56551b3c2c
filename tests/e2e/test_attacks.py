"""Root inside a sandbox, and a stranger with a key of his own, get nothing of another tenant."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from blake3 import blake3

from dovecote.model.ids import new_id
from dovecote.sdk import Dovecote, Mount, Session
from tests.e2e.installation import Installation

pytestmark = pytest.mark.e2e

PROGRAM = Path(__file__).with_name("forger.py").read_bytes()
SECRET = b"what only the other tenant knows, " * 4000
LOOK = (
    "cd /srv && find . -printf '%p %y %m %U:%G %T@ %l\\0' | sort -z | md5sum;"
    " find . -type f -print0 | sort -z | xargs -0 md5sum | md5sum"
)


@pytest.fixture(scope="module")
def own(installation: Installation) -> Installation:
    return installation


@pytest.fixture(scope="module")
def victim(own: Installation) -> Iterator[Dovecote]:
    with own.client() as client:
        yield client


@pytest.fixture(scope="module")
def stranger(own: Installation) -> Iterator[Dovecote]:
    done = own.command("tenant", "create", "stranger")
    assert done.returncode == 0, done.stderr
    with own.client(api_key=done.stdout.split()[-1]) as client:
        yield client


@pytest.fixture(scope="module")
def secret(victim: Dovecote) -> Iterator[Session]:
    """A session whose content is in the store and in this host's cache, and that runs."""
    with victim.sessions.create(key="secret") as session:
        session.files.write("secret", SECRET)
        session.park()
        assert session.files.read("secret") == SECRET
        yield session


def forger(session: Session, *words: str) -> str:
    session.files.write("/run/forger.py", PROGRAM, user="root")
    return session.run(["python3", "/run/forger.py", *words], user="root", check=True).stdout


def restored(session: Session) -> None:
    assert session.park().state == "parked"
    assert session.wake().state == "ready"


def test_forged_overlay_attributes_and_devices_lead_to_nobody_elses_object(
    own: Installation, secret: Session, stranger: Dovecote
) -> None:
    digest = blake3(SECRET).hexdigest()
    objects = own.settings.data_dir / "trees" / "objects"
    assert (objects / digest[:2] / digest[2:]).is_file(), "the content to be stolen lies where a redirect would find it"
    with stranger.sessions.create() as session:
        session.save()
        results = json.loads(forger(session, "forge", "/srv/forged", digest, str(len(SECRET))))
        allowed = {what for what, result in results.items() if result == "done"}
        assert not {what for what in allowed if what.startswith(("trusted.", "security."))}
        assert not {what for what in allowed if what.startswith(("device", "rename", "id", "handle"))}
        session.save()  # a save of the whole upper was first, this is one of changes
        before = session.run(LOOK, user="root", check=True).stdout
        restored(session)
        assert session.run(LOOK, user="root", check=True).stdout == before
        found = session.run("grep -rl 'only the other tenant' /srv /home", user="root")
        assert found.stdout == ""
        assert session.run("cat '/srv/forged/user.overlay.dir/child'", user="root").stdout == "mine"
        assert session.run("tr -d '\\0' < /srv/forged/user.overlay.file | wc -c", user="root").stdout == "0\n"


def test_crafted_names_links_modes_and_owners_come_back_as_they_were(stranger: Dovecote) -> None:
    with stranger.sessions.create() as session:
        session.save()
        results = json.loads(forger(session, "craft", "/srv/crafted"))
        assert set(results.values()) == {"done"}
        before = session.run(LOOK, user="root", check=True).stdout
        for _ in range(2):
            restored(session)
            assert session.run(LOOK, user="root", check=True).stdout == before
        assert (
            session.run("cd /srv/crafted && test kept -ef linked && stat -c %a setuid", user="root").stdout == "6755\n"
        )


def test_a_path_deeper_than_any_system_call_takes_hurts_no_other_file(stranger: Dovecote) -> None:
    with stranger.sessions.create() as session:
        session.save()
        forger(session, "deepen", "/srv/deep", "40")
        session.files.write("/srv/kept", b"kept", user="root")
        session.save()
        session.files.write("/srv/later", b"later", user="root")
        restored(session)
        assert session.files.read("/srv/kept", user="root") == b"kept"
        assert session.files.read("/srv/later", user="root") == b"later"


# -- ids: one of another tenant is as good as one that nobody ever had

COMMAND = {"command": "true"}
TURN = {"messages": [{"role": "user", "content": "x"}]}
START = {"command": "true", "port": 8000}

# Names in braces are ids or names of the other tenant, or else made up.
REQUESTS: list[tuple[str, str, object]] = [
    ("GET", "/v1/sessions/{ses}", None),
    ("PATCH", "/v1/sessions/{ses}", {"idle_after_seconds": 60}),
    ("DELETE", "/v1/sessions/{ses}", None),
    *(("POST", f"/v1/sessions/{{ses}}:{verb}", None) for verb in ("wake", "freeze", "park", "save")),
    ("PUT", "/v1/sessions/{ses}/start", START),
    ("DELETE", "/v1/sessions/{ses}/start", None),
    ("GET", "/v1/sessions/{ses}/instance", None),
    ("POST", "/v1/sessions/{ses}/commands", COMMAND),
    ("GET", "/v1/sessions/{ses}/commands", None),
    ("GET", "/v1/sessions/{ses}/commands/1/stream", None),
    ("POST", "/v1/sessions/{ses}/commands/1:signal", {"signal": "SIGTERM"}),
    ("PUT", "/v1/sessions/{ses}/commands/1/stdin", None),
    ("DELETE", "/v1/sessions/{ses}/commands/1", None),
    ("GET", "/v1/sessions/{ses}/files?path=secret", None),
    ("PUT", "/v1/sessions/{ses}/files?path=secret", None),
    ("DELETE", "/v1/sessions/{ses}/files?path=secret", None),
    ("GET", "/v1/sessions/{ses}/files/stat?path=secret", None),
    ("GET", "/v1/sessions/{ses}/files/list?path=.", None),
    ("POST", "/v1/sessions/{ses}/files/mkdir", {"path": "x"}),
    ("POST", "/v1/sessions/{ses}/files/rename", {"source": "secret", "target": "x"}),
    ("GET", "/v1/sessions/{ses}/ports", None),
    ("POST", "/v1/sessions/{ses}/mounts", {"volume": "mine", "at": "/mnt/x"}),
    ("GET", "/v1/sessions/{ses}/mounts", None),
    ("DELETE", "/v1/sessions/{ses}/mounts?at=/mnt/v", None),
    ("POST", "/v1/sessions/{ses}/snapshots", {}),
    ("GET", "/v1/sessions/{ses}/snapshots", None),
    ("GET", "/v1/sessions/{ses}/snapshots/{snp}", None),
    ("DELETE", "/v1/sessions/{ses}/snapshots/{snp}", None),
    ("GET", "/v1/sessions/{ses}/snapshots/{snp}/changes", None),
    ("POST", "/v1/sessions/{ses}:rewind", {"snapshot": "{snp}"}),
    ("POST", "/v1/sessions/{ses}:fork", {"snapshot": "{snp}"}),
    ("POST", "/v1/sessions/{ses}:fork", {}),
    # One's own session, and something of the other tenant.
    ("GET", "/v1/sessions/{own}/snapshots/{snp}", None),
    ("DELETE", "/v1/sessions/{own}/snapshots/{snp}", None),
    ("GET", "/v1/sessions/{own}/snapshots/{snp}/changes", None),
    ("GET", "/v1/sessions/{own}/snapshots/{mine}/changes?to={snp}", None),
    ("POST", "/v1/sessions/{own}:rewind", {"snapshot": "{snp}"}),
    ("POST", "/v1/sessions/{own}:fork", {"snapshot": "{snp}"}),
    ("POST", "/v1/sessions/{own}/mounts", {"volume": "{volume}", "at": "/mnt/v"}),
    ("POST", "/v1/chats", {"session_id": "{ses}"}),
    ("POST", "/v1/apps", {"session_id": "{ses}", "name": "taken"}),
    ("GET", "/v1/chats/{cha}", None),
    ("POST", "/v1/chats/{cha}/turns", TURN),
    ("GET", "/v1/chats/{cha}/turns", None),
    ("POST", "/v1/chats/{cha}:rewind", {"turn": 1}),
    ("POST", "/v1/chats/{cha}:fork", {"turn": 1}),
    ("GET", "/v1/volumes/{volume}", None),
    ("PATCH", "/v1/volumes/{volume}", {"max_bytes": 1 << 20}),
    ("DELETE", "/v1/volumes/{volume}", None),
    ("GET", "/v1/functions/{function}", None),
    ("POST", "/v1/sessions", {"function": "{function}"}),
    ("DELETE", "/v1/keys/{key}", None),
]


@pytest.fixture(scope="module")
def theirs(victim: Dovecote, secret: Session) -> dict[str, str]:
    chat = victim.chats.create(secret)
    victim.chats.add_turn(chat.id, [{"role": "user", "content": "hello"}])
    victim.volumes.create("treasure", max_bytes=4 << 20)
    victim.functions.create("machine")
    secret.mounts.add(Mount("treasure", "/mnt/v"))
    return {
        "ses": secret.id,
        "snp": secret.snapshot("taken").id,
        "cha": chat.id,
        "key": victim.keys.list()[0].id,
        "volume": "treasure",
        "function": "machine",
    }


def made_up() -> dict[str, str]:
    ids = {kind: new_id(kind) for kind in ("ses", "snp", "cha", "key")}
    return {**ids, "volume": "treasurf", "function": "machinf"}


def filled(template: object, names: dict[str, str]) -> object:
    text = json.dumps(template)
    for name, value in names.items():
        text = text.replace("{" + name + "}", value)
    return json.loads(text)


def test_ids_of_another_tenant_are_answered_like_ids_that_nobody_ever_had(
    own: Installation, theirs: dict[str, str], secret: Session, stranger: Dovecote
) -> None:
    with (
        stranger.sessions.create() as session,
        httpx.Client(base_url=own.url, headers={"authorization": f"Bearer {stranger.api_key}"}, timeout=60) as web,
    ):
        stranger.volumes.create("mine", max_bytes=4 << 20)
        mine = {"own": session.id, "mine": session.snapshot().id}

        def answer(method: str, path: object, body: object, names: dict[str, str]) -> tuple[int, str]:
            response = web.request(method, str(filled(path, names | mine)), json=filled(body, names | mine))
            text = response.text
            for name in names.values():
                text = text.replace(name, "*")
            shown = json.loads(text) if text else {}
            shown.get("error", {}).pop("request_id", None)
            return response.status_code, json.dumps(shown, sort_keys=True)

        for method, path, body in REQUESTS:
            of_theirs, of_nobodys = (answer(method, path, body, names) for names in (theirs, made_up()))
            assert of_theirs == of_nobodys, (method, path)
            assert of_theirs[0] == 404, (method, path, of_theirs)
    assert secret.files.read("secret") == SECRET
    assert [each.id for each in secret.snapshots() if each.cause == "asked"] == [theirs["snp"]]
    assert [mount.at for mount in secret.mounts.list()] == ["/mnt/v"]


def test_what_a_save_costs_is_told_to_nobody(secret: Session, stranger: Dovecote) -> None:
    """Content that another tenant has is stored once; no answer may tell."""
    with stranger.sessions.create() as session, stranger.sessions.create() as other:
        answers = []
        for each, content in ((session, SECRET), (other, SECRET[::-1])):
            each.files.write("guess", content)
            each.save()
            taken = each.snapshot()
            answers.append((each.refresh().saved_generation, taken.files, taken.total_bytes, vars(each.view).keys()))
        assert answers[0] == answers[1]
