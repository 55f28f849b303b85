"""The verb `bitsweep push ARTIFACT OWNER/NAME`: an artifact with its card, sent to a hub."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import ConfigError
from harness.records.store import artifact_digest, scan_records
from harness.report.interchange import eval_results_file
from quant.checkpoint.folder import MANIFEST, read_json, verify

if TYPE_CHECKING:
    from huggingface_hub import HfApi

OK, FAILED = 0, 1
CARD = "README.md"
EVAL_RESULTS = ".eval_results/bitsweep.yaml"
# What the hub puts into a repository when it is made, which is nobody's content.
_OF_THE_HUB = (".gitattributes", CARD, "LICENSE")


@dataclass(frozen=True)
class Request:
    """What the command line asks for; harness.arguments describes each."""

    artifact: Path
    repository: str
    private: bool
    overwrite: bool


def push(request: Request) -> int:
    """Send the artifact as one commit; return the exit status: 1 if the upload broke off.

    Raises ConfigError or ArtifactError, before anything is sent, for a folder that is no artifact
    or is damaged, without a token, and for a repository that holds something else.
    """
    files = _files(request.artifact)
    api = _api(request.repository)
    head, there = _content(api, request.repository)
    leaving = _leaving(api, request, there, set(files))
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    sent: dict[str, Path | bytes] = {**files, **_measured(request.artifact)}
    operations: list[Any] = [
        CommitOperationAdd(name, source if isinstance(source, bytes) else str(source))
        for name, source in sorted(sent.items())
    ]
    operations += [CommitOperationDelete(name) for name in sorted(leaving)]
    try:
        if head is None:
            api.create_repo(request.repository, private=request.private, exist_ok=True)
        done = api.create_commit(
            request.repository,
            operations,
            commit_message=f"Upload {request.artifact.resolve().name}",
            parent_commit=head,
        )
    except Exception as error:  # of the hub, the network or the disk
        print(
            f"bitsweep: the upload to {request.repository} broke off ({_reason(error)}). The "
            "repository is as it was: run the same command again, which does not send again what "
            "arrived.",
            file=sys.stderr,
        )
        return FAILED
    size = sum(
        len(each) if isinstance(each, bytes) else each.stat().st_size for each in sent.values()
    )
    print(f"{len(sent)} files, {size:,} bytes: {done.commit_url}")
    return OK


def _files(artifact: Path) -> dict[str, Path]:
    """The files of an artifact by name, its card among them; checked against its manifest."""
    if not artifact.is_dir() or not verify(artifact):
        raise ConfigError(
            f"{artifact} is no artifact (a folder with {MANIFEST}): push takes those below "
            "results/artifacts, and the folders that `bitsweep export` writes."
        )
    if not (artifact / CARD).is_file():
        raise ConfigError(
            f"{artifact} has no model card ({CARD}): `bitsweep export` and a run write one."
        )
    names = [*read_json(artifact / MANIFEST)["files"], MANIFEST, CARD]
    return {name: artifact / name for name in names}


def _api(repository: str) -> HfApi:
    """The hub's client with the user's token, for a name that a repository may have."""
    from huggingface_hub import HfApi, constants, get_token

    if repository.count("/") != 1:
        raise ConfigError(
            f"{repository} names no owner: give OWNER/NAME, as in me/my-model-w4g128."
        )
    if constants.HF_HUB_OFFLINE:
        raise ConfigError("HF_HUB_OFFLINE is set, so nothing can be pushed: unset it.")
    token = get_token()
    if token is None:
        raise ConfigError(
            "there is no token of the hub here: log in with `hf auth login`, or set HF_TOKEN to a "
            f"token that may write to {repository}."
        )
    return HfApi(endpoint=constants.ENDPOINT, token=token)


def _content(api: HfApi, repository: str) -> tuple[str | None, set[str]]:
    """The commit and the files of a repository; (None, nothing) if there is none."""
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        RepositoryNotFoundError,
    )

    try:
        info = api.model_info(repository)
    except HFValidationError as error:
        raise ConfigError(f"{repository} is no name of a repository: {error}") from error
    except RepositoryNotFoundError as error:
        if error.response.status_code == 401:
            raise ConfigError(_refused(repository)) from error
        return None, set()
    except HfHubHTTPError as error:
        if error.response.status_code in (401, 403):
            raise ConfigError(_refused(repository)) from error
        raise ConfigError(
            f"{api.endpoint} cannot say what {repository} holds ({_reason(error)}): try later, "
            "or check HF_ENDPOINT."
        ) from error
    except Exception as error:  # of the network: which classes there are depends on the client
        raise ConfigError(
            f"{api.endpoint} cannot be reached ({_reason(error)}): check the network."
        ) from error
    return info.sha, {each.rfilename for each in info.siblings or ()}


def _leaving(api: HfApi, request: Request, there: set[str], ours: set[str]) -> set[str]:
    """The files that the commit removes: those of another content, if it may be overwritten."""
    others = {name for name in there if name not in _OF_THE_HUB and name != EVAL_RESULTS}
    if not others or _same(api, request, there):
        return set()
    if not request.overwrite:
        shown = ", ".join(sorted(others)[:3]) + ", ..." * (len(others) > 3)
        raise ConfigError(
            f"{request.repository} holds something else ({shown}): choose another name, or "
            "replace all of it with --overwrite."
        )
    return others - ours


def _same(api: HfApi, request: Request, there: set[str]) -> bool:
    """Whether a repository holds this artifact: its manifest, which has the hash of every file."""
    if MANIFEST not in there:
        return False
    data = (request.artifact / MANIFEST).read_bytes()
    (found,) = api.get_paths_info(request.repository, [MANIFEST])
    return (
        getattr(found, "blob_id", "") == hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    )


def _measured(artifact: Path) -> dict[str, bytes]:
    """The .eval_results file of an artifact of a results folder, if its records have figures."""
    folder = artifact.resolve().parent
    if folder.name != "artifacts":
        return {}
    digest = artifact_digest(artifact)
    records = [
        record
        for record in scan_records(folder.parent)[0]
        if record.inputs.get("artifact") == digest
    ]
    found = eval_results_file(records)
    return {EVAL_RESULTS: found} if found else {}


def _refused(repository: str) -> str:
    return (
        f"the hub refused the token for {repository}: log in with `hf auth login`, or set HF_TOKEN "
        "to a token that may write there."
    )


def _reason(error: Exception) -> str:
    lines: Sequence[str] = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
