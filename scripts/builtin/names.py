"""How people call things: where that differs from Emojibase's labels and keywords, and plurals."""

from __future__ import annotations

import re
from functools import cache

import inflect

RENAMED = {
    "automobile": "car",
    "headphone": "headphones",
    "locked": "padlock",
    "cooking": "frying pan",
    "camping": "campsite",
    "wood": "logs",
    "wedding": "wedding chapel",
    "blowfish": "pufferfish",
    "sauropod": "dinosaur",
    "jack o lantern": "pumpkin",
    "t rex": "tyrannosaurus",
    "red apple": "apple",
    "hot beverage": "coffee",
    "beer mug": "beer",
    "wine glass": "wine",
    "sun with face": "sun face",
    "birthday cake": "cake",
    "soccer ball": "football",
    "mobile phone": "phone",
    "deciduous tree": "tree",
    "evergreen tree": "fir",
    "palm tree": "palm",
    "crescent moon": "moon",
    "open book": "book",
    "flying saucer": "ufo",
    "light bulb": "lamp",
    "money bag": "money",
    "wrapped gift": "gift",
    "desktop computer": "computer",
    "cowboy hat face": "cowboy",
    "top hat": "hat",
    "billed cap": "cap",
    "high heeled shoe": "high heel",
    "running shoe": "shoe",
    "hiking boot": "boot",
    "cheese wedge": "cheese",
    "cooked rice": "rice",
    "steaming bowl": "ramen",
    "soft ice cream": "ice cream",
    "ice": "ice cube",
    "glass of milk": "milk",
    "fork and knife": "cutlery",
    "kitchen knife": "knife",
    "delivery truck": "truck",
    "fire engine": "fire truck",
    "racing car": "race car",
    "chess pawn": "pawn",
    "game die": "dice",
    "musical keyboard": "piano",
    "smiling face with sunglasses": "cool face",
    "grinning face": "smiley",
    "pile of poo": "poo",
}
"""Emojibase's label, as `_plain` makes it, and how people say it."""
MEANT = {
    "cat": "kitten, kitty, animal, tabby",
    "dog": "puppy, doggy, hound, pet, labrador, corgi",
    "car": "auto, vehicle",
    "rocket": "spaceship, spacecraft, starship",
    "airplane": "plane, jet, aeroplane",
    "bicycle": "bike",
    "laptop": "notebook computer, macbook",
    "computer": "pc",
    "hamburger": "burger, cheeseburger",
    "tulip": "flower",
    "sailboat": "boat, yacht",
    "house": "home, cottage, building",
    "rabbit": "bunny, hare",
    "horse": "pony, stallion",
    "phone": "smartphone, cellphone, iphone",
    "television": "telly, tv",
    "lamp": "bulb, light",
    "shoe": "shoes, sneaker",
    "doughnut": "donut",
    "honeybee": "bee",
    "gift": "present",
    "truck": "lorry",
    "taxi": "cab",
    "teapot": "tea",
    "man": "guy",
    "woman": "lady",
    "child": "kid",
    "fir": "pine",
    "football": "soccer, ball",
    "ogre": "monster",
    "dagger": "sword",
    "shield": "knight",
    "duck": "drake",
    "tokyo tower": "lighthouse, tower",
    "motorcycle": "motorbike",
    "dinosaur": "dino",
    "french fries": "fries, chips",
    "coffee": "coffee cup, cup, mug, beverage, drink",
    "apple": "fruit",
    "carrot": "vegetable",
    "pizza": "food, slice of pizza, pizza slice",
    "bug": "insect",
    "guitar": "instrument, music",
    "teddy bear": "toy",
    "robot": "android, droid",
    "hat": "helmet",
    "bird": "seagull, sparrow, robin, crow",
    "dove": "pigeon",
    "t shirt": "clothes, shirt",
    "hammer": "tool",
    "fish": "salmon, trout, goldfish",
}
"""A thing, and common words for it that no name or keyword holds, or that several do."""
DROPPED = {
    *("star", "ring", "heart", "cross", "sunset", "sunrise", "sunrise over mountains", "foggy", "fog", "cityscape"),
    *("cityscape at dusk", "night with stars", "bridge at night", "milky way", "national park", "mountain", "desert"),
    *("beach with umbrella", "desert island", "snow capped mountain"),
}
"""What the model draws as a shape or a landscape."""
NEVER = {
    *("af", "ass", "body", "cell", "face", "facing", "female", "floor", "genderqueer", "glbt", "glbtq", "hindu", "jew"),
    *("lesbian", "lgbt", "lgbtq", "lgbtqia", "male", "mexican", "muslim", "stick", "trans", "where"),
}
"""Keywords that mean too much, and people, whom no keyword turns into a thing."""
_HEAD = re.compile(r"(.+?)((?: (?:with|of|in|on|from|without|at|holding|over) .+)?)")
_ENGLISH = inflect.engine()


@cache
def plural(name: str) -> str:
    """As English makes it, of the noun that the name is about; what is plural already stays."""
    about, rest = _HEAD.fullmatch(name).groups()
    noun = about.split()[-1]
    if _ENGLISH.singular_noun(noun) and not noun.endswith(("us", "is", "ss")):  # "grapes", but not "octopus"
        return name
    return about.removesuffix(noun) + _ENGLISH.plural_noun(noun) + rest
