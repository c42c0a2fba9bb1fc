"""The models that a benchmark is asked for, turned into contenders; it may call on the other tools for that."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import ValidationError

from scdrugmap import _anndata
from scdrugmap._device import Engine
from scdrugmap._errors import InputError, InputTypeError, MissingDependencyError, UnknownNameError
from scdrugmap._keys import KEYS, SENSITIVE
from scdrugmap.evaluation.grid import inputs
from scdrugmap.evaluation.grid.contenders import Contender, Head, array_contender
from scdrugmap.heads.adapt import check_adapt
from scdrugmap.tl._portable import Cells

if TYPE_CHECKING:
    from anndata import AnnData


@dataclass(frozen=True)
class Asked:
    """What is common to the models of one call."""

    root: Any
    adata: AnnData
    mod: str
    heads: Sequence[Head]
    strategies: Sequence[str]
    layer: str | None
    options: Mapping[str, Mapping[str, Any]]
    lora_options: Mapping[str, Any]
    label_key: str
    sample_key: str
    engine: Engine
    store: str | Path | None

    @property
    def machine(self) -> dict[str, Any]:
        """What the other tools are told about the machine."""
        given = {"batch_size": self.engine.batch_size, "device": self.engine.device, "precision": self.engine.precision}
        return {k: v for k, v in given.items() if v is not None}

    def contenders(self, models: Any, counts: inputs.Counted | None) -> tuple[list[Contender], inputs.Counted | None]:
        """One contender per model and strategy, and the counts if any of them is fitted per fold."""
        out: list[Contender] = []
        check_options(_listed(models), self.options, self.lora_options if "lora" in self.strategies else {})
        for name, what in _listed(models).items():
            if callable(what) and not isinstance(what, str):
                out.append(_custom(name, "custom", what, _fingerprint(what)))
            elif isinstance(what, Mapping) or (isinstance(what, list | tuple) and _all_text(what)):
                out.append(self._beside(name, what))
            elif isinstance(what, str):
                found, counts = self._by_name(name, what, counts)
                out += found
            else:
                out.append(array_contender(name, what, self.heads, n=self.adata.n_obs))
        return out, counts

    def adapted(
        self, contenders: Sequence[Contender], counts: inputs.Counted | None, ways: Sequence[str]
    ) -> tuple[list[Contender], inputs.Counted | None]:
        """Every representation once per way of adapting; what trains by itself takes part once, as it is."""
        for way in ways:
            check_adapt(way)
        out: list[Contender] = []
        for c in contenders:
            able = c.kind in ("array", "fitted")
            out += [c] if "none" in ways or not able else []
            out += [c.adapted(way) for way in ways if able and way in ("study", "coral")]
        if "pathways" in ways:
            counts = counts or self._counts("pathways")
            made = inputs.fitted_contender("pathways", counts, self.heads).adapted("study")
            out.append(replace(made, name="pathways"))
        return out, counts

    def _counts(self, what: str) -> inputs.Counted:
        counts, why = inputs.read_counts(self.adata, self.layer)
        if counts is None:
            raise InputError("models", what, "raw counts in X or a layer", f"pass layer= or another model. {why}")
        return counts

    def _beside(self, name: str, keys: Any) -> Contender:
        """Several representations side by side, of several modalities if the mapping says so."""
        from scdrugmap.predictor.representation import ObsmRepresentation

        opened = ObsmRepresentation.open(self.root, keys, self.mod)
        parts = [
            inputs.obsm_contender(_anndata.resolve(self.root, mod=p.mod or self.mod), p.key, name, ())
            for p in opened.parts
        ]
        note = "; ".join(dict.fromkeys(p.note for p in parts if p.note))
        X = opened.features(self.root, self.mod, self.engine)
        return array_contender(name, X, self.heads, n=self.adata.n_obs, note=note, manifest={"obsm": opened.label})

    def _by_name(
        self, name: str, what: str, counts: inputs.Counted | None
    ) -> tuple[list[Contender], inputs.Counted | None]:
        from scdrugmap.models import registry

        if what in self.adata.obsm:
            return [inputs.obsm_contender(self.adata, what, name, self.heads)], counts
        try:
            card = registry.get(what).card
        except UnknownNameError:
            raise UnknownNameError(
                "models", what, [*self.adata.obsm, *registry.keys()], "a model, a key of obsm, or an array."
            ) from None
        options = dict(self.options.get(what, self.options.get(name, {})))
        if card.kind == "fitted":
            counts = counts or self._counts(what)
            return [inputs.fitted_contender(card.key, counts, self.heads, options=options)], counts
        strategies = (
            ["prompt"] if card.kind == "prompt" else [s for s in self.strategies if s != "prompt"] or ["frozen"]
        )
        out = []
        content = repr((what, sorted(options.items()), inputs.expression_digest(self.adata, self.layer)))
        for strategy in strategies:
            if strategy == "frozen":
                out.append(self._embedded(name, what, options, content))
            elif strategy == "lora":
                check_train(what, options)
                tuned = content + repr(sorted(self.lora_options.items()))
                out += [_custom(name, strategy, self._tuned(what, h, options), tuned, h) for h in self.heads]
            else:
                check_prompt(options)
                out.append(_custom(name, strategy, self._prompted(what, options), content))
        return out, counts

    def _embedded(self, name: str, model: str, options: dict[str, Any], content: str) -> Contender:
        """Embed all cells once; groups are samples, so that no cell sees another sample."""
        import anndata as ad

        from scdrugmap.tl._embed import embed

        X = _anndata.counts(self.adata, self.layer)
        var = self.adata.raw.var if _anndata.is_raw(self.adata, self.layer) else self.adata.var
        light = ad.AnnData(X=X, obs=self.adata.obs, var=var)
        options = {
            "context": self.sample_key if self.sample_key in self.adata.obs else None,
            "rng": self.engine.seed,
            "progress": self.engine.progress,
            **self.machine,
        } | renamed(options)
        if self.store is not None:
            folder = hashlib.sha256(f"{content}{self.engine.seed}".encode()).hexdigest()[:32]
            options.setdefault("store", Path(self.store) / "embeddings" / folder)
        embed(light, model, key_added="benchmark", **options)
        light.obsm["X_benchmark"] = np.asarray(light.obsm["X_benchmark"])
        contender = inputs.obsm_contender(light, "X_benchmark", name, self.heads)
        contender.manifest.pop("obsm", None)  # type: ignore[attr-defined]
        return contender

    def _tuned(self, model: str, head: Head, options: dict[str, Any]) -> Callable[..., np.ndarray]:
        """Fine-tune on the training cells and predict the test cells, whose labels were removed."""
        cells, label_key, layer = Cells(self.adata), self.label_key, self.layer
        groups = self.sample_key if self.sample_key in self.adata.obs else None
        options, machine = self.machine | renamed(options), self.machine
        lora_options = dict(self.lora_options) or None

        def predict(train: np.ndarray, test: np.ndarray, seed: int) -> np.ndarray:
            from scdrugmap import tl

            reference, query = _part(cells.adata, train), _part(cells.adata, test, without=label_key)
            predictor = tl.train(
                reference, model=model, strategy="lora", label_key=label_key, groups=groups, head=head.spec,
                head_options=dict(head.options), lora_options=lora_options, layer=layer, rng=seed, **options,
            )  # fmt: skip
            # That the test cells are of another drug or tissue is what such a split is for.
            X = predictor.features(query, layer=layer, **machine)
            return predictor.predict_features(X)["score"].to_numpy(dtype=float)

        return predict

    def _prompted(self, model: str, options: dict[str, Any]) -> Callable[..., np.ndarray]:
        """Ask a chat model; the training cells are where its examples come from."""
        cells, label_key, layer = Cells(self.adata), self.label_key, self.layer

        def predict(train: np.ndarray, test: np.ndarray, seed: int) -> np.ndarray:
            from scdrugmap import tl

            reference, query = _part(cells.adata, train), _part(cells.adata, test, without=label_key)
            shots = {"reference": reference, "label_key": label_key} if options.get("n_shots") else {}
            tl.predict_response(query, model=model, strategy="prompt", layer=layer, rng=seed, **shots, **options)
            scores = query.obs[KEYS.response + KEYS.score].to_numpy(dtype=float)
            calls = query.obs[KEYS.response + KEYS.pred]
            if (np.isnan(scores) & calls.notna().to_numpy()).any():
                # An endpoint without log-probabilities gives calls alone: all cells are scored 0 or 1.
                scores = np.where(calls.isna(), np.nan, calls == SENSITIVE).astype(float)
            return scores

        return predict


def check_options(
    models: Mapping[str, Any], options: Mapping[str, Mapping[str, Any]], lora_options: Mapping[str, Any]
) -> None:
    """Refuse options of models that take no part, and adapters that cannot be made, before anything is trained."""
    from scdrugmap.models import registry

    names = {*models, *(m for m in models.values() if isinstance(m, str)), *inputs.BASELINES}
    # Asking for the card of a network brings PyTorch.
    cards = {registry.get(n).card.key for n in names if _known(n)} if options else set()
    for name in options:
        key = registry.get(name).card.key if _known(name) else name
        if name not in names and key not in cards:
            raise UnknownNameError(
                "embed_options", name, sorted(names), "options go by the name of a model that takes part."
            )
    if lora_options:
        from scdrugmap.lora.adapters import LoRAOptions  # brings PyTorch

        try:
            LoRAOptions(**lora_options)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            field = str(first["loc"][0]) if first["loc"] else "lora_options"
            if first["type"] == "extra_forbidden":
                raise UnknownNameError("lora_options", field, LoRAOptions.model_fields) from None
            raise InputError("lora_options", {field: first.get("input")}, first["msg"], "pass another value.") from None


def _known(name: str) -> bool:
    from scdrugmap.models import registry

    try:
        registry.get(name)
    except UnknownNameError:
        return False
    return True


def check_train(model: str, options: Mapping[str, Any]) -> None:
    """Refuse what neither ``train`` nor the model takes."""
    from scdrugmap import tl
    from scdrugmap.models import registry

    kind: Any = registry.get(model)
    known = {
        *inspect.signature(tl.train).parameters,
        *getattr(getattr(kind, "Options", None), "model_fields", ()),
        "recipe",
        "groups",
    } - {"model_options"}
    for name in options:
        if name not in known:
            raise UnknownNameError("embed_options", name, sorted(known), f"options of {model!r} for strategy='lora'.")


def check_prompt(options: Mapping[str, Any]) -> None:
    """Refuse what the prompt and its client do not take, and a client without its package."""
    from scdrugmap import prompting
    from scdrugmap.prompting.options import ClientOptions
    from scdrugmap.tl._prompt_response import prompt_response

    if find_spec("openai") is None:
        raise MissingDependencyError("openai", "llm", "prompting a chat model")
    known = {
        *inspect.signature(prompt_response).parameters, *inspect.signature(prompting.predict).parameters,
        *ClientOptions.model_fields,
    } - {"options", "client", "X", "genes"}  # fmt: skip
    for name in options:
        if name not in known:
            raise UnknownNameError("embed_options", name, sorted(known), "options of a prompt.")


def renamed(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of embed with ``groups``, as version 0.1 called it, under its name of today."""
    from scdrugmap.tl._embed import renamed_context

    context, rest = renamed_context(options.get("context"), dict(options))
    return rest if context is None else rest | {"context": context}


