"""The page of `credit` in a real, headless Chromium: `pytest -m browser`."""

import json
import shutil
from collections import Counter

import pytest
from test_credit import HOSTILE, small_page
from test_falls import fall

from vine_mini.credit_page import falls, page

pytestmark = pytest.mark.browser
QUIET = "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
QUIET += " --disable-component-update --disable-sync --hide-scrollbars"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    try:
        from selenium import webdriver
    except ImportError:
        pytest.fail("these tests need selenium: pip install selenium", pytrace=False)
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and driver):
        pytest.fail("these tests need Chromium: apt install chromium chromium-driver", pytrace=False)
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in [*QUIET.split(), f"--user-data-dir={tmp_path_factory.mktemp('profile')}"]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    window = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield window
    window.quit()


@pytest.fixture
def opened(browser, tmp_path):
    """Opens a page from a file in light or dark, at a width. -> the browser"""

    def open_(shown, scheme="light", width=1280):
        path = tmp_path / "credit.html"
        path.write_text(shown if isinstance(shown, str) else page.render(shown), encoding="utf-8")
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        browser.get_log("performance")
        browser.get(path.as_uri())
        return browser

    return open_


def test_it_opens_from_a_file_without_errors_or_requests(opened):
    browser = opened(small_page())
    assert browser.title == "Credit: problem 0, response 0, wrong"
    assert len(browser.find_elements("css selector", "tr.step")) == 2
    assert browser.get_log("browser") == []
    sent = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [m["params"]["request"]["url"] for m in sent if m["method"] == "Network.requestWillBeSent"]
    assert asked and all(url.startswith("file:") for url in asked) and len(asked) == 1


def test_rollouts_unfold_by_keyboard_and_by_click(opened):
    from selenium.webdriver.common.keys import Keys

    browser = opened(small_page())
    details = browser.find_elements("tag name", "details")
    assert [d.get_attribute("open") for d in details] == [None, None]
    for _ in range(10):
        browser.switch_to.active_element.send_keys(Keys.TAB)
        if browser.switch_to.active_element.tag_name == "summary":
            break
    focused = browser.switch_to.active_element
    assert focused.tag_name == "summary" and focused.value_of_css_property("outline-style") == "solid"
    focused.send_keys(Keys.ENTER)
    assert details[0].get_attribute("open") is not None and details[1].get_attribute("open") is None
    assert "3*4=12" in details[0].text and "wrong, cut by the limit" in details[0].text
    details[1].find_element("tag name", "summary").click()
    assert details[1].get_attribute("open") is not None
    assert "(nothing)" in details[1].text


def test_what_a_model_wrote_is_shown_and_never_run(opened):
    browser = opened(small_page(question=HOSTILE, answer=HOSTILE))
    assert browser.title == "Credit: problem 0, response 0, wrong"
    assert browser.find_elements("css selector", "script, img, iframe, object, link") == []
    assert "<script>" in browser.find_element("css selector", ".question").text
    assert browser.get_log("browser") == []


