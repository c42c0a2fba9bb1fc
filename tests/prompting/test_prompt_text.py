import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from scdrugmap._errors import InputError, UnknownNameError
from scdrugmap._retry import retry_after
from scdrugmap.prompting import Examples, PromptCell, get_template, preview, select_genes
from scdrugmap.prompting.cost import price_of
from scdrugmap.prompting.examples import Choice, content_keys
from scdrugmap.prompting.genes import excluded
from scdrugmap.prompting.templates import without_accession

ORDER = "Please merge the results of 10 cells into a format like this example: {res:1,0,1,1,1,0,0,1,0,0}. \n"


def test_published_prompt_is_the_published_text():
    rows = [[f"G{i}{j}" for j in range(10)] for i in range(10)]
    message = get_template("scdrugmap").messages([PromptCell(row) for row in rows], [], "GSE161801")
    listed = "[" + ", ".join("[" + ", ".join(f"'{g}'" for g in row) + "]" for row in rows) + "]"
    expected = (
        "Please use your knowledge to identify the sensitivity of the following cells to drugs. I will provide you with"
        " the names of the 10 genes with the highest expression in each cell and the source of the data set for these"
        " cells. A total of 10 cells are stored in the outer list, and the genes of each cell are stored in the inner"
        " list. If you think the cell is sensitive, answer 1, and if you think it is resistant, answer 0.\n\n"
        "This is the data source:\nGSE161801\n\nThe following are the gene names:\n" + listed + "\n\n"
        + ORDER + " " + ORDER + " " + ORDER
    )  # fmt: skip
    assert message == [{"role": "user", "content": expected}]


def test_published_prompt_tells_its_real_numbers():
    text = get_template("published").messages([PromptCell(["A", "B"])] * 3, [], None)[0]["content"]
    assert "names of the 2 genes" in text
    assert "total of 3 cells" in text
    assert "{res:1,0,1}" in text
    assert "undisclosed" in text


def test_default_prompt_tells_shared_context_once_and_examples_with_labels():
    drug = {"drug": "gefitinib"}
    cells = [PromptCell(["EGFR"], drug | {"tissue": "lung"}), PromptCell(["MYC", "KRAS"], drug | {"tissue": "blood"})]
    template = get_template("default")
    text = template.messages(cells, [PromptCell(["TP53"], drug, 1)], None)[-1]["content"]
    assert text.count("gefitinib") == 1
    assert "- cell 1 (tissue: lung): EGFR\n- cell 2 (tissue: blood): MYC, KRAS" in text
    assert "- label 1: TP53" in text
    schema = template.schema(2)["properties"]["answers"]["items"]
    assert schema["required"] == ["cell", "label"]
    assert schema["additionalProperties"] is False


def test_unknown_template_is_named():
    with pytest.raises(UnknownNameError, match="scdrugmap"):
        get_template("scdrugmapp")


@pytest.mark.parametrize("text", ["GSE161801", "gsm12", "SRP12345", "PRJNA1", "E-MTAB-6149", "phs001"])
def test_accessions_are_hidden(text):
    assert without_accession(f"a {text} b") == "a undisclosed b"


@pytest.mark.parametrize("kind", [np.asarray, sparse.csr_matrix, sparse.csc_matrix, sparse.csr_array])
def test_genes_are_the_highest_of_each_cell(kind):
    draw = np.random.default_rng(1)
    X = draw.poisson(1.0, (60, 40)).astype(float)
    X[3] = 0
    names = np.array([f"G{i}" for i in range(40)])
    lists = select_genes(kind(X), names, 7)
    for i in range(60):
        order = np.argsort(-X[i], kind="stable")[:7]
        assert lists[i] == names[[j for j in order if X[i, j] > 0]].tolist()
    assert lists.lengths[3] == 0


def test_contrast_agrees_with_a_dense_calculation():
    X = np.random.default_rng(2).poisson(1.0, (50, 30)).astype(float)
    lists = select_genes(X, [str(i) for i in range(30)], 5, ranking="contrast")
    L = np.log1p(1e4 * X / np.maximum(X.sum(axis=1, keepdims=True), 1))
    Z = np.where(X > 0, (L - L.mean(axis=0)) / (L.std(axis=0) + 0.1), -np.inf)
    assert [lists[i] for i in range(50)] == [[str(j) for j in np.argsort(-z, kind="stable")[:5]] for z in Z]


