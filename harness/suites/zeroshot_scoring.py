"""Measurements of the zeroshot suite, through lm-eval's API."""

from __future__ import annotations

import hashlib
import logging
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from harness.data import protocols, texts
from harness.records.items import TARGET_PERPLEXITY, document_items
from harness.records.record import Metric
from harness.report.published import LIMIT
from harness.suites import zeroshot_data, zeroshot_tasks
from harness.suites.base import SuiteContext, SuiteResult
from harness.suites.zeroshot_forms import local_task
from harness.suites.zeroshot_tasks import (
    CHAT_TEMPLATE,
    EMBEDDED_TASKS,
    TIES,
    LocalTask,
    TaskError,
)

# Names of lm-eval's metrics in our records; others keep their names.
NAMES = {"acc": "accuracy", "perplexity": TARGET_PERPLEXITY}
UNITS = {TARGET_PERPLEXITY: "ppl"}
CLOSE = 1e-4  # nats


class Asking(Protocol):
    """Settings that choose the tasks, the number of documents, and how to score them."""

    tasks: list[str] | None
    files: dict[str, str]
    limit: int | None
    batch_size: int
    num_fewshot: int
    apply_chat_template: bool


def run(context: SuiteContext, config: Asking) -> SuiteResult:
    """Measure the scores of each task, with standard errors, and of every document.

    The model is neither moved nor changed. A task that is unknown or not available fails alone.
    Raises TaskError if no task is left, and for a task that does not fit the model.
    """
    names = zeroshot_tasks.wanted(config.tasks or [], config.files)
    failures: dict[str, str] = {}
    local: dict[str, LocalTask] = {}
    paths: dict[str, list[Path]] = {}
    for name in names:
        try:
            if _standard(config, name):
                paths[name] = zeroshot_tasks.find_tasks([name])
            else:
                local[name] = _local(context, config, name)
        except (TaskError, texts.TextError) as error:
            failures[name] = str(error)
    with _quiet():
        import lm_eval

        from harness.suites.zeroshot_model import Scorer

        length = protocols.context_length(context.model.config, context.context_length)
        model = Scorer(context, length, config.batch_size)
        folders = sorted({str(path.parent) for found in paths.values() for path in found})
        tasks = _tasks([n for n in names if n not in failures], local, folders, failures)
        if not tasks:
            raise TaskError("; ".join(failures.values()))
        results = lm_eval.simple_evaluate(
            model=model,
            tasks=tasks,
            task_manager=_manager(folders),
            num_fewshot=config.num_fewshot,
            apply_chat_template=config.apply_chat_template,
            fewshot_as_multiturn=config.apply_chat_template,
            limit=config.limit,
            bootstrap_iters=0,
            log_samples=True,
        )
    notes = {
        "lm_eval": lm_eval.__version__,
        "batch_size": str(config.batch_size),
        "num_fewshot": str(config.num_fewshot),
        "bos": "yes" if model.begins_with_bos else "no",
        "special_tokens": model.special.said(),
        "truncated": f"{model.truncated} of {model.requests} requests, to {length} tokens",
    }
    if config.apply_chat_template:
        notes[CHAT_TEMPLATE] = hashlib.sha256(model.template.encode()).hexdigest()
    if config.limit is not None:
        notes[LIMIT] = f"limit={config.limit}"
    if model.shared:
        notes["shared_token"] = f"in {model.shared} of {model.requests} requests prompt and target"
    return _result(results, local, notes, failures, zeroshot_tasks.prompt_id(config))


def _standard(config: Asking, name: str) -> bool:
    return name not in config.files and name not in EMBEDDED_TASKS


def _local(context: SuiteContext, config: Asking, name: str) -> LocalTask:
    if name not in config.files:
        return zeroshot_tasks.embedded(name, config.limit)
    file = texts.locate(config.files[name], context.data_dir)
    # lm-eval keeps the limit; examples in prompts may be any document.
    return zeroshot_tasks.read_local(name, file, None if config.num_fewshot else config.limit)


def _manager(folders: Sequence[str]) -> Any:
    """Return an lm-eval task manager for the tasks of these folders only."""
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_defaults=False)
    for folder in folders:
        found = TaskManager(include_path=folder, include_defaults=False).task_index
        for name, entry in found.items():
            known = manager.task_index.setdefault(name, entry)
            # Given all folders at once, lm-eval would keep only the last folder's tasks of a tag.
            known.tags.update(entry.tags)
    return manager


