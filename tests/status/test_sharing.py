"""A shared GPU on the status page, in the terminal and in the document, and findings on its engines."""

import io

import pytest
from rich.console import Console

from exporter.attribution.ledger import DeviceLedger, Totals
from exporter.attribution.snapshot import (
    NOBODY,
    Account,
    Allocation,
    Bill,
    Charges,
    DeviceKey,
    Holder,
    HoldersSnapshot,
    WorkloadUse,
)
from exporter.device_state import DeviceState
from exporter.findings import Finding
from exporter.inference.snapshot import GpuRef, WorkloadSnapshot, WorkloadsSnapshot
from exporter.state import State
from exporter.status.build import StatusSources
from exporter.status.document import Status
from exporter.status.page import render_page
from exporter.status.service import StatusService
from exporter.status.terminal import render
from tests.status.examples import gpu


A = Holder("pod", "serving", "chat-7d4b", "vllm")
B = Holder("pod", "research", "notebook-0", "main")
SPACES = str.maketrans("\N{NARROW NO-BREAK SPACE}\N{NO-BREAK SPACE}", "  ")
DEVICE = gpu(0)
UUID = DEVICE.identity.uuid


def service(bill: Bill, *, device: DeviceState = DEVICE) -> StatusService:
    """Two pods hold the GPU, and the engine `chat` serves on it."""
    allocations = tuple(
        Allocation(DeviceKey(uuid=UUID), each.namespace, each.pod, each.container)
        for each in (A, B)
    )
    chat = WorkloadSnapshot("chat", "vllm", up=True, gpus=(GpuRef("0", UUID),))
    state = State(
        at_seconds=0.0,
        devices=(device,),
        holders=HoldersSnapshot(allocations),
        workloads=WorkloadsSnapshot((chat,)),
        bill=bill,
    )
    return StatusService(
        StatusSources(
            state=lambda: state,
            configuration=dict,
            interval_seconds=lambda: 1.0,
            host_name="node7",
        )
    )


def shared() -> Charges:
    """A minute of 60 s: A has 24 s of SM time, B 12 s, a stranger 4 s; 40 s busy, 4,000 TFLOP."""
    ledger = DeviceLedger()
    owners = {1: A, 2: B}
    for now, used in ((0.0, (0.0, 0.0, 0.0)), (60.0, (24.0, 12.0, 4.0))):
        ledger.charge(
            Totals(4e15 * now / 60, None, None, {"tensor": now * 2 / 3, "idle": now / 3}),
            [A, B],
            process_seconds=dict(enumerate(used, 1)),
            owners=owners,
            now=now,
        )
    return ledger.charges()


def terminal(status: Status) -> str:
    console = Console(file=io.StringIO(), width=120)
    console.print(render(status, width=120))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().translate(SPACES)


def test_shares_of_a_shared_gpu() -> None:
    """60, 30 and 10 % of the busy time; 4,000 TFLOP in 60 s are 66.7 TFLOP/s: 40, 20 and 6.67 of them."""
    status = service(Bill({UUID: shared()})).status()
    first, second, rest = status.devices[0].holders

    assert (first.pod, second.pod, rest.pod) == ("chat-7d4b", "notebook-0", None)
    assert first.share_ratio == pytest.approx(0.6)
    assert second.share_ratio == pytest.approx(0.3)
    assert rest.share_ratio == pytest.approx(0.1)
    assert first.achieved_flops == pytest.approx(40e12)
    assert second.achieved_flops == pytest.approx(20e12)
    assert (first.basis, rest.basis) == ("process_utilization", None)


def test_the_page_and_the_terminal_show_them() -> None:
    """A line for each holder, and one for the work that belongs to none."""
    status = service(Bill({UUID: shared()})).status()
    words = (
        "serving/chat-7d4b (vllm): 60 % of the work, 40.0 TFLOP/s, by SM time",
        "research/notebook-0 (main): 30 % of the work, 20.0 TFLOP/s, by SM time",
        "10 % of the work, 6.67 TFLOP/s",
    )

    page, text = render_page(status).translate(SPACES), terminal(status)
    for each in words:
        assert each in page
        assert each in text
    assert "<dt>No holder</dt>" in page


def test_an_exclusive_gpu_has_no_shares() -> None:
    """Its holder is named as before."""
    charges = Charges({A: Account(flop=1.0), NOBODY: Account()}, {A: "exclusive"})
    (first, _second) = service(Bill({UUID: charges})).status().devices[0].holders

    assert (first.pod, first.share_ratio, first.basis) == ("chat-7d4b", None, None)
    assert "of the work" not in terminal(service(Bill({UUID: charges})).status())


def findings(bill: Bill) -> dict[str, Finding]:
    """The device's findings by kind, as on the page and in the series."""
    status = service(bill)
    page = {found.kind: found for found in status.status().devices[0].findings}
    (series,) = status.findings()
    assert {found.kind for found in series.findings} == set(page)
    return page


def test_equal_shares_say_what_would_help() -> None:
    """The exporter has its own PID namespace: hostPID would help."""
    found = findings(Bill({UUID: shared()}, unresolved={UUID: "namespace"}))

    assert "2 holders" in found["shares_not_measured"].text
    assert "hostPID: true" in found["shares_not_measured"].text
    assert "shares_not_measured" not in findings(Bill({UUID: shared()}))


def test_an_engine_whose_flop_do_not_add_up() -> None:
    """On the GPU that it uses: more than was executed, and half of what was usual."""
    use = WorkloadUse(1e15, 0.4, 0.8, explained_share=1.7, explained_spread=0.02)
    found = findings(Bill({}, workloads={"chat": use, "elsewhere": use}))

    assert "chat needs 170" in found["precision_or_product_mismatch"].text
    assert "chat" in found["useful_share_fell"].text
    assert "elsewhere" not in str(found)


def test_an_engine_whose_flop_add_up_has_no_finding() -> None:
    """85 %, as usual."""
    use = WorkloadUse(1e15, 0.85, 0.85, explained_share=0.85, explained_spread=0.02)

    assert not {"precision_or_product_mismatch", "useful_share_fell"} & set(
        findings(Bill({}, workloads={"chat": use}))
    )
