"""The pages in a browser: Debian's chromium, driven by Playwright."""

import os
import shutil

import pytest
from playwright.sync_api import sync_playwright
from support import synthetic

CHROMIUM = shutil.which("chromium")


@pytest.fixture
def browser():
    if CHROMIUM is None:
        reason = "chromium is not installed: apt-get install chromium"
        if os.environ.get("VECALL_BROWSER") == "required":
            pytest.fail(reason)
        pytest.skip(reason)
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield opened
        opened.close()


def page_of(browser, served, **options):
    """A page that fails the test by an error of its own, or by anything that the security policy blocks."""
    page = browser.new_page(base_url=served.url, **options)
    page.errors = []
    page.set_default_timeout(15_000)
    page.on("pageerror", lambda error: page.errors.append(str(error)))
    page.on("console", lambda said: page.errors.append(said.text) if said.type == "error" else None)
    return page


def test_a_person_explores_and_activates(browser, shop, process_of, publish_more):
    publish_more(shop, "second", activate=False)
    page = page_of(browser, process_of(shop), locale="en-GB")
    page.goto("/")
    page.get_by_label("User", exact=True).fill("user-3")
    page.get_by_role("button", name="Recall").click()
    page.get_by_role("heading", name="Recalled 20").wait_for()
    assert page.locator("section:has(h2:text('History')) li").count() == len(synthetic.make_user_sequences()[3])
    # A filter, for which another row comes.
    page.get_by_text("Filters · History").click()
    page.get_by_label("Attribute").select_option("year")
    page.get_by_label("Operation").first.select_option("lt")
    page.get_by_label("Value").first.fill("3")
    assert page.get_by_label("Attribute").count() == 2
    page.keyboard.press("Enter")
    page.get_by_role("heading", name="Recalled 3").wait_for()
    # An item and its neighbours.
    page.locator("section:has(h2:text('Recalled')) li a").first.click()
    page.get_by_role("heading", name="Neighbours").wait_for()
    # The map, by another colour.
    page.get_by_role("link", name="Map").click()
    assert page.locator("svg.map circle").count() == synthetic.ITEMS
    page.get_by_label("Colour").select_option("type")
    page.wait_for_url("**/map?*colour=type")
    # Another release.
    page.get_by_role("link", name="Releases").click()
    page.on("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name="Activate").click()
    page.locator("footer strong", has_text="second").wait_for()
    # The other language, which stays.
    page.get_by_role("link", name="中文").click()
    page.get_by_role("link", name="探索").click()
    page.get_by_role("button", name="召回").wait_for()
    assert not page.errors


def test_a_refused_release_is_said(browser, shop, process_of, publish_more):
    publish_more(shop, "second", activate=False)
    page = page_of(browser, process_of(shop))
    page.goto("/releases")
    (shop / "releases" / "second" / "index.faiss").write_bytes(b"nothing")
    page.on("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name="Activate").click()
    page.get_by_text("Refused").wait_for()
    assert "index.faiss" in page.locator("#said").inner_text()


def test_users_are_suggested_while_typing(browser, shop, process_of):
    page = page_of(browser, process_of(shop))
    page.goto("/")
    page.get_by_label("User", exact=True).press_sequentially("user-5")
    page.locator("#users option[value=user-59]").wait_for(state="attached")
    assert not page.errors


@pytest.mark.parametrize("path", ["/?user=user-3", "/items?q=item", "/map", "/releases", "/docs"])
def test_pages_fit_a_phone_and_have_names_for_everything(browser, shop, process_of, path):
    page = page_of(browser, process_of(shop), viewport={"width": 360, "height": 740})
    page.goto(path)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    nameless = """[...document.querySelectorAll('input:not([type=hidden]), select, button, a')]
        .filter(one => !one.labels?.length && !one.textContent.trim()).map(one => one.outerHTML)"""
    assert page.evaluate(nameless) == []
    # By keyboard: the first stop is a way past the navigation.
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    assert not page.errors
