#!/usr/bin/env python3
"""make_choices.py TEXT [--questions N] [--separator S]: multiple-choice questions from a text, as JSON lines.

For every N-th document: what comes next? The context is the document's beginning, the true choice the words
that follow it, and the three others are what follows at the same place of other documents. Same text, same
questions."""
import argparse
import json
import sys


def cut(document, start, length):
    """A run of whole words from about `start` on: (text before it, the run), or None."""
    words = document[:start + length + 40]
    a = words.find(" ", start)
    b = words.find(" ", a + length) if a >= 0 else -1
    return (document[:a], document[a:b]) if 0 < a < b else None


def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("text")
    p.add_argument("--questions", type=int, default=16)
    p.add_argument("--separator", default="\n<|endoftext|>\n")
    p.add_argument("--context", type=int, default=160, help="bytes or so")
    p.add_argument("--choice", type=int, default=48)
    args = p.parse_args()
    with open(args.text, encoding="utf-8") as f:
        documents = f.read().split(args.separator)
    parts = [c for c in (cut(d, args.context, args.choice) for d in documents) if c and c[1].strip()]
    if len(parts) < 4:
        sys.exit("%s: fewer than four documents are long enough" % args.text)
    n = min(args.questions, len(parts))
    for i in range(n):
        at = i * len(parts) // n
        others = [parts[(at + k * (len(parts) // 4) + (k > 0)) % len(parts)][1] for k in range(1, 4)]
        answer = (5 * i + 2) % 4
        choices = others[:answer] + [parts[at][1]] + others[answer:]
        print(json.dumps({"context": parts[at][0], "choices": choices, "answer": answer}, ensure_ascii=False))


if __name__ == "__main__":
    main()
