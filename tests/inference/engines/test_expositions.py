"""How each engine's exposition, current and old, is read."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.inference.engines import ENGINES, PREFIXES, identify, with_table
from exporter.inference.reading import InFlight, Sample, Samples, by_model, canonical_name, parse
from exporter.inference.scraper import CounterTracker
from tests.inference.engines.server import exposition


RECORDINGS = Path(__file__).parent / "recordings"


def read_all(engine_name, text):
    """Every model of an exposition, as if all of it had happened since the last scrape."""
    engine = ENGINES[engine_name]
    parsed = parse(text, engine.names, PREFIXES, engine.rename)
    tracker = CounterTracker(engine.series)
    tracker.update(())
    samples = tracker.update(engine.deduplicate(parsed.samples))
    return {model: engine.read(Samples(own)) for model, own in by_model(samples).items()}


def read(engine_name, name):
    return read_all(engine_name, exposition(name))["acme/tiny"]


class TestVllm:
    def test_current(self):
        """Computed and cached tokens come by source, not from the inflated hit counter."""
        model = read("vllm", "vllm-current")

        assert (model.computed_tokens, model.cached_tokens) == (600, 400)
        assert (model.generated_tokens, model.prompts, model.observed_passes) == (5000, 10, 800)
        assert (model.finished.requests, model.finished.prompt_tokens) == (10, 1000)
        assert (model.running_requests, model.waiting_requests) == (8, 2)
        assert (model.cache_usage_ratio, model.cache_used_tokens) == (0.25, 4000)
        assert model.engine_flop == 1e6
        assert model.cache_data_type == "auto"

    def test_version_0_8(self):
        """The old cache gauge is read; hits are in blocks of 16 tokens: 192 of 300."""
        model = read("vllm", "vllm-0.8")

        assert (model.computed_tokens, model.cached_tokens) == (108, 192)
        assert (model.generated_tokens, model.observed_passes, model.prompts) == (50, None, None)
        assert (model.cache_usage_ratio, model.cache_used_tokens) == (0.5, 800)
        assert model.cache_data_type == "fp8"

    def test_data_parallel_engines_and_several_models(self):
        """Engines of one model add up; another model behind the endpoint stays apart."""
        models = read_all("vllm", exposition("vllm-two-engines"))
        tiny = models["acme/tiny"]

        assert set(models) == {"acme/tiny", "acme/small"}
        assert (tiny.generated_tokens, tiny.running_requests) == (80, 8)
        assert tiny.cache_usage_ratio == pytest.approx(0.3)
        assert tiny.cache_used_tokens == pytest.approx(600)
        assert (tiny.drafts, tiny.draft_tokens, tiny.accepted_tokens) == (20, 60, 30)
        assert models["acme/small"].generated_tokens == 7

    def test_behind_ray(self):
        """Ray Serve writes the same names with its own prefix and without colons."""
        model = read("vllm", "vllm-ray")

        assert (model.computed_tokens, model.generated_tokens) == (22, 11)


class TestSglang:
    def test_current(self):
        """Real-time tokens win over those counted at the end; first tokens come on top."""
        model = read("sglang", "sglang-current")

        assert (model.computed_tokens, model.cached_tokens) == (700, 300)
        assert (model.generated_tokens, model.prompts) == (100, 10)
        assert (model.prefill_passes, model.decode_passes, model.passes) == (8, 25, None)
        assert (model.finished.requests, model.finished.prompt_tokens) == (6, 600)
        # 1000 prompt tokens were started and 600 ended; 100 answered and 60 ended; 10 and 6 requests.
        assert model.in_flight == InFlight(4, 400, 40)
        assert (model.acceptance_length, model.role) == (2.5, "both")

    def test_version_0_4(self):
        """Without real-time tokens: prompts less cached ones, answers as they end."""
        model = read("sglang", "sglang-0.4")

        assert (model.computed_tokens, model.cached_tokens) == (450, 150)
        assert (model.generated_tokens, model.finished.requests) == (60, 6)
        assert model.cache_used_tokens == 600

    def test_tokens_computed_again(self):
        """700 were computed, 620 of them for the first time: 80 after a retraction."""
        text = exposition("sglang-current")
        effective = (
            'sglang:prefill_effective_tokens_total{model_name="acme/tiny",mode="input"} 620\n'
        )

        assert read_all("sglang", text)["acme/tiny"].recomputed_tokens is None
        assert read_all("sglang", text + effective)["acme/tiny"].recomputed_tokens == 80

    def test_cached_tokens_by_source(self):
        """The source called total is not added to its parts."""
        text = exposition("sglang-current").replace("sglang:realtime_tokens", "sglang:other")

        assert read_all("sglang", text)["acme/tiny"].cached_tokens == 150

    def test_all_ranks(self):
        """Tensor-parallel ranks repeat each other, data-parallel ones add up."""
        model = read("sglang", "sglang-all-ranks")

        assert (model.running_requests, model.generated_tokens) == (10, 100)


class TestTensorRtLlm:
    def test_current(self):
        """Requests of all reasons, prefill steps, drafts, and what the settings say."""
        model = read("tensorrt_llm", "tensorrt-llm-current")

        assert (model.computed_tokens, model.cached_tokens) == (300, 200)
        assert (model.generated_tokens, model.prompts, model.prefill_passes) == (100, 5, 4)
        assert (model.running_requests, model.cache_used_tokens) == (5, 960)
        assert (model.draft_tokens, model.accepted_tokens) == (40, 30)
        assert model.acceptance_length == 1.5
        assert (model.precision, model.tensor_parallel, model.pipeline_parallel) == ("fp8", 2, 1)

    def test_version_1_1_reports_no_tokens(self):
        """Latencies alone give no tokens: absent, not zero."""
        model = read("tensorrt_llm", "tensorrt-llm-1.1")

        assert (model.computed_tokens, model.generated_tokens) == (None, None)


class TestTgi:
    def test_current(self):
        """Sums of histograms; 200 of 400 tokens were skipped: two tokens a pass."""
        model = read_all("tgi", exposition("tgi"))[""]

        assert (model.computed_tokens, model.cached_tokens) == (1000, None)
        assert (model.generated_tokens, model.prompts) == (400, 4)
        assert (model.prefill_passes, model.decode_passes) == (7, 60)
        assert (model.running_requests, model.waiting_requests) == (3, 1)
        assert (model.finished.accepted, model.finished.requests) == (5, 4)
        assert model.acceptance_length == 2


class TestOthers:
    def test_nim_without_a_prefix(self):
        """vLLM's names, without its prefix."""
        text = exposition("vllm-current").replace("vllm:", "")

        model = read_all("nim", text)["acme/tiny"]

        assert (model.computed_tokens, model.generated_tokens) == (600, 5000)

    def test_nim_with_a_prefix(self):
        """Later versions keep it."""
        assert read_all("nim", exposition("vllm-current"))["acme/tiny"].generated_tokens == 5000

    def test_lmdeploy(self):
        """vLLM's names under another prefix; its iterations are requests, not passes."""
        model = read_all("lmdeploy", exposition("vllm-current").replace("vllm:", "lmdeploy:"))

        assert model["acme/tiny"].generated_tokens == 5000
        assert model["acme/tiny"].observed_passes is None

    def lmdeploy(self, **values):
        """LMDeploy's own names, as its source writes them."""
        labels = 'model_name="acme/tiny",engine="0"'
        text = "".join(
            f"# TYPE lmdeploy:{name} {'gauge' if name.endswith('rate') else 'counter'}\n"
            f"lmdeploy:{name}{{{labels}}} {value}\n"
            for name, value in {"generation_tokens_total": 50, **values}.items()
        )
        model = read_all("lmdeploy", text)["acme/tiny"]
        return model.computed_tokens, model.cached_tokens

    def test_lmdeploy_counts_cached_prompts_whole(self):
        """1000 prompt tokens of which the prefix cache had 400: 600 were computed."""
        found = self.lmdeploy(prompt_tokens_total=1000, cached_tokens_total=400)

        assert found == (600, 400)

    @pytest.mark.parametrize(("rate", "computed"), [(0.0, 1000), (0.4, None)])
    def test_lmdeploy_without_that_counter(self, rate, computed):
        """Older versions give a rate of hits alone: above zero, nothing says how many tokens."""
        found = self.lmdeploy(prompt_tokens_total=1000, prefix_cache_hit_rate=rate)

        assert found == (computed, None)

    def test_triton_reports_no_cache_hits(self):
        """The number of computed prompt tokens is not known: absent."""
        text = "".join(
            line + "\n"
            for line in exposition("vllm-current").splitlines()
            if "cached" not in line and "by_source" not in line and "prefix_cache" not in line
        )

        model = read_all("triton_vllm", text)["acme/tiny"]

        assert (model.computed_tokens, model.generated_tokens) == (None, 5000)

    @pytest.mark.parametrize(
        ("name", "generated"),
        [("vllm-current", 5000), ("sglang-current", 100), ("tensorrt-llm-current", 100)],
    )
    def test_dynamo_passes_an_engine_through(self, name, generated):
        """A worker shows its engine's names, and the component that it is."""
        text = exposition(name).replace("{", '{dynamo_component="prefill",')

        model = read_all("dynamo", text)["acme/tiny"]

        assert model.generated_tokens == generated
        assert model.role == ("both" if name.startswith("sglang") else "prefill")

    def test_llama_cpp(self):
        """Six significant digits and no labels."""
        text = (RECORDINGS / "llama.cpp-b11434-million.prom").read_text()

        model = read_all("llama_cpp", text)[""]

        assert (model.computed_tokens, model.cached_tokens) == (5241, 1_178_080)
        assert (model.generated_tokens, model.passes) == (2095, 1328)


