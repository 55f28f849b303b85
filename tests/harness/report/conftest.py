"""A small sweep that never ran: records with figures made up by a formula."""

import hashlib
from types import SimpleNamespace

import pytest

from harness.records.record import CellIdentity, Failure, LayerReport, Metric, Record

SCHEMES = {  # name: (bits, group_size, bits_per_weight, RTN perplexity, GPTQ perplexity)
    "w8": (8, None, 8.09, 5.022, 5.019),
    "w4": (4, None, 4.08, 5.61, 5.18),
    "w4g128": (4, 128, 4.16, 5.33, 5.11),
    "w3": (3, None, 3.07, 9.42, 5.93),
    "w2": (2, None, 2.07, 48213.4, 31.2),
}
GPTQ = {
    "name": "gptq",
    "damping": 0.01,
    "block_size": 128,
    "act_order": False,
    "static_groups": False,
    "group_grid": "current",
    "true_sequential": False,
}
LABELS = {"none": "full prec.", "rtn": "RTN", "gptq": "GPTQ"}
CALIB = {"name": "embedded", "protocol": "embedded_calib", "sequences": 64, "seed": 0}


def make_record(
    method: str = "rtn", scheme: str = "w4", suite: str = "perplexity", **changes
) -> Record:
    """One record; `changes` are fields of Record, or model, seed, config, label, options."""
    model = changes.pop("model", "embedded")
    seed = changes.pop("seed", 0)
    bits, group, bits_per_weight, *_ = SCHEMES.get(scheme, (16, None, None))
    label = changes.pop("label", LABELS.get(method))
    options = changes.pop("options", None)
    config = {
        "model": {"name": model, "dtype": "float32"},
        "method": dict(GPTQ) if method == "gptq" else {"name": method},
        "scheme": {"bits": bits, "group_size": group, "symmetric": False},
        "calib": dict(CALIB) if method == "gptq" else None,
        "seed": seed,
    }
    for path, value in changes.pop("config", {}).items():
        part, _, name = path.partition(".")
        config[part][name] = value
    cell_key = hashlib.sha256(repr(config).encode()).hexdigest()
    fields = {
        "key": hashlib.sha256(f"{cell_key}{suite}".encode()).hexdigest(),
        "cell_key": cell_key,
        "suite": suite,
        "status": "failed" if "error" in changes else "ok",
        "cell": CellIdentity(
            model=model,
            method=method,
            scheme=scheme,
            calibration="embedded" if method == "gptq" else None,
            seed=seed,
            bits_per_weight=bits_per_weight,
            label=label,
            options=options,
        ),
        "config": config,
        "environment": {
            "machine": {"cpu": "Made-up CPU", "cores": 2},
            "python": "3.11.7",
            "packages": {"torch": "2.13.0", "transformers": "5.23.0"},
            "commit": {"id": "0123456789abcdef", "dirty": False},
        },
        "started_at": "2026-11-21T10:00:00+00:00",
        "seconds": 2.5,
    }
    return Record(**(fields | changes))


def serving_metrics(
    weight_bytes: float, weights: float, milliseconds: float, positions: str
) -> list[Metric]:
    """Of a latency suite: 1000 bytes of cache a position, 0.5 MB of workspace."""
    lengths = "prompt100_decode28"
    found = {
        ("weight_bytes", "model", "bytes"): weight_bytes,
        ("weight_count", "model", "weights"): weights,
        ("bytes_per_token", lengths, "bytes"): 1.0,
        ("workspace_bytes", lengths, "bytes"): 5e5,
        ("cache_bytes_per_position", "all positions", "bytes"): 1000.0,
        ("cache_state_bytes", "model", "bytes"): 0.0,
        ("decode_ms", lengths, "ms"): milliseconds,
    }
    return [
        Metric(
            name=name, task=task, value=value, unit=unit, n=1, n_unit="models",
            notes={"positions": positions},
        )
        for (name, task, unit), value in found.items()
    ]  # fmt: skip


def perplexity(value: float, stderr: float | None = None, **changes) -> Metric:
    fields = {
        "name": "perplexity",
        "task": "embedded_eval",
        "value": value,
        "unit": "ppl",
        "n": 20480,
        "n_unit": "tokens",
        "stderr": value * 0.011 if stderr is None else stderr,
        "notes": {"token_hash": "ab12"},
    }
    return Metric(**(fields | changes))


