"""Headless Chromium through its pipe, with Python's own library: enough of the DevTools protocol to open a
local page, type, click, look and take pictures. Imported by test_report.py."""
import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import tempfile
import time

NAMES = ("chromium", "chromium-browser", "google-chrome")


class BrowserError(Exception):
    pass


class Browser:
    """One browser with one page. Collects complaints of its console and every request that it makes."""

    def __init__(self):
        program = next((p for p in map(shutil.which, NAMES) if p), None)
        if not program:
            raise BrowserError("no Chromium: install the package chromium")
        self.profile = tempfile.mkdtemp(prefix="vkmoe-browser-")
        self.complaints, self.requests, self.events = [], [], []
        self.next_id, self.buffer, self.session = 1, b"", None
        command_read, self.to = os.pipe()
        self.read, events_write = os.pipe()
        ends = [fcntl.fcntl(fd, fcntl.F_DUPFD, 10) for fd in (command_read, events_write)]
        os.close(command_read)
        os.close(events_write)

        def connect():  # the browser reads commands from 3 and writes answers to 4
            os.dup2(ends[0], 3)
            os.dup2(ends[1], 4)

        command = [program, "--headless=new", "--remote-debugging-pipe", "--no-first-run", "--disable-gpu",
                   "--disable-extensions", "--disable-background-networking",
                   "--disable-component-update", "--disable-dev-shm-usage", "--hide-scrollbars",
                   "--user-data-dir=" + self.profile, "about:blank"]
        if os.getuid() == 0:
            command.insert(1, "--no-sandbox")
        nothing = subprocess.DEVNULL
        self.process = subprocess.Popen(command, preexec_fn=connect, pass_fds=(3, 4), stdin=nothing,
                                        stdout=nothing, stderr=nothing)
        for fd in ends:
            os.close(fd)
        pages = [t for t in self.call("Target.getTargets")["targetInfos"] if t["type"] == "page"]
        target = pages[0] if pages else self.call("Target.createTarget", url="about:blank")
        target = self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self.session = target["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(domain + ".enable")

    def close(self):
        try:
            self.session = None
            self.call("Browser.close")
        except BrowserError:
            pass
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        os.close(self.to)
        os.close(self.read)
        shutil.rmtree(self.profile, ignore_errors=True)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    # ---- the protocol: JSON objects with a NUL behind each

    def message(self, end):
        while b"\0" not in self.buffer:
            left = end - time.monotonic()
            if left <= 0 or not select.select([self.read], [], [], left)[0]:
                raise BrowserError("the browser does not answer")
            part = os.read(self.read, 1 << 16)
            if not part:
                raise BrowserError("the browser ended")
            self.buffer += part
        text, self.buffer = self.buffer.split(b"\0", 1)
        return json.loads(text)

    def note(self, event):
        name, p = event["method"], event.get("params", {})
        if name == "Runtime.exceptionThrown":
            d = p["exceptionDetails"]
            self.complaints.append(d.get("exception", {}).get("description") or d["text"])
        elif name == "Runtime.consoleAPICalled" and p["type"] in ("error", "warning", "assert"):
            self.complaints.append("console: " + " ".join(str(a.get("value")) for a in p["args"]))
        elif name == "Log.entryAdded" and p["entry"]["level"] in ("error", "warning"):
            self.complaints.append("log: " + p["entry"]["text"])
        elif name == "Network.requestWillBeSent":
            self.requests.append(p["request"]["url"])
        self.events.append(name)

    def call(self, method, **params):
        number, self.next_id = self.next_id, self.next_id + 1
        message = {"id": number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        try:
            os.write(self.to, json.dumps(message).encode() + b"\0")
        except OSError as e:
            raise BrowserError("the browser is gone: %s" % e) from e
        end = time.monotonic() + 60
        while True:
            answer = self.message(end)
            if answer.get("id") == number:
                if "error" in answer:
                    raise BrowserError("%s: %s" % (method, answer["error"]["message"]))
                return answer.get("result", {})
            if "method" in answer:
                self.note(answer)

    # ---- what a person does

    def open(self, url):
        self.events.clear()
        self.call("Page.navigate", url=url)
        end = time.monotonic() + 60
        while "Page.loadEventFired" not in self.events:
            event = self.message(end)
            if "method" in event:
                self.note(event)

    def js(self, expression):
        r = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in r:
            d = r["exceptionDetails"]
            why = d.get("exception", {}).get("description") or d["text"]
            raise BrowserError("%s: %s" % (expression, why))
        return r["result"].get("value")

    def size(self, width, height, phone=False):
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height,
                  deviceScaleFactor=2 if phone else 1, mobile=phone)

    def colours(self, scheme):
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def box(self, selector):
        """x, y, width, height of an element, scrolled into view."""
        return self.js("""(() => { const e = document.querySelector(%s);
            if (!e) throw new Error("no element " + %s);
            e.scrollIntoView({block: "center", inline: "nearest", behavior: "instant"});
            const b = e.getBoundingClientRect(); return [b.x, b.y, b.width, b.height]; })()"""
                       % (json.dumps(selector), json.dumps(selector)))

    def move(self, x, y):
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def hover(self, selector, dx=None, dy=None):
        """Over a point of the element, relative to its corner; its middle where none is given."""
        x, y, w, h = self.box(selector)
        self.move(x + (w / 2 if dx is None else dx), y + (h / 2 if dy is None else dy))

    def click(self, selector):
        x, y, w, h = self.box(selector)
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x + w / 2, y=y + h / 2, button="left",
                      clickCount=1)

    def key(self, name, times=1):
        codes = {"ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40, "Home": 36, "End": 35,
                 "Tab": 9, "Enter": 13, "Escape": 27, " ": 32}
        text = {"text": "\r"} if name == "Enter" else {"text": " "} if name == " " else {}
        key = {"key": name, "code": "Space" if name == " " else name, "windowsVirtualKeyCode": codes[name]}
        for _ in range(times):
            self.call("Input.dispatchKeyEvent", type="keyDown", **key, **text)
            self.call("Input.dispatchKeyEvent", type="keyUp", **key)

    def picture(self, path, whole=False):
        r = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        with open(path, "wb") as f:
            f.write(base64.b64decode(r["data"]))
