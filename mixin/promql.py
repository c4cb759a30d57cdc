"""Fragments that many rules share."""

from mixin.source import Record


# A value that outlives a failed scrape: the newest sample of the last five minutes.
def recent(selector: str, by: str, function: str = "max") -> str:
    """The newest value of a selector, aggregated by the labels."""
    return f"{function} by ({by}) (last_over_time({selector}[5m]))"


# The host is still a target: its faults are forgotten with it.
TARGET = "on (%{host}) last_over_time(instance:flopwatch_up:recent[1h])"
# Its driver lists the device.
LISTED = "on (%{gpu}) last_over_time(gpu:flopwatch_gpu_up:recent[1h])"


def remembered(name: str, by: str) -> str:
    """The rule's own last value, across gaps of an hour, without labels that a store adds."""
    return f"max by ({by}) (last_over_time({name}[1h]))"


def labelled(name: str, value: str, expr: str) -> str:
    """The expression with one label set."""
    return f'label_replace({expr}, "{name}", "{value}", "", "")'


def highest(name: str, by: str, **sources: str) -> Record:
    """A maximum that is never forgotten while the host is a target."""
    (_, first), *others = {**sources, "memory": f"last_over_time({name}[1h])"}.items()
    parts = [first, *(labelled("from", origin, expr) for origin, expr in others)]
    return Record(name, f"max by ({by}) (\n    " + "\n    or ".join(parts) + f")\n  and {TARGET}")


def model_of_engine() -> str:
    """Joins each engine's model to its series; `(several)` where it has more than one.

    An engine may serve several models, and has two for five minutes after a rollout. To charge one of them
    with all of its work would be wrong, and two matches would end the rule for the whole fleet.
    """
    models = recent("flopwatch_model_info", "%{host}, workload, model")
    several = f"group by (%{{host}}, workload) (count by (%{{host}}, workload) ({models}) > 1)"
    return (
        "on (%{host}, workload) group_left (model) (\n"
        f"      {models}\n"
        f"        unless on (%{{host}}, workload) {several}\n"
        f"      or {labelled('model', '(several)', several)})"
    )
