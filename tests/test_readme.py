import re
from pathlib import Path

import pytest
import torch

from vaecli.config.likelihoods import LIKELIHOODS, Likelihood, Support
from vaecli.model import conditionals
from vaecli.training.loop import train

ROOT = Path(__file__).parents[1]
GENERATED = "reference"
"""The folder of pages that `make docs` makes; it checks the links to them itself."""
PAGES = [
    ROOT / "README.md",
    ROOT / "CHANGELOG.md",
    *sorted(page for page in (ROOT / "docs").rglob("*.md") if page.parent.name != GENERATED),
]
BLOCKS = re.findall("```python\n(.*?)```", (ROOT / "docs" / "howto" / "extend.md").read_text(), re.DOTALL)


def test_the_decoder_of_ones_own_is_one_class_and_one_entry(small, tmp_path, monkeypatch):
    (definition,) = (block for block in BLOCKS if "(Conditional)" in block)
    (entry,) = (block for block in BLOCKS if "Likelihood(" in block)
    written: dict = {}
    exec(definition, vars(conditionals) | {"__name__": conditionals.__name__}, written)
    for name, value in written.items():
        monkeypatch.setattr(conditionals, name, value, raising=False)
    ((name, likelihood),) = eval(f"{{{entry}}}", {"Likelihood": Likelihood, "Support": Support}).items()
    monkeypatch.setitem(LIKELIHOODS, name, likelihood)
    run = train(small(model={"decoder": name}, training={"epochs": 30}), runs_dir=tmp_path)
    elbos = [row["elbo"] for row in run.metrics if row["split"] == "train"]
    assert elbos[-1] > elbos[0] + 1  # it learns
    stddev = run.vae.decoder(torch.zeros(2, 3)).stddev
    assert stddev.flatten().tolist() == pytest.approx([0.1] * stddev.numel(), rel=0.01)


def anchors(page: Path) -> set[str]:
    """Return the names that a page's headings have in links."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_between_pages_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        path, _, anchor = link.partition("#")
        if not path.startswith(("http://", "https://")) and Path(path).parent.name != GENERATED:
            there = page.parent / path if path else page
            assert there.exists(), link
            assert not anchor or anchor in anchors(there), link
