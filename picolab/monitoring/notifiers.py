"""Who is told of an alert: `Terminal`, `Notebook`, `LogFile`, `Webhook`; or whatever has `tell` and
`close`.

A receiver must never hold up the monitor, nor the end of a run. Writing a line is quick; a webhook
is not, so it has a thread and a queue of its own. What does not fit into the queue, and what nobody
takes after a few tries, is counted and said (`trouble`), and not waited for.
"""

import html
import json
import queue
import socket
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Iterable
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from picolab.monitoring.alert_rules import Severity
from picolab.monitoring.alerts import Notification
from picolab.show import front_end, terminal

STYLES = {"page": "bold red", "ticket": "yellow", "resolved": "green"}
AGAIN = (408, 425, 429)
"""answers of 4xx after which the same may be sent once more"""


class _Told:
    """severity: "page" leaves the tickets out."""

    trouble: str | None = None
    """why somebody was not told, if so"""

    def __init__(self, severity: Severity = "ticket"):
        if severity not in ("page", "ticket"):
            raise ValueError(f"severity is {severity!r}; it is 'page', or 'ticket' for both")
        self.severity = severity

    def start(self) -> None:
        """A run is watched from now on, by the cell that is running."""

    def tell(self, notification: Notification) -> None:
        if self.severity == "ticket" or notification.severity == "page":
            self._tell(notification)

    def _tell(self, notification: Notification) -> None:
        raise NotImplementedError

    def close(self) -> None:
        pass

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class Terminal(_Told):
    """A line or two on stderr: red what is wrong and loses work, green what has gone."""

    def _tell(self, notification: Notification) -> None:
        gone = notification.state == "resolved"
        console = terminal.console(stderr=True)
        style = STYLES["resolved" if gone else notification.severity]
        console.print(notification.text, style=style)
        if notification.about and not gone:
            console.print(f"  {notification.about}")


class Notebook(_Told):
    """The newest messages below the cell in which the watching began, wherever they come from."""

    LINES = 12

    def __init__(self, severity: Severity = "ticket"):
        super().__init__(severity)
        from IPython.display import HTML, display

        self._html, self._display, self._shown = HTML, display, None
        self._told: deque[str] = deque(maxlen=self.LINES)

    def start(self) -> None:
        self._shown = self._display(self._html("<em>no alert so far</em>"), display_id=True)

    def _tell(self, notification: Notification) -> None:
        about = f"<br><small>{html.escape(notification.about)}</small>"
        text = html.escape(notification.text).replace("\n", "<br>")
        gone = notification.state == "resolved"
        self._told.append(f"<div>{text}{'' if gone or not notification.about else about}</div>")
        if self._shown is None:
            self.start()
        if self._shown is not None:  # (no display without IPython's shell)
            self._shown.update(self._html("".join(self._told)))


class LogFile(_Told):
    """A line for each alert, with the time, appended."""

    def __init__(self, path: str | Path, severity: Severity = "ticket"):
        super().__init__(severity)
        self.path = Path(path).expanduser()
        if not self.path.parent.is_dir():
            raise ValueError(f"there is no folder {self.path.parent} for the log of alerts")

    def _tell(self, notification: Notification) -> None:
        now = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        try:
            with open(self.path, "a", encoding="utf-8") as file:
                file.writelines(f"{now} {line}\n" for line in notification.text.split("\n"))
        except OSError as error:
            self.trouble = f"{self.path} cannot be written: {error.strerror or error}"


class _Final(Exception):
    """Sending it once more would not help."""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """(urllib would go on with a GET, and the message would be lost without a word.)"""

    def redirect_request(self, request, file, code, message, headers, url):
        raise _Final(f"answers {code}: it has moved to {_host(url)}; give the new address")


