"""A page as a browser without a screen shows it."""

import json
import re
import shutil
import subprocess
from typing import NamedTuple

import pytest

REPORT = """<script>
window.failures = [];
window.onerror = message => { failures.push(message); };
</script>"""

PROBE = """<script>
addEventListener("load", () => {
  const result = { width: innerWidth, scrolled: document.documentElement.scrollWidth, found: null };
  try { result.found = (() => { %s })() ?? null; } catch (error) { failures.push(String(error)); }
  parent.postMessage({ ...result, failures }, "*");
});
</script>"""

FRAME = """<!doctype html><script>
addEventListener("message", event => {
  const out = document.createElement("script");
  out.type = "application/json";
  out.id = "found";
  out.textContent = JSON.stringify(event.data);
  document.body.append(out);
});
</script><body><iframe src="%s" style="width: %dpx; height: 900px; border: 0"></iframe></body>"""


class Seen(NamedTuple):
    """What a browser made of a page: its own width and the page's, what the script returned, and what went wrong."""

    width: int
    scrolled: int
    found: object
    failures: list
    console: list


def open_page(page, folder, width, script="return null"):
    """Load a copy of a page and run a script in it, the body of a function; a :class:`Seen`."""
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        pytest.fail("chromium is not installed; `scripts/test --browser` installs it, or `apt-get install chromium`")
    text = page.read_text("utf-8")
    assert text.count("<head>") == text.count("</body>") == 1
    copy, frame = folder / "copy.html", folder / "frame.html"
    copy.write_text(text.replace("<head>", "<head>" + REPORT).replace("</body>", PROBE % script + "</body>"), "utf-8")
    frame.write_text(FRAME % (copy.as_uri(), width), "utf-8")  # a window is never narrower than 500 pixels, a frame is
    options = (
        "--headless=new --no-sandbox --disable-gpu --hide-scrollbars --no-first-run --disable-dev-shm-usage"
        " --enable-logging=stderr --virtual-time-budget=5000 --dump-dom"
    )
    command = [program, *options.split(), f"--user-data-dir={folder / 'profile'}", "--window-size=1400,1000"]
    result = subprocess.run([*command, frame.as_uri()], capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    (found,) = re.findall(r'<script type="application/json" id="found">(.*?)</script>', result.stdout)
    return Seen(**json.loads(found), console=[line for line in result.stderr.splitlines() if "CONSOLE" in line])
