"""AutoRound's configuration: the tensors it names, and what it refuses."""

import pytest

from quant.checkpoint.choose import parse
from quant.errors import ArtifactError

SAID = {
    "quant_method": "auto-round",
    "autoround_version": "0.15.1",
    "bits": 4,
    "group_size": 64,
    "sym": False,
    "data_type": "int",
    "packing_format": "auto_round:auto_awq",
}


@pytest.mark.parametrize(
    ("packing", "title"),
    [
        ("auto_round:auto_awq", "AWQ gemm"),
        ("auto_round:auto_gptq", "GPTQ v1"),
        ("auto_round:gptqmodel", "GPTQ v2"),
        ("auto_round", "GPTQ v2"),
    ],
)
def test_the_packing_says_how_tensors_are_read(packing, title):
    found = parse({**SAID, "packing_format": packing}, "here")
    assert found.name == title
    assert (found.bits, found.group_size, found.symmetric) == (4, 64, False)
    assert found.producer == "auto-round 0.15.1"


def test_layers_that_are_not_quantized_may_be_named():
    found = parse({**SAID, "extra_config": {"lm_head": {"bits": 16}, "x": {"bits": 4}}}, "here")
    assert found.bits == 4


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"packing_format": "mlx"}, "packing_format='mlx' cannot be read"),
        ({"data_type": "mx_fp"}, "data_type='mx_fp' cannot be read"),
        (
            {"extra_config": {"model.layers.0.mlp.down_proj": {"bits": 8}}},
            "gives model.layers.0.mlp.down_proj bits=8, where other layers have 4",
        ),
        ({"bits": 3}, "bits=3: AWQ is read with 4 bits only"),
    ],
)
def test_what_cannot_be_read_is_named(change, sentence):
    with pytest.raises(ArtifactError, match="here") as caught:
        parse({**SAID, **change}, "here")
    assert sentence in str(caught.value)
