"""Ranges and combinations of options, held against what the libraries refuse themselves."""

import math
from dataclasses import asdict
from pathlib import Path

import pytest

from posttrain.config import combinations, nested_options, optimizers, options, ranges, trainers
from posttrain.config.reserved_options import RESERVED_OPTIONS
from posttrain.config.schema import RewardConfig, Run
from posttrain.errors import PosttrainError
from posttrain.jobs import preflight
from posttrain.training import library_checks, online
from tests.helpers.runs import compose

CPU = {"use_cpu": True, "bf16": False}
KINDS = {name: trainers.of(name) for name in ("sft", "reward", "dpo", "kto", "grpo", "rloo", "ppo")}
CLASSES = [kind.config for kind in KINDS.values()] + ["LoraConfig", "BitsAndBytesConfig"]
VALUES = (-1, 0, 2, 0.3, 1.5, math.nan, math.inf)


def numeric(cls):
    """The options of a class that take a number, with a number that fits their type."""
    known = options.options_of(cls)
    return [name for name, option in known.items() if any(options.check_type(option, v) is None for v in (3, 0.5))]


def refused(kind, args):
    run = Run()
    run.trainer.kind, run.trainer.args = kind, args
    errors = options.check(KINDS[kind].config, args, "trainer.args", RESERVED_OPTIONS)
    return errors + combinations.check(run) + (online.check(run) if KINDS[kind].samples_completions else [])


def test_every_number_of_every_class_has_a_range():
    skipped = {
        *ranges.UNBOUNDED,
        "fsdp",
        "include_num_input_tokens_seen",
        "trackio_static_space_id",
        *RESERVED_OPTIONS,
    }
    for cls in CLASSES:
        without = [
            name
            for name in numeric(cls)
            if ranges.of_option(cls.rpartition(".")[2], name) is None
            and name not in skipped
            and options.options_of(cls)[name].choices is None
            and options.check_type(options.options_of(cls)[name], "text") is not None
        ]
        assert not without, f"{cls}: {without} have no range; add them to posttrain/config/ranges.py"


def test_the_table_names_options_that_exist():
    known = {name for cls in CLASSES for name in options.options_of(cls)}
    assert {*ranges.RANGES, *ranges.UNBOUNDED, *ranges.NOT_EMPTY, *ranges.WHOLE_ABOVE_1} <= known
    assert {*combinations.PACKAGES} <= known
    for cls, own in ranges.CLASS_RANGES.items():
        assert {*own} <= {*options.options_of(cls)}


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_library_refuses_is_refused_before_it_loads(kind):
    """Each number of the class that no class before had, with values at and beyond the ends."""
    before = {name for other in list(KINDS)[: list(KINDS).index(kind)] for name in numeric(KINDS[other].config)}
    missed = []
    for name in numeric(KINDS[kind].config):
        if name in before or name in RESERVED_OPTIONS:
            continue
        for value in VALUES:
            if refused(kind, {name: value}):
                continue
            try:
                library_checks.check_with_libraries(kind, {**CPU, name: value})
            except PosttrainError as error:
                missed.append(f"{name}={value}: {error}")
    assert not missed, "the library refuses what posttrain/config/ranges.py lets pass"


@pytest.mark.parametrize("text", sorted({*ranges.RANGES.values(), *ranges.SCHEMA_RANGES.values()}))
def test_no_interval_holds_nan(text):
    assert math.nan not in ranges.Interval(text)


