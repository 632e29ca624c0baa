"""Generate an invented catalogue of 20,000 product listings and 20,000 reviews of them.

    python experiments/listings/make.py

Writes `data/listings.jsonl` (id, language, title, category, brand, attributes, condition, price,
currency, description) and `data/reviews.jsonl` (product, rating, text) beside this file, with the
same bytes in every run. A tenth of the listings is in German. As in a real catalogue, keys are
missing or null in many records. Brands, products and opinions are invented: what a model learns
from them shows how templates and mixtures work, and says nothing about shops.
"""

import json
import random
from pathlib import Path
from typing import Any, NamedTuple

DATA = Path(__file__).parent / "data"
LISTINGS = REVIEWS = 20_000
MISSING_KEYS = {"price": 0.05, "description": 0.1, "attributes": 0.15, "condition": 0.2}
"""Key → share of the listings that do not have it."""
SYLLABLES = [
    "bra",
    "cor",
    "del",
    "fen",
    "gra",
    "hol",
    "ka",
    "lu",
    "mor",
    "nor",
    "pel",
    "quin",
    "ros",
    "sil",
    "tor",
    "vex",
]
ENDINGS = ["a", "ex", "ia", "io", "is", "on", "or", "um", "ley", "well"]
CONDITIONS = {
    "en": ["new", "like new", "used", "for parts"],
    "de": ["neu", "wie neu", "gebraucht", "defekt"],
}
COLOURS = {
    "en": ["black", "white", "navy", "olive", "red", "silver", "teal", "sand", "plum", "grey"],
    "de": [
        "schwarz",
        "weiß",
        "marineblau",
        "oliv",
        "rot",
        "silber",
        "türkis",
        "sand",
        "pflaume",
        "grau",
    ],
}


class Kind(NamedTuple):
    """A kind of product, in English and in German."""

    path: list[str]
    german_path: list[str]
    nouns: list[str]
    german_nouns: list[str]
    attributes: dict[str, list[str]]
    """Attribute → its possible values."""
    prices: tuple[float, float]
    """Lowest and highest."""
    use: str
    german_use: str


