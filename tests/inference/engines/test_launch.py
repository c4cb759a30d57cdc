"""What an engine's command line reveals about it."""

from exporter.inference.launch import Launch, launch_of, parse


def test_vllm():
    """Options in any spelling; the model follows `serve`."""
    launch = parse(
        [
            "vllm",
            "serve",
            "acme/tiny",
            "--tensor-parallel-size",
            "4",
            "--max_num_batched_tokens=2048",
            "-dp",
            "2",
            "--api-server-count",
            "3",
            "--kv-cache-dtype",
            "fp8",
        ]
    )

    assert (launch.model, launch.gpus, launch.chunk_tokens) == ("acme/tiny", 8, 2048)
    assert (launch.api_servers, launch.cache_data_type) == (3, "fp8")


def test_sglang_in_a_split():
    """The role of a decode server."""
    launch = parse(
        [
            "python",
            "-m",
            "sglang.launch_server",
            "--model-path",
            "/m",
            "--tp",
            "2",
            "--disaggregation-mode",
            "decode",
        ]
    )

    assert (launch.model, launch.tensor_parallel, launch.role) == ("/m", 2, "decode")


def test_llama_cpp():
    """-m names the file, -ub the tokens of a pass."""
    launch = parse(["llama-server", "-m", "/m/a.gguf", "-ub", "256", "--cache-type-k", "q8_0"])

    assert (launch.model, launch.chunk_tokens) == ("/m/a.gguf", 256)
    assert launch.cache_data_type == "q8_0"


def test_a_kv_producer():
    """vLLM's prefill server is recognised by its transfer configuration; kv_both decides nothing."""
    option = "--kv-transfer-config"

    assert parse(["vllm", option, '{"kv_role": "kv_producer"}']).role == "prefill"
    assert parse(["vllm", option, '{"kv_role": "kv_both"}']).role is None
    assert parse(["vllm", option, "{"]).role is None


def test_values_without_a_meaning():
    """Thousands of digits or brackets set nothing: the interpreter refuses to read such text."""
    launch = parse(["vllm", "--tp", "9" * 5000, "--kv-transfer-config", "[" * 50_000])

    assert launch == Launch()


def test_processes(tmp_path):
    """A parent with the command line, and two API servers that carry titles instead."""
    for pid, line in (
        (10, "vllm\0serve\0/m\0--api-server-count\0002\0"),
        (11, "VLLM::APIServer_0"),
        (12, "VLLM::APIServer_1"),
        (13, "VLLM::EngineCore"),
    ):
        (tmp_path / str(pid)).mkdir()
        (tmp_path / str(pid) / "cmdline").write_text(line)

    launch = launch_of({10, 11, 12, 13, 99}, tmp_path)

    assert (launch.model, launch.api_servers, launch.pid) == ("/m", 2, 10)


def test_nothing_can_be_read():
    """A remote engine, or one that we may not read."""
    assert launch_of(()) == Launch()
