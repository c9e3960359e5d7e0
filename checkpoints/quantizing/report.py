"""What became of each matrix: a part of conversion_report.json, and a table for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table

from checkpoints.quantizing.skipping import FACTOR, SHARE
from jaxinfer.models.stored_matrix import MATRICES

WORST = 10  # rows of the terminal's table
_MEASURED = (
    "outputs dB",
    "plain dB",
    "alpha",
)  # columns that calibration fills; plain is without its scales and cut-offs


@dataclass(frozen=True)
class MatrixReport:
    """One matrix. Signal to noise in dB, None where nothing is lost or nothing was measured.

    Attributes:
        scheme: what it is in; "keep": the model's type.
        asked: the scheme of the command line or of the policy, where `skip` chose another.
        weight_snr: of the weights as they are stored, that is with scales of inputs in them.
        output_snr: of the matrix's outputs on the calibration samples; `plain_output_snr`: what they would have been
        without
            scales and cut-off.
        alpha: of the scales of its inputs; None: they have none, and `not_scaled` may say why there cannot be any.
        clipped: whether groups are cut off below their largest weight.
    """

    name: str
    scheme: str
    asked: str | None
    group: int | None
    bytes_before: int
    bytes_after: int
    weight_snr: float | None
    output_snr: float | None
    plain_output_snr: float | None
    alpha: float | None
    clipped: bool
    not_scaled: str | None


@dataclass(frozen=True)
class QuantizationReport:
    """calibration: what was read and how much of it was used. matrices: in the decoder's order."""

    scheme: str
    policy: str | None
    skip: str | None
    calibration: dict[str, Any] | None
    matrices: tuple[MatrixReport, ...]

    @property
    def skipped(self) -> tuple[MatrixReport, ...]:
        return tuple(row for row in self.matrices if row.asked is not None)

    def to_dict(self) -> dict[str, Any]:
        totals = {
            "bytes_before": sum(row.bytes_before for row in self.matrices),
            "bytes_after": sum(row.bytes_after for row in self.matrices),
            "skipped": [row.name for row in self.skipped],
        }
        return {**asdict(self), "totals": totals}


def tables(report: QuantizationReport) -> RenderableType:
    """Totals by kind of matrix, the matrices that lose most, and what was kept wider."""
    parts: list[RenderableType] = [_totals(report), "", _worst(report)]
    if report.skip is not None:
        names = ", ".join(f"{row.name} ({row.asked} -> {row.scheme})" for row in report.skipped)
        limits = f"{FACTOR:g} times the median error, at most {SHARE:.0%} of the matrices"
        parts += ["", f"kept wider ({limits}): {names or 'none'}"]
    if report.calibration is not None and (reasons := _reasons(report)):
        parts += ["", f"inputs not scaled: {reasons}"]
    if report.calibration is not None:
        used = "{samples} samples of {offered_samples}, {tokens} tokens".format(**report.calibration)
        parts += ["", f"calibrated on {used}; plain dB: of outputs without its scales and cut-offs"]
    return Group(*parts)


def _totals(report: QuantizationReport) -> Table:
    measured = report.calibration is not None
    large = sum(row.bytes_before for row in report.matrices) >= 10e9
    name, unit = ("GB", 1e9) if large else ("MB", 1e6)
    table = _table("kind", "scheme", "count", f"{name} was", f"{name} is", "weights dB", *_MEASURED[:2] * measured)
    for end in (*MATRICES, "all"):
        rows = [row for row in report.matrices if end == "all" or row.name.endswith(end)]
        if not rows:
            continue
        schemes: dict[str, int] = {}
        for row in rows:
            schemes[row.scheme] = schemes.get(row.scheme, 0) + 1
        table.add_row(
            end,
            ", ".join(f"{count} {scheme}" if len(schemes) > 1 else scheme for scheme, count in schemes.items()),
            str(len(rows)),
            f"{sum(row.bytes_before for row in rows) / unit:,.1f}",
            f"{sum(row.bytes_after for row in rows) / unit:,.1f}",
            _mean([row.weight_snr for row in rows]),
            *([_mean([row.output_snr for row in rows]), _mean([row.plain_output_snr for row in rows])] * measured),
        )
    return table


def _worst(report: QuantizationReport) -> Table:
    measured = report.calibration is not None
    table = _table("loses most", "scheme", "weights dB", *_MEASURED * measured)
    rounded = [row for row in report.matrices if row.weight_snr is not None]
    rounded.sort(key=lambda row: row.output_snr if row.output_snr is not None else row.weight_snr or 0.0)
    for row in rounded[:WORST]:
        scheme = row.scheme if row.group is None else f"{row.scheme}/{row.group}"
        calibrated = [_dB(row.output_snr), _dB(row.plain_output_snr), "-" if row.alpha is None else f"{row.alpha:g}"]
        table.add_row(row.name, scheme, _dB(row.weight_snr), *calibrated * measured)
    return table


def _table(first: str, second: str, *numbers: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column(first, no_wrap=True)
    table.add_column(second, min_width=11)  # as "fp8-dynamic" needs
    for heading in numbers:
        table.add_column(heading, justify="right")
    return table


def _reasons(report: QuantizationReport) -> str:
    counts: dict[str, int] = {}
    for row in report.matrices:
        if row.not_scaled is not None:
            what = f"{row.name.split('.', 2)[2]}: {row.not_scaled}"
            counts[what] = counts.get(what, 0) + 1
    return "; ".join(f"{what} ({count} matrices)" for what, count in counts.items())


def _mean(values: Sequence[float | None]) -> str:
    """The mean in dB, of what has any noise."""
    known = [value for value in values if value is not None]
    return _dB(sum(known) / len(known)) if known else "-"


def _dB(value: float | None) -> str:  # noqa: N802 - the unit's name
    return "-" if value is None else f"{value:.1f}"