KINDS: list[Kind] = [
    Kind(
        ["Home", "Lighting"],
        ["Wohnen", "Beleuchtung"],
        ["desk lamp", "floor lamp", "pendant"],
        ["Tischlampe", "Stehlampe", "Pendelleuchte"],
        {"watts": ["4", "7", "12", "40"], "socket": ["E14", "E27", "GU10"]},
        (9, 180),
        "reading in the evening",
        "zum Lesen am Abend",
    ),
    Kind(
        ["Fashion", "Shoes"],
        ["Mode", "Schuhe"],
        ["running shoe", "ankle boot", "sandal"],
        ["Laufschuh", "Stiefelette", "Sandale"],
        {"size": ["37", "38.5", "41", "43", "46"], "sole": ["rubber", "cork"]},
        (15, 220),
        "long walks on gravel",
        "für lange Wege auf Kies",
    ),
    Kind(
        ["Electronics", "Phones"],
        ["Elektronik", "Telefone"],
        ["smartphone", "cordless phone"],
        ["Smartphone", "Schnurlostelefon"],
        {"storage": ["64 GB", "128 GB", "256 GB"], "screen": ["5.4 in", "6.1 in"]},
        (60, 900),
        "calls from the train",
        "für Gespräche im Zug",
    ),
    Kind(
        ["Electronics", "Cameras"],
        ["Elektronik", "Kameras"],
        ["rangefinder", "compact camera", "lens"],
        ["Messsucherkamera", "Kompaktkamera", "Objektiv"],
        {"focal length": ["28 mm", "35 mm", "50 mm"], "aperture": ["f/1.8", "f/2.8"]},
        (40, 1500),
        "pictures of street markets",
        "für Bilder vom Markt",
    ),
    Kind(
        ["Sport", "Cycling"],
        ["Sport", "Fahrrad"],
        ["road bike", "saddle", "pannier"],
        ["Rennrad", "Sattel", "Packtasche"],
        {"frame": ["steel", "aluminium", "carbon"], "gears": ["1", "7", "22"]},
        (12, 2400),
        "commuting by the river",
        "für den Weg am Fluss",
    ),
    Kind(
        ["Media", "Books"],
        ["Medien", "Bücher"],
        ["atlas", "cookbook", "field guide"],
        ["Atlas", "Kochbuch", "Bestimmungsbuch"],
        {"pages": ["96", "214", "388", "512"], "binding": ["hardcover", "paperback"]},
        (3, 70),
        "a quiet weekend",
        "für ein ruhiges Wochenende",
    ),
    Kind(
        ["Toys", "Building"],
        ["Spielzeug", "Bauen"],
        ["block set", "marble run", "puzzle"],
        ["Bausteine", "Kugelbahn", "Puzzle"],
        {"pieces": ["24", "100", "500", "1000"], "age": ["3+", "6+", "10+"]},
        (5, 120),
        "rainy afternoons",
        "für Regentage",
    ),
    Kind(
        ["Garden", "Tools"],
        ["Garten", "Werkzeug"],
        ["hand saw", "cordless drill", "hedge shears"],
        ["Handsäge", "Akkubohrer", "Heckenschere"],
        {"voltage": ["12 V", "18 V"], "weight": ["0.8 kg", "1.4 kg", "2.3 kg"]},
        (8, 260),
        "small repairs",
        "für kleine Reparaturen",
    ),
    Kind(
        ["Home", "Kitchen"],
        ["Wohnen", "Küche"],
        ["kettle", "cast-iron pan", "bread tin"],
        ["Wasserkocher", "Gusspfanne", "Kastenform"],
        {"capacity": ["0.5 l", "1.2 l", "1.7 l"], "material": ["steel", "enamel", "glass"]},
        (6, 140),
        "breakfast for four",
        "für ein Frühstück zu viert",
    ),
    Kind(
        ["Electronics", "Audio"],
        ["Elektronik", "Audio"],
        ["headphones", "turntable", "shelf speaker"],
        ["Kopfhörer", "Plattenspieler", "Regallautsprecher"],
        {"impedance": ["32 ohm", "80 ohm"], "input": ["Bluetooth", "line", "phono"]},
        (20, 700),
        "old jazz records",
        "für alte Jazzplatten",
    ),
    Kind(
        ["Fashion", "Bags"],
        ["Mode", "Taschen"],
        ["backpack", "messenger bag", "weekender"],
        ["Rucksack", "Umhängetasche", "Reisetasche"],
        {"volume": ["12 l", "24 l", "40 l"], "material": ["canvas", "leather", "nylon"]},
        (14, 320),
        "a night away",
        "für eine Nacht unterwegs",
    ),
    Kind(
        ["Garden", "Plants"],
        ["Garten", "Pflanzen"],
        ["fern", "dwarf lemon", "climbing rose"],
        ["Farn", "Zwergzitrone", "Kletterrose"],
        {"height": ["20 cm", "45 cm", "90 cm"], "light": ["shade", "half shade", "sun"]},
        (4, 85),
        "a bright window sill",
        "für ein helles Fensterbrett",
    ),
]

SENTENCES = {
    "en": [
        "Made by {brand} for {use}.",
        "The {noun} comes in {colour}; {attribute} is {value}.",
        "It was {age} and has {marks}.",
        "We ship within {days} days, well packed.",
        "With {count} left, this {colour} {noun} will not be listed again.",
        "{attribute} {value} makes it right for {use}.",
        "Please look at the pictures, they show {marks}.",
    ],
    "de": [
        "Von {brand}, gedacht {use}.",
        "Das Stück ({noun}) ist {colour}; {attribute}: {value}.",
        "Es wurde {age} und hat {marks}.",
        "Versand binnen {days} Tagen, gut verpackt.",
        "Noch {count} Stück in {colour} vorhanden.",
        "Bitte die Bilder ansehen, sie zeigen {marks}.",
    ],
}
AGES = {
    "en": ["bought last spring", "used twice", "kept in its box"],
    "de": ["im Frühjahr gekauft", "zweimal benutzt", "im Karton gelagert"],
}
MARKS = {
    "en": ["no marks", "a small scratch", "a worn corner"],
    "de": ["keine Spuren", "einen kleinen Kratzer", "eine abgenutzte Ecke"],
}
OPINIONS = {
    1: [
        "It broke after {days} days.",
        "The {noun} is nothing like the picture.",
        "I asked for my money back.",
        "{attribute} was not {value} at all.",
    ],
    2: [
        "It feels cheap.",
        "The {colour} faded within {days} weeks.",
        "Too dear for what it is.",
        "{attribute} is hard to live with.",
    ],
    3: [
        "It does what it should.",
        "The {noun} is fine, the packing was not.",
        "Good for {use}, less so for daily use.",
        "It took {days} days to arrive.",
    ],
    4: [
        "A solid {noun}.",
        "I like the {colour} more than I expected.",
        "{attribute} {value} is just right.",
        "Would buy from {brand} again.",
    ],
    5: [
        "Simply the best {noun} I have owned.",
        "Perfect for {use}.",
        "After {days} weeks it still looks new.",
        "{brand} got everything right.",
    ],
}


