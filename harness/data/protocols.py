"""Named protocols: how a text becomes the token windows for evaluation or calibration.

A perplexity is only comparable within one protocol: text, join, tokenizer, BOS and window. Every
protocol has an id, which tables print, and a version, and its windows have a hash.
docs/protocols.md lists the tables of papers that each belongs to.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.data import chat, texts
from harness.data.config import CalibConfig, DocumentsConfig
from harness.data.sources import (
    DOCUMENTS,
    EMBEDDED,
    FILE,
    NO_TEXT,
    PROMPTS,
    SHUFFLED,
    Source,
    Text,
    Wanted,
    hub,
)
from harness.data.specials import Specials, Tally
from harness.data.texts import ProtocolError

if TYPE_CHECKING:
    from torch import Tensor

EVALUATION, CALIBRATION = "evaluation", "calibration"


@dataclass(frozen=True)
class Protocol:
    """How a text becomes windows.

    source    source of the rows (harness.data.sources).
    windowing disjoint: join the rows, tokenize once, take consecutive windows, drop the
              incomplete last one; crops: the same tokens, windows at random places;
              document-crops: a random window of a random row that is long enough; documents:
              one sequence per row, truncated to the window; packed: windows filled with whole
              documents from their beginning, the last one truncated; random: tokens drawn from
              the vocabulary, without a text; generated: the model continues beginnings of
              documents, or of nothing (harness.data.generated).
    join      text between two rows (disjoint, crops, packed).
    rows      number of rows to read, from the first on; None: all.
    windows   number of windows; None: as many as the text gives, or as requested.
    seed      of the random draws, if the protocol fixes it.
    """

    id: str
    use: str
    source: Source
    windowing: str
    summary: str
    join: str = ""
    rows: int | None = None
    windows: int | None = None
    seed: int | None = None
    version: int = 1

    @property
    def calibrates(self) -> bool:
        return self.use == CALIBRATION

    @property
    def of_documents(self) -> bool:
        """Whether each row is a document of its own; otherwise rows are lines of one text."""
        return self.windowing in ("document-crops", "documents", "packed")

    @property
    def generates(self) -> bool:
        """Whether the model under test writes the windows."""
        return self.windowing == "generated"

    @property
    def one_length(self) -> bool:
        """Whether all windows have exactly the requested length; otherwise at most that length."""
        return self.windowing != "documents"


@dataclass(frozen=True)
class TokenWindows:
    """The windows of one protocol under one tokenizer.

    windows     int64 tensors of shape [tokens]; lengths differ only for documents.
    token_hash  SHA-256 over the length and ids of every window, as 8-byte little-endian.
    text_hash   SHA-256 over the rows that were read (`texts.text_hash`).
    source      the dataset with its revision and file, or the name of the local file.
    special     which special tokens are in the windows, in words.
    """

    protocol: Protocol
    windows: list[Tensor]
    token_hash: str
    text_hash: str
    source: str
    special: str = "none"

    @property
    def tokens(self) -> int:
        """Number of all tokens, including the first of each window, which is never scored."""
        return sum(len(window) for window in self.windows)

    @property
    def scored(self) -> int:
        """Number of predicted tokens: all but the first of each window."""
        return self.tokens - len(self.windows)


PROTOCOLS: dict[str, Protocol] = {
    protocol.id: protocol
    for protocol in (
        Protocol("wikitext2", EVALUATION, hub("wikitext2-test"), "disjoint",
                 "WikiText-2 raw test, rows joined by a blank line", "\n\n"),
        Protocol("ptb", EVALUATION, hub("ptb-validation"), "disjoint",
                 "Penn Treebank validation, rows joined by a blank line (original evaluation)",
                 "\n\n"),
        Protocol("ptb-new", EVALUATION, hub("ptb-test"), "disjoint",
                 "Penn Treebank test, rows joined by a space (new evaluation)", " "),
        Protocol("c4", EVALUATION, hub("c4-validation"), "document-crops",
                 "256 random windows of C4 validation documents (original evaluation)",
                 windows=256, seed=0),
        Protocol("c4-new", EVALUATION, hub("c4-validation"), "disjoint",
                 "the first 256 windows of 1100 C4 validation documents joined by a space "
                 "(new evaluation)", " ", rows=1100, windows=256),
        Protocol("embedded", EVALUATION, EMBEDDED, "documents",
                 "200 test stories of the package, one a sequence", windows=200),
        Protocol("embedded-joined", EVALUATION, EMBEDDED, "disjoint",
                 "1000 test stories of the package, joined by a blank line", "\n\n", rows=1000),
        Protocol("documents", EVALUATION, DOCUMENTS, "documents",
                 "the documents of a local file, one a sequence"),
        Protocol("text", EVALUATION, FILE, "disjoint",
                 "a local text file as it is, in consecutive windows"),
        Protocol("c4-train", CALIBRATION, hub("c4-train"), "document-crops",
                 "random windows of documents of the first C4 train shard (the paper's)"),
        Protocol("wikitext2-train", CALIBRATION, hub("wikitext2-train"), "crops",
                 "random windows of WikiText-2 raw train", "\n\n"),
        Protocol("ptb-train", CALIBRATION, hub("ptb-train"), "crops",
                 "random windows of Penn Treebank train, rows joined by a blank line", "\n\n"),
        Protocol("ptb-new-train", CALIBRATION, hub("ptb-train"), "crops",
                 "random windows of Penn Treebank train, rows joined by a space", " "),
        Protocol("embedded-calibration", CALIBRATION, EMBEDDED, "packed",
                 "calibration stories of the package, packed into windows", "\n\n"),
        Protocol("embedded-shuffled", CALIBRATION, SHUFFLED, "packed",
                 "calibration stories of the package, the words of each in random order, packed "
                 "into windows", "\n\n"),
        Protocol("random-tokens", CALIBRATION, NO_TEXT, "random",
                 "tokens drawn uniformly from the vocabulary"),
        Protocol("self-generated", CALIBRATION, PROMPTS, "generated",
                 "what the model writes itself, sampled at temperature 1 after a random token or "
                 "the beginning of a document"),
        Protocol("documents-calibration", CALIBRATION, DOCUMENTS, "documents",
                 "random documents of a local file, one a sequence"),
        Protocol("text-calibration", CALIBRATION, FILE, "crops",
                 "random windows of a local text file"),
    )
}  # fmt: skip


def find(name: str, use: str = EVALUATION) -> Protocol:
    """Return the protocol of an id; ProtocolError, with the closest ids, if there is none."""
    known = [protocol.id for protocol in PROTOCOLS.values() if protocol.use == use]
    if name in known:
        return PROTOCOLS[name]
    if name in PROTOCOLS:
        raise ProtocolError(
            f"the protocol {name!r} is for {PROTOCOLS[name].use}, not for {use}; "
            f"choose one of {', '.join(known)}"
        )
    close = get_close_matches(name, known, n=3, cutoff=0.5)
    raise ProtocolError(
        f"there is no {use} protocol {name!r}; "
        + (f"did you mean {' or '.join(close)}?" if close else f"choose one of {', '.join(known)}")
    )


def check(
    name: str,
    use: str = EVALUATION,
    *,
    path: str | None = None,
    data_dir: str | Path | None = None,
    option: str | None = None,
    documents: DocumentsConfig | None = None,
) -> None:
    """Raise ProtocolError or TextError if protocol `name` cannot be run. Loads nothing.

    option     the setting that gives a local file for it, for messages.
    documents  range of documents in that file.
    """
    protocol = find(name, use)
    protocol.source.check(_wanted(protocol, path, data_dir, option, documents))


def content(protocol: Protocol, path: str | None, data_dir: str | Path | None) -> str:
    """Identity of a protocol's text, for keys: hash of a local file or our generator, or a pin."""
    return protocol.source.content(_wanted(protocol, path, data_dir))


