"""What is fetched together from a pack, how it is checked, and how it gets into an image."""

import os
from pathlib import Path

import pytest

from dovecote.errors import StorageFailed
from dovecote.host.storage import disk
from dovecote.host.storage.contents import BLOCK, Contents
from dovecote.host.storage.disk import write_at
from dovecote.host.storage.frames import pack, unpack_all
from dovecote.host.storage.index import Piece
from dovecote.host.storage.manifest import digest_of
from dovecote.host.storage.runs import GAP, RUN_BYTES, RUN_RAW, Run, in_order, runs_of, unpack_run

ONE, OTHER = "packs/00/" + "1" * 62, "packs/00/" + "2" * 62


def located(*pieces: Piece) -> dict[bytes, tuple[Piece, ...]]:
    return {digest_of(repr(piece).encode()): (piece,) for piece in pieces}


def test_neighbours_are_one_request_and_others_are_not() -> None:
    near, far, elsewhere = Piece(ONE, 10, 5, 7), Piece(ONE, 17 + GAP, 5, 7), Piece(OTHER, 15, 5, 7)
    runs = runs_of(in_order(located(elsewhere, far, near, Piece(ONE, 15, 1, 7))))
    assert [(run.pack, run.start, run.end, len(run.wanted)) for run in runs] == [
        (ONE, 10, 16, 2),
        (ONE, 17 + GAP, 22 + GAP, 1),
        (OTHER, 15, 20, 1),
    ]


def test_a_run_is_bounded_as_it_is_stored_and_unpacked() -> None:
    """So is the memory that it takes, whatever the packs hold."""
    stored = located(*(Piece(ONE, n * 1000, 1000, 1000) for n in range(3 * RUN_BYTES // 1000)))
    unpacked = located(*(Piece(ONE, n * 10, 10, 1 << 20) for n in range(3 * RUN_RAW >> 20)))
    for wanted in (stored, unpacked):
        runs = runs_of(in_order(wanted))
        assert len(runs) > 2
        assert all(run.end - run.start <= RUN_BYTES for run in runs)
        assert all(sum(piece.raw for _, piece in run.wanted) <= RUN_RAW for run in runs)
        assert [digest for run in runs for digest, _ in run.wanted] == list(in_order(wanted))


def test_what_is_in_several_pieces_is_in_no_run() -> None:
    assert runs_of({b"d" * 32: (Piece(ONE, 0, 5, 7), Piece(ONE, 5, 5, 7))}) == []


def run_of(contents: list[bytes], named: list[bytes]) -> tuple[Run, bytes]:
    wanted, data = [], b""
    for content, name in zip(contents, named, strict=True):
        frame = pack(content)
        wanted.append((digest_of(name), Piece(ONE, 100 + len(data), len(frame), len(content))))
        data += frame
    return Run(ONE, 100, 100 + len(data), wanted), data


def test_a_run_gives_what_was_stored() -> None:
    contents = [b"a" * 5000, os.urandom(300), b"c"]
    run, data = run_of(contents, contents)
    assert [(digest, bytes(raw)) for digest, raw in unpack_run(run, data)] == [(digest_of(c), c) for c in contents]


def test_nothing_of_a_run_passes_when_one_of_it_is_something_else() -> None:
    run, data = run_of([b"first", b"forged", b"last"], [b"first", b"second", b"last"])
    with pytest.raises(StorageFailed, match=digest_of(b"second").hex()) as refused:
        unpack_run(run, data)
    assert refused.value.code == "corrupt"


@pytest.mark.parametrize(
    ("data", "frame"),
    [
        (pack(b"x" * 1000), (0, len(pack(b"x" * 1000)), 999)),  # more comes out than was recorded
        (pack(b"x" * 1000), (0, len(pack(b"x" * 1000)), 1001)),
        (pack(b"x" * 1000), (0, len(pack(b"x" * 1000)) - 1, 1000)),  # cut short
        (pack(b"x" * 1000), (1, len(pack(b"x" * 1000)), 1000)),  # beyond the end
        (b"no frame at all", (0, 15, 1000)),
    ],
)
def test_frames_that_are_not_what_was_recorded_are_refused(data: bytes, frame: tuple[int, int, int]) -> None:
    with pytest.raises(StorageFailed) as refused:
        unpack_all(data, [frame])
    assert refused.value.code == "corrupt"


def test_pieces_are_written_one_behind_the_other_however_little_the_disk_takes_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = os.pwritev

    def some(fd: int, pieces: list[bytes], at: int) -> int:
        return whole(fd, [b"".join(pieces)[:7]], at)

    monkeypatch.setattr(os, "pwritev", some)
    monkeypatch.setattr(disk, "_AT_ONCE", 3)
    pieces: list[bytes | memoryview] = [b"abc", memoryview(b"defgh"), b"", b"0123456789", b"z"]
    with (tmp_path / "file").open("wb") as file:
        write_at(file.fileno(), pieces, 5)
    assert (tmp_path / "file").read_bytes() == bytes(5) + b"abcdefgh0123456789z"


def test_contents_lie_where_the_image_expects_them(tmp_path: Path) -> None:
    """In whatever order they come; what is not in a block of its own is zeros."""
    contents = [b"a" * 10, b"b" * (BLOCK + 1), b"c" * BLOCK, b"d"]
    places, at = {}, BLOCK
    for content in contents:
        places[digest_of(content)] = (at, len(content))
        at += -(-len(content) // BLOCK) * BLOCK
    with (tmp_path / "image").open("w+b") as file:
        file.write(b"\xff" * at)
        file.flush()
        inside = Contents(file.fileno(), places)
        for order in ((2, 0, 1), (3,)):
            inside.put_all([(digest_of(contents[n]), memoryview(contents[n])) for n in order])
        assert inside.missing(places) == []
    expected = b"\xff" * BLOCK + b"".join(c + bytes(-len(c) % BLOCK) for c in contents)
    assert (tmp_path / "image").read_bytes() == expected


def test_a_content_of_another_size_than_the_tree_says_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "image").open("w+b") as file:
        inside = Contents(file.fileno(), {digest_of(b"abc"): (0, 4)})
        with pytest.raises(StorageFailed, match="another size"):
            inside.put_all([(digest_of(b"abc"), memoryview(b"abc"))])
        for pieces in ([b"ab", b"c"], [b"ab", b"cde"]):
            with pytest.raises(StorageFailed, match="another size"):
                inside.put_pieces(digest_of(b"abc"), pieces)
        assert inside.missing([digest_of(b"abc")]) == [digest_of(b"abc")]
