"""What a guest refuses, as our errors."""

from __future__ import annotations

from dovecote.errors import (
    Conflict,
    DeadlineExceeded,
    DovecoteError,
    Failed,
    Forbidden,
    Invalid,
    NoCapacity,
    NotFound,
    StorageFailed,
)
from dovecote.host.guest.protocol import Payload

Row = tuple[type[DovecoteError], str, str, str]  # class, code, message with {subject}, hint

BY_PROBLEM: dict[str, Row] = {
    "bad_request": (Invalid, "invalid", "the sandbox cannot do that with {subject}", "look at the values of the call"),
    "too_many": (NoCapacity, "too_many", "too much at once in this sandbox: {subject}", "wait until some of it ends"),
    "no_such_command": (NotFound, "no_such_command", "no {subject}", "it may have been forgotten after it ended"),
    "no_such_user": (NotFound, "no_such_user", "no such user in the sandbox ({subject})", "see its /etc/passwd"),
    "stdin_closed": (Conflict, "stdin_closed", "the input of {subject} is closed", "start it with stdin open"),
    "still_running": (Conflict, "still_running", "{subject} still runs", "end it with a signal first"),
    "not_regular": (Invalid, "not_regular_file", "{subject} is not a regular file", "read it with a command"),
    "no_process": (NoCapacity, "no_processes", "the sandbox cannot start another process", "end some, or resize it"),
    "stalled": (DeadlineExceeded, "upload_stalled", "nothing arrived for too long for {subject}", "send it again"),
    "stopping": (Conflict, "stopping", "the sandbox is shutting down", "try again: it will be woken"),
    "too_many_watches": (
        NoCapacity,
        "too_many_watches",
        "too many directories to watch at {subject}",
        "watch a smaller directory, or end other watches",
    ),
    "no_terminal": (Invalid, "no_terminal", "no terminal for {subject}", "start it with a terminal"),
}

BY_ERRNO: dict[str, Row] = {
    "ENOENT": (NotFound, "file_not_found", "no file {subject}", ""),
    "ENOTDIR": (Invalid, "not_a_directory", "part of {subject} is not a directory", ""),
    "EISDIR": (Invalid, "is_directory", "{subject} is a directory", ""),
    "EEXIST": (Conflict, "exists", "{subject} exists", ""),
    "ENOTEMPTY": (Conflict, "directory_not_empty", "{subject} is not empty", "remove it recursively"),
    "EACCES": (Forbidden, "permission_denied", "permission denied: {subject}", "act as another user of the sandbox"),
    "EPERM": (Forbidden, "permission_denied", "not permitted: {subject}", "act as another user of the sandbox"),
    "EROFS": (Forbidden, "read_only", "{subject} is on a read-only file system", ""),
    "ENOSPC": (StorageFailed, "disk_full", "the disk is full: {subject}", "remove files, or give it a bigger disk"),
    "EDQUOT": (StorageFailed, "disk_full", "the disk is full: {subject}", "remove files, or give it a bigger disk"),
    "EFBIG": (Invalid, "too_large", "{subject} would become too large", ""),
    "EINVAL": (Invalid, "malformed_path", "that cannot be done with {subject}", ""),
    "ELOOP": (Invalid, "malformed_path", "{subject} is too deep or goes in circles", ""),
    "ENAMETOOLONG": (Invalid, "malformed_path", "the path {subject} is too long", ""),
    "EXDEV": (Invalid, "cross_device", "{subject} is on another file system", "copy it with a command"),
    "EOPNOTSUPP": (Invalid, "not_supported", "the file system of {subject} cannot do that", ""),
    "EBUSY": (Conflict, "busy", "{subject} is in use", ""),
    "ETXTBSY": (Conflict, "busy", "{subject} is in use", ""),
    "ENXIO": (Invalid, "not_regular_file", "{subject} is not a regular file", ""),
}

NO_COMMAND: Row = (NotFound, "command_not_found", "no program for {subject}", "install it, or give its path")
NOT_A_PROGRAM: Row = (Invalid, "not_executable", "not a program: {subject}", "its first line or its machine is wrong")
TOO_LONG: Row = (Invalid, "too_large", "arguments and environment of {subject} are too long", "pass them in a file")
NO_DIRECTORY: Row = (NotFound, "no_such_directory", "the working directory of {subject} is not there", "create it")

BY_BOTH: dict[tuple[str, str], Row] = {
    ("bad_executable", "ENOENT"): NO_COMMAND,
    ("bad_executable", "ENOTDIR"): NO_COMMAND,
    ("bad_executable", "ENOEXEC"): NOT_A_PROGRAM,
    ("bad_executable", "ELIBBAD"): NOT_A_PROGRAM,
    ("bad_executable", "E2BIG"): TOO_LONG,
    ("bad_cwd", "ENOENT"): NO_DIRECTORY,
    ("bad_cwd", "ENOTDIR"): NO_DIRECTORY,
}


def parse_refusal(data: bytes, subject: str) -> DovecoteError:
    """The error that a guest's answer means. Raises Failed `guest_protocol`."""
    payload = Payload(data)
    problem, errno_name = payload.text(), payload.text()
    payload.end()
    row = BY_BOTH.get((problem, errno_name)) or BY_PROBLEM.get(problem) or BY_ERRNO.get(errno_name)
    if row is None:
        known = errno_name if errno_name.isalnum() and len(errno_name) <= 20 else "an unknown error"
        return Failed(f"the sandbox could not do it: {subject} ({known})", code="guest_failed")
    kind, code, message, hint = row
    return kind(message.format(subject=subject), code=code, hint=hint)
