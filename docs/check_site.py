"""Look at the built pages: every public name has its entry, and no directive is left as text.

python docs/check_site.py HTML_FOLDER
"""

import re
import sys
from html import unescape
from pathlib import Path

from sphinx.util.inventory import InventoryFile

import scdrugmap as sd

ROOMS = {"pp": sd.pp, "tl": sd.tl, "pl": sd.pl, "models": sd.models, "datasets": sd.datasets}
#: Submodules, and names that stand on pages of their own.
NOT_LISTED = {"datasets.loaders"}
RAW = re.compile(r"(?m)^\s*(?:\.\. [a-z-]+::|:(?:toctree|header-rows|members):|```\{)|\{eval-rst\}")


def missing(folder):
    """Public names without an object in ``objects.inv``."""
    with (folder / "objects.inv").open("rb") as file:
        inventory = InventoryFile.load(file, "", lambda base, path: path)
    known = {name for kind, names in inventory.items() if kind.startswith("py:") for name in names}
    ends = {name.removeprefix("scdrugmap.").split(".", 1)[0] + "." + name.rsplit(".", 1)[-1] for name in known}
    public = {f"{room}.{name}" for room, module in ROOMS.items() for name in module.__all__}
    return sorted(public - ends - NOT_LISTED)


def raw(folder):
    """Pages on which a directive or an option is printed instead of carried out."""
    out = []
    for page in folder.rglob("*.html"):
        if "_modules" in page.parts or page.name in ("genindex.html", "search.html"):
            continue
        text = page.read_text(encoding="utf-8")
        text = re.sub(r"(?s)<(script|pre|code)\b.*?</\1>", "", text)
        if found := RAW.search(unescape(re.sub(r"<[^>]+>", "", text))):
            out.append(f"{page.relative_to(folder)}: {found.group().strip()}")
    return out


def main(folder):
    problems = [f"no page for sd.{name}" for name in missing(folder)] + [f"raw directive in {p}" for p in raw(folder)]
    print("\n".join(problems) or "every public name has a page, no raw directive")
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
