"""A directory as it was sent, a tar or a zip, as the plain tar that builds read."""

from __future__ import annotations

import lzma
import stat
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path

from dovecote.control.templates import MAX_BYTES, MAX_FILES
from dovecote.errors import Invalid, StorageFailed

ZIP = b"PK\x03\x04"
EMPTY_ZIP = b"PK\x05\x06"
LONGEST_LINK = 4096
# What reading a bad one raises: each way to compress has errors of its own.
UNREADABLE = (
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error),
    *(NotImplementedError, RuntimeError, ValueError, EOFError, OSError),
)


def as_tar(sent: Path, to: Path) -> Path:
    """The file itself if it is a tar, else what it was made into.

    Raises Invalid (bad_context, too_large), StorageFailed (disk_full).
    """
    with sent.open("rb") as file:
        magic = file.read(4)
    if magic not in (ZIP, EMPTY_ZIP):
        return sent
    try:
        with zipfile.ZipFile(sent) as archive, tarfile.open(to, "w", format=tarfile.PAX_FORMAT) as out:
            _copy(archive, out)
    except UNREADABLE as error:
        if isinstance(error, OSError) and error.errno is not None:  # the system's; a bad archive has no number
            raise StorageFailed(f"the files cannot be kept: {error}", code="disk_full") from error
        raise Invalid(f"the files cannot be used: {error}", code="bad_context") from error
    return to


def _copy(archive: zipfile.ZipFile, out: tarfile.TarFile) -> None:
    entries = archive.infolist()
    if len(entries) > MAX_FILES:
        raise Invalid(f"the files cannot be used: more than {MAX_FILES}", code="bad_context")
    if sum(entry.file_size for entry in entries) > MAX_BYTES:
        raise Invalid(f"the files are over {MAX_BYTES} bytes", code="too_large")
    for entry in entries:
        info = tarfile.TarInfo(entry.filename)
        mode = entry.external_attr >> 16
        info.mode = stat.S_IMODE(mode) & 0o777 or (0o755 if entry.is_dir() else 0o644)
        if entry.is_dir():
            info.type = tarfile.DIRTYPE
            out.addfile(info)
        elif stat.S_ISLNK(mode):
            if entry.file_size > LONGEST_LINK:
                raise Invalid(f"the link {entry.filename[:200]!r} is too long", code="bad_context")
            info.type, info.linkname = tarfile.SYMTYPE, archive.read(entry).decode("utf-8", "surrogateescape")
            out.addfile(info)
        else:
            # What an entry holds may be more than it says: no more than that is read.
            info.size = entry.file_size
            with archive.open(entry) as content:
                out.addfile(info, content)
