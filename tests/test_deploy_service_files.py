"""The systemd units and the Dockerfile fit the program, and no unit makes an arm move by itself."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from robolearn.cli import deploy, serve
from robolearn.cli.parse import parse

ROOT = Path(__file__).parents[1]
UNITS = ROOT / "deploy/systemd"
COMMANDS = {"serve": serve.Serve, "deploy": deploy.Deploy}


def settings(unit: Path) -> dict[str, list[str]]:
    """Every "Key=value" of a unit: key -> values."""
    found: dict[str, list[str]] = {}
    for line in unit.read_text().splitlines():
        if "=" in line and not line.startswith("#"):
            key, value = line.split("=", 1)
            found.setdefault(key, []).append(value)
    return found


def unit(command: str) -> dict[str, list[str]]:
    return settings(UNITS / f"robolearn-{command}.service")


@pytest.mark.parametrize("command", COMMANDS)
def test_systemd_finds_no_fault_in_the_unit(command: str, tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("there is no systemd-analyze on this machine")
    text = (UNITS / f"robolearn-{command}.service").read_text()
    copy = tmp_path / f"robolearn-{command}.service"
    copy.write_text(text.replace("/opt/robolearn/bin/robolearn", sys.executable))  # the program must exist
    answer = subprocess.run(
        [analyze, "verify", "--man=no", str(copy)], capture_output=True, text=True, check=False, timeout=60
    )
    about_it = [line for line in (answer.stdout + answer.stderr).splitlines() if copy.name in line]
    assert about_it == []


@pytest.mark.parametrize("command", COMMANDS)
def test_the_command_line_of_the_unit_with_its_example_settings_is_one_that_the_program_takes(command: str) -> None:
    example = settings(UNITS / f"{command}.env.example")
    words: list[str] = []
    for word in shlex.split(unit(command)["ExecStart"][0])[2:]:
        if word == "$OPTIONS":
            words += example["OPTIONS"][0].split()
        else:
            words.append(
                re.sub(r"\$\{(\w+)\}", lambda m: example[m.group(1)][0], word).replace("%d", "/run/credentials")
            )
    assert unit(command)["ExecStart"][0].split()[:2] == ["/opt/robolearn/bin/robolearn", command]
    options = parse(COMMANDS[command], words, prog=f"robolearn {command}")
    assert str(options.checkpoint) == example["CHECKPOINT"][0]


def test_no_boot_no_crash_and_no_other_unit_starts_an_arm() -> None:
    assert "[Install]" not in (UNITS / "robolearn-deploy.service").read_text().splitlines()
    assert unit("deploy")["Restart"] == ["no"]
    assert not any(key.startswith(("WantedBy", "Upholds", "RestartSec", "WatchdogSec")) for key in unit("deploy"))
    assert "--no-approach" in settings(UNITS / "deploy.env.example")["OPTIONS"][0].split()
    for other in UNITS.glob("*.service"):
        for key in ("Requires", "Wants", "Upholds", "OnFailure", "OnSuccess"):
            assert not any("robolearn-deploy" in value for value in settings(other).get(key, []))


def test_stopping_the_deployment_tells_the_supervisor_first_and_leaves_it_time_to_bring_the_arms_to_rest() -> None:
    from robolearn_deploy.rig_runtime import STOP_TIMEOUT_S
    from robolearn_deploy.rig_session import REST_S
    from robolearn_deploy.servo_process import END_S

    found = unit("deploy")
    assert (found["KillMode"], found["KillSignal"], found["OOMPolicy"]) == (["mixed"], ["SIGTERM"], ["continue"])
    assert float(found["TimeoutStopSec"][0]) > REST_S + STOP_TIMEOUT_S + END_S + 5


def test_the_deployment_may_be_real_time_and_the_rest_of_it_is_not() -> None:
    from robolearn_deploy.realtime import PRIORITY

    found = unit("deploy")
    assert int(found["LimitRTPRIO"][0]) >= PRIORITY
    assert found["LimitMEMLOCK"] == ["infinity"]
    assert found["RestrictRealtime"] == ["no"]
    assert "CPUSchedulingPolicy" not in found


@pytest.mark.parametrize("command", COMMANDS)
def test_a_unit_runs_as_a_user_without_rights_and_holds_no_secret(command: str) -> None:
    found = unit(command)
    assert found["User"] == ["robolearn"]
    assert found["NoNewPrivileges"] == ["yes"]
    assert found["CapabilityBoundingSet"] == [""]
    assert found["ProtectSystem"] == ["strict"]
    for path in UNITS.iterdir():
        assert not re.search(r"(?i)(token|password|secret)\w*\s*=\s*\S+", path.read_text().replace("token:/etc/", ""))


# The container. It is not built here: that needs a Docker daemon and the network.

DOCKERFILE = ROOT / "deploy/docker/Dockerfile"


def instructions() -> list[list[str]]:
    text = re.sub(r"\\\n", " ", "\n".join(x for x in DOCKERFILE.read_text().splitlines() if not x.startswith("#")))
    return [line.split() for line in text.splitlines() if line.strip()]


def test_every_path_that_the_image_copies_exists_and_is_in_its_build_context() -> None:
    let_in = [x[1:] for x in (ROOT / "deploy/docker/Dockerfile.dockerignore").read_text().split() if x[0] == "!"]
    copied = [path for words in instructions() if words[0] == "COPY" for path in words[1:-1] if path[:2] != "--"]
    assert copied
    for path in copied:
        assert (ROOT / path).exists(), path
        assert path in let_in
    assert {"robolearn", "data", "hardware", "sim", "deploy", "pyproject.toml", "constraints.txt"} <= set(copied)


def test_the_image_installs_as_the_makefile_does() -> None:
    line = re.search(r"-m pip install (.*) '\.\[", (ROOT / "Makefile").read_text())
    assert line is not None
    runs = " ".join(word for words in instructions() if words[0] == "RUN" for word in words)
    assert f'-m pip install {line.group(1)} ".[$EXTRAS]"' in runs
    extras = next(words[1] for words in instructions() if words[:1] == ["ARG"] and words[1].startswith("EXTRAS="))
    project = (ROOT / "pyproject.toml").read_text()
    assert all(re.search(rf"(?m)^{extra} = \[", project) for extra in extras.removeprefix("EXTRAS=").split(","))


def test_the_image_has_the_system_packages_that_the_readme_names() -> None:
    line = next(x for x in (ROOT / "README.md").read_text().splitlines() if x.startswith("sudo apt-get install"))
    runs = {word for words in instructions() if words[0] == "RUN" for word in words}
    in_base_image = {"python3-venv", "python3-dev"}
    assert set(line.split()[3:]) - in_base_image <= runs


def test_the_container_is_no_root_has_the_groups_of_the_devices_and_says_how_much_shared_memory_it_needs() -> None:
    order = instructions()
    users = [words[1] for words in order if words[0] == "USER"]
    assert users == ["robolearn"]
    assert order.index(["USER", "robolearn"]) < next(i for i, words in enumerate(order) if words[0] == "COPY")
    assert any("dialout,video,plugdev" in words for words in order)
    assert "--shm-size=2g" in DOCKERFILE.read_text()
