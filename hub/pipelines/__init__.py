"""How a model folder becomes a runnable pipeline.

loading reads any diffusers folder, and auto serves what it gives. A family that differs gets a file named as diffusers
names its folder.
"""


class Unsupported(Exception):
    """The pipeline cannot run here; the words say why, and clients may read them.

    They may hold names out of files that nobody has vouched for: what is not printable is left out.
    """

    def __init__(self, words: str) -> None:
        super().__init__("".join(letter if letter.isprintable() else "?" for letter in words))