class TestParsing:
    @pytest.mark.parametrize("value", ["1e300", "+Inf", "18446744073709551615", "-9.3e18"])
    def test_values_too_large_to_be_true_are_left_out(self, value):
        """A blank of 64 bits is no number of tokens. The value is counted, the other lines hold."""
        page = f'vllm:generation_tokens_total{{model_name="m"}} {value}\nvllm:num_preemptions_total 2\n'
        parsed = parse(page, ENGINES["vllm"].names, PREFIXES)

        assert [sample.name for sample in parsed.samples] == ["vllm:num_preemptions_total"]
        assert parsed.malformed_lines == 1

    def test_an_engines_own_flop_may_be_many(self):
        """1e22 FLOP are done in a day at 1e17 FLOP/s. NaN means that there is no value."""
        page = "vllm:estimated_flops_per_gpu_total 1e22\nvllm:kv_cache_usage_perc NaN\n"
        parsed = parse(page, ENGINES["vllm"].names, PREFIXES)

        assert [sample.value for sample in parsed.samples] == [1e22]
        assert parsed.malformed_lines == 0

    def test_malformed_lines_are_counted_and_passed_over(self):
        """Four bad lines; the good ones around them are read. NaN is not a value."""
        parsed = parse(exposition("vllm-malformed"), ENGINES["vllm"].names, PREFIXES)

        assert parsed.malformed_lines == 4
        assert [(sample.name, sample.raw) for sample in parsed.samples] == [
            ("vllm:prompt_tokens_total", 1100),
            ("vllm:generation_tokens_total", 5100),
        ]

    def test_another_program_shows_no_engine(self):
        """Node exporter's metrics have no engine's prefix."""
        assert parse(exposition("node-exporter"), (), PREFIXES).prefixes == frozenset()

    def test_an_engine_without_samples_is_known_by_its_comments(self):
        """Labelled series appear on first use; HELP lines are there from the start."""
        text = "# HELP trtllm_prompt_tokens_total Cumulative number of prompt tokens.\n"

        assert parse(text, (), PREFIXES).prefixes == {"trtllm_"}

    @pytest.mark.parametrize(
        ("name", "canonical"),
        [
            ("ray_vllm_prompt_tokens_total", "vllm:prompt_tokens_total"),
            ("sglang_num_running_reqs", "sglang:num_running_reqs"),
            ("vllm:num_requests_running", "vllm:num_requests_running"),
            ("trtllm_num_requests_running", "trtllm_num_requests_running"),
        ],
    )
    def test_names_without_colons(self, name, canonical):
        """Names rewritten by proxies without colons are recognised."""
        assert canonical_name(name) == canonical

    @pytest.mark.parametrize("line", ["a{}1 x", "a {} }", "vllm:prompt_tokens_total {} x"])
    def test_endless_whitespace_takes_one_pass(self, line):
        """Eight megabytes of blanks in one line, or in many, are read as fast as other text."""
        one = line.replace(" ", " " * 8_000_000)
        many = "\n".join([line.replace(" ", " " * 8_000)] * 500)

        assert parse(one, ENGINES["vllm"].names, PREFIXES).malformed_lines == 1
        assert parse(many, ENGINES["vllm"].names, PREFIXES).malformed_lines == 500

    @given(st.text(max_size=300))
    def test_no_input_makes_it_raise(self, text):
        """Whatever an endpoint sends is read as an exposition, maybe an empty one."""
        parse(text, ENGINES["vllm"].names, PREFIXES)

    @given(st.text(max_size=60))
    def test_nothing_after_a_wanted_name_makes_it_raise(self, tail):
        """Not even directly after a name that we look for."""
        parse("vllm:prompt_tokens_total" + tail, ENGINES["vllm"].names, PREFIXES)

    def test_a_label_of_thousands_of_digits_is_no_number(self):
        """The interpreter refuses to read it as an integer; the other samples are read."""
        digits = "9" * 5000
        sglang = f'sglang:num_running_reqs{{model_name="m",tp_rank="{digits}"}} 3\n'
        parallel = f'trtllm_parallel_config_info{{model_name="m",tp_size="{digits}"}} 1\n'

        assert read_all("sglang", sglang)["m"].running_requests == 3
        assert read_all("tensorrt_llm", parallel)["m"].tensor_parallel is None


