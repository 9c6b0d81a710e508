"""One map between the names that corpora, benchmarks and URIEL give to a language.

Our code for a language is the shortest BCP-47 tag: the macrolanguage where ISO 639-3 has one and
the variety is the one it stands for (``swh`` is ``sw``, ``arb`` is ``ar``), and a script only
where it is not the main one (``zho`` in ``Hant`` is ``zh-Hant``). Other varieties keep a code of
their own (``arz``, ``ary``, ``yue``). Regions are dropped.

The table below is what the project checked by hand: the languages of Global-MMLU, MMLU-ProX,
OneRuler and Aya. CLDR (from ``babel``, read on first need) fills in the rest. Knows nothing of
rows.
"""

from __future__ import annotations

import difflib
import re
import unicodedata
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

from compass_ray.errors import UserError

# code | ISO 639-3, the individual language first | script | English name; other names
_TABLE = """
ace | ace | Latn | Acehnese; Achinese
acm | acm | Arab | Mesopotamian Arabic; Gelet Iraqi Arabic; Gilit Mesopotamian Arabic
acq | acq | Arab | Ta'izzi-Adeni Arabic
aeb | aeb | Arab | Tunisian Arabic
af | afr | Latn | Afrikaans
ak | twi aka fat | Latn | Akan; Twi
am | amh | Ethi | Amharic
apc | apc ajp | Arab | Levantine Arabic; North Levantine Arabic; South Levantine Arabic
ar | arb ara | Arab | Arabic; Standard Arabic; Modern Standard Arabic
ars | ars | Arab | Najdi Arabic
ary | ary | Arab | Moroccan Arabic
arz | arz | Arab | Egyptian Arabic
ay | ayr aym | Latn | Aymara; Central Aymara
az | azj aze | Latn | Azerbaijani; North Azerbaijani
azb | azb | Arab | South Azerbaijani
ban | ban | Latn | Balinese
bbc | bbc | Latn | Toba Batak; Batak Toba
be | bel | Cyrl | Belarusian
bem | bem | Latn | Bemba
bg | bul | Cyrl | Bulgarian
bjn | bjn | Latn | Banjar
bn | ben | Beng | Bangla; Bengali
bo | bod tib | Tibt | Tibetan
ca | cat | Latn | Catalan
ceb | ceb | Latn | Cebuano
ckb | ckb | Arab | Central Kurdish; Sorani
cr | cwd cre | Cans | Cree
cs | ces cze | Latn | Czech
cy | cym wel | Latn | Welsh
da | dan | Latn | Danish
de | deu ger | Latn | German
din | dik din | Latn | Dinka; Southwestern Dinka
el | ell gre | Grek | Greek; Modern Greek
en | eng | Latn | English
eo | epo | Latn | Esperanto
es | spa | Latn | Spanish; Castilian
et | ekk est | Latn | Estonian; Standard Estonian
eu | eus baq | Latn | Basque
fa | pes fas per prs | Arab | Persian; Iranian Persian; Western Persian; Farsi; Dari
ff | fuv ful fuc | Latn | Fula; Fulah; Nigerian Fulfulde
fi | fin | Latn | Finnish
fil | fil tgl tl | Latn | Filipino; Tagalog
fon | fon | Latn | Fon
fr | fra fre | Latn | French
ga | gle | Latn | Irish
gd | gla | Latn | Scottish Gaelic
gl | glg | Latn | Galician
gn | gug grn | Latn | Guarani; Paraguayan Guarani
gu | guj | Gujr | Gujarati
ha | hau | Latn | Hausa
he | heb iw | Hebr | Hebrew
hi | hin | Deva | Hindi
hr | hrv | Latn | Croatian
ht | hat | Latn | Haitian Creole; Haitian
hu | hun | Latn | Hungarian
hy | hye arm | Armn | Armenian
id | ind in | Latn | Indonesian
ig | ibo | Latn | Igbo
ik | esk ipk | Latn | Inupiaq
is | isl ice | Latn | Icelandic
it | ita | Latn | Italian
iu | ike iku | Cans | Inuktitut
ja | jpn | Jpan | Japanese
jv | jav jw | Latn | Javanese
ka | kat geo | Geor | Georgian
kg | kng kon | Latn | Kongo
kk | kaz | Cyrl | Kazakh
km | khm | Khmr | Khmer; Central Khmer
kn | kan | Knda | Kannada
ko | kor | Kore | Korean
kok | gom kok | Deva | Konkani; Goan Konkani
kr | knc kau | Latn | Kanuri; Central Kanuri
ks | kas | Arab | Kashmiri
ku | kmr kur | Latn | Kurdish; Northern Kurdish; Kurmanji
kv | kpv kom | Cyrl | Komi; Komi-Zyrian
ky | kir | Cyrl | Kyrgyz; Kirghiz
lb | ltz | Latn | Luxembourgish
lij | lij | Latn | Ligurian
lo | lao | Laoo | Lao
lt | lit | Latn | Lithuanian
lv | lvs lav | Latn | Latvian; Standard Latvian
mad | mad | Latn | Madurese
mg | plt mlg | Latn | Malagasy; Plateau Malagasy
mi | mri mao | Latn | Māori
min | min | Latn | Minangkabau
mk | mkd mac | Cyrl | Macedonian
ml | mal | Mlym | Malayalam
mn | khk mon | Cyrl | Mongolian; Halh Mongolian; Khalkha Mongolian
mni | mni | Beng | Manipuri; Meitei
mr | mar | Deva | Marathi
ms | zsm msa may | Latn | Malay; Standard Malay
mt | mlt | Latn | Maltese
my | mya bur | Mymr | Burmese
ne | npi nep | Deva | Nepali
nij | nij | Latn | Ngaju
nl | nld dut | Latn | Dutch; Flemish
nn | nno | Latn | Norwegian Nynorsk
no | nob nor nb | Latn | Norwegian; Norwegian Bokmål
nso | nso | Latn | Northern Sotho; Sepedi
ny | nya | Latn | Nyanja; Chichewa; Chewa
oj | ojg oji | Cans | Ojibwa
om | gaz orm | Latn | Oromo; West Central Oromo
or | ory ori | Orya | Odia; Oriya
pa | pan | Guru | Punjabi; Panjabi; Eastern Panjabi
pl | pol | Latn | Polish
ps | pbt pus pbu | Arab | Pashto; Southern Pashto; Northern Pashto; Pushto
pt | por | Latn | Portuguese; Mozambican Portuguese; Brazilian Portuguese
qu | quz que | Latn | Quechua
ro | ron rum mol | Latn | Romanian; Moldavian
ru | rus | Cyrl | Russian
rw | kin | Latn | Kinyarwanda
sc | src srd | Latn | Sardinian
sd | snd | Arab | Sindhi
si | sin | Sinh | Sinhala; Sinhalese
sk | slk slo | Latn | Slovak
sl | slv | Latn | Slovenian; Slovene
sm | smo | Latn | Samoan
sn | sna | Latn | Shona
so | som | Latn | Somali
sq | als sqi alb | Latn | Albanian; Tosk Albanian
sr | srp scc | Cyrl | Serbian
st | sot | Latn | Southern Sotho; Sesotho
su | sun | Latn | Sundanese
sv | swe | Latn | Swedish
sw | swh swa swc | Latn | Swahili; Kiswahili
ta | tam | Taml | Tamil
taq | taq | Latn | Tamasheq
te | tel | Telu | Telugu
tg | tgk | Cyrl | Tajik
th | tha | Thai | Thai
tr | tur | Latn | Turkish
uk | ukr | Cyrl | Ukrainian
ur | urd | Arab | Urdu
uz | uzn uzb | Latn | Uzbek; Northern Uzbek
vi | vie | Latn | Vietnamese
wo | wol | Latn | Wolof
xh | xho | Latn | Xhosa; isiXhosa
yi | ydd yid | Hebr | Yiddish; Eastern Yiddish
yo | yor | Latn | Yoruba
yue | yue | Hant | Cantonese; Yue Chinese
za | zyb zha | Latn | Zhuang
zh | cmn zho chi | Hans | Chinese; Simplified Chinese; Chinese (Simplified); Mandarin
zh-Hant | cmn | Hant | Traditional Chinese; Chinese (Traditional)
zu | zul | Latn | Zulu; isiZulu
"""

