"""What the demo world can name: colours, shapes, places, characters, in two languages.

Knows no pictures and no sentences. An index into one of these tuples is the class number that
labels, heads and losses use, so their order is part of a training run.
"""

from typing import Literal, NamedTuple

Language = Literal["en", "zh"]
Rgb = tuple[int, int, int]


class Name(NamedTuple):
    """One thing's name in both languages."""

    en: str
    zh: str

    def within(self, language: Language) -> str:
        """Return the name in the given language."""
        return self.en if language == "en" else self.zh


COLORS = (
    Name("red", "红色"),
    Name("green", "绿色"),
    Name("blue", "蓝色"),
    Name("yellow", "黄色"),
    Name("orange", "橙色"),
    Name("purple", "紫色"),
    Name("black", "黑色"),
    Name("white", "白色"),
    Name("gray", "灰色"),
)
BLACK, WHITE = 6, 7

# The pure values people type (CSS names, #FF0000) come first and are drawn most often.
COLOR_SAMPLES: tuple[tuple[Rgb, ...], ...] = (
    ((255, 0, 0), (220, 20, 30), (200, 40, 40)),
    ((0, 128, 0), (0, 255, 0), (40, 170, 70)),
    ((0, 0, 255), (30, 80, 220), (40, 60, 170)),
    ((255, 255, 0), (250, 220, 30), (240, 230, 90)),
    ((255, 165, 0), (255, 130, 0), (245, 140, 40)),
    ((128, 0, 128), (150, 50, 200), (110, 40, 150)),
    ((0, 0, 0), (0, 0, 0), (20, 20, 20)),
    ((255, 255, 255), (255, 255, 255), (245, 245, 245)),
    ((128, 128, 128), (150, 150, 150), (110, 110, 110)),
)

SHAPES = (
    Name("circle", "圆形"),
    Name("square", "正方形"),
    Name("triangle", "三角形"),
    Name("star", "星形"),
    Name("diamond", "菱形"),
)

# Row-major over a 3 x 3 division of the picture.
PLACES = (
    Name("top left", "左上角"),
    Name("top", "上方"),
    Name("top right", "右上角"),
    Name("left", "左边"),
    Name("center", "中间"),
    Name("right", "右边"),
    Name("bottom left", "左下角"),
    Name("bottom", "下方"),
    Name("bottom right", "右下角"),
)

CHARACTERS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"
MAX_SHAPES = 3
MAX_DIGITS = 3
MAX_LETTERS = 6

_WORD_LIST = """
GO UP NO OK IN ON HI BY CAT DOG SUN RED CAR BUS MAP KEY BOX CUP HAT PEN BED FOX SKY SEA TEA
ICE JAM ZOO EXIT STOP OPEN SALE FREE HELP TAXI BANK PARK FOOD CAFE SHOP MENU HOME LOVE NEWS
BLUE PINK MILK FISH BOOK WIND QUIZ HELLO WORLD LOUPE MUSIC WATER LIGHT HOTEL PIZZA BREAD
TIGER ENTER CLOSE PHONE QUIET GREEN HAPPY MONEY RIVER APPLE DANGER COFFEE SCHOOL TICKET
POLICE ORANGE MARKET GARDEN WINDOW BRIDGE MUSEUM SUMMER WINTER DOCTOR VISION
"""
WORDS = tuple(_WORD_LIST.split())
"""Four words in ten are from this list; the rest are random letters, lest reading be guessing."""
