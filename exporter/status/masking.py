"""The configuration with everything that may be a secret replaced, to be shown to anyone."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final
from urllib.parse import SplitResult, urlsplit, urlunsplit

import yaml


MASK: Final = "<secret>"
_SECRET_KEY = re.compile(
    r"passw|secret|token|credential|authorization|bearer|api_?key|private|^headers?$", re.IGNORECASE
)


def mask(value: Any, *, key: str = "") -> Any:
    """Plain data with secrets masked: values of keys that name one, and parts of URLs that may be one."""
    if _SECRET_KEY.search(key) and value not in (None, "", (), [], {}):
        return MASK
    if isinstance(value, Mapping):
        return {name: mask(item, key=str(name)) for name, item in value.items()}
    if isinstance(value, str):
        return mask_url(value)
    if isinstance(value, Sequence):
        return [mask(item) for item in value]
    return value


def mask_url(text: str) -> str:
    """A URL without user, password, query values and fragment; any other text as it is."""
    if "://" not in text:
        return text
    try:
        parts = urlsplit(text)
    except ValueError:
        return MASK  # a malformed URL cannot be shown in part
    host = parts.netloc.rpartition("@")[2]
    netloc = f"{MASK}@{host}" if "@" in parts.netloc else host
    query = "&".join(
        f"{name}={MASK}" if equals else MASK
        for name, equals, _value in (item.partition("=") for item in parts.query.split("&") if item)
    )
    return urlunsplit(
        SplitResult(parts.scheme, netloc, parts.path, query, MASK if parts.fragment else "")
    )


def configuration_text(values: Mapping[str, Any]) -> str:
    """The masked configuration as YAML."""
    return yaml.safe_dump(mask(values), sort_keys=False, allow_unicode=True)