# CLDR gives these a name, but a row in them is a row in no language we can act on.
_NO_LANGUAGE = frozenset({"und", "mul", "zxx", "mis", "root"})
# A main script that is written with, or is a style of, these.
_PARTS = {
    "Jpan": {"Hira", "Kana", "Hrkt", "Hani"},
    "Kore": {"Hang", "Hani"},
    "Hans": {"Hani"},
    "Arab": {"Aran"},
}
_TAG = re.compile(
    r"(?P<language>[a-z]{2,3})(?:-(?P<extended>min-nan|[a-z]{3}))?(?:-(?P<script>[a-z]{4}))?"
    r"(?:-(?P<region>[a-z]{2,3}|[0-9]{3}))?(?:-[a-z0-9]{1,8})*"
)
# Varieties that a tag may name behind their macrolanguage, as BCP-47 has them registered, without
# sign languages.
_VARIETIES = """
ar | aao abh abv acm acq acw acx acy adf aeb aec afb ajp apc apd arb arq ars ary arz auz avl ayh
ar | ayl ayn ayp bbz pga shu ssh
kok | gom knn
lv | ltg lvs
ms | bjn btj bve bvu coa dup hji jak jax kvb kvr kxd lce lcf liw max meo mfa mfb min mqg msi mui
ms | orn ors pel pse tmw urk vkk vkt xmm zlm zmi zsm
sw | swc swh
uz | uzn uzs
zh | cdo cjy cmn cnp cpx csp czh czo gan hak hnm hsn luh lzh min-nan mnp nan sjc wuu yue
"""
_EXTENDED = {
    (code, variety)
    for code, _, varieties in (line.split(maxsplit=2) for line in _VARIETIES.strip().splitlines())
    for variety in varieties.split()
}


