"""Histories of served models; see alert_cases.py for the notation."""

from .alert_cases import GPU, HOST, HOUR, Case


WORKLOAD = f'{HOST}, workload="chat", model="llama"'
TOKENS = f'flopwatch_model_tokens_total{{{WORKLOAD}, phase="decode"}}'
WAITING = f'flopwatch_model_requests{{{WORKLOAD}, state="waiting"}}'
FELL = 7 * HOUR

# 60,000 tokens a minute for seven hours, half of that for an hour and a half, and as before.
SLOWER = "0+60000x420 25230000+30000x90 27990000+60000x90"


def served(useful: str) -> dict[str, str]:
    """A model on one GPU whose tensor pipe does 1000 FLOP a minute, of which `useful` become tokens."""
    return {
        f'flopwatch_workload_gpu_info{{{GPU}, workload="chat"}}': "1x700",
        f'flopwatch_model_info{{{WORKLOAD}, engine="vllm", precision="bf16"}}': "1x700",
        f'flopwatch_flop_total{{{GPU}, pipe="tensor", precision="bf16", source="gpm"}}': "0+1000x700",
        f'flopwatch_model_flop_total{{{WORKLOAD}, phase="decode"}}': useful,
    }


MODELS = (
    Case(
        "ModelThroughputFell",
        "tokens halve while the queue stays, and come back",
        {TOKENS: SLOWER, WAITING: "8x700"},
        quiet_at=(FELL, FELL + 10, FELL + 150),
        fires_at=(FELL + 40,),
        labels={"workload": "chat", "model": "llama"},
    ),
    Case(
        "ModelThroughputFell",
        "traffic ebbs: tokens halve and nobody waits",
        {TOKENS: SLOWER, WAITING: "8x420 0x180"},
        quiet_at=(FELL + 40, FELL + 80),
    ),
    Case(
        "ModelUsefulShareFell",
        "half of the work is suddenly padding, until the batch is mended",
        served("0+600x420 252300+300x120 288900+600x90"),
        quiet_at=(FELL, FELL + 20, FELL + 180),
        fires_at=(FELL + 60,),
        labels={"model": "llama", "instance": ""},
    ),
)
