"""Predictions of the cost model for large models on one H200; measures nothing."""

from __future__ import annotations

from benchmarks import cost_model

TOKENS, WINDOW, BITS, BATCH_TOKENS = 128 * 2048, 2048, 4.25, 8192
MODELS = (
    cost_model.OPT_13B,
    cost_model.OPT_175B,
    cost_model.BLOOM_176B,
    cost_model.LLAMA_405B,
)
FLOAT32 = 40e12  # operations a second
# Rates of an NVIDIA H200 that predictions assume. Measured there with torch: bfloat16 products
# 769e12 to 798e12 operations a second (8192^3), copies 4.3e12 bytes a second read and written.
H200 = {
    "product": 600e12,
    "attention": 300e12,
    "element": 1e12,
    "factor": FLOAT32,
    "lookback": FLOAT32,
    "weight": 5e10,
    "panel": 2e3,
    "packed": 3e8,
    "layer": 1e3,
    "disk": 5e9,
    "attach": 1e10,
    "stored": 2e9,
}
H200_TEXT = {
    "product": "600 TFLOP/s: three quarters of the 769 to 798 TFLOP/s measured for a bfloat16 "
    "product of 8192^3",
    "attention": "300 TFLOP/s: assumed, half of that",
    "element": "10^12 a second: 4 bytes each at the 4.3 TB/s measured for copies",
    "factor, lookback": "40 TFLOP/s of float32: assumed, 60 % of the data sheet's 67",
    "weight": "5 10^10 a second: assumed, 80 bytes moved for each",
    "panel": "0.5 ms each: assumed, launches of some 50 kernels",
    "packed, layer": "3 10^8 weights and 10^3 layers a second: one thread of the CPU measured "
    "above, because packing is done on the host, while the next block is made",
    "disk, attach, stored": "5 GB/s from an NVMe disk, 10 GB/s to the GPU, 2 GB/s to the disk: "
    "assumed",
}


def predictions() -> str:
    """The table of predictions with the rates that it assumes."""
    rows = [
        "| model | blocks | GB (bfloat16) | activations GB | "
        + " | ".join(cost_model.STAGES)
        + " | s a block | minutes | minutes, half the float32 |",
        "|---|" + "---:|" * (len(cost_model.STAGES) + 6),
    ]
    slower = {**H200, "factor": FLOAT32 / 2, "lookback": FLOAT32 / 2}
    for model in MODELS:
        work = cost_model.work(model.block, TOKENS, WINDOW, 2, BITS, BATCH_TOKENS, "cuda")
        stages = cost_model.seconds(work, H200)
        slow = cost_model.seconds(work, slower)
        minutes = [cost_model.whole(spent, model.blocks) / 60 for spent in (stages, slow)]
        size = 2 * (model.block.weights * model.blocks + model.outside) / 1e9
        held = cost_model.activation_bytes(model.block, TOKENS, 2) / 1e9
        cells = " | ".join(f"{stages[stage]:.2f}" for stage in cost_model.STAGES)
        rows.append(
            f"| {model.name} | {model.blocks} | {size:.0f} | {held:.1f} | {cells} | "
            f"{cost_model.together(stages):.1f} | {minutes[0]:.1f} | {minutes[1]:.1f} |"
        )
    return "\n".join(
        [
            "**Predictions, not measurements**: one H200, 128 windows of 2048 tokens, 4 bits in "
            "groups of 128, seconds a block by stage. A block takes the longer of write and all "
            "else. Rates:",
            "",
            *(f"- {terms}: {text}" for terms, text in H200_TEXT.items()),
            "",
            *rows,
        ]
    )
