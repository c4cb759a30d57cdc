"""The page as text: complete, escaped, small, and within its content policy."""

import base64
import gzip
import hashlib
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exporter.status.page import FULL_CARDS, SECURITY_HEADERS
from exporter.web.http import Request, Router
from tests.status.examples import (
    COARSE,
    DECODE,
    Machine,
    busy_hour,
    cpu,
    fleet,
    gpu,
    held,
    served,
)


_VOID = {"meta", "link", "rect", "path"}


class Outline(HTMLParser):
    """Collects elements and visible text, and fails on tags that do not match."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self._open: list[str] = []
        self.feed(page)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in _VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] not in {"style", "script"}:
            self.text.append(data)

    @property
    def tags(self) -> list[str]:
        return [tag for tag, _attributes in self.elements]

    @property
    def words(self) -> str:
        return " ".join(self.text).replace("\N{NO-BREAK SPACE}", " ")


class TestContent:
    def test_it_answers_the_question(self) -> None:
        """Delivered FLOPS, the peak, where the rest goes, and the state of the board."""
        machine = Machine()
        machine.add(gpu(0))
        machine.run(120, {"0": DECODE}, step=1.0)
        words = Outline(machine.page()).words

        for text in (
            "118 TFLOP/s",
            "of 989 TFLOP/s bf16 (12 %)",
            "Memory-bound: DRAM at 91 %, tensor pipe waits",
            "waiting for memory 62 %",
            "1,980 of 1,980 MHz",
            "455 of 700 W",
            "54 °C, memory 66 °C",
            "72.0 GiB of 80.0 GiB",
            "3.05 TB/s of 3.35 TB/s (91 %)",
        ):
            assert text in words

    def test_without_devices_it_says_so(self) -> None:
        """An empty page would look like a broken one."""
        words = Outline(Machine(driver_error="driver_not_loaded").page()).words

        assert "No device to monitor" in words
        assert "No GPU: the NVIDIA driver is not loaded." in words

    def test_an_old_driver_error_is_forgotten(self) -> None:
        """Once there are GPUs, the reason why there were none is dropped."""
        machine = Machine(driver_error="driver_not_loaded")
        machine.add(gpu(0))

        assert "No GPU" not in Outline(machine.page()).words

    def test_a_silent_driver_is_reported(self) -> None:
        """Waiting is not a problem yet."""
        words = Outline(Machine(pending=True).page()).words

        assert "Waiting for the driver" in words

    def test_a_processor_makes_a_page(self) -> None:
        """The page of a processor does not call it a GPU."""
        machine = Machine()
        machine.add(cpu())
        machine.run(60, {"cpu0": COARSE})
        words = Outline(machine.page()).words

        assert "Peak 346 GFLOP/s fp32 (derived)" in words
        assert "GPU cpu0" not in words

    def test_one_device_alone(self) -> None:
        """`?gpu=3` shows that one, and the way back."""
        page = Outline(fleet(4).page("gpu=2"))

        assert page.tags.count("article") == 1
        assert "All devices" in page.words

    def test_an_unknown_device_is_404(self) -> None:
        """And names the requested one, escaped."""
        answer = Machine().service.page(Request("GET", "/", "gpu=%3Cb%3E", {}, "::1"))

        assert answer.status == 404
        assert b"no device &lt;b&gt;" in answer.body

    def test_of_many_devices_only_the_first_have_all_details(self) -> None:
        """64 devices are not 64 tables; each of the others leads to its own page."""
        page = Outline(fleet(64, seconds=60).page())

        assert page.tags.count("article") == 64
        assert page.tags.count("details") == FULL_CARDS
        assert sum("?gpu=" in (a.get("href") or "") for _tag, a in page.elements) == 48


class TestSize:
    @pytest.mark.parametrize("load", [None, busy_hour])
    def test_eight_gpus_stay_below_60_kilobytes(self, load: object) -> None:
        """Even when every minute of the hour had a different load."""
        machine = fleet(8) if load is None else fleet(8, busy_hour)

        assert len(machine.page().encode()) < 60_000


class TestPolicy:
    def test_inline_elements_are_allowed_by_their_hashes(self) -> None:
        """Style and script are those of the policy, to the byte, and the only ones."""
        page = fleet(1).page()
        policy = dict(SECURITY_HEADERS)["Content-Security-Policy"]
        for tag in ("style", "script"):
            (text,) = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
            digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
            assert f"{tag}-src 'sha256-{digest}'" in policy
        assert "unsafe" not in policy
        assert policy.startswith("default-src 'none'")

    def test_the_content_security_policy_blocks_nothing(self) -> None:
        """No style attributes, no handlers, nothing from elsewhere."""
        for tag, attributes in Outline(fleet(8).page()).elements:
            assert "style" not in attributes
            assert not any(name.startswith("on") for name in attributes)
            if tag in {"script", "img", "iframe"}:
                assert "src" not in attributes
            if tag == "link":
                assert str(attributes["href"]).startswith("data:")

    def test_without_javascript_it_refreshes_itself(self) -> None:
        """Browsers that run the script never see this element."""
        assert '<noscript><meta http-equiv="refresh" content="10"></noscript>' in Machine().page()

    def test_every_answer_carries_the_headers(self) -> None:
        """Page, JSON, configuration and the references."""
        router = Router()
        Machine().service.add_routes(router)
        for path in ("/", "/api/v1/status", "/config", "/docs/metrics", "/docs/configuration"):
            answer = router(Request("GET", path, "", {}, "::1"))
            assert answer.status == 200
            assert set(SECURITY_HEADERS) <= set(answer.headers)


class TestServing:
    def test_within_a_tick_the_same_bytes_are_served(self) -> None:
        """Ten viewers cost one rendering; the next tick brings another."""
        machine = fleet(1)
        request = Request("GET", "/", "", {}, "::1")
        first = machine.service.page(request).body

        assert machine.service.page(request).body is first
        machine.now += 1.0
        assert machine.service.page(request).body is not first

    def test_gzip_where_it_is_welcome(self) -> None:
        """The same page, a fifth of the bytes."""
        machine = fleet(2)
        plain = machine.service.page(Request("GET", "/", "", {}, "::1"))
        packed = machine.service.page(Request("GET", "/", "", {"accept-encoding": "gzip"}, "::1"))

        assert gzip.decompress(packed.body) == plain.body
        assert ("Content-Encoding", "gzip") in packed.headers
        assert ("Content-Encoding", "gzip") not in plain.headers

    def test_metrics_keep_the_path_that_they_were_given(self) -> None:
        """With metrics at `/` the page is not served there, and the rest stays."""
        router = Router()
        Machine(telemetry_path="/").service.add_routes(router)

        assert router(Request("GET", "/", "", {}, "::1")).status == 404
        assert router(Request("GET", "/api/v1/status", "", {}, "::1")).status == 200

    def test_the_configuration_is_masked(self) -> None:
        """A password in an address must not be shown to every viewer of the page."""
        machine = Machine(configuration={"dcgm": {"url": "http://a:b@host/"}})
        answer = machine.service.configuration(Request("GET", "/config", "", {}, "::1"))

        assert answer.body == b"dcgm:\n  url: http://<secret>@host/\n"


HOSTILE = st.one_of(
    st.text(max_size=30),
    st.sampled_from(
        [
            "<script>alert(1)</script>",
            '"><img src=x onerror=alert(1)>',
            "' onmouseover='alert(1)",
            "</style><script>x</script>",
            "&lt;b&gt;",
            "<!--",
            "\x00\x1b[31m",
        ]
    ),
)


class TestEscaping:
    @given(HOSTILE, HOSTILE, HOSTILE, HOSTILE)
    @settings(max_examples=60, deadline=None)
    def test_external_names_never_become_markup(
        self, device: str, host: str, model: str, pod: str
    ) -> None:
        """The elements are those of a page with harmless names, whatever the names are."""

        def outline(*names: str) -> list[tuple[str, list[str]]]:
            machine = Machine(name=names[1])
            snapshot = gpu(0, mig=names[0])
            identity = replace(
                snapshot.identity, name=names[0], serial=names[2], pci_bus_id=names[3]
            )
            machine.add(replace(snapshot, identity=identity))
            machine.run(20, lambda _index, _now: DECODE)
            machine.workloads = served([0], model=names[2])
            machine.holders = held([0], pod=names[3])
            page = Outline(machine.page())
            # A name that is empty leaves its row out: these two are what differs in number.
            return [
                (tag, sorted(attributes))
                for tag, attributes in page.elements
                if tag not in {"dt", "dd"}
            ]

        assert outline(device, host, model, pod) == outline("a", "b", "c", "d")