def _tasks(
    names: Sequence[str],
    local: dict[str, LocalTask],
    folders: Sequence[str],
    failures: dict[str, str],
) -> list[Any]:
    """Return lm-eval's task and group objects of `names`, with their data.

    If the data of a task are not available, the cause is added to `failures`.
    """
    manager = _manager(folders)
    tasks: list[Any] = []
    for name in names:
        if name in local:
            tasks.append(local_task(local[name]))
            continue
        try:
            with zeroshot_tasks.as_locked(name):
                loaded = manager.load([name])
        except (OSError, ValueError) as error:  # raised by `datasets` for missing data
            entry = manager.task_index.get(name)
            dataset = (entry.cfg or {}).get("dataset_path", name) if entry else name
            missing = zeroshot_data.missing(name, str(dataset))
            failures[name] = f"{missing} ({type(error).__name__})"
            continue
        group = loaded.get("groups", {}).get(name)
        tasks += [group] if group else list(loaded["tasks"].values())
    return tasks


def _result(
    results: Any,
    local: dict[str, LocalTask],
    notes: dict[str, str],
    failures: dict[str, str],
    prompts: str,
) -> SuiteResult:
    """prompts  what prompts have besides the document, for the names of tasks in records."""
    metrics: list[Metric] = []
    samples: list[dict[str, Any]] = []
    inputs: dict[str, str] = {}
    for name, logged in results["samples"].items():
        source = local[name].source if name in local else "lm-eval"
        version = str(results["versions"].get(name, "?"))
        said = notes | {"task_version": version, "source": source}
        dataset = "" if name in local else zeroshot_data.dataset_of(results["configs"][name])
        said |= {"dataset": dataset} if dataset else {}
        metrics += _metrics(name, results, said)
        samples += [_sample(name, one) for one in logged]
        inputs[f"task:{name}"] = _documents_hash(logged)
    for name in results.get("group_subtasks", {}):
        metrics += _group_metrics(name, results, metrics, notes)
    metrics = [each.model_copy(update={"task": f"{each.task}{prompts}"}) for each in metrics]
    return SuiteResult(metrics, inputs, samples, failures)


def _metrics(name: str, results: Any, notes: dict[str, str]) -> Iterator[Metric]:
    for key, value in results["results"][name].items():
        metric, comma, kind = key.partition(",")
        if not comma or metric.endswith("_stderr") or not isinstance(value, (int, float)):
            continue
        logged = [one for one in results["samples"][name] if one["filter"] == kind]
        scores = [one[metric] for one in logged]
        found = count_ties(metric, logged)
        said = notes if found is None else notes | {TIES: str(found)}
        yield _metric(name, metric, kind, float(value), scores, results, said)


def count_ties(metric: str, logged: Sequence[dict[str, Any]]) -> int | None:
    """Number of documents whose two best choices differ by less than CLOSE; None if not a choice.

    Rounding differs between machines by less than CLOSE, so either choice may win elsewhere.
    """
    if metric not in ("acc", "acc_norm"):
        return None
    ties = choices = 0
    for one in logged:
        answers = one["filtered_resps"]
        if len(answers) < 2 or not all(isinstance(each, tuple | list) for each in answers):
            continue
        choices += 1
        lengths = [1.0] * len(answers)
        if metric == "acc_norm":  # divided by the characters of the choice, as lm-eval does
            lengths = [float(len(text.removeprefix(" ")) or 1) for _, text in one["arguments"]]
        pairs = zip(answers, lengths, strict=False)
        best, second = sorted(((float(a[0]) / n, n) for a, n in pairs), reverse=True)[:2]
        ties += (best[0] - second[0]) * min(best[1], second[1]) < CLOSE
    return ties if choices else None


def _metric(
    task: str,
    metric: str,
    kind: str,
    value: float,
    scores: Sequence[Any],
    results: Any,
    notes: dict[str, str],
) -> Metric:
    name = NAMES.get(metric, metric)
    if kind != "none":
        name = f"{name} ({kind})"
    return Metric(
        name=name,
        task=task,
        value=value,
        unit=UNITS.get(name, "fraction"),
        n=len(scores),
        n_unit="documents",
        stderr=standard_error(metric, value, scores),
        higher_is_better=bool(results["higher_is_better"][task].get(metric, True)),
        notes=notes,
        items=document_items(
            _documents_hash(results["samples"][task]), scores, value, metric == "perplexity"
        ),
    )


def standard_error(metric: str, value: float, scores: Sequence[Any]) -> float | None:
    """Return the standard error of a task's figure over its documents; None if there is none.

    For a mean, it is the sample standard deviation over the square root of n, as in lm-eval (for an
    accuracy, the binomial one). For LAMBADA's perplexity, exp of the mean negative log-likelihood
    of the targets, it is the error of the mean times the value. Other aggregates have none.
    """
    if len(scores) < 2 or not all(isinstance(score, (int, float)) for score in scores):
        return None
    error = statistics.stdev(map(float, scores)) / math.sqrt(len(scores))
    if metric == "perplexity":
        return error * value
    is_mean = math.isclose(statistics.fmean(scores), value, rel_tol=1e-9, abs_tol=1e-12)
    return error if is_mean else None