def _all_text(values: Sequence[Any]) -> bool:
    return len(values) > 0 and all(isinstance(v, str) for v in values)


def _part(adata: AnnData, rows: np.ndarray, without: str | None = None) -> AnnData:
    part = adata[rows].to_memory() if adata.isbacked else adata[rows].copy()
    if without is not None:
        del part.obs[without]
    return part


def _custom(
    name: str, strategy: str, predict: Callable[..., np.ndarray], what: str, head: Head | None = None
) -> Contender:
    digest = hashlib.sha256(f"{strategy}:{what}".encode()).hexdigest()
    return Contender(name, strategy, "custom", digest, (head or Head(""),), predict=predict)


def _fingerprint(function: Callable[..., Any]) -> str:
    """Name and byte code of a function: an edited function is another model, a closed-over value is not seen."""
    code = getattr(function, "__code__", None)
    name = getattr(function, "__qualname__", type(function).__qualname__)
    if code is None:
        return name
    constants = [c for c in code.co_consts if not hasattr(c, "co_code")]
    return repr((name, code.co_code, constants, code.co_names))


def _listed(models: Any) -> dict[str, Any]:
    """Give every model a name."""
    if isinstance(models, str):
        return {models: models}
    if isinstance(models, Mapping):
        return {str(k): v for k, v in models.items()}
    if hasattr(models, "shape") or hasattr(models, "to_numpy"):
        return {"array": models}
    if not isinstance(models, Iterable):
        raise InputTypeError("models", repr(models), "names, obsm keys, arrays or a mapping", "pass models=['pca'].")
    out: dict[str, Any] = {}
    for i, model in enumerate(models):
        name = model if isinstance(model, str) else f"array_{i}"
        if name in out:
            raise InputError("models", f"{name!r} twice", "each model once", "use a mapping to name variants.")
        out[name] = model
    return out