@pytest.mark.parametrize(
    ("cls", "given", "said"),
    [
        ("DPOConfig", {"beta": -1}, "beta=-1: expected above 0"),
        ("DPOConfig", {"beta": 0.0}, "beta=0.0: expected above 0"),
        ("GRPOConfig", {"beta": 0.0}, None),
        ("DPOConfig", {"beta": math.nan}, "beta=nan: expected above 0"),
        ("DPOConfig", {"loss_type": []}, "loss_type=[]: expected at least one"),
        ("DPOConfig", {"loss_weights": [1.0, math.inf]}, "expected at least 0"),
        ("SFTConfig", {"seed": 2**32}, "seed=4294967296: expected at least 0 and at most 4294967295"),
        ("SFTConfig", {"seed": 2**32 - 1}, None),
        ("SFTConfig", {"eval_steps": 0}, "eval_steps=0: expected above 0"),
        ("SFTConfig", {"logging_steps": 2.5}, "expected a whole number of steps, or a share of the run below 1"),
        ("SFTConfig", {"max_steps": 0}, "max_steps=0: expected -1, or at least 1"),
        ("SFTConfig", {"max_steps": -1}, None),
        ("SFTConfig", {"max_grad_norm": math.inf}, None),
        ("SFTConfig", {"max_length": 10**12}, "expected at most 2147483647"),
        ("SFTConfig", {"lr_scheduler_kwargs": {"power": math.nan}}, "expected a finite number"),
        ("KTOConfig", {"desirable_weight": -1}, "expected at least 0"),
        ("GRPOConfig", {"num_generations": 1}, "expected at least 2"),
        ("PPOConfig", {"num_generations": 1}, None),
        ("PPOConfig", {"gamma": 1.01}, "expected above 0 and at most 1"),
        ("LoraConfig", {"r": 0}, "r=0: expected at least 1"),
        ("LoraConfig", {"rank_pattern": {"q_proj": 0}}, "expected at least 1"),
        ("BitsAndBytesConfig", {"llm_int8_threshold": -1.0}, "expected at least 0"),
    ],
)
def test_a_number_out_of_range(cls, given, said):
    errors = options.check(cls, given, "trainer.args")
    assert len(errors) == (said is not None)
    assert said is None or said in errors[0]


