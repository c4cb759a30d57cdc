"""The engine of `docs/how-to-add-an-engine.md`, added as described: one file, and no other change."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path


ROOT = Path(__file__).parents[3]

# In its own process, which imports the copy of the packages in its working directory.
PROGRAM = """
import json, sys
from exporter.config.load import ConfigOrigin, load_config
from exporter.inference.engines import ENGINES, identify
from exporter.inference.reading import Sample
from exporter.inference.reading import Samples
config = load_config(ConfigOrigin(sys.argv[1], environment={}))
engine = ENGINES["example"]
reading = engine.read(Samples([
    Sample("example:prompt_tokens_total", {}, 30.0, 130.0),
    Sample("example:generated_tokens_total", {}, 12.0, 112.0),
    Sample("example:running_requests", {}, 3.0, 3.0),
]))
print(json.dumps({
    "configured": config.workloads[0].engine,
    "identified": identify({"example:"}),
    "tokens": [reading.computed_tokens, reading.generated_tokens, reading.running_requests],
}))
"""


def test_an_engine_is_one_file(tmp_path: Path) -> None:
    """It can be configured, it is recognised by its metrics, and its tokens are read."""
    page = (ROOT / "docs/how-to-add-an-engine.md").read_text()
    example = re.search(r"```python\n(.*?)```", page, re.DOTALL)
    assert example is not None
    for package in ("exporter", "flopwatch", "probes"):
        shutil.copytree(
            ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__")
        )
    (tmp_path / "exporter/inference/engines/example.py").write_text(example[1])
    config = tmp_path / "config.yaml"
    config.write_text(
        "workloads: [{name: chat, engine: example, url: 'http://127.0.0.1:1/metrics'}]"
    )

    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(config)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "configured": "example",
        "identified": "example",
        "tokens": [30.0, 12.0, 3.0],
    }
