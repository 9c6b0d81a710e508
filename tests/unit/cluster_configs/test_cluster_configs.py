"""Every file in cluster_configs/ has the shape its reader expects.

Ray validates its launcher's files itself. No package ships the schema of KubeRay's resources, so
the fields that it requires, and those that we count on, are checked here.
"""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from compass_ray.metrics import TAGS

FOLDER = Path(__file__).parents[3] / "cluster_configs"
CONSTRAINTS = FOLDER.parent / "constraints.txt"
LAUNCHER = ("aws.yaml", "gcp.yaml", "azure.yaml", "on_premise.yaml")
KUBERAY = ("kuberay_raycluster.yaml", "kuberay_rayjob.yaml")


def load(name: str) -> dict[str, Any]:
    return yaml.safe_load((FOLDER / name).read_text())


def test_every_file_is_checked_by_one_of_these_tests() -> None:
    assert {file.name for file in FOLDER.glob("*.yaml")} == {
        *LAUNCHER,
        *KUBERAY,
        "runtime_env.yaml",
    }


@pytest.mark.parametrize("name", LAUNCHER)
def test_ray_accepts_the_launcher_file(name: str) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(load(name)))
    broken = load(name)
    broken["no_such_field"] = 1
    with pytest.raises(Exception, match="no_such_field"):
        validate_config(prepare_config(broken))


@pytest.mark.parametrize("name", LAUNCHER)
def test_no_launcher_file_opens_ray_without_a_token(name: str) -> None:
    config = load(name)
    for role in ("head", "worker"):
        starts = [line for line in config[f"{role}_start_ray_commands"] if "ray start" in line]
        assert starts and all("RAY_AUTH_MODE=token" in line for line in starts)
    assert "~/.ray/auth_token" in config["file_mounts"]
    assert "--dashboard-host=127.0.0.1" in str(config["head_start_ray_commands"])


@pytest.mark.parametrize("name", LAUNCHER[:3])
def test_clouds_have_spot_and_on_demand_workers_within_limits(name: str) -> None:
    config = load(name)
    types = config["available_node_types"]
    assert {"head", "gpu_on_demand", "gpu_spot"} == set(types)
    assert types["gpu_on_demand"]["min_workers"] >= 1
    limits = [types[group]["max_workers"] for group in ("gpu_on_demand", "gpu_spot")]
    assert sum(limits) <= config["max_workers"]
    spot = str(types["gpu_spot"]["node_config"])
    assert re.search("spot|preemptible': True", spot, re.IGNORECASE)
    assert not re.search("spot|preemptible", str(types["gpu_on_demand"]["node_config"]), re.I)


def pinned(package: str) -> str:
    """The version that constraints.txt has."""
    found = re.search(rf"^{package}==(\S+)", CONSTRAINTS.read_text(), re.MULTILINE)
    assert found
    return found[1]


@pytest.mark.parametrize("name", [*LAUNCHER, *KUBERAY])
def test_every_file_has_the_ray_and_the_driver_of_what_is_installed(name: str) -> None:
    assert pinned("cuda-toolkit").startswith("13."), "the driver to ask for is another one"
    text = (FOLDER / name).read_text()
    header = " ".join(re.findall(r"^# *(.*)", text, re.MULTILINE))
    assert "NVIDIA driver 580 or newer" in header
    versions = re.findall(r"rayproject/ray:([\d.]+)|rayVersion: (\S+)", text)
    assert {version for pair in versions for version in pair if version} <= {pinned("ray")}


