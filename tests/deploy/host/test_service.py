"""The service on a machine with systemd, installed and run as docs/install.md says, in that order."""

import json

import pytest

from tests.deploy.documents import commands
from tests.deploy.engine import ROOT, needs_engine
from tests.deploy.host.machine import Machine


pytestmark = [needs_engine, pytest.mark.slow, pytest.mark.timeout(900)]
INSTALL, INSTALL_LOCKED, REMOVE = commands("install.md", "Bare metal")
SERVES = "curl -sf http://127.0.0.1:9907/metrics | grep '^flopwatch_gpu_up{gpu=\"cpu0\"'"
CONFIG = "/etc/flopwatch.yml"


@pytest.fixture(scope="module")
def installed(machine: Machine) -> Machine:
    """The commands of the documentation, one after the other; then a configuration file."""
    machine.type(f"set -e\n{INSTALL}")
    machine.wait_for(SERVES)
    machine.type(
        f"echo 'log: {{level: info}}' >{CONFIG}\n"
        f"echo FLOPWATCH_CONFIG_FILE={CONFIG} >>/etc/default/flopwatch\n"
        "systemctl restart flopwatch"
    )
    machine.wait_for(SERVES)
    return machine


def main_pid(machine: Machine) -> str:
    return machine.property("MainPID")


def metric(machine: Machine, name: str) -> float:
    text = machine.type("curl -sf http://127.0.0.1:9907/metrics")
    return float(next(line.split()[-1] for line in text.splitlines() if line.startswith(name)))


def test_it_runs_as_a_user_of_its_own_and_says_what_it_is(installed: Machine) -> None:
    """Started by the manager, ready by notification, of the commit that was checked out."""
    assert installed.property("ActiveState") == "active"
    assert installed.type(f"stat -c %U /proc/{main_pid(installed)}") == "flopwatch"
    head = installed.type("cat .git/HEAD")
    assert head in installed.type("/opt/flopwatch/bin/flopwatch --version")
    assert installed.type("/opt/flopwatch/bin/flopwatch top --once | head -1").startswith("node1")


def test_a_reload_is_visible(installed: Machine) -> None:
    """A good configuration is taken; with a bad one `systemctl reload` fails and says why."""
    pid = main_pid(installed)
    installed.type("systemctl reload flopwatch")

    installed.type(f"echo 'sampling: {{intervall: 1s}}' >{CONFIG}")
    assert installed.run("systemctl reload flopwatch").returncode != 0
    installed.wait_for("journalctl -u flopwatch | grep -F 'sampling.intervall: unknown key'")
    installed.wait_for(
        "curl -s http://127.0.0.1:9907/metrics | grep '^flopwatch_config_last_reload_successful 0'"
    )
    assert main_pid(installed) == pid
    # The journal has the priority.
    assert "configuration_refused" in installed.type("journalctl -u flopwatch -p err")
    assert "event=serving" not in installed.type("journalctl -u flopwatch -p warning")

    installed.type(f"echo 'log: {{level: info}}' >{CONFIG}; systemctl reload flopwatch")
    installed.wait_for(
        "curl -s http://127.0.0.1:9907/metrics | grep '^flopwatch_config_last_reload_successful 1'"
    )


def test_a_crash_is_followed_by_a_restart(installed: Machine) -> None:
    """Killed, it is back with another process."""
    pid = main_pid(installed)
    installed.type(f"kill -KILL {pid}")

    installed.wait_for(f"{SERVES} && test $(systemctl show -P MainPID flopwatch) != {pid}")


def test_a_stopped_process_is_replaced_by_systemd(installed: Machine) -> None:
    """The watchdog ends it; a shorter one here than the unit's 30 seconds."""
    installed.type(
        "mkdir -p /run/systemd/system/flopwatch.service.d\n"
        "printf '[Service]\\nWatchdogSec=3s\\nTimeoutAbortSec=3s\\n' "
        ">/run/systemd/system/flopwatch.service.d/test.conf\n"
        "systemctl daemon-reload; systemctl restart flopwatch"
    )
    installed.wait_for(SERVES)
    pid = main_pid(installed)
    installed.type(f"kill -STOP {pid}")

    installed.wait_for(f"test $(systemctl show -P MainPID flopwatch) != {pid}", 60)
    installed.wait_for(SERVES)
    installed.type("rm -r /run/systemd/system/flopwatch.service.d; systemctl daemon-reload")


def test_a_port_in_use_is_waited_for(installed: Machine) -> None:
    """Another process uses the port: the service retries until it is free."""
    installed.type("systemctl stop flopwatch")
    installed.type("systemd-run --quiet --unit=other python3 -m http.server --bind 0.0.0.0 9907\n")
    installed.wait_for("curl -s http://127.0.0.1:9907/ >/dev/null")
    installed.run("systemctl start flopwatch")
    installed.wait_for("test $(systemctl show -P NRestarts flopwatch) -ge 2")
    installed.type("systemctl stop other")

    installed.wait_for(SERVES)


