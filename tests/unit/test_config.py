from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest

from compass_ray.config import ROLES, Config, Section, Training
from compass_ray.errors import UserError
from compass_ray.loading import build_config, load_config, override

CONFIGS = Path(__file__).parents[2] / "jobs" / "configs"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "c.yaml"
    path.write_text("languages: [sw, de]\nsampling: {budget: 500}\n")
    return path


def test_defaults_fill_what_the_file_leaves_out(path: Path) -> None:
    config = load_config(path)
    assert config.languages == ["sw", "de"]
    assert config.sampling.budget == 500
    assert config.sampling.smoothing == 0.5
    assert config.training.adapter.r == 16


@pytest.mark.parametrize(
    ("override", "section", "key", "value"),
    [
        ("sampling.budget=7", "sampling", "budget", 7),
        ("training.learning_rate=2e-4", "training", "learning_rate", 2e-4),
        ("embedding.space=raw", "embedding", "space", "raw"),
        ("training.max_steps=null", "training", "max_steps", None),
        ("training.packing=false", "training", "packing", False),
    ],
)
def test_overrides_are_read_as_yaml(
    path: Path, override: str, section: str, key: str, value: object
) -> None:
    assert getattr(getattr(load_config(path, [override]), section), key) == value


def test_an_override_can_name_a_deeper_key_and_a_list(path: Path) -> None:
    config = load_config(path, ["training.adapter.type=dora", "languages=[no, zh]"])
    assert config.training.adapter.type == "dora"
    assert config.languages == ["no", "zh"]


def test_a_configuration_with_a_search_can_be_overridden() -> None:
    space = {"clustering.k": {"from": 60, "to": 140}}
    config = build_config({"languages": ["de"], "search": {"space": space}})
    changed = override(config, ["sampling.budget=7"])
    assert changed.sampling.budget == 7 and changed.search == config.search


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "languages: [de]\nsampling: {budgit: 1}",
            "unknown key sampling.budgit; did you mean budget?",
        ),
        ("languages: [de]\nsamplng: {}", "unknown key samplng; did you mean sampling?"),
        (
            "languages: [de]\ncorpora: {usage: [{pth: x}]}",
            "corpora.usage.0.path is missing",
        ),
        (
            "languages: [de]\ntraining: {adapter: {rank: 4}}",
            "unknown key training.adapter.rank; known keys: type, r, alpha, dropout",
        ),
        ("sampling: {}", "languages is missing"),
        ("languages: [de]\nsampling: {budget: -1}", "sampling.budget: "),
        ("languages: [de, deu]", "named twice"),
        ("languages: [qqq]", "qqq"),
        ("languages: [de]\ntraining: {batch_size: 3, workers_per_language: 2}", "batch_size 3"),
        (
            "languages: [de]\ntraining: {adapter: {type: qlora}, deepspeed: {zero_stage: 3}}",
            "set deepspeed.zero_stage to 0, 1 or 2",
        ),
        ("languages: [de]\ntraining: {early_stopping: 3}", "set validation_fraction"),
        (
            "languages: [de]\ntraining: {attention: flash_attention_2, precision: fp32}",
            "set precision bf16",
        ),
        (
            "languages: [de]\ntraining: {deepspeed: {offload_parameters: true}}",
            "offload_parameters needs zero_stage 3",
        ),
        (
            "languages: [de]\ntraining: {deepspeed: {zero_stage: 0, offload_optimizer: true}}",
            "offload_optimizer needs zero_stage 1",
        ),
        (
            "languages: [de]\nsearch: {space: {sampling.budget: {from: 1, to: 5, lgo: true}}}",
            "unknown key search.space.sampling.budget.lgo; did you mean log?",
        ),
        (
            "languages: [de]\nsearch: {space: {sampling.budget: {from: 9, to: 5}}}",
            "search.space.sampling.budget: from 9 to 5: expected from < to",
        ),
        (
            "languages: [de]\nsearch: {space: {sampling.budget: {from: 9}}}",
            "search.space.sampling.budget.to is missing",
        ),
        (
            "languages: [de]\ncontinual: {threshold: foo}",
            "continual.threshold: Input should be a valid number or 'calibrated', got 'foo'",
        ),
        (
            "languages: [de]\ncontinual: {threshold: 1.5}",
            "continual.threshold: Input should be less than 1 or 'calibrated', got 1.5",
        ),
        (
            "languages: [de]\nsearch: {metric: acc}",
            "search.metric: Input should be 'accuracy', 'loss', 'tokens' or 'device_hours'",
        ),
        (
            "languages: [de]\nsearch: {metric: [loss, acc]}",
            "search.metric.1: Input should be 'accuracy', 'loss', 'tokens' or 'device_hours', got",
        ),
        (
            "languages: [de]\ntraining: {adapter: {target_modules: [1]}}",
            "training.adapter.target_modules.0: Input should be a valid string, got 1",
        ),
        (
            "languages: [de]\nsampling: {budget: 1}\nsampling: {smoothing: 1}",
            "key sampling is given twice (line 3)",
        ),
        ("languages: [de]\nrun: {seed: 1, seed: 2}", "key seed is given twice (line 2)"),
        ("[1, 2]", "expected a mapping"),
        ("a: [", "not valid YAML"),
    ],
)
def test_a_wrong_config_is_refused_in_one_line_naming_the_key(
    tmp_path: Path, text: str, expected: str
) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        load_config(path)
    message = str(error.value)
    assert expected in message
    assert message.startswith(str(path))
    assert "\n" not in message


