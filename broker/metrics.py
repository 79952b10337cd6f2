"""Every metric of the fleet, declared once. `render` gives them in Prometheus' text format.

Names and buckets are those that vLLM's dashboards know, with `fleetchat:` in place of `vllm:`; the label `model_name` too.
A worker and the web app fill different ones. They are kept by
prometheus_client's own registry, which is one for the process, as its `process_*` and `python_*` are.

    in a worker: what it did itself since it started
    num_requests_running, kv_cache_usage_perc, num_requests_waiting (the queue, which all workers of the model share)
    time_to_first_token_seconds, inter_token_latency_seconds, e2e_request_latency_seconds, request_queue_time_seconds,
    pickup_seconds, prompt_tokens_total, generation_tokens_total, request_success_total, requeued_total,
    fenced_writes_total

    in the web app: what it did itself, and what the scripts counted in Redis for the whole fleet since its first start
    refused_total, dropped_readers_total, moderated_total, redis_up
    fleet_requests_waiting, fleet_requests_running, fleet_..._total (see COUNTED)

    in both: redis_reconnects_total
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from itertools import accumulate

from prometheus_client import (
    CONTENT_TYPE_PLAIN_0_0_4,
    REGISTRY,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

disable_created_metrics()  # type: ignore[no-untyped-call]  # a second sample for each counter and histogram, which dashboards do not read

PREFIX = "fleetchat:"
MODEL = ["model_name"]

# vLLM's, from vllm/v1/metrics/loggers.py
FIRST_BUCKETS = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640, 2560)  # fmt: skip
TOKEN_BUCKETS = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, float("inf"))  # fmt: skip
REQUEST_BUCKETS = (0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680)
PICKUP_BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)

RUNNING = Gauge(f"{PREFIX}num_requests_running", "Answers that this worker writes.", MODEL)
WAITING = Gauge(
    f"{PREFIX}num_requests_waiting",
    "Requests that wait for the model; every worker of it shows the same queue, so take max and not sum.",
    MODEL,
)
CACHE_USE = Gauge(
    f"{PREFIX}kv_cache_usage_perc", "Share of the key-value cache in use, 0 to 1; models of a worker share it.", MODEL
)
FIRST_TOKEN = Histogram(
    f"{PREFIX}time_to_first_token_seconds", "From the request's acceptance to its first token.", MODEL, buckets=FIRST_BUCKETS
)  # fmt: skip
WHOLE = Histogram(
    f"{PREFIX}e2e_request_latency_seconds",
    "From the request's acceptance to its last token, of answers that ended here by themselves.",
    MODEL,
    buckets=REQUEST_BUCKETS,
)
QUEUED = Histogram(
    f"{PREFIX}request_queue_time_seconds",
    "From the request's acceptance to a worker's first claim.",
    MODEL,
    buckets=REQUEST_BUCKETS,
)
PICKUP = Histogram(
    f"{PREFIX}pickup_seconds",
    "From acceptance to claim, of requests for which this worker had a free slot all that time.",
    MODEL,
    buckets=PICKUP_BUCKETS,
)
PROMPT_TOKENS = Counter(f"{PREFIX}prompt_tokens_total", "Tokens of the prompts that were answered.", MODEL)
ENDED = Counter(
    f"{PREFIX}request_success_total",
    "Requests that left this worker: stop, length, tool_calls, content_filter, error, or abort (stopped or handed over).",
    [*MODEL, "finished_reason"],
)
REQUEUED = Counter(f"{PREFIX}requeued_total", "Requests that this worker handed back to their queue.", MODEL)
FENCED = Counter(
    f"{PREFIX}fenced_writes_total", "Frames of this worker that were refused: another one has the request now.", MODEL
)
RECONNECTS = Counter(f"{PREFIX}redis_reconnects_total", "How often the subscription was lost and had to be made again.")
DROPPED = Counter(
    f"{PREFIX}dropped_readers_total",
    "Readers that were too slow: behind (what they missed is read again from the list), or stuck or silent (cut off).",
    ["why"],
)
REFUSED = Counter(
    f"{PREFIX}refused_total",
    "Requests that this process refused by a limit: queue, user, storage, or unserved (no worker has the model).",
    ["limit"],
)
MODERATED = Counter(
    f"{PREFIX}moderated_total",
    "Checks of the arena's prompts and answers: passed, flagged, or failed (the check could not be made).",
    ["result"],
)
for why in ("behind", "stuck", "silent"):  # a counter that begins with its first event hides that event from rate()
    DROPPED.labels(why)
for limit in ("queue", "user", "storage", "unserved"):
    REFUSED.labels(limit)
for result in ("passed", "flagged", "failed"):
    MODERATED.labels(result)

COUNTED = {
    "accepted": ("fleet_accepted", "", "Requests that were accepted."),
    "refused": ("fleet_refused", "limit", "Requests that were refused because the queue or the user's share was full."),
    "ended": ("fleet_requests", "outcome", "Requests that ended, by reason or, for errors, by the error's code."),
    "requeued": (
        "fleet_requeued",
        "why",
        "Requests that went back to their queue: lease (it ran out), handed_over, step_failed.",
    ),
    "crashed": (
        "fleet_crashes",
        "",
        "Workers that died, or steps that failed, once for each request that was in them.",
    ),
    "fenced": ("fleet_fenced_writes", "", "Frames that were refused because another worker has the request."),
    "tokens": ("fleet_tokens", "direction", "Tokens of ended requests: in (prompts) and out (answers)."),
}
"""What the scripts count in `counts:MODEL`, by the word before the colon: metric, label of the word behind it, help."""


class Decode:
    """What one model's answers are made of, token by token.

    Plain numbers without locks, since it is counted at every piece: only the event loop touches it.
    """

    __slots__ = ("counts", "seconds", "tokens")

    def __init__(self) -> None:
        self.tokens = 0
        self.seconds = 0.0  # between tokens
        self.counts = [0] * len(TOKEN_BUCKETS)

    def gap(self, tokens: int, seconds: float) -> None:
        """Some tokens of one answer, and the time since those before them."""
        self.seconds += seconds
        self.counts[bisect_left(TOKEN_BUCKETS, seconds / tokens)] += tokens


class _Decodes(Collector):
    def __init__(self) -> None:
        self.models: dict[str, Decode] = {}

    def collect(self) -> Iterator[Metric]:
        tokens = CounterMetricFamily(f"{PREFIX}generation_tokens", "Tokens of the answers.", labels=MODEL)
        gaps = HistogramMetricFamily(
            f"{PREFIX}inter_token_latency_seconds", "Between two tokens of an answer.", labels=MODEL
        )
        for name, decode in self.models.items():
            bounds = map(floatToGoString, TOKEN_BUCKETS)
            gaps.add_metric([name], list(zip(bounds, accumulate(decode.counts), strict=True)), decode.seconds)
            tokens.add_metric([name], decode.tokens)
        yield tokens
        yield gaps


_decodes = _Decodes()
REGISTRY.register(_decodes)


def decode(model: str) -> Decode:
    """The numbers of one model in this process."""
    return _decodes.models.setdefault(model, Decode())


class _Ready(Collector):
    """Metrics that are made when somebody asks."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


