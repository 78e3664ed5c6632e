"""Pages in headless Chromium, over its debugging pipe: what a reader's browser would complain of.

`python -m tests.chromium PAGE PICTURE` writes a picture of the top of a page as a PNG with a palette.
"""

import base64
import contextlib
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome", "chrome")
PROGRAM = next(filter(None, map(shutil.which, NAMES)), None)
"""The browser that is installed; None where there is none."""
LONGEST = 60.0
"""Seconds for which the browser may say nothing."""
OPTIONS = (
    "--headless=new",
    "--remote-debugging-pipe",
    "--no-sandbox",  # the pages are our own, and the user may be root
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--hide-scrollbars",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-extensions",
    "--host-resolver-rules=MAP * ~NOTFOUND",  # nothing leaves this machine, whatever a page asks for
)
LOOK = """(() => {
  const root = document.documentElement, wide = root.clientWidth;
  const scrolls = e => getComputedStyle(e).overflowX !== "visible";
  const clipped = e => e && e !== document.body && (scrolls(e) || clipped(e.parentElement));
  const beyond = e => {
    const { left, right } = e.getBoundingClientRect();
    return e.checkVisibility() && left < wide && right > wide + 1 && !clipped(e.parentElement);
  };
  const name = e => [e.tagName.toLowerCase(), e.id, e.getAttribute("class")].filter(Boolean).join(" ");
  return JSON.stringify({
    width: root.scrollWidth, wide,
    beyond: [...document.body.querySelectorAll("*")].filter(beyond).slice(0, 5).map(name),
    missing: [...document.images].filter(i => !(i.complete && i.naturalWidth)).map(i => i.src.slice(0, 120)),
  });
})()"""
"""What is wider than the window without a scroll bar of its own, and which images have not loaded."""


class Browser:
    """A running browser: commands are written to one pipe, answers and events read from another."""

    def __init__(self, process: subprocess.Popen, commands: int, answers: int) -> None:
        self._process, self._commands, self._answers = process, commands, answers
        self._read, self._count = b"", 0
        self.events: list[dict[str, Any]] = []

    def ask(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        """Give a command and wait for its answer; events that come first are kept."""
        self._count += 1
        message = {"id": self._count, "method": method, "params": parameters}
        os.write(self._commands, json.dumps(message | ({"sessionId": session} if session else {})).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") != self._count:
                self.events.append(answer)
            elif "error" in answer:
                raise RuntimeError(f"{method}: {answer['error']}")
            else:
                return answer["result"]

    def wait(self, event: str) -> None:
        """Wait for an event."""
        while not any(each["method"] == event for each in self.events):
            self.events.append(self._next())

    def settle(self, seconds: float) -> None:
        """Take events until none has come for so long."""
        while b"\0" in self._read or select.select([self._answers], [], [], seconds)[0]:
            self.events.append(self._next())

    def _next(self) -> dict[str, Any]:
        end = time.monotonic() + LONGEST
        while b"\0" not in self._read:
            if not select.select([self._answers], [], [], max(0.0, end - time.monotonic()))[0]:
                raise TimeoutError(f"Chromium has said nothing for {LONGEST:.0f} s.")
            part = os.read(self._answers, 1 << 16)
            if not part:
                raise RuntimeError(f"Chromium has ended with status {self._process.wait(timeout=10)}.")
            self._read += part
        line, self._read = self._read.split(b"\0", 1)
        return json.loads(line)


@contextlib.contextmanager
def browser(profile: Path) -> Iterator[Browser]:
    """Start Chromium with a profile of its own, and end it.

    Args:
        profile: An empty folder.
    """
    assert PROGRAM is not None
    theirs, commands = os.pipe()
    answers, to_us = os.pipe()
    line = f'exec "$@" 3<&{theirs} 4>&{to_us}'
    run = ["bash", "-c", line, "bash", PROGRAM, *OPTIONS, f"--user-data-dir={profile}"]
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(run, stdin=quiet, stdout=quiet, stderr=quiet, pass_fds=(theirs, to_us))
    os.close(theirs)
    os.close(to_us)
    opened = Browser(process, commands, answers)
    try:
        yield opened
        opened.ask("Browser.close")
        process.wait(timeout=LONGEST)
    finally:
        process.kill()
        process.wait(timeout=LONGEST)
        os.close(commands)
        os.close(answers)


def look(
    opened: Browser, page: Path, width: int, height: int = 800, picture: Path | None = None, root: Path | None = None
) -> list[str]:
    """Open a page in a window of a width in pixels and list what is wrong with it.

    Args:
        opened: The browser.
        page: The file.
        width: Of the window, in pixels.
        height: Of the window, in pixels.
        picture: Where a picture of the window is written, where given.
        root: The folder whose files the page may ask for; its own where None.

    Returns:
        Console errors, requests that leave the folder, images that have not loaded, and what is wider than the
        window.
    """
    target = opened.ask("Target.createTarget", url="about:blank")["targetId"]
    session = opened.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
    opened.events.clear()
    for domain in ("Page", "Runtime", "Log", "Network"):
        opened.ask(f"{domain}.enable", session)
    screen = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
    opened.ask("Emulation.setDeviceMetricsOverride", session, **screen)
    opened.ask("Page.navigate", session, url=page.resolve().as_uri())
    opened.wait("Page.loadEventFired")
    opened.ask(
        "Runtime.evaluate", session, expression="document.querySelectorAll('details').forEach(d => d.open = true)"
    )
    opened.settle(0.2)
    seen = json.loads(opened.ask("Runtime.evaluate", session, expression=LOOK)["result"]["value"])
    if picture is not None:
        taken = opened.ask("Page.captureScreenshot", session, format="png")
        picture.write_bytes(base64.b64decode(taken["data"]))
    opened.ask("Target.closeTarget", targetId=target)
    folder = (root or page.parent).resolve().as_uri()
    wrong = [said for each in opened.events if (said := complaint(each, folder))]
    wrong += [f"image not loaded: {each}" for each in seen["missing"]]
    if seen["width"] > seen["wide"] or seen["beyond"]:
        wrong.append(f"wider than the window: {seen['width']} pixels of {seen['wide']}: {', '.join(seen['beyond'])}")
    return wrong


def complaint(event: dict[str, Any], folder: str) -> str:
    """What an event tells that is wrong; nothing for all others."""
    method, told = event["method"], event.get("params", {})
    if method == "Runtime.exceptionThrown":
        return f"exception: {told['exceptionDetails'].get('exception', {}).get('description', told)}"
    if method == "Runtime.consoleAPICalled" and told["type"] in ("error", "assert"):
        return f"console: {[each.get('value') for each in told['args']]}"
    if method == "Log.entryAdded" and told["entry"]["level"] == "error":
        return f"console: {told['entry']['text']} {told['entry'].get('url', '')[:120]}"
    if method == "Network.requestWillBeSent":
        url = told["request"]["url"]
        return "" if url.startswith((folder, "data:", "blob:")) else f"request: {url[:120]}"
    return ""


def main(page: Path, picture: Path) -> None:
    """Write a picture of the top of a page, of 128 colours, so that it is small."""
    from PIL import Image

    with tempfile.TemporaryDirectory() as profile, browser(Path(profile)) as opened:
        look(opened, page, 1180, 1240, picture)
    Image.open(picture).convert("RGB").quantize(128, dither=Image.Dither.NONE).save(picture, optimize=True)
    print(f"{picture}: {picture.stat().st_size:,} bytes")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
