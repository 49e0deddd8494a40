"""The settings of what is counted and shown."""

import msgspec


class MetricsSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What /metrics shows beside the figures of the service as a whole.

    metrics_by_key: count requests and tokens for every API key's name as well; each name is a
        series more.
    vllm_metric_names: show the figures that dashboards and autoscalers read of vLLM under its
        names, too.
    """

    metrics_by_key: bool = False
    vllm_metric_names: bool = False
