"""Low-rank adapters: put into a network, checked, stored and loaded again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from scdrugmap._errors import CheckpointError, InputError, UnknownNameError
from scdrugmap._files import write_text
from scdrugmap.lora.dropout import use_adapter_dropout


class LoRAOptions(BaseModel):
    """How adapters are made and trained.

    Parameters
    ----------
    r, alpha, dropout, bias
        Rank, scale (``alpha / r`` multiplies the update), dropout before the adapters, and which biases are trained.
    base_dropout
        Whether the network's own dropout is active while the adapters train. Without it the network that is trained is
        the one that predicts, but for the dropout of the adapters.
    target_modules
        Names of linear layers; by default those on the model's card.
    peft
        Further arguments of ``peft.LoraConfig``.
    epochs
        Passes over the training cells, at most.
    lr, head_lr
        Peak learning rates of the adapters and of the head (default: the same).
    weight_decay, max_grad_norm
        Of AdamW, and the norm that gradients are clipped to.
    batch_size
        Cells per forward pass.
    accumulate
        Forward passes per step.
    gradient_checkpointing
        Keep only the input of each layer and compute the rest again in the backward pass: a fraction of the memory for about a
        third more time, with the same gradients.
    warmup
        Share of the steps over which the learning rate rises; it then falls as a cosine to zero.
    class_weight
        ``"balanced"`` or ``None``.
    early_stopping
        Hold out ``validation_fraction`` of the training groups, keep the best epoch, and stop after ``patience`` epochs
        without a lower validation loss. ``None``: if every class has two groups or more.
    checkpoint_dir
        Folder for interrupt-safe checkpoints: a killed call that is repeated goes on where it stopped.
    checkpoint_every
        Steps between checkpoints, besides those at every epoch's end.

    Examples
    --------
    >>> LoRAOptions().r, LoRAOptions(r=4).alpha
    (8, 8)
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    r: int = Field(8, ge=1)
    alpha: int = Field(8, ge=1)
    dropout: float = Field(0.05, ge=0, lt=1)
    bias: Literal["none", "all", "lora_only"] = "none"
    base_dropout: bool = False
    target_modules: tuple[str, ...] | None = None
    peft: dict[str, Any] = Field(default_factory=dict)
    epochs: int = Field(3, ge=1)
    lr: float = Field(1e-4, gt=0)
    head_lr: float | None = Field(None, gt=0)
    weight_decay: float = Field(0.01, ge=0)
    max_grad_norm: float = Field(1.0, gt=0)
    batch_size: int = Field(32, ge=1)
    accumulate: int = Field(1, ge=1)
    gradient_checkpointing: bool = False
    warmup: float = Field(0.1, ge=0, lt=1)
    class_weight: Literal["balanced"] | None = None
    early_stopping: bool | None = None
    validation_fraction: float = Field(0.15, gt=0, lt=1)
    patience: int = Field(2, ge=1)
    checkpoint_dir: Path | None = None
    checkpoint_every: int = Field(200, ge=1)

    @classmethod
    def build(cls, values: Mapping[str, Any] | None) -> LoRAOptions:
        """Check options that a user gave.

        Raises
        ------
        UnknownNameError
            For an option that does not exist.
        InputError
            For a value that cannot be used.
        """
        for name in values or {}:
            if name not in cls.model_fields:
                raise UnknownNameError("lora_options", name, cls.model_fields)
        try:
            return cls(**(values or {}))
        except ValidationError as error:
            first = error.errors()[0]
            name = ".".join(map(str, first["loc"]))
            raise InputError(
                f"lora_options[{name!r}]", first.get("input"), first["msg"], "see scdrugmap.response.LoRAOptions."
            ) from None