class Webhook(_Told):
    """POST as JSON: {"state", "severity", "text", "about", "alerts"}, by a thread.

    timeout_s  for an answer; then again, `tries` times in all, after 1, 2, 4, ... `wait_s`
    kept       messages that wait; of more the oldest are given up
    close_s    so long `close` waits at most for what is still to be told"""

    def __init__(
        self,
        url: str,
        severity: Severity = "ticket",
        timeout_s: float = 3.0,
        tries: int = 4,
        wait_s: float = 0.5,
        kept: int = 100,
        close_s: float = 2.0,
    ):
        super().__init__(severity)
        parts = urlsplit(url if isinstance(url, str) else "")
        if parts.scheme not in ("http", "https") or not parts.hostname or set(url) & set(" \t\r\n"):
            raise ValueError(
                "a webhook is an address such as https://chat.example.org/hooks/123, and "
                f"{url if not parts.netloc else _host(url)!r} is none"
            )
        self.url, self.timeout_s, self.tries = url, timeout_s, tries
        self.wait_s, self.close_s = wait_s, close_s
        self.delivered, self.given_up = 0, 0
        # (A proxy is for what is outside.)
        local = parts.hostname in ("localhost", "127.0.0.1", "::1")
        proxies = [urllib.request.ProxyHandler({})] if local else []
        self._opener = urllib.request.build_opener(_NoRedirect, *proxies)
        self._waiting: queue.Queue[bytes | None] = queue.Queue(kept)
        self._closing = threading.Event()
        self._until = float("inf")
        self._thread: threading.Thread | None = None

    def _tell(self, notification: Notification) -> None:
        told = {
            "state": notification.state,
            "severity": notification.severity,
            "text": notification.text,
            "about": notification.about,
            "alerts": [alert._asdict() for alert in notification.alerts],
        }
        self._put(json.dumps(told).encode())

    def _put(self, message: bytes | None) -> None:
        if self._thread is None:
            name = "picolab-webhook"
            self._thread = threading.Thread(target=self._send_all, name=name, daemon=True)
            self._thread.start()
        while True:
            try:
                self._waiting.put_nowait(message)
                return
            except queue.Full:
                try:
                    self._waiting.get_nowait()
                except queue.Empty:
                    continue  # its thread was faster
                self._give_up("takes messages more slowly than they come")

    def close(self) -> None:
        if self._closing.is_set() or self._thread is None:
            return
        self._until = time.monotonic() + self.close_s
        self._closing.set()
        self._put(None)
        self._thread.join(self.close_s)
        left = self._waiting.qsize() - (not self._thread.is_alive())
        if self._thread.is_alive():
            self._give_up("did not answer before the end", count=max(1, left))

    def _send_all(self) -> None:
        while (message := self._waiting.get()) is not None:
            try:
                self._send(message)
            except _Final as why:
                self._give_up(str(why))
            else:
                self.delivered += 1

    def _send(self, message: bytes) -> None:
        why = "did not answer before the end"
        for number in range(self.tries):
            left = self._until - time.monotonic()
            if left <= 0:
                break
            try:
                self._post(message, min(self.timeout_s, left))
                return
            except urllib.error.HTTPError as error:
                why = f"answers {error.code} {error.reason}"
                if error.code < 500 and error.code not in AGAIN:
                    break
            except (OSError, HTTPException) as error:
                reason = getattr(error, "reason", error)
                late = isinstance(reason, socket.timeout)
                why = f"gave no answer in {self.timeout_s:g} s" if late else f"failed: {reason}"
            if number + 1 < self.tries and not self._closing.is_set():
                self._closing.wait(self.wait_s * 2**number)
        raise _Final(why)

    def _post(self, message: bytes, timeout_s: float) -> None:
        kind = {"Content-Type": "application/json"}
        request = urllib.request.Request(self.url, message, kind, method="POST")
        with self._opener.open(request, timeout=timeout_s):
            pass  # what it says beyond its status is nobody's here

    def _give_up(self, why: str, count: int = 1) -> None:
        self.given_up += count
        # (The path of an address is often its password.)
        self.trouble = f"{self.given_up} alert(s) were not told: {_host(self.url)} {why}"


def _host(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname}" + (f":{parts.port}" if parts.port else "")


NAMED = {"notebook": Notebook, "terminal": Terminal}


def made(notify: Any, log: Any = None, webhook: Any = None) -> list:
    """What the settings ask for. notify: "auto", a name, a notifier, or several in a list."""
    if notify == "auto":
        if front_end.shell() is not None:
            notify = ["notebook"]
        else:
            notify = ["terminal"] if sys.stderr.isatty() else []
    several = notify if isinstance(notify, Iterable) and not isinstance(notify, str) else [notify]
    found = []
    for one in several:
        if isinstance(one, str) and one in NAMED:
            found.append(NAMED[one]())
        elif callable(getattr(one, "tell", None)) and callable(getattr(one, "close", None)):
            found.append(one)
        else:
            raise ValueError(
                f"notify has {one!r}; it takes 'auto', 'notebook', 'terminal', or an object with "
                "tell(notification) and close(), one or several in a list"
            )
    found += [] if log is None else [LogFile(log)]
    return found + ([] if webhook is None else [Webhook(webhook)])
