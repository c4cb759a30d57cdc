"""The page in a real Chromium: looks, keyboard, refresh, policy, and an accessibility checker.

axe-core comes in the package axe-playwright-python; only its script is used.
"""

import importlib.util
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from exporter.web.http import Router
from exporter.web.server import Server
from probes.records import ProbesSnapshot
from tests.status.browser import CHROMIUM, Browser
from tests.status.examples import COARSE, DECODE, IDLE, Machine, cpu, fleet, gpu, probed


pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
_CARRIER = importlib.util.find_spec("axe_playwright_python")
AXE = (
    Path(_CARRIER.origin).with_name("axe.min.js")
    if _CARRIER is not None and _CARRIER.origin
    else None
)
PHONE = {"width": 390, "height": 844}


def two_gpus() -> Machine:
    machine = Machine()
    for index in range(2):
        machine.add(gpu(index))
    machine.run(120, lambda _index, _now: DECODE, step=2.0)
    return machine


def lost() -> Machine:
    machine = two_gpus()
    machine.lose("1")
    return machine


def processor() -> Machine:
    machine = Machine()
    machine.add(cpu())
    machine.run(60, {"cpu0": COARSE})
    return machine


HOSTS: dict[str, Callable[[], Machine]] = {
    "no device": Machine,
    "one": lambda: fleet(1, seconds=600),
    "eight": lambda: fleet(8, seconds=600),
    "sixty-four": lambda: fleet(64, seconds=60),
    "lost": lost,
    "no probes": two_gpus,
    "processor": processor,
}
VIEWS: dict[str, dict[str, Any]] = {"light": {}, "dark": {"dark": True}, "phone": PHONE}


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("chromium")) as opened:
        yield opened