def test_a_configuration_that_can_never_work_is_final(installed: Machine) -> None:
    """No restart helps: failed, with the reason in the journal, and started again by hand."""
    installed.type(f"echo 'nonsense: 1' >{CONFIG}")
    assert installed.run("systemctl restart flopwatch").returncode != 0
    installed.wait_for("systemctl is-failed flopwatch")

    assert installed.property("NRestarts") == "0"
    assert installed.property("ExecMainStatus") == "2"
    assert "nonsense: unknown key" in installed.type("journalctl -u flopwatch -n 20")
    installed.type(f"echo 'log: {{level: info}}' >{CONFIG}; systemctl restart flopwatch")
    installed.wait_for(SERVES)


def test_check_agrees_for_everybody(installed: Machine) -> None:
    """As root, as the service's user and as anybody: exit code 0, and never a crash."""
    for user in ("root", "flopwatch", "alice"):
        report = json.loads(installed.type("/opt/flopwatch/bin/flopwatch check --json", user=user))

        assert report["healthy"], (user, report["findings"])


# Opens a software event of CPU 0 for all programs, by the daemon's own system call.
OPEN_AN_EVENT = """\
from exporter.collect.cpu import LinuxKernel, attributes
kernel = LinuxKernel()
kernel.close(kernel.open(attributes(1, 0), 0))
"""


def test_the_service_may_read_the_processors_counters(installed: Machine) -> None:
    """Only with `install.sh --perf`: then it has CAP_PERFMON (bit 38) and no other capability."""
    installed.type(f"cat >/opt/flopwatch/event.py <<'PYTHON'\n{OPEN_AN_EVENT}PYTHON")
    installed.type(
        "mkdir -p /run/systemd/system/flopwatch.service.d\n"
        "printf '[Service]\\nExecStartPre=/opt/flopwatch/bin/python /opt/flopwatch/event.py\\n' "
        ">/run/systemd/system/flopwatch.service.d/test.conf\n"
        "systemctl daemon-reload"
    )
    refused = installed.run("systemctl restart flopwatch")
    installed.type("systemctl reset-failed flopwatch; deploy/systemd/install.sh --perf")
    installed.wait_for(SERVES)
    pid = main_pid(installed)
    capabilities = installed.type(f"awk '/^CapEff/ {{print $2}}' /proc/{pid}/status")

    assert refused.returncode != 0
    assert int(capabilities, 16) == 1 << 38
    assert installed.type(f"stat -c %U /proc/{pid}") == "flopwatch"
    installed.type(
        "rm -r /etc/systemd/system/flopwatch.service.d /run/systemd/system/flopwatch.service.d\n"
        "systemctl daemon-reload; systemctl restart flopwatch"
    )
    installed.wait_for(SERVES)


def test_upgrade_and_downgrade_keep_the_operators_files(installed: Machine) -> None:
    """The second and third command again: what is gone from the checkout is gone from the machine."""
    upgrade = "\n".join(INSTALL.splitlines()[1:])
    installed.type("touch exporter/gone_next_time.py")
    installed.type(f"set -e\n{upgrade}")
    gone = "/opt/flopwatch/lib/python3.11/site-packages/exporter/gone_next_time.py"
    installed.type(f"test -e {gone}")

    installed.type(
        "rm exporter/gone_next_time.py; sed -i 's/0\\.1\\.0/0.0.9/' exporter/__init__.py"
    )
    installed.type(f"set -e\n{upgrade}")
    installed.wait_for(SERVES)

    assert installed.run(f"test -e {gone}").returncode == 1
    assert installed.type("/opt/flopwatch/bin/flopwatch --version").startswith("flopwatch 0.0.9 ")
    assert f"FLOPWATCH_CONFIG_FILE={CONFIG}" in installed.type("cat /etc/default/flopwatch")


def test_the_locked_versions_are_installed_by_hash(installed: Machine) -> None:
    """By the page's other block, over the existing installation: every package is as locked."""
    installed.type(f"set -e\n{INSTALL_LOCKED}")
    installed.wait_for(SERVES)
    listed = json.loads(installed.type("/opt/flopwatch/bin/pip list --format json"))
    lock = (ROOT / "deploy/requirements/slim.txt").read_text()

    for each in listed:
        if each["name"] not in ("flopwatch", "pip", "setuptools"):
            name = each["name"].lower().replace("_", "-")
            assert f"{name}=={each['version']} " in lock, each


def test_nothing_is_left_after_its_removal(installed: Machine) -> None:
    """The commands of the documentation; afterwards systemd has no such unit."""
    installed.type(f"set -e\n{REMOVE}")

    left = installed.type(
        f"find / -xdev -iname '*flopwatch*' -not -path '/root/*' -not -path '/proc/*' "
        f"-not -path '/var/log/*' -not -path '/wheels*' -not -path '{CONFIG}'"
    )
    assert left == ""
    assert installed.run("systemctl cat flopwatch").returncode != 0
    assert installed.run("id flopwatch").returncode != 0
