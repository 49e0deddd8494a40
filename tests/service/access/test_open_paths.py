import pytest

from service.access.open_paths import OpenPaths, is_health


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/docs",
        "/docs/",
        "/docs/swagger-ui.css",
        "/schema/openapi.json",
        "/health/live",
        "/health/ready",
        "/v1/health",
        "/playground",
        "/playground/page.js",
    ],
)
def test_pages_and_probes_are_open(path):
    assert path in OpenPaths(with_metrics=False)


@pytest.mark.parametrize(
    "path",
    [
        "/v1/chat",
        "/v1/models",
        "/v1/health/x",
        "/health",
        "/health/",
        "/health/a/b",
        "/health/generate",
        "/docs/a/b",
        "/docs//v1/chat",
        "/docsx",
        "//docs",
        "/docs/../v1/chat",
        "/playgrounds",
        "/docs/%2e%2e",
        "/docs/é",
        "/metrics",
        "/admin/pause",
        "/invocations",
        "*",
        "",
        "/docs\n",
    ],
)
def test_everything_else_is_guarded(path):
    assert path not in OpenPaths(with_metrics=False)


def test_metrics_are_open_where_the_operator_says_so():
    assert "/metrics" in OpenPaths(with_metrics=True)


@pytest.mark.parametrize(
    ("path", "answer"),
    [("/health/live", True), ("/v1/health", True), ("/docs", False), ("/v1/chat", False)],
)
def test_probes_are_known(path, answer):
    assert is_health(path) is answer
