"""The web page in a real browser, on a real server with the demo's checkpoint. `make test-page` installs what it needs."""

import json
import shutil
import subprocess

import pytest

from conftest import HELD_OUT, ROOT
from service.servers import vl2

CHROMIUM = shutil.which("chromium")
playwright = pytest.importorskip("playwright.sync_api", reason="make test-page installs playwright and Chromium")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not CHROMIUM, reason="make test-page installs Chromium")]
CLIPS = HELD_OUT / "held_out"
QUESTION = "What happens in the video?"
STOP_AT_THE_FIRST_WORD = """() => new MutationObserver((_, observer) => {
    if (!document.querySelector("#log .assistant")?.textContent) return;
    observer.disconnect();
    document.querySelector("#stop").click();
}).observe(document.querySelector("#log"), {subtree: true, childList: true, characterData: true})"""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    from service.servers import serving

    bundle = tmp_path_factory.mktemp("page") / "bundle"
    subprocess.run(vl2("convert", ROOT / "training/checkpoints/tiny-shapes", "--out", bundle), check=True)
    with serving(bundle, bundle.parent / "server.log") as server:
        yield server


@pytest.fixture(scope="module")
def address(server):
    words = ("--server", server.grpc, "--port", 0, "--examples", CLIPS)
    with subprocess.Popen(vl2("gateway", *words), stdout=subprocess.PIPE, text=True) as process:
        yield process.stdout.readline().split("a web page at ")[1].split(",")[0]
        process.terminate()


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser, address):
    """A fresh page; an error that it writes to the console fails the test."""
    page = browser.new_page(viewport={"width": 1200, "height": 800})
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(address)
    page.get_by_role("button", name="Example 1", exact=True).wait_for()
    yield page
    page.close()
    assert said == []


def ask(page, question: str, answers: int) -> str:
    """The answer once it is complete, when its stage times are shown below it."""
    page.get_by_label("Question").fill(question)
    page.keyboard.press("Enter")
    page.locator("#log .stages").nth(answers - 1).wait_for()
    page.locator("#ask:enabled").wait_for()
    return page.locator("#log .assistant").nth(answers - 1).inner_text()


def test_an_upload_and_two_turns(page, server):
    clip = sorted(CLIPS.glob("*.mp4"))[3]
    page.get_by_label("Video, picture or audio file").set_input_files(clip)
    first, second = ask(page, QUESTION, 1), ask(page, "What colour is it?", 2)
    told = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": first}]
    with server.client() as client:
        assert first == client.ask(QUESTION, video=clip, max_new_tokens=256).text
        told.append({"role": "user", "content": "What colour is it?"})
        assert second == client.ask(told, video=clip, max_new_tokens=256).text
    assert page.locator("#error").is_hidden()


def test_an_example_and_a_part_of_it(page, server):
    page.get_by_role("button", name="Example 1", exact=True).click()
    page.get_by_text("Part:").wait_for()
    page.get_by_label("Start, in seconds").fill("1")
    answer = ask(page, QUESTION, 1)
    with server.client() as client:
        told = client.ask(QUESTION, video=sorted(CLIPS.iterdir())[0], start=1.0, max_new_tokens=256)
    assert answer == told.text
    page.locator("#frames li canvas").nth(len(told.frames) - 1).wait_for()  # what the model looked at, drawn
    shown = [float(text.removesuffix(" s")) for text in page.locator("#frames li").all_inner_texts()]
    assert shown == pytest.approx([frame.seconds for frame in told.frames], abs=0.006)


def test_an_answer_streams_and_can_be_stopped(page):
    """Uses options that the page does not offer, so that the answer is long."""
    more = {"temperature": 100, "top_k": 0, "top_p": 1, "seed": 3, "max_tokens": 3000}

    def send(route):
        route.continue_(post_data=json.dumps(json.loads(route.request.post_data) | more))

    page.route("**/v1/chat/completions", send)
    page.evaluate(STOP_AT_THE_FIRST_WORD)  # in the page: the answer may be whole before a test's click arrives
    page.get_by_label("Question").fill("Tell a story")
    page.get_by_role("button", name="Ask").click()
    page.locator("#log .assistant", has_text="(stopped)").wait_for()
    assert page.get_by_role("button", name="Ask").is_enabled()


def test_an_error_is_shown_in_words(browser, address, tmp_path):
    """Without the fixture: a browser logs the status 400 as an error of its own."""
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"\0\0\0\x20ftypisom" + b"nothing" * 100)
    page = browser.new_page()
    page.goto(address)
    page.get_by_label("Video, picture or audio file").set_input_files(broken)
    page.get_by_label("Question").fill(QUESTION)
    page.get_by_role("button", name="Ask").click()
    page.get_by_role("alert").wait_for()
    assert "not a video that can be opened" in page.get_by_role("alert").inner_text()
    page.get_by_role("button", name="Remove").click()
    assert ask(page, "What is a video?", 1)
    page.close()


def test_a_phone_layout_and_the_dark_theme(browser, address):
    page = browser.new_page(viewport={"width": 390, "height": 844}, color_scheme="dark")
    page.goto(address)
    page.get_by_role("button", name="Example 1", exact=True).click()
    ask(page, QUESTION, 1)
    assert page.locator("html").evaluate("element => element.scrollWidth") == 390
    assert page.locator("body").evaluate("element => getComputedStyle(element).backgroundColor") == "rgb(21, 23, 27)"
    page.close()


def test_the_page_works_by_keyboard_alone(page):
    for _ in range(30):
        if page.evaluate("document.activeElement.id") == "question":
            break
        page.keyboard.press("Tab")
    page.keyboard.type("What is a video?")
    page.keyboard.press("Enter")
    page.locator("#log .stages").wait_for()


def test_only_the_page_is_served(address):
    import httpx2

    for path in (
        "examples/../routes.py",
        "examples/%2e%2e%2froutes.py",
        "page.py",
        "examples/none.mp4",
        "index.html/x",
    ):
        assert httpx2.get(f"{address}{path}").status_code == 404
    response = httpx2.get(address)
    assert "default-src 'self'" in response.headers["content-security-policy"]
    assert httpx2.get(f"{address}examples").json() == [path.name for path in sorted(CLIPS.iterdir())[:6]]
