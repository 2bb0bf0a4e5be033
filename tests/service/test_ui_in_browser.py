"""The pages in a browser: Debian's chromium, driven by Playwright."""

import os
import shlex
import shutil

import pytest
from playwright.sync_api import sync_playwright
from support import synthetic

pytestmark = pytest.mark.examples

CHROMIUM = shutil.which("chromium")
PHONE, DESKTOP = {"width": 390, "height": 844}, {"width": 1440, "height": 900}

# Contrast of each text with the nearest background behind it (WCAG 2.1), of those below the required 4.5 : 1.
LOW_CONTRAST = """() => {
    const decode = (value) => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
    const channel = (value) => decode(value / 255);
    const parse = (color) => color.match(/[\\d.]+/g).map(Number);
    const luminance = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
    const background = (element) => {
        for (let e = element; e; e = e.parentElement) {
            const color = parse(getComputedStyle(e).backgroundColor);
            if (color[3] !== 0) return color;
        }
        return [255, 255, 255];
    };
    const found = [];
    for (const element of document.body.querySelectorAll('*')) {
        const hasText = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
        if (!hasText || !element.checkVisibility() || element.disabled) continue;
        const [a, b] = [luminance(parse(getComputedStyle(element).color)), luminance(background(element))];
        const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
        if (ratio < 4.5) found.push(element.outerHTML.slice(0, 100) + ' ' + ratio.toFixed(2));
    }
    return found;
}"""
NAMELESS = """() => [...document.querySelectorAll('input:not([type=hidden]), select, button, a')]
    .filter((element) => element.checkVisibility())
    .filter((element) => !element.labels?.length && !element.textContent.trim() && !element.ariaLabel)
    .map((element) => element.outerHTML)"""


@pytest.fixture
def browser():
    if CHROMIUM is None:
        reason = "chromium is not installed: apt-get install chromium"
        if os.environ.get("VECALL_BROWSER") == "required":
            pytest.fail(reason)
        pytest.skip(reason)
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield launched
        launched.close()


def open_page(browser, server, **options):
    """A page that records script errors and whatever the content security policy blocks in `errors`."""
    page = browser.new_page(base_url=server.url, **options)
    page.errors = []
    page.set_default_timeout(15_000)
    page.on("pageerror", lambda error: page.errors.append(str(error)))
    page.on("console", lambda message: page.errors.append(message.text) if message.type == "error" else None)
    return page


