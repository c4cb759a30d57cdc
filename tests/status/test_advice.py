"""The best lever of each workload on the status page and in its document."""

from dataclasses import replace

from exporter.advice.advise import AdviceSnapshot, advise, best_sentence
from exporter.inference.snapshot import ModelSnapshot, WorkloadSnapshot, WorkloadsSnapshot
from exporter.state import State
from exporter.status.build import StatusSources
from exporter.status.page import render_page
from exporter.status.service import StatusService
from tests.advice.windows import window


def service(advice: AdviceSnapshot) -> StatusService:
    workload = WorkloadSnapshot(
        name="chat", engine="vllm", up=True, models=(ModelSnapshot(model="tiny"),)
    )
    return StatusService(
        StatusSources(
            state=lambda: State(at_seconds=0.0, workloads=WorkloadsSnapshot((workload,))),
            configuration=dict,
            interval_seconds=lambda: 1.0,
            host_name="node7",
            advice=lambda: advice,
        )
    )


def test_the_page_names_the_best_lever_of_each_workload() -> None:
    advice = advise(window())
    status = service(AdviceSnapshot((advice,))).status()
    sentence = best_sentence(advice)

    assert sentence is not None
    assert sentence.startswith("chat (tiny): ")
    assert status.host.workloads[0].advice == [sentence]
    assert f"What would help {sentence}"[:60] in render_page(status)


def test_without_a_lever_that_surely_helps_nothing_is_said() -> None:
    idle = replace(window(), waiting_requests=0.0)
    status = service(AdviceSnapshot((advise(idle),))).status()

    assert status.host.workloads[0].advice == []
    assert "What would help" not in render_page(status)
