"""Who is told, and that no receiver holds anybody up: a webhook on the loopback interface that is
dead, slow, failing, or has moved.

The mutants: one that tells in the caller's thread waits for a slow receiver, one that follows a
redirect loses the message.
"""

import json
import threading
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from picolab.monitoring.alert_history import Transition
from picolab.monitoring.alerts import Notification
from picolab.monitoring.notifiers import LogFile, Notebook, Terminal, Webhook, _NoRedirect, made

LONG_S = 20
"""far beyond what anybody may be held up here; a deadline, and no measurement"""


def note(text="rank 2 comes late", state="firing", severity="ticket", step=61):
    of = Transition(62, 5.0, step, "slow rank", 2, state, severity, None, text, None)
    return Notification(state, severity, (of,), "look at its fan")


class Receiver:
    """Answers with these statuses, the last one for ever; keeps what it was sent."""

    def __init__(self, *statuses, headers=(), wait=None):
        self.got, self.paths, statuses = [], [], list(statuses)
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.paths.append(("POST", self.path))
                if wait is not None:
                    wait.wait(LONG_S)
                status = statuses.pop(0) if len(statuses) > 1 else statuses[0]
                if status == 200:
                    receiver.got.append(json.loads(body))
                self.send_response(status)
                for name, value in headers:
                    self.send_header(name, value)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def do_GET(self):
                receiver.paths.append(("GET", self.path))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/hooks/secret"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *args):
        self.server.shutdown()
        self.server.server_close()


def settled(webhook, count):
    """Wait until so many were delivered or given up."""
    until = time.monotonic() + LONG_S
    while webhook.delivered + webhook.given_up < count and time.monotonic() < until:
        time.sleep(0.005)
    return webhook.delivered, webhook.given_up


def test_what_a_webhook_is_sent():
    with Receiver(200) as receiver:
        webhook = Webhook(receiver.url)
        webhook.tell(note())
        webhook.close()
        webhook.close()  # twice is once
    [told] = receiver.got
    assert told["state"] == "firing" and told["about"] == "look at its fan"
    assert told["text"] == "ticket: slow rank, rank 2 (step 61): rank 2 comes late"
    assert told["alerts"][0]["rank"] == 2 and webhook.delivered == 1 and webhook.trouble is None


def test_it_tries_again_after_what_may_pass_and_not_after_what_will_not():
    with Receiver(500, 503, 429, 200) as receiver:
        webhook = Webhook(receiver.url, wait_s=0.001)
        webhook.tell(note())
        assert settled(webhook, 1) == (1, 0) and len(receiver.paths) == 4
    with Receiver(500) as receiver:
        webhook = Webhook(receiver.url, wait_s=0.001)
        webhook.tell(note())
        assert settled(webhook, 1) == (0, 1) and len(receiver.paths) == 4
        assert "answers 500 Internal Server Error" in webhook.trouble
        assert "secret" not in webhook.trouble
    with Receiver(404) as receiver:
        webhook = Webhook(receiver.url, wait_s=0.001)
        webhook.tell(note())
        assert settled(webhook, 1) == (0, 1) and len(receiver.paths) == 1
        assert webhook.trouble.startswith("1 alert(s) were not told: http://127.0.0.1:")


@pytest.mark.parametrize("status", [301, 302, 307])
def test_a_redirect_is_said_and_not_followed(status, monkeypatch):
    with Receiver(200) as new:
        moved = [("Location", new.url.replace("/hooks/secret", "/there"))]
        with Receiver(status, headers=moved) as old:
            webhook = Webhook(old.url, wait_s=0.001)
            webhook.tell(note())
            assert settled(webhook, 1) == (0, 1) and new.paths == [] and len(old.paths) == 1
            assert f"answers {status}: it has moved to http://127.0.0.1:" in webhook.trouble
            if status == 302:  # the mutant: urllib's own way is a GET, and the message is lost
                theirs = urllib.request.HTTPRedirectHandler.redirect_request
                monkeypatch.setattr(_NoRedirect, "redirect_request", theirs)
                webhook.tell(note())
                assert settled(webhook, 2) == (1, 1)
                assert new.paths == [("GET", "/there")] and new.got == []


