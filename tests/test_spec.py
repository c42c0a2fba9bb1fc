"""A field of a run specification is the one place where an argument of a tool is described."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

import scdrugmap as sd
from scdrugmap._errors import SpecError, UnknownNameError
from scdrugmap.cli._app import EXAMPLES, app
from scdrugmap.spec import PYTHON_ONLY, TOOLS, EmbedSpec, PredictSpec, TrainSpec, extra_of

FIELDS = [(name, field) for name, spec in TOOLS.items() for field in spec.model_fields]
#: A value as it is typed, and as the tool gets it, where the type alone does not tell.
TYPED = {
    "conformal": ("0.8", 0.8), "abstain": ("set", "set"), "setting": ("cross", "cross"), "calibrate": ("isotonic",) * 2,
    "strategy": ("lora", "lora"), "precision": ("float32", "float32"), "duplicates": ("ignore", "ignore"),
    "group_context": ("mark", "mark"), "shot_unit": ("sample", "sample"), "test_size": ("0.25", 0.25),
    "options": ("a-b=[1, x]", {"a_b": [1, "x"]}), "head_options": ("epochs=3", {"epochs": 3}),
    "lora_options": ("rank=4", {"rank": 4}), "embed_options": ("scvi={max_epochs: 2}", {"scvi": {"max_epochs": 2}}),
    "split": ("patient", "patient"), "adapt": ("coral", "coral"), "shot_weight": ("2", 2),
    "groups": ("patient", "patient"), "head": ("logistic", "logistic"), "use_rep": ("X_a", "X_a"),
    ("explain", "store"): ("cells", "cells"), "method": ("ig", "ig"), "on_shift": ("abstain", "abstain"),
}  # fmt: skip


def tool(name: str):
    room, function = TOOLS[name].tool.split(".")
    return getattr(getattr(sd, room), function)


@pytest.fixture
def typed(monkeypatch):
    """Run a command and return the specification that it would have run."""
    from scdrugmap.cli import _runs

    seen: list = []
    monkeypatch.setattr(_runs, "run", lambda spec, as_json: seen.append(spec))

    def call(*arguments):
        out = CliRunner().invoke(app, [str(a) for a in arguments])
        assert out.exit_code == 0, out.output
        return seen.pop()

    return call


@pytest.mark.parametrize("name", TOOLS)
def test_every_argument_of_a_tool_is_a_field_with_its_default(name):
    fields = TOOLS[name].model_fields
    as_argument = {n: f for f, about in fields.items() for n in extra_of(about).get("argument", [f])}
    for argument, parameter in inspect.signature(tool(name)).parameters.items():
        if argument in PYTHON_ONLY or parameter.kind is parameter.VAR_KEYWORD:
            continue
        assert argument in as_argument, f"sd.{TOOLS[name].tool}({argument}=) is not in {TOOLS[name].__name__}"
        about = fields[as_argument[argument]]
        if not about.is_required() and argument != "rng":
            assert about.default == parameter.default, argument


@pytest.mark.parametrize(("name", "field"), FIELDS)
def test_every_field_can_be_shown_in_a_form(name, field):
    about = TOOLS[name].model_json_schema()["properties"][field]
    assert about["group"] in ("data", "model", "evaluation", "machine", "output")
    assert len(about["description"]) > 15 and about["description"].endswith(".")
    groups = {extra_of(s.model_fields[field])["group"] for s in TOOLS.values() if field in s.model_fields}
    assert len(groups) == 1, "one word, one group"


@pytest.mark.parametrize(("name", "field"), FIELDS)
def test_every_flag_fills_its_field(typed, name, field):
    about = TOOLS[name].model_fields[field]
    needed = {"input": "a.h5ad", "output": "out", "model": "pca", "models": "pca"}
    needed |= {"predictor": "p"} if name == "explain" else {}
    given = {n: v for n, v in needed.items() if n in TOOLS[name].model_fields and n != field}
    if field == "use_rep":
        given.pop("model")
    flag = (extra_of(about).get("flag") or ["--" + field.replace("_", "-")])[0]
    kind = str(about.annotation)
    plain = ("7", 7) if "int" in kind and "str" not in kind else ("word", Path("word") if "Path" in kind else "word")
    text, value = TYPED.get((name, field), TYPED.get(field, plain))
    if field not in TYPED and "list[" in kind:
        value = [value]
    value = (value,) if "tuple[" in kind else value
    arguments = [] if "bool" not in kind or field == "conformal" else [flag]
    value = True if arguments else value
    arguments = arguments or ([text] if field == "input" else [flag, text])
    for other, v in given.items():
        other_flag = (extra_of(TOOLS[name].model_fields[other]).get("flag") or [f"--{other}"])[0]
        arguments += [v] if other == "input" else [other_flag, v]
    spec = typed(name, *arguments)
    assert getattr(spec, field) == value


def test_lists_are_made_by_repeating(typed):
    spec = typed("benchmark", "a.h5ad", "-o", "r", "-m", "a", "-m", "b", "--split", "sample", "--split", "cell")
    assert spec.models == ["a", "b"]
    assert spec.split == ["sample", "cell"]


@pytest.mark.parametrize("name", TOOLS)
def test_examples_of_the_help_can_be_run(typed, name):
    spec = typed(*EXAMPLES[name].split()[1:])
    assert isinstance(spec, TOOLS[name])
    assert spec.arguments(tool(name))


@pytest.mark.parametrize("name", TOOLS)
def test_what_is_written_can_be_read_again(tmp_path, typed, name):
    spec = typed(*EXAMPLES[name].split()[1:], "--seed", "3", "--set", "further=[1, 2]")
    (tmp_path / "run.yaml").write_text(spec.to_yaml())
    assert TOOLS[name].build(tmp_path / "run.yaml") == spec
    assert typed(name, "--spec", tmp_path / "run.yaml", "--seed", "4") == spec.model_copy(update={"seed": 4})


def test_the_tool_gets_fields_under_its_own_names():
    spec = TrainSpec(input="a.h5ad", output="p", model="pca", seed=5, conformal=0.8, options={"n_components": 3})
    given = spec.arguments(sd.tl.train)
    assert (given["rng"], given["conformal"], given["n_components"]) == (5, 0.8, 3)
    assert not given.keys() & {"seed", "input", "output", "overwrite", "options"}
    inspect.signature(sd.tl.train).bind(None, **given)


def test_a_field_among_the_options_is_the_field(typed):
    spec = typed("train", "a.h5ad", "-o", "p", "-m", "pca", "--set", "calibrate=sigmoid", "--set", "n_components=3")
    assert spec.calibrate == "sigmoid"
    assert spec.options == {"n_components": 3}
    with pytest.raises(SpecError, match="not both"):
        TrainSpec.build(input="a", output="p", model="pca", head="mlp", options={"head": "logistic"})


def test_unknown_options_are_refused_where_the_tool_takes_no_others():
    spec = TOOLS["benchmark"](input="a.h5ad", output="r", models=["pca"], options={"test_sise": 0.2})
    with pytest.raises(UnknownNameError, match="test_size"):
        spec.arguments(sd.tl.benchmark)


def test_the_former_name_of_context_is_taken_with_a_warning(typed):
    with pytest.warns(FutureWarning, match="groups is called context now"):
        spec = EmbedSpec(input="a.h5ad", output="b.h5ad", model=["UCE"], groups="sample")
    assert spec.context == "sample"
    with pytest.warns(FutureWarning):
        assert typed("embed", "a.h5ad", "-o", "b.h5ad", "-m", "UCE", "--groups", "sample").context == "sample"
    given = spec.arguments(sd.tl.embed)
    assert given.get("context", given.get("groups")) == "sample"
    assert "groups" not in yaml.safe_load(spec.to_yaml())


def test_a_new_tool_needs_a_specification_only():
    def novel(adata, *, n_shots=0, rng=None, mod="rna"): ...

    spec = PredictSpec(input="a.h5ad", output="b.csv", n_shots=4, seed=2)
    assert spec.arguments(novel) == {"n_shots": 4, "rng": 2, "mod": "rna"}


def test_a_preset_is_recorded_as_what_it_does():
    from scdrugmap.cli._runs import _effective

    spec = TOOLS["benchmark"](input="a.h5ad", output="r", models=["pca"], preset="strict", n_folds=4)
    ran = _effective(spec)
    assert ran.levels == ("cell", "sample", "patient")
    assert {"all_sensitive", "scvi"} <= set(ran.baselines)
    assert ran.store == Path("r/store") and ran.n_folds == 4
    assert _effective(TOOLS["benchmark"](**yaml.safe_load(ran.to_yaml()))) == ran
    own = TOOLS["benchmark"](input="a.h5ad", output="r", models=["pca"], preset="strict", baselines=["hvg"])
    assert _effective(own).baselines == ["hvg"]


def test_errors_name_the_field_and_the_value():
    with pytest.raises(SpecError, match=re.escape("n_folds: found 1;")):
        TOOLS["benchmark"].build(input="a", output="b", models=["pca"], n_folds=1)
    with pytest.raises(SpecError, match="model or use_rep"):
        TrainSpec.build(input="a", output="b")


def test_a_reproduction_takes_lists_apart_and_reads_its_own_record(tmp_path):
    from scdrugmap.study.spec import ReproduceSpec

    asked = ReproduceSpec.build(figures=["1b-d,2", "3a"], models="scGPT, UCE", shots=["0,4"], prices="0.15,0.6")
    assert asked.figures == ["1", "2", "3"] and asked.models == ["scGPT", "UCE"]
    assert asked.shots == [0, 4] and asked.prices == [0.15, 0.6]
    (tmp_path / "run.yaml").write_text(asked.to_yaml())
    assert ReproduceSpec.build(tmp_path / "run.yaml") == asked
    with pytest.raises(SpecError, match="budget"):
        ReproduceSpec.build(budget=5)