def _group_metrics(
    group: str, results: Any, metrics: Sequence[Metric], notes: dict[str, str]
) -> Iterator[Metric]:
    """Yield lm-eval's aggregates of a group, with the standard error over documents."""
    below = set(_leaves(group, results["group_subtasks"]))
    for key, value in results["results"].get(group, {}).items():
        metric, comma, kind = key.partition(",")
        if not comma or metric.endswith("_stderr") or not isinstance(value, (int, float)):
            continue
        name = NAMES.get(metric, metric) + ("" if kind == "none" else f" ({kind})")
        parts = [m for m in metrics if m.task in below and m.name == name]
        total = sum(part.n for part in parts)
        if not total:
            continue
        weighted = math.fsum(part.value * part.n for part in parts) / total
        errors = [part.stderr for part in parts if part.stderr is not None]
        exact = len(errors) == len(parts) and math.isclose(weighted, value, rel_tol=1e-9)
        squares = [(error * part.n) ** 2 for error, part in zip(errors, parts, strict=False)]
        yield Metric(
            name=name,
            task=group,
            value=float(value),
            unit=parts[0].unit,
            n=total,
            n_unit="documents",
            stderr=math.sqrt(math.fsum(squares)) / total if exact else None,
            higher_is_better=parts[0].higher_is_better,
            notes=notes | {"group": f"{len(parts)} tasks"},
        )


def _leaves(group: str, subtasks: dict[str, list[str]]) -> Iterator[str]:
    for name in subtasks[group]:
        if name in subtasks:
            yield from _leaves(name, subtasks)
        else:
            yield name


def _sample(task: str, logged: dict[str, Any]) -> dict[str, Any]:
    """Return the score of one document, for paired comparisons of models."""
    sample: dict[str, Any] = {
        "task": task,
        "doc_id": logged["doc_id"],
        "doc_hash": logged["doc_hash"],
    }
    if logged["filter"] != "none":
        sample["filter"] = logged["filter"]
    answers = logged["filtered_resps"]
    scored = all(isinstance(answer, (tuple, list)) and len(answer) == 2 for answer in answers)
    if scored and len(answers) == 1:  # one continuation: whether greedy decoding gives it
        sample["loglikelihoods"] = [float(answers[0][0])]
        sample |= {"prediction": int(answers[0][1]), "gold": 1}
    elif scored:
        scores = [float(answer[0]) for answer in answers]
        sample["loglikelihoods"] = scores
        gold = logged["doc"].get("gold", logged["target"])
        sample |= {"prediction": scores.index(max(scores)), "gold": gold}
    else:
        answer = answers[0] if len(answers) == 1 else answers
        sample |= {"prediction": answer, "gold": logged["target"]}
    plain = {m: logged[m] for m in logged["metrics"] if isinstance(logged[m], (int, float))}
    if "acc" in plain:
        sample["correct"] = bool(plain.pop("acc"))
    if scored:
        plain.pop("perplexity", None)  # equals the log-likelihood
    return sample | {name: float(value) for name, value in plain.items()}


def _documents_hash(logged: Sequence[dict[str, Any]]) -> str:
    """Return the SHA-256 over the hashes of all documents, prompts and targets, in order."""
    digest = hashlib.sha256()
    for one in logged:
        for part in ("doc_hash", "prompt_hash", "target_hash"):
            digest.update(one[part].encode())
    return digest.hexdigest()


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence lm-eval's bars and warnings; progress is reported through the suite's context.

    It also describes the machine no more, which runs pip and git (a second); records have their own
    description (harness.records.environment).
    """
    import lm_eval.api.model
    import lm_eval.api.task
    import lm_eval.evaluator

    logger = logging.getLogger("lm_eval")
    level = logger.level
    replaced: list[tuple[Any, str, Callable[..., Any]]] = [
        (lm_eval.evaluator, "add_env_info", lambda _results: None),
        (lm_eval.evaluator, "get_git_commit_hash", lambda: None),
    ]
    for module in (lm_eval.api.task, lm_eval.api.model):
        replaced.append((module, "tqdm", partial(module.tqdm, disable=True)))
    before = [(module, name, getattr(module, name)) for module, name, _ in replaced]
    logger.setLevel(logging.ERROR)
    for module, name, other in replaced:
        setattr(module, name, other)
    try:
        yield
    finally:
        logger.setLevel(level)
        for module, name, own in before:
            setattr(module, name, own)
