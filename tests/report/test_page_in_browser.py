"""The page as a reader meets it, in headless Chromium: by sight, by keyboard, on paper, in the dark, on a telephone."""

import base64
import json
import re
import shutil

import pytest

from perplab.report import report, write
from random_subjects import CLAIMS, NASTY

pytestmark = pytest.mark.browser

WIDE, NARROW = {"width": 1280, "height": 900}, {"width": 360, "height": 740}


@pytest.fixture(scope="module")
def chromium():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # Where the system has none, Playwright looks for its own.
        found = shutil.which("chromium") or shutil.which("google-chrome")
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def addresses(tmp_path_factory, one, two):
    folder = tmp_path_factory.mktemp("pages")
    pages = {"one": one, "two": two, "claims": report([], CLAIMS)}
    for name, page in pages.items():
        write(page, folder / f"{name}.html")
    return {name: (folder / f"{name}.html").as_uri() for name in pages}


@pytest.fixture
def opened(chromium, addresses):
    """`opened(name, **settings of the browser)`; a page that complains or asks for anything fails its test."""
    contexts, complaints = [], []

    def open_page(name, **settings):
        context = chromium.new_context(**{"viewport": WIDE, "color_scheme": "light", **settings})
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("requestfailed", lambda request: complaints.append(request.url))
        page.on("request", lambda request: request.url in addresses.values() or complaints.append(request.url))
        page.goto(addresses[name])
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []


def data_of(page):
    return json.loads(page.locator("#data").text_content())


def colour(page, selector, name="background-color"):
    return page.locator(selector).first.evaluate(f"element => getComputedStyle(element).getPropertyValue('{name}')")


def boxes(page, selector):
    return [box for box in (element.bounding_box() for element in page.locator(selector).all()) if box]


def overlap(one, other):
    return (
        min(one["x"] + one["width"], other["x"] + other["width"]) - max(one["x"], other["x"]) > 0.5
        and min(one["y"] + one["height"], other["y"] + other["height"]) - max(one["y"], other["y"]) > 0.5
    )


@pytest.mark.parametrize("name", ["one", "two", "claims"])
def test_a_page_with_hostile_words_runs_none_of_them(opened, name):
    page = opened(name)
    page.wait_for_timeout(100)
    assert page.evaluate("window.hacked") is None
    assert page.locator("img").count() == 0


@pytest.mark.parametrize("viewport", [WIDE, NARROW], ids=["wide", "narrow"])
@pytest.mark.parametrize("name", ["one", "two", "claims"])
def test_nothing_overflows_and_no_card_covers_another(opened, name, viewport):
    page = opened(name, viewport=viewport)
    assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]
    for group in (".card", ".pane"):
        found = boxes(page, group)
        assert all(box["x"] >= 0 and box["x"] + box["width"] <= viewport["width"] + 0.5 for box in found)
        assert not any(overlap(box, other) for at, box in enumerate(found) for other in found[:at])
    sizes = page.evaluate(
        "[...document.querySelectorAll('.plot text')].map(text => parseFloat(getComputedStyle(text).fontSize)"
        " * text.ownerSVGElement.getBoundingClientRect().width / text.ownerSVGElement.viewBox.baseVal.width)"
    )
    assert all(size >= 8 for size in sizes)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_heat_map_is_seen_in_many_colours(opened, chromium, scheme):
    page = opened("two", color_scheme=scheme)
    text = page.locator(".text").first
    text.scroll_into_view_if_needed()
    assert text.bounding_box()["height"] > 100
    picture = base64.b64encode(page.screenshot()).decode()
    blank = chromium.new_page()
    colours = blank.evaluate(
        """async address => {
            const bitmap = await createImageBitmap(await (await fetch(address)).blob());
            const canvas = new OffscreenCanvas(bitmap.width, bitmap.height);
            const context = canvas.getContext("2d");
            context.drawImage(bitmap, 0, 0);
            return new Set(new Uint32Array(context.getImageData(0, 0, bitmap.width, bitmap.height).data.buffer)).size;
        }""",
        f"data:image/png;base64,{picture}",
    )
    blank.close()
    assert colours > 200
    backgrounds = page.evaluate(
        "new Set([...document.querySelectorAll('.text i')].map(token => getComputedStyle(token).backgroundColor)).size"
    )
    assert backgrounds == 21


