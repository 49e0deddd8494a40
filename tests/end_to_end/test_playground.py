"""The playground as a person uses it: in a real browser, against a real service."""

import io
import shutil
from collections.abc import Callable, Iterator

import pytest
from PIL import Image, ImageDraw

playwright = pytest.importorskip("playwright.sync_api", reason="needs the package playwright")
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(BROWSER is None, reason="needs Debian's package chromium")
expect = playwright.expect


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    with playwright.sync_playwright() as driver:
        # In a container there is neither a sandbox nor much shared memory.
        arguments = ["--no-sandbox", "--disable-dev-shm-usage"]
        browser = driver.chromium.launch(executable_path=BROWSER, args=arguments)
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser, service) -> Iterator[Callable[..., object]]:
    """Open the playground, with `phone=True` as on one; whatever the page complains of fails."""
    contexts = []
    complaints: list[str] = []

    def open_one(*, url: str = service.url, phone: bool = False, scheme: str = "light"):
        size = {"width": 390, "height": 780} if phone else {"width": 1200, "height": 800}
        context = browser.new_context(
            viewport=size, color_scheme=scheme, has_touch=phone, is_mobile=phone
        )
        context.set_default_timeout(30_000)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: complaints.append(str(error)))
        # A refusal that the page explains is also told to the console, by the browser itself.
        page.on(
            "console",
            lambda message: (
                complaints.append(message.text)
                if message.type == "error" and "Failed to load resource" not in message.text
                else None
            ),
        )
        page.goto(url)
        return page

    yield open_one
    for context in contexts:
        context.close()
    assert complaints == []


def drawn(color: str, file_format: str = "PNG") -> bytes:
    image = Image.new("RGB", (224, 224), "white")
    ImageDraw.Draw(image).ellipse((52, 52, 172, 172), fill=color)
    file = io.BytesIO()
    image.save(file, file_format)
    return file.getvalue()


def choose(page, *files: tuple[str, str, bytes]) -> None:
    page.locator("#file").set_input_files(
        [{"name": name, "mimeType": kind, "buffer": content} for name, kind, content in files]
    )


def ask(page, question: str) -> None:
    page.get_by_role("textbox", name="Question").fill(question)
    page.get_by_role("button", name="Ask", exact=True).click()


@pytest.mark.parametrize(
    ("example", "answer"),
    [
        ("A red circle", "a red circle"),
        ("A number", "42"),
        ("Two pictures", "no"),
        ("中文", "橙色"),
    ],
)
def test_examples_are_answered_rightly(open_page, example, answer):
    page = open_page()
    page.get_by_role("button", name=example).click()
    expect(page.locator("#answer")).to_contain_text(answer)
    expect(page.locator("#figures")).to_contain_text("tokens in")


def test_chosen_picture_is_answered_and_can_be_removed(open_page):
    page = open_page()
    expect(page.locator("#model")).to_have_text("Model: demo")
    choose(page, ("one.png", "image/png", drawn("blue")), ("two.png", "image/png", drawn("red")))
    page.get_by_role("button", name="Remove one.png").click()
    page.get_by_role("textbox", name="Question").fill("What is in this image?")
    page.keyboard.press("Control+Enter")
    expect(page.locator("#answer")).to_have_text("a red circle")


def test_pasted_and_dropped_pictures_are_taken(open_page):
    page = open_page()
    transfer = """([name, bytes, kind]) => {
        const transfer = new DataTransfer();
        transfer.items.add(new File([new Uint8Array(bytes)], name, { type: "image/png" }));
        const options = { bubbles: true, cancelable: true };
        const event = kind === "paste"
            ? new ClipboardEvent("paste", { ...options, clipboardData: transfer })
            : new DragEvent("drop", { ...options, dataTransfer: transfer });
        document.getElementById("drop").dispatchEvent(event);
    }"""
    page.evaluate(transfer, ["pasted.png", list(drawn("red")), "paste"])
    page.evaluate(transfer, ["dropped.png", list(drawn("blue")), "drop"])
    expect(page.locator("#pictures li")).to_have_count(2)
    ask(page, "What is in the second image?")
    expect(page.locator("#answer")).to_have_text("a blue circle")