def test_the_ranges_of_our_own_schema_hold_its_defaults_and_name_its_fields():
    assert ranges.check_schema(asdict(compose("trainer=sft", "model=tiny", "data=squad")[0])) == []
    flat = {path for path in ranges.SCHEMA_RANGES if "*" not in path}
    run = asdict(Run())
    for path in flat:
        group = run
        for part in path.split("."):
            assert part in group, f"{path} is no field of the schema"
            group = group[part]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["data.eval_size=-1"], "data.eval_size=-1: expected at least 0"),
        (["data.min_score=inf"], "data.min_score=inf: expected a finite number"),
        (
            ["+reward.l.function=posttrain.rewards.text.length", "reward.l.weight=nan"],
            "reward.l.weight=nan: expected a",
        ),
        (["data.mix={a: {path: a.jsonl, weight: inf}}"], "data.mix.a.weight=inf: expected above 0"),
        (["alarms.collapse.below=1.5"], "alarms.collapse.below=1.5: expected above 0 and below 1"),
        (["alarms.forgetting.action=alert"], "alarms.forgetting.action=alert: nothing measures it; set probe.texts"),
        (["alarms.length.action=stop", "probe.every=2", "probe.start=false"], "nothing measures it; set probe.start"),
        (["alarms.over_optimisation.action=stop", "probe.every=2"], "nothing measures it; set probe.gold.NAME"),
    ],
)
def test_our_own_numbers(overrides, said):
    with pytest.raises(PosttrainError) as error:
        preflight.check(compose("trainer=dpo", "model=tiny", "data=squad", *overrides)[0])
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("kind", "args", "peft", "said"),
    [
        ("sft", {"bf16": True, "fp16": True}, {}, "bf16=true: fp16=true is set too"),
        ("dpo", {"loss_weights": [1.0]}, {}, None),
        ("dpo", {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0]}, {}, "loss_weights=[1.0]: 1 for 2 loss types"),
        ("dpo", {"sync_ref_model": True}, {}, None),
        ("dpo", {"sync_ref_model": True}, {"method": "lora"}, None),
        ("ppo", {"sync_ref_model": True}, {"method": "lora"}, "sync_ref_model=true: PPO's reference stays"),
        ("dpo", {"f_divergence_type": "forward_kl", "loss_type": ["nca_pair"]}, {}, "nca_pair knows reverse_kl only"),
        ("dpo", {"use_weighting": True, "loss_type": "aot"}, {}, "use_weighting=true"),
        ("grpo", {"auto_find_batch_size": True}, {}, "auto_find_batch_size=true: would break groups"),
        ("grpo", {"generation_batch_size": 8, "steps_per_generation": 1}, {}, "leave one of them out"),
        ("grpo", {"generation_kwargs": {"temperature": 2}}, {}, "generation_kwargs.temperature: set trainer.args.tem"),
        ("ppo", {"generation_kwargs": {"num_beams": 2}}, {}, "generation_kwargs.num_beams: completions are sampled"),
        ("grpo", {"use_vllm": True}, {}, "use_vllm=True: needs the package trl[vllm], which is not installed; pip"),
        ("sft", {"use_liger_kernel": True}, {}, "pip install 'liger-kernel'"),
        ("sft", {"optim": "galore_adamw", "optim_target_modules": ["attn"]}, {}, "pip install 'galore-torch'"),
        ("sft", {"optim": "adamw_torch_8bit"}, {}, "pip install 'torchao'"),
        ("sft", {"optim": "adamw_8bit"}, {}, None),
        ("sft", {"deepspeed": {}, "accelerator_config": "no.json"}, {}, "accelerator_config=no.json: no such file"),
        ("sft", {"load_best_model_at_end": True}, {}, "eval_strategy=epoch and save_strategy=steps must be the same"),
        ("sft", {"lr_scheduler_type": "reduce_lr_on_plateau", "eval_strategy": "no"}, {}, "reads evaluations"),
        ("sft", {"dataloader_prefetch_factor": 2}, {}, "only read with dataloader_num_workers above 0"),
        ("sft", {"packing": True, "max_length": None}, {}, "packing=true: rows are packed up to max_length"),
        ("sft", {"padding_free": True}, {}, "padding_free=true: does not cut"),
        ("sft", {"fsdp_config": {"min_num_params": 1}}, {}, "fsdp_config: nothing reads it without fsdp"),
        ("sft", {"optim_args": "a=1"}, {}, "optim=adamw_torch_fused does not read 'a'; leave it out"),
        ("sft", {"optim": "paged_adamw_8bit", "optim_args": "eps=1"}, {}, "optim=paged_adamw_8bit does not read 'eps'"),
        ("sft", {"optim": "sgd", "optim_args": "beta=1"}, {}, "does not read 'beta'; it reads momentum, dampening"),
        ("sft", {"optim": "sgd", "optim_args": "momentum"}, {}, "optim_args=momentum: expected NAME=VALUE"),
        ("sft", {"optim": "sgd", "optim_args": "momentum=0.9, nesterov=true"}, {}, None),
        ("sft", {"optim_target_modules": ["attn"]}, {}, "optim_target_modules: optim=adamw_torch_fused does not read"),
        ("sft", {"lr_scheduler_kwargs": "{a"}, {}, "lr_scheduler_kwargs={a: is no JSON"),
        ("dpo", {"gradient_checkpointing_kwargs": {"a": 1}}, {}, "gradient_checkpointing_kwargs.a=1: nothing reads it"),
        ("dpo", {"gradient_checkpointing_kwargs": {"selective": True}}, {}, "selective=true: TRL takes it in SFT only"),
        ("sft", {"gradient_checkpointing_kwargs": {"selective": True}}, {}, None),
        ("sft", {"activation_checkpointing_kwargs": {"debug": 2}}, {}, "debug=2: choose from true, false"),
        ("kto", {"train_sampling_strategy": "random"}, {}, "train_sampling_strategy=random: loss_type=kto"),
        ("dpo", {"train_sampling_strategy": "group_by_length"}, {}, "group_by_length: dpo's rows have no one length"),
        ("reward", {"train_sampling_strategy": "batch_rebalance"}, {}, "reward's rows have no one length; leave"),
        ("sft", {"train_sampling_strategy": "group_by_length"}, {}, None),
        ("sft", {"fsdp": "full_shard"}, {}, "fsdp=full_shard: one process has no process group; leave it out"),
        ("sft", {}, {"lora": {"peft_type": "IA3"}}, "peft.lora.peft_type: set by posttrain; it is LORA"),
        ("sft", {}, {"lora": {"revision": "main"}}, "peft.lora.revision: set by posttrain; set model.revision"),
        ("sft", {}, {"lora": {"init_lora_weights": "eva"}}, "init_lora_weights=eva: needs passes over data"),
        ("sft", {}, {"lora": {"init_lora_weights": "corda"}}, "init_lora_weights=corda"),
        ("sft", {}, {"lora": {"init_lora_weights": "loftq"}}, "init_lora_weights=loftq: needs full-precision weights"),
        ("sft", {}, {"lora": {"init_lora_weights": "gausian"}}, "choose from true, gaussian"),
        ("sft", {}, {"lora": {"target_modules": "q_proj("}}, "target_modules=q_proj(: no regular expression"),
        ("sft", {}, {"lora": {"target_modules": "all-linear", "layers_to_transform": [1]}}, "layers_to_transform: not"),
        ("sft", {}, {"quantization": {"load_in_4bit": True, "load_in_8bit": True}}, "load_in_4bit=true is set too"),
        ("sft", {}, {"quantization": {"load_in_4bit": False}}, "nothing would be quantized; choose peft=lora"),
    ],
)
def test_options_that_exclude_or_need_each_other(kind, args, peft, said):
    run = Run()
    run.trainer.kind, run.trainer.args = kind, args
    for name, value in peft.items():
        setattr(run.peft, name, value)
    errors = combinations.check(run)
    assert len(errors) == (said is not None), errors
    assert said is None or said in errors[0]


