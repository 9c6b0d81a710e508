"""OneRuler through the harness, and from published files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from compass_ray.artifacts import Storage
from compass_ray.config import Evaluation, OneRuler, Training
from compass_ray.errors import UserError
from compass_ray.evaluation.harness import Harness
from compass_ray.evaluation.oneruler.items import OneRulerItems
from tests.conftest import write_jsonl

PARTS = {
    "task": "Read this.\n<text>\n{context}\n</text>\n",
    "needle_numbers": 'The number of "{key}" is: {value} ',
    "question_single_numbers": '<Question> Which numbers of "{query1}"?',
    "question_multi_numbers": '<Question> Which numbers of "{query1}" and "{query2}"?',
    "please_list": "List all.",
    "if_no_numbers": 'If there are none, say "none".</Question>\n',
    "answer_prefix": "Like this:\n",
    "answer_numbers": "<Answer> numbers </Answer>",
    "none": "none",
}


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """A data folder as it is published, with very little in it."""
    for folder in ("prompt/en", "books/en", "vocab"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "prompt/en/niah.txt").write_text(json.dumps(PARTS))
    (tmp_path / "prompt/en/cwe.txt").write_text("Words: <List> {context} </List> Which ten?")
    (tmp_path / "books/en/book.txt").write_text("It was a dark night. Nobody spoke. " * 30)
    nouns = ["en\tde", *(f"noun{chr(97 + i)}\tWort{chr(97 + i)}" for i in range(26))]
    (tmp_path / "vocab/100_noun_list_translated.tsv").write_text("\n".join(nouns))
    return tmp_path


def items(model: Path, tmp_path: Path, data: Path | None = None, **settings: object):
    chosen = OneRuler(**{"lengths": [600], "samples": 2, "tasks": ["niah_multiquery"], **settings})
    storage = Storage.open(str(tmp_path / "storage"))
    return OneRulerItems("en", chosen, str(model), data and str(data), storage, ())


def test_published_prompts_books_and_nouns_are_used(tiny_model: Path, published: Path) -> None:
    (task,) = items(tiny_model, published, published).build()
    for item in task.eval_docs:
        assert item["input"].startswith("Read this.\n<text>\n")
        assert "It was a dark night." in item["input"]
        assert '" and "noun' in item["input"]
        assert item["input"].endswith(
            'List all. If there are none, say "none".</Question>\nLike this:\n '
            "<Answer> numbers </Answer>"
        )
        for number in item["outputs"]:
            assert item["input"].count(f"is: {number}.") == 1


def test_published_items_are_read_as_they_are(tiny_model: Path, tmp_path: Path) -> None:
    rows = [
        {"index": i, "input": f"question {i}", "outputs": [str(1000 + i)], "length": 8000}
        for i in range(4)
    ]
    folder = tmp_path / "en" / "8192" / "niah_multiquery"
    folder.mkdir(parents=True)
    write_jsonl(folder / "validation.jsonl", rows)
    (task,) = items(tiny_model, tmp_path, tmp_path).build()
    assert task.task_name == "oneruler_niah_multiquery_8192"
    assert [item["input"] for item in task.eval_docs] == ["question 0", "question 1"]
    (folder / "validation.jsonl").write_text('{"index": 0}\n')
    with pytest.raises(UserError, match=r"validation.jsonl:1: expected index, input, outputs"):
        items(tiny_model, tmp_path, tmp_path).build()


def test_a_model_that_reads_less_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="600 tokens and an answer of 256 asked"):
        items(tiny_model, tmp_path).check()


def test_the_harness_reads_answers_from_their_tags(
    long_model: Path, published: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (task,) = items(long_model, published, published, samples=4).build()
    harness = Harness(Training(model=str(long_model)), Evaluation(batch_size=2))
    outputs = [item["outputs"] for item in task.eval_docs]
    said = [
        f"They are <Answer> {' and '.join(outputs[0])}",
        f"<Answer> {outputs[1][0]}",
        " and ".join(outputs[2]),
        "<Answer> none",
    ]
    prompts = []

    def generate(requests: list) -> list[str]:
        prompts.extend(request.args[0] for request in requests)
        return said

    monkeypatch.setattr(harness._lm, "generate_until", generate)
    rows = harness.score([task], None).to_pylist()
    assert [row["correct"] for row in rows] == [True, False, False, False]
    assert [row["parsed"] for row in rows] == [True, True, False, True]
    assert [row["text"] for row in rows] == said
    assert {row["subject"] for row in rows} == {"niah_multiquery 600"}
    assert all(prompt.startswith("<|user|>Read this.") for prompt in prompts)
    monkeypatch.undo()
    written = harness.score([task], None).to_pylist()
    assert len(written) == 4 and not any(row["correct"] for row in written)
