"""The report's page: the template, its style and script inside, and a policy that allows them."""

import base64
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

TEMPLATES = Path(__file__).parent / "templates"


def render_page(context: Mapping[str, Any]) -> str:
    """The page as HTML. All text of `context` is escaped; only the kit's style and script run."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        percent=lambda share: f"{100 * share:.1f}",
        points=lambda share: f"{100 * share:+.1f}".replace("-", "−"),
        number=lambda value: f"{value:,}",
        gigabytes=lambda size: f"{size / 1e9:.2f} GB",
        moment=lambda utc: utc[:16].replace("T", " "),
    )
    own = {
        kind: (TEMPLATES / f"report.{kind}").read_text(encoding="utf-8") for kind in ("css", "js")
    }
    return environment.get_template("report.html.j2").render(
        **context,
        css=Markup(own["css"]),
        js=Markup(own["js"]),
        css_hash=_csp_hash(own["css"]),
        js_hash=_csp_hash(own["js"]),
    )


def _csp_hash(text: str) -> str:
    """A Content-Security-Policy source for exactly this text between its tags."""
    digest = hashlib.sha256(text.encode("utf-8")).digest()
    return f"sha256-{base64.b64encode(digest).decode('ascii')}"
