"""``squad``: read a short English passage and answer with a part of it (stands for SQuAD 2.0)."""

from __future__ import annotations

import random

from tasks.listing import listed
from tasks.question import Question
from tasks.reading import Language, Relation, reading_question

__all__ = ["english_question"]

_NAMES = listed(
    "Adam, Alice, Amir, Anna, Arthur, Bella, Boris, Carla, Clara, Daniel, David, Diana, Edgar, "
    "Elena, Emil, Emma, Felix, Flora, Frank, George, Gloria, Hannah, Henry, Hugo, Irene, "
    "Isaac, Jack, Jane, Karen, Karl, Laura, Leo, Lucy, Maria, Martin, Max, Mona, Nadia, Nora, "
    "Oliver, Oscar, Paula, Peter, Rachel, Robert, Rosa, Samuel, Sarah, Simon, Sofia, Theo, "
    "Thomas, Tina, Victor, Vera, Walter, Wendy, William, Yara, Zoe"
)
_CITIES = listed(
    "Athens, Berlin, Boston, Buenos Aires, Cairo, Cape Town, Chicago, Delhi, Dublin, Geneva, "
    "Hamburg, Havana, Hong Kong, Istanbul, Lima, Lisbon, London, Madrid, Milan, Moscow, "
    "Nairobi, New York, Oslo, Paris, Prague, Quito, Rome, San Diego, Seoul, Sydney, Tokyo, "
    "Toronto, Tunis, Vienna, Warsaw, Zurich"
)
_YEARS = tuple(str(year) for year in range(1900, 2000))
_JOBS = listed(
    "baker, barber, butcher, carpenter, chemist, dancer, dentist, doctor, driver, farmer, "
    "gardener, judge, lawyer, nurse, painter, pilot, plumber, printer, sailor, singer, "
    "surgeon, tailor, teacher, waiter"
)
_INSTRUMENTS = listed(
    "banjo, cello, clarinet, drum, flute, guitar, harp, lute, piano, trumpet, tuba, violin"
)
_COLOURS = listed("black, blue, brown, green, grey, pink, purple, red, white, yellow")
_THINGS = listed(
    "bicycle, boat, bus, camera, car, horse, lamp, piano, rug, sofa, table, tent, truck"
)
_GOODS = listed("boots, candles, chairs, curtains, gloves, hats, mirrors, shirts, vases")
_AGES = listed("famous, large, modern, new, old, quiet, small")
_PLACES = listed(
    "bridge, castle, church, garden, harbour, library, market, museum, palace, theatre, tower"
)
_SUBJECTS = listed(
    "astronomy, biology, chemistry, economics, geology, history, law, linguistics, "
    "mathematics, medicine, music, philosophy, physics, theology"
)
_TOPICS = listed(
    "birds, bread, butterflies, chess, clouds, comets, dragons, ghosts, horses, islands, maps, "
    "mushrooms, pirates, rivers, roses, ships, spiders, trains, volcanoes, whales"
)
_DISHES = listed(
    "apple pie, beef stew, cheese cake, chicken curry, fish soup, fried eggs, lentil soup, "
    "onion soup, pizza, plum cake, potato salad, rice pudding, roast beef, tomato soup, "
    "vegetable curry"
)


def _pairs(first: tuple[str, ...], second: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(f"{one} {other}" for one in first for other in second)


_ENGLISH = Language(
    names=_NAMES,
    relations=(
        Relation(
            "{name} was born in {value}.",
            ("When was {name} born?", "In which year was {name} born?"),
            _YEARS,
        ),
        Relation(
            "{name} grew up in {value}.",
            ("Where did {name} grow up?", "In which city did {name} grow up?"),
            _CITIES,
        ),
        Relation(
            "{name} lives in {value}.",
            ("Where does {name} live?", "In which city does {name} live?"),
            _CITIES,
        ),
        Relation(
            "{name} works as a {value}.",
            ("What does {name} work as?", "What is the job of {name}?"),
            _JOBS,
        ),
        Relation(
            "{name} plays the {value}.",
            ("What does {name} play?", "Which instrument does {name} play?"),
            _INSTRUMENTS,
        ),
        Relation(
            "{name} moved to {value}.",
            ("Where did {name} move?", "To which city did {name} move?"),
            _CITIES,
        ),
        Relation(
            "{name} was taught by {value}.",
            ("Who taught {name}?", "By whom was {name} taught?"),
            _NAMES,
        ),
        Relation("{name} sells {value}.", ("What does {name} sell?",), _pairs(_COLOURS, _GOODS)),
        Relation("{name} owns a {value}.", ("What does {name} own?",), _pairs(_COLOURS, _THINGS)),
        Relation(
            "{name} visited the {value}.",
            ("What did {name} visit?", "Which place did {name} visit?"),
            _pairs(_AGES, _PLACES),
        ),
        Relation(
            "{name} studied {value}.",
            ("What did {name} study?", "Which subject did {name} study?"),
            _SUBJECTS,
        ),
        Relation(
            "{name} wrote a book about {value}.",
            ("What did {name} write a book about?", "What is the book of {name} about?"),
            _TOPICS,
        ),
        Relation(
            "{name} likes to eat {value}.",
            ("What does {name} like to eat?", "What is the favourite dish of {name}?"),
            _DISHES,
        ),
        Relation(
            "{name} is married to {value}.",
            ("Who is {name} married to?", "To whom is {name} married?"),
            _NAMES,
        ),
    ),
    prompt="Passage: {passage}\nQuestion: {question}\nAnswer:",
    lead=" According to the passage,",
)


def english_question(rng: random.Random) -> Question:
    """Draw a question about a passage in English."""
    return reading_question(_ENGLISH, rng)
