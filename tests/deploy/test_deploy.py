"""The files in `deploy/`: checked by their own tools where these are installed, and against the code."""

from __future__ import annotations

import configparser
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from client.config import GatewayConfig
from server.api.metrics import RequestMetrics
from server.continuous_batching.config import ServerConfig as CbServerConfig
from server.static_batching.config import ServerConfig as SbServerConfig
from tests.client.conftest import MakeGateway, make_gateway
from tests.client.stub import Stub, stubs
from utils.config import ConfigModel, load_config
from utils.options import CbServerAppOptions, ClientAppOptions, SbServerAppOptions, parse_arguments

__all__ = ["make_gateway"]  # a fixture

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
MANIFESTS = [path for path in sorted(DEPLOY.glob("kubernetes/*.yaml")) if path.name != "kustomization.yaml"]
UNITS = sorted(DEPLOY.glob("systemd/*.service"))
MODELS: dict[str, type[ConfigModel]] = {
    "client_config.json": GatewayConfig,
    "cb_server_config.json": CbServerConfig,
    "sb_server_config.json": SbServerConfig,
}
APPS = {
    "client_app.py": ClientAppOptions,
    "continuous_batching_server_app.py": CbServerAppOptions,
    "static_batching_server_app.py": SbServerAppOptions,
}
SECRETS = ("EVENT_TOKEN", "GATEWAY_KEY", "METRICS_TOKEN", "SERVER_KEY")


def tool(name: str) -> str:
    """Path of a program, of this environment or of the system."""
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def run(*command: str, cwd: Path = DEPLOY) -> None:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def documents(path: Path) -> list[Any]:
    return [each for each in yaml.safe_load_all(path.read_text(encoding="utf-8")) if each]


def test_hadolint_accepts_the_dockerfile() -> None:
    run(tool("hadolint"), "Dockerfile")


def test_the_dockerfile_copies_what_there_is() -> None:
    text = (DEPLOY / "Dockerfile").read_text()
    allowed = (DEPLOY / "Dockerfile.dockerignore").read_text()
    for line in re.findall(r"^COPY (?!--from)(.*) \S+$", text, re.M):
        for name in line.split():
            assert list(ROOT.glob(name)), name
            assert f"!{name.split('/')[0]}" in allowed or re.search(r"_app\.py$", name), name
    for target in ("gateway", "cpu", "cuda"):
        stage = text[text.index(f" AS {target}\n") :].split("\nFROM ")[0]
        assert "USER 10001" in stage
        (command,) = re.findall(r"^CMD (\[.*\])", stage, re.M)
        parse(json.loads(command))


def parse(words: list[str]) -> Any:
    """The options of an app's command line; exits where one is not accepted."""
    app, *options = words
    return parse_arguments(APPS[app], description=None, argv=options)


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_manifests_are_kubernetes(path: Path) -> None:
    run(tool("kubernetes-validate"), "--strict", str(path))


def containers() -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """(name, pod, container) of each workload."""
    for path in MANIFESTS:
        for document in documents(path):
            if document["kind"] in ("Deployment", "StatefulSet"):
                pod = document["spec"]["template"]["spec"]
                for container in pod["containers"]:
                    yield document["metadata"]["name"], pod, container


def test_pods_are_unprivileged_and_have_time_to_drain() -> None:
    found = list(containers())
    assert {name for name, _, _ in found} == {"gateway", "cb-server"}
    for _, pod, container in found:
        assert pod["securityContext"]["runAsNonRoot"]
        assert container["securityContext"]["readOnlyRootFilesystem"]
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert pod["terminationGracePeriodSeconds"] > GatewayConfig().drain_timeout_seconds
        assert container["readinessProbe"]["httpGet"]["path"] == "/ready"
        assert container["livenessProbe"]["httpGet"]["path"] == "/health"
        (port,) = container["ports"]
        assert parse(container["args"]).port == port["containerPort"]


def written_configs(tmp_path: Path) -> Iterator[Path]:
    """The configurations of ConfigMaps and of compose, with models that exist."""
    (tmp_path / "checkpoint").symlink_to(ROOT / "demo_model" / "checkpoint")
    texts = [(path.name, path.read_text(encoding="utf-8")) for path in DEPLOY.glob("config/*.json")]
    maps = [d for path in MANIFESTS for d in documents(path) if d["kind"] == "ConfigMap"]
    texts += [item for each in maps for item in each["data"].items()]
    assert len(texts) == 5
    for index, (name, text) in enumerate(texts):
        copy = tmp_path / str(index) / name
        copy.parent.mkdir()
        for place in ("/models", "/opt/inference/demo_model"):
            text = text.replace(place, str(tmp_path))
        copy.write_text(text, encoding="utf-8")
        yield copy


def test_configurations_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in SECRETS:
        monkeypatch.setenv(name, f"{name.lower()}-value")
    for path in written_configs(tmp_path):
        load_config(path, MODELS[path.name])