def test_a_token_under_the_pointer_tells_its_cost_rank_entropy_and_alternatives(opened):
    page = opened("one")
    scores = data_of(page)
    (pane,) = scores["documents"][0]
    page.locator(".text").first.locator("i").nth(3).hover()
    said = page.locator("#details .column").inner_text()
    nats = pane["nll"][3] / 100
    assert f"{nats:.2f} nats, {nats / 0.6931471805599453:.2f} bits" in said
    assert f"{pane['rank'][3]}\n" in said
    assert f"{pane['entropy'][3] / 100:.2f} nats" in said
    shown = page.locator("#details li .token").all_inner_texts()
    words = [scores["spelling"][0][index] for index in pane["alternatives"][3 * pane["count"] :][: pane["count"]]]
    assert shown == [word.replace(" ", "␣").replace("\n", "↵") for word in words]
    widths = [box["width"] for box in boxes(page, "#details .meter > span")]
    assert widths == sorted(widths, reverse=True)


def test_the_keyboard_reaches_the_text_and_walks_through_it(opened):
    page = opened("one")
    assert page.locator(".text i[tabindex='0']").count() == page.locator(".text").count()
    page.locator("body").press("Tab")
    for _ in range(60):
        if page.evaluate("document.activeElement.matches('.text i')"):
            break
        page.keyboard.press("Tab")
    said = [page.locator("#spoken").text_content()]

    def place():
        return page.evaluate("[...document.activeElement.parentElement.children].indexOf(document.activeElement)")

    def line():
        return page.evaluate("document.activeElement.getClientRects()[0].top + scrollY")

    assert place() == 0
    for key, expected in (("ArrowRight", 1), ("ArrowRight", 2), ("ArrowLeft", 1), ("Home", 0), ("ArrowLeft", 0)):
        page.keyboard.press(key)
        assert place() == expected
        said.append(page.locator("#spoken").text_content())
    assert said[0] != said[1] != said[2] != said[3] == said[1]
    assert re.search(r"costs [\d.]+ nats, [\d.]+ bits; rank \d+; entropy [\d.]+ nats; likeliest", said[0])
    top = line()
    page.keyboard.press("ArrowDown")
    below = line()
    assert below > top
    page.keyboard.press("ArrowUp")
    assert line() == top
    page.keyboard.press("End")
    assert place() == page.evaluate("document.activeElement.parentElement.children.length") - 1
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none"
    # Tab leaves the text for the next one, and comes back to where the reader was.
    last = place()
    page.keyboard.press("Tab")
    assert place() == 0
    page.keyboard.press("Shift+Tab")
    assert place() == last


def test_a_token_points_at_the_other_models_token_over_the_same_byte(opened):
    page = opened("two")
    first, second = data_of(page)["documents"][0]
    start = sum(first["sizes"][:20])
    ends = [sum(second["sizes"][: at + 1]) for at in range(len(second["sizes"]))]
    expected = next(at for at, end in enumerate(ends) if end > start)
    page.locator(".text").first.locator("i").nth(20).hover()
    partner = page.evaluate(
        "[...document.querySelectorAll('.text')[1].children].findIndex(token => token.classList.contains('partner'))"
    )
    assert partner == expected
    assert page.locator("#details .column").count() == 2
    assert page.locator("#details .who").all_inner_texts() == ["a model", NASTY]


def test_views_show_one_model_the_other_both_or_their_difference(opened):
    page = opened("two")

    def look(view):
        page.locator(f"#view input[value={view}]").check()
        panes = [pane.is_visible() for pane in page.locator(".document").first.locator(".pane").all()]
        return panes, page.locator(".key.costs").is_visible(), page.locator(".key.differences").is_visible()

    assert look("both") == ([True, True], True, False)
    assert look("first") == ([True, False], True, False)
    assert look("second") == ([False, True], True, False)
    dearer = page.locator(".text i[class*=' p']").first
    before = dearer.evaluate("token => getComputedStyle(token).borderBottomStyle")
    assert look("difference") == ([False, True], False, True)
    styles = {
        sign: page.locator(f".text i[class*=' {sign}']").first.evaluate(
            "token => getComputedStyle(token).borderBottomStyle"
        )
        for sign in "mp"
    }
    assert before == "none"
    assert styles == {"m": "dotted", "p": "solid"}  # told apart without their colours


