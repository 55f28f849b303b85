"""The Hugging Face hub, asked beforehand whether what is not on this machine can be had.

One question for each repository or file in a plan, whatever number of cells need it: answers are
kept until `forget`. Nothing is downloaded here, and nothing is asked about what is cached.
"""

from __future__ import annotations

from dataclasses import dataclass

MODEL, DATASET = "model", "dataset"
TIMEOUT = 10.0  # seconds for an answer
_SHOWN = 12  # digits of a commit


@dataclass(frozen=True)
class Wanted:
    """What is to be downloaded.

    kind        "model" or "dataset".
    revision    None: the latest.
    file        of the repository; None: as much of it as is needed.
    """

    kind: str
    repository: str
    revision: str | None = None
    file: str | None = None

    @property
    def name(self) -> str:
        at = "" if self.revision is None else f" (revision {self.revision[:_SHOWN]})"
        file = "" if self.file is None else f"{self.file} of the "
        return f"{file}{self.kind} {self.repository}{at}"


@dataclass(frozen=True)
class Answer:
    """What the hub said.

    refused  why it will not be had, and what to do about it: "there is no ... ; correct ...".
    bytes    to be downloaded; None: unknown.
    silent   why the hub gave no answer, so that the download may fail; None: it gave one.
    """

    refused: tuple[str, str] | None = None
    bytes: int | None = None
    silent: str | None = None


_answers: dict[Wanted, Answer] = {}


def offline() -> bool:
    """Whether HF_HUB_OFFLINE forbids to ask."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def forget(fetched: Wanted | None = None) -> None:
    """Ask again from now on: a new plan begins, or this has been fetched meanwhile."""
    if fetched is None:
        _answers.clear()
    else:
        _answers.pop(fetched, None)


def ask(wanted: Wanted) -> Answer:
    """Whether the hub has it for us; asked once a plan, and not at all once the hub was silent."""
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
        f"{why}, so whether that can be had shows only when it is fetched: give local files, or "
        "set HF_HUB_OFFLINE=1 on a machine without a network to hear of it now"
        for why in sorted(silent)
    ]
    return lines


def _ask(wanted: Wanted) -> Answer:
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
    try:
        return Answer(bytes=_size(wanted))
    except GatedRepoError:
        return Answer(
            ("its owner grants access", "ask for it on the hub and log in (hf auth login)")
        )
    except RevisionNotFoundError:
        why = f"the {named} has no revision {wanted.revision}"
        return Answer((why, "name a branch, a tag or a commit that it has"))
    except RepositoryNotFoundError:
        why = f"{place} has no {named}, or hides it from you"
        return Answer((why, "correct the name or, if it is private, log in (hf auth login)"))
    except EntryNotFoundError:
        return Answer((f"the {named} has no such file", "name a local copy"))
    except HFValidationError as error:
        why = " ".join(str(error).split())
        return Answer((f"{wanted.repository} is no name of a repository ({why})", "correct it"))
    except HfHubHTTPError as error:  # it may be overloaded, or not a hub
        status = getattr(error.response, "status_code", None)
        return Answer(silent=f"{place} gave no answer (HTTP status {status})")
    except Exception as error:  # of the HTTP library, of DNS, of a proxy
        return Answer(silent=f"{place} could not be reached ({type(error).__name__})")


def _size(wanted: Wanted) -> int | None:
    """Bytes of what would be fetched; the errors of the hub's client."""
    from huggingface_hub import HfApi, get_hf_file_metadata, get_token, hf_hub_url

    if wanted.file is not None:
        url = hf_hub_url(
            wanted.repository, wanted.file, repo_type=wanted.kind, revision=wanted.revision
        )
        return get_hf_file_metadata(url, token=get_token(), timeout=TIMEOUT).size
    api = HfApi()
    sizes: dict[str, int | None] = {}
    if wanted.kind == DATASET:
        gated = api.dataset_info(wanted.repository, revision=wanted.revision, timeout=TIMEOUT).gated
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
    """Bytes of the weights of a model that are read, by the names of its files."""
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