def counter(value, **labels):
    return Sample("c", labels, value, value)


def increases(tracker, *samples, epoch=None, complete=True, **known):
    return [
        sample.value
        for sample in tracker.update(
            [counter(value) for value in samples], epoch, complete=complete, **known
        )
    ]


class TestCounters:
    def test_earlier_work_is_not_counted(self):
        """The first value is the base; then increases count."""
        tracker = CounterTracker({"c"})

        assert [increases(tracker, value) for value in (1000, 1010, 1010)] == [[0], [10], [0]]

    def test_a_restart_without_an_epoch(self):
        """A value that decreased after a failed scrape has restarted from zero."""
        tracker = CounterTracker({"c"})

        assert increases(tracker, 100) == [0]
        assert increases(tracker, 30, failed_between=True) == [30]
        assert increases(tracker, 40) == [10]
        assert tracker.restarts == 1

    def test_a_quick_restart_without_an_epoch(self):
        """Without a failed scrape it may be another replica: sure after eight scrapes."""
        tracker = CounterTracker({"c"})
        increases(tracker, 100)

        counts = [increases(tracker, 30 + scrape)[0] for scrape in range(9)]

        assert counts == [0, 1, 1, 1, 1, 1, 1, 1 + 30, 1]

    def test_replicas_behind_a_load_balancer(self):
        """Two alternating processes: the work of each while watched, without their lifetime totals."""
        tracker = CounterTracker({"c"})

        counts = [
            increases(tracker, value, epoch=epoch, previous_scrape=1000.0)[0]
            for value, epoch in ((5000, 10), (80_000, 20), (5010, 10), (80_030, 20), (5010, 10))
        ]

        assert counts == [0, 0, 10, 30, 0]
        assert tracker.restarts == 0

    def test_replicas_without_a_start_time(self):
        """Their counters distinguish them."""
        tracker = CounterTracker({"c"})

        counts = [increases(tracker, value)[0] for value in (80_000, 5000, 80_030, 5010, 80_040)]

        assert counts == [0, 0, 30, 10, 10]

    def test_a_replica_that_began_after_the_last_scrape(self):
        """Scaled up since: all that it counted is new."""
        tracker = CounterTracker({"c"})
        increases(tracker, 5000, epoch=10, previous_scrape=None)

        assert increases(tracker, 70, epoch=1005, previous_scrape=1000.0) == [70]

    def test_a_restart_that_has_already_passed_the_old_value(self):
        """A new start time shows that the whole value is new."""
        tracker = CounterTracker({"c"})
        increases(tracker, 100, epoch=1)

        assert increases(tracker, 250, epoch=2) == [250]

    def test_a_counter_that_falls_without_a_restart(self):
        """The same start time: an engine bug, not work; counting continues from there."""
        tracker = CounterTracker({"c"})
        increases(tracker, 100, epoch=1)

        assert increases(tracker, 90, epoch=1) == [0]
        assert increases(tracker, 95, epoch=1) == [5]

    def test_a_series_that_appears_began_at_zero(self):
        """Engines create labelled series on first use."""
        tracker = CounterTracker({"c"})
        tracker.update([])

        assert increases(tracker, 7) == [7]

    def test_after_dropped_lines_a_new_series_may_be_an_old_one(self):
        """Its history does not count as new work."""
        tracker = CounterTracker({"c"})
        tracker.update([], complete=False)

        assert increases(tracker, 1_000_000) == [0]
        assert increases(tracker, 1_000_005) == [5]

    def test_a_series_that_vanishes_and_comes_back_goes_on(self):
        """Nothing is counted twice."""
        tracker = CounterTracker({"c"})
        increases(tracker, 100)
        tracker.update([])

        assert increases(tracker, 110) == [10]

    def test_memory_is_bounded(self, monkeypatch):
        """Of an endless stream of labels, the oldest are forgotten."""
        monkeypatch.setattr("exporter.inference.scraper.LARGEST_SERIES_COUNT", 3)
        tracker = CounterTracker({"c"})
        for number in range(10):
            tracker.update([counter(1, pod=str(number))])

        (process,) = tracker._processes.values()
        assert len(process.last) == 3

    @given(st.lists(st.tuples(st.floats(0, 1e12), st.booleans()), max_size=30))
    def test_increases_are_never_negative_and_never_exceed_what_was_counted(self, steps):
        """Over any history of growth and restarts the sum is what the engine counted."""
        tracker = CounterTracker({"c"})
        value, epoch, expected = 0.0, 1.0, 0.0
        total = sum(increases(tracker, value, epoch=epoch))
        for growth, restart in steps:
            if restart:
                value, epoch = 0.0, epoch + 1
            value += growth
            expected += growth
            (increase,) = increases(tracker, value, epoch=epoch)
            assert increase >= 0
            total += increase

        assert total == pytest.approx(expected)


class TestRegistry:
    def test_the_documentation_lists_every_engine(self):
        """The page is made from the registry: `make generate`."""
        page = (Path(__file__).parents[3] / "docs" / "models.md").read_text()

        assert with_table(page) == page
        assert all(f"| `{name}` |" in page for name in ENGINES)

    @pytest.mark.parametrize(
        ("prefixes", "name"),
        [
            ({"vllm:"}, "vllm"),
            ({"vllm:", "dynamo_"}, "dynamo"),
            ({"vllm:", "nv_"}, "triton_vllm"),
            ({"prompt_tokens_total", "num_requests_running"}, "nim"),
            ({"llamacpp:"}, "llama_cpp"),
            ({"nv_"}, None),
            (set(), None),
        ],
    )
    def test_engines_are_distinguished(self, prefixes, name):
        """Engines that pass another's names through have their own names as well."""
        assert identify(prefixes) == name
