#!/usr/bin/env bash
# Guess: the pattern of N:M sparsity, sparsity: 2:4, is a string for Hydra in a file and on the command line alike (one
#   blank after a colon separates key and value).
# Versions: hydra-core 1.3.8, omegaconf 2.3.1, PyYAML 6.0.3, wandb 0.31.0.
# Came: on the command line the string "2:4", in a file the number 124: YAML 1.1 reads digits with colons in base 60. 4:8
#   is 248, 1:4 is 64, so each pattern is a number of its own and nothing fails; a name of bits like 4_8 (weights and
#   activations) is 48 on both ways. A file of a wandb sweep lists 2:4 and 4:8 as 124 and 248.
# Matters: one setting has two values, by the way it came: a sweep by files and one by overrides do not share keys or
#   caches, and code that splits the string fails, or compares 124 with "2:4", finds no pattern and prunes nothing.
# Helps: to quote it in files ("2:4"). To declare the field as str does not: a file then gives the string "124".
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv venv
venv/bin/pip install -q hydra-core==1.3.8 omegaconf==2.3.1 PyYAML==6.0.3 wandb==0.31.0 2>/dev/null
printf 'sparsity: 2:4\nwider: 4:8\nquoted: "2:4"\nwidths: 4_8\n' > config.yaml
cat > app.py <<'PY'
import hydra


@hydra.main(version_base=None, config_path=".", config_name="config")
def main(config):
    print(repr(config.sparsity), repr(config.wider), repr(config.quoted), repr(config.widths))


main()
PY
export WANDB_MODE=offline
quiet="hydra.run.dir=. hydra.output_subdir=null hydra/job_logging=disabled"
{ echo "file: $(venv/bin/python app.py $quiet)"
  echo "command line: $(venv/bin/python app.py sparsity=2:4 wider=4:8 widths=4_8 $quiet)"
  echo "multirun: $(venv/bin/python app.py -m sparsity=2:4,4:8 hydra.sweep.dir=. hydra.output_subdir=null hydra/job_logging=disabled hydra/hydra_logging=disabled | cut -d' ' -f1 | xargs)"
  printf 'program: app.py\nmethod: grid\nparameters:\n  sparsity:\n    values: [2:4, 4:8]\n' > sweep.yaml
  echo "sweep file: $(venv/bin/python - <<'PY'
from wandb.sdk.launch.sweeps.utils import load_sweep_config
print(load_sweep_config("sweep.yaml")["parameters"]["sparsity"]["values"])
PY
)"
  venv/bin/python - <<'PY'
from dataclasses import dataclass

from omegaconf import OmegaConf


@dataclass
class Setting:
    sparsity: str = "none"


print("declared str, file:", repr(OmegaConf.merge(Setting, OmegaConf.create("sparsity: 2:4")).sparsity))
PY
} | tee found
grep -qx "file: 124 248 '2:4' 48" found
grep -qx "command line: '2:4' '4:8' '2:4' 48" found
grep -qx "multirun: 2:4 4:8" found
grep -qx "sweep file: \[124, 248\]" found
grep -qx "declared str, file: '124'" found
# Output seen:
# file: 124 248 '2:4' 48
# command line: '2:4' '4:8' '2:4' 48
# multirun: 2:4 4:8
# sweep file: [124, 248]
# declared str, file: '124'
