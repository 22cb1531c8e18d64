"""Where the training scripts read and write: build/train of the checkout, or the folder TRAIN_DIR."""

import os

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.abspath(os.environ.get("TRAIN_DIR") or os.path.join(HERE, "..", "..", "build", "train"))


def at(*parts):
    return os.path.join(ROOT, *parts)


WORK = at("work")  # sources, training text, tokens, checkpoints, compiled kernels
DATA = at("data")  # held-out text and domains.json