@dataclass(frozen=True)
class _Language:
    code: str
    iso639_3: str
    script: str
    name: str


def _key(text: str) -> str:
    """Fold a name for comparison: no case, accents, apostrophes, brackets or underscores."""
    plain = unicodedata.normalize("NFKD", text.casefold())
    plain = "".join(c for c in plain if not unicodedata.combining(c) and c not in "'’ʼ()")
    return " ".join(re.split(r"[\s_\-]+", plain.strip()))


def _read_table() -> tuple[dict[str, _Language], dict[str, str], dict[str, str]]:
    languages: dict[str, _Language] = {}
    codes: dict[str, str] = {}
    names: dict[str, str] = {}
    for line in _TABLE.strip().splitlines():
        code, iso, script, name_list = (part.strip() for part in line.split("|"))
        known_as = [part.strip() for part in name_list.split(";")]
        languages[code] = _Language(code, iso.split()[0], script, known_as[0])
        for other in (code, *iso.split()):
            codes.setdefault(other, code)
        for known in known_as:
            names.setdefault(_key(known), code)
    return languages, codes, names


_LANGUAGES, _CODES, _NAMES = _read_table()


@dataclass(frozen=True)
class _Cldr:
    aliases: dict[str, str]
    likely: dict[str, str]
    names: dict[str, str]
    scripts: dict[str, str]
    regions: dict[str, str]


@cache
def _cldr() -> _Cldr:
    """CLDR's data; imported here so that the languages of the table cost nothing."""
    from babel import Locale
    from babel.core import get_global

    english: Any = Locale("en")
    names = {code: text for code, text in english.languages.items() if code not in _NO_LANGUAGE}
    return _Cldr(
        dict(get_global("language_aliases")),
        dict(get_global("likely_subtags")),
        names,
        dict(english.scripts),
        {old: new[0] for old, new in get_global("territory_aliases").items()},
    )


@lru_cache(maxsize=65536)
def normalise(code_or_name: str, script: str | None = None) -> str:
    """Give our code for a language named in any of the ways the field uses.

    Args:
        code_or_name: BCP-47 tag (``pt-BR``, ``zh_TW``), also with a region of three letters
            (``pt-BRA``), ISO 639-1, -2 or -3 code (``swa``), FLORES code (``arb_Arab``), or English
            name (``Standard Arabic``, ``simplified_chinese``).
        script: ISO 15924 code where it stands beside the language; wins over one inside the tag.

    Raises:
        UserError: The language or the script is not known; names the nearest known language.
    """
    text = code_or_name.strip()
    tag = _TAG.fullmatch(text.lower().replace("_", "-"))
    code, region = _language_and_region(tag) if tag else (None, None)
    if tag and code:
        written = script or tag["script"] or _script_of_region(code, region)
    else:
        code, written = _by_name(_key(text)), script
    if code is None:
        raise UserError(f"unknown language {code_or_name[:60]!r}; {_nearest(text[:60])}")
    return _with_script(code, written) if written else code


