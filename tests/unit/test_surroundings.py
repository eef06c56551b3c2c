"""Variables of one execution of a kernel, in a real Bash."""

import subprocess

from dovecote.control.sandboxes.inside.dovecote_surroundings import SURROUNDINGS


def run(env: dict[str, str], code: str, *, before: str = "", after: str = "") -> str:
    """What a shell prints that reads line by line, as the kernel's does."""
    enter, leave = SURROUNDINGS["bash"](env)
    lines = "\n".join(["PS1=", "PS2=", before, enter, code, leave, after, ""])
    shell = ["bash", "--norc", "--noprofile", "-i"]
    done = subprocess.run(shell, input=lines, capture_output=True, text=True, timeout=30, check=False)
    return done.stdout


def test_a_variable_is_there_for_one_execution() -> None:
    printed = run({"OWN": "a 'b'\n$c"}, "printf '<%s>' \"$OWN\"; env | grep -c ^OWN=", after='echo "[${OWN-gone}]"')
    assert printed == "<a 'b'\n$c>1\n[gone]\n"


def test_what_it_hid_is_there_again() -> None:
    assert run({"OWN": "mine"}, "echo $OWN", before="OWN='as  before'", after='echo "$OWN"') == "mine\nas  before\n"


def test_a_read_only_name_keeps_no_other_variable_there() -> None:
    """Bash ends a line at an assignment to such a one."""
    printed = run({"UID": "7", "SECRET": "s"}, "echo $SECRET", after='echo "[${SECRET-gone}${__dovecote_UID-}]"')
    assert printed == "s\n[gone]\n"


def test_names_that_no_shell_has_are_left_out() -> None:
    assert run({"not-a-name": "x", "$(touch /x)": "y", "OWN": "1"}, "echo $OWN") == "1\n"
