"""E2B's code interpreter, as its users have it. Run by a client's own interpreter."""

from __future__ import annotations

import asyncio
import base64
import threading
from collections.abc import Iterator

import pytest
from e2b import NotFoundException, TimeoutException
from e2b_code_interpreter import AsyncSandbox, Sandbox
from e2b_code_interpreter.charts import BarChart, LineChart, SuperChart


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    made = Sandbox.create(timeout=600, envs={"OF_THE_SANDBOX": "yes"})
    yield made
    made.kill()


def test_state_is_kept(sandbox: Sandbox) -> None:
    sandbox.run_code("x = 1")
    execution = sandbox.run_code("x += 1; x")
    assert execution.text == "2"
    assert execution.error is None
    assert execution.execution_count is not None


def test_output_is_streamed_and_collected(sandbox: Sandbox) -> None:
    out: list[str] = []
    err: list[str] = []
    shown: list[object] = []
    execution = sandbox.run_code(
        "import sys\nprint('out')\nprint('err', file=sys.stderr)\n7",
        on_stdout=lambda message: out.append(message.line),
        on_stderr=lambda message: err.append(message.line),
        on_result=shown.append,
    )
    assert "".join(out) == "".join(execution.logs.stdout) == "out\n"
    assert "".join(err) == "".join(execution.logs.stderr) == "err\n"
    assert len(shown) == 1
    assert execution.results[0].is_main_result


def test_an_error_has_name_value_and_traceback(sandbox: Sandbox) -> None:
    told: list[object] = []
    execution = sandbox.run_code("1/0", on_error=told.append)
    assert execution.error is not None
    assert (execution.error.name, execution.error.value) == ("ZeroDivisionError", "division by zero")
    assert "ZeroDivisionError" in execution.error.traceback
    assert told == [execution.error]


def test_variables_of_the_sandbox_and_of_one_execution(sandbox: Sandbox) -> None:
    assert sandbox.run_code("import os; os.environ['OF_THE_SANDBOX']").text == "yes"
    assert sandbox.run_code("os.environ['A']", envs={"A": "1"}).text == "1"
    assert sandbox.run_code("os.environ.get('A')").text is None


def test_tables_pictures_and_charts(sandbox: Sandbox) -> None:
    table = sandbox.run_code("import pandas as pd; pd.DataFrame({'a': [1, 2], 'b': ['x', None]})").results[0]
    assert table.data == {"a": [1, 2], "b": ["x", None]}
    assert table.html is not None
    picture = sandbox.run_code("import matplotlib.pyplot as plt; plt.plot([1, 2], [3, 4]); plt.show()").results[0]
    assert base64.b64decode(picture.png or "").startswith(b"\x89PNG")
    assert isinstance(picture.chart, LineChart)
    assert picture.chart.elements[0].points == [(1, 3), (2, 4)]
    bars = sandbox.run_code("plt.bar(['p', 'q'], [1, 2]); plt.title('T'); plt.show()").results[0]
    assert isinstance(bars.chart, BarChart)
    assert (bars.chart.title, [(each.label, each.value) for each in bars.chart.elements]) == ("T", [("p", 1), ("q", 2)])
    both = sandbox.run_code("_, (l, r) = plt.subplots(1, 2); l.plot([1]); r.pie([1, 1]); plt.show()").results[0]
    assert isinstance(both.chart, SuperChart)
    assert {"text", "png", "chart"} <= set(both.formats())


def test_all_kinds_of_results(sandbox: Sandbox) -> None:
    code = (
        "from IPython.display import *\n"
        "display(HTML('<b>'), Markdown('# m'), Latex('$x$'), JSON({'a': 1}), Javascript('1'))\n"
        "display({'x/y': 'own'}, raw=True)\n'text'"
    )
    html, markdown, latex, json, javascript, own, main = sandbox.run_code(code).results
    assert (html.html, markdown.markdown, latex.latex, json.json) == ("<b>", "# m", "$x$", {"a": 1})
    assert (javascript.javascript, own.extra, main.text) == ("1", {"x/y": "own"}, "text")