def test_families_leave_their_neighbours_alone():
    inside = [
        "RPS6",
        "RPL13A",
        "RPS4Y1",
        "RPL7L1",
        "RPL36AL",
        "RPLP0",
        "RPSA",
        "MT-CO1",
        "HBA1",
        "HBB",
        "MALAT1",
        "Rps6",
    ]
    outside = ["RPS6KA1", "RPS6KB1", "RPS19BP1", "HBEGF", "HBP1", "MTOR", "MTRNR2L1", "RPTOR"]
    families = ("mitochondrial", "ribosomal", "haemoglobin", "noncoding")
    assert excluded(inside, families).all()
    assert not excluded(outside, families).any()
    assert excluded(["FOS"], ["^FO"]).all()
    with pytest.raises(UnknownNameError, match="ribosomal"):
        excluded(["FOS"], ["ribosome"])


@pytest.mark.parametrize("value", [np.nan, np.inf, -1.0])
def test_bad_counts_are_refused(value):
    with pytest.raises(InputError):
        select_genes(np.array([[1.0, value]]), ["A", "B"], 2)


def test_random_examples_are_balanced_reproducible_and_the_same_for_all_prompts():
    y = np.array([0, 1, -1] * 20)
    one, two = (Choice(y, 4, "random", np.random.default_rng(5)) for _ in range(2))
    assert np.array_equal(one(np.arange(3)), two(np.arange(3)))
    assert np.array_equal(one(np.arange(3)), one(np.array([9])))
    assert np.bincount(y[one(np.arange(3))]).tolist() == [4, 4]
    drawn = {tuple(sorted(Choice(y, 4, "random", np.random.default_rng(s))(np.arange(1)))) for s in range(20)}
    assert len(drawn) > 15


def test_nearest_examples_agree_with_brute_force():
    draw = np.random.default_rng(3)
    E, Q, y = draw.normal(size=(40, 3)), draw.normal(size=(6, 3)), draw.integers(0, 2, 40)
    E[0], Q[5] = np.nan, np.nan
    choice = Choice(y, 3, "nearest", draw, E, Q)
    for i in range(5):
        distance = np.where(np.isnan(E).any(axis=1), np.inf, np.linalg.norm(E - Q[i], axis=1))
        expected = {r for c in range(2) for r in np.argsort(np.where(y == c, distance, np.inf))[:3]}
        assert set(choice(np.array([i])).tolist()) == expected
    joint = choice(np.arange(5))
    assert np.bincount(y[joint]).tolist() == [3, 3]
    firsts = {
        int(np.argmin(np.where(y == 0, np.nan_to_num(np.linalg.norm(E - q, axis=1), nan=9e9), 9e9))) for q in Q[:5]
    }
    assert set(joint[y[joint] == 0].tolist()) <= firsts or len(firsts) < 3


def test_too_few_examples_are_refused():
    with pytest.raises(InputError, match="at most 1, the usable sensitive"):
        Choice(np.array([0, 0, 1]), 2, "random", np.random.default_rng(0))
    with pytest.raises(InputError, match="without an embedding"):
        Choice(np.array([0, 1]), 1, "nearest", np.random.default_rng(0))


def test_no_cell_in_question_is_an_example(cells):
    X, genes, y = cells
    order = np.random.default_rng(0).permutation(len(genes))
    examples = Examples(X[:, order], [genes[i] for i in order], y)
    with pytest.raises(InputError, match="at most 0"):
        preview(X, genes, examples=examples, n_shots=1, cache=False)
    from scdrugmap.prompting.options import ClientOptions
    from scdrugmap.prompting.plan import make_plan

    rest = {"n_genes": None, "cells_per_prompt": 5, "ranking": "expressed", "exclude": None, "context": None}
    rest |= {
        "source": None,
        "show_accession": False,
        "n_shots": 4,
        "shots": "random",
        "embedding": None,
        "shuffle": None,
    }
    plan = make_plan(
        X[:20], genes, ClientOptions(), get_template("default"), examples=examples, rng=np.random.default_rng(0), **rest
    )
    assert plan.n_reference_excluded == 20
    assert all((plan.shots(rows) >= 20).all() for rows in plan.chunks)


def test_content_keys_differ_between_cells():
    X = sparse.csr_matrix(np.random.default_rng(0).poisson(1.0, (500, 30)))
    assert len(np.unique(content_keys(X, [f"G{i}" for i in range(30)]))) == len(np.unique(X.toarray(), axis=0))


