"""The roles of one base model in PPO, each of them an adapter: policy, reference, value function, reward model."""

import copy
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from safetensors.torch import load_file, save_file
from torch import nn

from .forward import add_completion_forward

POLICY = "default"
REFERENCE = "ref"
VALUE = "value"
REWARD = "reward"

HEAD_FILE = "value_head.safetensors"
STATE_FILE = "ppo_state.json"
ADAPTER_FILE = "adapter_model.safetensors"


def adapter_state(model: PeftModel, adapter: str) -> dict[str, torch.Tensor]:
    # "auto" would look the base model up on the Hub to see whether its embeddings were resized.
    return get_peft_model_state_dict(model, adapter_name=adapter, save_embedding_layers=False)


def scalar_head(weight: torch.Tensor, device: torch.device) -> nn.Linear:
    """A linear head, (…, H) to (…, 1), in float32 with the given weight, (1, H)."""
    head = nn.Linear(weight.shape[1], 1, bias=False, dtype=torch.float32)
    head.weight.data.copy_(weight)
    return head.to(device)


def load_reward(model: Any, folder: str | Path) -> nn.Linear:
    """Add the LoRA adapter that `RewardTrainer` saved in `folder` to `model`, as `reward`; returns its frozen head.

    Raises:
        ValueError: if weights are missing or do not fit this base model.
    """
    config = PeftConfig.from_pretrained(str(folder))
    # The score head is kept outside the model, so that checkpoints, optimizers and vLLM do not see it.
    config.modules_to_save = None
    config.task_type = "CAUSAL_LM"
    config.inference_mode = True
    config.init_lora_weights = True
    weights = load_file(Path(folder) / ADAPTER_FILE)
    head = {key: weights.pop(key) for key in list(weights) if key.split(".")[-2] in ("score", "classifier")}
    model.add_adapter(REWARD, config)
    expected = adapter_state(model, REWARD)
    wrong = [k for k in {*weights, *expected} if k not in weights or k not in expected]
    wrong += [k for k in weights if k in expected and weights[k].shape != expected[k].shape]
    if wrong:
        raise ValueError(
            f"reward_adapter={str(folder)!r} does not fit the policy's base model: {len(wrong)} weights are "
            f"missing, unknown or of another shape, e.g. {sorted(wrong)[0]}. Train it on the same base."
        )
    set_peft_model_state_dict(model, weights, adapter_name=REWARD)
    device = model.get_base_model().get_output_embeddings().weight.device
    score = scalar_head(next(v for k, v in head.items() if k.endswith("weight")), device)
    for key, value in head.items():
        if key.endswith("bias"):
            score.bias = nn.Parameter(value.float().to(device))
    return score.requires_grad_(False)