def attach(model: Any, options: LoRAOptions, seed: int) -> Any:
    """Put fresh adapters into the network of a model.

    Parameters
    ----------
    model
        A network model; its ``network`` becomes a ``peft.PeftModel`` whose base weights are frozen.
    options
        Rank, targets and so on.
    seed
        Seed of the adapters' starting values.

    Returns
    -------
    The new network.

    Raises
    ------
    InputError
        If no layer has one of the target names.
    """
    from peft import LoraConfig, get_peft_model

    targets = list(options.target_modules or model.card.lora_targets)
    linear = {name for name, m in model.network.named_modules() if isinstance(m, torch.nn.Linear)}
    if not any(name == t or name.endswith(f".{t}") for name in linear for t in targets):
        known = ", ".join(sorted({name.rsplit(".", 1)[-1] for name in linear}))
        raise InputError(
            "lora_options['target_modules']",
            targets,
            f"names of linear layers of {model.card.name} ({known})",
            "pass some.",
        )
    config = LoraConfig(
        r=options.r,
        lora_alpha=options.alpha,
        lora_dropout=options.dropout,
        bias=options.bias,
        target_modules=targets,
        **options.peft,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model.network = get_peft_model(model.network, config)
    use_adapter_dropout(model.network)
    return model.network


def check_gradients(network: Any, batch: Mapping[str, torch.Tensor], seed: int) -> int:
    """Make sure, before the first step, that every adapter receives a gradient.

    Fresh adapters add nothing, for one of their two factors is zero, and the other factor then gets no gradient
    either. So both are set to small random numbers for the check, and put back afterwards.

    Parameters
    ----------
    network
        Of :func:`attach`.
    batch
        One batch on the device of the network.
    seed
        Seed of the random numbers.

    Returns
    -------
    Number of adapter tensors that were checked.

    Raises
    ------
    InputError
        If a tensor of an adapter gets none: what is trained would have no effect.
    """
    adapters = {n: p for n, p in network.named_parameters() if "lora_" in n and p.requires_grad}
    kept = {n: p.detach().clone() for n, p in adapters.items()}
    was_training = network.training
    network.eval()
    generator = torch.Generator().manual_seed(seed)
    try:
        with torch.no_grad():
            for p in adapters.values():
                p.copy_(torch.randn(p.shape, generator=generator) * 0.02)
        with torch.enable_grad():
            out = network(batch).float()
            direction = torch.randn(out.shape, generator=generator).to(out.device)
            (out * direction).sum().backward()
        silent = [n for n, p in adapters.items() if p.grad is None or not bool(p.grad.abs().max() > 0)]
    finally:
        with torch.no_grad():
            for n, p in adapters.items():
                p.copy_(kept[n])
                p.grad = None
        for p in network.parameters():
            p.grad = None
        network.train(was_training)
    if silent:
        layers = sorted({n.split(".lora_")[0].removeprefix("base_model.model.") for n in silent})
        raise InputError(
            "lora_options['target_modules']",
            f"{len(silent)} of {len(adapters)} adapter tensors without gradient, in {', '.join(layers[:4])}",
            "layers that take part in the embedding",
            "leave these layers out of target_modules.",
        )
    return len(adapters)


@torch.no_grad()
def output_change(network: Any, batch: Mapping[str, torch.Tensor]) -> float:
    """Largest difference, in evaluation mode, between the adapted and the base network.

    Parameters
    ----------
    network
        Of :func:`attach`, after training.
    batch
        One batch on the device of the network.

    Returns
    -------
    Maximum absolute difference of the embeddings.

    Raises
    ------
    InputError
        If there is none: the training did not reach the output.
    """
    was_training = network.training
    network.eval()
    adapted = network(batch)
    with network.disable_adapter():
        base = network(batch)
    network.train(was_training)
    change = float((adapted.float() - base.float()).abs().max())
    if not change > 0:
        raise InputError(
            "lora_options", "adapters that do not change the embedding", "a change after training",
            "train longer, or with a higher learning rate.",
        )  # fmt: skip
    return change


def save_adapter(model: Any, folder: Path) -> None:
    """Write the adapter as PEFT does: ``adapter_config.json`` and ``adapter_model.safetensors``.

    Parameters
    ----------
    model
        A model whose network carries adapters.
    folder
        Where to.
    """
    model.network.save_pretrained(str(folder), safe_serialization=True)
    config = folder / "adapter_config.json"
    content = json.loads(config.read_text(encoding="utf-8"))
    content["base_model_name_or_path"] = model.card.name
    write_text(config, json.dumps(content, indent=2, sort_keys=True) + "\n")
    for extra in {p.name for p in folder.iterdir()} - {"adapter_config.json", "adapter_model.safetensors"}:
        (folder / extra).unlink()


def load_adapter(model: Any, folder: Path) -> None:
    """Put a stored adapter into the network of a model.

    Parameters
    ----------
    model
        The model that the adapter was trained on, without adapters.
    folder
        Of :func:`save_adapter`.

    Raises
    ------
    CheckpointError
        If the adapter does not fit the network.
    """
    from peft import PeftModel

    if hasattr(model.network, "peft_config"):
        raise InputError("model", "a model with adapters", "the base model", "load it again: sd.models.load(...)")
    try:
        model.network = PeftModel.from_pretrained(model.network, str(folder), torch_device="cpu").eval()
    except (ValueError, RuntimeError, KeyError) as error:
        raise CheckpointError(
            "path",
            f"an adapter that does not fit {model.card.name}: {error}",
            "the adapter of this model",
            "train again.",
        ) from None
    mark_adapted(model)


def mark_adapted(model: Any) -> None:
    """Give an adapted model a digest of its own, so that no cache takes it for the base model.

    Parameters
    ----------
    model
        A model whose network carries adapters.
    """
    model.__dict__.pop("digest", None)
    digest = hashlib.sha256(model.digest.encode())
    for name, parameter in sorted(model.network.named_parameters()):
        if "lora_" in name:
            digest.update(name.encode())
            digest.update(parameter.detach().float().cpu().contiguous().numpy().tobytes())
    model.__dict__["digest"] = digest.hexdigest()
