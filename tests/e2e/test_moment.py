"""What is saved while a program runs is one moment of it, whatever it does."""

from __future__ import annotations

import pytest

from dovecote.sdk import Dovecote
from tests.e2e.installation import until

pytestmark = pytest.mark.e2e

# Content first, then a name, then a store through a mapping: no later one may be there without all that came before it.
WRITER = """
import mmap, os
os.makedirs("work")
os.chdir("work")
with open("mapped", "wb") as file:
    file.truncate(1 << 16)
mapped = mmap.mmap(os.open("mapped", os.O_RDWR), 0)
content = os.open("content", os.O_RDWR | os.O_CREAT)
open("name-0", "w").close()
i = 0
while True:
    i += 1
    for page in range(16):
        os.pwrite(content, i.to_bytes(8, "little"), page * 4096)
    os.rename(f"name-{i - 1}", f"name-{i}")
    for page in range(16):
        mapped[page * 4096 : page * 4096 + 8] = i.to_bytes(8, "little")
"""
READER = """
import os
os.chdir("work")
def numbers(name):
    data = open(name, "rb").read()
    return [int.from_bytes(data[page * 4096 : page * 4096 + 8], "little") for page in range(16)]
(name,) = [int(each[5:]) for each in os.listdir() if each.startswith("name-")]
print(*numbers("content"), name, *numbers("mapped"))
"""


def test_a_snapshot_of_a_writer_has_nothing_without_what_came_before_it(dovecote: Dovecote) -> None:
    with dovecote.sessions.create() as session:
        session.files.write("writer.py", WRITER)
        session.files.write("reader.py", READER)
        session.save()
        session.start(["python3", "writer.py"])
        until(lambda: session.run("test -e work/name-0").exit_code == 1 and session.run("ls work").stdout, "it writes")
        snapshots = [session.snapshot() for _ in range(8)]
        for snapshot in snapshots:
            with session.fork(snapshot.id) as fork:
                seen = [int(word) for word in fork.run(["python3", "reader.py"], check=True).stdout.split()]
            assert seen == sorted(seen, reverse=True), "each was written after the one before it"
            assert seen[0] - seen[-1] <= 1