def _wanted(
    protocol: Protocol,
    path: str | None,
    data_dir: str | Path | None,
    option: str | None = None,
    documents: DocumentsConfig | None = None,
    asked: int | None = None,
    seed: int = 0,
) -> Wanted:
    return Wanted(
        protocol=protocol.id,
        option=option or default_option(protocol),
        calibrates=protocol.calibrates,
        rows=protocol.rows,
        path=path,
        data_dir=data_dir,
        documents=documents or DocumentsConfig(),
        asked=asked,
        seed=seed,
    )


def default_option(protocol: Protocol) -> str:
    """Return the command-line setting that gives a local file for `protocol`."""
    return "calib.path" if protocol.calibrates else f"suite.perplexity.paths.{protocol.id}"


def context_length(config: Any, asked: int | None = None) -> int:
    """Return the tokens of a window: `asked`, or the maximum in a Hugging Face model config.

    Raises ProtocolError if both are missing (BLOOM's config has none; the papers use 2048), or if
    `asked` is more than the model's positions.
    """
    own = stated_length(config)
    if asked is None and own is None:
        raise ProtocolError(
            f"the config of this {config.model_type} model states no context length; "
            "set model.context (2048 in the GPTQ paper)"
        )
    length = asked if asked is not None else own
    assert length is not None
    if length < 2 or (own is not None and length > own):
        raise ProtocolError(
            f"windows of {length} tokens do not fit a model with {own} positions; "
            f"set model.context between 2 and {own}"
        )
    return length


def stated_length(config: Any) -> int | None:
    """The context length that a Hugging Face model config states; None if it states none."""
    names = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len")
    text_config = config.get_text_config() if hasattr(config, "get_text_config") else config
    return next((v for n in names if isinstance(v := getattr(text_config, n, None), int)), None)