def test_a_merged_mapping_may_be_overruled(tmp_path: Path) -> None:
    path = tmp_path / "merged.yaml"
    path.write_text(
        "languages: [de]\n"
        "corpora:\n"
        "  train: [&here {path: a, language: de}]\n"
        "  usage: [{<<: *here, path: b}]\n"
    )
    (usage,) = load_config(path).corpora.usage
    assert (usage.path, usage.language) == ("b", "de")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.yaml: no such config file"):
        load_config(tmp_path / "nowhere.yaml")


def test_a_malformed_override_is_refused(path: Path) -> None:
    with pytest.raises(UserError, match=r"--set sampling: expected section.key=value"):
        load_config(path, ["sampling"])
    with pytest.raises(UserError, match=r"--set run=.*key seed is given twice \(line 1\)"):
        load_config(path, ["run={seed: 1, seed: 2}"])
    with pytest.raises(UserError, match=r"run\.name\.first=1: name is not a section"):
        load_config(path, ["run.name=x", "run.name.first=1"])


def test_how_work_is_carried_out_stays_out_of_the_identity() -> None:
    quick = build_config({"languages": ["de"], "embedding": {"batch_size": 64, "threads": 4}})
    assert quick.embedding.identity() == Config(languages=["de"]).embedding.identity()
    other = build_config({"languages": ["de"], "embedding": {"prefix": "passage: "}})
    assert other.embedding.identity() != quick.embedding.identity()


def test_how_many_workers_train_how_is_no_part_of_what_is_trained() -> None:
    alone = Training()
    many = Training(
        workers_per_language=4,
        micro_batch_size=1,
        gradient_checkpointing=True,
        deepspeed={"zero_stage": 3, "offload_parameters": True},
    )
    assert many.identity() == alone.identity()
    assert Training(adapter={"type": "rslora"}).identity() != alone.identity()


def test_a_language_in_a_source_stands_for_each_target_language() -> None:
    usage = [{"path": "hf:o/data", "subset": "{language}"}, {"path": "logs/{language}/*.jsonl"}]
    config = build_config({"languages": ["sw", "de"], "corpora": {"usage": usage}})
    found = config.corpora.sources(config.languages)
    told = [(source.path, source.subset, source.language) for source in found["usage"]]
    assert told == [
        ("hf:o/data", "sw", "sw"),
        ("hf:o/data", "de", "de"),
        ("logs/sw/*.jsonl", None, "sw"),
        ("logs/de/*.jsonl", None, "de"),
    ]


def test_listed_languages_are_known_under_any_name_and_bound_the_files_of_each() -> None:
    usage = [{"path": "logs/{language}.jsonl", "languages": ["swh"]}]
    config = build_config({"languages": ["sw", "de"], "corpora": {"usage": usage}})
    found = config.corpora.sources(config.languages)["usage"]
    assert [(source.path, source.languages) for source in found] == [("logs/sw.jsonl", ["sw"])]
    with pytest.raises(UserError, match=r"corpora\.usage\.0\.languages: "):
        build_config(
            {"languages": ["de"], "corpora": {"usage": [{"path": "a", "languages": ["?"]}]}}
        )


