"""Where a configuration comes from, and what is rejected with which message."""

import os
from pathlib import Path

import pytest

from exporter.config.load import ConfigOrigin, load_config
from exporter.config.model import Config, UnknownVariable, after_reload
from exporter.errors import ConfigError


def load(text: str, tmp_path: Path, **environment: str) -> Config:
    file = tmp_path / "config.yaml"
    file.write_text(text)
    return load_config(ConfigOrigin(file=str(file), environment=environment))


def mistake(origin: ConfigOrigin) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(origin)
    (only,) = caught.value.mistakes
    return only


class TestFlags:
    @pytest.mark.parametrize("given", ["warn", "WARN", "Warning", "warning"])
    def test_log_levels_as_people_type_them(self, given: str) -> None:
        """Upper case, and the short form of other exporters."""
        origin = ConfigOrigin(flags={"log.level": ("--log.level", given)}, environment={})

        assert load_config(origin).log_level == "warning"

    @pytest.mark.parametrize(
        "given", [["127.0.0.1:1,[::1]:2"], ["127.0.0.1:1", "[::1]:2"], "127.0.0.1:1, [::1]:2"]
    )
    def test_several_addresses(self, given: object) -> None:
        """With commas or one by one, by flag, environment and file alike."""
        origin = ConfigOrigin(
            flags={"web.listen_address": ("--web.listen-address", given)}, environment={}
        )

        assert load_config(origin).web.listen_address == ("127.0.0.1:1", "[::1]:2")

    @pytest.mark.parametrize(
        ("given", "expected"),
        [
            ("9907", "--web.listen-address: '9907': the port is missing; for all addresses write ':9907'"),
            ("unix:/run/x", "--web.listen-address: 'unix:/run/x': Unix sockets are not supported"),
            (",", "--web.listen-address: must name at least one address"),
        ],
    )  # fmt: skip
    def test_an_address_that_cannot_be_served_is_refused_when_loaded(
        self, given: str, expected: str
    ) -> None:
        """So `check` and `config` refuse what `serve` would."""
        origin = ConfigOrigin(
            flags={"web.listen_address": ("--web.listen-address", [given])}, environment={}
        )

        assert mistake(origin).startswith(expected)

    @pytest.mark.parametrize("path", ["/-/healthy", "/-/anything", "/config", "/api/v1/status"])
    def test_the_servers_own_paths_are_not_for_metrics(self, path: str) -> None:
        """The error names the path and a valid one."""
        origin = ConfigOrigin(
            flags={"web.telemetry_path": ("--web.telemetry-path", path)}, environment={}
        )

        assert f"{path} is taken by the server" in mistake(origin)


class TestEnvironment:
    def test_an_unknown_variable_is_named_with_the_nearest_known_one(self, tmp_path: Path) -> None:
        """A typo is reported."""
        config = load("", tmp_path, FLOPWATCH_SAMPLNG_INTERVAL="1s", FLOPWATCH_XYZZY="1")

        assert config.unknown_variables == (
            UnknownVariable("FLOPWATCH_SAMPLNG_INTERVAL", "FLOPWATCH_SAMPLING_INTERVAL"),
            UnknownVariable("FLOPWATCH_XYZZY", None),
        )

    def test_service_variables_of_the_kubelet_are_not_mistakes(self, tmp_path: Path) -> None:
        """A Service called flopwatch, or flopwatch-web, has variables of the same prefix."""
        config = load(
            "",
            tmp_path,
            FLOPWATCH_SERVICE_HOST="10.0.0.1",
            FLOPWATCH_SERVICE_PORT_METRICS="9907",
            FLOPWATCH_PORT="tcp://10.0.0.1:9907",
            FLOPWATCH_PORT_9907_TCP_ADDR="10.0.0.1",
            FLOPWATCH_WEB_SERVICE_HOST="10.0.0.2",
            FLOPWATCH_TRACEBACK="1",
        )

        assert config.unknown_variables == ()