def test_boxes_are_drawn_over_the_picture(open_page):
    page = open_page()
    page.get_by_role("button", name="Find it").click()
    box = page.locator(".boxed rect")
    expect(box).to_have_count(1)
    outline, picture = box.bounding_box(), page.locator(".boxed img").bounding_box()
    center = (outline["x"] + outline["width"] / 2 - picture["x"]) / picture["width"]
    # The example's square is left of the middle; a box in another unit would lie elsewhere.
    assert 0.2 < center < 0.5
    assert 0.3 < outline["width"] / picture["width"] < 0.8
    expect(page.locator(".found li")).to_contain_text("blue square")


def test_what_the_model_saw_is_shown(open_page):
    page = open_page()
    choose(page, ("photo.jpg", "image/jpeg", drawn("red", "JPEG")))
    ask(page, "What is in this image?")
    page.get_by_role("button", name="What the model saw").click()
    expect(page.locator("#preview td").nth(1)).to_have_text("jpeg")
    expect(page.locator("#preview pre")).to_contain_text("What is in this image?")


def test_markup_in_a_question_stays_text(open_page):
    page = open_page()
    choose(page, ("photo.png", "image/png", drawn("red")))
    ask(page, "What is in this image? <img src=x onerror=alert(1)>")
    page.get_by_role("button", name="What the model saw").click()
    expect(page.locator("#preview pre")).to_contain_text("<img src=x")
    assert page.locator("#preview img").count() == 0


def test_answer_can_be_stopped(open_page):
    page = open_page()
    ask(page, "Count from 1 to 30")
    page.keyboard.press("Escape")
    expect(page.locator("#figures")).to_contain_text(" s")
    expect(page.get_by_role("button", name="Ask", exact=True)).to_be_enabled()


def test_broken_picture_is_explained(open_page):
    page = open_page()
    choose(page, ("broken.png", "image/png", drawn("red")[:200]))
    ask(page, "What is in this image?")
    expect(page.get_by_role("alert")).to_contain_text("incomplete")


def test_question_without_anything_is_explained(open_page):
    page = open_page()
    page.get_by_role("button", name="Ask", exact=True).click()
    expect(page.get_by_role("alert")).to_contain_text("Type a question")


def test_copied_programs_are_the_same_request(open_page):
    page = open_page()
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    choose(page, ("it's mine.png", "image/png", drawn("red")))
    ask(page, "What's in this image?")
    read = "() => navigator.clipboard.readText()"
    page.get_by_role("button", name="Copy as curl").click()
    expect(page.locator("#copied")).to_have_text("curl command copied.")
    curl = page.evaluate(read)
    page.get_by_role("button", name="Copy as Python").click()
    expect(page.locator("#copied")).to_have_text("Python program copied.")
    program = page.evaluate(read)
    assert """base64,'"$(base64 -w0 'it'\\''s mine.png')"'""" in curl
    assert '"data:image/png;base64," + base64_of("it\'s mine.png")' in program
    compile(program, "copied", "exec")


def test_phone_has_no_sideways_scrolling(open_page):
    page = open_page(phone=True, scheme="dark")
    page.get_by_role("button", name="Find it").click()
    expect(page.locator(".boxed rect")).to_have_count(1)
    page.get_by_role("button", name="What the model saw").click()
    expect(page.locator("#preview pre")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_everything_can_be_reached_by_keyboard_and_has_a_name(open_page):
    page = open_page()
    nameless = page.evaluate(
        """() => [...document.querySelectorAll("button, input, textarea, a")].filter((each) =>
            !(each.textContent.trim() || each.getAttribute("aria-label") || each.labels?.length)
        ).map((each) => each.outerHTML)"""
    )
    assert nameless == []
    reached = set()
    for _ in range(30):
        page.keyboard.press("Tab")
        reached.add(
            page.evaluate("document.activeElement.id || document.activeElement.textContent")
        )
    assert {"file", "question", "ask", "A red circle"} <= reached


def test_page_runs_nothing_but_its_own_files(service, client):
    policy = client.get("/").headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "http" not in policy
    assert client.get("/playground/nothing.js").status_code == 404
