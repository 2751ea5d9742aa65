"""OpenAI's graders, run here, as rewards: `reward.NAME.grader=grader.json` (docs/graders.md)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from posttrain.config.schema import RewardConfig
from posttrain.console import print_plain
from posttrain.errors import PosttrainError
from posttrain.rewards import sandbox
from posttrain.rewards.graders import formula, schema, similarity, template
from posttrain.rewards.graders.errors import GraderErrors
from posttrain.rewards.graders.schema import Node, Single
from posttrain.rewards.sandbox import Limits
from posttrain.rewards.text import NOT_COLUMNS, Completion, text_of

if TYPE_CHECKING:
    from posttrain.rewards.graders.embed import Embed
    from posttrain.rewards.judge_client import JudgeClient

LIMITS = tuple(field.name for field in fields(Limits))
JUDGE_ARGS = ("model", "endpoint", "key_env", "concurrency", "timeout", "retries", "backoff", "batch_size", "cache")
_MODEL_GRADERS = (schema.ScoreModel, schema.LabelModel)
ARGS = ("execute", "walls", *LIMITS, *JUDGE_ARGS, "sampling", "embeddings", "wordnet")


def check(entry: RewardConfig, key: str) -> list[str]:
    """Everything wrong with `reward.NAME.grader` and its args that can be known without data or models."""
    assert entry.grader is not None
    start = f"{key}.grader={entry.grader}"
    errors = [f"{key}.args.{name}: a grader takes {', '.join(ARGS)}" for name in entry.args if name not in ARGS]
    errors += sandbox.check(entry.args, f"{key}.args")
    if set(entry.args) & {*JUDGE_ARGS, "sampling", "embeddings"}:
        from posttrain.rewards.judge_client import check_args

        errors += check_args(entry.args, f"{key}.args")
        errors += [
            f"{key}.args.{name}={entry.args[name]}: expected a run, a hub id, or a name at the endpoint"
            for name in ("model", "embeddings")
            if entry.args.get(name) is not None and not isinstance(entry.args[name], str)
        ]
    if not isinstance(wordnet := entry.args.get("wordnet", False), bool):
        errors.append(f"{key}.args.wordnet={wordnet}: expected true or false")
    try:
        node = schema.read(entry.grader)
    except GraderErrors as bad:
        return errors + [f"{start}: {place}: {what}" if place else f"{start}: {what}" for place, what in bad.found]
    if any(isinstance(part, schema.Python) for _, part in schema.parts(node)):
        errors += sandbox.check_walls(entry.args, f"{key}.args")
    for place, part in schema.parts(node):
        errors += [f"{start}: {f'{place}: ' if place else ''}{what}" for what in _missing_requirement(part, entry, key)]
    return errors


def _missing_requirement(part: Single, entry: RewardConfig, key: str) -> list[str]:
    """Requirements of a grader that the config, or this machine, does not meet."""
    if isinstance(part, schema.Python) and entry.args.get("execute") is not True:
        return [f"python: runs code in a limited subprocess; allow it with {key}.args.execute=true"]
    if isinstance(part, _MODEL_GRADERS):
        if entry.args.get("endpoint") is None and entry.args.get("model") is None:
            return [
                f"model={part.model}: set where it answers, {key}.args.endpoint=http://HOST/v1, or a model to load "
                f"here instead, {key}.args.model=RUN_OR_HUB_ID"
            ]
        if entry.args.get("endpoint") is None and part.sampling_params.reasoning_effort is not None:
            return [
                f"sampling_params.reasoning_effort: a model that is loaded here does not take it; leave it out, or set "
                f"{key}.args.endpoint"
            ]
        return []
    if isinstance(part, schema.TextSimilarity):
        if part.evaluation_metric == "cosine" and not entry.args.get("embeddings"):
            return [
                f"evaluation_metric=cosine: set the model whose embeddings are compared, {key}.args.embeddings=MODEL, "
                f"which is loaded here, or with {key}.args.endpoint=http://HOST/v1 asked there"
            ]
        lacking = similarity.missing(part.evaluation_metric, entry.args.get("wordnet") is True)
        return [f"evaluation_metric={part.evaluation_metric}: {lacking}"] if lacking else []
    return []


def missing_columns(entry: RewardConfig, key: str, features: Mapping[str, Any]) -> list[str]:
    """Errors for templates that read a column, or a field of one, that the data does not have."""
    assert entry.grader is not None
    return [
        f"{key}.grader={entry.grader}: {place}: reads {path.text}, and {lacking}"
        for place, path in schema.columns(schema.read(entry.grader))
        if (lacking := _missing_field(path, {"prompt": None, **features}, sorted(features)))
    ]


def _missing_field(path: template.Path, features: Mapping[str, Any], columns: list[str]) -> str | None:
    """A message with the columns or fields that exist, if `path` is missing; `features` are those of `datasets`."""
    found: Any = features
    for n, step in enumerate(path.steps):
        if isinstance(found, Mapping):
            if step not in found:
                where = "the data" if n == 0 else ".".join(("item", *map(str, path.steps[:n])))
                return f"{where} has {', '.join(columns if n == 0 else sorted(found))}"
            found = found[step]
        else:
            found = getattr(found, "feature", None)  # of a list; of anything else nothing is known
    return None


def check_reachable(entry: RewardConfig, key: str) -> None:
    """Raise `PosttrainError` where a model that a grader asks would not answer."""
    from posttrain.rewards.judge_client import open_judge

    assert entry.grader is not None
    given = {name: entry.args[name] for name in JUDGE_ARGS if name in entry.args}
    parts = [part for _, part in schema.parts(schema.read(entry.grader))]
    asked = [part for part in parts if isinstance(part, _MODEL_GRADERS)]
    try:
        for model in dict.fromkeys(given.get("model", part.model) for part in asked):
            open_judge(**{**given, "model": model}).check_reachable()
        if any(isinstance(part, schema.TextSimilarity) and part.evaluation_metric == "cosine" for part in parts):
            from posttrain.rewards.graders import embed

            where = {name: given[name] for name in ("endpoint", "key_env") if name in given}
            embed.check_reachable(entry.args["embeddings"], **where)
    except PosttrainError as error:
        raise PosttrainError(f"{key}.args: {error}") from error


class Grader:
    """A grader as a TRL reward function.

    A row gets None, which leaves it out, if its data lacks a value that a template names, or a model gave no score.
    It gets 0 if its completion lacks the value (`sample.output_json` of a completion that is not JSON), or if code
    fails on it. The first failure of each kind is printed.
    """

    def __init__(self, name: str, node: Node, args: dict[str, Any]):
        self.__name__ = self.name = name
        self.node = node
        self.limits = Limits(**{key: args[key] for key in LIMITS if key in args})
        self.answering = {key: args[key] for key in JUDGE_ARGS if key in args}
        self.sampling: dict[str, Any] = args.get("sampling") or {}
        own = {key: value for key, value in self.answering.items() if key != "batch_size"}  # which is for answers
        self.embedding: dict[str, Any] = {**own, "model": args.get("embeddings")}
        self.wordnet = bool(args.get("wordnet"))
        self._askers: dict[str, JudgeClient] = {}
        self._embed: Embed | None = None
        self._said: Counter[str] = Counter()

    def __call__(self, /, completions: list[Completion], prompts: Any = None, **columns: Any) -> list[float | None]:
        """One score per completion; `item` is the row's columns and its prompt."""
        rows: list[dict[str, Any]] = []
        names = [name for name in columns if name not in NOT_COLUMNS]
        for n, completion in enumerate(completions):
            item = {name: columns[name][n] for name in names}
            if prompts is not None:
                item["prompt"] = prompts[n]
            rows.append({"item": item, "sample": template.sample(text_of(completion))})
        return self._multi(self.node, rows) if isinstance(self.node, schema.Multi) else self._single(self.node, rows)

    def _multi(self, node: schema.Multi, rows: list[dict[str, Any]]) -> list[float | None]:
        by_name = {name: self._single(part, rows, f"graders.{name}") for name, part in node.graders.items()}
        return [self._combined(node, {name: scores[n] for name, scores in by_name.items()}) for n in range(len(rows))]

    def _combined(self, node: schema.Multi, scores: dict[str, float | None]) -> float | None:
        known = {name: value for name, value in scores.items() if value is not None}
        if len(known) < len(scores):
            return None
        try:
            return formula.evaluate(node.formula, known)
        except (ArithmeticError, ValueError) as error:
            return self._failed("calculate_output", f"{error}, for {known}", None)

    def _single(self, part: Single, rows: list[dict[str, Any]], place: str = "") -> list[float | None]:
        place = place or part.type
        if isinstance(part, schema.Python):
            return self._executed(part, rows, place)
        # Rows whose templates cannot be filled get their score before anything is asked or computed.
        scores: list[float | None] = [None] * len(rows)
        filled = []
        for n, row in enumerate(rows):
            try:
                texts = [template.parse(text).render(row) for text in schema.templates(part).values()]
            except template.MissingValue as absent:
                where = f"{place}: {{{{ {absent.path} }}}}"
                scores[n] = self._failed(where, "has no value", 0.0 if absent.of == "sample" else None)
            else:
                filled.append((n, texts))
        values: Sequence[float | None]
        if isinstance(part, (schema.StringCheck, schema.TextSimilarity)):
            values = self._compared(part, [(text, reference) for _, (text, reference) in filled])
        else:
            values = self._ask_model(part, [rows[n] for n, _ in filled], place)
        for (n, _), value in zip(filled, values, strict=True):
            scores[n] = value
        return scores

    def _compared(self, part: schema.StringCheck | schema.TextSimilarity, pairs: list[tuple[str, str]]) -> list[float]:
        if isinstance(part, schema.StringCheck):
            return [float(_CHECKS[part.operation](text, reference)) for text, reference in pairs]
        if part.evaluation_metric != "cosine":
            metric = part.evaluation_metric
            return [similarity.similarity(metric, text, reference, self.wordnet) for text, reference in pairs]
        from posttrain.rewards.graders import embed

        if self._embed is None:
            self._embed = embed.open_embedder(**self.embedding)
        return embed.cosines(self._embed, pairs)

    def _executed(self, part: schema.Python, rows: list[dict[str, Any]], place: str) -> list[float | None]:
        scores: list[float | None] = []
        for outcome in sandbox.run_all(
            [(part.source, "grade", [row["sample"], row["item"]]) for row in rows], self.limits
        ):
            if outcome.error is not None:
                scores.append(self._failed(place, outcome.error, 0.0))
            elif (value := _number(outcome.value)) is None:
                scores.append(self._failed(place, f"grade returned {str(outcome.value)[:60]!r}, no number", 0.0))
            else:
                scores.append(value)
        return scores

    def _ask_model(
        self, part: schema.ScoreModel | schema.LabelModel, rows: list[dict[str, Any]], place: str
    ) -> list[float | None]:
        from posttrain.rewards.graders import model_grader
        from posttrain.rewards.judge_client import open_judge

        model = self.answering.get("model", part.model)
        if model not in self._askers:
            self._askers[model] = open_judge(**{**self.answering, "model": model})
        scores: list[float | None] = []
        for answer in model_grader.ask(part, rows, self._askers[model], self.sampling):
            value: float | None
            if isinstance(part, schema.ScoreModel):
                value = model_grader.score(part, answer)
            else:
                chosen = model_grader.label(part, answer)
                value = None if chosen is None else float(chosen in part.passing_labels)
            what = "score" if isinstance(part, schema.ScoreModel) else "label"
            scores.append(self._failed(place, f"no {what} in {answer[:80]!r}", None) if value is None else value)
        return scores

    def _failed(self, place: str, why: str, score: float | None) -> float | None:
        self._said[place] += 1
        if self._said[place] == 1:
            given = "left out" if score is None else f"scored {score:g}"
            print_plain(f"Grader {self.name}: {place}: {why}; {given}, as every further one will be")
        return score


def open_grader(name: str, entry: RewardConfig) -> Grader:
    """The grader of a reward entry; raises `PosttrainError` for what `check` finds."""
    assert entry.grader is not None
    if errors := check(entry, f"reward.{name}"):
        raise PosttrainError("\n".join(errors))
    node = schema.read(entry.grader)
    if any(isinstance(part, schema.Python) for _, part in schema.parts(node)):
        sandbox.require_walls(f"reward.{name}.args.walls", entry.args.get("walls", "full"))
    return Grader(name, node, entry.args)


_CHECKS: dict[str, Callable[[str, str], bool]] = {
    "eq": lambda text, reference: text == reference,
    "ne": lambda text, reference: text != reference,
    "like": lambda text, reference: reference in text,
    "ilike": lambda text, reference: reference.casefold() in text.casefold(),
}


def _number(value: Any) -> float | None:
    try:
        number = float(value) if isinstance(value, (int, float)) else math.nan
    except OverflowError:  # an integer of hundreds of digits
        return None
    return number if math.isfinite(number) else None
