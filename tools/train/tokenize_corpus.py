#!/usr/bin/python3
"""Encode the training text:  /usr/bin/python3 tokenize_corpus.py

Writes WORK/train_tokens.npy (uint16, documents one after another, each opened by <|endoftext|>),
WORK/train_docs.npy (int64 start offsets, plus the end) and WORK/train_domain.npy (uint8 per document).
"""
import json

import numpy as np

import paths
from bpe import Tokenizer

info = json.load(open(paths.DATA + "/domains.json"))
tok = Tokenizer(paths.at("emo-nano/tokenizer.json"))
ids, starts, dom = [], [], []
for k, d in enumerate(info["domains"]):
    n0 = len(ids)
    for doc in (
        open(f"{paths.WORK}/{d}.train.txt", encoding="utf-8", newline="")
        .read()
        .split(info["document_separator"])
    ):
        starts.append(len(ids))
        dom.append(k)
        ids.append(tok.eos)
        ids += tok.encode(doc, special=False)
    print(d, len(ids) - n0, "tokens", flush=True)
np.save(paths.WORK + "/train_tokens.npy", np.array(ids, dtype=np.uint16))
np.save(paths.WORK + "/train_docs.npy", np.array(starts + [len(ids)], dtype=np.int64))
np.save(paths.WORK + "/train_domain.npy", np.array(dom, dtype=np.uint8))
print(len(starts), "documents,", len(ids), "tokens")