class Roles:
    """Switches a model between its roles and keeps track of what is trained.

    Outside `use` and `reference` the policy is active, and every trained parameter requires a gradient. PEFT's own
    switches silently freeze inactive adapters. `use` does not; `repair` undoes it after code that calls PEFT's.

    Args:
        model: the policy as TRL prepared it: a `PeftModel` whose policy adapter is called `default` (and, where it was
            passed ready-made, with a frozen copy called `ref`), or a plain model that is trained in full.
        temperature: that of sampling, at which log-probabilities are computed.
    """

    def __init__(self, model: Any, temperature: float = 1.0):
        self.model = model
        self.is_peft = isinstance(self.model, PeftModel)
        self.base: Any = self.model.get_base_model() if self.is_peft else model
        self.reward_head: nn.Linear | None = None
        self.value_adapter_parameters: list[nn.Parameter] = []
        self._layers: list[Any] = []
        self._policy_parameters = [p for p in self.model.parameters() if p.requires_grad]
        if not self._policy_parameters:
            raise ValueError("The policy has nothing to train: load its adapter with is_trainable=True.")
        modules: list[Any] = [m for m in self.model.modules() if hasattr(m, "support_avx512bf16_for_cpu")]
        for module in modules:
            # On CPUs with AVX512-BF16, bitsandbytes repacks 4-bit weights in a forward without gradients, and
            # gradients do not flow through the packed form.
            module.support_avx512bf16_for_cpu = False
        if self.has_reference_adapter:
            self._copy_adapter(POLICY, REFERENCE)
        add_completion_forward(self.base, temperature)

    @property
    def has_reference_adapter(self) -> bool:
        return self.is_peft and REFERENCE in self.model.peft_config

    @property
    def value_head(self) -> nn.Linear:
        return self.base.value_head

    @property
    def value_parameters(self) -> list[nn.Parameter]:
        head = self.value_head.parameters() if hasattr(self.base, "value_head") else []
        return [*self.value_adapter_parameters, *head]

    @property
    def trained_parameters(self) -> list[nn.Parameter]:
        return [*self._policy_parameters, *self.value_parameters]

    # Building

    def add_reward_adapter(self, folder: str | Path) -> None:
        """Load the LoRA adapter and score head that `RewardTrainer` saved in `folder`, frozen; see `load_reward`."""
        self.reward_head = load_reward(self.model, folder)
        self._settle()

    def add_value_function(self, mode: str, init: str, config: PeftConfig | None, scale: float = 1.0) -> None:
        """Add the value head and, in `adapter` mode, the value adapter.

        Args:
            mode, init: `PPOConfig.value_mode` and `PPOConfig.value_init`.
            config: adapter to create; None takes the policy's (or, with `init="reward"`, the reward's) shape.
            scale: with `init="reward"`, weight of the reward model in the score.
        """
        if mode == "adapter":
            source = REWARD if init == "reward" else POLICY
            config = copy.deepcopy(config or self.model.peft_config[source])
            config.inference_mode = False
            if hasattr(config, "modules_to_save"):
                config.modules_to_save = None
            if hasattr(config, "init_lora_weights") and config.init_lora_weights is not False:
                # Some initialisations (PiSSA, LoftQ …) change the base weights, which are shared.
                config.init_lora_weights = True
            self.model.add_adapter(VALUE, config)
            if init == "reward":
                self._copy_adapter(REWARD, VALUE)
            self.model.set_adapter(VALUE)
            self.value_adapter_parameters = [p for p in self.model.parameters() if p.requires_grad]
        # Added last: an adapter on all linear layers would otherwise target this head too.
        width = self.base.get_output_embeddings().weight.shape[1]
        start = torch.zeros(1, width)
        if init == "reward" and self.reward_head is not None:
            start = scale * self.reward_head.weight.detach()
        self.base.value_head = scalar_head(start, self.base.get_output_embeddings().weight.device)
        self._settle()

    def _settle(self) -> None:
        """Activate the policy and find the layers to switch, after adapters were added."""
        if self.is_peft:
            self.model.set_adapter(POLICY)
            kinds = (BaseTunerLayer, AuxiliaryTrainingWrapper)
            self._layers = [module for module in self.model.modules() if isinstance(module, kinds)]
        self.repair()

    def _state(self, adapter: str) -> dict[str, torch.Tensor]:
        return adapter_state(self.model, adapter)

    def _copy_adapter(self, source: str, target: str) -> None:
        # Also aligns the precision: TRL rounds a quantized model's policy adapter to bfloat16 after copying it.
        parameters = dict(self.model.named_parameters())
        for name, parameter in parameters.items():
            # An adapter's name is a part of a parameter's name, for embeddings the last: `lora_embedding_A.default`.
            own = ".".join(target if part == source else part for part in name.split("."))
            if own != name and (copied := parameters.get(own)) is not None:
                copied.data = parameter.detach().clone()

    # Switching

    @contextmanager
    def use(self, adapter: str | None) -> Iterator[None]:
        """Within, `adapter` is active (None: the bare base model). On a model without adapters, nothing changes.

        Do the backward pass inside too: gradient checkpointing recomputes under the adapter that is active then.
        """
        # `PeftModel.set_adapter` and `disable_adapter` also freeze the adapters that are not active, and visit every
        # module and parameter to do so; here this happens for every microbatch.
        for layer in self._layers:
            layer._active_adapter, layer._disable_adapters = [adapter or POLICY], adapter is None
        try:
            yield
        finally:
            for layer in self._layers:
                layer._active_adapter, layer._disable_adapters = [POLICY], False

    def reference(self) -> Any:
        """Within, the model is the reference: the frozen copy of the starting adapter, or the base without adapters."""
        return self.use(REFERENCE if self.has_reference_adapter else None)

    def repair(self) -> None:
        """Make every trained parameter require a gradient, after something switched adapters the way PEFT does."""
        for parameter in self.trained_parameters:
            if not parameter.requires_grad:
                parameter.requires_grad_(True)

    @contextmanager
    def bare(self) -> Iterator[None]:
        """Within, the model has neither a value head nor a reward adapter to save, cast or send to vLLM."""
        head = self.base._modules.pop("value_head")
        reward = self.model.peft_config.pop(REWARD, None) if self.is_peft else None
        try:
            yield
        finally:
            self.base._modules["value_head"] = head
            if reward is not None:
                self.model.peft_config[REWARD] = reward

    # Saving

    def save(self, folder: str | Path, kl_coef: float) -> None:
        """Save what `save_pretrained` leaves out: the value head and the KL coefficient."""
        save_file({"weight": self.value_head.weight.detach().contiguous().cpu()}, Path(folder) / HEAD_FILE)
        (Path(folder) / STATE_FILE).write_text(json.dumps({"kl_coef": kl_coef}) + "\n")

    def load(self, folder: str | Path) -> float:
        """Restore value head and adapters from a checkpoint; returns its KL coefficient.

        Weights are copied into the existing parameters: `PeftModel.load_adapter` would freeze all adapters but one and
        change the precision of a quantized model's adapter.

        Raises:
            ValueError: if `folder` lacks a file or a weight that this trainer needs.
        """
        folder = Path(folder)
        adapters = {}
        if self.is_peft:
            adapters = {
                name: folder / name / ADAPTER_FILE for name in (REFERENCE, VALUE) if name in self.model.peft_config
            }
            adapters[POLICY] = folder / ADAPTER_FILE
        needed = [*adapters.values(), folder / HEAD_FILE, folder / STATE_FILE]
        missing = [str(file.relative_to(folder)) for file in needed if not file.is_file()]
        if missing:
            raise ValueError(
                f"{folder} is not a checkpoint of this PPO run: it lacks {', '.join(missing)}. Resume with the "
                "value_mode, peft_config and model that the run was started with."
            )
        for name, file in adapters.items():
            weights = load_file(file)
            if self._state(name).keys() - weights.keys():
                raise ValueError(
                    f"{file} lacks weights of the adapter this run trains: start with the same peft_config."
                )
            set_peft_model_state_dict(self.model, weights, adapter_name=name)
        self.value_head.weight.data.copy_(load_file(folder / HEAD_FILE)["weight"])
        return json.loads((folder / STATE_FILE).read_text())["kl_coef"]