def test_secrets_of_the_manifests_are_given() -> None:
    told = (DEPLOY / "README.md").read_text() + (DEPLOY / "kubernetes" / "gateway.yaml").read_text()
    for _, _, container in containers():
        for variable in container["env"]:
            assert variable["name"] in SECRETS
            assert f"--from-literal={variable['valueFrom']['secretKeyRef']['key']}=" in told


def test_compose_starts_the_apps_with_options_that_they_take() -> None:
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    services = compose["services"]
    parse(services["gateway"]["command"])
    join = services["cb-server"]["command"][1]
    compile(join, "compose.yaml", "exec")
    for name in ("cb-server", "sb-server"):
        _, _, app, port, *more = services[name]["command"]
        given = re.findall(r'"(--\w+)"', join)
        assert given == ["--host", "--port", "--model_id", "--client_url", "--server_url"]
        parse([app, "--port", port, *more])
        assert services[name]["read_only"] and services[name]["cap_drop"] == ["ALL"]
        assert f":{port}/health" in services[name]["healthcheck"]["test"][-1]


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_units_start_the_apps(path: Path) -> None:
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read_string(path.read_text().replace("\\\n", " "))
    python, *words = shlex.split(unit["Service"]["ExecStart"].replace("%i", "8001"))
    assert python == "/opt/inference/.venv/bin/python"
    parse(words)
    assert unit["Service"]["RestartPreventExitStatus"] == "3"  # utils.boot.BOOT_ERROR
    assert float(unit["Service"]["TimeoutStopSec"]) > GatewayConfig().drain_timeout_seconds


def test_systemd_accepts_the_units(tmp_path: Path) -> None:
    program = tool("systemd-analyze")
    for path in UNITS:
        unit = path.read_text().replace("/opt/inference/.venv/bin/python", sys.executable)
        (tmp_path / path.name.replace("@.", "@8001.")).write_text(unit.replace("User=inference", "User=root"))
    run(program, "verify", *map(str, sorted(tmp_path.iterdir())), cwd=tmp_path)


def test_promtool_accepts_rules_and_their_tests() -> None:
    promtool, monitoring = tool("promtool"), DEPLOY / "monitoring"
    run(promtool, "check", "config", "prometheus.yml", cwd=monitoring)
    run(promtool, "test", "rules", "rules_test.yml", cwd=monitoring)


def expressions() -> dict[str, str]:
    """Where → PromQL, of rules and dashboard."""
    rules = yaml.safe_load((DEPLOY / "monitoring" / "rules.yml").read_text())["groups"][0]["rules"]
    found = {rule.get("alert") or rule["record"]: rule["expr"] for rule in rules}
    dashboard = json.loads((DEPLOY / "monitoring" / "dashboard.json").read_text())
    panels = dashboard["panels"]
    return found | {f"{p['title']} {t['refId']}": t["expr"] for p in panels for t in p["targets"]}


def test_expressions_are_promql() -> None:
    promql_parser = pytest.importorskip("promql_parser")
    for expression in expressions().values():
        promql_parser.parse(expression)


async def test_the_metrics_of_rules_and_dashboard_are_exported(make_gateway: MakeGateway) -> None:
    from server.continuous_batching.metrics import EngineMetrics

    server = Stub()
    async with stubs(server), make_gateway([server]) as client:
        await client.complete("x", 3)
        await client.stream("y", 3)
        text = await (await client.session.get("/metrics")).text()
    exported = {sample.name for family in text_string_to_metric_families(text) for sample in family.samples}
    engine = EngineMetrics("m")
    engine.observe_queue_time(1.0)
    exported |= {sample.name for family in engine.collect(0) for sample in family.samples}
    registry = CollectorRegistry()
    RequestMetrics(registry, "m")
    exported |= {sample.name for family in registry.collect() for sample in family.samples}
    recorded = set(re.findall(r"record: (\S+)", (DEPLOY / "monitoring" / "rules.yml").read_text()))
    exported |= recorded | {"up"}
    for place, expression in expressions().items():
        bare = re.sub(r"\{[^}]*\}|\"[^\"]*\"|\bby \([^)]*\)", "", expression)
        names = set(re.findall(r"\b(?:gateway|vllm|engine)[:_][a-z0-9_:]+", bare))
        assert names or "up{" in expression
        assert names <= exported, f"{place}: {names - exported}"


def test_alerts_are_told_in_the_page() -> None:
    rules = yaml.safe_load((DEPLOY / "monitoring" / "rules.yml").read_text())["groups"][0]["rules"]
    alerts = [rule["alert"] for rule in rules if "alert" in rule]
    page = (DEPLOY / "README.md").read_text()
    assert re.findall(r"^\| `([A-Z]\w+)` \|", page, re.M) == alerts
    for rule in rules:
        if "alert" in rule:
            assert {"summary", "action"} <= set(rule["annotations"])