class TestFiles:
    def test_an_endless_file_is_not_a_configuration(self) -> None:
        """A device is refused before it is read."""
        assert mistake(ConfigOrigin("/dev/zero", environment={})) == (
            "/dev/zero: is not a regular file"
        )

    def test_a_named_pipe_is_not_waited_for(self, tmp_path: Path) -> None:
        """Opening it for reading would wait for a writer that may never come."""
        os.mkfifo(tmp_path / "pipe")

        assert "is not a regular file" in mistake(
            ConfigOrigin(str(tmp_path / "pipe"), environment={})
        )

    def test_a_huge_file_is_refused(self, tmp_path: Path) -> None:
        """1 MiB is the limit."""
        (tmp_path / "big.yaml").write_text("#" * (2**20 + 1))

        assert "is larger than 1048576 bytes" in mistake(
            ConfigOrigin(str(tmp_path / "big.yaml"), environment={})
        )

    def test_process_substitution_is_read(self) -> None:
        """`--config.file <(generate)` works."""
        reader, writer = os.pipe()
        os.write(writer, b"sampling: {interval: 3s}")
        os.close(writer)
        try:
            config = load_config(ConfigOrigin(f"/dev/fd/{reader}", environment={}))
        finally:
            os.close(reader)

        assert config.sampling.interval == 3


@pytest.mark.parametrize("total", [1, 2, 16])
def test_an_engine_has_no_fewer_gpus_than_it_has_here(total: int, tmp_path: Path) -> None:
    """Two distinct ones are named: a total of one contradicts that, and MFU would be twice too high."""
    text = (
        "workloads: [{name: chat, engine: vllm, url: 'http://127.0.0.1:8000/metrics', "
        f"gpus: [0, 0, 1], gpus_total: {total}}}]\n"
    )
    if total >= 2:
        assert load(text, tmp_path).workloads[0].gpus_total == total
        return
    with pytest.raises(ConfigError) as caught:
        load(text, tmp_path)
    assert "workloads[0].gpus_total: must be at least 2, as many as gpus names, got 1" in str(
        caught.value
    )


class TestReload:
    def test_options_that_need_a_restart_are_kept_and_named(self, tmp_path: Path) -> None:
        """Everything else changes; the shown values are those that are active."""
        active = load("state_file: /a\nsampling: {interval: 1s}", tmp_path)
        loaded = load(
            "state_file: /b\nsampling: {interval: 2s}\nsources: {gpm: off}\n"
            "gpus: [{precision: fp8}]\nworkload_discovery: {ports: [1]}",
            tmp_path,
        )

        config, waiting = after_reload(active, loaded)

        assert waiting == ("sources.gpm", "workload_discovery.ports", "state_file")
        assert config.state_file == Path("/a")
        assert config.values["state_file"] == "/a"
        assert config.sampling.modes["gpm"] == "auto"
        assert config.discovery.ports == ()
        assert config.sampling.interval == 2
        assert config.sampling.gpus[0].precision == "fp8"
        assert loaded.values["state_file"] == "/b"  # what was loaded is left as it is

    def test_nothing_waits_when_nothing_changed(self, tmp_path: Path) -> None:
        """The same file again."""
        active = load("sources: {gpm: off}", tmp_path)

        assert after_reload(active, load("sources: {gpm: off}", tmp_path)) == (active, ())


def test_thresholds_of_the_findings_can_be_set_by_file_and_environment(tmp_path: Path) -> None:
    """A file sets one, a variable another, the others keep the rules' defaults; a percentage is refused in one line."""
    found = load(
        "findings: {heat_loss_warning: 0.1}", tmp_path, FLOPWATCH_FINDINGS_PEERS_MINIMUM="2"
    ).thresholds

    assert (found.heat_loss_warning, found.peers_minimum) == (0.1, 2)
    assert found.power_loss_warning == 0.25
    with pytest.raises(ConfigError, match=r"findings\.heat_loss_warning.*at most 1"):
        load("findings: {heat_loss_warning: 10}", tmp_path)
