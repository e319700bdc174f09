"""Sources by name."""

from core.errors import UserError
from data.config import NEED_PATH, OF_TORCHVISION, SOURCES, DataConfig
from data.sources.added import AddedSource
from data.sources.base import Source


def open_source(config: DataConfig) -> Source:
    """Open the configured source.

    Raises:
        UserError: `data.path` is not set, or does not hold such a source.

    """
    if config.source not in SOURCES.ours:
        return AddedSource(config.source, config.path)
    if config.path is None and config.source in NEED_PATH:
        raise UserError("data.path is not set: name the folder of your images with --set data.path=FOLDER")
    load = SOURCES.load(config.source)
    source: Source = load(config.source, config.path) if config.source in OF_TORCHVISION else load(config.path)
    return source