@pytest.mark.parametrize("kind", KINDS)
def test_a_value_of_a_wrong_type_breaks_no_check(kind):
    """Each option in turn is all that a value of another type can be, and the one message is that of its type."""
    for name in options.options_of(KINDS[kind].config):
        for value in (1, -1.5, True, "x", "{}", "[1]", [1], [{}], {"a": 1}, {"a": [1]}):
            assert all(isinstance(error, str) for error in refused(kind, {name: value})), (name, value)


def test_what_optimizers_read_is_what_the_library_reads():
    """Each optimizer's maker in Transformers, by the names it asks `optim_args` for."""
    import inspect
    import re

    from transformers import trainer_optimizer

    makers = {str(name.value): make for name, make in trainer_optimizer._OPTIMIZER_HANDLERS.items()}
    for key in optimizers.ARGS | optimizers.PACKAGES:
        assert any(optimizers.of_optimizer({key: True}, name) for name in makers), f"{key}: no such optimizer"
    for name, make in makers.items():
        source = inspect.getsource(make)
        read = set(re.findall(r'optim_args(?:\.get\(|\.pop\(|\[)"(\w+)"|"(\w+)" in ctx\.optim_args', source))
        words = {word for pair in read for word in pair if word}
        for loop in re.findall(r"for key in \(([^)]*)\)", source):
            words |= set(re.findall(r'"(\w+)"', loop))
        if make is trainer_optimizer._get_bitsandbytes_optimizer and "ademamix" not in name:
            words = set()
        assert set((optimizers.of_optimizer(optimizers.ARGS, name) or "").split()) == words, name


def test_what_checkpointing_reads_is_what_torch_takes():
    import inspect

    from torch.utils.checkpoint import checkpoint

    taken = set(inspect.signature(checkpoint).parameters) - {"function", "args", "kwargs", "context_fn"}
    assert set(nested_options.CHECKPOINTING) == taken | {"preserve_rng_state", "selective"}


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["+model.kwargs.device_map=mars"], "model.kwargs.device_map: posttrain puts the model where it trains"),
        (["+model.kwargs.load_in_4bit=true"], "model.kwargs.load_in_4bit: choose peft=qlora"),
        (["model.revision=main"], "model.revision=main: embedded:tiny is no repository of the hub; leave it out"),
        (["trainer.teacher.revision=v1"], "trainer.teacher.revision=v1: there is no trainer.teacher.model; leave it"),
        (
            ["data.path=pairs.jsonl", "data.args.words=[1,2]"],
            "data.args.words=[1, 2], data.args.missed=article: only embedded:squad and reasoning_gym:TASK have options",
        ),
        (
            ["~data", "data.mix.a={path: pairs.jsonl, args: {size: 3}}"],
            "data.mix.a.args.size=3: only embedded:squad and reasoning_gym:TASK have options; leave them out",
        ),
        (["data.path=pairs.jsonl", "data.name=x"], "data.name=x: pairs.jsonl is no repository of the hub"),
        (["data.path=[pairs.jsonl]", "data.revision=x"], "data.revision=x: ['pairs.jsonl'] is no repository"),
        (["output_dir=/proc/nope"], "output_dir=/proc/nope: no folder can be made in /proc"),
        (["objective=nope"], "objective=nope: dpo logs no such metric"),
        (["objective=eval_rewards/margin"], "did you mean eval_rewards/margins?"),
        (["objective=probe/kll"], "objective=probe/kll: the probe does not measure it; did you mean probe/kl?"),
        (["objective=probe/nll/wiki"], "objective=probe/nll/wiki: needs texts; set probe.texts"),
        (
            ["objective=eval_loss", "trainer.args.eval_strategy=no", "trainer.args.eval_on_start=false"],
            "nothing is evaluated with eval_strategy=no and eval_on_start=false",
        ),
        (
            ["trainer.args.metric_for_best_model=eval_loss", "trainer.args.eval_strategy=no"],
            "no checkpoint is evaluated with eval_strategy=no",
        ),
        (["trainer.args.metric_for_best_model=nope"], "metric_for_best_model=nope: dpo logs no such metric"),
        (["alarms.over_optimisation.proxy=nope"], "alarms.over_optimisation.proxy=nope: dpo logs no such metric"),
        (["model.path=a/b/c"], "model.path=a/b/c: neither a folder here nor an id of the hub, ORG/NAME"),
        (["model.path=./nope"], "model.path=./nope: no such folder"),
        (["model.eos_token=' '"], "model.eos_token=' ': expected text; leave it out"),
        (["data.path=pairs.jsonl", "data.split=x"], "data.split=x: pairs.jsonl is no repository of the hub"),
        (["output_dir='s3://bucket/x'"], "output_dir=s3://bucket/x: expected a folder of this machine"),
        (["+probe.gold.g.model=no/"], "probe.gold.g.model=no/: neither a folder here nor an id of the hub"),
        (["trainer.args.log_level=loud"], "trainer.args.log_level='loud': choose from detail, debug"),
        (["trainer.args.accelerator_config={split_batches: 3}"], "accelerator_config.split_batches=3: expected bool"),
        (["trainer.args.label_names=[x]"], "trainer.args.label_names: set by posttrain"),
        (["trainer.args.save_only_model=true"], "save_only_model: set by posttrain; a run could not resume"),
        (["trainer.args.hub_model_id=a/b"], "trainer.args.hub_model_id: set by posttrain; run `posttrain export"),
        (["trainer.args.ddp_backend=gloo"], "ddp_backend=gloo: one process has no process group"),
    ],
)
def test_what_would_be_ignored_or_fail_later(overrides, said, pairs, tmp_path):
    with pytest.raises(PosttrainError) as error:
        preflight.check(compose("trainer=dpo", "model=tiny", "data=squad", *overrides)[0])
    (line,) = str(error.value).splitlines()
    assert said in line
    assert [path.name for path in tmp_path.iterdir()] == ["pairs.jsonl"]


