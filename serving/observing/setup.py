"""Puts together what observes a server, as its operator wants it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from serving.observing.ledger import MAX_BYTES, Ledger, LedgerError
from serving.observing.logs import log_access
from serving.observing.metrics import Metrics, Values
from serving.observing.recorder import Recorder
from serving.observing.tracing import Tracer


@dataclass(frozen=True)
class ObservingConfig:
    """metrics_prefix: see serving.observing.metrics. log_content: prompts and outputs are in the access log.
    otlp_endpoint: where traces go; None makes none. audit: a file for the audit log, kept as the ledger is."""

    metrics_prefix: str = "jaxinfer"
    log_content: bool = False
    ledger: Path | None = None
    ledger_max_bytes: int = MAX_BYTES
    otlp_endpoint: str | None = None
    audit: Path | None = None


class Observing:
    """Raises LedgerError or TracingError. `close` loses nothing that can be kept."""

    def __init__(self, config: ObservingConfig) -> None:
        self.recorder = Recorder(Metrics(config.metrics_prefix), log_content=config.log_content)
        self.tracer = None if config.otlp_endpoint is None else Tracer.sending_to(config.otlp_endpoint)
        _check_apart(config.ledger, config.audit)
        most = config.ledger_max_bytes
        self.ledger = None if config.ledger is None else Ledger(config.ledger, most, mark="request_id")
        try:
            self.audit = None if config.audit is None else Ledger(config.audit, most, "audit log", mark="event")
        except LedgerError:
            if self.ledger is not None:
                self.ledger.close()
            raise
        if self.ledger is not None:
            self.recorder.sinks.append(self.ledger)
            self.recorder.metrics.sources.append(_lines("ledger_lines_total", self.ledger))
        if self.audit is not None:
            self.recorder.metrics.sources.append(_lines("audit_lines_total", self.audit))
        if self.tracer is not None:
            self.recorder.sinks.append(self.tracer)
        self.recorder.sinks.append(log_access)

    async def close(self) -> None:
        for part in (self.ledger, self.audit, self.tracer):
            if part is not None:
                await asyncio.to_thread(part.close)


def _check_apart(ledger: Path | None, audit: Path | None) -> None:
    if ledger is not None and audit is not None and ledger.resolve() == audit.resolve():
        raise LedgerError(f"the usage ledger and the audit log are both {ledger}; they need a file each")


def _lines(name: str, ledger: Ledger) -> Callable[[], dict[str, Values]]:
    return lambda: {name: {("written",): ledger.written, ("lost",): ledger.lost}}