def test_the_theme_follows_the_system_until_the_reader_chooses(opened):
    light, dark = (colour(opened("one", color_scheme=scheme), "body") for scheme in ("light", "dark"))
    assert light != dark
    page = opened("one", color_scheme="dark")
    seen = []
    for theme in ("light", "dark", "auto"):
        page.locator(f"#theme input[value={theme}]").check()
        seen.append(colour(page, "body"))
    assert seen == [light, dark, dark]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_words_contrast_with_what_they_stand_on(opened, scheme):
    page = opened("two", color_scheme=scheme)
    page.locator(".text i").nth(5).hover()
    page.wait_for_timeout(200)  # colours of the switches move for a moment
    weak = page.evaluate(
        """() => {
            const pixel = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
            const read = (...colours) => {
                for (const colour of colours) { pixel.fillStyle = colour; pixel.fillRect(0, 0, 1, 1); }
                return [...pixel.getImageData(0, 0, 1, 1).data].slice(0, 3);
            };
            const luminance = rgb => rgb.map(value => value / 255)
                .map(value => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4)
                .reduce((sum, value, at) => sum + value * [0.2126, 0.7152, 0.0722][at], 0);
            const grounds = element => element ? [...grounds(element.parentElement),
                getComputedStyle(element).backgroundColor] : [];
            const found = [];
            const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
            while (walker.nextNode()) {
                const element = walker.currentNode.parentElement;
                const hidden = element.closest("script, style, title, .unseen, .skip, .mark-blank");
                if (hidden || !walker.currentNode.data.trim() || !element.getClientRects().length) continue;
                const style = getComputedStyle(element);
                const ground = grounds(element);
                const ink = element.closest("svg") ? style.fill : style.color;
                const [one, other] = [luminance(read(...ground)), luminance(read(...ground, ink))];
                const ratio = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
                if (ratio < 4.5) found.push([ratio, element.className, walker.currentNode.data.slice(0, 30)]);
            }
            return found;
        }"""
    )
    assert weak == []


def test_on_paper_everything_is_there_without_a_pointer(opened):
    page = opened("two", color_scheme="dark", viewport={"width": 700, "height": 1000})
    page.emulate_media(media="print")
    assert colour(page, "body") == "rgb(255, 255, 255)"
    for gone in (".choice", "nav", "#details", ".plots summary"):
        assert not any(element.is_visible() for element in page.locator(gone).all())
    for kept in ("h2", ".card", ".plot", ".plots table", ".pane", ".key.costs", "#text > .scroll table", "#method dd"):
        found = page.locator(kept).all()
        assert found
        assert all(element.is_visible() and element.bounding_box()["height"] > 4 for element in found), kept
    found = boxes(page, ".plots .scroll")
    assert not any(overlap(box, other) for at, box in enumerate(found) for other in boxes(page, ".plots .plot")[:at])
    cells = boxes(page, ".plots td, .plots th, #text td")
    assert max(box["x"] + box["width"] for box in cells) <= 700
    assert page.pdf()[:5] == b"%PDF-"


def test_without_its_script_the_page_still_shows_text_in_colours(opened):
    page = opened("one", java_script_enabled=False)
    tokens = page.locator(".text").first.locator("i").all()[:60]
    assert all(token.is_visible() for token in tokens if token.inner_text().strip())
    assert page.locator(".text").first.bounding_box()["height"] > 100


def test_a_reader_who_wants_no_motion_gets_none(opened):
    page = opened("one", reduced_motion="reduce")
    assert colour(page, "html", "scroll-behavior") == "auto"
    assert colour(page, ".choice span", "transition-duration") == "0s"
