"""The page at / in headless Chromium: a person chats with the model."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from page_server import running_server

pytest.importorskip("selenium", reason="selenium is not installed")
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

PAGE = Path(__file__).resolve().parents[2] / "python" / "forerun" / "server" / "page.html"
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync "
    "--disable-background-networking --disable-component-update --disable-dev-shm-usage "
    "--window-size=1000,800"
)
# Records what the page sends, and every length that an answer's text had.
WATCH = """
window.sent = [];
const send = window.fetch;
window.fetch = (url, options) => {
  if (options?.body) window.sent.push(JSON.parse(options.body));
  return send(url, options);
};
window.lengths = {on: [], off: []};
new MutationObserver(() => {
  for (const answer of document.querySelectorAll(".answer")) {
    window.lengths[answer.dataset.speculation].push(
        answer.querySelector(".message").textContent.length);
  }
}).observe(document.getElementById("log"), {childList: true, subtree: true});
"""
# The contrast of an element's text with its background, as WCAG defines it.
CONTRAST = """
const luminance = (color) => {
  const [r, g, b] = color.match(/[\\d.]+/g).slice(0, 3).map((value) => {
    const part = value / 255;
    return part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
  });
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
let element = arguments[0];
const text = luminance(getComputedStyle(element).color);
while (getComputedStyle(element).backgroundColor === "rgba(0, 0, 0, 0)") {
  element = element.parentElement;
}
const ground = luminance(getComputedStyle(element).backgroundColor);
return (Math.max(text, ground) + 0.05) / (Math.min(text, ground) + 0.05);
"""


@pytest.fixture(scope="module")
def address(tiny_dir: Path) -> Iterator[str]:
    with running_server(tiny_dir) as url:
        yield url


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("Debian's chromium and chromium-driver are not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in FLAGS.split():
        options.add_argument(flag)
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('chromium')}")
    opened = webdriver.Chrome(options, webdriver.ChromeService(driver))
    yield opened
    opened.quit()


class Page:
    """The page in the browser, freshly loaded."""

    def __init__(self, browser: Any, url: str) -> None:
        self.browser = browser
        browser.get(url)
        browser.execute_script(WATCH)

    def run(self, script: str, *arguments: Any) -> Any:
        return self.browser.execute_script(script, *arguments)

    def find(self, selector: str) -> Any:
        return self.browser.find_element(By.CSS_SELECTOR, selector)

    def all(self, selector: str) -> list[Any]:
        return list(self.browser.find_elements(By.CSS_SELECTOR, selector))

    def texts(self, selector: str) -> list[str]:
        script = "return [...document.querySelectorAll(arguments[0])].map((e) => e.textContent)"
        return list(self.run(script, selector))

    def wait(self, condition: Callable[[], Any]) -> Any:
        return WebDriverWait(self.browser, 60, 0.02).until(lambda _: condition())

    def choose(self, mode: str) -> None:
        self.find(f"[name=mode][value={mode}]").click()

    def set(self, field: str, value: str) -> None:
        if not self.run("return document.getElementById('settings').open"):
            self.find("summary").click()
        self.find(f"#{field}").clear()
        self.find(f"#{field}").send_keys(value, Keys.TAB)

    def ask(self, question: str) -> None:
        """Sends a message, and waits for the end of what is generated."""
        self.find("#message").send_keys(question, Keys.ENTER)
        self.wait(lambda: self.find("#send").is_displayed())


@pytest.fixture
def page(browser: Any, address: str) -> Page:
    return Page(browser, address + "/")


def test_side_by_side_the_texts_are_the_same_and_drafted_tokens_have_a_colour(page: Page) -> None:
    page.ask("abcabcabc")
    on, off = page.texts(".answer .message")
    assert on
    assert on == off
    assert page.texts(".verdict")[0].startswith("The same text, ")
    for lengths in page.run("return window.lengths").values():
        assert lengths == sorted(lengths)
        assert len(set(lengths)) > 3  # it grew
    drafted = page.all("[data-speculation=on] .message .drafted")
    own = page.all("[data-speculation=on] .message .own")
    assert drafted
    assert own
    assert page.all("[data-speculation=off] .own")
    assert not page.all("[data-speculation=off] .drafted")
    colour = [part[0].value_of_css_property("background-color") for part in (drafted, own)]
    assert colour[0] != colour[1]
    stats = page.texts(".stats")
    number = r"[\d.]+"
    assert re.fullmatch(
        rf"{number} tokens · {number} tokens/s · {number} tokens per pass · {number} % drafted"
        rf" · {number} % of drafts accepted",
        stats[0],
    )
    assert re.fullmatch(rf"{number} tokens · {number} tokens/s", stats[1])
    assert stats[0].split()[0] == stats[1].split()[0]


@pytest.mark.parametrize("mode", ["on", "off"])
def test_speculation_can_be_switched(mode: str, page: Page) -> None:
    page.choose(mode)
    page.ask("abcabcabc")
    (answer,) = page.all(".answer")
    assert answer.get_attribute("data-speculation") == mode
    assert bool(page.all(".answer .drafted")) == (mode == "on")
    assert [request["speculative"] for request in page.run("return sent")] == [mode == "on"]
    assert not page.all(".verdict")


def test_a_conversation_goes_on_until_a_new_one(page: Page) -> None:
    page.set("system", "brief")
    page.set("limit", "8")
    page.ask("one")
    page.ask("two")
    page.find("#reset").click()
    assert not page.all(".answer")
    page.ask("three")
    sent = page.run("return sent")
    assert [request["speculative"] for request in sent] == [True, False] * 3
    assert [request["max_completion_tokens"] for request in sent] == [8] * 6
    for first, second in zip(sent[::2], sent[1::2], strict=True):
        assert {**first, "speculative": None} == {**second, "speculative": None}
    system = {"role": "system", "content": "brief"}
    said = [[message["content"] for message in request["messages"]] for request in sent[::2]]
    assert all(request["messages"][0] == system for request in sent)
    assert said[0] == ["brief", "one"]
    assert [said[1][1], said[1][3]] == ["one", "two"]
    assert said[1][2]
    assert said[2] == ["brief", "three"]


def test_a_sampled_text_is_the_same_too(page: Page) -> None:
    page.set("temperature", "1")
    page.ask("abc")
    assert page.run("return sent")[0]["temperature"] == 1
    assert page.texts(".verdict")[0].startswith("The same text")


def test_an_answer_can_be_stopped(page: Page) -> None:
    page.choose("off")
    page.set("limit", "100000")
    page.run(
        "new MutationObserver(() => document.getElementById('stop').click())"
        ".observe(document.getElementById('log'), {childList: true, subtree: true})"
    )
    page.ask("abc")
    assert page.texts(".note") == ["Stopped."]


def test_an_error_is_shown_and_the_question_is_kept(page: Page) -> None:
    page.set("temperature", "-3")
    page.ask("abc")
    assert "temperature" in page.texts(".error")[0]
    assert page.find("#message").get_property("value") == "abc"
    page.set("temperature", "0")
    page.find("#message").send_keys(Keys.ENTER)
    page.wait(lambda: page.texts(".verdict"))


def test_nothing_is_loaded_from_elsewhere(page: Page, address: str) -> None:
    page.ask("abc")
    loaded = page.run("return performance.getEntriesByType('resource').map((e) => e.name)")
    assert loaded
    assert all(url.startswith(address) for url in loaded)
    assert not re.search(r"(?:src|href|url)\s*[=(]\s*[\"']?(?:\w+:)?//", PAGE.read_text("utf-8"))
    page.run("addEventListener('securitypolicyviolation', (e) => window.refused = e)")
    page.run("return fetch('http://localhost:1/').catch((error) => error.name)")
    page.wait(lambda: page.run("return window.refused?.effectiveDirective") == "connect-src")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_are_legible_in_light_and_dark(scheme: str, page: Page) -> None:
    feature = {"name": "prefers-color-scheme", "value": scheme}
    page.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    page.ask("abcabcabc")
    for selector in ("#model", ".question", ".drafted", ".own", ".stats", ".verdict", "#send"):
        assert page.run(CONTRAST, page.find(selector)) >= 4.5, selector
    background = page.find("body").value_of_css_property("background-color")
    lightness = sum(map(int, re.findall(r"\d+", background)[:3])) / 765
    assert (lightness > 0.5) == (scheme == "light")


def test_it_fits_a_phone(page: Page) -> None:
    metrics = {"width": 360, "height": 640, "deviceScaleFactor": 1, "mobile": True}
    page.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        page.ask("abcabcabc" * 20)
        assert page.run("return document.documentElement.scrollWidth") == 360
        on, off = (answer.rect for answer in page.all(".answer"))
        assert on["x"] == off["x"]
        assert on["y"] + on["height"] <= off["y"]
        send = page.find("#send").rect
        assert send["y"] + send["height"] <= 640
    finally:
        page.browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_controls_have_names(page: Page) -> None:
    page.find("summary").click()
    controls = page.all("input, textarea, button:not([hidden]), summary, main")
    assert len(controls) >= 11
    assert all(control.accessible_name for control in controls)
    page.ask("abc")
    assert [answer.accessible_name for answer in page.all(".answer")] == [
        "Speculation on",
        "Speculation off",
    ]
    assert [answer.get_attribute("aria-busy") for answer in page.all(".answer")] == ["false"] * 2
    assert page.texts("#status")[0].startswith("Answered: ")


def test_the_key_of_the_api_is_asked_for(browser: Any, tiny_dir: Path) -> None:
    with running_server(tiny_dir, api_keys=["secret"]) as url:
        page = Page(browser, url + "/")
        page.ask("abc")
        assert page.run("return document.getElementById('settings').open")
        assert page.texts(".error")
        page.set("key", "secret")
        page.find("#message").send_keys(Keys.ENTER)
        page.wait(lambda: page.texts(".verdict"))


def test_it_may_be_served_under_a_path(browser: Any, tiny_dir: Path) -> None:
    with running_server(tiny_dir, mount="/llm/one") as url:
        page = Page(browser, url + "/llm/one/")
        page.ask("abc")
        assert page.texts(".verdict")


# A stream whose bytes arrive in pieces of a given size.
SCRIPTED = """
const [text, size] = arguments;
const bytes = new TextEncoder().encode(text);
const send = window.fetch;
window.fetch = async (url, options) => {
  if (!options?.body) return send(url, options);
  return new Response(new ReadableStream({
    start(controller) {
      for (let i = 0; i < bytes.length; i += size) controller.enqueue(bytes.slice(i, i + size));
      controller.close();
    },
  }));
};
"""


def event(text: str, *, drafted: bool = False, finish: str | None = None, **delta: str) -> str:
    choice = {"index": 0, "delta": {"content": text, **delta}, "finish_reason": finish}
    return "data: " + json.dumps({"choices": [choice], "forerun": {"drafted": drafted}})


@pytest.mark.parametrize("end", ["\n\n", "\r\n\r\n"])
@pytest.mark.parametrize("size", [1, 7, 4096])
def test_a_stream_may_arrive_in_any_pieces(size: int, end: str, page: Page) -> None:
    events = [
        event("", reasoning_content="Hm."),
        ": ping",
        event("é\n"),
        event("<b>漢</b>", drafted=True),
        event("🙂", drafted=True),
        event("", finish="length"),
        'data: {"choices": [], "usage": {"completion_tokens": 5}}',
        "data: [DONE]",
    ]
    page.run(SCRIPTED, "".join(one + end for one in events), size)
    page.choose("on")
    page.ask("abc")
    assert page.texts(".answer .message") == ["Hm.é\n<b>漢</b>🙂"]
    assert page.texts(".answer .drafted") == ["<b>漢</b>", "🙂"]
    assert page.texts(".answer .reasoning") == ["Hm."]
    assert page.texts(".stats")[0].startswith("5 tokens")
    assert "1.67 tokens per pass · 40 % drafted" in page.texts(".stats")[0]
    assert page.texts(".note") == ["Cut off: the limit of tokens was reached."]


@pytest.mark.parametrize(
    ("last", "message"),
    [
        ("", "The connection ended before the answer did."),
        ('data: {"error": {"message": "out of order"}}\n\n', "out of order"),
    ],
)
def test_an_answer_that_breaks_off_says_so(last: str, message: str, page: Page) -> None:
    page.run(SCRIPTED, event("abc") + "\n\n" + last, 4096)
    page.choose("on")
    page.ask("abc")
    assert page.texts(".answer .message") == ["abc"]
    assert page.texts(".error") == [message]


def test_two_texts_that_differ_are_reported(page: Page) -> None:
    page.run(SCRIPTED, event("abc", finish="stop") + "\n\n", 4096)
    page.run("Object.defineProperty(Answer.prototype, 'content', {get: Math.random, set() {}})")
    page.ask("abc")
    assert page.texts(".verdict") == ["The two texts differ."]
