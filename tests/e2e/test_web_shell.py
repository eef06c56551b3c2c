"""The web shell in a real browser, through the gateway."""

from __future__ import annotations

import httpx
import pytest

from dovecote.sdk import Dovecote, Session
from tests.e2e.browser import Page, browser
from tests.e2e.installation import Installation, until

pytestmark = pytest.mark.e2e

STATE = "document.getElementById('state').textContent"
SCREEN = "[...document.querySelectorAll('.xterm-rows > div')].map((row) => row.textContent).join('\\n')"


def opened(page: Page, installation: Installation, session: Session) -> None:
    """With the key, as a person does it."""
    page.open(f"{installation.url}/shell/{session.id}")
    page.ask(f"document.getElementById('key').value = {installation.api_key!r}")
    page.ask("document.querySelector('form button').click()")
    page.until(f"{STATE} === 'connected'")


def test_a_shell_in_a_browser(installation: Installation, dovecote: Dovecote) -> None:
    with dovecote.sessions.create() as session, browser() as page:
        opened(page, installation, session)
        page.type("kept=here; echo is-$kept\r")
        page.until(f"{SCREEN}.includes('is-here')")
        size = page.ask("document.getElementById('size').textContent").split(" × ")
        until(lambda: session.run("stty -F /dev/pts/0 size").stdout.split() == size[::-1], "it has the page's size")
        page.call("Emulation.setDeviceMetricsOverride", width=700, height=400, deviceScaleFactor=1, mobile=False)
        until(lambda: session.run("stty -F /dev/pts/0 size").stdout.split() != size[::-1], "it follows the page's size")
        assert page.ask("document.documentElement.scrollHeight <= innerHeight")
        page.call("Page.reload")
        page.until(f"{STATE} === 'connected' && {SCREEN}.includes('is-here')")  # the same shell, as it was
        page.type("seq 200000; echo still-$kept\r")
        page.until(f"{SCREEN}.includes('still-here')")
        page.type("exit 4\r")
        page.until(f"{STATE} === 'ended with code 4'")
        page.ask("document.getElementById('again').click()")
        page.until(f"{STATE} === 'connected'")
        assert page.problems == []


def test_a_link_with_a_ticket_needs_no_key_and_works_once(installation: Installation, dovecote: Dovecote) -> None:
    with dovecote.sessions.create() as session, browser() as page:
        path = f"{installation.url}/v1/sessions/{session.id}/terminal:ticket"
        ticket = httpx.post(path, headers={"x-dovecote-key": installation.api_key}).json()["ticket"]
        link = f"{installation.url}/shell/{session.id}#ticket={ticket}"
        page.open(link)
        page.until(f"{STATE} === 'connected'")
        assert "ticket" not in page.ask("location.href")
        page.type("echo $((6*7))\r")
        page.until(f"{SCREEN}.includes('42')")
        page.open("about:blank")
        page.open(link)
        page.until("document.getElementById('problem').textContent.includes('ticket')")
        assert page.ask(STATE) == "closed"


def test_a_wrong_key_and_a_strange_session_are_said_plainly(installation: Installation, dovecote: Dovecote) -> None:
    with dovecote.sessions.create() as session, browser() as page:
        page.open(f"{installation.url}/shell/{session.id}")
        page.ask("document.getElementById('key').value = 'dvc_wrong'")
        page.ask("document.querySelector('form button').click()")
        page.until("document.getElementById('problem').textContent.includes('not one of this server')")
        page.open(f"{installation.url}/shell/ses_{'a' * 26}")
        page.ask(f"document.getElementById('key').value = {installation.api_key!r}")
        page.ask("document.querySelector('form button').click()")
        page.until("document.getElementById('problem').textContent.includes('no_such_session')")


def test_the_console_leads_to_it(installation: Installation, dovecote: Dovecote) -> None:
    with dovecote.sessions.create() as session, browser() as page:
        page.open(installation.url)
        page.ask(f"document.getElementById('key').value = {installation.api_key!r}")
        page.ask("document.querySelector('form button').click()")
        page.until(f"document.querySelector('a[href=\"shell/{session.id}\"]') !== null")
