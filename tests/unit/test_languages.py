"""What the field calls a language, and what we call it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from compass_ray import languages
from compass_ray.errors import UserError
from compass_ray.languages import normalise, to_iso639_3

GLOBAL_MMLU = (
    "am ar bn cs de el en es fa fil fr ha he hi id ig it ja ko ky lt mg ms ne nl ny pl pt ro ru "
    "si sn so sr sv sw te tr uk vi yo zh"
)
MMLU_PROX = "af ar bn cs de en es fr hi hu id it ja ko mr ne pt ru sr sw te th uk ur vi wo yo zh zu"
ONERULER = "cs da de en es fa fi fr hi hu it ja ko nl no pl pt ru sr st sv sw ta uk vi zh"
# As in the column language_code of Aya's dataset and collection.
AYA_CODES = (
    "ace acm acq aeb afr ajp amh apc ara arb ars ary arz azb aze azj ban bbc bel bem ben bjn bul "
    "cat ceb ces ckb cym dan deu ell eng epo est eus fil fin fon fra gla gle glg guj hat hau heb "
    "hin hrv hun hye ibo ind isl ita jav jpn kan kas kat kau kaz khk khm kin kir kmr knc kor kur "
    "lao lav lij lit ltz lvs mad mal mar min mkd mlg mlt mni mon mri msa mya nep nij nld nno "
    "nob nor npi nso nya pan pbt pes plt pol por pus ron rus sin slk slv smo sna snd som sot spa "
    "sqi srp sun swa swe swh tam taq tel tgk tha tur twi ukr urd uzb uzn vie wol xho ydd yid yor "
    "zho zsm zul"
)
# As in its column language, and the names of its subsets.
AYA_NAMES = (
    "Achinese, Afrikaans, Albanian, Amharic, Basque, Bengali, Central Khmer, Danish, Dutch, "
    "Egyptian Arabic, English, Filipino, Finnish, French, German, Greek, Gujarati, Haitian, "
    "Halh Mongolian, Hausa, Hindi, Hungarian, Igbo, Indonesian, Iranian Persian, Irish, Italian, "
    "Japanese, Javanese, Kannada, Korean, Kurdish, Kyrgyz, Lithuanian, Malayalam, Marathi, "
    "Mesopotamian Arabic, Moroccan Arabic, Mozambican Portuguese, Najdi Arabic, Nepali, "
    "North Azerbaijani, North Levantine Arabic, Northern Kurdish, Northern Sotho, "
    "Northern Uzbek, Norwegian Bokmål, Nyanja, Panjabi, Pashto, Plateau Malagasy, Polish, "
    "Portuguese, Russian, Serbian, Shona, Simplified Chinese, Sindhi, Sinhala, Somali, "
    "South Levantine Arabic, Southern Pashto, Spanish, Standard Arabic, Standard Latvian, "
    "Standard Malay, Sundanese, Swahili, Swedish, Ta'izzi-Adeni Arabic, Tamil, Telugu, Thai, "
    "Toba Batak, Tosk Albanian, Traditional Chinese, Turkish, Ukrainian, Urdu, Vietnamese, "
    "Wolof, Xhosa, Yoruba, Yorùbá, Zulu, simplified_chinese, taizzi_adeni_arabic"
)


@pytest.mark.parametrize("code", sorted(set(f"{GLOBAL_MMLU} {MMLU_PROX} {ONERULER}".split())))
def test_a_benchmark_code_is_our_code_and_survives_the_way_through_iso_639_3(code: str) -> None:
    assert normalise(code) == code
    assert len(to_iso639_3(code)) == 3
    assert normalise(to_iso639_3(code)) == code
    assert normalise(languages.name(code)) == code


@pytest.mark.parametrize(
    ("code", "ours"),
    [
        ("swa", "sw"),
        ("swh", "sw"),
        ("arb", "ar"),
        ("ara", "ar"),
        ("zho", "zh"),
        ("cmn", "zh"),
        ("pes", "fa"),
        ("npi", "ne"),
        ("plt", "mg"),
        ("zsm", "ms"),
        ("fil", "fil"),
        ("tgl", "fil"),
        ("nob", "no"),
        ("nno", "nn"),
        ("ger", "de"),
        ("iw", "he"),
        ("pbt", "ps"),
    ],
)
def test_an_iso_639_3_code_becomes_the_macrolanguage_it_stands_for(code: str, ours: str) -> None:
    assert normalise(code) == ours


@pytest.mark.parametrize("code", ["ary", "arz", "yue", "azb", "ckb", "ceb"])
def test_a_variety_that_does_not_stand_for_its_macrolanguage_keeps_its_code(code: str) -> None:
    assert normalise(code) == code


def test_every_code_and_name_of_aya_is_known_without_cldr() -> None:
    script = (
        "import sys\n"
        "from compass_ray import languages\n"
        "for text in sys.argv[1:]: languages.normalise(text)\n"
        "assert 'babel' not in sys.modules"
    )
    texts = [*AYA_CODES.split(), *AYA_NAMES.split(", ")]
    subprocess.run([sys.executable, "-c", script, *texts], check=True)


@pytest.mark.parametrize(
    ("text", "ours"),
    [
        ("Swahili", "sw"),
        ("Standard Arabic", "ar"),
        ("Simplified Chinese", "zh"),
        ("Traditional Chinese", "zh-Hant"),
        ("Chinese (Simplified)", "zh"),
        ("  yorùbá ", "yo"),
        ("taizzi_adeni_arabic", "acq"),
        ("Klingon", "tlh"),
    ],
)
def test_an_english_name_is_understood_with_or_without_accents(text: str, ours: str) -> None:
    assert normalise(text) == ours


@pytest.mark.parametrize(
    ("tag", "ours"),
    [
        ("pt-BR", "pt"),
        ("es_419", "es"),
        ("EN", "en"),
        ("arb_Arab", "ar"),
        ("zh-CN", "zh"),
        ("zh_TW", "zh-Hant"),
        ("zh-Hant-HK", "zh-Hant"),
        ("zh-yue", "yue"),
        ("zho-yue-Hant-HK", "yue"),
        ("zh-min-nan", "nan"),
        ("ar-arz", "arz"),
        ("sw-swc", "sw"),
        ("hi-IND", "hi"),
        ("pt_BRA", "pt"),
        ("es-ESP", "es"),
        ("sw-TZA", "sw"),
        ("id-IDN", "id"),
        ("ar-EGY", "ar"),
        ("zh-CHN", "zh"),
        ("zh-TWN", "zh-Hant"),
        ("zh-Hant-HKG", "zh-Hant"),
        ("sr-Latn", "sr-Latn"),
        ("sr-Cyrl-RS", "sr"),
        ("sh", "sr-Latn"),
    ],
)
def test_a_tag_loses_its_region_and_keeps_a_script_that_is_not_the_main_one(
    tag: str, ours: str
) -> None:
    assert normalise(tag) == ours


def test_a_script_beside_the_code_tells_two_written_forms_apart() -> None:
    assert normalise("zho", "Hans") == "zh"
    assert normalise("zho", "Hant") == "zh-Hant"
    assert normalise("srp", "Latn") == "sr-Latn"
    assert normalise("jpn", "Hira") == "ja"


def test_normalise_is_idempotent_over_all_that_cldr_names() -> None:
    for code in languages._cldr().names:
        tag = normalise(code)
        assert normalise(tag) == tag
        assert len(to_iso639_3(tag)) == 3


def test_the_table_agrees_with_cldr_on_codes_and_scripts() -> None:
    cldr = languages._cldr()
    # CLDR keeps Bokmål apart from no, and has no macrolanguage for these two.
    ours_only = {"fuv", "pbt", "nob"}
    for language in languages._LANGUAGES.values():
        if "-" in language.code:
            continue
        assert cldr.likely[language.code].split("_")[1] == language.script, language
        if language.iso639_3 not in ours_only:
            alias = cldr.aliases.get(language.iso639_3, language.iso639_3)
            assert alias == language.code, language


def test_iso_639_3_is_the_individual_language_that_uriel_knows() -> None:
    expected = {"sw": "swh", "ar": "arb", "zh": "cmn", "fa": "pes", "no": "nob", "aa": "aar"}
    assert {code: to_iso639_3(code) for code in expected} == expected
    assert to_iso639_3("zh-Hant") == "cmn"


def test_names_and_scripts_are_given_in_english_and_iso_15924() -> None:
    assert languages.name("sw") == "Swahili"
    assert languages.name("zh-Hant") == "Traditional Chinese"
    assert languages.name("sr-Latn") == "Serbian (Latin)"
    assert languages.script("ar") == "Arab"
    assert languages.script("ja") == "Jpan"
    assert languages.script("sr-Latn") == "Latn"
    assert languages.script("tlh") == "Zyyy"


def test_a_language_is_looked_for_without_an_error() -> None:
    assert languages.find("Swahili") == "sw"
    assert languages.find("klingon?") is None


def test_an_unknown_language_is_refused_in_one_line_with_the_nearest_known() -> None:
    with pytest.raises(UserError, match=r"unknown language 'swahilli'; nearest known: sw \(Swah"):
        normalise("swahilli")


@pytest.mark.parametrize("text", ["", "  ", "xx", "und", "mul", "汉", "x" * 5000, "en-swa"])
def test_what_names_no_language_is_refused_shortly(text: str) -> None:
    with pytest.raises(UserError, match="unknown language") as caught:
        normalise(text)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200


def test_an_unknown_script_is_refused() -> None:
    with pytest.raises(UserError, match="unknown script 'Foob' of language 'sw'"):
        normalise("sw", "Foob")