def accuracy(task: str, value: float, n: int = 500) -> Metric:
    return Metric(
        name="accuracy",
        task=task,
        value=value,
        unit="fraction",
        n=n,
        n_unit="documents",
        stderr=(value * (1 - value) / n) ** 0.5,
        higher_is_better=True,
    )


def latencies(quantized: bool) -> list[Metric]:
    notes = {
        "kernel": "reference" if quantized else "torch",
        "threads": "2",
        "dtype": "float32",
        "decode mode": "static cache, eager (no CUDA graph on cpu)",
    }
    decode = 14.2 if quantized else 3.1
    task = "prompt64_decode16"
    speed = {"task": task, "unit": "ms", "n": 48, "n_unit": "tokens", "notes": notes}
    spread = {"p10": decode * 0.96, "p50": decode, "p90": decode * 1.2}
    metrics = [
        Metric(name="decode_ms", value=decode, quantiles=spread, **speed),
        Metric(name="prefill_ms", value=3 * decode, quantiles=spread, **speed),
        Metric(
            name="weight_bytes",
            task="model",
            value=9.4e6 if quantized else 21.3e6,
            unit="bytes",
            n=1,
            n_unit="models",
        ),
        Metric(
            name="peak_memory_bytes",
            task=task,
            value=612e6,
            unit="bytes",
            n=1,
            n_unit="models",
            notes={"measured": "resident memory of the process"},
        ),
        Metric(
            name="roofline_share",
            task=task,
            value=0.031 if quantized else 0.42,
            unit="fraction",
            n=48,
            n_unit="tokens",
            higher_is_better=True,
        ),
        Metric(
            name="read_bandwidth",
            task="device",
            value=41.0 if quantized else 42.4,
            unit="GB/s",
            n=1,
            n_unit="devices",
        ),
        Metric(
            name="decode_tokens_per_s",
            task=task,
            value=1e3 / decode,
            unit="tokens/s",
            n=48,
            n_unit="tokens",
            higher_is_better=True,
        ),
    ]
    if quantized:
        metrics.append(
            Metric(
                name="decode_speedup",
                task=task,
                value=0.218,
                unit="ratio",
                n=3,
                n_unit="repeats",
                higher_is_better=True,
                quantiles={"p10": 0.204, "p50": 0.218, "p90": 0.227},
            )
        )
    return metrics


def divergences(parity: float = 1.4e-13) -> list[Metric]:
    broken = parity > 1e-9
    notes = {
        "windows": "8",
        "reference": "1024 of 49152 logits a position, 3.1% of the bytes of float32",
        "of": "dequantized (reference kernel) || cpu kernel",
        "bound": "1e-09 nat for float32",
        "parity": "BROKEN: mean above 1e-09 nat" if broken else "holds",
    }
    nat = {"task": "embedded_eval", "unit": "nat", "n": 1323, "n_unit": "tokens", "notes": notes}
    rate = nat | {"unit": "fraction"}
    spread = {"p10": 1e-7, "p50": 2.1e-5, "p90": 0.0035, "p99": 0.028}
    return [
        Metric(name="kl_divergence", value=0.00159, stderr=0.00026, quantiles=spread, **nat),
        Metric(name="kl_divergence_p999", value=0.113, **nat),
        Metric(name="kl_divergence_max", value=0.9, **nat),
        Metric(name="kl_noise", value=5e-4, stderr=2e-5, **nat),
        Metric(name="kl_noise_max", value=0.02, **nat),
        Metric(name="noise_flip_rate", value=0.003, stderr=0.001, **rate),
        Metric(name="kl_sampling", value=3.1e-6, **nat),
        Metric(name="kl_certain", value=0.00151, **nat),
        Metric(name="kl_confidence_0_25", value=0.004, stderr=0.0003, **nat | {"n": 900}),
        Metric(name="kl_confidence_90_100", value=0.0001, stderr=3e-5, **nat | {"n": 423}),
        Metric(name="flips_confidence_0_25", value=0.09, stderr=0.008, **rate | {"n": 900}),
        Metric(name="flips_confidence_90_100", value=0.0, **rate | {"n": 423}),
        Metric(name="top1_flip_rate", value=0.062, stderr=0.0057, **rate),
        Metric(name="kernel_kl", value=parity, stderr=6.7e-15, **nat),
        Metric(name="kernel_kl_max", value=28 * parity, **nat),
        Metric(name="kernel_top1_agreement", value=1.0, stderr=0.0, **rate),
        Metric(name="kl_floor", value=0.0, **nat),
    ]