def test_ray_opens_nothing_of_its_own_on_aws(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    """A group of Ray's would let in ssh from everywhere; its role could launch no worker."""
    import boto3
    import moto
    from ray.autoscaler._private.aws.config import bootstrap_aws

    for variable in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY"):
        monkeypatch.setenv(f"AWS_{variable}", "testing")
    monkeypatch.setenv("HOME", str(tmp_path))
    config = load("aws.yaml")
    with moto.mock_aws():
        ec2 = boto3.resource("ec2", region_name=config["provider"]["region"])
        (vpc,) = ec2.vpcs.all()
        ours = vpc.create_security_group(GroupName="ours", Description="ours")
        for node_type in config["available_node_types"].values():
            assert node_type["node_config"]["SecurityGroupIds"] == ["sg-00000000000000000"]
            node_type["node_config"]["SecurityGroupIds"] = [ours.id]
        made = bootstrap_aws(config)
        assert {group.group_name for group in ec2.security_groups.all()} == {"default", "ours"}
    types = {name: told["node_config"] for name, told in made["available_node_types"].items()}
    assert made["head_node"] == {}
    profiles = {name: node["IamInstanceProfile"]["Name"] for name, node in types.items()}
    assert profiles == {
        "head": "compass-ray-head",
        "gpu_on_demand": "compass-ray-worker",
        "gpu_spot": "compass-ray-worker",
    }
    assert {node["ImageId"] for node in types.values()} == {"ami-00000000000000000"}
    assert all(node["SecurityGroupIds"] == [ours.id] for node in types.values())


def test_the_head_on_google_cloud_has_the_account_that_launches_workers() -> None:
    """What its type names would replace the account that Ray makes for it."""
    types = load("gcp.yaml")["available_node_types"]
    assert "serviceAccounts" not in types.pop("head")["node_config"]
    assert all(worker["node_config"]["serviceAccounts"] for worker in types.values())


def test_the_head_on_azure_has_the_packages_that_ray_names() -> None:
    import ray.autoscaler

    ours = load("azure.yaml")["head_setup_commands"]
    rays = Path(ray.autoscaler.__file__).parent / "azure" / "defaults.yaml"
    wanted = yaml.safe_load(rays.read_text())["head_setup_commands"]
    assert set(re.findall(r"[^\s']+==[^\s']+", str(ours))) == set(
        re.findall(r"[^\s']+==[^\s']+", str(wanted))
    )


@pytest.mark.parametrize("name", KUBERAY)
def test_the_image_is_built_by_the_user_it_runs_as(name: str) -> None:
    assert "COPY --chown=ray:users . " in (FOLDER / name).read_text()
    left_out = (FOLDER.parent / ".dockerignore").read_text().split()
    assert {".git", ".venv", "**/outputs"} <= set(left_out)


def ray_cluster_mistakes(spec: dict[str, Any]) -> list[str]:
    """What KubeRay's schema would refuse in the spec of a RayCluster, by field."""
    found = []
    if spec.get("authOptions") != {"mode": "token"}:
        found.append("authOptions")
    if "redisAddress" not in spec.get("gcsFaultToleranceOptions", {}):
        found.append("gcsFaultToleranceOptions.redisAddress")
    for where, group in [
        ("headGroupSpec", spec.get("headGroupSpec")),
        *((f"workerGroupSpecs[{i}]", g) for i, g in enumerate(spec.get("workerGroupSpecs", []))),
    ]:
        if not isinstance(group, dict):
            found.append(where)
            continue
        parameters = group.get("rayStartParams")
        if not isinstance(parameters, dict) or not all(
            isinstance(value, str) for value in parameters.values()
        ):
            found.append(f"{where}.rayStartParams")
        found += [f"{where}.{field}" for field in pod_mistakes(group.get("template"))]
    for i, group in enumerate(spec.get("workerGroupSpecs", [])):
        if not group.get("groupName"):
            found.append(f"workerGroupSpecs[{i}].groupName")
        counts = [group.get(name) for name in ("minReplicas", "replicas", "maxReplicas")]
        if not all(isinstance(count, int) for count in counts) or counts != sorted(counts):
            found.append(f"workerGroupSpecs[{i}].replicas")
    return found


def pod_mistakes(template: Any) -> list[str]:
    if not isinstance(template, dict) or not template.get("spec", {}).get("containers"):
        return ["template.spec.containers"]
    spec, found = template["spec"], []
    volumes = {volume.get("name") for volume in spec.get("volumes", [])}
    for i, container in enumerate(spec["containers"]):
        where = f"template.spec.containers[{i}]"
        found += [f"{where}.{field}" for field in ("name", "image") if not container.get(field)]
        for mount in container.get("volumeMounts", []):
            if mount.get("name") not in volumes or not mount.get("mountPath"):
                found.append(f"{where}.volumeMounts")
        for amounts in container.get("resources", {}).values():
            if not all(isinstance(amount, str) for amount in amounts.values()):
                found.append(f"{where}.resources")
    return found


def cluster_spec(manifest: dict[str, Any]) -> dict[str, Any]:
    spec = manifest["spec"]
    return spec["rayClusterSpec"] if manifest["kind"] == "RayJob" else spec


@pytest.mark.parametrize("name", KUBERAY)
def test_kuberay_manifests_have_what_their_schema_requires(name: str) -> None:
    manifest = load(name)
    assert manifest["apiVersion"] == "ray.io/v1"
    assert (
        manifest["kind"]
        == {"kuberay_raycluster": "RayCluster", "kuberay_rayjob": "RayJob"}[Path(name).stem]
    )
    assert {"name", "generateName"} & set(manifest["metadata"])
    spec = cluster_spec(manifest)
    assert ray_cluster_mistakes(spec) == []
    (worker,) = spec["workerGroupSpecs"]
    pod = worker["template"]["spec"]
    assert pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    claims = [volume.get("persistentVolumeClaim") for volume in pod["volumes"]]
    assert {"claimName": "compass-storage"} in claims


def test_the_check_of_kuberay_manifests_finds_what_is_missing() -> None:
    spec = cluster_spec(load(KUBERAY[0]))
    broken = copy.deepcopy(spec)
    del broken["authOptions"]
    del broken["workerGroupSpecs"][0]["groupName"]
    broken["headGroupSpec"]["rayStartParams"]["num-cpus"] = 0
    broken["workerGroupSpecs"][0]["template"]["spec"]["volumes"].pop()
    assert ray_cluster_mistakes(broken) == [
        "authOptions",
        "headGroupSpec.rayStartParams",
        "workerGroupSpecs[0].template.spec.containers[0].volumeMounts",
        "workerGroupSpecs[0].groupName",
    ]


def test_the_job_is_tried_again_and_runs_a_job_that_is_there() -> None:
    spec = load("kuberay_rayjob.yaml")["spec"]
    assert spec["backoffLimit"] >= 1
    script = re.search(r"compass_ray/(jobs/\w+\.py)", spec["entrypoint"])
    assert script and (FOLDER.parent / script[1]).is_file()
    assert isinstance(yaml.safe_load(spec["runtimeEnvYAML"])["env_vars"], dict)


def test_ray_accepts_the_runtime_env() -> None:
    from ray.runtime_env import RuntimeEnv

    given = load("runtime_env.yaml")
    assert RuntimeEnv(**given)["env_vars"] == given["env_vars"]
    with pytest.raises(TypeError, match="working_dir"):
        RuntimeEnv(**{**given, "working_dir": 1})


def test_every_panel_of_the_dashboard_shows_a_metric_that_there_is() -> None:
    """Ours by their tags; of Ray's own, those that its dashboard's reporter names."""
    import ray

    dashboard = json.loads((FOLDER / "grafana_dashboard.json").read_text())
    sources = Path(ray.__file__).parent
    rays = (sources / "dashboard/modules/reporter/reporter_agent.py").read_text()
    rays += (
        sources / "dashboard/modules/metrics/dashboards/default_dashboard_panels.py"
    ).read_text()
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            for name in re.findall(r"ray_(\w+)", target["expr"]):
                if name.startswith("compass_"):
                    grouped = re.findall(rf"by \(([\w, ]+)\) \(ray_{name}", target["expr"])
                    assert set(TAGS[name]) >= {
                        tag for group in grouped for tag in group.split(", ")
                    }
                else:
                    assert name in rays, f"{panel['title']}: Ray has no metric {name}"
    shown = {name for name in TAGS if name in json.dumps(dashboard)}
    assert shown == set(TAGS)
