"""Traces of requests for OpenTelemetry; off unless set, and then nothing of it is imported."""
