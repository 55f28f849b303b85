#!/usr/bin/env bash
# Guess: sacrebleu's paired tests give p = 1 for two systems with the same outputs, and the p-value of the exact
#   randomization test where few sentences differ: k sentences, all worse, can be swapped in 2^k ways, so p >= 2^(1-k).
# Versions: sacrebleu 2.6.0, numpy 2.4.6.
# File: 200 made-up references and a system; the other system is the same with one word more in k of the sentences. The exact
#   test scores all 2^k exchanges of the sentences that differ with corpus_score.
# Came: p = 0.0001 for equal systems by randomization ("ar"), the least that its 10,000 trials can give, and 0.001 by the bootstrap
#   ("bs", 1,000 samples). One sentence of 200: exact 1, "ar" 0.0001; two: 0.5 and 0.0001; four: 0.125 and 0.0001. An exchange
#   that gives the observed difference again is not counted, as only larger ones are (>, not >=), and here most are such ties.
# Known: multeval, which "ar" follows, had an issue on equal systems (jhclark/multeval#5); of sacrebleu nothing was found.
# Matters: a quantized model gives the same text as its original for most inputs, and just there the test is wrong: the nearer
#   two models are, the surer it is that they differ. The command line prints these as significant (p < 0.05, an asterisk).
# Helps: to count the sentences that differ first; with fewer than six no test at 0.05 can find anything.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv venv
venv/bin/pip install -q sacrebleu==2.6.0 numpy==2.4.6 2>/dev/null
venv/bin/python - 2>/dev/null <<'PY'
import itertools, random

from sacrebleu.metrics import BLEU, CHRF
from sacrebleu.significance import PairedTest

random.seed(0)
references = [[" ".join(random.choices("abcdefgh", k=12)) for _ in range(200)]]
base = [" ".join(word if random.random() < 0.8 else "x" for word in line.split()) for line in references[0]]

def reported(other, kind):
    metrics = {"BLEU": BLEU(references=references), "chrF": CHRF(references=references)}
    test = PairedTest([("base", base), ("other", other)], metrics, references=references, test_type=kind)
    return {name: rows[1].p_value for name, rows in test()[1].items() if name != "System"}

def exact(other, metric):
    """Two-sided p-value over all exchanges of the sentences that differ."""
    where = [n for n, line in enumerate(base) if line != other[n]]
    def difference(swapped):
        one, two = list(base), list(other)
        for n in swapped:
            one[n], two[n] = two[n], one[n]
        return round(abs(metric.corpus_score(one, references).score - metric.corpus_score(two, references).score), 9)
    observed = difference(())
    ways = [difference(s) for r in range(len(where) + 1) for s in itertools.combinations(where, r)]
    return sum(way >= observed for way in ways) / len(ways)

for k in (0, 1, 2, 4):
    other = [line + " z" if n < k else line for n, line in enumerate(base)]
    true = {"BLEU": exact(other, BLEU()), "chrF": exact(other, CHRF())}
    ar, bs = reported(other, "ar"), reported(other, "bs")
    for (name, p), randomized, bootstrapped in zip(true.items(), ar.values(), bs.values()):
        print(f"{k} of 200 sentences differ, {name}: exact p {p:.4g}, ar {randomized:.2g}, bs {bootstrapped:.2g}")
        assert p == (1 if k == 0 else 2.0 ** (1 - k)) and randomized < 0.0003, (k, name, p, randomized)
        assert k or bootstrapped < 0.001, bootstrapped
PY
# Output seen:
# 0 of 200 sentences differ, BLEU: exact p 1, ar 0.0001, bs 0.001
# 0 of 200 sentences differ, chrF: exact p 1, ar 0.0001, bs 0.001
# 1 of 200 sentences differ, BLEU: exact p 1, ar 0.0001, bs 0.11
# 1 of 200 sentences differ, chrF: exact p 1, ar 0.0001, bs 0.12
# 2 of 200 sentences differ, BLEU: exact p 0.5, ar 0.0001, bs 0.097
# 2 of 200 sentences differ, chrF: exact p 0.5, ar 0.0001, bs 0.094
# 4 of 200 sentences differ, BLEU: exact p 0.125, ar 0.0001, bs 0.035
# 4 of 200 sentences differ, chrF: exact p 0.125, ar 0.0001, bs 0.035
