"""The README's code runs, and its commands are those that CI runs."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_python_blocks_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace: dict = {}
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), namespace)
    assert set(namespace["query"].obs["response_pred"].cat.categories) == {"resistant", "sensitive"}
    assert len(namespace["result"].table)


def test_ci_runs_the_test_command_of_the_readme():
    test_command = next(b for b in blocks("bash") if "pytest" in b).rsplit("&&", 1)[1].strip()
    assert test_command in (ROOT / ".ci" / "run").read_text()


def test_links_point_at_files():
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
