"""The setting of where traces go, and whether they go anywhere."""

import importlib.util
from collections.abc import Mapping

import msgspec

_ENDPOINT_VARIABLES = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")

_PACKAGES = ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http")


class TracingSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where traces go.

    otel_endpoint: URL of an OpenTelemetry collector that takes OTLP over HTTP, such as
        `http://127.0.0.1:4318`; None sends no traces, unless OTEL_EXPORTER_OTLP_ENDPOINT is set.
    """

    otel_endpoint: str | None = None


def tracing_is_wanted(settings: TracingSettings, environ: Mapping[str, str]) -> bool:
    """Tell whether a setting or one of OpenTelemetry's own variables asks for traces."""
    if environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return False
    return bool(settings.otel_endpoint or any(map(environ.get, _ENDPOINT_VARIABLES)))


def tracing_is_installed() -> bool:
    """Tell whether the `otel` extra is there, without importing it."""
    try:
        return all(map(importlib.util.find_spec, _PACKAGES))
    except ModuleNotFoundError:  # of a package's parent
        return False
