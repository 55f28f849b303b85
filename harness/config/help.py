"""Groups, options and keys of conf/ for help and errors, from its YAML files without Hydra."""

from __future__ import annotations

import re
import shutil
import textwrap
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from harness.errors import ConfigError

_DEFAULT = re.compile(r"^  - (\w+): *(\S*)? *# (.*)$")
_KEY = re.compile(r"^( *)(\w+):(?: +([^\s#].*?))?(?: +# (.*))?$")

RUN_HELP = """\
Quantize a model, measure it, print the table. Finished work is never repeated: after an
interruption, run the same command again to continue.

examples:
  bitsweep run                                        GPTQ at 4 bits on the embedded model
  bitsweep run experiment=quickstart                  a whole sweep in one file
  bitsweep run -m method=rtn,gptq scheme=w4,w3,w2     every combination
  bitsweep run suite=[perplexity,latency] seed=1      lists in brackets
  bitsweep run model=local model.path=/models/mine    a model folder of yours
  bitsweep run scheme=w4 scheme.group_size=64         one value of an option

"""

PLAN_HELP = """\
Show what `bitsweep run` with the same arguments would do: its cells, what is done already, memory,
what is to be downloaded, and what cannot be had. Nothing is run or downloaded.

"""

FETCH_HELP = """\
Bring and verify all that `bitsweep run` with the same arguments needs (models, texts, data of
tasks) and write RESULTS/lock.json, which runs with these results then read, offline. Interrupted,
run the same command again: what came is kept. The status is 1 if something could not be brought.

examples:
  bitsweep fetch experiment=paper/table03_opt_wikitext2 model=opt-125m
  bitsweep fetch --update experiment=paper/table03_opt_wikitext2     what the hub has now

"""

GROUPS_HELP = """\
groups, each as GROUP=OPTION (bitsweep run --help GROUP says what each option is):
"""

LAUNCHERS = "hydra/launcher"
LAUNCHERS_HELP = """\
  hydra/launcher=NAME  runs the cells by several workers (bitsweep run --help launcher):
"""

RUN_KEYS = """\
keys often set:
  seed=0                      seed of the run; calibration text follows it
  seeds=3                     as many seeds, from seed on, of what sees calibration text
  name=run                    names the report: results/reports/<name>
  paths.results=results       where records, artifacts and reports go
  paths.data=null             root of relative text and task files
  runtime.threads=2           threads of PyTorch
  runtime.activations=disk    where activations are kept between blocks: auto, cuda, cpu or disk
  runtime.stream=always       perplexity block by block: auto, always or never
  calib.sequences=128         calibration windows
  suite.zeroshot.limit=100    documents per task
  tracker=wandb               log every cell to Weights & Biases, offline

run, plan and fetch take the same arguments.
"""


@dataclass(frozen=True)
class Group:
    """A configuration group; `default` is empty if nothing is chosen by default."""

    name: str
    about: str
    default: str
    options: tuple[str, ...]


@lru_cache(maxsize=1)
def conf_dir() -> Path:
    """The folder conf/: inside the package when installed, beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "conf", package.parent / "conf"):
        if (folder / "config.yaml").is_file():
            return folder
    raise ConfigError(
        f"the folder conf/ is missing beside {package}: the installation is incomplete, "
        "install bitsweep again."
    )


def user_folders(extra: Path | None) -> list[Path]:
    """The user's folder in a list, empty if none was given; ConfigError if it is not a folder."""
    if extra is None:
        return []
    if not extra.is_dir():
        raise ConfigError(f"--config-dir {extra} is not a folder: give one laid out like conf/.")
    return [extra]


def groups(extra: Path | None = None) -> list[Group]:
    """The groups in the order of conf/config.yaml, each with its options."""
    lines = (conf_dir() / "config.yaml").read_text(encoding="utf-8").splitlines()
    found = []
    for number, line in enumerate(lines):
        match = _DEFAULT.match(line)
        if match is None:
            continue
        name, default, about = match.groups()
        if not default:
            default = "[" + ",".join(_items(lines[number + 1 :])) + "]"
        default = "" if default == "null" else default
        found.append(Group(name, about, default, options(name, extra)))
    return list(reversed(found))  # the file lists the most important groups last


def options(group: str, extra: Path | None = None) -> tuple[str, ...]:
    """Names of the options of a group; a file in a subfolder is FOLDER/NAME."""
    names: set[str] = set()
    for root in (conf_dir(), extra):
        if root is not None and (root / group).is_dir():
            files = (root / group).rglob("*.yaml")
            names |= {file.relative_to(root / group).with_suffix("").as_posix() for file in files}
    return tuple(sorted(names, key=_natural))