def fleet(
    waiting: Mapping[str, int], running: Mapping[str, int], counts: Mapping[str, Mapping[str, int]]
) -> list[Metric]:
    """What Redis knows of the whole fleet, each by model; `counts` as `registry.counts` has them."""
    families: list[Metric] = []
    for what, numbers in (("waiting", waiting), ("running", running)):
        gauge = GaugeMetricFamily(
            f"{PREFIX}fleet_requests_{what}", f"Requests {what}, of the whole fleet.", labels=MODEL
        )
        for model, number in numbers.items():
            gauge.add_metric([model], number)
        families.append(gauge)
    for word, (name, label, about) in COUNTED.items():
        counter = CounterMetricFamily(PREFIX + name, about, labels=[*MODEL, *filter(None, [label])])
        for model, fields in counts.items():
            for field, number in fields.items():
                first, _, rest = field.partition(":")
                if first == word:
                    counter.add_metric([model, *([rest] if label else [])], number)
        families.append(counter)
    return families


def redis_up(up: bool) -> Metric:
    """Whether this process reaches Redis now."""
    return GaugeMetricFamily(f"{PREFIX}redis_up", "1 while this process reaches Redis, else 0.", value=up)


def render(families: Iterable[Metric] = ()) -> tuple[bytes, str]:
    """Everything that this process counts, and some families more; and the Content-Type."""
    return generate_latest(REGISTRY) + generate_latest(_Ready(families)), CONTENT_TYPE_PLAIN_0_0_4
