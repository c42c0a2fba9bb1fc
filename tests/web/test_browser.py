"""The pages in a real browser: upload, check, ask, map, lasso, take home; keyboard, phone, hostile text, axe."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the extra [web] is not installed")
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = next((p for n in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(n))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine")

GL = ["--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
PHONE = {"width": 390, "height": 800}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as p:
        opened = p.chromium.launch(executable_path=CHROMIUM, args=GL)
        yield opened
        opened.close()


@pytest.fixture
def page(browser: Any, running: Any) -> Iterator[Any]:
    context = browser.new_context(base_url=running.url, viewport={"width": 1200, "height": 900})
    opened = context.new_page()
    opened.set_default_timeout(60_000)
    opened.wrong = []
    opened.on("pageerror", lambda e: opened.wrong.append(str(e)))
    opened.on(
        "console", lambda m: opened.wrong.append(m.text) if m.type == "error" and "Content Security" in m.text else None
    )
    opened.on(
        "request", lambda r: None if r.url.startswith((running.url, "data:", "blob:")) else opened.wrong.append(r.url)
    )
    yield opened
    context.close()
    assert opened.wrong == [], "an error of a script, a breach of the policy, or a request to elsewhere"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, studies: Any) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("files")
    for adata, name in zip(studies, ("reference.h5ad", "query.h5ad"), strict=True):
        adata.write_h5ad(folder / name)
    return folder / "reference.h5ad", folder / "query.h5ad"


@pytest.fixture(scope="module")
def result(browser: Any, running: Any, files: Any) -> str:
    """Upload, check, ask, by the pages; the address of the result."""
    context = browser.new_context(base_url=running.url)
    page = context.new_page()
    page.set_default_timeout(120_000)
    page.goto("/")
    page.set_input_files("#file", files[1])
    page.get_by_role("button", name="Upload and check").click()
    page.wait_for_url("**/uploads/*")
    page.get_by_text("What do you want to know?").wait_for()
    assert page.title() != "owned"
    page.get_by_role("link", name="Train on labelled cells").click()
    page.set_input_files("#reference-file", files[0])
    assert "seconds" in page.locator("#estimate").text_content() or page.wait_for_function(
        "document.getElementById('estimate').textContent.includes('About')"
    )
    page.get_by_role("button", name="Run").click()
    page.wait_for_url("**/jobs/*")
    page.locator("#map").wait_for()
    address = page.url.removeprefix(running.url)
    context.close()
    return str(address)


def drawn(page: Any, address: str) -> None:
    page.goto(address)
    page.wait_for_function("document.getElementById('map').dataset.painted")


def test_lasso_counts_and_files_are_taken(page: Any, result: str, studies: Any) -> None:
    drawn(page, result)
    page.locator("#map").scroll_into_view_if_needed()
    page.evaluate("document.getElementById('map').scrollIntoView({block: 'center'})")
    box = page.locator("#map").bounding_box()
    x, y, w, h = (box[k] for k in ("x", "y", "width", "height"))
    page.mouse.move(x + 10, y + 20)
    page.mouse.down()
    for dx, dy in ((w - 10, 20), (w - 10, h - 10), (10, h - 10), (10, 25)):
        page.mouse.move(x + dx, y + dy, steps=15)
    page.mouse.up()
    count = page.locator("#selected-count")
    count.wait_for()
    n = studies[1].n_obs
    assert 0.9 * n <= int(count.text_content().split()[0].replace(",", "")) <= n
    page.get_by_role("button", name="Select all").click()
    page.wait_for_function(f"document.getElementById('selected-count').textContent.startsWith('{n} cells selected')")
    with page.expect_download() as got:
        page.get_by_role("link", name="predictions.csv").click()
    assert Path(got.value.path()).read_text().count("\n") == studies[1].n_obs + 1


def test_colours_follow_columns_and_genes(page: Any, result: str, studies: Any) -> None:
    drawn(page, result)
    for name in ("response_score", "sample", "note"):
        page.select_option("#color", name)
        page.wait_for_function(f"document.getElementById('map').dataset.colour === '{name}'")
    assert page.title() != "owned"
    gene = str(studies[1].var_names[3])
    page.fill("#gene", gene)
    page.locator("#gene").press("Tab")
    page.wait_for_function(f"document.getElementById('map').dataset.colour === '{gene}'")


def test_the_keyboard_is_enough(page: Any, running: Any) -> None:
    page.goto("/")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    seen = set()
    for _ in range(25):
        page.keyboard.press("Tab")
        seen.add(page.evaluate("document.activeElement.id || document.activeElement.textContent.trim()"))
    assert {"file", "Upload and check", "Browse"} <= seen


def test_a_phone_shows_everything(browser: Any, running: Any, result: str) -> None:
    context = browser.new_context(base_url=running.url, viewport=PHONE)
    page = context.new_page()
    for path in ("/", "/browse", result):
        page.goto(path)
        width = page.evaluate("document.documentElement.scrollWidth")
        assert width <= PHONE["width"], f"{path} is {width} wide"
    context.close()


def test_a_wrong_file_is_said_before_it_is_sent(page: Any, tmp_path: Path) -> None:
    path = tmp_path / "cells.h5ad"
    path.write_bytes(b"no HDF5")
    sent = []
    page.on("request", lambda r: sent.append(r.url) if "/api/v1/uploads" in r.url else None)
    page.goto("/")
    page.set_input_files("#file", path)
    page.get_by_role("button", name="Upload and check").click()
    page.wait_for_function("document.getElementById('message').textContent.includes('HDF5')")
    assert sent == []


def test_a_broken_upload_goes_on(page: Any, running: Any, tmp_path: Path) -> None:
    path = tmp_path / "big.csv"
    path.write_text("cell,TP53,EGFR\n" + "".join(f"c{i:06},1,{i % 7}\n" for i in range(700_000)))
    offsets = []
    broken = {"left": 2}

    def meddle(route: Any) -> None:
        offset = int(route.request.headers.get("upload-offset", 0))
        if offset and broken["left"]:
            broken["left"] -= 1
            route.abort()
        else:
            offsets.append(offset)
            route.continue_()

    page.route("**/api/v1/uploads/*", lambda r: meddle(r) if r.request.method == "PATCH" else r.continue_())
    page.goto("/")
    page.set_input_files("#file", path)
    page.get_by_role("button", name="Upload and check").click()
    page.wait_for_url("**/uploads/*")
    assert (
        broken["left"] == 0 and offsets == sorted(set(offsets)) and len(offsets) == -(-path.stat().st_size // (4 << 20))
    )


def test_cancel_by_the_page(page: Any, running: Any, files: Any) -> None:
    from scdrugmap.web import Client

    client = Client(running.url)
    upload = client.upload(files[0])["id"]
    job = client.submit("benchmark", query=upload, options={"models": ["pca", "scvi"], "n_folds": 5})
    page.goto(f"/jobs/{job}")
    page.get_by_role("button", name="Cancel").click()
    page.locator("#state", has_text="cancelled").wait_for()


def test_axe_finds_nothing_serious(page: Any, result: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed").Axe()
    # axe is put in by the driver, which the pages' own policy would not let in.
    for path in ("/", "/browse", "/privacy", result):
        page.goto(path)
        found = axe.run(page).response["violations"]
        serious = [(v["id"], v["nodes"][0]["html"][:200]) for v in found if v["impact"] in ("serious", "critical")]
        assert serious == [], path


def test_the_api_page_shows_the_routes(page: Any) -> None:
    page.goto("/api/v1/docs")
    page.get_by_text("/api/v1/uploads/{upload_id}/complete").first.wait_for()