def test_preview_counts_without_a_key(cells, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    X, genes, _ = cells
    X = np.vstack([X, np.zeros((3, 8), dtype=int)])
    estimate = preview(X, genes, cache=False, prices={"gpt-4o-mini": (0.15, 0.6)}, base_url="https://example.org/v1")
    assert (estimate.n_cells, estimate.n_empty, estimate.n_requests, estimate.n_cached) == (47, 3, 5, 0)
    assert estimate.cost == pytest.approx((0.15 * estimate.input_tokens + 0.6 * estimate.output_tokens) / 1e6)
    assert "estimate" in str(estimate)
    assert "cell 10" in estimate.text
    assert preview(X, genes, cache=False).cost is None


def test_prompts_hold_cells_in_shuffled_order_and_each_once(cells):
    from scdrugmap.prompting.options import ClientOptions
    from scdrugmap.prompting.plan import make_plan

    X, genes, _ = cells
    rest = {"n_genes": None, "cells_per_prompt": 10, "ranking": "expressed", "exclude": None, "context": None}
    rest |= {"show_accession": False, "examples": None, "n_shots": 0, "shots": "random", "embedding": None}

    def chunks(template, seed, source=None, shuffle=None):
        plan = make_plan(
            X, genes, ClientOptions(), get_template(template), source=source, shuffle=shuffle,
            rng=np.random.default_rng(seed), **rest,
        )  # fmt: skip
        assert sorted(np.concatenate(plan.chunks).tolist()) == list(range(47))
        return plan.chunks

    assert [c.tolist() for c in chunks("scdrugmap", 0)] == [list(range(i, min(i + 10, 47))) for i in range(0, 47, 10)]
    first, again, other = chunks("default", 0), chunks("default", 0), chunks("default", 1)
    assert np.array_equal(first[0], again[0])
    assert not np.array_equal(first[0], other[0])
    assert np.ptp(first[0]) > 20
    source = np.array(["a", "b"])[np.arange(47) % 2]
    assert all(len(set(source[c])) == 1 for c in chunks("scdrugmap", 0, source.tolist(), True))


def test_context_is_told_on_one_line_without_accessions(cells):
    X, genes, _ = cells
    context = pd.DataFrame({"drug": ["x\ny GSE12345", None] * 23 + ["z"], "tissue": pd.Categorical(["lung"] * 47)})
    hidden = preview(X, genes, context=context, cache=False).text
    shown = preview(X, genes, context=context, cache=False, show_accession=True).text
    assert "x y undisclosed" in hidden
    assert "GSE" not in hidden
    assert "x y GSE12345" in shown
    assert "tissue: lung" in hidden
    assert "nan" not in hidden.lower().split("cells to judge")[1]


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"n_shots": 2}, "examples="),
        ({"n_shots": 2, "template": "scdrugmap"}, "no examples"),
        ({"n_genes": 0}, "n_genes"),
        ({"cells_per_prompt": 0}, "cells_per_prompt"),
        ({"prices": "cheap"}, "prices"),
        ({"prices": {"other": (1, 2)}}, "prices"),
        ({"concurrency": 0}, "concurrency"),
        ({"temprature": 0}, "temprature"),
        ({"base_url": "localhost:8000"}, "base_url"),
        ({"source": ["a"]}, "source"),
        ({"context": pd.DataFrame({"a": [1]})}, "context"),
    ],
)
def test_bad_arguments_are_named(cells, arguments, word):
    X, genes, _ = cells
    with pytest.raises(InputError, match=word):
        preview(X, genes, cache=False, **arguments)


def test_prices_are_found_by_the_longest_name():
    table = {"gpt-4o": (2.5, 10.0), "gpt-4o-mini": (0.15, 0.6)}
    assert price_of("gpt-4o-mini-2024-07-18", table) == (0.15, 0.6)
    assert price_of("x", {"input": 1, "output": 2}) == (1, 2)


def test_retry_after_is_read_in_all_its_forms():
    assert retry_after({"retry-after": "7"}) == 7
    assert retry_after({"retry-after-ms": "250", "retry-after": "7"}) == 0.25
    assert retry_after({"retry-after": "soon"}) is None
    assert retry_after({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}) == 0
    assert retry_after({"retry-after": "Wed, 21 Oct 2095 07:28:00 GMT"}) > 1e6