def products(scheme: str) -> list[Metric]:
    """Two shapes at two batches, as harness.suites.kernels names them."""
    found = []
    for shape, layers, full in (("4096x11008", "64", 10.1), ("4096x4096", "128", 3.7)):
        for batch, slower in ((1, 1.0), (16, 2.5)):
            notes = {"layers": layers, "kernel": "cpu", "threads": "2", "device": "cpu"}
            task = {"task": f"{shape}_b{batch}", "n": 90, "n_unit": "repeats", "notes": notes}
            packed = full / 12.8 * slower
            found.append(Metric(name="full_ms", value=full * slower, unit="ms", **task))
            found.append(Metric(name="full_share", value=0.4, unit="fraction", **task))
            if scheme != "w16":
                spread = {"p10": packed * 0.9, "p50": packed, "p90": packed * 1.3}
                times = Metric(name="packed_ms", value=packed, unit="ms", quantiles=spread, **task)
                found += [
                    times,
                    Metric(name="packed_gb_per_s", value=30.0, unit="GB/s", **task),
                    Metric(name="packed_share", value=0.72, unit="fraction", **task),
                    Metric(name="packed_speedup", value=12.8, unit="ratio", **task),
                ]
    return found


def cell_records(method: str, scheme: str, value: float, **changes) -> list[Record]:
    """All records of one cell: quantization, perplexity, zero-shot, latency."""
    last_word = max(0.02, min(0.95, 1.0 - (value - 5) / 12))
    records = [
        make_record(method, scheme, metrics=[perplexity(value)], **changes),
        make_record(
            method,
            scheme,
            "zeroshot",
            metrics=[
                accuracy("embedded_last_word", last_word),
                accuracy("embedded_choice", max(0.25, last_word - 0.03), 400),
            ],
            **changes,
        ),
        make_record(method, scheme, "latency", metrics=latencies(method != "none"), **changes),
    ]
    if method != "none":
        layers = [
            LayerReport(
                name=f"model.decoder.layers.{block}.fc1",
                block=block,
                method=method,
                scheme=scheme,
                outputs=1024,
                inputs=256,
                bits_per_weight=4.08,
                loss=0.5 + block if method == "gptq" else None,
                weight_error=0.08,
                damping=0.01 if method == "gptq" else None,
                dead_columns=0,
                tokens=8192,
                seconds=0.2,
            )
            for block in range(2)
        ]
        seconds = 4.25 if method == "gptq" else 0.31
        total = Metric(name="seconds", task="total", value=seconds, unit="s", n=1, n_unit="runs")
        records.append(
            make_record(method, scheme, "quantization", layers=layers, metrics=[total], **changes)
        )
    return records


@pytest.fixture
def made_up() -> SimpleNamespace:
    """The makers of records and metrics, for tests that need one of their own."""
    return SimpleNamespace(
        record=make_record,
        perplexity=perplexity,
        accuracy=accuracy,
        cell=cell_records,
        divergences=divergences,
        products=products,
        latencies=latencies,
    )


@pytest.fixture
def sweep() -> list[Record]:
    """Full precision, RTN and GPTQ at five schemes; one cell failed, one suite failed."""
    records = cell_records("none", "w16", 5.015)
    for scheme, (*_, rtn, gptq) in SCHEMES.items():
        records += cell_records("rtn", scheme, rtn)
        if scheme != "w2":
            records += cell_records("gptq", scheme, gptq)
    singular = Failure(
        stage="quantization",
        type="SingularHessianError",
        message="model.decoder.layers.3.fc2: the Hessian is singular (rank 12 of 1024); "
        "use more calibration text or method.damping=0.1.",
    )
    records.append(make_record("gptq", "w2", "quantization", error=singular))
    gone = Failure(stage="zeroshot", type="ConfigError", message="no task named lambda_x.")
    return [
        make_record("rtn", "w3", "zeroshot", error=gone)
        if (record.cell.method, record.cell.scheme, record.suite) == ("rtn", "w3", "zeroshot")
        else record
        for record in records
    ]
