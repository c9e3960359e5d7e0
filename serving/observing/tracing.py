"""OpenTelemetry: one span for each request, made when it has ended, with its times. Off unless asked for.

The span's parent is what the client names in the W3C headers, over HTTP as headers and over gRPC as metadata.
"""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from serving.observing.record import RequestRecord

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

TRACE_HEADERS = ("traceparent", "tracestate")
_NANOSECONDS = 1_000_000_000
_CLOSE_SECONDS = 3.0
ENDPOINT = "it must be the gRPC address of a collector, such as http://localhost:4317"
_LOG = logging.getLogger("serving.observing")


class TracingError(Exception):
    """Traces cannot be sent: one sentence."""


def is_endpoint(text: str) -> bool:
    """Whether the exporter can send there; it takes any text and fails later.

    What OTLP's specification and gRPC know: http, https or grpc with a host and perhaps a port; HOST:PORT; unix:PATH. A
    path is of OTLP over HTTP, which is not spoken here.
    """
    if text.startswith("unix:"):
        return text != "unix:"
    parts = urlsplit(text if "://" in text else f"grpc://{text}")
    try:
        complete = bool(parts.hostname) and ("://" in text or parts.port is not None) and parts.port != 0
    except ValueError:  # the port
        return False
    odd = parts.path not in ("", "/") or parts.query or parts.fragment or any(letter.isspace() for letter in text)
    return parts.scheme in ("http", "https", "grpc") and complete and not odd


class Tracer:
    """A sink of finished requests. `close` sends what is left."""

    def __init__(self, provider: TracerProvider) -> None:
        from opentelemetry.trace import SpanKind
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = provider
        self._tracer = provider.get_tracer("jaxinfer")
        self._propagator = TraceContextTextMapPropagator()
        self._kind = SpanKind.SERVER

    @classmethod
    def sending_to(cls, endpoint: str) -> Tracer:
        """endpoint: an OTLP collector's gRPC address, as http://localhost:4317. Raises TracingError."""
        if not is_endpoint(endpoint):
            raise TracingError(f"otlp_endpoint is {endpoint!r}; {ENDPOINT}")
        try:
            from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ImportError as error:
            raise TracingError(f"traces need the extra otel: pip install 'jaxinfer[otel]' ({error})") from error
        # Without the SDK's own shutdown at exit, which would wait for the collector once more.
        provider = TracerProvider(resource=Resource.create({"service.name": "jaxinfer"}), shutdown_on_exit=False)
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
        return cls(provider)

    def __call__(self, record: RequestRecord) -> None:
        phases = record.phases()
        at = _clock(record)
        span = self._tracer.start_span(
            f"{record.origin.endpoint or 'generate'}",
            context=self._propagator.extract(dict(record.origin.trace)),
            kind=self._kind,
            attributes=_attributes(record),
            start_time=at(0.0),
        )
        offset = phases["check"]
        span.add_event("queue", timestamp=at(offset))
        if record.started:
            offset += phases["queue"]
            chunks = sum(account.chunks for account in record.accounts)
            span.add_event("prefill", {"chunks": chunks, "cached_tokens": record.cached_tokens}, at(offset))
        if record.first_token:
            offset += phases["prefill"]
            span.add_event("decode", timestamp=at(offset))
        if record.failed:
            from opentelemetry.trace import Status, StatusCode

            span.set_status(Status(StatusCode.ERROR))
        span.end(at(sum(phases.values())))

    def close(self) -> None:
        """A collector that does not answer loses what is left: the server's end does not wait for it."""
        closing = threading.Thread(target=self._provider.shutdown, name="traces-end", daemon=True)
        closing.start()
        closing.join(_CLOSE_SECONDS)
        if closing.is_alive():
            _LOG.warning("the last traces are lost: their collector did not take them within %g s", _CLOSE_SECONDS)


def _clock(record: RequestRecord) -> Any:
    """Seconds since the request came -> Unix time in nanoseconds."""
    begin = round(record.time * _NANOSECONDS)
    return lambda seconds: begin + round(seconds * _NANOSECONDS)


def _attributes(record: RequestRecord) -> dict[str, Any]:
    """Names of OpenTelemetry's conventions for generative AI where there are any."""
    return {
        "gen_ai.request.model": record.model,
        "gen_ai.request.max_tokens": record.max_tokens,
        "gen_ai.request.choice.count": record.n,
        "gen_ai.response.id": record.request_id,
        "gen_ai.response.finish_reasons": [record.reasons.get(i, "abort") for i in range(record.n)],
        "gen_ai.usage.input_tokens": record.prompt_tokens,
        "gen_ai.usage.output_tokens": record.output_tokens,
        "jaxinfer.door": record.origin.server,
        "jaxinfer.tenant": record.origin.tenant,
        "jaxinfer.cached_tokens": record.cached_tokens,
        "jaxinfer.preemptions": record.preemptions,
        "jaxinfer.device_seconds": record.device_seconds,
    }
