"""Builds the manual pages from docs/man/*.md: `python release/man.py FOLDER`.

markdown-it reads the Markdown; what follows turns the few things that a manual page has into man(7).  Two
comments stand for what is written elsewhere: `<!-- commands -->` for every command with its options, out of
the program itself, and `<!-- example -->` for etc/config.yaml.  So a page cannot lag behind the program.
"""

from __future__ import annotations

import argparse
import inspect
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import click
from markdown_it import MarkdownIt
from markdown_it.token import Token

from s5jtctl.commands import cli
from s5jtd import __version__
from s5jtd.cli import main as s5jtd

ROOT = Path(__file__).resolve().parents[1]
PAGES = ROOT / "docs" / "man"
_DASH = " \\-\\- "  # between a word and what it means
COMMANDS = "<!-- commands -->"
_FONTS = {"strong": "B", "em": "I"}


def pages() -> Iterator[tuple[str, str]]:
    """Each page: its file's name, such as `s5jtctl.1`, and its text."""
    for path in sorted(PAGES.glob("*.[1-8].md")):
        name = path.name.removesuffix(".md")
        yield name, page(name, path.read_text())


def page(name: str, markdown: str) -> str:
    """One page of Markdown as man(7)."""
    title, _, section = name.rpartition(".")
    if COMMANDS in markdown:
        markdown = markdown.replace(COMMANDS, commands(title))
    example = (ROOT / "etc" / "config.yaml").read_text()
    markdown = markdown.replace("<!-- example -->", f"```\n{example}```")
    tokens = MarkdownIt("commonmark").parse(markdown)
    head = f'.TH "{title.upper()}" "{section}" "" "s5jtd {__version__}" "s5jtd"\n.nh\n.ad l\n'
    return head + "".join(_blocks(tokens))


def commands(program: str) -> str:
    """Every command of a program in Markdown, with its help and options."""
    root: click.Command = {"s5jtd": s5jtd, "s5jtctl": cli}[program]
    everywhere = {option for one in root.params for option in one.opts} if program == "s5jtctl" else set()
    return "\n\n".join(_commands(root, (program,), everywhere))


def _commands(command: click.Command, path: tuple[str, ...], everywhere: set[str]) -> Iterator[str]:
    is_root = len(path) == 1
    context = click.Context(command, info_name=" ".join(path))
    if not is_root:
        options = [one for one in command.params if not everywhere & set(one.opts)]
        words = [*path, *(one.make_metavar(context) for one in options if isinstance(one, click.Argument))]
        if any(isinstance(one, click.Option) for one in options):
            words.append("[OPTIONS]")
        yield f"### {' '.join(words)}"
        yield from _prose(command.help)
        yield from (_option(one, context) for one in options if isinstance(one, click.Option))
        yield from _prose(command.epilog)
    if isinstance(command, click.Group):
        for name in sorted(command.commands):
            yield from _commands(command.commands[name], (*path, name), everywhere)


def _prose(text: str | None) -> Iterator[str]:
    """Paragraphs of a help text; one after `\\b` keeps its lines."""
    for paragraph in re.split(r"\n\s*\n", inspect.cleandoc(text or "")):
        if paragraph.startswith("\b"):
            yield "```\n" + paragraph.removeprefix("\b").strip("\n") + "\n```"
        elif paragraph:
            yield _plain(paragraph)


def _option(option: click.Option, context: click.Context) -> str:
    metavar = "" if option.is_flag or option.count else f" {option.make_metavar(context)}"
    default = f"  Default: {option.default}." if option.show_default else ""
    return f"- `{', '.join(option.opts)}{metavar}` -- {_plain(f'{option.help}{default}')}"


def _plain(text: str) -> str:
    return re.sub(r"([*_<\[\]\\`])", r"\\\1", " ".join(text.split()))


def _blocks(tokens: Sequence[Token]) -> Iterator[str]:
    heading = ""
    item = False  # the next words begin an item of a list
    for token in tokens:
        if token.type == "heading_open":
            heading = token.tag
        elif token.type == "list_item_open":
            item = True
        elif token.type in ("fence", "code_block"):
            code = "\n".join(_guard(_escape(line)) for line in token.content.rstrip("\n").split("\n"))
            yield f".PP\n.in +4n\n.EX\n{code}\n.EE\n.in\n"
        elif token.type == "inline":
            text = _inline(token.children or [])
            yield (
                _title(heading, text) if heading else _item(text) if item else f".PP\n{_lines(text)}"
            ) + "\n"
            heading, item = "", False


def _title(tag: str, text: str) -> str:
    return f".SS {text}" if tag == "h3" else f".SH {text}"


def _item(text: str) -> str:
    tag, dashes, rest = text.partition(_DASH)
    return f".TP\n{_lines(tag)}\n{_lines(rest)}" if dashes else f".IP \\(bu 2\n{_lines(text)}"


def _inline(children: Sequence[Token]) -> str:
    text = ""
    for child in children:
        match child.type:
            case "text":
                text += _escape(child.content)
            case "softbreak":
                text += "\n"
            case "code_inline":
                text += f"\\fB{_escape(child.content)}\\fR"
            case "strong_open" | "em_open":
                text += f"\\f{_FONTS[child.tag]}"
            case "strong_close" | "em_close":
                text += "\\fR"
    return text


def _lines(text: str) -> str:
    return "\n".join(_guard(line) for line in text.split("\n"))


def _guard(line: str) -> str:
    """A line that begins with a dot or a quote would be a request."""
    return f"\\&{line}" if line[:1] in (".", "'") else line


def _escape(text: str) -> str:
    return (
        text.replace("\\", "\\e")
        .replace("-", "\\-")
        .replace("`", "\\(ga")
        .replace("^", "\\(ha")
        .replace("~", "\\(ti")
    )


def build(folder: Path) -> None:
    """Put every page into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in pages():
        (folder / name).write_text(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    build(parser.parse_args().folder)


if __name__ == "__main__":
    main()
