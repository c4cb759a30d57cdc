"""All engines that we can read. Adding one is adding its file and one line here."""

from exporter.inference.engines import sglang, tensorrt_llm, tgi, vllm
from exporter.inference.reading import Engine


ENGINES: dict[str, Engine] = {
    engine.name: engine for engine in (vllm.ENGINE, sglang.ENGINE, tensorrt_llm.ENGINE, tgi.ENGINE)
}
PREFIXES: tuple[str, ...] = tuple(
    prefix for engine in ENGINES.values() for prefix in engine.prefixes
)
