"""The model card: what a registered model is for, what it is worth, where it fails, and where it comes from.

After Mitchell et al. 2019, "Model Cards for Model Reporting"; the front matter is that of Hugging Face's hub.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from core.pages import render, render_text, size
from models.exported.manifest import ModelManifest
from models.judging.comparison import ModelComparison
from models.judging.gate import Verdict
from models.judging.slices import Slice, worse_slices

FOLDER = Path(__file__).with_suffix("")
SECTIONS = ("Intended use", "Limits", "Licence of the data")
"""What only a person knows: headings of `card.md` in the project."""
NOTHING = "Nobody has said anything here yet: write it into card.md of the project."
NUM_CLASSES = 30
"""Where there are more classes, those recognized worst are shown."""
PARAMS = ("model.", "training.recipe", "training.max_epochs", "training.seed", "num_parameters", "multiply_adds")
"""Beginnings of the parameters of a run that are shown."""


class Card(BaseModel):
    """What a card is made of; what is not known is None."""

    model_config = ConfigDict(frozen=True)

    manifest: ModelManifest
    said: Mapping[str, str]
    """what people have written, by section"""
    params: Mapping[str, str]
    """of the run"""
    metrics: Mapping[str, float]
    """of the run"""
    class_accuracy: Mapping[str, float]
    source: str
    """where the images come from"""
    data: Mapping[str, Any] | None
    """the data report"""
    verdict: Verdict | None
    comparison: ModelComparison | None
    slices: tuple[Slice, ...]

    @property
    def title(self) -> str:
        """Name and version."""
        return f"{self.manifest.name} v{self.manifest.version}"

    def as_markdown(self) -> str:
        """Write the card with Hugging Face's front matter, which is YAML."""
        return f"---\n{self._front_matter()}---\n\n{self.as_note()}"

    def as_note(self) -> str:
        """Write the card without front matter."""
        return render_text(FOLDER / "card.md.j2", **self._values())

    def as_html(self) -> str:
        """Write the card as a page that needs nothing else."""
        return render(FOLDER / "page.html.j2", paragraphs=_paragraphs, **self._values())

    def _front_matter(self) -> str:
        """Write the front matter; JSON is YAML too."""
        data = {"name": self.source, "type": self.source, "split": "test", "revision": self.manifest.data_version}
        metrics = [{"type": _kind(name), "name": name, "value": value} for name, value in self._results()]
        task = {"type": "image-classification", "name": "Image classification"}
        fields: dict[str, object] = {
            "library_name": "onnx",
            "pipeline_tag": "image-classification",
            "license": "other",
            "license_name": " ".join(self.said.get(SECTIONS[2], "").split())[:200] or "unknown",
            "tags": ["image-classification", self.manifest.network],
            "model-index": [{"name": self.title, "results": [{"task": task, "dataset": data, "metrics": metrics}]}],
        }
        return "".join(f"{name}: {json.dumps(value, ensure_ascii=False)}\n" for name, value in fields.items())

    def _results(self) -> list[tuple[str, float]]:
        return sorted((name, value) for name, value in self.metrics.items() if name.startswith("test/"))

    def _values(self) -> dict[str, Any]:
        worst = sorted(self.class_accuracy.items(), key=lambda item: (item[1], item[0]))
        return {
            "card": self,
            "manifest": self.manifest,
            "sections": [(name, self.said.get(name, "") or NOTHING) for name in SECTIONS],
            "results": self._results(),
            "classes": worst[:NUM_CLASSES],
            "num_classes": len(self.manifest.classes),
            "worse": worse_slices(self.slices),
            "num_slices": len(self.slices),
            "params": dict(self._shown_params()),
            "file_size": self._file_size(),
        }

    def _shown_params(self) -> Iterator[tuple[str, str]]:
        for name, value in sorted(self.params.items()):
            if name.startswith(PARAMS) and value != "None":
                yield name, value

    def _file_size(self) -> str:
        """Say what the model's file takes, where it is known."""
        tried = self.manifest.int8
        if tried is None:
            return "not known"
        served = "not served" if tried.refusal else "served"
        return f"{size(tried.num_bytes['fp32'])} in fp32; {size(tried.num_bytes['int8'])} in int8, {served}"


def _kind(metric: str) -> str:
    """Name a metric as Hugging Face does, where it has a name for it."""
    return {"test/accuracy": "accuracy", "test/loss": "loss"}.get(metric, metric.partition("/")[2])


def _paragraphs(text: str) -> Sequence[Sequence[str]]:
    """Divide what a person has written into paragraphs, and these into lines."""
    return [block.splitlines() for block in re.split(r"\n\s*\n", text.strip()) if block.strip()]


def read_said(path: Path) -> dict[str, str]:
    """Read what people have written under each heading of `card.md`; comments are nothing, and so is a missing file."""
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    parts = re.split(r"^#+[ \t]+(.+?)[ \t]*$", re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL), flags=re.MULTILINE)
    return {heading: body.strip() for heading, body in zip(parts[1::2], parts[2::2], strict=True)}


def gaps(said: Mapping[str, str]) -> list[str]:
    """Name the sections that nobody has written."""
    return [name for name in SECTIONS if not said.get(name)]


def cut(markdown: str, length: int) -> str:
    """Keep whole lines, and say so where some are missing."""
    if len(markdown) <= length:
        return markdown
    rest = "\n\nThe whole card is `model-card.html` among the artifacts.\n"
    return markdown[: length - len(rest)].rpartition("\n")[0] + rest
