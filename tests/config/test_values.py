"""How configuration values are read."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.config.load import ConfigOrigin, Reader, load_config
from exporter.config.model import SCHEMA, build_config
from exporter.errors import ConfigError
from flopwatch.option_parsers import boolean, choice, duration, integer, items, size


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("250ms", 0.25),
        ("1s", 1),
        ("15m", 900),
        ("1h30m", 5400),
        ("1.5s", 1.5),
        ("20 ms", 0.02),
        (3, 3),
        ("0.5", 0.5),
    ],
)
def test_durations(text: object, seconds: float) -> None:
    """Units, sums of units, and plain numbers of seconds."""
    assert duration()(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text", ["", "soon", "1x", "s", "1s2", "-1s", True, None, [], "nan", "inf"]
)
def test_an_invalid_duration(text: object) -> None:
    """The error gives an example of a valid duration."""
    with pytest.raises(ValueError, match="must be"):
        duration()(text)


def test_bounds_are_named() -> None:
    """The bound and what was given."""
    with pytest.raises(ValueError, match=r"^must be at least 0.1 s, got 50ms$"):
        duration(at_least=0.1)("50ms")
    with pytest.raises(ValueError, match=r"^must be at most 60 s, got 2m$"):
        duration(at_most=60)("2m")
    with pytest.raises(ValueError, match=r"^must be at least 1, got 0$"):
        integer(at_least=1)(0)


def test_sizes_booleans_choices_lists() -> None:
    """As YAML, environment variables and YAML 1.1 writers have them."""
    assert size()("2GiB") == 2**31
    assert size()("600MB") == 600_000_000
    assert boolean()("yes") is True
    assert boolean()(False) is False
    assert choice("auto", "on", "off")(True) == "on"
    assert items(integer(at_least=0))("0, 1,2") == (0, 1, 2)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(
                st.sampled_from([*SCHEMA.keys, "x"]) | st.text(max_size=5), inner, max_size=5
            )
        ),
        max_leaves=20,
    )
)
def test_any_value_is_a_configuration_or_a_list_of_mistakes(raw: object) -> None:
    """Never an exception, and every mistake names the file."""
    reader = Reader("config.yaml")
    values = reader.section(SCHEMA, raw)

    if not reader.mistakes:
        build_config(values)
    assert all(mistake.startswith("config.yaml: ") for mistake in reader.mistakes)


def test_the_slow_interval_follows_a_longer_interval() -> None:
    """Its default is adjusted; a value that a user wrote is not."""
    settings = load_config(ConfigOrigin(environment={"FLOPWATCH_SAMPLING_INTERVAL": "30s"}))
    assert settings.sampling.slow_interval == 30

    with pytest.raises(ConfigError, match=r"must not be shorter than sampling\.interval"):
        load_config(
            ConfigOrigin(
                environment={
                    "FLOPWATCH_SAMPLING_INTERVAL": "30s",
                    "FLOPWATCH_SAMPLING_SLOW_INTERVAL": "20s",
                }
            )
        )


def test_the_example_of_every_key_is_valid() -> None:
    """The documentation shows what the parser takes."""
    import yaml

    for path, key in SCHEMA.options():
        key.parse(yaml.safe_load(key.example))
        assert key.help.endswith("."), path
