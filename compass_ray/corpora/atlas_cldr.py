"""What CLDR says in one language: names of places and things, calendar words, the long date.

Reads the data files of the package ``babel`` and keeps a copy of its own. Knows nothing of
questions, subjects or splits.
"""

from __future__ import annotations

import datetime
import pickle
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from babel import localedata
from babel.core import get_global

# The letters of a CLDR date pattern that the long dates are made of, and quoted text.
_PATTERN = re.compile(r"'([^']*)'|(MMMM|M|d|y)")
# Invisible marks: soft hyphen, and the two that set the direction of a line.
_INVISIBLE = str.maketrans("", "", "\u00ad\u200e\u200f")

# Codes that CLDR names and ISO 3166 does not: reserved, withdrawn, or groups of countries.
_NO_COUNTRY = "AC BU CP CQ CS DD DG EA EU EZ IC QO SU TA TP UN XA XB YD YU ZR ZZ"

# CLDR's root spells some symbols as English words: here are those that have a symbol, below those
# that have none.
_SYMBOLS = {
    "area-hectare": "ha",
    "duration-hour": "h",
    "duration-second": "s",
    "digital-byte": "B",
    "electric-ampere": "A",
    "electric-ohm": "Ω",
    "electric-volt": "V",
    "energy-joule": "J",
    "length-meter": "m",
    "mass-gram": "g",
    "power-watt": "W",
    "volume-liter": "L",
}
_NO_SYMBOL = """
    acceleration-g-force area-acre area-dunam concentr-item digital-bit duration-century
    duration-day duration-decade duration-month duration-night duration-quarter duration-week
    duration-year energy-therm-us light-solar-luminosity mass-grain speed-light-speed
    volume-cup volume-dram volume-drop volume-jigger volume-pinch
"""


@dataclass(frozen=True)
class Cldr:
    """One language's part of CLDR, by code.

    Attributes:
        months: Twelve names, as they stand alone.
        weekdays: Seven names from Monday on, as they stand alone.
        units: Name of a unit, in the singular where CLDR has one.
        months_in_date: Twelve names, in the case they take after a day.
        date_pattern: CLDR's pattern of the long date.
        plural: Count → its plural category: ``one``, ``few``, …, ``other``.
    """

    territories: Mapping[str, str]
    languages: Mapping[str, str]
    scripts: Mapping[str, str]
    currencies: Mapping[str, str]
    months: tuple[str, ...]
    weekdays: tuple[str, ...]
    units: Mapping[str, str]
    months_in_date: tuple[str, ...]
    date_pattern: str
    plural: Callable[[int], str]

    def long_date(self, day: datetime.date) -> str:
        """The date with the month's name, the digits being Latin in every language."""

        def part(found: re.Match[str]) -> str:
            parts = {
                "d": str(day.day),
                "M": str(day.month),
                "MMMM": self.months_in_date[day.month - 1],
                "y": str(day.year),
            }
            return parts.get(found[2], found[1])

        return _PATTERN.sub(part, self.date_pattern)


@cache
def cldr(language: str) -> Cldr:
    """What CLDR has in a language."""
    data = _load(language)
    months, days = data["months"], data["days"]
    return Cldr(
        territories=_names(data["territories"]),
        languages=_names(data["languages"]),
        scripts=_names(data["scripts"]),
        currencies=_names(data["currency_names"]),
        months=tuple(_plain(months["stand-alone"]["wide"][i]) for i in range(1, 13)),
        weekdays=tuple(_plain(days["stand-alone"]["wide"][i]) for i in range(7)),
        units={unit: name for unit in unit_symbols() if (name := _unit_name(data, unit))},
        months_in_date=tuple(_plain(months["format"]["wide"][i]) for i in range(1, 13)),
        date_pattern=_plain(data["date_formats"]["long"].pattern),
        plural=data["plural_form"],
    )


@cache
def unit_symbols() -> Mapping[str, str]:
    """Unit → its symbol, the same in every language; no two units have the same."""
    names = _load("root")["unit_display_names"]
    symbols = {
        unit: _SYMBOLS.get(unit) or _plain(names[unit].get("short") or "")
        for unit in sorted(names)
        if unit not in _NO_SYMBOL.split()
    }
    taken = list(symbols.values())
    return {unit: symbol for unit, symbol in symbols.items() if symbol and taken.count(symbol) == 1}


@cache
def countries() -> tuple[str, ...]:
    """ISO 3166 codes of countries and territories."""
    return tuple(sorted(set(get_global("territory_currencies")) - set(_NO_COUNTRY.split())))


@cache
def legal_tender() -> Mapping[str, str]:
    """Country → ISO 4217 code of its currency, where one and only one is legal tender today."""
    current = {
        country: [code for code, _, until, tender in history if tender and until is None]
        for country, history in get_global("territory_currencies").items()
        if country in countries()
    }
    return {country: codes[0] for country, codes in sorted(current.items()) if len(codes) == 1}


@cache
def official_languages() -> Mapping[str, str]:
    """Country → code of its official language, where it has one and only one.

    A language that is official in a region counts where a tenth of the country speaks it: English
    is not the answer for South Africa, and German is for Germany.
    """
    official = {
        country: [
            code
            for code, info in spoken.items()
            if info["official_status"] in ("official", "de_facto_official")
            or (info["official_status"] == "official_regional" and info["population_percent"] >= 10)
        ]
        for country, spoken in get_global("territory_languages").items()
        if country in countries()
    }
    return {country: codes[0] for country, codes in sorted(official.items()) if len(codes) == 1}


def _load(language: str) -> Any:
    """A language's data over the root's, in a copy that nothing else holds.

    ``babel.Locale`` lets languages share what they inherit and writes resolved aliases into it:
    after Swahili had been asked for its days, Amharic answered with them (python-babel issue
    1234). All languages of atlas inherit from the root alone.
    """
    data = _read("root")
    if language != "root":
        localedata.merge(data, _read(language))
    return localedata.LocaleDataDict(data)


def _read(language: str) -> Any:
    return pickle.loads(Path(localedata.resolve_locale_filename(language)).read_bytes())


def _names(names: Mapping[str, str]) -> dict[str, str]:
    return {code: _plain(name) for code, name in names.items() if name and name != code}


def _unit_name(data: Any, unit: str) -> str | None:
    """The singular, else the long name, else the short one, which is often the same."""
    long = data["unit_patterns"].get(unit, {}).get("long", {})
    shown = data["unit_display_names"].get(unit, {})
    symbol = unit_symbols()[unit].casefold()
    for text in (long.get("one"), shown.get("long"), shown.get("short")):
        name = _plain((text or "").replace("{0}", ""))
        # A slash or a digit is an abbreviation again: L/100km.
        if name and name.casefold() != symbol and not re.search(r"[/\d]", name):
            return name
    return None


def _plain(text: str) -> str:
    """Text with ordinary spaces only and without invisible marks."""
    return " ".join(text.translate(_INVISIBLE).split())
