"""The files in `deploy/`: right by the schemas of who reads them, and in what they say of us."""

import json
import re
import stat
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import dagster as dg
import kubernetes.client
import kubernetes_validate
import pytest
import yaml
from compose_spec import PyCompose
from dagster._config import process_config
from dagster._config.field import resolve_to_config_type
from dagster._core.instance.config import dagster_instance_config
from dagster_k8s import K8sRunLauncher
from dagster_k8s.container_context import K8sContainerContext
from dagster_k8s.job import construct_dagster_k8s_job

from kbo_pipeline.cli import main
from kbo_pipeline.core.environment import S3
from kbo_pipeline.core.places import Lake
from kbo_pipeline.core.settings import Settings, load_settings
from kbo_pipeline.operate.runtime import CHILDREN
from kbo_pipeline_tests.support import REPOSITORY

DEPLOY = REPOSITORY / "deploy"
DOCKERFILE = (DEPLOY / "Dockerfile").read_text()
FILES = sorted(file for file in DEPLOY.rglob("*") if file.is_file())
KUBERNETES = "1.32"
STARTED = re.compile(r"kbo[\s,\]\[\"]+start[\s,\"]+--only[\s,\"]+(\w+)")


@pytest.fixture(scope="module")
def compose() -> Any:
    return yaml.safe_load((DEPLOY / "compose.yaml").read_text())


@pytest.fixture(scope="module")
def objects() -> dict[str, Any]:
    found = yaml.safe_load_all((DEPLOY / "kubernetes" / "kbo.yaml").read_text())
    return {f"{each['kind']} {each['metadata']['name']}": each for each in found}


@pytest.fixture(scope="module")
def values() -> Any:
    return yaml.safe_load((DEPLOY / "kubernetes" / "values.yaml").read_text())


def test_compose_takes_its_file(compose: Any) -> None:
    read(compose)
    compose["services"]["web"]["helthcheck"] = {}
    with pytest.raises(ValueError, match="helthcheck"):
        read(compose)
    del compose["services"]["web"]["helthcheck"]


def read(compose: Any) -> None:
    PyCompose.from_json(json.dumps(compose)).validate()  # its YAML reader knows no `<<`


def test_kubernetes_takes_its_objects(objects: dict[str, Any]) -> None:
    for each in objects.values():
        kubernetes_validate.validate(each, KUBERNETES, strict=True)
    claim = objects["PersistentVolumeClaim kbo-data"]
    assert claim["spec"]["accessModes"] == ["ReadWriteOnce"]  # locks: see deploy/README.md


def test_dagster_takes_its_instance(objects: dict[str, Any], tmp_path: Path) -> None:
    text = objects["ConfigMap kbo-instance"]["data"]["dagster.yaml"]
    (tmp_path / "dagster.yaml").write_text(text)
    dagster_instance_config(str(tmp_path))
    launcher = yaml.safe_load(text)["run_launcher"]
    assert (launcher["module"], launcher["class"]) == ("dagster_k8s", K8sRunLauncher.__name__)