def find(code_or_name: str) -> str | None:
    """As ``normalise``, but None for a language that is not known."""
    try:
        return normalise(code_or_name)
    except UserError:
        return None


def to_iso639_3(code: str) -> str:
    """ISO 639-3 code of the individual language (``sw`` → ``swh``), as URIEL names it."""
    base = normalise(code).partition("-")[0]
    if base in _LANGUAGES:
        return _LANGUAGES[base].iso639_3
    if len(base) == 3:
        return base
    # Of the aliases that CLDR lists for a code, the one of ISO 639-3 is the last (languages with
    # a later, bibliographic one are in the table).
    return [alias for alias, target in _cldr().aliases.items() if target == base][-1]


def name(code: str) -> str:
    """English name of a language, with the script where it is not the main one."""
    tag = normalise(code)
    if tag in _LANGUAGES:
        return _LANGUAGES[tag].name
    base, _, written = tag.partition("-")
    english = _LANGUAGES[base].name if base in _LANGUAGES else _cldr().names.get(base, base)
    return f"{english} ({_cldr().scripts.get(written, written)})" if written else english


def script(code: str) -> str:
    """ISO 15924 code of the script a language is written in; ``Zyyy`` where CLDR has none."""
    base, _, written = normalise(code).partition("-")
    return written or _main_script(base) or "Zyyy"


def _language_and_region(tag: re.Match[str]) -> tuple[str | None, str | None]:
    """Our code, None where the tag names no language that is known, and the region."""
    code, extended, region = _language_of(tag["language"]), tag["extended"], tag["region"]
    if extended is None or code is None:
        return code, region
    if (code, extended) in _EXTENDED:
        return _language_of(extended[-3:]), region
    # Three letters that are neither: no tag, maybe a name.
    return (code, extended) if extended.upper() in _cldr().regions else (None, None)


def _language_of(code: str) -> str | None:
    """Our code (a script may follow, as for ``sh``) for a two- or three-letter one, if known."""
    if code in _CODES:
        return _CODES[code]
    if code in _NO_LANGUAGE:
        return None
    cldr = _cldr()
    if code in cldr.aliases:
        base, *rest = cldr.aliases[code].split("_")
        if not rest:
            return _CODES.get(base, base)
        implied = rest[0] if len(rest[0]) == 4 else _script_of_region(base, rest[0].lower())
        return _with_script(base, implied) if implied else base
    return code if code in cldr.names or code in cldr.likely else None


def _by_name(key: str) -> str | None:
    if key in _NAMES:
        return _NAMES[key]
    code = _cldr_names().get(key)
    return normalise(code) if code else None


@cache
def _cldr_names() -> dict[str, str]:
    return {_key(text): code for code, text in _cldr().names.items()}


def _main_script(base: str) -> str | None:
    if base in _LANGUAGES:
        return _LANGUAGES[base].script
    likely = _cldr().likely.get(base)
    return likely.split("_")[1] if likely else None


def _script_of_region(code: str, region: str | None) -> str | None:
    """Script that a region implies: ``zh-TW`` is written in ``Hant``."""
    if region is None or "-" in code:
        return None
    region = region.upper()
    likely = _cldr().likely.get(f"{code}_{_cldr().regions.get(region, region)}")
    return likely.split("_")[1] if likely else None


def _with_script(code: str, written: str) -> str:
    base = code.partition("-")[0]
    written = written.strip().title()
    main = _main_script(base)
    if written == main or written in _PARTS.get(main or "", ()):
        return base
    if written not in _cldr().scripts:
        raise UserError(
            f"unknown script {written!r} of language {base!r}; "
            f"expected an ISO 15924 code such as {main or 'Latn'}"
        )
    return f"{base}-{written}"


def _nearest(text: str) -> str:
    known = {**_cldr_names(), **_NAMES}
    # Two or three letters are near to everything and mean nothing.
    close = difflib.get_close_matches(_key(text), known, n=1) if len(text) > 3 else []
    if not close:
        return "expected a BCP-47 code such as sw or an English name such as Swahili"
    code = normalise(known[close[0]])
    return f"nearest known: {code} ({name(code)})"