def test_contexts(sandbox: Sandbox) -> None:
    context = sandbox.create_code_context(cwd="/tmp", language="python")
    assert (context.cwd, context.language) == ("/tmp", "python")
    sandbox.run_code("y = 5", context=context)
    assert sandbox.run_code("y", context=context).text == "5"
    assert sandbox.run_code("'y' in globals()").text == "False"
    assert sandbox.run_code("import os; os.getcwd()", context=context).text == "/tmp"
    assert context.id in [each.id for each in sandbox.list_code_contexts()]
    sandbox.restart_code_context(context)
    assert sandbox.run_code("'y' in globals()", context=context).text == "False"
    sandbox.remove_code_context(context)
    assert context.id not in [each.id for each in sandbox.list_code_contexts()]
    with pytest.raises(NotFoundException):
        sandbox.run_code("1", context=context)


def test_a_timeout_interrupts_what_runs(sandbox: Sandbox) -> None:
    sandbox.run_code("import time; z = 'kept'")
    with pytest.raises(TimeoutException):
        sandbox.run_code("while True: time.sleep(0.01)", timeout=2)
    assert sandbox.run_code("z", timeout=20).text == "kept"


def test_a_sandbox_that_is_killed_while_it_runs_says_so() -> None:
    sandbox = Sandbox.create(timeout=300)
    assert sandbox.run_code("import os; os.environ['E2B_SANDBOX_ID']").text == sandbox.sandbox_id
    started = threading.Event()

    def kill() -> None:
        started.wait(20)
        sandbox.kill()

    killing = threading.Thread(target=kill)
    killing.start()
    with pytest.raises(TimeoutException, match="killed"):
        sandbox.run_code(
            "import time\nprint('on', flush=True)\ntime.sleep(60)", on_stdout=lambda _: started.set(), timeout=40
        )
    killing.join()


def test_javascript_and_typescript(sandbox: Sandbox) -> None:
    assert sandbox.run_code("const a = 1; console.log('out'); a + 1", language="javascript").text == "2"
    assert sandbox.run_code("await Promise.resolve(a + 41)", language="js").text == "42"
    assert sandbox.run_code("const n: number = 3; n", language="typescript").text == "3"
    failed = sandbox.run_code("throw new TypeError('no')", language="javascript")
    assert failed.error is not None
    assert (failed.error.name, failed.error.value) == ("TypeError", "no")
    with pytest.raises(NotFoundException):
        sandbox.run_code("1", language="cobol")


def test_bash(sandbox: Sandbox) -> None:
    done = sandbox.run_code("kept=5; cd /tmp; echo $E2B_SANDBOX", language="bash")
    assert (done.error, done.logs.stdout) == (None, ["true\n"])
    assert "".join(sandbox.run_code("echo $kept; pwd", language="bash").logs.stdout) == "5\n/tmp\n"
    odd = 'it\'s\n"two" $lines'
    for name in ("OWN", "kept"):
        told = sandbox.run_code(f'printf "%s\\n" "${name}"', language="bash", envs={name: odd, "not-a-name": "x"})
        assert "".join(told.logs.stdout) == odd + "\n"
    assert "".join(sandbox.run_code("echo $OWN $kept", language="bash").logs.stdout) == "5\n"
    failed = sandbox.run_code("ls /nowhere", language="bash")
    assert failed.error is not None
    assert failed.error.value == "2"
    with pytest.raises(TimeoutException):
        sandbox.run_code("sleep 60", language="bash", timeout=2)
    assert "".join(sandbox.run_code("echo $kept", language="bash", timeout=20).logs.stdout) == "5\n"


def test_files_and_commands_are_of_the_same_sandbox(sandbox: Sandbox) -> None:
    sandbox.files.write("/home/user/data.csv", "a,b\n1,2\n")
    assert sandbox.run_code("import pandas as pd; int(pd.read_csv('data.csv')['b'][0])").text == "2"
    sandbox.run_code("open('made', 'w').write('by code')")
    assert sandbox.commands.run("cat made").stdout == "by code"


def test_the_same_for_asyncio() -> None:
    async def work() -> None:
        sandbox = await AsyncSandbox.create(timeout=300)
        try:
            context = await sandbox.create_code_context()
            await sandbox.run_code("x = 20", context=context)
            first, second = await asyncio.gather(
                sandbox.run_code("x + 1", context=context), sandbox.run_code("x + 2", context=context)
            )
            assert (first.text, second.text) == ("21", "22")
            assert (await sandbox.run_code("6 * 7")).text == "42"
            assert len(await sandbox.list_code_contexts()) == 2
            await sandbox.restart_code_context(context)
            await sandbox.remove_code_context(context)
        finally:
            await sandbox.kill()

    asyncio.run(work())