def test_kubernetes_takes_the_job_that_the_launcher_makes_of_a_run(
    objects: dict[str, Any], tmp_path: Path
) -> None:
    cluster = tmp_path / "kubeconfig"  # a launcher wants one; nobody is asked
    cluster.write_text(
        json.dumps(
            {
                "current-context": "none",
                "contexts": [{"name": "none", "context": {"cluster": "none", "user": "none"}}],
                "clusters": [{"name": "none", "cluster": {"server": "http://127.0.0.1:1"}}],
                "users": [{"name": "none", "user": {}}],
            }
        )
    )
    text = objects["ConfigMap kbo-instance"]["data"]["dagster.yaml"]
    schema = resolve_to_config_type(K8sRunLauncher.config_type())  # type: ignore[no-untyped-call]
    done = process_config(schema, yaml.safe_load(text)["run_launcher"]["config"])
    assert done.success, done.errors
    outside = {"load_incluster_config": False, "kubeconfig_file": str(cluster)}
    launcher = K8sRunLauncher(**{**(done.value or {}), **outside})
    context = K8sContainerContext.create_for_run(
        dg.DagsterRun(job_name="apply_batches"), launcher, include_run_tags=False
    )
    job = construct_dagster_k8s_job(
        context.get_k8s_job_config(job_image="kbo_pipeline", run_launcher=launcher),
        args=["dagster", "api", "execute_run"],
        job_name="run",
        user_defined_k8s_config=context.run_k8s_config,
    )
    made = kubernetes.client.ApiClient().sanitize_for_serialization(job)
    kubernetes_validate.validate(made, KUBERNETES, strict=True)
    pod = made["spec"]["template"]["spec"]
    assert pod["volumes"] == [{"name": "data", "persistentVolumeClaim": {"claimName": "kbo-data"}}]
    assert pod["securityContext"]["runAsNonRoot"]
    (term,) = pod["affinity"]["podAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert term["labelSelector"]["matchLabels"] == {"kbo": "code"}


def test_the_instance_is_the_repositorys_but_for_the_launcher(objects: dict[str, Any]) -> None:
    there = yaml.safe_load(objects["ConfigMap kbo-instance"]["data"]["dagster.yaml"])
    here = yaml.safe_load((REPOSITORY / "dagster.yaml").read_text())
    assert there.keys() - here.keys() == {"compute_logs"}
    for name in here.keys() - {"run_launcher", "run_monitoring"}:
        assert there[name] == here[name], name


def test_the_values_fit_each_other_and_the_objects(values: Any, objects: dict[str, Any]) -> None:
    (code,) = values["dagster-user-deployments"]["deployments"]
    parts = (values["dagsterWebserver"], values["dagsterDaemon"], code)
    for part in parts:
        assert part["image"] == code["image"]
        for source in (part["volumes"], part["envSecrets"]):
            assert all(each["name"] for each in source)
        volumes = {each["name"] for each in part["volumes"]}
        assert {each["name"] for each in part["volumeMounts"]} == volumes
        for volume in part["volumes"]:
            kind = "ConfigMap" if "configMap" in volume else "PersistentVolumeClaim"
            named = volume.get("configMap") or volume["persistentVolumeClaim"]
            assert f"{kind} {named.get('name', named.get('claimName'))}" in objects
    (home,) = {variable(part, "DAGSTER_HOME") for part in parts}
    launcher = yaml.safe_load(objects["ConfigMap kbo-instance"]["data"]["dagster.yaml"])[
        "run_launcher"
    ]["config"]
    assert launcher["dagster_home"] == home
    assert launcher["service_account_name"] == values["global"]["serviceAccountName"]
    assert f"{home}" in DOCKERFILE
    assert not {"dagsterApiGrpcArgs", "codeServerArgs"} & code.keys()  # the image's own command
    assert str(code["port"]) == variable(code, "KBO_CODE_PORT")
    for policy in ("NetworkPolicy kbo-code", "NetworkPolicy kbo-web"):
        (label,) = objects[policy]["spec"]["podSelector"]["matchLabels"].values()
        assert label in {part["labels"]["kbo"] for part in parts}


def test_kubernetes_takes_containers_as_the_values_give_them(values: Any) -> None:
    """As the chart puts them together, as far as its templates hand on what they are given."""
    (code,) = values["dagster-user-deployments"]["deployments"]
    for part in (values["dagsterWebserver"], values["dagsterDaemon"], code):
        probes = {
            name: {key: value for key, value in part[name].items() if key != "enabled"}
            for name in ("readinessProbe", "livenessProbe", "startupProbe")
            if part.get(name)
        }
        for probe in probes.values():
            if not probe.keys() & {"exec", "httpGet"}:
                probe["exec"] = {"command": ["the chart's own"]}
        image = part["image"]
        container = {
            "name": "dagster",
            "image": f"{image['repository']}:{image['tag']}",
            "imagePullPolicy": image["pullPolicy"],
            "env": part["env"],
            "envFrom": [{"secretRef": secret} for secret in part["envSecrets"]],
            "resources": part["resources"],
            "securityContext": part["securityContext"],
            "volumeMounts": part["volumeMounts"],
            **probes,
        }
        pod = {
            "securityContext": part["podSecurityContext"],
            "initContainers": part.get("extraPrependedInitContainers", []),
            "containers": [container],
            "volumes": part["volumes"],
        }
        deployment = {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": "dagster"},
            "spec": {
                "strategy": part.get("deploymentStrategy", {}),
                "selector": {"matchLabels": part["labels"]},
                "template": {"metadata": {"labels": part["labels"]}, "spec": pod},
            },
        }
        kubernetes_validate.validate(deployment, KUBERNETES, strict=True)
        container["imagePulPolicy"] = "Always"
        with pytest.raises(kubernetes_validate.ValidationError, match="imagePulPolicy"):
            kubernetes_validate.validate(deployment, KUBERNETES, strict=True)


def variable(part: Any, name: str) -> str:
    (found,) = (each["value"] for each in part["env"] if each["name"] == name)
    return str(found)


def test_a_pod_of_a_run_has_room_for_the_memory_that_it_may_take(objects: dict[str, Any]) -> None:
    text = objects["ConfigMap kbo-instance"]["data"]["dagster.yaml"]
    config = yaml.safe_load(text)["run_launcher"]["config"]
    (megabytes,) = re.findall(r"KBO_MEMORY_MB=(\d+)", str(config["env_vars"]))
    assert int(megabytes) * 1e6 * 1.25 < int(config["resources"]["limits"]["memory"][:-2]) * 2**30


@pytest.mark.parametrize("file", FILES, ids=[str(file.relative_to(DEPLOY)) for file in FILES])
def test_every_setting_and_every_part_is_one_of_ours(file: Path) -> None:
    settings = {
        {"postgres_url": "DAGSTER_POSTGRES_URL", "dagster_home": "DAGSTER_HOME"}.get(
            each.name, f"KBO_{each.name.upper()}"
        )
        for each in fields(Settings)
    }
    text = file.read_text()
    assert set(re.findall(r"\b(?:KBO|DAGSTER)_[A-Z_]*[A-Z]\b", text)) <= settings
    assert set(STARTED.findall(text)) <= {part for part in CHILDREN if part}
    assert "--only" in {option for each in main.commands["start"].params for option in each.opts}


def test_each_container_of_compose_has_settings_that_are_taken(
    compose: Any, tmp_path: Path
) -> None:
    for part in ("code", "daemon", "web"):
        service = compose["services"][part]
        assert service["command"] == ["kbo", "start", "--only", part]
        environment = {
            name: re.sub(r"\$\{[^}]*\}", "x", value)
            for name, value in service["environment"].items()
        }
        settings = load_settings(environment, tmp_path)
        assert (settings.code_host, settings.username) == (
            ("0.0.0.0", "x") if part == "code" else ("code", None)
        )
        # What listens everywhere in the container is on this machine's own address outside of it.
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))