class Site:
    """A machine behind a real server; its answers can be cut off."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        router = Router()
        machine.service.add_routes(router)
        self.server = Server(["127.0.0.1:0"], router)
        self.server.start()
        self.url = f"http://127.0.0.1:{self.server.addresses[0][1]}/"


@pytest.fixture
def serve() -> Iterator[Callable[[Machine], Site]]:
    sites: list[Site] = []

    def start(machine: Machine) -> Site:
        sites.append(Site(machine))
        return sites[-1]

    yield start
    for site in sites:
        site.server.close(0.2)


Serve = Callable[[Machine], Site]


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("view", VIEWS)
def test_every_host_fits_every_window(browser: Browser, serve: Serve, host: str, view: str) -> None:
    """Nothing overflows, nothing breaks the policy, and the checker finds nothing."""
    if view != "light" and host == "sixty-four":
        pytest.skip("as eight, and slow")
    site = serve(HOSTS[host]())
    browser.violations.clear()
    browser.look(**VIEWS[view])
    browser.open(site.url)

    assert browser.evaluate("document.querySelector('.verdict').textContent.length") > 10
    assert browser.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert browser.violations == []
    assert AXE is not None
    assert axe_finds(browser, AXE) == []


def axe_finds(browser: Browser, axe: Path) -> list[Any]:
    """What axe-core objects to, with all details open."""
    browser.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true; }), 0")
    browser.evaluate(axe.read_text(encoding="utf-8") + "; 0")
    found = browser.evaluate(
        "axe.run().then((r) => JSON.stringify(r.violations.map((v) => [v.id, v.nodes[0].html])))"
    )
    return list(json.loads(found))


def test_the_checker_would_find_something(browser: Browser, serve: Serve) -> None:
    """Nearly white text on white is reported: so an empty report is meaningful."""
    assert AXE is not None
    browser.look()
    browser.open(serve(two_gpus()).url)
    browser.evaluate("document.documentElement.style.setProperty('--soft', '#eee'), 0")

    assert "color-contrast" in [name for name, _html in axe_finds(browser, AXE)]


def test_colours_can_be_forced_and_turned_off(browser: Browser, serve: Serve) -> None:
    """Light and dark are two backgrounds."""
    site = serve(two_gpus())
    grounds = []
    for dark in (False, True):
        browser.look(dark=dark)
        browser.open(site.url)
        grounds.append(browser.evaluate("getComputedStyle(document.body).backgroundColor"))

    assert grounds == ["rgb(244, 245, 247)", "rgb(16, 19, 24)"]


def test_it_refreshes_and_keeps_what_the_reader_did(browser: Browser, serve: Serve) -> None:
    """Numbers are updated; open details, focus, selection and scroll position stay."""
    machine = two_gpus()
    machine.probes = ProbesSnapshot(True, False, (probed(0), probed(1)))
    site = serve(machine)
    browser.look(width=500, height=300)
    browser.open(site.url)
    browser.evaluate("document.querySelector('#gpu-1- summary').focus(), 0")
    browser.evaluate("document.querySelector('#gpu-1- details').open = true, 0")
    browser.evaluate("window.scrollTo(0, 500), 0")
    browser.evaluate("window.card = document.getElementById('gpu-1-'), 0")
    top = "Math.round(window.card.getBoundingClientRect().top)"
    before = browser.evaluate(top)

    machine.run(120, lambda _index, _now: IDLE, step=2.0)

    browser.until("document.querySelector('#gpu-1- .number').innerText.startsWith('0')")
    assert browser.evaluate("document.querySelector('#gpu-1- details').open")
    assert browser.evaluate("document.activeElement.closest('article')?.id") == "gpu-1-"
    assert abs(browser.evaluate(top) - before) <= 2  # anchored by the browser, to a rounded pixel
    assert browser.evaluate("window.card === document.getElementById('gpu-1-')")


def test_a_gpu_with_a_new_problem_moves_to_the_top(browser: Browser, serve: Serve) -> None:
    """Its card moves to the front at the next refresh, and the title shows it."""
    machine = two_gpus()
    site = serve(machine)
    browser.look()
    browser.open(site.url)
    assert browser.evaluate("document.querySelector('article').id") == "gpu-0-"

    machine.now += 1
    machine.lose("1")

    browser.until("document.querySelector('article').id === 'gpu-1-'")
    assert browser.evaluate("document.querySelectorAll('article').length") == 2
    assert "1 critical" in browser.evaluate("document.title")


def test_it_can_be_paused_from_the_keyboard(browser: Browser, serve: Serve) -> None:
    """Tab reaches the button first; paused, nothing moves; resumed, it catches up."""
    machine = two_gpus()
    site = serve(machine)
    browser.look()
    browser.open(site.url)
    press(browser, "Tab", 9)
    assert browser.evaluate("document.activeElement.id") == "pause"
    press(browser, "Enter", 13)
    assert browser.evaluate("document.activeElement.textContent") == "Resume updates"

    machine.run(120, lambda _index, _now: IDLE, step=2.0)
    browser.evaluate("new Promise((done) => setTimeout(done, 2600))")
    assert browser.evaluate("document.querySelector('.number').innerText").startswith("118")

    press(browser, "Enter", 13)
    browser.until("document.querySelector('.number').innerText.startsWith('0')")


def press(browser: Browser, key: str, code: int) -> None:
    text = {"text": "\r"} if key == "Enter" else {}
    for kind in ("keyDown", "keyUp"):
        browser.call(
            "Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code, **text
        )


def test_a_daemon_that_stopped_answering_is_reported(browser: Browser, serve: Serve) -> None:
    """The last data stays, greyed out, with its time."""
    site = serve(two_gpus())
    browser.look()
    browser.open(site.url)
    site.server.close(0.2)

    browser.until("!document.getElementById('notice').hidden")
    assert "No answer from the exporter" in browser.evaluate(
        "document.getElementById('notice').textContent"
    )
    assert browser.evaluate("document.querySelectorAll('article').length") == 2


def test_without_javascript_it_is_complete(browser: Browser, serve: Serve) -> None:
    """All numbers are shown; the button, which would do nothing, is not."""
    browser.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.look()
        browser.open(serve(two_gpus()).url)
        document = browser.call("DOM.getDocument", depth=-1)["root"]["nodeId"]
        html = browser.call("DOM.getOuterHTML", nodeId=document)["outerHTML"]
    finally:
        browser.call("Emulation.setScriptExecutionDisabled", value=False)

    assert "118&nbsp;TFLOP/s" in html
    assert '<button id="pause" type="button" hidden' in html
