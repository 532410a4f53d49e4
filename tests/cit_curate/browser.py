"""Headless Chromium, asked over a pipe: what a page becomes, and all that it tries to do."""

import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# Touches everything as a reader could, and follows every link.
_TOUCH = """
for (const element of document.querySelectorAll('*'))
  for (const kind of ['mouseover', 'focus', 'load', 'error', 'toggle', 'animationstart'])
    element.dispatchEvent(new Event(kind));
for (const link of document.querySelectorAll('a')) link.click();
"""

# Gives milliseconds once the page's load event has been handled, or was before.
_LOADED = """
new Promise(done => {
  const { timing } = performance;
  const tell = () => setTimeout(() => done(timing.loadEventEnd - timing.navigationStart));
  if (document.readyState === 'complete') tell(); else addEventListener('load', tell);
})
"""


@dataclass
class Visit:
    """A page after a while.

    Attributes:
        title: Its title then.
        document: Its markup then.
        dialogs: Messages of the dialogs it opened.
        requests: Addresses it asked for, but its own and data URIs.
    """

    title: str = ""
    document: str = ""
    dialogs: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


class Browser:
    """A running Chromium."""

    def __init__(self, profile: Path) -> None:
        browser = shutil.which("chromium") or shutil.which("chromium-browser")
        assert browser, "this test needs Chromium: apt-get install chromium"
        asks, self._asked = os.pipe()
        self._answers, answered = os.pipe()
        flags = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking")
        flags += ("--remote-debugging-pipe", f"--user-data-dir={profile}")
        # Chromium reads what it is asked from descriptor 3 and answers on 4.
        command = ["bash", "-c", f'exec "$@" 3<&{asks} 4>&{answered}', "bash", browser, *flags]
        self._process = subprocess.Popen(
            command, pass_fds=(asks, answered), stderr=subprocess.DEVNULL
        )
        os.close(asks)
        os.close(answered)
        self._read = b""
        self._number = 0
        self._session: dict[str, str] = {}
        self._visit = Visit()
        target = self._ask("Target.createTarget", url="about:blank")["targetId"]
        attached = self._ask("Target.attachToTarget", targetId=target, flatten=True)
        self._session = {"sessionId": attached["sessionId"]}
        for domain in ("Page", "Network", "Runtime"):
            self._ask(f"{domain}.enable")

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()
        os.close(self._asked)
        os.close(self._answers)

    def visit(self, page: Path) -> Visit:
        """Open a page, touch everything on it, and see what it has become a second later."""
        self._visit, own = Visit(), page.as_uri()
        self._ask("Page.navigate", url=own)
        self._listen(1.0)
        self._evaluated(_TOUCH)
        self._listen(1.0)
        self._visit.title = self._evaluated("document.title")
        self._visit.document = self._evaluated("document.documentElement.outerHTML")
        foreign = [url for url in self._visit.requests if not url.startswith(("data:", own))]
        self._visit.requests = foreign
        return self._visit

    def seconds_to_load(self, page: Path) -> float:
        """Open a page, and see how long after its navigation began its load event was over."""
        self._visit = Visit()
        self._ask("Page.navigate", url=page.as_uri())
        return float(self._evaluated(_LOADED)) / 1000

    def _listen(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            if b"\0" in self._read or select.select([self._answers], [], [], left)[0]:
                self._heard(self._next())

    def _evaluated(self, expression: str) -> Any:
        """The value of an expression; of a promise, once it has one."""
        answer = self._ask(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        return answer["result"].get("value")

    def _ask(self, method: str, **parameters: object) -> Any:
        number = self._send(method, **parameters)
        while True:
            message = self._next()
            if message.get("id") == number:
                assert "error" not in message, message
                return message["result"]
            self._heard(message)

    def _send(self, method: str, **parameters: object) -> int:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters, **self._session}
        os.write(self._asked, json.dumps(message).encode() + b"\0")
        return self._number

    def _next(self) -> Mapping[str, Any]:
        while b"\0" not in self._read:
            assert select.select([self._answers], [], [], 30)[0], "the browser is silent"
            piece = os.read(self._answers, 1 << 20)
            assert piece, "the browser has ended"
            self._read += piece
        message, _, self._read = self._read.partition(b"\0")
        heard: Mapping[str, Any] = json.loads(message)
        return heard

    def _heard(self, message: Mapping[str, Any]) -> None:
        """Remember an event, and close a dialog, which would stop everything else."""
        event, details = message.get("method"), message.get("params", {})
        if event == "Page.javascriptDialogOpening":
            self._visit.dialogs.append(details["message"])
            self._send("Page.handleJavaScriptDialog", accept=True)
        elif event == "Network.requestWillBeSent":
            self._visit.requests.append(details["request"]["url"])