def test_person_explores_and_activates(browser, shop, start_server, publish_release):
    publish_release(shop, "second", activate=False)
    page = open_page(browser, start_server(shop), locale="en-GB", viewport=DESKTOP)
    page.goto("/")
    page.get_by_label("User", exact=True).fill("user-3")
    page.get_by_role("button", name="Recall").click()
    page.get_by_role("heading", name="Recalled items 20").wait_for()
    assert page.locator("section:has(h2:text('History')) li").count() == len(synthetic.make_user_sequences()[3])
    # Filters
    page.get_by_label("Attribute").select_option("year")
    page.get_by_label("Operation").select_option("lt")
    page.get_by_label("Value").fill("3")
    page.keyboard.press("Enter")
    page.get_by_role("heading", name="Recalled items 3").wait_for()
    # An item and its neighbors
    page.locator("section:has(h2:text('Recalled')) li a").first.click()
    page.get_by_role("heading", name="Neighbors").wait_for()
    # Another release
    page.get_by_role("link", name="Releases").click()
    page.on("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name="Activate").click()
    page.locator("footer strong", has_text="second").wait_for()
    # The other language, which links keep
    page.get_by_role("link", name="中文").click()
    page.get_by_role("link", name="召回调试").click()
    page.get_by_role("button", name="召回").wait_for()
    assert not page.errors


def test_filters_are_edited_without_loading_the_page(browser, shop, start_server):
    page = open_page(browser, start_server(shop), viewport=DESKTOP)
    page.goto("/?user=user-3")
    page.evaluate("window.isSamePage = true")
    fields, operations, values = (page.get_by_label(name) for name in ("Attribute", "Operation", "Value"))
    fields.select_option("year")
    page.get_by_text("whole number; such as 0, 18, 35").wait_for()
    visible = "options => options.filter(option => !option.hidden).map(option => option.value)"
    expected = ["eq", "ne", "in", "not_in", "gt", "gte", "lt", "lte"]
    assert operations.locator("option").evaluate_all(visible) == expected
    operations.select_option("in")
    page.get_by_text("several, separated by commas").wait_for()
    page.get_by_role("button", name="Add a filter").click()
    assert fields.count() == 2
    assert fields.nth(1).evaluate("select => select === document.activeElement")
    assert values.nth(1).get_attribute("aria-describedby") == "hint-1"
    fields.nth(1).select_option("type")
    assert page.locator("#" + values.nth(1).get_attribute("list") + " option").first.get_attribute("value")
    page.get_by_role("button", name="Remove this filter").first.click()
    assert fields.count() == 1
    assert fields.input_value() == "type"
    page.get_by_role("button", name="Remove this filter").click()  # the last row is cleared instead
    assert fields.count() == 1
    assert fields.input_value() == ""
    assert page.evaluate("window.isSamePage")
    page.get_by_role("button", name="Recall").click()
    page.wait_for_url("**/?*k=20*")
    assert "field=" not in page.url  # empty rows stay out of the URL
    page.go_back()
    assert page.get_by_label("Attribute").is_enabled()
    assert not page.errors


def test_pages_work_without_javascript(browser, shop, start_server):
    page = open_page(browser, start_server(shop), java_script_enabled=False, viewport=PHONE)
    page.goto("/")
    page.get_by_text("Filters and options").click()
    page.get_by_label("Attribute").select_option("year")
    page.get_by_label("Operation").select_option("lt")
    page.get_by_label("Value").fill("3")
    page.get_by_label("User", exact=True).fill("user-3")
    page.get_by_role("button", name="Add a filter").click()
    page.get_by_role("heading", name="Recalled items 3").wait_for()
    assert page.get_by_label("Attribute").count() == 3
    page.get_by_role("button", name="Remove this filter").first.click()
    page.get_by_role("heading", name="Recalled items 20").wait_for()
    page.goto("/releases")
    page.get_by_text("vecall releases activate").wait_for()
    assert page.get_by_role("button").count() == 0
    page.goto("/docs")
    assert not page.get_by_role("button", name="Copy").first.is_visible()


def test_filters_are_visible_on_wide_screens_and_folded_on_narrow_ones(browser, shop, start_server):
    page = open_page(browser, start_server(shop), viewport={"width": 1000, "height": 800})
    page.goto("/")
    assert page.get_by_label("Attribute").is_visible()
    assert not page.get_by_text("Filters and options").is_visible()
    page.set_viewport_size({"width": 999, "height": 800})
    assert not page.get_by_label("Attribute").is_visible()
    page.get_by_text("Filters and options").click()
    assert page.get_by_label("Attribute").is_visible()
    page.goto("/?user=user-3&sent=1&field=year&op=lt&value=3")  # filters in use are unfolded
    assert page.get_by_label("Attribute").first.is_visible()


def test_refused_release_is_reported(browser, shop, start_server, publish_release):
    publish_release(shop, "second", activate=False)
    page = open_page(browser, start_server(shop), locale="en-GB")
    page.goto("/releases")
    (shop / "releases" / "second" / "index.faiss").write_bytes(b"nothing")
    page.on("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name="Activate").click()
    page.get_by_text("Not activated").wait_for()
    assert "index.faiss" in page.locator("#activation-status").inner_text()
    assert page.get_by_role("button", name="Activate").is_enabled()


def test_activate_is_in_reach_on_a_phone(browser, shop, start_server, publish_release):
    publish_release(shop, "second", activate=False)
    page = open_page(browser, start_server(shop), viewport=PHONE)
    page.goto("/releases")
    box = page.get_by_role("button", name="Activate second").bounding_box()
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= PHONE["width"]
    assert box["y"] + box["height"] <= PHONE["height"]
    assert box["height"] >= 40  # a finger's width


def test_users_are_suggested_while_typing(browser, shop, start_server):
    page = open_page(browser, start_server(shop))
    page.goto("/")
    page.get_by_label("User", exact=True).press_sequentially("user-5")
    page.locator("#users option[value=user-59]").wait_for(state="attached")
    assert not page.errors


def test_command_is_copied(browser, shop, start_server):
    server = start_server(shop)
    context = browser.new_context(base_url=server.url, permissions=["clipboard-read", "clipboard-write"])
    page = context.new_page()
    page.goto("/docs")
    page.get_by_role("button", name="Copy").first.click()
    page.get_by_role("button", name="Copied").wait_for()
    words = shlex.split(page.evaluate("navigator.clipboard.readText()").replace("\\\n", " "))
    assert words[:2] == ["curl", f"{server.url}/v1/recall"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_have_enough_contrast(browser, shop, start_server, publish_release, scheme):
    publish_release(shop, "second", activate=False)
    page = open_page(browser, start_server(shop), color_scheme=scheme, viewport=DESKTOP)
    for path in ("/?user=user-3&history=unknown&sent=1", "/items", "/items?q=none", "/releases", "/docs"):
        page.goto(path)
        assert page.evaluate(LOW_CONTRAST) == [], path


def test_focus_is_visible(browser, shop, start_server):
    page = open_page(browser, start_server(shop), viewport=DESKTOP)
    page.goto("/?user=user-3")
    for _ in range(30):
        page.keyboard.press("Tab")
        outline = page.evaluate("getComputedStyle(document.activeElement).outline")
        assert "3px" in outline, page.evaluate("document.activeElement.outerHTML")


@pytest.mark.parametrize("path", ["/?user=user-3", "/items?q=item", "/releases", "/docs"])
@pytest.mark.parametrize("language", ["en", "zh"])
def test_pages_fit_a_phone_and_have_names_for_all_controls(browser, shop, start_server, path, language):
    page = open_page(browser, start_server(shop), viewport={"width": 360, "height": 740})
    page.goto(f"{path}{'&' if '?' in path else '?'}lang={language}")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert page.evaluate(NAMELESS) == []
    # By keyboard: the first stop skips the navigation.
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    assert not page.errors