def test_every_documented_metric_may_be_an_objective():
    """docs/tracking.md and docs/probe.md, each row for the trainers it names."""
    import re

    from posttrain.config import objective

    docs = Path(__file__).parents[2] / "docs"
    assert {name.split("/")[1] for name in re.findall(r"`(probe/\w+)[/`]", (docs / "probe.md").read_text())} <= {
        *objective.OF_PROBE,
        "samples",
    }
    unknown = []
    for row in re.findall(r"^\| (`.*?) \| ([^|]*) \|", (docs / "tracking.md").read_text(), re.M):
        names = re.findall(r"`([\w/]+)`", row[0].replace("NAME", "length"))
        group = names[0].rpartition("/")[0] if names else ""
        for kind in (kind for kind in KINDS if re.search(rf"\b{kind}\b", row[1].replace("all but reward", ""))):
            for name in names:
                metric = name if "/" in name or not group else f"{group}/{name}"
                run = Run(objective=metric, reward={"length": RewardConfig()})
                run.trainer.kind = kind
                unknown += [f"{kind}: {error}" for error in objective.unmeasured(run)]
    assert not unknown


@pytest.mark.parametrize(
    ("lora", "said"),
    [
        ("{target_modules: [q_proj, nope]}", "peft.lora.target_modules=nope: no such module; there are act_fn, "),
        ("{modules_to_save: [lm_heat]}", "peft.lora.modules_to_save=lm_heat: no such module; did you mean lm_head?"),
        ("{target_modules: [q_proj], layers_to_transform: [99]}", "peft.lora.layers_to_transform=99: the model has 2"),
        ("{target_modules: nope}", "peft.lora: Target modules"),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused_at_plan_time(train, tmp_path, lora, said):
    with pytest.raises(PosttrainError) as error:
        train("+recipe=sft_smollm2", "peft=lora", f"peft.lora={lora}")
    assert said in str(error.value)
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ("trainer.args.lr_scheduler_kwargs={colour: red}", "trainer.args.lr_scheduler_kwargs={'colour': 'red'}: "),
        ("trainer.args.accelerator_config={nope: 1}", "trainer.args.accelerator_config.nope: "),
        ("trainer.args.tf32=true", "trainer.args.tf32=True: --tf32 requires"),
        ("trainer.args.router_aux_loss_coef=0.1", "router_aux_loss_coef=0.1: embedded:tiny has no experts"),
    ],
)
def test_what_only_the_libraries_know_is_said_before_a_run_directory(train, tmp_path, args, said):
    with pytest.raises(PosttrainError) as error:
        train("+recipe=sft_smollm2", args)
    assert said in str(error.value)
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_options_that_skip_the_combinations_are_in_none(kind):
    """Whatever their values, alone and together: without other options `preflight` does not call `combinations`."""
    run = Run()
    run.trainer.kind = kind
    for value in (*VALUES, 1, "x", None):
        run.trainer.args = dict.fromkeys(preflight.UNCOMBINED, value)
        assert combinations.check(run) == []
