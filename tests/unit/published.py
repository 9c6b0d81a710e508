"""Rows as they are published, and short ways to read them."""

from __future__ import annotations

from typing import Any

from compass_ray.records import Normalised, Role, to_rows

AYA = {
    "inputs": "Mji mkuu wa Kenya ni upi?",
    "targets": "Nairobi.",
    "language": "Swahili",
    "language_code": "swa",
    "annotation_type": "original-annotations",
    "user_id": "ca908e583236b208e473e89dae5c7b7d3daf3662e2bbf6606f0702c718bb5c06",
}

AYA_COLLECTION = {
    "id": 7,
    "inputs": "法國的首都是哪裡？",
    "targets": "巴黎。",
    "dataset_name": "Mintaka-inst",
    "sub_dataset_name": "-",
    "task_type": "question-answering",
    "template_id": 1,
    "language": "zho",
    "script": "Hant",
    "split": "train",
}

GLOBAL_MMLU = {
    "sample_id": "geography/test/1",
    "subject": "high_school_geography",
    "subject_category": "Social Sciences",
    "question": "Mji mkuu wa Kenya ni upi?",
    "option_a": "Mombasa",
    "option_b": "Nairobi",
    "option_c": "Kisumu",
    "option_d": "Nakuru",
    "answer": "B",
    "required_knowledge": "['geographical']",
    "time_sensitive": "['No']",
    "reference": "[]",
    "culture": "[]",
    "region": "['Africa']",
    "country": "['Kenya']",
    "cultural_sensitivity_label": "CS",
    "is_annotated": True,
}

MMLU_PROX = {
    "question_id": 70,
    "question": "Was ist die Hauptstadt von Kenia?",
    **{f"option_{i}": None for i in range(10)},
    "option_0": "Mombasa",
    "option_1": "Nairobi",
    "option_2": "Kisumu",
    "answer": "B",
    "answer_index": 1,
    "cot_content": "A: Denken wir Schritt für Schritt nach.",
    "category": "geography",
    "src": "ori_mmlu-high_school_geography",
    "question_id_src": 70,
}


def read(*records: dict[str, Any], role: Role = "train", **options: Any) -> Normalised:
    options = {"language": "en", "source": "data.jsonl", **options}
    return to_rows(list(records), role=role, **options)


def row(record: dict[str, Any], role: Role = "train", **options: Any) -> dict[str, Any]:
    result = read(record, role=role, **options)
    assert result.rejected.num_rows == 0, result.rejected.to_pylist()
    (only,) = result.rows.to_pylist()
    return dict(only)


def reason(record: dict[str, Any], role: Role = "train", **options: Any) -> str:
    result = read(record, role=role, **options)
    assert result.rows.num_rows == 0
    (only,) = result.rejected.to_pylist()
    return str(only["reason"])
