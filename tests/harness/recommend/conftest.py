"""Results folders with hand-made cells: sizes, times, and answers of single documents."""

from collections.abc import Sequence

from harness.records.record import Items, Metric, Record
from tests.harness.paired.conftest import answers, figure, losses, record
from tests.harness.report.conftest import serving_metrics


def divergence(value: float, stderr: float, items: Items | None = None) -> Metric:
    return Metric(
        name="kl_divergence", task="embedded", value=value, unit="nat", n=2000, n_unit="tokens",
        stderr=stderr, items=items,
    )  # fmt: skip


def cell(
    method: str,
    scheme: str,
    megabytes: float = 0,
    ms: float = 1.0,
    kl: float | None = None,
    shift: float | None = None,
    lost: Sequence[int] | None = None,
    **more: object,
) -> list[Record]:
    """The records of a cell: only those of suites for which something is given."""
    metrics: dict[str, list[Metric]] = {}
    if megabytes:
        metrics["latency"] = serving_metrics(1e6 * megabytes, 16e6, ms, "8192")
    if kl is not None:
        metrics["divergence"] = [divergence(kl, kl / 10)]
    if shift is not None:
        metrics["perplexity"] = [figure("perplexity", "embedded", losses(shift))]
    if lost is not None:
        metrics["zeroshot"] = [figure("accuracy", "choice", answers(lost))]
    return [
        record(method, scheme, found, suite, **more)  # type: ignore[arg-type]
        for suite, found in metrics.items()
    ]


def sweep() -> list[Record]:
    """GPTQ w4 is not separated from full precision, RTN w4 and w3 are worse; w3 is far."""
    return [
        *cell("none", "w16", 64, 3.0, shift=0.0, lost=()),
        *cell("gptq", "w4", 16, 2.0, kl=0.001, shift=0.0005, lost=(3, 95)),
        *cell("rtn", "w4", 16, 1.5, kl=0.01, shift=0.05, lost=range(8)),
        *cell("gptq", "w3", 12, 2.5, kl=0.05, shift=0.1, lost=range(12)),
    ]