def options_with(group: str, key: str, extra: Path | None = None) -> list[str]:
    """The options of a group whose files set a key, as overrides: ["method=gptq"]."""
    found = []
    for option in options(group, extra):
        files = (
            root / group / f"{option}.yaml" for root in (conf_dir(), extra) if root is not None
        )
        texts = (file.read_text(encoding="utf-8") for file in files if file.is_file())
        if any(re.search(rf"^{re.escape(key)}:", text, re.MULTILINE) for text in texts):
            found.append(f"{group}={option}")
    return found


def run_help(extra: Path | None = None, verb: str = "run") -> str:
    """The text of `bitsweep VERB --help` on groups and keys, which precedes the options.

    verb   run, plan or fetch, which take the same arguments.
    extra  a user's folder laid out like conf/.
    """
    width = min(100, shutil.get_terminal_size().columns)
    parts = [{"run": RUN_HELP, "plan": PLAN_HELP, "fetch": FETCH_HELP}[verb], GROUPS_HELP]
    for group in groups(extra):
        default = f" (default {group.default})" if group.default else ""
        parts.append(f"  {group.name:<11}{group.about}{default}\n")
        parts.append(_wrapped(", ".join(group.options), 13, width))
    parts += [LAUNCHERS_HELP, _wrapped(", ".join(options(LAUNCHERS)), 13, width)]
    return "".join(parts) + "\n" + RUN_KEYS


def group_help(name: str, extra: Path | None = None) -> str:
    """The text of `bitsweep run --help GROUP`: its options and keys, explained by their files."""
    known = {group.name: group.default for group in groups()} | {LAUNCHERS: ""}
    name = LAUNCHERS if name == "launcher" else name
    if name not in known:
        raise ConfigError(f"there is no group {name}; choose one of {', '.join(known)}.")
    width = min(100, shutil.get_terminal_size().columns)
    parts = [f"options of {name}: bitsweep run {name}=OPTION\n\n"]
    for option in options(name, extra):
        file = conf_dir() / name / f"{option}.yaml"
        if extra is not None and not file.is_file():
            file = extra / name / f"{option}.yaml"
        text = head_comment(file)
        parts.append(f"  {option}\n{_wrapped(text, 6, width)}")
    found = keys(name, known[name])
    if found:
        parts.append(f"\nkeys of {name}, each with the value that one of these options sets:\n\n")
    for key, (value, about) in found.items():
        parts.append(f"  {key}={value}\n{_wrapped(about, 6, width)}")
    return "".join(parts)


def keys(group: str, default: str = "") -> dict[str, tuple[str, str]]:
    """The keys of a group's options: {key: (value, comment)}.

    If several options have a key, it is read from the default one, otherwise from the first.
    """
    found: dict[str, tuple[str, str]] = {}
    for option in sorted(options(group), key=lambda option: option != default):
        text = (conf_dir() / group / f"{option}.yaml").read_text(encoding="utf-8")
        if "@package _global_" in text:  # it sets keys of other groups
            continue
        above: list[str] = []
        for match in map(_KEY.match, text.splitlines()):
            if match is None:
                continue
            indent, name, value, about = match.groups()
            above = [*above[: len(indent) // 2], name]
            if value is not None and about is not None:
                found.setdefault(".".join((group.replace("/", "."), *above)), (value, about))
    return found


def head_comment(file: Path) -> str:
    """The comment at the top of a YAML file as one line of text."""
    words = []
    for line in file.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        if "@package" not in line:
            words.append(line.lstrip("# ").strip())
    return " ".join(word for word in words if word)


def _items(lines: list[str]) -> list[str]:
    found = []
    for line in lines:
        match = re.match(r"^      - (\w+)", line)
        if match is None:
            break
        found.append(match.group(1))
    return found


def _natural(name: str) -> list[tuple[int, float, str]]:
    """w2 before w16, opt-1.3b before opt-13b, 350m before 1.3b."""
    parts = re.findall(r"\d+(?:\.\d+)?[mb]?|\D+", name)
    key = []
    for part in parts:
        match = re.fullmatch(r"(\d+(?:\.\d+)?)([mb]?)", part)
        if match is None:
            key.append((1, 0.0, part))
        else:
            key.append((0, float(match.group(1)) * {"": 1, "m": 1e6, "b": 1e9}[match.group(2)], ""))
    return key


def _wrapped(text: str, indent: int, width: int) -> str:
    space = " " * indent
    return textwrap.fill(text, width, initial_indent=space, subsequent_indent=space) + "\n"
