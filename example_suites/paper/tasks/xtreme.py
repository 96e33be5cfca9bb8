"""``xtreme``: passages and questions in several languages (stands for XTREME).

English, German, Spanish and Chinese; the relations, and most of the values, are the same in each.
"""

# Chinese has signs of its own that look like Latin ones.
# ruff: noqa: RUF001

from __future__ import annotations

import random

from tasks.listing import listed
from tasks.question import Question
from tasks.reading import Language, Relation, reading_question

__all__ = ["LANGUAGES", "question_in_some_language"]

_ENGLISH_CITIES = listed(
    "Rome, Paris, Berlin, London, Madrid, Vienna, Munich, Moscow, Tokyo, Lisbon, Athens, "
    "Prague, Cairo, Warsaw, Havana, Beijing"
)
_GERMAN_CITIES = listed(
    "Rom, Paris, Berlin, London, Madrid, Wien, München, Moskau, Tokio, Lissabon, Athen, Prag, "
    "Kairo, Warschau, Havanna, Peking"
)
_SPANISH_CITIES = listed(
    "Roma, París, Berlín, Londres, Madrid, Viena, Múnich, Moscú, Tokio, Lisboa, Atenas, Praga, "
    "El Cairo, Varsovia, La Habana, Pekín"
)
_CHINESE_CITIES = listed(
    "罗马, 巴黎, 柏林, 伦敦, 马德里, 维也纳, 慕尼黑, "
    "莫斯科, 东京, 里斯本, 雅典, 布拉格, 开罗, 华沙, 哈瓦那, 北京"
)

_ENGLISH = Language(
    names=listed(
        "Alice, Brian, Carol, Eric, Grace, Harold, Julia, Kevin, Megan, Nigel, Olivia, Scott"
    ),
    relations=(
        Relation("{name} lives in {value}.", ("Where does {name} live?",), _ENGLISH_CITIES),
        Relation("{name} travels to {value}.", ("Where does {name} travel?",), _ENGLISH_CITIES),
        Relation(
            "{name} plays the {value}.",
            ("Which instrument does {name} play?",),
            listed("violin, piano, guitar, flute, harp, trumpet, drum, organ"),
        ),
        Relation(
            "{name} drinks {value}.",
            ("What does {name} drink?",),
            listed("coffee, tea, milk, water, juice, wine, beer, cocoa"),
        ),
        Relation(
            "{name} studies {value}.",
            ("What does {name} study?",),
            listed(
                "physics, chemistry, biology, mathematics, history, music, medicine, philosophy"
            ),
        ),
        Relation(
            "{name} has a {value}.",
            ("Which animal does {name} have?",),
            listed("dog, cat, horse, bird, goat, sheep, donkey, cow"),
        ),
        Relation(
            "{name} eats {value}.",
            ("What does {name} eat?",),
            listed("bread, cheese, fish, rice, soup, salad, honey, beans"),
        ),
        Relation(
            "{name} buys a {value}.",
            ("What does {name} buy?",),
            listed("car, house, lamp, table, book, coat, watch, boat"),
        ),
    ),
    prompt="Text: {passage}\nQuestion: {question}\nAnswer:",
    lead=" The text says:",
)

_GERMAN = Language(
    names=listed(
        "Anke, Bernd, Dieter, Elke, Greta, Heinz, Jürgen, Käthe, Lutz, Monika, Sabine, Uwe"
    ),
    relations=(
        Relation("{name} wohnt in {value}.", ("Wo wohnt {name}?",), _GERMAN_CITIES),
        Relation("{name} reist nach {value}.", ("Wohin reist {name}?",), _GERMAN_CITIES),
        Relation(
            "{name} spielt {value}.",
            ("Welches Instrument spielt {name}?",),
            listed("Geige, Klavier, Gitarre, Flöte, Harfe, Trompete, Trommel, Orgel"),
        ),
        Relation(
            "{name} trinkt {value}.",
            ("Was trinkt {name}?",),
            listed("Kaffee, Tee, Milch, Wasser, Saft, Wein, Bier, Kakao"),
        ),
        Relation(
            "{name} studiert {value}.",
            ("Was studiert {name}?",),
            listed("Physik, Chemie, Biologie, Mathematik, Geschichte, Musik, Medizin, Philosophie"),
        ),
        Relation(
            "{name} hat {value}.",
            ("Welches Tier hat {name}?",),
            listed(
                "einen Hund, eine Katze, ein Pferd, einen Vogel, eine Ziege, ein Schaf, einen "
                "Esel, eine Kuh"
            ),
        ),
        Relation(
            "{name} isst {value}.",
            ("Was isst {name}?",),
            listed("Brot, Käse, Fisch, Reis, Suppe, Salat, Honig, Bohnen"),
        ),
        Relation(
            "{name} kauft {value}.",
            ("Was kauft {name}?",),
            listed(
                "ein Auto, ein Haus, eine Lampe, einen Tisch, ein Buch, einen Mantel, eine Uhr, "
                "ein Boot"
            ),
        ),
    ),
    prompt="Text: {passage}\nFrage: {question}\nAntwort:",
    lead=" Im Text steht:",
)

