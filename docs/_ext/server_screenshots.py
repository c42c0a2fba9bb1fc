"""Take screenshots of the running server for ``server.md``, where a Chromium is there to take them."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

PAGES = {
    "start": "The first page: limits beside the button, demo results below",
    "result": "A result: the map, what to think of it, and the fraction of resistant cells per sample",
}


def setup(app: Any) -> dict[str, Any]:
    """Called by Sphinx."""
    app.connect("builder-inited", make)
    return {"parallel_read_safe": True}


def make(app: Any) -> None:
    """Write ``_server_screenshots.md`` and the pictures."""
    out = Path(app.srcdir)
    folder = out / "generated" / "server"
    try:
        shown = shoot(folder)
    except Exception as error:  # noqa: BLE001 - without a browser the page is built all the same, and says so
        print(f"no screenshots of the server: {error}", file=sys.stderr)
        shown = []
    lines = [
        f"```{{figure}} generated/server/{name}.png\n:alt: {PAGES[name]}\n\n{PAGES[name]}.\n```\n" for name in shown
    ]
    (out / "_server_screenshots.md").write_text("\n".join(lines) or "These docs were built without a browser.\n")


def shoot(folder: Path) -> list[str]:
    """Start a server, wait for the first demo, take the pictures."""
    from playwright.sync_api import sync_playwright

    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        raise RuntimeError("there is no Chromium")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as data, sync_playwright() as p:
        command = [
            sys.executable,
            "-c",
            "from scdrugmap.cli import main; main()",
            "serve",
            "--port",
            "0",
            "--data-dir",
            data,
        ]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            assert server.stdout is not None
            url = server.stdout.readline().split()[-1]
            browser = p.chromium.launch(executable_path=program, args=["--no-sandbox", "--enable-unsafe-swiftshader"])
            page = browser.new_page(viewport={"width": 1200, "height": 900})
            page.goto(url)
            link = page.get_by_role("link", name="Demo").first.get_attribute("href")
            end = time.monotonic() + 240
            while page.request.get(url.rstrip("/") + f"/api/v1{link}").json()["state"] != "done":
                if time.monotonic() > end:
                    raise RuntimeError("the demo was not done in time")
                time.sleep(1)
            page.reload()
            page.screenshot(path=folder / "start.png")
            page.goto(url.rstrip("/") + str(link))
            page.wait_for_function("document.getElementById('map').dataset.painted")
            page.screenshot(path=folder / "result.png")
        finally:
            server.send_signal(signal.SIGINT)
            server.wait(20)
    return list(PAGES)
