"""The metrics: one table of names, plain numbers while the server runs, Prometheus' text when it is asked for.

Nothing is measured by asking: a scrape reads numbers that are there already and never waits for the engine. Names and
meanings that vLLM has too are vLLM's, so that gateways and dashboards made for it work (`--metrics-prefix vllm`).
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import astuple
from typing import TYPE_CHECKING, Any, NamedTuple

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

from jaxinfer.messages import EngineInfo, EngineStats, StepTimes
from serving.observing.expert_load import ExpertLoads
from serving.observing.record import FINISH_REASONS, RequestRecord

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

OWN_PREFIX, VLLM_PREFIX = "jaxinfer", "vllm"
PREFIXES: Mapping[str, tuple[str, ...]] = {
    "jaxinfer": (OWN_PREFIX,),
    "vllm": (VLLM_PREFIX,),
    "both": (OWN_PREFIX, VLLM_PREFIX),
}
MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"
ENGINE = "0"  # one engine in a server

_LATENCY = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0)
_GAPS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0)
_LENGTHY = (0.01, 0.03, 0.1, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 60.0, 120.0, 600.0)
_TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000, 200_000)
_COUNTS = (1, 2, 5, 10, 20)
_STEP = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16_384)


class MetricSpec(NamedTuple):
    """A metric. labels: beside model_name and engine. shared: vLLM has it under this name with this meaning."""

    name: str
    kind: str  # "gauge" | "counter" | "histogram"
    help: str
    labels: tuple[str, ...] = ()
    shared: bool = False
    buckets: tuple[float, ...] = ()


def _gauge(name: str, text: str, *labels: str, shared: bool = False) -> MetricSpec:
    return MetricSpec(name, "gauge", text, labels, shared)


def _counter(name: str, text: str, *labels: str, shared: bool = False) -> MetricSpec:
    return MetricSpec(name, "counter", text, labels, shared)


def _histogram(name: str, text: str, buckets: tuple[float, ...]) -> MetricSpec:
    return MetricSpec(name, "histogram", text, (), True, buckets)


SPECS = (
    _gauge("num_requests_running", "Sequences in the engine's batch", shared=True),
    _gauge("num_requests_waiting", "Sequences accepted that are not in the batch", shared=True),
    _gauge("kv_cache_usage_perc", "Share of the KV pages that sequences hold, 0 to 1", shared=True),
    _gauge("cache_config_info", "Always 1; the labels size the KV cache", "block_size", "num_gpu_blocks", shared=True),
    _counter("prompt_tokens_total", "Tokens of prompts", shared=True),
    _counter("generation_tokens_total", "Tokens that clients got", shared=True),
    _counter("request_success_total", "Finished requests by their worst end", "finished_reason", shared=True),
    _counter("num_preemptions_total", "Sequences that gave up their pages and computed them again", shared=True),
    _counter("prefix_cache_queries_total", "Tokens looked up in the prefix cache", shared=True),
    _counter("prefix_cache_hits_total", "Tokens found there", shared=True),
    _gauge("pinned_pages", "KV pages that pins hold, whether sequences use them or not"),
    _counter("pins_total", "Pins of prefixes: made, expired in time, or evicted early", "event"),
    _histogram("time_to_first_token_seconds", "From arrival to the first token", _LATENCY),
    _histogram("inter_token_latency_seconds", "Between tokens of a sequence", _GAPS),
    _histogram("e2e_request_latency_seconds", "From arrival to the end", _LENGTHY),
    _histogram("request_queue_time_seconds", "From submission to the first step", _LENGTHY),
    _histogram("request_prefill_time_seconds", "From the first step to the first token", _LENGTHY),
    _histogram("request_decode_time_seconds", "From the first token to the last", _LENGTHY),
    _histogram("request_inference_time_seconds", "From the first step to the last token", _LENGTHY),
    _histogram("request_prompt_tokens", "Tokens of a request's prompt", _TOKENS),
    _histogram("request_generation_tokens", "Tokens of a request's answers together", _TOKENS),
    _histogram("request_max_num_generation_tokens", "Tokens of a request's longest answer", _TOKENS),
    _histogram("request_params_n", "n of requests", _COUNTS),
    _histogram("request_params_max_tokens", "max_tokens of requests, as resolved", _TOKENS),
    _histogram("iteration_tokens_total", "Tokens computed in a step", _STEP),
    _gauge("kv_pages", "KV pages: used by sequences, cached without an owner, or free", "state"),
    _counter("engine_steps_total", "Steps"),
    _counter("step_seconds_total", "The engine thread's time, by what it did; idle time is in none", "part"),
    _counter("starved_steps_total", "Steps that were launched when the device had run out of work"),
    _counter("starved_seconds_total", "The host's time before those launches: the most that the device idled"),
    _counter("scheduled_tokens_total", "Tokens that steps computed for sequences"),
    _counter("padded_tokens_total", "Tokens that steps computed for nothing, to fill a compiled shape"),
    _counter("constrained_requests_total", "Requests whose answers follow a grammar (structured output)"),
    _counter("constraint_seconds_total", "Compiling grammars, in threads beside the engine's"),
    _counter("forced_tokens_total", "Tokens known without drawing them, since a grammar left no choice"),
    _counter("compilations_after_ready_total", "Backend compilations since start-up; more than 0 is a fault"),
    _counter("requests_accepted_total", "Requests that the engine was given"),
    _counter("requests_refused_total", "Requests that were not; HTTP's or gRPC's status", "door", "code"),
    _counter(
        "ignored_fields_total", "Fields of HTTP requests that had no effect; other: of names unknown here", "field"
    ),
    _gauge("requests_open", "Requests whose answer is under way"),
    _counter("tenant_tokens_total", "Tokens of finished requests, by kind", "tenant", "kind"),
    _counter("tenant_device_seconds_total", "Finished requests' share of their steps' device time", "tenant"),
    _counter("ledger_lines_total", "Lines in the usage ledger: written, or lost because they could not be", "state"),
    _counter("audit_lines_total", "Lines in the audit log's file: written, or lost because they could not be", "state"),
    _counter("expert_tokens_total", "Tokens that experts of this number computed, in all layers together", "expert"),
    _gauge("expert_load_imbalance", "Busiest expert's tokens over the mean of a layer's, in the last minute", "layer"),
    _gauge(
        "expert_device_load_imbalance",
        "The same of devices that experts are dealt to, each with its experts together",
        "layer",
    ),
    _gauge("response_store_responses", "Responses that clients can go on from (--response-store)"),
    _gauge("response_store_bytes", "What they take"),
    _counter("response_store_evicted_total", "Responses that gave way to others before their time"),
    _gauge("engine_warming", "1 while requests are served and programs still compiled (--serve-while-warming)"),
    _gauge("engine_stuck", "1 while the engine owes news for longer than --unready-seconds"),
)


class Buckets:
    """A histogram's numbers. An observation costs a bisection."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        self.counts[bisect_left(self.bounds, value)] += times
        self.total += value * times

    @property
    def count(self) -> int:
        return sum(self.counts)

    def cumulative(self) -> list[tuple[str, float]]:
        pairs, sofar = [], 0
        for bound, count in zip((*self.bounds, float("inf")), self.counts, strict=True):
            sofar += count
            pairs.append(("+Inf" if bound == float("inf") else repr(float(bound)), float(sofar)))
        return pairs


