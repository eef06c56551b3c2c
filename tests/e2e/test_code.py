"""Code in a sandbox, from the outside: state, results, errors, and what becomes of a kernel."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dovecote import sdk
from dovecote.sdk import Dovecote, Ended, Said, Session
from tests.e2e.installation import Installation, until

pytestmark = pytest.mark.e2e
COLOURS = re.compile(r"\x1b\[[0-9;]*m")
PAGE = Path(__file__).parents[2] / "docs/how-to/run-code.md"
PNG = b"\x89PNG\r\n\x1a\n"


@contextmanager
def opened(dovecote: Dovecote, template: str = "code") -> Iterator[Session]:
    # Its first use on a machine builds the template, which may take longer than a request waits.
    for _ in dovecote.templates.prepare("code"):
        pass
    with dovecote.sessions.create(template=template) as session:
        yield session


def test_python_keeps_its_state_and_shows_what_it_has(dovecote: Dovecote) -> None:
    with opened(dovecote) as session:
        first = session.execute("import sys\nx = 41\nprint('out')\nprint('err', file=sys.stderr)", check=True)
        assert (first.stdout, first.stderr, first.results, first.count) == ("out\n", "err\n", [], 1)
        second = session.execute("x + 1")
        assert (second.text, second.count, second.context_id) == ("42", 2, first.context_id)

        frame = session.execute("import pandas as pd; pd.DataFrame({'a': [1, None], 'b': ['x', 'y']})").results[0]
        assert frame.is_main
        assert "<table" in (frame.html or "")
        assert frame.table is not None
        assert [each["name"] for each in frame.table["columns"]] == ["a", "b"]
        assert frame.table["rows"] == [[1.0, "x"], [None, "y"]]
        assert frame.table["total_rows"] == 2

        lines = ["from IPython.display import *", "display(Markdown('# m'), Latex('$x$'), JSON({'a': [1]}))"]
        shown = session.execute(
            "\n".join([*lines, "display(SVG('<svg xmlns=\"http://www.w3.org/2000/svg\"/>'))"])
        ).results
        assert (shown[0].markdown, shown[1].latex, shown[2].json) == ("# m", "$x$", {"a": [1]})
        assert (shown[3].svg or "").startswith("<svg")

        session.execute("import os", check=True)
        assert session.execute("os.environ['A']", env={"A": "1"}).text == "'1'"
        assert session.execute("os.environ.get('A')").text is None
        assert session.execute("os.getcwd(), os.environ['HOME']").text == "('/home/user', '/home/user')"
        assert session.execute("input()").fault is not None
        assert "_dovecote" not in (session.execute("dir()").text or "")


def test_figures_are_pictures_and_data(dovecote: Dovecote) -> None:
    with opened(dovecote) as session:
        drawn = session.execute(
            "import matplotlib.pyplot as plt\n"
            "plt.plot([1, 2, 3], [4, 5, 6], label='up'); plt.title('T'); plt.xlabel('Time (s)'); plt.show()\n"
            "plt.bar(['p', 'q'], [1, 2]); plt.show()\n"
            "plt.pie([1, 3], labels=['u', 'v']); plt.show()\n"
            "plt.boxplot([[1, 2, 3, 4, 10]]); plt.show()\n"
            "plt.scatter([1], [2]); plt.show()\n"
            "plt.subplots(1, 2)[1][0].plot([1, 2]); plt.gcf().axes[1].bar(['z'], [3]); plt.show()\n",
            check=True,
        )
        assert [(result.png or b"")[:8] for result in drawn.results] == [PNG] * 6
        line, bar, pie, box, dots, several = (result.chart for result in drawn.results)
        assert line is not None
        assert (line["type"], line["title"], line["x_label"], line["x_unit"]) == ("line", "T", "Time", "s")
        assert line["elements"] == [{"label": "up", "points": [[1, 4], [2, 5], [3, 6]]}]
        assert bar is not None
        assert [(each["label"], each["value"]) for each in bar["elements"]] == [("p", 1), ("q", 2)]
        assert pie is not None
        assert [(each["label"], each["angle"]) for each in pie["elements"]] == [("u", 90), ("v", 270)]
        assert box is not None
        (only,) = box["elements"]
        assert (box["type"], only["median"], only["outliers"]) == ("box_and_whisker", 3, [10])
        assert dots is not None
        assert (dots["type"], dots["elements"][0]["points"]) == ("scatter", [[1, 2]])
        assert several is not None
        assert [each["type"] for each in several["elements"]] == ["line", "bar"]


def test_an_error_has_its_name_and_traceback_and_ends_nothing(dovecote: Dovecote) -> None:
    with opened(dovecote) as session:
        failed = session.execute("def f():\n    return 1/0\nf()")
        assert failed.fault is not None
        assert (failed.status, failed.fault.name, failed.fault.value) == (
            "error",
            "ZeroDivisionError",
            "division by zero",
        )
        assert "return 1/0" in COLOURS.sub("", "\n".join(failed.fault.traceback))
        with pytest.raises(sdk.CommandFailed) as caught:
            session.execute("g()", check=True)
        assert caught.value.code == "code_failed"
        assert session.execute("f.__name__").text == "'f'"


def test_what_takes_too_long_is_interrupted_and_its_context_goes_on(dovecote: Dovecote) -> None:
    with opened(dovecote) as session:
        session.execute("import time; x = 1", check=True)
        late = session.execute("print('begun', flush=True)\nwhile True: time.sleep(0.01)", timeout=1)
        assert (late.status, late.stdout) == ("timed_out", "begun\n")
        assert session.execute("x").text == "1"
        (context,) = session.contexts.list()
        events = context.stream("x = 2\nprint('here', flush=True)\ntime.sleep(60)")
        for event in events:
            if isinstance(event, Said):
                context.interrupt()
            if isinstance(event, Ended):
                assert event.status == "interrupted"
        assert session.execute("x").text == "2"


def test_a_kernel_that_dies_says_so_and_is_there_again(dovecote: Dovecote) -> None:
    with opened(dovecote) as session:
        session.execute("x = 1", check=True)
        died = session.execute("import os; os.kill(os.getpid(), 9)")
        assert died.fault is not None
        assert (died.status, died.fault.name) == ("died", "KernelDied")
        assert session.execute("x").fault is not None
        hungry = session.execute("data = bytearray(4 << 30)")
        assert hungry.status == "died"
        assert session.execute("'back'").text == "'back'"
        (context,) = session.contexts.list()
        session.run(f"sudo kill -9 {next(c.pid for c in session.commands() if c.number == context.view.number)}")
        until(lambda: session.contexts.list() == [], "its program has ended")
        assert session.execute("'anew'").text == "'anew'"


def test_contexts_know_nothing_of_each_other(dovecote: Dovecote) -> None:
    with opened(dovecote) as session:
        session.run("mkdir -p work", check=True)
        with session.contexts.create(cwd="work", env={"A": "1"}) as one, session.contexts.create() as two:
            one.execute("x = 'one'", check=True)
            two.execute("x = 'two'", check=True)
            assert (one.execute("x").text, two.execute("x").text) == ("'one'", "'two'")
            assert session.execute("'x' in globals()").text == "False"
            assert one.execute("import os; os.getcwd(), os.environ['A']").text == "('/home/user/work', '1')"
            one.restart()
            assert one.execute("'x' in globals()").text == "False"
            assert one.execute("import os; os.getcwd(), os.environ['A']").text == "('/home/user/work', '1')"
            assert two.execute("x").text == "'two'"
            assert len(session.contexts.list()) == 3
        assert len(session.contexts.list()) == 1
        until(lambda: session.run("pgrep -fc '[i]pykernel_launcher'").stdout.strip() == "1", "their kernels have ended")
        with pytest.raises(sdk.NotFound) as caught:
            one.execute("1")
        assert caught.value.code == "no_such_context"


def test_a_context_survives_a_restart_of_dovecote(installation: Installation, dovecote: Dovecote) -> None:
    with opened(dovecote) as session:
        session.execute("x = 41", check=True)
        (context,) = session.contexts.list()
        events = context.stream("import time\nprint('before', flush=True)\ntime.sleep(4)\nprint('after')\nx + 1")
        accepted = next(events)
        assert isinstance(accepted, sdk.Accepted)
        while not isinstance(next(events), Said):
            pass
        installation.stop()
        installation.start()
        events.close()
        followed = sdk.Execution()
        for event in context.follow(accepted.execution):
            followed.add(event)
        assert (followed.stdout, followed.text, followed.status) == ("before\nafter\n", "42", "ok")
        assert session.execute("x").text == "41"


def test_parking_ends_contexts_and_the_next_code_has_a_new_one(dovecote: Dovecote) -> None:
    with opened(dovecote) as session:
        first = session.execute("x = 1", check=True)
        session.park()
        assert session.contexts.list() == []
        again = session.execute("'x' in globals()")
        assert again.text == "False"
        assert again.context_id != first.context_id


def test_much_output_is_cut_with_a_mark(dovecote: Dovecote) -> None:
    with opened(dovecote) as session:
        loud = session.execute("for _ in range(20000): print('x' * 1000)", max_output=100_000)
        assert (loud.status, loud.is_truncated, len(loud.stdout)) == ("ok", True, 100_000)
        assert session.execute("2").text == "2"
        raw = session.execute("import os\nfor _ in range(3000): os.write(2, b'y' * 1000)", max_output=100_000)
        assert (raw.status, raw.is_truncated) == ("ok", True)
        assert len(raw.stderr) <= 100_000


def test_ten_at_once_take_their_turns(dovecote: Dovecote) -> None:
    with opened(dovecote) as session:
        session.execute("seen = []", check=True)
        threads = [
            threading.Thread(target=session.execute, args=(f"seen.append({number}); print({number})",))
            for number in range(10)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert session.execute("sorted(seen)").text == str(list(range(10)))


def test_javascript_needs_no_template_of_its_own(dovecote: Dovecote) -> None:
    with dovecote.sessions.create() as session:
        assert session.execute("const a = 1; console.log('out', a); a + 1", language="javascript").text == "2"
        lines = (
            "const a = 41\nimport { join } from 'node:path'\nconsole.error(join('x', 'y'))\nawait (async () => a + 1)()"
        )
        second = session.execute(lines, language="js")
        assert (second.text, second.stderr, second.count) == ("42", "x/y\n", 2)
        failed = session.execute("function f() { throw new TypeError('no') }\nf()", language="javascript")
        assert failed.fault is not None
        assert (failed.fault.name, failed.fault.value) == ("TypeError", "no")
        assert any("<anonymous>:1:22" in line for line in failed.fault.traceback)
        for endless in ("while (true) {}", "await new Promise(() => {})"):
            assert session.execute(endless, language="javascript", timeout=1).status == "timed_out"
        assert session.execute("a", language="javascript").text == "41"
        shown = session.execute("display({'text/html': '<b>'}); ({x: [1]})", language="javascript").results
        assert (shown[0].html, shown[1].json) == ("<b>", {"x": [1]})
        assert session.execute("enum E { A = 3 }; const n: number = E.A; n", language="typescript").text == "3"
        ended = session.execute("process.exit(3)", language="javascript")
        assert (ended.status, ended.stderr) == ("died", "")
        assert session.execute("typeof a", language="javascript").text == "'undefined'"
        with pytest.raises(sdk.NotFound) as caught:
            session.execute("1")
        assert (caught.value.code, "code" in caught.value.hint) == ("no_kernel", True)
        with pytest.raises(sdk.NotFound):
            session.contexts.create("cobol")


def test_every_block_of_the_page_runs_and_says_what_the_text_says(installation: Installation) -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(blocks)],
        env=installation.environ | {"DOVECOTE_URL": installation.url, "DOVECOTE_API_KEY": installation.api_key},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "42",
        "b'\\x89PNG' bar",
        "[['Bonn', 3], ['Kyiv', 5]] True",
        "error ZeroDivisionError division by zero",
        "timed_out 41",
        "0",
        "1",
        "2",
        "",
        "('/tmp', 'test', False)",
        "'number'",
    ]


def test_from_a_shell(installation: Installation, dovecote: Dovecote) -> None:
    made = installation.command("template", "prepare", "code", timeout=280)
    assert (made.returncode, "code is ready" in made.stdout) == (0, True), made.stderr
    with opened(dovecote) as session:
        for code, said in (("x = 41", ""), ("x + 1", "42\n")):
            done = installation.command("sandbox", "code", session.id, code)
            assert (done.returncode, done.stdout) == (0, said), done.stderr
        assert installation.command("sandbox", "code", session.id, "1/0").returncode == 1
        assert "python" in installation.command("sandbox", "contexts", session.id).stdout