def test_atlas_stands_for_all_corpora_or_for_none(path: Path) -> None:
    def found(*overrides: str) -> dict[str, list[str]]:
        corpora = load_config(path, overrides).corpora
        return {role: [each.path for each in getattr(corpora, role)] for role in ROLES}

    assert found() == found("corpora.rows_per_part=9") == {role: ["atlas"] for role in ROLES}
    one = {"auxiliary": [], "train": [], "usage": ["a"], "evaluation": []}
    assert found("corpora.usage=[{path: a}]") == one
    run = load_config(path)
    assert override(run, ["corpora.usage=[{path: a}]"]).corpora.train == run.corpora.train


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_ready_configuration_is_read(path: Path) -> None:
    config = load_config(path)
    assert config.run.name
    usage = config.corpora.sources(config.languages)["usage"]
    assert not any("{" in f"{source.path}{source.subset}" for source in usage)


def is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, Section)


def sections(annotation: Any) -> set[type[Section]]:
    """Every section that a type holds, at any depth."""
    found: set[type[Section]] = {annotation} if is_section(annotation) else set()
    inside = [field.annotation for section in found for field in section.model_fields.values()]
    return found.union(*map(sections, [*inside, *get_args(annotation)]))


def test_every_key_says_what_it_means() -> None:
    silent = [
        f"{section.__name__}.{name}"
        for section in sections(Config)
        for name, field in section.model_fields.items()
        if not field.description and not is_section(field.annotation)
    ]
    assert sorted(silent) == []
    assert sorted(s.__name__ for s in sections(Config) if not vars(s).get("__doc__")) == []


def test_a_worker_holds_its_share_of_the_batch_or_what_it_is_told_to() -> None:
    assert Training(batch_size=16, workers_per_language=4).micro_batch == 4
    assert Training(batch_size=16, workers_per_language=4, micro_batch_size=2).micro_batch == 2
    with pytest.raises(ValueError, match="batch_size 16 is not a multiple of workers_per_language"):
        Training(batch_size=16, workers_per_language=4, micro_batch_size=3)


def test_the_schema_names_every_section() -> None:
    properties = Config.model_json_schema()["properties"]
    assert {"run", "languages", "corpora", "embedding", "clustering", "sampling"} <= set(properties)


@pytest.mark.parametrize(
    ("k", "candidates"),
    [
        (100, [100]),
        ([120, 80, 80], [80, 120]),
        ({"from": 20, "to": 200}, [20, 28, 39, 54, 75, 104, 144, 200]),
        ({"from": 2, "to": 4}, [2, 3, 4]),
    ],
)
def test_k_is_a_number_several_or_a_range(k: object, candidates: list[int]) -> None:
    config = build_config({"languages": ["de"], "clustering": {"k": k}})
    assert config.clustering.candidates() == candidates
    again = build_config(config.model_dump(mode="json"))
    assert again == config


@pytest.mark.parametrize(
    "k",
    [1, True, "x", [], [3, 1], {"from": 20}, {"from": 20, "to": 3}, {"from": 20, "to": "200"}],
)
def test_a_k_that_is_none_is_refused_with_an_example(k: object) -> None:
    with pytest.raises(UserError, match=r"clustering\.k: a number over 1, .*\{from: 20, to: 200\}"):
        build_config({"languages": ["de"], "clustering": {"k": k}})


def test_faiss_has_no_hdbscan() -> None:
    section = {"method": "hdbscan", "backend": "faiss"}
    with pytest.raises(UserError, match="backend faiss has no hdbscan"):
        build_config({"languages": ["de"], "clustering": section})


def test_transfer_scores_name_languages() -> None:
    config = build_config({"languages": ["de"], "sampling": {"transfer": {"deu": {"swh": 0.4}}}})
    assert config.sampling.transfer == {"de": {"sw": 0.4}}
    with pytest.raises(UserError, match=r"sampling\.transfer"):
        build_config({"languages": ["de"], "sampling": {"transfer": {"de": {"klingon?": 1}}}})