CONTRAST = """
const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
function over(colour, below) {  // a CSS colour painted over [r, g, b]
  canvas.fillStyle = `rgb(${below})`; canvas.fillRect(0, 0, 1, 1);
  canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
  return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
}
function background(element) {
  const below = element.parentElement ? background(element.parentElement) : [255, 255, 255];
  return over(getComputedStyle(element).backgroundColor, below);
}
function luminance(rgb) {
  const [r, g, b] = rgb.map(x => x / 255).map(x => x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}
const found = [];
for (const element of document.querySelectorAll('body *')) {
  const own = [...element.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
  if (!own) continue;
  const below = background(element);
  const [a, b] = [luminance(below), luminance(over(getComputedStyle(element).color, below))].sort((x, y) => y - x);
  found.push([(a + 0.05) / (b + 0.05), element.className + ' ' + element.textContent.slice(0, 20)]);
}
return found;
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_text_can_be_read_on_every_colour(opened, scheme, advantage):
    credits = [page.Credit("vineppo", [advantage] * 2, [0.5, 0.5], [0.1, 0.1]), page.Credit("grpo", [advantage] * 2)]
    found = opened(small_page(credits=credits), scheme).execute_script(CONTRAST)
    assert len(found) > 20
    assert min(found)[0] >= 4.5, min(found)


def test_dark_is_dark(opened):
    def background(scheme):
        return opened(small_page(), scheme).find_element("tag name", "body").value_of_css_property("background-color")

    assert background("light") == "rgba(255, 255, 255, 1)" and background("dark") == "rgba(21, 23, 27, 1)"


def test_paper_holds_all_columns_and_breaks_no_heading(opened):
    """Printed on A4, from a dark screen: white, no word of a heading cut in two."""
    both = dict(values=[0.5, 0.5], errors=[0.1, 0.1])
    credits = [page.Credit(name, [-0.5, 0.5], **both) for name in ("vineppo", "truth")]
    credits += [page.Credit("ppo", [-0.5, 0.5], [0.5, 0.5]), page.Credit("grpo", [-1.0, -1.0])]
    browser = opened(small_page(credits=credits), "dark", 718)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    wide, back = browser.execute_script(
        "return [document.documentElement.scrollWidth, getComputedStyle(document.body).backgroundColor]"
    )
    wraps = {th.value_of_css_property("overflow-wrap") for th in browser.find_elements("tag name", "th")}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
    assert wide <= 718 and back == "rgb(255, 255, 255)" and wraps == {"normal"}


@pytest.mark.parametrize("width", [400, 1280])
def test_only_the_table_scrolls_sideways(opened, width):
    long = small_page(steps=["word " * 60, "x" * 300], group_rewards=[0.0] * 200)
    browser = opened(long, width=width)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width


def falls_page() -> str:
    found = [fall(text=HOSTILE, other=-0.1), fall(1, size=-0.4, text="7+5=2\n", step=1, other=-0.2)]
    tables = falls.table(found, Counter({"a number, no operation": 9, "+": 3}), lambda f: f.kind)
    parts = dict(made="Policy x.", responses=3, failed=2, problems=2, success=(0.3, 0.1), k=9, fresh=64, other="y", spent=[])
    return page.render_falls(page.FallsReport(**parts, by_kind=tables, by_step=tables, falls=found))


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_falls_can_be_read_and_unfolded(opened, scheme, width):
    browser = opened(falls_page(), scheme, width)
    assert browser.title == "Where 2 failed responses fall" and browser.get_log("browser") == []
    assert browser.find_elements("css selector", "script, img") == []
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    browser.execute_script("for (const d of document.querySelectorAll('details')) d.open = true")
    assert min(found := browser.execute_script(CONTRAST))[0] >= 4.5, min(found)
    assert "3 × 1.00 ±" in " ".join(browser.find_element("tag name", "details").text.split())


def test_at_390_pixels_a_step_is_a_card_with_the_advantage_first(opened):
    browser = opened(small_page(), width=390)
    cards = browser.find_elements("css selector", ".steps tbody")
    assert len(cards) == 2 and all(card.rect["width"] <= 390 for card in cards)
    lead, text, value = (
        cards[0].find_element("css selector", name).rect for name in (".lead", ".step-text", ".number:not(.lead)")
    )
    assert lead["y"] < text["y"] < value["y"] and text["x"] + text["width"] <= 390
    label = "return getComputedStyle(arguments[0], '::before').content"
    assert browser.execute_script(label, cards[0].find_element("css selector", ".lead")) == '"VinePPO: advantage"'
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 390
    wide = opened(small_page(), width=1280).find_element("css selector", ".lead")
    assert browser.execute_script(label, wide) == "none"


def test_the_other_responses_are_links_that_the_keyboard_reaches(opened, tmp_path):
    from selenium.webdriver.common.keys import Keys

    files = ["credit.html", "response-1.html"]
    (tmp_path / files[1]).write_text(page.render(small_page(response=1, files=files)), encoding="utf-8")
    browser = opened(small_page(files=files))
    assert browser.find_element("css selector", "[aria-current]").get_attribute("aria-label") == "response 0, wrong"
    browser.switch_to.active_element.send_keys(Keys.TAB)
    link = browser.switch_to.active_element
    assert link.tag_name == "a" and link.get_attribute("aria-label") == "response 1, right"
    link.send_keys(Keys.ENTER)
    assert browser.title == "Credit: problem 0, response 1, right"


def test_pale_is_paler(opened):
    credits = [page.Credit("vineppo", [-0.5, -0.5], [0.5, 0.5], [0.1, 0.1])]
    credits[0].advantage_errors[1] = 0.4
    sure, unsure = opened(small_page(credits=credits)).find_elements("css selector", ".lead")
    colours = [x.value_of_css_property("background-color") for x in (sure, unsure)]
    assert colours == ["rgba(213, 94, 0, 0.5)", "rgba(213, 94, 0, 0.15)"]