Values = Mapping[tuple[str, ...], float]


class Metrics:
    """The numbers, written by the event loop. `sources` give those that are read where they are kept, by name."""

    def __init__(self, prefix: str = "jaxinfer") -> None:
        self._prefixes = PREFIXES[prefix]
        self.histograms = {spec.name: Buckets(spec.buckets) for spec in SPECS if spec.buckets}
        self.prompt_tokens = self.generation_tokens = 0
        self.finished: Counter[tuple[str, ...]] = Counter({(reason,): 0 for reason in FINISH_REASONS})
        self.finished_seconds: Counter[str] = Counter()  # from arrival to end, by the reason of the end
        self.last_arrival = 0.0  # Unix time, of the finished requests
        self.refused: Counter[tuple[str, ...]] = Counter()
        self.ignored: Counter[tuple[str, ...]] = Counter()
        self.tenant_tokens: Counter[tuple[str, ...]] = Counter()
        self.tenant_device: Counter[tuple[str, ...]] = Counter()
        self.stats, self.times = EngineStats(), StepTimes()
        self._engines: dict[int, tuple[EngineStats, StepTimes]] = {}  # each one's, by its number
        self._observed: dict[int, tuple[int, int]] = {}  # of each engine: steps and their tokens that were counted
        self.info: EngineInfo | None = None
        self.experts = ExpertLoads(lambda: self.info)
        self.model = ""
        self.sources: list[Callable[[], Mapping[str, Any]]] = []
        self._ttft = self.histograms["time_to_first_token_seconds"]
        self._gaps = self.histograms["inter_token_latency_seconds"]
        self._step = self.histograms["iteration_tokens_total"]
        self._registry = CollectorRegistry()
        self._registry.register(self)
        ProcessCollector(registry=self._registry)

    # -- writing --------------------------------------------------------------------------------------------------

    def step(self, stats: EngineStats, times: StepTimes, engine: int = 0) -> None:
        """An engine's last word. Of several engines `stats` and `times` are the sums."""
        before_steps, before_tokens = self._observed.get(engine, (0, 0))
        if stats.steps != before_steps:  # otherwise a step's tokens may be planned, and it is not counted yet
            steps = max(1, stats.steps - before_steps)  # one message has the news of several when we were busy
            self._step.observe((stats.scheduled_tokens - before_tokens) / steps, steps)
            self._observed[engine] = stats.steps, stats.scheduled_tokens
        self._engines[engine] = stats, times
        if len(self._engines) == 1:
            self.stats, self.times = stats, times
            return
        each_stats, each_times = zip(*self._engines.values(), strict=True)
        self.stats = EngineStats(*(sum(column) for column in zip(*map(astuple, each_stats), strict=True)))
        self.times = StepTimes(*(sum(column) for column in zip(*each_times, strict=True)))

    def tokens(self, record: RequestRecord, index: int, count: int, now: float) -> None:
        """`count` new tokens of a sequence have come."""
        self.generation_tokens += count
        record.completion_tokens[index] += count
        last = record.last_tokens[index]
        if last:
            self._gaps.observe((now - last) / count, count)
        elif not record.first_token:
            record.first_token = now
            self._ttft.observe(now - record.received)
            self.count_prompt(record)
        record.last_tokens[index] = now

    def count_prompt(self, record: RequestRecord) -> None:
        """Once: when its first token comes, or when it ends without one."""
        if not record.prompt_counted:
            record.prompt_counted = True
            self.prompt_tokens += record.prompt_tokens

    def finish(self, record: RequestRecord) -> None:
        self.count_prompt(record)
        self.finished[(record.finish_reason,)] += 1
        phases, observe = record.phases(), self._observe
        self.finished_seconds[record.finish_reason] += sum(phases.values())  # type: ignore[assignment]
        self.last_arrival = max(self.last_arrival, record.time)
        observe("e2e_request_latency_seconds", sum(phases.values()))
        observe("request_queue_time_seconds", record.queue_seconds)
        if record.first_token:
            observe("request_prefill_time_seconds", phases["prefill"])
            observe("request_decode_time_seconds", phases["decode"])
            observe("request_inference_time_seconds", phases["prefill"] + phases["decode"])
        observe("request_prompt_tokens", record.prompt_tokens)
        observe("request_generation_tokens", record.output_tokens)
        observe("request_max_num_generation_tokens", max(record.completion_tokens))
        observe("request_params_n", record.n)
        observe("request_params_max_tokens", record.max_tokens)
        tenant = record.origin.tenant
        self.tenant_tokens[tenant, "prompt"] += record.prompt_tokens
        self.tenant_tokens[tenant, "cached"] += record.cached_tokens
        self.tenant_tokens[tenant, "completion"] += record.output_tokens
        self.tenant_device[tenant,] += record.device_seconds  # type: ignore[assignment]

    def _observe(self, name: str, value: float) -> None:
        self.histograms[name].observe(value)

    # -- reading --------------------------------------------------------------------------------------------------

    def text(self) -> bytes:
        """What a scrape gets, as MEDIA_TYPE. Always this one: prometheus_client 0.26 turns the colons of names into
        underscores when it writes OpenMetrics, which Prometheus would prefer."""
        return generate_latest(self._registry)

    def values(self) -> dict[str, float | Values]:
        """Every gauge and counter by name; those with labels by the labels' values."""
        stats, times = self.stats, self.times
        total = stats.total_pages or (self.info.num_pages - 1 if self.info is not None else 0)
        available = stats.free_pages if stats.total_pages else total
        found: dict[str, float | Values] = {
            "num_requests_running": stats.running,
            "num_requests_waiting": stats.waiting,
            "kv_cache_usage_perc": (total - available) / total if total else 0.0,
            "prompt_tokens_total": self.prompt_tokens,
            "generation_tokens_total": self.generation_tokens,
            "request_success_total": self.finished,
            "num_preemptions_total": stats.preemptions,
            "prefix_cache_queries_total": stats.prefix_queries,
            "prefix_cache_hits_total": stats.prefix_hits,
            "kv_pages": {
                ("used",): total - available,
                ("cached",): stats.cached_pages,
                ("free",): available - stats.cached_pages,
            },
            "pinned_pages": stats.pinned_pages,
            "pins_total": {
                ("made",): stats.pins_made,
                ("expired",): stats.pins_expired,
                ("evicted",): stats.pins_evicted,
            },
            "engine_steps_total": stats.steps,
            "step_seconds_total": {
                (part,): getattr(times, part) for part in StepTimes._fields if not part.startswith("starved_")
            },
            "starved_steps_total": times.starved_steps,
            "starved_seconds_total": times.starved_seconds,
            "scheduled_tokens_total": stats.scheduled_tokens,
            "padded_tokens_total": stats.padded_tokens,
            "constrained_requests_total": stats.constrained_requests,
            "constraint_seconds_total": stats.constraint_seconds,
            "forced_tokens_total": stats.forced_tokens,
            "compilations_after_ready_total": stats.compilations_after_ready,
            "requests_refused_total": self.refused,
            "ignored_fields_total": self.ignored,
            "tenant_tokens_total": self.tenant_tokens,
            "tenant_device_seconds_total": self.tenant_device,
        }
        if self.info is not None:
            found["cache_config_info"] = {(str(self.info.page_size), str(self.info.num_pages - 1)): 1}
        found.update(self.experts.metrics())
        for source in self.sources:
            found.update(source())
        return found

    def collect(self) -> Iterator[Metric]:
        """As prometheus_client's registry wants it."""
        values = self.values()
        for spec in SPECS:
            for prefix in self._prefixes if spec.shared else (OWN_PREFIX,):
                yield self._family(spec, prefix, values.get(spec.name, {}))

    def _family(self, spec: MetricSpec, prefix: str, value: float | Values) -> Metric:
        labels, fixed = ("model_name", "engine", *spec.labels), (self.model, ENGINE)
        name = f"{prefix}:{spec.name}"
        if spec.kind == "histogram":
            buckets = self.histograms[spec.name]
            family = HistogramMetricFamily(name, spec.help, labels=labels)
            family.add_metric(fixed, buckets.cumulative(), buckets.total)
            return family
        kind: Any = CounterMetricFamily if spec.kind == "counter" else GaugeMetricFamily
        family = kind(name, spec.help, labels=labels)
        for more, number in (value if isinstance(value, Mapping) else {(): value}).items():
            family.add_metric((*fixed, *more), number)
        return family