def test_a_dead_receiver_holds_nobody_up():
    with Receiver(200) as receiver:
        url = receiver.url
    webhook = Webhook(url, wait_s=0.001, close_s=0.2)  # nobody listens there now
    began = time.monotonic()
    for _ in range(300):
        webhook.tell(note())
    webhook.close()
    assert time.monotonic() - began < LONG_S
    assert (webhook.delivered == 0 and "refused" in webhook.trouble) or "more slowly" in (
        webhook.trouble
    )


def test_a_slow_receiver_holds_nobody_up_and_the_oldest_are_given_up():
    """Its answer comes when the test lets it. The mutant, which tells in the caller's thread, waits
    for its timeout with each."""
    answer = threading.Event()
    with Receiver(200, wait=answer) as receiver:
        webhook = Webhook(receiver.url, kept=3, timeout_s=LONG_S, close_s=0.1)
        webhook.tell(note("0"))
        until = time.monotonic() + LONG_S
        while not receiver.paths and time.monotonic() < until:
            time.sleep(0.005)
        for number in range(1, 9):
            webhook.tell(note(str(number)))
        assert webhook.given_up == 5 and "more slowly than they come" in webhook.trouble
        webhook.close()
        assert webhook.given_up > 5 and "before the end" in webhook.trouble
        answer.set()
        webhook._thread.join(LONG_S)
        assert not webhook._thread.is_alive()
        assert [told["text"][-1] for told in receiver.got][:1] == ["0"]
    answer.clear()
    with Receiver(200, wait=answer) as receiver:
        webhook = Webhook(receiver.url, timeout_s=0.05, tries=1)
        began = time.monotonic()
        with pytest.raises(Exception, match=r"gave no answer in 0\.05 s"):
            webhook._send(b"{}")  # the mutant: whoever calls this has waited
        assert time.monotonic() - began >= 0.05
        answer.set()


@pytest.mark.parametrize("url", ["file:///etc/passwd", "127.0.0.1:80", "http://", "http://a b", 3])
def test_what_is_no_address(url):
    with pytest.raises(ValueError, match="a webhook is an address such as https://"):
        Webhook(url)


def test_a_terminal_and_a_log(tmp_path, capsys):
    Terminal().tell(note("\x1b[2J"))
    assert capsys.readouterr().err == (
        "ticket: slow rank, rank 2 (step 61): \\x1b[2J\n  look at its fan\n"
    )
    log = LogFile(tmp_path / "log", severity="page")
    for severity in ("ticket", "page"):
        log.tell(note(severity=severity))
    log.tell(note(state="resolved", severity="page"))
    lines = (tmp_path / "log").read_text().splitlines()
    assert [line.split(" ", 1)[1].split(":")[0] for line in lines] == ["page", "resolved"]
    log.path = tmp_path
    log.tell(note(severity="page"))
    assert "cannot be written: Is a directory" in log.trouble
    with pytest.raises(ValueError, match="there is no folder"):
        LogFile(tmp_path / "none" / "log")
    with pytest.raises(ValueError, match="severity is 'all'"):
        Terminal(severity="all")


def test_a_notebook(monkeypatch):
    """One display, made in the cell and changed from any thread."""
    import IPython.display

    shown = []

    class Handle:
        def update(self, made):
            shown.append(made.data)

    monkeypatch.setattr(IPython.display, "display", lambda *args, **more: Handle())
    notebook = Notebook()
    for number in range(20):
        notebook.tell(note(f"<{number}>"))
    assert len(shown) == 20 and shown[-1].count("<div>") == Notebook.LINES
    assert "&lt;19&gt;" in shown[-1] and "&lt;7&gt;" not in shown[-1]


def test_who_is_asked_for():
    assert made([]) == [] and made("auto") == []  # (nobody looks at a test)
    terminal = Terminal()
    assert made([terminal]) == [terminal] and isinstance(made("terminal")[0], Terminal)
    for wrong in ("pager", 3, [print]):
        with pytest.raises(ValueError, match=r"notify has .* it takes 'auto', 'notebook'"):
            made(wrong)
