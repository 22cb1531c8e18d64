#!/usr/bin/env python3
"""Text of a terminal on standard input to an SVG picture on standard output, for the README.

    tmux capture-pane -p -t NAME | tools/terminal_picture.py >docs/run.svg
"""
import html
import sys

CHAR, LINE, MARGIN = 7.8, 17, 14  # pixels
STYLE = "font: 13px ui-monospace, 'DejaVu Sans Mono', Menlo, Consolas, monospace"


def main():
    lines = sys.stdin.read().rstrip("\n").split("\n")
    width = max(len(line) for line in lines) * CHAR + 2 * MARGIN
    height = len(lines) * LINE + 2 * MARGIN
    print(f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height}" width="{width:.0f}" '
          f'height="{height}">')
    print(f'<rect width="100%" height="100%" rx="8" fill="#16181d"/><g fill="#d6dae2" style="{STYLE}">')
    for i, line in enumerate(lines):
        bold = ' fill="#8fd18f"' if line.startswith("$ ") else ""
        # A fixed length per line keeps columns in place whatever font the reader has.
        length = f' textLength="{len(line) * CHAR:.1f}"' if line else ""
        print(f'<text xml:space="preserve" x="{MARGIN}" y="{MARGIN + LINE * (i + 0.75):.1f}"{length}{bold}>'
              f'{html.escape(line)}</text>')
    print("</g></svg>")


if __name__ == "__main__":
    main()