def windows(
    name: str,
    tokenizer: Any,
    context: int,
    *,
    use: str = EVALUATION,
    path: str | None = None,
    data_dir: str | Path | None = None,
    documents: DocumentsConfig | None = None,
    sequences: int | None = None,
    seed: int = 0,
    load_model: Callable[[], Any] | None = None,
    chat_template: bool = False,
) -> TokenWindows:
    """Return the token windows of protocol `name`, `context` tokens long.

    path, data_dir  a local file or folder instead of the hub.
    documents       range of documents in a local file; only for document protocols.
    sequences       number of windows: the maximum for evaluation, exact for calibration.
    seed            of the random draws of calibration protocols.
    load_model      loads the model under test, for a protocol whose windows it writes.
    chat_template   put each document into the tokenizer's chat template, as a user's message.

    Raises ProtocolError if the text is too short, TextError if it is not available.
    """
    protocol = find(name, use)
    if use == CALIBRATION and sequences is None:
        raise ProtocolError(f"the calibration protocol {name} needs a number of sequences")
    if sequences is not None and sequences < 1:
        raise ProtocolError(f"protocol {name}: {sequences} windows were requested; use 1 or more")
    asked = min((n for n in (protocol.windows, sequences) if n is not None), default=None)
    wanted = _wanted(protocol, path, data_dir, None, documents, asked, seed)
    text = protocol.source.read(wanted)
    if chat_template:
        chat.require_documents(protocol.id, protocol.of_documents)
        rows_in_chat = (chat.as_message(tokenizer, row) for row in text.rows)
        text = replace(text, rows=rows_in_chat, source=f"{text.source}, in the chat template")
    try:
        if protocol.generates:
            found, rows = _generated(text, tokenizer, context, asked, seed, load_model)
        else:
            found, rows = _windows(protocol, text, tokenizer, context, asked, seed)
    except ProtocolError as error:
        raise ProtocolError(f"protocol {name}, {text.source}: {error}") from error
    tally = Tally(tokenizer, Specials.of(tokenizer))
    tally.add(window.tolist() for window in found)
    rows_hash = texts.text_hash(rows)
    return TokenWindows(protocol, found, token_hash(found), rows_hash, text.source, tally.said())


def calibration_windows(
    config: CalibConfig,
    tokenizer: Any,
    context: int,
    data_dir: str | Path | None = None,
    load_model: Callable[[], Any] | None = None,
) -> TokenWindows:
    """Return the windows of a calibration config; `context` is the model's context length.

    load_model  as for `windows`.
    """
    length = context if config.length is None else config.length
    if not 2 <= length <= context:
        raise ProtocolError(
            f"calib.length is {length}, but the model's context is {context} tokens; "
            f"set it between 2 and {context}, or to null for all of it"
        )
    return windows(
        config.protocol,
        tokenizer,
        length,
        use=CALIBRATION,
        path=config.path,
        data_dir=data_dir,
        documents=config.documents,
        sequences=config.sequences,
        seed=config.seed,
        load_model=load_model,
        chat_template=config.chat_template,
    )


def token_hash(found: list[Tensor]) -> str:
    """Return the SHA-256 over the length and ids of every window, as 8-byte little-endian."""
    digest = hashlib.sha256()
    for window in found:
        digest.update(len(window).to_bytes(8, "little"))
        digest.update(window.cpu().numpy().astype("<i8").tobytes())
    return digest.hexdigest()


def _generated(
    text: Text,
    tokenizer: Any,
    length: int,
    asked: int | None,
    seed: int,
    load_model: Callable[[], Any] | None,
) -> tuple[list[Tensor], list[str]]:
    from harness.data.generated import generated

    if load_model is None:
        raise ProtocolError(
            "the model under test writes these windows, and none is in memory here; choose a text"
        )
    assert asked is not None
    return generated(list(text.rows), tokenizer, length, load_model(), number=asked, seed=seed)


def _windows(
    protocol: Protocol, text: Text, tokenizer: Any, length: int, asked: int | None, seed: int
) -> tuple[list[Tensor], list[str]]:
    from harness.data import windows

    join = protocol.join
    if protocol.windowing == "packed":
        assert asked is not None
        return windows.packed(text.rows, tokenizer, length, join=join, number=asked)
    rows = list(text.rows)
    if protocol.windowing == "disjoint":
        return windows.disjoint(rows, tokenizer, length, join=join, most=asked)
    if protocol.windowing == "documents":
        return windows.documents(rows, tokenizer, length, numbers=text.numbers)
    assert asked is not None
    draw_seed = seed if protocol.seed is None else protocol.seed
    if protocol.windowing == "random":
        return windows.random_tokens(tokenizer, length, number=asked, seed=draw_seed)
    if protocol.windowing == "crops":
        return windows.crops(rows, tokenizer, length, join=join, number=asked, seed=draw_seed)
    return windows.document_crops(rows, tokenizer, length, number=asked, seed=draw_seed)