def test_the_image_and_the_code_location_of_compose_can_have_a_register_in_a_lake(
    compose: Any, tmp_path: Path
) -> None:
    assert "scale" in str(re.findall(r'"\.\[([\w,]+)\]"', DOCKERFILE))
    offered = re.findall(r"^# (KBO_\w+)=(.+)$", (DEPLOY / "env.example").read_text(), re.MULTILINE)
    given = {**dict(offered), "MINIO_ROOT_PASSWORD": "x", "POSTGRES_PASSWORD": "y"}
    environment = {
        name: re.sub(r"\$\{(\w+)[^}]*\}", lambda found: given.get(found[1], ""), value)
        for name, value in compose["services"]["code"]["environment"].items()
    }
    database = load_settings(environment, tmp_path).database
    assert isinstance(database, Lake)
    assert dict(database.catalog)["host"] in compose["services"]
    assert (database.files, environment["PGPASSWORD"]) == ("s3://kbo/register/", "y")
    minio = compose["services"]["minio"]["environment"]
    endpoint = "http://minio:9000"
    assert database.s3 == S3(minio["MINIO_ROOT_USER"], "x", None, "us-east-1", endpoint)
    assert load_settings(
        {**environment, "KBO_DATABASE": "", "KBO_DATABASE_FILES": ""}, tmp_path
    ).database_file == Path("/data/kbo.duckdb")


def test_no_secret_stands_in_a_file() -> None:
    for file in FILES:
        text = file.read_text()
        given = re.findall(r"^[ -]*\w*PASSWORD[ ]*[:=][ ]*(\S.*)$", text, re.MULTILINE)
        given += re.findall(r"postgresql://\w+:([^@\s]+)@", text)
        assert [value for value in given if not value.startswith("${")] == [], file


def instructions() -> Iterator[tuple[str, str]]:
    for line in re.sub(r"\\\n", " ", DOCKERFILE).splitlines():
        if line and not line.startswith("#"):
            word, _, rest = line.partition(" ")
            yield word, rest


def test_the_image_is_not_roots_and_copies_what_there_is() -> None:
    found = list(instructions())
    assert [rest for word, rest in found if word == "USER"] == ["1000:1000"]
    assert "ENTRYPOINT" not in dict(found)  # a run on Kubernetes gives arguments alone
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    for word, rest in found:
        if word == "COPY" and "--from" not in rest:
            *sources, _ = [part for part in rest.split() if not part.startswith("--")]
            for source in sources:
                assert (REPOSITORY / source).exists(), source
                assert any(source.startswith(line[1:]) for line in ignored if line[:1] == "!")
    assert (DEPLOY / "bin" / "dagster-webserver").stat().st_mode & stat.S_IXUSR
