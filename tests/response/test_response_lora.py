from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse
from sklearn.metrics import log_loss
from sklearn.utils.class_weight import compute_sample_weight
from torch import nn

import scdrugmap as sd
from scdrugmap._errors import CheckpointError, InputError, UnknownNameError
from scdrugmap.genes.identifiers import Genes
from scdrugmap.lora import adapters as lora
from scdrugmap.lora import training as lora_training
from scdrugmap.models.base import ModelOptions, NetworkModel
from scdrugmap.models.card import ModelCard
from scdrugmap.models.kit.tokens import Tokens
from scdrugmap.models.tgpt import TGPT

torch.set_num_threads(1)
SYMBOLS = [f"GENE{i}" for i in range(40)]


class TinyNetwork(nn.Module):
    """Mean of squashed gene vectors; one layer is there that takes no part."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.genes = nn.Embedding(n + 1, 8, padding_idx=n)
        self.mix, self.out, self.unused = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, batch):
        x = self.genes(batch["ids"]) * batch["values"][..., None]
        return self.out(torch.tanh(self.mix(x)).sum(1))


class Tiny(NetworkModel):
    card = ModelCard(
        name="Tiny-test", kind="network", architecture="", year=2024, citation="", gene_id="symbol", dim=8,
        lora_targets=("mix", "out"), checkpoints=(),
    )  # fmt: skip
    Options = ModelOptions

    def __init__(self, symbols=SYMBOLS, rng=0, **options):
        super().__init__(**options)
        self._vocabulary = {s: i for i, s in enumerate(symbols)}
        with torch.random.fork_rng():
            torch.manual_seed(rng)
            self.network = TinyNetwork(len(symbols)).eval()
        self.digests = {"weights": f"seed-{rng}"}

    @property
    def dim(self):
        return 8

    @property
    def vocabulary(self):
        return self._vocabulary

    @classmethod
    def from_checkpoint(cls, path, **options):
        return cls(rng=int((path / "seed.txt").read_text()), **options)

    @classmethod
    def random(cls, genes, *, size="tiny", rng=0, **options):
        return cls(rng=rng, **options)

    def tokenize(self, counts):
        X = counts.X
        lengths = np.diff(X.indptr)
        ids = counts.ids[X.indices].astype(np.int64)
        return Tokens(X.indptr.astype(np.int64), ids, np.log1p(X.data).astype(np.float32), lengths > 0)

    def collate(self, tokens):
        ids = torch.from_numpy(tokens.padded(len(self._vocabulary)))
        return {"ids": ids, "values": torch.from_numpy(tokens.padded(0, of="values"))}


@pytest.fixture
def checkpoint(tmp_path):
    sd.models.register(Tiny)
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "seed.txt").write_text("0")
    return folder


def cells(n_samples=12, per_sample=10, seed=0) -> ad.AnnData:
    rng = np.random.default_rng(seed)
    sample = np.repeat(np.arange(n_samples), per_sample)
    sensitive = sample % 2 == 1
    X = rng.poisson(1.0, size=(len(sample), 40))
    X[:, :4] += rng.poisson(np.where(sensitive, 3.0, 0.0)[:, None], size=(len(sample), 4))
    obs = pd.DataFrame(
        {
            "response": np.where(sensitive, "sensitive", "resistant"),
            "sample": [f"s{s}" for s in sample],
        },
        index=[f"c{i}" for i in range(len(sample))],
    )
    return ad.AnnData(sparse.csr_matrix(X.astype(np.float32)), obs=obs, var=pd.DataFrame(index=SYMBOLS))


QUICK = {
    "strategy": "lora", "rng": 0, "head_options": {"hidden": (8,)}, "device": "cpu", "precision": "float32",
}  # fmt: skip


def test_lora_trains_saves_loads_and_predicts(tmp_path, checkpoint):
    adata, query = cells(), cells(seed=1)
    options = {"epochs": 15, "lr": 1e-2, "batch_size": 8, "patience": 15}
    predictor = sd.tl.train(
        adata,
        "Tiny-test",
        head="published",
        checkpoint=checkpoint,
        lora_options=options,
        conformal=0.8,
        ood=True,
        calibrate="sigmoid",
        **QUICK,
    )
    report = predictor.training["lora"]
    assert report["adapter_tensors_with_gradient"] == 4 and report["largest_change_of_output"] > 0
    assert report["target_modules"] == ["mix", "out"] and report["r"] == 8
    assert predictor.training["losses"][-1] < predictor.training["losses"][0]
    predictor.save(tmp_path / "p")
    names = {p.name for p in (tmp_path / "p").iterdir()}
    assert names == {
        "predictor.json", "head.safetensors", "extras.safetensors", "README.md", "adapter_config.json", "adapter_model.safetensors",
    }  # fmt: skip
    again = sd.load_predictor(tmp_path / "p")
    first, second = predictor.predict(query), again.predict(query)
    pd.testing.assert_frame_equal(first, second, check_exact=True)
    sd.tl.predict_response(query, tmp_path / "p")
    np.testing.assert_array_equal(query.obs["response_score"], first["score"])
    assert (query.obs["response_pred"].astype(str) == query.obs["response"]).mean() > 0.8
    assert "Adapters" in predictor.card


def test_the_base_checkpoint_must_be_the_one_of_the_training(tmp_path, checkpoint):
    sd.tl.train(cells(), "Tiny-test", checkpoint=checkpoint, lora_options={"epochs": 1}, **QUICK).save(tmp_path / "p")
    (checkpoint / "seed.txt").write_text("1")
    with pytest.raises(CheckpointError, match="other contents"):
        sd.load_predictor(tmp_path / "p")
    with pytest.raises(CheckpointError, match="other contents"):
        sd.load_predictor(tmp_path / "p", model=Tiny(rng=1))
    sd.load_predictor(tmp_path / "p", model=Tiny(rng=0)).predict(cells())
    frozen = sd.tl.train(cells(), "Tiny-test", checkpoint=checkpoint, head="logistic", rng=0)
    frozen.save(tmp_path / "f")
    (checkpoint / "seed.txt").write_text("2")
    with pytest.raises(CheckpointError, match="other contents"):
        sd.load_predictor(tmp_path / "f").predict(cells())


def test_a_loaded_model_stays_as_it_is():
    model = Tiny()
    before = {k: v.clone() for k, v in model.network.state_dict().items()}
    predictor = sd.tl.train(cells(), model, lora_options={"epochs": 1}, **QUICK)
    after = model.network.state_dict()
    assert list(before) == list(after) and all(torch.equal(before[k], after[k]) for k in before)
    adapted = predictor.representation.model
    assert adapted.digest != model.digest and adapted.digests == model.digests


def test_lora_solves_what_the_frozen_embedding_cannot():
    """A model blind to the genes that matter: their vectors are tiny, so that only an adapter can read them."""
    adata = cells(per_sample=20)
    losses = {}
    for strategy in ("head", "lora"):
        model = Tiny()
        with torch.no_grad():
            model.network.out.weight[:] = 0
            model.network.out.bias[:] = 0
            model.network.out.weight[0] = 0.01
        extra = {"lora_options": {"epochs": 12, "lr": 2e-2, "batch_size": 32, "early_stopping": False}}
        if strategy == "head":
            options = {"hidden": (8,), "epochs": 12, "lr": 2e-2, "batch_size": 32}
            predictor = sd.tl.train(adata, model, head_options=options, rng=0)
        else:
            predictor = sd.tl.train(adata, model, **extra, **QUICK)
        losses[strategy] = predictor.training["training_loss"]
    assert losses["lora"] < 0.5 * losses["head"]


def test_killed_training_goes_on_and_ends_the_same(tmp_path, monkeypatch):
    adata = cells()
    options = {
        "epochs": 3, "lr": 1e-2, "batch_size": 8, "accumulate": 2, "checkpoint_dir": tmp_path, "checkpoint_every": 1,
    }  # fmt: skip
    whole = sd.tl.train(adata, Tiny(), lora_options={**options, "checkpoint_dir": None}, **QUICK)

    class Killed(BaseException):
        pass

    original = lora_training.Trainer._learn
    calls = {"n": 0}

    def learn(self, rows, *, last):
        calls["n"] += 1
        if calls["n"] in (8, 21):
            raise Killed
        return original(self, rows, last=last)

    monkeypatch.setattr(lora_training.Trainer, "_learn", learn)
    for _ in range(2):
        with pytest.raises(Killed):
            sd.tl.train(adata, Tiny(), lora_options=options, **QUICK)
        assert list(tmp_path.iterdir())
    resumed = sd.tl.train(adata, Tiny(), lora_options=options, **QUICK)
    total = calls["n"]
    calls["n"] = 100
    sd.tl.train(adata, Tiny(), lora_options={**options, "checkpoint_dir": None}, **QUICK)
    assert total - 2 < (calls["n"] - 100) + 4, "finished steps were repeated"
    np.testing.assert_array_equal(whole.predict(adata)["score"], resumed.predict(adata)["score"])
    assert whole.training["losses"] == pytest.approx(resumed.training["losses"])
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_of_another_training_is_not_taken_up(tmp_path, monkeypatch):
    options = {"epochs": 2, "checkpoint_dir": tmp_path, "checkpoint_every": 1}
    monkeypatch.setattr(lora_training.Trainer, "forget", lambda self: None)
    sd.tl.train(cells(), Tiny(), lora_options=options, **QUICK)
    monkeypatch.undo()
    a = sd.tl.train(cells(), Tiny(), lora_options={**options, "lr": 1e-2}, **QUICK)
    b = sd.tl.train(cells(), Tiny(), lora_options={**options, "lr": 1e-2, "checkpoint_dir": None}, **QUICK)
    np.testing.assert_array_equal(a.predict(cells())["score"], b.predict(cells())["score"])


def test_adapters_without_gradient_are_refused():
    with pytest.raises(InputError, match="unused"):
        sd.tl.train(cells(), Tiny(), lora_options={"target_modules": ("mix", "unused")}, **QUICK)
    with pytest.raises(InputError, match=r"names of linear layers.*mix"):
        sd.tl.train(cells(), Tiny(), lora_options={"target_modules": ("query",)}, **QUICK)


def test_adapters_that_never_reach_the_output_are_refused(monkeypatch):
    network = lora.attach(Tiny(), lora.LoRAOptions(), 0)
    batch = Tiny().collate(Tokens(np.array([0, 2]), np.array([1, 2]), np.ones(2, np.float32), np.ones(1, bool)))
    with pytest.raises(InputError, match="do not change"):
        lora.output_change(network, batch)
    before = {n: p.clone() for n, p in network.named_parameters()}
    assert lora.check_gradients(network, batch, 0) == 4
    assert all(torch.equal(before[n], p) and p.grad is None for n, p in network.named_parameters())


def test_validation_keeps_samples_whole(monkeypatch):
    seen = {}
    original = lora_training.Trainer.__init__

    def spy(self, module, cells, *rest):
        seen.update(fit=np.concatenate(cells.pools), held=np.concatenate(cells.held_out))
        original(self, module, cells, *rest)

    monkeypatch.setattr(lora_training.Trainer, "__init__", spy)
    adata = cells(n_samples=20)
    predictor = sd.tl.train(adata, Tiny(), conformal=0.8, lora_options={"epochs": 2}, **QUICK)
    samples = adata.obs["sample"].to_numpy()
    fit, held = set(samples[seen["fit"]]), set(samples[seen["held"]])
    assert fit and held and not fit & held
    calibrated = set(samples) - fit - held
    assert len(predictor.conformal.y) == 10 * len(calibrated) > 0
    assert len(predictor.training["validation"]) == 2 and {"loss", "auroc"} <= set(predictor.training["validation"][0])


class Masked(TinyNetwork):
    """The tiny network where padding adds nothing: an embedding does not depend on the cells of the same batch."""

    def forward(self, batch):
        values = batch["values"][..., None]
        return self.out((torch.tanh(self.mix(self.genes(batch["ids"]) * values)) * (values != 0)).sum(1))


class Dropped(TinyNetwork):
    """The tiny network with dropout of its own."""

    def forward(self, batch):
        return nn.functional.dropout(super().forward(batch), 0.5, training=self.training)


def tiny(network):
    """The tiny model with its weights in another network."""
    model = Tiny()
    weights = model.network.state_dict()
    model.network = network(len(SYMBOLS)).eval()
    model.network.load_state_dict(weights)
    return model


@pytest.fixture
def trainers(monkeypatch):
    """Every trainer that is made."""
    made = []
    original = lora_training.Trainer.__init__

    def spy(self, *args):
        original(self, *args)
        made.append(self)

    monkeypatch.setattr(lora_training.Trainer, "__init__", spy)
    return made


@pytest.mark.parametrize("patience", [2, 100])
def test_the_best_epoch_is_kept_whether_training_stops_or_runs_out(trainers, patience):
    """On labels without meaning the validation loss soon rises, so that the last epoch is not the best."""
    adata = cells(n_samples=16)
    sensitive = np.random.default_rng(1).permutation(16)[adata.obs["sample"].str[1:].astype(int)] % 2 == 1
    adata.obs["response"] = np.where(sensitive, "sensitive", "resistant")
    options = {"epochs": 12, "lr": 5e-2, "batch_size": 16, "patience": patience, "early_stopping": True}
    predictor = sd.tl.train(adata, tiny(Masked), lora_options=options, **QUICK)
    losses = [v["loss"] for v in predictor.training["validation"]]
    best = int(np.argmin(losses))
    assert predictor.training["lora"]["best_epoch"] == best + 1 and losses[-1] > losses[best] + 0.01
    assert len(losses) == (best + 3 if patience == 2 else 12)
    held = np.concatenate(trainers[0].cells.held_out)
    score = predictor.predict(adata)["score"].to_numpy(float)[held]
    assert log_loss(sensitive[held], score) == pytest.approx(losses[best], abs=1e-5)


@pytest.mark.parametrize("where", ["lora_options", "head_options"])
def test_class_weights_enter_the_loss(where):
    """With steps too small to move anything, the training loss is that of the scores, weighted."""
    adata = cells(n_samples=15)[np.r_[0:10, 20:30, 30:150]].copy()
    adata.obs["response"] = np.where(np.arange(adata.n_obs) < 20, "sensitive", "resistant")
    options = {"epochs": 1, "lr": 1e-6, "batch_size": 200, "dropout": 0, "early_stopping": False}
    given = {"lora_options": options, "head_options": {"hidden": (8,)}}
    given[where] = {**given[where], "class_weight": "balanced"}
    predictor = sd.tl.train(adata, Tiny(), **{**QUICK, **given})
    score, truth = predictor.predict(adata)["score"].to_numpy(float), adata.obs["response"] == "sensitive"
    weighted = log_loss(truth, score, sample_weight=compute_sample_weight("balanced", truth))
    assert abs(weighted - log_loss(truth, score)) > 0.01, "the weights would not show"
    assert predictor.training["training_loss"] == pytest.approx(weighted, abs=1e-4)


def test_the_network_drops_nothing_unless_base_dropout():
    def losses(network, **options):
        options = {"epochs": 2, "lr": 1e-2, "dropout": 0, "early_stopping": False, **options}
        return sd.tl.train(cells(), tiny(network), lora_options=options, **QUICK).training["losses"]

    plain = losses(TinyNetwork)
    assert losses(Dropped) == plain
    assert losses(Dropped, base_dropout=True) != pytest.approx(plain, rel=1e-3)
    assert losses(TinyNetwork, dropout=0.5) != pytest.approx(plain, rel=1e-3)


def test_several_processes_are_refused(monkeypatch):
    import accelerate

    monkeypatch.setattr(accelerate.Accelerator, "num_processes", 2)
    with pytest.raises(InputError, match="2 processes"):
        sd.tl.train(cells(), Tiny(), lora_options={"epochs": 1}, **QUICK)


def test_same_seed_same_adapters():
    a, b, c = (
        sd.tl.train(cells(), Tiny(), lora_options={"epochs": 1}, **{**QUICK, "rng": r}).predict(cells())["score"]
        for r in (1, 1, 2)
    )
    np.testing.assert_array_equal(a, b)
    assert np.abs(a - c).max() > 0


def test_reduced_precision_and_class_weights():
    options = {"epochs": 1, "class_weight": "balanced", "bias": "lora_only", "peft": {"use_rslora": True}}
    predictor = sd.tl.train(cells(), Tiny(), lora_options=options, **{**QUICK, "precision": "bfloat16"})
    assert predictor.training["lora"]["precision"] == "bfloat16"
    sd.tl.train(cells(), Tiny(), lora_options={"epochs": 1}, **QUICK)


def test_wrong_options_are_named():
    with pytest.raises(UnknownNameError, match="'rank'"):
        sd.tl.train(cells(), Tiny(), lora_options={"rank": 4}, **QUICK)
    with pytest.raises(InputError, match="dropout"):
        sd.tl.train(cells(), Tiny(), lora_options={"dropout": 2}, **QUICK)
    with pytest.raises(InputError, match="network model"):
        sd.tl.train(cells(), "pca", **QUICK)
    with pytest.raises(InputError, match="head"):
        sd.tl.train(cells(), Tiny(), head="logistic", **{**QUICK, "head_options": None})
    with pytest.raises(InputError, match="lora_options"):
        sd.tl.train(cells(), "pca", lora_options={"r": 4}, rng=0)


def test_cells_without_known_genes_are_left_out():
    adata = cells()
    adata.X[3] = 0
    adata.X.eliminate_zeros()
    with pytest.warns(sd._errors.ScDrugMapWarning, match="1 of 120"):
        predictor = sd.tl.train(adata, Tiny(), lora_options={"epochs": 1}, **QUICK)
    assert predictor.training["n_cells"] == 119
    assert np.isnan(predictor.predict(adata)["score"].iloc[3])


def test_a_real_network_trains():
    adata = cells()
    model = TGPT.random(Genes.from_names(SYMBOLS), rng=0)
    predictor = sd.tl.train(adata, model, lora_options={"epochs": 1, "lr": 1e-2}, **QUICK)
    assert predictor.training["lora"]["adapter_tensors_with_gradient"] == 2 * 3 * 2
    assert predictor.predict(adata)["score"].notna().all()


#: Peak learning rate, and cells (attention over a whole vocabulary takes its time).
PARITY = {
    "tgpt": (3e-2, 24), "scbert": (1e-3, 8), "geneformer": (1e-2, 24), "celllm": (3e-2, 24), "scfoundation": (6e-2, 24),
    "scgpt": (1e-2, 24), "uce": (3e-2, 24), "cellplm": (3e-2, 24), "llama38b": (3e-2, 24),
}  # fmt: skip


@pytest.mark.parametrize("name", PARITY)
def test_parity_checkpoints_train(shared, name):
    """On every official layout, adapters fit labels that the head alone fits worse."""
    lr, n = PARITY[name]
    options = {"uce": {"heads": 4, "sample_size": 64}, "scbert": {"max_length": 4000}}.get(name, {})
    folder = shared / "parity" / {"llama38b": "llama"}.get(name, name) / "checkpoint"
    model = sd.models.load(name, folder, **options)
    adata = ad.read_h5ad(shared / "parity" / "input.h5ad")
    # few genes, so that sequences are short; labels that the embedding says nothing about
    genes = np.argsort(-np.asarray((adata.X > 0).sum(0)).ravel(), kind="stable")[:150]
    adata = adata[10 : 10 + n, genes].copy()
    adata.obs["response"] = np.where(np.random.default_rng(0).random(n) < 0.5, "sensitive", "resistant")
    adata.obs["sample"] = np.repeat(["a", "b"], n // 2)
    head = {"hidden": (16,), "standardize": True}
    alike = {"epochs": 15, "batch_size": n}
    tuned = sd.tl.train(
        adata, model, lora_options={**alike, "lr": lr, "head_lr": 1e-3, "early_stopping": False, "dropout": 0, "r": 4},
        **{**QUICK, "head_options": head},
    ).training  # fmt: skip
    frozen = sd.tl.train(
        adata, model, head_options={**head, **alike, "lr": 1e-3}, rng=0, device="cpu", precision="float32"
    ).training
    assert tuned["lora"]["adapter_tensors_with_gradient"] > 0 and tuned["lora"]["largest_change_of_output"] > 0
    assert tuned["training_loss"] < 0.9 * frozen["training_loss"]
