"""Writes the generated pages: the command line reference and the JSON Schemas. `make docs` runs it."""

from __future__ import annotations

from pathlib import Path

DOCS = Path(__file__).parent


def generate() -> dict[Path, str]:
    """Returns the path and the text of every generated page."""
    from edgekit.cli import make_app
    from edgekit.reporting.json_report import build_schema
    from edgekit.target import target_schema

    reference = make_app().generate_docs(output_format="markdown")
    return {
        DOCS / "cli.md": reference.rstrip() + "\n",
        DOCS / "build.schema.json": build_schema(),
        DOCS / "target.schema.json": target_schema(),
    }


def main() -> None:
    """Writes every generated page."""
    for path, text in generate().items():
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