_SPANISH = Language(
    names=listed(
        "Álvaro, Carmen, Diego, Elvira, Gonzalo, Inés, Javier, Lucía, Pablo, Rocío, Sergio, Ximena"
    ),
    relations=(
        Relation("{name} vive en {value}.", ("¿Dónde vive {name}?",), _SPANISH_CITIES),
        Relation("{name} viaja a {value}.", ("¿Adónde viaja {name}?",), _SPANISH_CITIES),
        Relation(
            "{name} toca {value}.",
            ("¿Qué instrumento toca {name}?",),
            listed(
                "el violín, el piano, la guitarra, la flauta, el arpa, la trompeta, el tambor, "
                "el órgano"
            ),
        ),
        Relation(
            "{name} bebe {value}.",
            ("¿Qué bebe {name}?",),
            listed("café, té, leche, agua, zumo, vino, cerveza, cacao"),
        ),
        Relation(
            "{name} estudia {value}.",
            ("¿Qué estudia {name}?",),
            listed("física, química, biología, matemáticas, historia, música, medicina, filosofía"),
        ),
        Relation(
            "{name} tiene {value}.",
            ("¿Qué animal tiene {name}?",),
            listed(
                "un perro, un gato, un caballo, un pájaro, una cabra, una oveja, un burro, una vaca"
            ),
        ),
        Relation(
            "{name} come {value}.",
            ("¿Qué come {name}?",),
            listed("pan, queso, pescado, arroz, sopa, ensalada, miel, judías"),
        ),
        Relation(
            "{name} compra {value}.",
            ("¿Qué compra {name}?",),
            listed(
                "un coche, una casa, una lámpara, una mesa, un libro, un abrigo, un reloj, un barco"
            ),
        ),
    ),
    prompt="Texto: {passage}\nPregunta: {question}\nRespuesta:",
    lead=" El texto dice:",
)

_CHINESE = Language(
    names=listed("李明, 王芳, 张伟, 刘洋, 陈静, 杨丽, 赵强, 黄磊, 周婷, 吴刚, 徐慧, 孙勇"),
    relations=(
        Relation("{name}住在{value}。", ("{name}住在哪里？",), _CHINESE_CITIES),
        Relation("{name}去{value}旅行。", ("{name}去哪里旅行？",), _CHINESE_CITIES),
        Relation(
            "{name}演奏{value}。",
            ("{name}演奏什么乐器？",),
            listed("小提琴, 钢琴, 吉他, 长笛, 竖琴, 小号, 大鼓, 管风琴"),
        ),
        Relation(
            "{name}喝{value}。",
            ("{name}喝什么？",),
            listed("咖啡, 绿茶, 牛奶, 清水, 果汁, 红酒, 啤酒, 可可"),
        ),
        Relation(
            "{name}学{value}。",
            ("{name}学什么？",),
            listed("物理, 化学, 生物, 数学, 历史, 音乐, 医学, 哲学"),
        ),
        Relation(
            "{name}有{value}。",
            ("{name}有什么动物？",),
            listed("一只狗, 一只猫, 一匹马, 一只鸟, 一只山羊, 一只绵羊, 一头驴, 一头牛"),
        ),
        Relation(
            "{name}吃{value}。",
            ("{name}吃什么？",),
            listed("面包, 奶酪, 烤鱼, 米饭, 鸡汤, 沙拉, 蜂蜜, 豆腐"),
        ),
        Relation(
            "{name}买{value}。",
            ("{name}买什么？",),
            listed("汽车, 房子, 台灯, 桌子, 书本, 大衣, 手表, 小船"),
        ),
    ),
    prompt="文章：{passage}\n问题：{question}\n回答：",
    lead="文章说：",
    space="",
)

LANGUAGES = {"en": _ENGLISH, "de": _GERMAN, "es": _SPANISH, "zh": _CHINESE}

_ALL = tuple(LANGUAGES.values())


def question_in_some_language(rng: random.Random) -> Question:
    """Draw a question about a passage, both in one of the languages."""
    return reading_question(rng.choice(_ALL), rng)