def make_listing(
    rng: random.Random, number: int, brands: list[str]
) -> tuple[dict[str, Any], dict[str, str]]:
    """Return a listing, and the words that its sentences use."""
    language = "de" if rng.random() < 0.1 else "en"
    is_english = language == "en"
    kind = rng.choice(KINDS)
    attributes, (low, high) = kind.attributes, kind.prices
    attribute = rng.choice(list(attributes))
    words = {
        "brand": rng.choice(brands),
        "noun": rng.choice(kind.nouns if is_english else kind.german_nouns),
        "colour": rng.choice(COLOURS[language]),
        "attribute": attribute,
        "value": rng.choice(attributes[attribute]),
        "use": kind.use if is_english else kind.german_use,
        "age": rng.choice(AGES[language]),
        "marks": rng.choice(MARKS[language]),
        "days": str(rng.randint(2, 9)),
        "count": str(rng.randint(2, 60)),
    }
    detail = [words["colour"], words["value"], f"No. {rng.randint(100, 9999)}"]
    sentences = rng.sample(SENTENCES[language], rng.randint(2, 5))
    price = round(low * (high / low) ** rng.random(), 2)
    details = ", ".join(rng.sample(detail, rng.randint(1, 3)))
    record: dict[str, Any] = {
        "id": f"L{number:05}",
        "language": language,
        "title": f"{words['brand']} {words['noun']} {details}",
        "category": kind.path if is_english else kind.german_path,
        "brand": words["brand"] if rng.random() < 0.8 else None,
        "attributes": {
            name: rng.choice(values) for name, values in attributes.items() if rng.random() < 0.7
        },
        "condition": rng.choice(CONDITIONS[language]),
        "price": price,
        "currency": rng.choice(["USD", "GBP"]) if is_english else "EUR",
        "description": " ".join(s.format(**words) for s in sentences),
    }
    record["attributes"][attribute] = words["value"]
    for key, share in MISSING_KEYS.items():
        if rng.random() < share:
            del record[key]
    return record, words


def make_review(
    rng: random.Random, listing: dict[str, Any], words: dict[str, str]
) -> dict[str, Any]:
    """Return an English review of a listing."""
    rating = rng.choices([1, 2, 3, 4, 5], [8, 7, 15, 30, 40])[0]
    opinions = rng.sample(OPINIONS[rating], rng.randint(1, 3))
    # Some reviews also have an opinion of a neighbouring rating.
    if rng.random() < 0.3:
        neighbour = min(5, max(1, rating + rng.choice([-1, 1])))
        opinions.append(rng.choice(OPINIONS[neighbour]))
    text = " ".join(opinion.format(**words) for opinion in opinions)
    record = {"product": listing["title"], "rating": rating, "text": text}
    if rng.random() < 0.06:
        record["rating"] = None
    return record


def write_jsonl(name: str, records: list[dict[str, Any]]) -> None:
    """Write records into the data folder and print what was written."""
    DATA.mkdir(exist_ok=True)
    path = DATA / name
    lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in records]
    path.write_text("".join(lines), encoding="utf-8")
    print(f"{path}: {len(records):,} records, {path.stat().st_size / 1e6:.1f} MB, all invented")


def main() -> None:
    """Write listings and reviews."""
    rng = random.Random(0)
    names: list[str] = []
    for _ in range(400):
        stem = "".join(rng.sample(SYLLABLES, 2)).capitalize()
        names.append(stem + rng.choice(ENDINGS))
    brands = list(dict.fromkeys(names))
    listings = [make_listing(rng, number, brands) for number in range(LISTINGS)]
    english = [(listing, words) for listing, words in listings if listing["language"] == "en"]
    write_jsonl("listings.jsonl", [listing for listing, _ in listings])
    reviews = [make_review(rng, *rng.choice(english)) for _ in range(REVIEWS)]
    write_jsonl("reviews.jsonl", reviews)
    print("next: sweepcp search experiments/listings/experiment.yaml")


if __name__ == "__main__":
    main()
