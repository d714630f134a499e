"""A headless Chromium over the pipe of its DevTools protocol: no driver and no network are needed."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

PROGRAM = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")
_OPTIONS = (
    *("--headless", "--no-sandbox", "--remote-debugging-pipe", "--no-first-run", "--disable-extensions"),
    *("--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--disable-dev-shm-usage", "--mute-audio"),
    *("--disable-background-networking", "--disable-component-update", "--hide-scrollbars"),
)


class Page:
    """One page of a browser of its own; what it asks for and what it complains about are kept."""

    def __init__(self, profile: Path) -> None:
        assert PROGRAM is not None
        (reads, self._send), (self._receive, writes) = os.pipe(), os.pipe()

        def place() -> None:  # the browser reads from 3 and writes to 4
            spare = [os.dup(end) for end in (reads, writes)]
            os.dup2(spare[0], 3)
            os.dup2(spare[1], 4)

        self.process = subprocess.Popen(
            [PROGRAM, *_OPTIONS, f"--user-data-dir={profile}", "about:blank"],
            preexec_fn=place,
            close_fds=False,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(reads)
        os.close(writes)
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self._bytes, self._number, self._session = b"", 0, None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Network", "Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **arguments: Any) -> dict[str, Any]:
        """Call a method of the protocol and return its result."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": arguments}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._send, json.dumps(message).encode() + b"\0")
        while True:
            found = self._read()
            if found.get("id") == self._number:
                assert "error" not in found, found["error"]
                return found["result"]

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._bytes:
            assert select.select([self._receive], [], [], 60)[0], "the browser does not answer"
            part = os.read(self._receive, 1 << 20)
            assert part, "the browser has ended"
            self._bytes += part
        line, _, self._bytes = self._bytes.partition(b"\0")
        message = json.loads(line)
        about = message.get("params", {})
        match message.get("method"):
            case "Network.requestWillBeSent":
                self.requests.append(about["request"]["url"][:200])
            case "Runtime.exceptionThrown":
                self.complaints.append(str(about["exceptionDetails"])[:2000])
            case "Runtime.consoleAPICalled" if about["type"] in ("error", "warning", "assert"):
                self.complaints.append(str([each.get("value", each) for each in about["args"]])[:2000])
            case "Log.entryAdded" if about["entry"]["level"] in ("error", "warning"):
                self.complaints.append(about["entry"]["text"])
        return message

    def open(self, path: Path, *, width: int = 1280, height: int = 800, dark: bool = False) -> None:
        """Open a file and wait until it shows its body; a narrow page is a phone's."""
        phone = width < 600
        size = {"width": width, "height": height, "deviceScaleFactor": 2 if phone else 1, "mobile": phone}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        self.call("Emulation.setTouchEmulationEnabled", enabled=phone)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        still = {"name": "prefers-reduced-motion", "value": "reduce"}
        self.call("Emulation.setEmulatedMedia", features=[scheme, still])
        self.call("Page.navigate", url=path.resolve().as_uri())
        self.wait_for("window.agebody !== undefined")

    def wait_for(self, expression: str, seconds: float = 60) -> None:
        """Wait until an expression is true."""
        end = time.monotonic() + seconds
        while not self.run(expression):
            assert time.monotonic() < end, f"{expression} did not come true; {self.complaints}"
            time.sleep(0.05)

    def run(self, expression: str) -> Any:
        """Return the value of an expression, and of what it promises."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def box(self, selector: str) -> tuple[float, float, float, float]:
        """Return the left, top, width and height of an element, scrolled to [CSS pixels]."""
        find = f"document.querySelector({json.dumps(selector)})"
        self.run(f"{find}.scrollIntoView({{block: 'center'}})")
        return tuple(self.run(f"(b => [b.x, b.y, b.width, b.height])({find}.getBoundingClientRect())"))

    def drag(self, start: tuple[float, float], end: tuple[float, float], *, touch: bool = False) -> None:
        """Drag with the mouse or a finger."""
        for kind, (x, y) in (("press", start), ("move", end), ("release", end)):
            if touch:
                name = {"press": "touchStart", "move": "touchMove", "release": "touchEnd"}[kind]
                points = [] if kind == "release" else [{"x": x, "y": y}]
                self.call("Input.dispatchTouchEvent", type=name, touchPoints=points)
            else:
                name = {"press": "mousePressed", "move": "mouseMoved", "release": "mouseReleased"}[kind]
                about = {"button": "left", "buttons": int(kind != "release"), "clickCount": 1}
                self.call("Input.dispatchMouseEvent", type=name, x=x, y=y, **about)

    def screenshot(self) -> bytes:
        """Return a picture of the page, as PNG."""
        return base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])

    def close(self) -> None:
        """End the browser."""
        os.close(self._send)
        os.close(self._receive)
        self.process.terminate()
        self.process.wait(30)
