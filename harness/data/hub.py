"""Ask the Hugging Face hub, in the plan, whether missing files can be downloaded.

Each repository or file is asked about once, however many cells need it: answers are kept until
`forget`. Nothing is downloaded here, and cached files are not asked about.
"""

from __future__ import annotations

from dataclasses import dataclass

MODEL, DATASET = "model", "dataset"
TIMEOUT = 10.0  # seconds for an answer
_SHOWN = 12  # digits of a commit


@dataclass(frozen=True)
class Wanted:
    """A model or dataset to be downloaded.

    kind        "model" or "dataset".
    revision    None: the latest.
    file        of the repository; None: all files that are needed.
    part        of a dataset: the configuration that a task reads; None: its only one.
    """

    kind: str
    repository: str
    revision: str | None = None
    file: str | None = None
    part: str | None = None

    @property
    def name(self) -> str:
        at = "" if self.revision is None else f" (revision {self.revision[:_SHOWN]})"
        inside = self.file or self.part
        file = "" if inside is None else f"{inside} of the "
        return f"{file}{self.kind} {self.repository}{at}"


@dataclass(frozen=True)
class Answer:
    """The answer of the hub.

    refused  (reason, next step) if it cannot be downloaded; None if it can.
    bytes    size of the download; None if unknown.
    silent   why the hub did not answer, so that the download may fail; None if it answered.
    """

    refused: tuple[str, str] | None = None
    bytes: int | None = None
    silent: str | None = None


_answers: dict[Wanted, Answer] = {}
_needed: dict[Wanted, None] = {}


def offline() -> bool:
    """Whether HF_HUB_OFFLINE is set."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def forget(fetched: Wanted | None = None) -> None:
    """Drop all answers (for a new plan), or the answer on what has been downloaded."""
    if fetched is None:
        _answers.clear()
        _needed.clear()
    else:
        _answers.pop(fetched, None)


def need(wanted: Wanted) -> Wanted:
    """Note that the plan needs something of the hub, whether or not it is cached."""
    _needed[wanted] = None
    return wanted


def needed() -> list[Wanted]:
    """All that was noted since `forget`, in order."""
    return list(_needed)


def ask(wanted: Wanted) -> Answer:
    """Whether the hub can provide it; asked once, and no more after the hub did not answer."""
    if wanted not in _answers:
        silent = next((each.silent for each in _answers.values() if each.silent), None)
        _answers[wanted] = _ask(wanted) if silent is None else Answer(silent=silent)
    return _answers[wanted]


def said() -> list[str]:
    """Sentences for the plan: what will be downloaded, and whether the hub can be reached."""
    if not _answers:
        return []
    from quant.memory.plan import size

    lines = []
    for wanted, answer in _answers.items():
        if answer.refused is None:
            known = "" if answer.bytes is None else f", {size(answer.bytes)}"
            lines.append(f"to be downloaded: {wanted.name}{known}")
    silent = {each.silent for each in _answers.values() if each.silent}
    lines += [
        f"{why}, so the download may fail: give local files, or set HF_HUB_OFFLINE=1 on a machine "
        "without a network to get the error now"
        for why in sorted(silent)
    ]
    return lines


class _ScriptError(Exception):
    """A dataset is a Python script, which the package `datasets` does not run."""


def _ask(wanted: Wanted) -> Answer:
    try:
        return Answer(bytes=_size(wanted))
    except _ScriptError:
        why = f"the dataset {wanted.repository} is a script, which is not run"
        return Answer((why, "get its documents where their owner gives them"))
    except Exception as error:
        return explain(error, wanted)


def explain(error: Exception, wanted: Wanted) -> Answer:
    """What an error of the hub's client means: a refusal, or no answer."""
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    place = f"the hub at {constants.ENDPOINT}"
    named = f"{wanted.kind} {wanted.repository}"
    # The first that matches: the hub's client derives some of these from others.
    for kind, why, step in (
        (
            GatedRepoError,
            "its owner grants access",
            "ask for it on the hub and log in (hf auth login)",
        ),
        (
            RevisionNotFoundError,
            f"the {named} has no revision {wanted.revision}",
            "name a branch, a tag or a commit that it has",
        ),
        (
            RepositoryNotFoundError,
            f"{place} has no {named}, or hides it from you",
            "correct the name or, if it is private, log in (hf auth login)",
        ),
        (EntryNotFoundError, f"the {named} has no such file", "name a local copy"),
        (
            HFValidationError,
            f"{wanted.repository} is not the name of a repository ({' '.join(str(error).split())})",
            "correct it",
        ),
    ):
        if isinstance(error, kind):
            return Answer((why, step))
    if isinstance(error, HfHubHTTPError):  # it may be overloaded, or not a hub
        status = getattr(error.response, "status_code", None)
        return Answer(silent=f"{place} gave no answer (HTTP status {status})")
    # of the HTTP library, of DNS, of a proxy
    return Answer(silent=f"{place} could not be reached ({type(error).__name__})")


def _size(wanted: Wanted) -> int | None:
    """Bytes to download; raises the errors of the hub's client."""
    from huggingface_hub import HfApi, get_hf_file_metadata, get_token, hf_hub_url

    if wanted.file is not None:
        url = hf_hub_url(
            wanted.repository, wanted.file, repo_type=wanted.kind, revision=wanted.revision
        )
        return get_hf_file_metadata(url, token=get_token(), timeout=TIMEOUT).size
    api = HfApi()
    sizes: dict[str, int | None] = {}
    if wanted.kind == DATASET:
        about = api.dataset_info(wanted.repository, revision=wanted.revision, timeout=TIMEOUT)
        gated = about.gated
        script = f"{wanted.repository.rpartition('/')[2]}.py"
        if script in {each.rfilename for each in about.siblings or []}:
            raise _ScriptError
    else:
        info = api.model_info(
            wanted.repository, revision=wanted.revision, timeout=TIMEOUT, files_metadata=True
        )
        gated = info.gated
        sizes = {each.rfilename: each.size for each in info.siblings or []}
    if gated:
        api.auth_check(wanted.repository, repo_type=wanted.kind)
    return _of_weights(sizes)


def _of_weights(sizes: dict[str, int | None]) -> int | None:
    """Bytes of the weight files that are read, from the sizes of a model's files by name."""
    from quant.checkpoint.files import INDEX_SUFFIX, choose

    chosen = choose(sizes)
    if chosen is None:
        return None
    if not chosen.endswith(INDEX_SUFFIX):
        return sizes[chosen]
    stem = chosen.removesuffix(INDEX_SUFFIX)
    end = "." + stem.rpartition(".")[2]
    shards = [s for n, s in sizes.items() if "/" not in n and "-of-" in n and n.endswith(end)]
    return sum(s or 0 for s in shards) or None
